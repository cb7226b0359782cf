// running: windows of stride 1. Each axis is cut into blocks as long as a window; a window is the end of one block and
// the beginning of the next. The ends are joined from the last element of a block backwards, the beginnings forwards
// while the windows go on: three steps an element on each axis, whatever the size of the window (van Herk, "A fast
// algorithm for local minimum and maximum filters on rectangular and octagonal kernels", 1992; Gil and Werman,
// "Computing 2-D min, median, and max filters", 1993). No element is taken twice, so it serves sums as well; all steps
// join what comes later in memory to what comes earlier, so that ties need no comparison of taps; and blocks are of
// positions in the input, so that padding does not come up.
//
// Rows are joined on the way: of a block of rows and the one after it their windows are in scratch memory, which the
// first-level cache holds where rows are short. The ends of a block stay in registers where it is known to the compiler
// how many there are. (5x5, 256@20, channels_last, one thread: 45 us with all rows joined first and ends in
// memory, 33.)
//
// Vectors run along the channels; contiguous planes are transposed, as many at a time as vectors have lanes.
#pragma once
#include "core/move.h"
#include "pool/walk.h"

namespace fastconv {
namespace {

// Of transposed planes: about what stays in the second-level cache, unless strips would be mostly borders. Of joined
// rows: what is too much for windows to be served here.
constexpr int64_t kRunningBytes = 512 << 10, kMostRunningBytes = 4 << 20;
// From how many taps on it pays, of channels_last memory and of planes; and up to how many columns of planes, whose
// rows fill the vectors of lines.h the better the wider they are.
constexpr int64_t kRunningTaps = 9, kRunningPlaneTaps = 16, kRunningColumns = 128;

constexpr int64_t kColumnsAhead = 6;  // in channels_last memory, from what is written to what is fetched to be written

// Vectors of channels that go through the same steps: two where that is little memory, so that more is under way and
// more of a pixel is read at once; one where rows would not stay in the first-level cache.
constexpr int64_t kPairBytes = 80 << 10;
template <class State, int V>
struct Group {
  State of[V];
};

template <class State, int V>
inline Group<State, V> joined(Group<State, V> earlier, const Group<State, V>& later) {
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v)
    if constexpr (State::kTracks)
      earlier.of[v].take(later.of[v].value, later.of[v].id);
    else
      earlier.of[v].join(later.of[v]);
  return earlier;
}

// How many windows, from o on and before o1, are done together: those that begin in the padding, or as many as a window
// has taps.
inline int64_t windows_of_block(const PoolAxis& axis, int64_t o, int64_t o1) {
  return min64(o1, o < axis.padding ? axis.padding : o + axis.kernel) - o;
}

// The windows of a block of K taps that is inside, and so are they: its ends stay in registers. get(i): the element i
// positions after the first that the first window has in the input; put(j, state): what the window j after it is.
template <int K, class State, class Get, class Put>
[[gnu::always_inline]] inline void join_inside(const Get& get, const Put& put) {
  State ends[K];
  ends[K - 1] = get(K - 1);
#pragma GCC unroll 16
  for (int i = K - 2; i >= 0; --i) ends[i] = joined(get(i), ends[i + 1]);
  put(0, ends[0]);
  State begun = get(K);
  put(1, joined(ends[1], begun));
#pragma GCC unroll 16
  for (int j = 2; j < K; ++j) {
    begun = joined(begun, get(K + j - 1));
    put(j, joined(ends[j], begun));
  }
}

// The windows of any block, `o` the first. keep(i, state), kept(i): memory for its ends.
template <int K, class State, class Keep, class Kept, class Get, class Put>
[[gnu::always_inline]] inline void join_block(const PoolAxis& axis, int64_t o, int64_t windows, const Keep& keep,
                                              const Kept& kept, const Get& get, const Put& put) {
  const int64_t kernel = axis.kernel, left = axis.size + axis.padding - o;
  if (o < axis.padding) {  // they all begin with the first element
    State state = get(0);
    for (int64_t i = 1, j = 0; j < windows; ++j) {
      for (const int64_t end = min64(axis.size, o + j - axis.padding + kernel); i < end; ++i)
        state = joined(state, get(i));
      put(j, state);
    }
    return;
  }
  if constexpr (K > 0)
    if (windows == K && left >= 2 * K - 1) return join_inside<K, State>(get, put);
  const int64_t last = min64(kernel, left) - 1;
  State state = get(last);
  keep(last, state);
  for (int64_t i = last - 1; i >= 0; --i) keep(i, state = joined(get(i), state));
  put(0, state);
  for (int64_t j = 1; j < windows; ++j) {
    const int64_t next = kernel + j - 1;
    if (next < left) state = j == 1 ? get(next) : joined(state, get(next));
    put(j, kernel < left ? joined(kept(j), state) : kept(j));
  }
}

// How a layer is cut into items: groups of channels (or planes) that go together, and strips of rows of windows.
struct GroupCut {
  bool channels_last;
  int64_t channels;             // of a group
  int64_t images, groups;       // groups of an image in channels_last memory, else of all planes as if of one image
  int64_t windows;              // rows of them
  int64_t first, rows, strips;  // the first strip is so much longer than the others; rows of the others

  // A row takes `row_bytes` of scratch, or none for as many rows as there may be. Blocks: strips begin with a block, so
  // that sums are the same wherever they begin.
  GroupCut(const PoolParams& p, int64_t channels, int64_t row_bytes, bool blocks)
      : channels_last(p.channels_last),
        channels(channels),
        images(channels_last ? p.N : 1),
        groups(ceil_div(channels_last ? p.C : p.N * p.C, channels)),
        windows(p.h.outputs),
        first(blocks ? p.h.padding : 0) {
    // Neighbouring strips read the same rows: those should be few.
    const int64_t overlap = p.h.kernel - 1;
    const int64_t most = row_bytes > 0 ? max64(kRunningBytes / row_bytes - overlap, 2 * overlap + 1) : windows;
    const int64_t wanted = max64(ceil_div(windows * images * groups, 4 * p.threads), p.h.kernel);
    rows = round_up(ceil_div(windows, ceil_div(windows, min64(most, wanted))), blocks ? p.h.kernel : 1);
    strips = max64(ceil_div(windows - first, rows), 1);
  }
  int64_t begin(int64_t strip) const { return strip == 0 ? 0 : first + strip * rows; }
  int64_t most_rows() const { return min64(windows, first + rows); }
  struct Item {
    int64_t image, first;  // its first channel, or plane
    Range rows;
  };
  int64_t items() const { return images * groups * strips; }
  // In channels_last memory groups are innermost: their channels lie side by side.
  Item item(int64_t i) const {
    const int64_t strip = channels_last ? i / groups % strips : i % strips;
    const int64_t group = channels_last ? i % groups : i / strips;
    return {
        channels_last ? i / groups / strips : 0, group * channels, {begin(strip), min64(windows, begin(strip + 1))}};
  }
};

// Windows of stride 1 whose channels (or planes) fill at least three quarters of the lanes, of which a strip of rows
// that is worth its borders does not take too much memory, and where it pays.
template <class T, class State>
inline bool running_fits(const PoolParams& p) {
  using A = Accumulate<T>;
  const auto moves = [](const PoolAxis& axis) { return !axis.adaptive && axis.stride == 1 && axis.dilation == 1; };
  if (!moves(p.h) || !moves(p.w)) return false;
  if (p.h.kernel * p.w.kernel < (p.channels_last ? kRunningTaps : kRunningPlaneTaps)) return false;
  if (!p.channels_last && (kAdds<State> || p.w.outputs > kRunningColumns)) return false;
  const int64_t channels = p.channels_last ? p.C : p.N * p.C, columns = max64(p.w.size, p.w.outputs) + 1;
  // Few taps do not make up for groups that are not whole.
  constexpr int64_t kPair = 2 * kLanes<A>;
  if (p.h.kernel * p.w.kernel < kRunningPlaneTaps && channels % kPair != 0 && channels < 8 * kPair) return false;
  return 4 * channels >= 3 * round_up(channels, kLanes<A>) &&
         2 * p.h.kernel * columns * kLanes<A> * 2 * int64_t{sizeof(A)} <= kMostRunningBytes;
}
// Whether two vectors go together.
template <class T, class State>
inline bool running_pairs(const PoolParams& p) {
  using A = Accumulate<T>;
  const int64_t channels = p.channels_last ? p.C : p.N * p.C, pair = 2 * kLanes<A>;
  if (4 * channels < 3 * round_up(channels, pair)) return false;
  const int64_t bytes = 2 * p.h.kernel * p.w.outputs * pair * int64_t{sizeof(A)} * (State::kTracks ? 2 : 1);
  return bytes <= (p.h.kernel <= 5 ? kMostRunningBytes : kPairBytes);
}

template <class T, class State, int V>
struct Running {
  using A = Accumulate<T>;
  using Id = typename LanesOf<A>::type;
  using Numbers = typename NumbersOf<State>::type;
  static constexpr int L = kLanes<A>;
  static constexpr int kChannels = V * L;  // of a group
  static constexpr int64_t kStateBytes = kChannels * sizeof(A) * (State::kTracks ? 2 : 1);

  // Of rows that are joined, in groups: odd, so that columns do not meet in one set of the cache.
  static int64_t row_pitch(const PoolParams& p) { return p.w.outputs | 1; }
  static GroupCut cut_of(const PoolParams& p) {
    const int64_t planes = p.w.size * kChannels * static_cast<int64_t>(sizeof(A)) + p.w.outputs * kStateBytes;
    return {p, kChannels, p.channels_last ? 0 : planes, kAdds<State>};
  }

  // What a thread works in, in groups of states.
  struct Memory {
    Line<A> rows, ends, x, out;
    int64_t bytes;
    Memory(const PoolParams& p, const GroupCut& cut, char* memory) {
      const int64_t input_rows = min64(p.h.size, cut.most_rows() + p.h.kernel - 1);
      char* at = memory;
      const auto line = [&](int64_t groups, bool ids) {
        Line<A> made = {reinterpret_cast<A*>(at), nullptr};
        at += groups * kChannels * static_cast<int64_t>(sizeof(A));
        if (!ids) return made;
        made.ids = reinterpret_cast<Id*>(at);
        at += groups * kChannels * static_cast<int64_t>(sizeof(Id));
        return made;
      };
      rows = line(2 * p.h.kernel * row_pitch(p), State::kTracks);
      ends = line(max64(p.h.kernel, p.w.kernel), State::kTracks);
      x = line(p.channels_last ? 0 : input_rows * p.w.size, false);
      out = line(p.channels_last ? 0 : cut.most_rows() * p.w.outputs, State::kTracks);
      bytes = round_up(at - memory, 64);
    }
  };
  static int64_t scratch(const PoolParams& p) { return p.threads * Memory(p, cut_of(p), nullptr).bytes; }

  // A strip of a group of channels.
  struct Strip {
    int64_t channels;
    int64_t o0, o1, h0, h1;  // rows of windows, and of the input
  };

  template <class Any>
  static Group<Any, V> get_group(const Line<A>& line, int64_t i) {
    Group<Any, V> group;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) group.of[v] = get<Any>(line, i * kChannels + v * L);
    return group;
  }
  template <class Any>
  static void set_group(const Line<A>& line, int64_t i, const Group<Any, V>& group, int64_t taps) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) set(line, i * kChannels + v * L, later(group.of[v], taps));
  }
  static Line<A> from_group(const Line<A>& line, int64_t i) {
    return {line.values + i * kChannels, line.ids + (State::kTracks ? i * kChannels : 0)};
  }

  // K: taps of a window on either axis, or 0 where the compiler does not know. Pixels: of channels_last memory, where
  // rows of a group are pieces of rows, and the processor does not see what comes next: the next row is fetched, and in
  // each row what will be written (5x5, 64@112, 8 images, one thread: 8.5 -> 3.7 ms). Whole: there are kChannels. False
  // where there is a NaN that Any does not know of; what is written is wrong then.
  template <class Any, int K, bool Pixels, bool Whole, class X>
  static bool run_strip(const PoolParams& p, const Memory& memory, const Strip& s, const X* x, int64_t row,
                        int64_t step, int64_t at) {
    using All = Group<Any, V>;
    constexpr bool kLooks = !std::is_same_v<Any, State>;
    const int64_t pitch = row_pitch(p);
    int lanes[V];
    for (int v = 0; v < V; ++v) lanes[v] = static_cast<int>(max64(0, min64(L, s.channels - v * L)));
    T* const output = static_cast<T*>(p.output);
    const double common = kAdds<State> ? common_divisor(p) : 1;
    const Vec<A> common_scale = splat(static_cast<A>(1 / common));
    Mask<A> nan = {};
    const auto keep = [&](int64_t i, const All& all)
                          __attribute__((always_inline)) { set_group(memory.ends, i, all, 0); };
    const auto kept = [&](int64_t i) __attribute__((always_inline)) { return get_group<Any>(memory.ends, i); };
    const auto join_row = [&](int64_t h, int64_t to) {
      for (int64_t q = 0, some; q < p.w.outputs; q += some) {
        some = windows_of_block(p.w, q, p.w.outputs);
        const int64_t first = max64(0, q - p.w.padding), taps = h * p.w.kernel;
        const X* from = x + (h - s.h0) * row + first * step;
        const Line<A> line = from_group(memory.rows, to * pitch + q);
        const auto get_x = [&](int64_t i) __attribute__((always_inline)) {
          const X* pixel = from + i * step;
          All all;
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            if constexpr (Pixels) __builtin_prefetch(pixel + row + v * L, 0, 2);
            const Vec<A> value = Whole ? load(pixel + v * L) : load_partial(pixel + v * L, lanes[v]);
            all.of[v] = Any::one(value, Any::Kind::all_ids(first + i));
            if (kLooks && (V == 1 || v % 2)) nan = nan | either_nan(value, all.of[V == 1 ? 0 : v - 1].value);
          }
          return all;
        };
        const auto put_joined = [&](int64_t j, const All& all)
                                    __attribute__((always_inline)) { set_group(line, j, all, taps); };
        join_block<K, All>(p.w, q, some, keep, kept, get_x, put_joined);
      }
    };
    // Of a block of windows and the one after it rows are kept, in the two halves of memory.rows.
    const int64_t kernel = K > 0 ? K : p.h.kernel;
    const int64_t columns = p.w.outputs, C = Pixels ? p.C : kChannels, row_of_windows = columns * C;
    int64_t h = s.h0, half = 0;
    for (int64_t o = s.o0, some; o < s.o1; o += some) {
      some = windows_of_block(p.h, o, s.o1);
      for (const int64_t end = min64(p.h.size, o + some - 1 - p.h.padding + kernel); h < end; ++h)
        join_row(h, (h - s.h0) % (2 * kernel));
      if (kLooks && any(nan)) return false;
      for (int64_t q = 0; q < columns; ++q) {
        const Line<A> low = from_group(memory.rows, half * pitch + q);
        const Line<A> high = from_group(memory.rows, (kernel - half) * pitch + q);
        const auto get_row = [&](int64_t i) __attribute__((always_inline)) {
          return i < kernel ? get_group<Any>(low, i * pitch) : get_group<Any>(high, (i - kernel) * pitch);
        };
        const int64_t taps = (p.h.padding - o) * p.w.kernel + p.w.padding - q;
        const int64_t base = (o - s.o0) * columns + q, to = at + base * C;
        const auto put_windows = [&](int64_t j, All all) __attribute__((always_inline)) {
          if constexpr (kAdds<State>) {
            const Vec<A> scale = common != 0 ? common_scale : splat(static_cast<A>(1 / window_count(p, o + j, q)));
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) all.of[v].value *= scale;
          }
          if constexpr (!Pixels)
            set_group(memory.out, base + j * columns, all, taps - j * p.w.kernel);
          else
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
              const int64_t there = to + j * row_of_windows + v * L;
              __builtin_prefetch(output + there + kColumnsAhead * C, 1, 2);
              if (Whole || lanes[v] > 0)
                write<T>(p, there, later(all.of[v], taps - j * p.w.kernel), Whole ? L : lanes[v]);
            }
        };
        join_block<K, All>(p.h, o, some, keep, kept, get_row, put_windows);
      }
      if (o >= p.h.padding) half = kernel - half;
    }
    return true;
  }
  template <int K, bool Pixels, class X>
  static void run_known(const PoolParams& p, const Memory& memory, const Strip& s, const X* x, int64_t row,
                        int64_t step, int64_t at) {
    const auto run = [&](auto state, auto known, auto whole) {
      return run_strip<decltype(state), decltype(known)::value, Pixels, decltype(whole)::value>(p, memory, s, x, row,
                                                                                                step, at);
    };
    constexpr std::integral_constant<int, K> known = {};
    constexpr std::integral_constant<int, 0> unknown = {};
    if (s.channels == kChannels ? run(Numbers{}, known, std::true_type{}) : run(Numbers{}, unknown, std::false_type{}))
      return;
    if constexpr (!std::is_same_v<Numbers, State>) run(State{}, unknown, std::false_type{});
  }
  template <bool Pixels, class X>
  static void run_any(const PoolParams& p, const Memory& memory, const Strip& s, const X* x, int64_t row, int64_t step,
                      int64_t at) {
    // What nobody asks for is not worth its code.
    constexpr bool kKnown = sizeof(A) == 4 && (V == 2 || !kAdds<State>);
    constexpr int kOne = !kKnown ? 0 : V == 2 ? 3 : 9, kOther = !kKnown ? 0 : V == 2 ? 5 : 13;
    const int64_t kernel = p.h.kernel == p.w.kernel ? p.h.kernel : 0;
    if (kernel == kOne) return run_known<kOne, Pixels>(p, memory, s, x, row, step, at);
    if (kernel == kOther) return run_known<kOther, Pixels>(p, memory, s, x, row, step, at);
    run_known<0, Pixels>(p, memory, s, x, row, step, at);
  }

  // The ids of a strip, from one vector for each window to one row for each plane.
  static void write_ids(const PoolParams& p, const Id* ids, int64_t count, int64_t planes, int64_t at) {
    const int64_t plane = p.h.outputs * p.w.outputs;
    for (int64_t j = 0; j < count; j += L) {
      const int n = static_cast<int>(min64(L, count - j));
      Vec<A> v[L] = {};
      for (int i = 0; i < n; ++i) __builtin_memcpy(&v[i], ids + (j + i) * kChannels, sizeof v[i]);
      transpose<A>(v);
      for (int64_t c = 0; c < planes; ++c)
        store_ids<A>(p.ids, p.id_bytes, at + c * plane + j, bits_as<Lanes<A>>(v[c]), n);
    }
  }

  // Channels from `channel` on of an image in channels_last memory.
  static void run_pixels(const PoolParams& p, const Memory& memory, Strip& s, int64_t image, int64_t channel) {
    const int64_t row = p.w.size * p.C, windows = p.h.outputs * p.w.outputs;
    const T* x = static_cast<const T*>(p.input) + (image * p.h.size + s.h0) * row + channel;
    s.channels = min64(kChannels, p.C - channel);
    run_any<true>(p, memory, s, x, row, p.C, (image * windows + s.o0 * p.w.outputs) * p.C + channel);
  }
  // Planes from `plane` on.
  static void run_planes(const PoolParams& p, const Memory& memory, Strip& s, int64_t plane) {
    const int64_t pixels = p.h.size * p.w.size, windows = p.h.outputs * p.w.outputs;
    const int64_t planes = min64(kChannels, p.N * p.C - plane);
    const int64_t read = (s.h1 - s.h0) * p.w.size, written = (s.o1 - s.o0) * p.w.outputs;
    const T* from = static_cast<const T*>(p.input) + plane * pixels + s.h0 * p.w.size;
    const int64_t at = plane * windows + s.o0 * p.w.outputs;
    T* to = static_cast<T*>(p.output) + at;
    A* const x = memory.x.values;
    s.channels = kChannels;
    if (planes < kChannels) zero(x, read * kChannels);
    for (int64_t c = 0; c < planes; c += L)
      transpose_block(x + c, kChannels, 1, from + c * pixels, pixels, 1, min64(L, planes - c), read);
    run_any<false>(p, memory, s, static_cast<const A*>(x), p.w.size * kChannels, kChannels, 0);
    for (int64_t c = 0; c < planes; c += L) {
      const int64_t some = min64(L, planes - c);
      transpose_block(to + c * windows, windows, 1, memory.out.values + c, kChannels, 1, written, some);
      if constexpr (State::kTracks) write_ids(p, memory.out.ids + c, written, some, at + c * windows);
    }
  }

  static void run(const PoolParams& p, void* scratch) {
    const GroupCut cut = cut_of(p);
    const int64_t thread_bytes = Memory(p, cut, nullptr).bytes;
    parallel_for(p.threads, cut.items(), [&](int64_t i, int thread) {
      const Memory memory(p, cut, static_cast<char*>(scratch) + thread * thread_bytes);
      const GroupCut::Item item = cut.item(i);
      Strip s;
      s.o0 = item.rows.begin;
      s.o1 = item.rows.end;
      s.h0 = max64(0, s.o0 - p.h.padding);
      s.h1 = min64(p.h.size, s.o1 - 1 - p.h.padding + p.h.kernel);
      if (kAdds<State> || p.channels_last)
        run_pixels(p, memory, s, item.image, item.first);
      else if constexpr (!kAdds<State>)
        run_planes(p, memory, s, item.first);
    });
  }
};

}  // namespace
}  // namespace fastconv
