// running: wide windows of stride 1. Each axis is cut into blocks as long as a window; a window is the end of one block
// and the beginning of the next. The ends are joined from the last element of a block backwards, the beginnings
// forwards while the windows go on: three steps an element on each axis, whatever the size of the window (van Herk, "A
// fast algorithm for local minimum and maximum filters on rectangular and octagonal kernels", 1992; Gil and Werman,
// "Computing 2-D min, median, and max filters", 1993). All steps join what comes later in memory to what comes earlier,
// so that ties need no comparison of taps; and blocks are of positions in the input, so that padding does not come up.
//
// Vectors run along the channels; contiguous planes are transposed, as many at a time as two vectors have lanes.
#pragma once
#include "core/move.h"
#include "pool/walk.h"

namespace fastconv {
namespace {

// Of scratch of a thread: what stays in the second-level cache, unless strips would be mostly borders, and what is too
// much for windows to be served here.
constexpr int64_t kRunningBytes = 512 << 10, kMostRunningBytes = 4 << 20;
// From how many taps on it pays, and up to how many columns of contiguous planes, whose rows fill the vectors of
// lines.h the better the wider they are.
constexpr int64_t kRunningTaps = 16, kRunningColumns = 128;

constexpr int64_t kColumnsAhead = 6;  // in channels_last memory, from what is written to what is fetched to be written

// Vectors of channels that go through the same steps.
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

// Windows [o0, o1) of one axis. get(i) and kept(i): the element at a position, and what keep(i, state) has put there,
// which may be the same place; put(o, state): what a window is.
template <class State, class Get, class Kept, class Keep, class Put>
[[gnu::always_inline]] inline void run_windows(const PoolAxis& axis, int64_t o0, int64_t o1, const Get& get,
                                               const Kept& kept, const Keep& keep, const Put& put) {
  const int64_t K = axis.kernel;
  for (int64_t o = o0; o < o1; o += K) {
    const int64_t first = o - axis.padding, low = max64(0, first), high = min64(axis.size, first + K);
    State state = get(high - 1);
    keep(high - 1, state);
    for (int64_t i = high - 2; i >= low; --i) keep(i, state = joined(get(i), state));
    put(o, state);
    // Windows that begin in this block, the first aside: those that begin in the padding, those that reach into the
    // next block and end in it, and those that end with the input.
    const int64_t last = min64(o1, o + K), inside = min64(last, low + axis.padding + 1);
    const int64_t whole = min64(last, axis.size + axis.padding - K + 1);
    int64_t j = o + 1;
    if (whole <= j) {
      for (; j < inside; ++j) put(j, state);
      for (; j < last; ++j) put(j, kept(j - axis.padding));
      continue;
    }
    State begun = get(high);
    for (;;) {
      put(j, joined(j < inside ? state : kept(j - axis.padding), begun));
      if (++j >= whole) break;
      begun = joined(begun, get(j - axis.padding + K - 1));
    }
    for (; j < inside; ++j) put(j, joined(state, begun));
    for (; j < last; ++j) put(j, joined(kept(j - axis.padding), begun));
  }
}

// How a layer is cut into items: groups of channels (or planes) that go together, and strips of rows of windows.
struct GroupCut {
  static constexpr int kVectors = 2;

  bool channels_last;
  int64_t channels;        // of a group
  int64_t images, groups;  // groups of an image in channels_last memory, else of all planes as if of one image
  int64_t size, rows, strips;

  // A row takes `row_bytes` of scratch.
  GroupCut(const PoolParams& p, int64_t channels, int64_t row_bytes)
      : channels_last(p.channels_last),
        channels(channels),
        images(channels_last ? p.N : 1),
        groups(ceil_div(channels_last ? p.C : p.N * p.C, channels)),
        size(p.h.outputs) {
    // Neighbouring strips read the same rows: those should be few.
    const int64_t overlap = p.h.kernel - 1;
    const int64_t most = max64(kRunningBytes / row_bytes - overlap, 2 * overlap + 1);
    const int64_t wanted = max64(ceil_div(size * images * groups, 4 * p.threads), p.h.kernel);
    strips = ceil_div(size, min64(most, wanted));
    rows = ceil_div(size, strips);
    strips = ceil_div(size, rows);
  }
  struct Item {
    int64_t image, first;  // its first channel, or plane
    Range rows;
  };
  int64_t items() const { return images * groups * strips; }
  // In channels_last memory groups are innermost: their channels lie side by side.
  Item item(int64_t i) const {
    const int64_t strip = channels_last ? i / groups % strips : i % strips;
    const int64_t group = channels_last ? i % groups : i / strips;
    return {channels_last ? i / groups / strips : 0, group * channels, {strip * rows, min64(size, (strip + 1) * rows)}};
  }
};

// Windows of stride 1 whose channels (or planes) fill at least three quarters of the lanes, of which a strip of rows
// that is worth its borders does not take too much memory, and where it pays.
template <class T>
inline bool running_fits(const PoolParams& p) {
  using A = Accumulate<T>;
  constexpr int64_t kChannels = GroupCut::kVectors * kLanes<A>;
  const auto moves = [](const PoolAxis& axis) { return !axis.adaptive && axis.stride == 1 && axis.dilation == 1; };
  if (!moves(p.h) || !moves(p.w) || p.h.kernel * p.w.kernel < kRunningTaps) return false;
  if (!p.channels_last && p.w.outputs > kRunningColumns) return false;
  const int64_t channels = p.channels_last ? p.C : p.N * p.C, columns = max64(p.w.size, p.w.outputs) + 1;
  return 4 * channels >= 3 * round_up(channels, kChannels) &&
         min64(p.h.size, 3 * p.h.kernel) * columns * kChannels * 2 * int64_t{sizeof(A)} <= kMostRunningBytes;
}

template <class T, class State>
struct Running {
  using A = Accumulate<T>;
  using Id = typename LanesOf<A>::type;
  using Numbers = typename NumbersOf<State>::type;
  static constexpr int L = kLanes<A>, V = GroupCut::kVectors;
  static constexpr int kChannels = V * L;  // of a group
  static constexpr int64_t kStateBytes = kChannels * sizeof(A) * (State::kTracks ? 2 : 1);

  // Of rows that are joined, in groups; odd, so that columns do not meet in one set of the cache.
  static int64_t row_pitch(const PoolParams& p) { return p.w.outputs | 1; }
  static GroupCut cut_of(const PoolParams& p) {
    const int64_t planes = p.w.size * kChannels * static_cast<int64_t>(sizeof(A)) + p.w.outputs * kStateBytes;
    return {p, kChannels, row_pitch(p) * kStateBytes + (p.channels_last ? 0 : planes)};
  }

  // What a thread works in, in groups of states.
  struct Memory {
    Line<A> joined, ends, x, out;
    int64_t bytes;
    Memory(const PoolParams& p, const GroupCut& cut, char* memory) {
      const int64_t input_rows = min64(p.h.size, cut.rows + p.h.kernel - 1);
      char* at = memory;
      const auto line = [&](int64_t groups, bool ids) {
        Line<A> made = {reinterpret_cast<A*>(at), nullptr};
        at += groups * kChannels * static_cast<int64_t>(sizeof(A));
        if (!ids) return made;
        made.ids = reinterpret_cast<Id*>(at);
        at += groups * kChannels * static_cast<int64_t>(sizeof(Id));
        return made;
      };
      joined = line(input_rows * row_pitch(p), State::kTracks);
      ends = line(p.w.size, State::kTracks);
      x = line(p.channels_last ? 0 : input_rows * p.w.size, false);
      out = line(p.channels_last ? 0 : cut.rows * p.w.outputs, State::kTracks);
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

  // Pixels: of channels_last memory, where rows of a group are pieces of rows, and the processor does not see what
  // comes next: the next row is fetched, and in each row what will be written (5x5, 64@112, 8 images, one thread: 8.5
  // -> 3.7 ms). Whole: there are kChannels. False where there is a NaN that Any does not know of; nothing is written
  // then.
  template <class Any, bool Pixels, bool Whole, class X>
  static bool run_strip(const PoolParams& p, const Memory& memory, const Strip& s, const X* x, int64_t row,
                        int64_t step, int64_t at) {
    using All = Group<Any, V>;
    constexpr bool kLooks = !std::is_same_v<Any, State>;
    const int64_t pitch = row_pitch(p);
    int lanes[V];
    for (int v = 0; v < V; ++v) lanes[v] = static_cast<int>(max64(0, min64(L, s.channels - v * L)));
    Mask<A> nan = {};
    for (int64_t h = s.h0; h < s.h1; ++h, x += row) {
      const auto get_x = [&](int64_t w) {
        All all;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          if constexpr (Pixels) __builtin_prefetch(x + row + w * step + v * L, 0, 2);
          all.of[v] = Any::nothing(w);
          all.of[v].value = Whole ? load(x + w * step + v * L) : load_partial(x + w * step + v * L, lanes[v]);
          if constexpr (kLooks) nan = nan | is_nan(all.of[v].value);
        }
        return all;
      };
      const int64_t to = (h - s.h0) * pitch, taps = h * p.w.kernel;
      run_windows<All>(
          p.w, 0, p.w.outputs, get_x, [&](int64_t w) { return get_group<Any>(memory.ends, w); },
          [&](int64_t w, const All& all) { set_group(memory.ends, w, all, 0); },
          [&](int64_t q, const All& all) { set_group(memory.joined, to + q, all, taps); });
    }
    if (kLooks && any(nan)) return false;
    for (int64_t q = 0; q < p.w.outputs; ++q) {
      const auto get_row = [&](int64_t h) { return get_group<Any>(memory.joined, (h - s.h0) * pitch + q); };
      const auto keep_row = [&](int64_t h, const All& all) {
        set_group(memory.joined, (h - s.h0) * pitch + q, all, 0);
      };
      run_windows<All>(p.h, s.o0, s.o1, get_row, get_row, keep_row, [&](int64_t o, const All& all) {
        const int64_t taps = (p.h.padding - o) * p.w.kernel + p.w.padding - q;
        const int64_t to = (o - s.o0) * p.w.outputs + q;
        if constexpr (!Pixels)
          set_group(memory.out, to, all, taps);
        else
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            __builtin_prefetch(static_cast<T*>(p.output) + at + (to + kColumnsAhead) * p.C + v * L, 1, 2);
            if (Whole || lanes[v] > 0) write<T>(p, at + to * p.C + v * L, later(all.of[v], taps), Whole ? L : lanes[v]);
          }
      });
    }
    return true;
  }
  template <bool Pixels, class X>
  static void run_any(const PoolParams& p, const Memory& memory, const Strip& s, const X* x, int64_t row, int64_t step,
                      int64_t at) {
    const auto run = [&](auto state, auto whole) {
      return run_strip<decltype(state), Pixels, decltype(whole)::value>(p, memory, s, x, row, step, at);
    };
    const bool whole = s.channels == kChannels;
    if (whole ? run(Numbers{}, std::true_type{}) : run(Numbers{}, std::false_type{})) return;
    if constexpr (!std::is_same_v<Numbers, State>)
      whole ? run(State{}, std::true_type{}) : run(State{}, std::false_type{});
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
      if (p.channels_last)
        run_pixels(p, memory, s, item.image, item.first);
      else
        run_planes(p, memory, s, item.first);
    });
  }
};

}  // namespace
}  // namespace fastconv
