// From the input to the output: three ways to walk the windows, for every state of state.h.
//
// pixels: channels_last memory; vectors run along the channels, windows are walked tap by tap.
//
// lines: vectors run along the pixels of a row, or along the pixels and channels of a channels_last row. First the rows
// of the windows become one line in scratch memory, column by column, then the columns of each window are joined in it.
// That takes R + S steps instead of R * S, and the ends of the rows, padding and strides are the line's business alone.
// Where windows of stride 1 are wide and an element may be taken twice, the line is joined with itself at distances of
// 1, 2, 4, ...: windows of 13 columns take 4 steps.
//
// spans: contiguous memory; vectors run along the columns of one window, whose lanes are joined in the end. For windows
// that are wide and overlap little, down to one window that is the whole plane.
#pragma once
#include "core/parallel.h"
#include "pool/state.h"

namespace fastconv {
namespace {

template <class State>
constexpr bool kAdds = false;
template <class K>
constexpr bool kAdds<Sum<K>> = true;

// What the mean of one window divides by.
inline double window_count(const PoolParams& p, int64_t o, int64_t q) {
  return static_cast<double>(p.h.count(o, p.padding_counts) * p.w.count(q, p.padding_counts));
}

// What it divides by where that is the same for all windows, else 0.
inline double common_divisor(const PoolParams& p) {
  if (p.divisor != 0) return p.divisor;
  for (const PoolAxis* axis : {&p.h, &p.w}) {
    const int64_t first = axis->count(0, p.padding_counts);
    // Counts differ at the ends alone, except where windows adapt.
    const int64_t from = axis->adaptive && axis->size % axis->outputs ? 1 : axis->outputs - 1;
    for (int64_t o = from; o < axis->outputs; ++o)
      if (axis->count(o, p.padding_counts) != first) return 0;
    if (!axis->adaptive && first != axis->kernel) return 0;
  }
  return window_count(p, 0, 0);
}

template <class T, class State>
inline void write(const PoolParams& p, int64_t at, const State& state, int n) {
  using A = Accumulate<T>;
  T* to = static_cast<T*>(p.output) + at;
  if (n == kLanes<A>)
    store(to, state.value);
  else
    store_partial(to, state.value, n);
  if constexpr (State::kTracks) store_ids<A>(p.ids, p.id_bytes, at, state.id, n);
}

constexpr int64_t kItemElements = 1 << 14;  // of the input: work is handed out in pieces of about so many

// Calls body(j, n) for vectors of [0, count): the last steps back where it would be cut short.
template <class T, class Body>
inline void vectors(int64_t count, const Body& body) {
  constexpr int L = kLanes<Accumulate<T>>;
  if (count < L) return body(0, static_cast<int>(count));
  int64_t j = 0;
  for (; j + L <= count; j += L) body(j, L);
  if (j < count) body(count - L, L);
}

// Rows that are one item of work, of `rows` in all for each of which `read` elements are read.
inline int64_t rows_of_item(const PoolParams& p, int64_t rows, int64_t read) {
  const int64_t enough = kItemElements / (read + 1) + 1, share = rows / (4 * p.threads) + 1;
  return enough < share ? enough : share;
}

// ---- pixels ----

// Count vectors of channels of one window; the last has n lanes.
template <class T, class State, int Count>
inline void reduce_pixel(const PoolParams& p, const T* image, int64_t o, int64_t q, int64_t at, int64_t channel, int n,
                         Accumulate<T> scale) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const int64_t r_begin = p.h.begin(o), r_end = p.h.end(o), s_begin = p.w.begin(q), s_end = p.w.end(q);
  const int64_t tap = r_begin * p.w.kernel + s_begin;
  State state[Count];
#pragma GCC unroll 8
  for (int u = 0; u < Count; ++u) state[u] = State::nothing(tap);
  for (int64_t r = r_begin; r < r_end; ++r) {
    const T* row = image + ((p.h.first(o) + r * p.h.dilation) * p.w.size + p.w.first(q)) * p.C + channel;
    for (int64_t s = s_begin; s < s_end; ++s) {
      const T* x = row + s * p.w.dilation * p.C;
      const auto id = State::Kind::all_ids(r * p.w.kernel + s);
#pragma GCC unroll 8
      for (int u = 0; u < Count; ++u) {
        const bool whole = u + 1 < Count || n == L;
        state[u].take(whole ? load(x + u * L) : load_partial(x + u * L, n), id);
      }
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < Count; ++u) {
    if constexpr (kAdds<State>) state[u].value *= splat(scale);
    write<T>(p, at + channel + u * L, state[u], u + 1 < Count ? L : n);
  }
}

template <class T, class State>
struct Pixels {
  static int64_t scratch(const PoolParams&) { return 0; }
  static void run(const PoolParams& p, void*) {
    using A = Accumulate<T>;
    constexpr int L = kLanes<A>;
    const double common = kAdds<State> ? common_divisor(p) : 1;
    parallel_for(p.threads, p.N * p.h.outputs, [&](int64_t row, int) {
      const int64_t n = row / p.h.outputs, o = row % p.h.outputs;
      const T* image = static_cast<const T*>(p.input) + n * p.h.size * p.w.size * p.C;
      for (int64_t q = 0; q < p.w.outputs; ++q) {
        const int64_t at = (row * p.w.outputs + q) * p.C;
        double divisor = common;
        if constexpr (kAdds<State>)
          if (common == 0) divisor = window_count(p, o, q);
        const A scale = static_cast<A>(1 / divisor);
        int64_t channel = 0;
        for (; channel + 4 * L <= p.C; channel += 4 * L)
          reduce_pixel<T, State, 4>(p, image, o, q, at, channel, L, scale);
        for (; channel + L <= p.C; channel += L) reduce_pixel<T, State, 1>(p, image, o, q, at, channel, L, scale);
        if (channel < p.C)
          reduce_pixel<T, State, 1>(p, image, o, q, at, channel, static_cast<int>(p.C - channel), scale);
      }
    });
  }
};

// ---- lines ----

// Elements of a line that is cut into chunks: with its ids it stays in the first level of the caches.
constexpr int64_t kLineElements = 2048;
constexpr int64_t kSlack = 4 * 16;  // vectors are read and written so far beyond the end of a line

// From how many columns on a line is joined with itself.
constexpr int64_t kDoubledColumns = 5;

template <class T, class State>
struct Lines {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;

  // How far the same column of neighbouring pixels is apart.
  static int64_t distance(const PoolParams& p) { return p.channels_last ? p.C : 1; }
  // The positions that the windows [begin, end) look at, padding included.
  static int64_t span(const PoolParams& p, int64_t begin, int64_t end) {
    const int64_t taps = p.w.adaptive ? p.w.end(end - 1) : (p.w.kernel - 1) * p.w.dilation + 1;
    return p.w.first(end - 1) + taps - p.w.first(begin);
  }
  // Windows of a row that share a line.
  static int64_t chunk(const PoolParams& p) {
    if (p.w.adaptive) return p.w.outputs;
    const int64_t most = kLineElements / distance(p) - (p.w.kernel - 1) * p.w.dilation;
    // Neighbouring chunks look at the same columns: those should be few.
    const int64_t least = 4 * (p.w.kernel - 1) * p.w.dilation / p.w.stride + 1;
    const int64_t windows = most / p.w.stride > least ? most / p.w.stride : least;
    return windows < p.w.outputs ? windows : p.w.outputs;
  }
  static int64_t line_elements(const PoolParams& p) {
    int64_t most = 0;
    for (int64_t q = 0, count = chunk(p); q < p.w.outputs; q += count) {
      const int64_t elements = span(p, q, q + count < p.w.outputs ? q + count : p.w.outputs);
      if (elements > most) most = elements;
      if (!p.w.adaptive) break;  // the first is as long as any
    }
    return most * distance(p) + kSlack;
  }
  static int64_t thread_bytes(const PoolParams& p) {
    const int64_t per_window = kAdds<State> ? (chunk(p) + kSlack) * static_cast<int64_t>(sizeof(A)) : 0;
    const int64_t bytes = line_elements(p) * static_cast<int64_t>(sizeof(A)) * (State::kTracks ? 2 : 1) + per_window;
    return (bytes + 63) / 64 * 64;
  }
  static int64_t scratch(const PoolParams& p) { return p.threads * thread_bytes(p); }

  // One chunk of windows of an output row.
  struct Chunk {
    const PoolParams& p;
    Line<A> line;
    A* counts;      // [windows], of the columns, where the divisors differ
    double common;  // what all divide by, else 0
    int64_t begin, end;

    int64_t windows() const { return end - begin; }

    // The line: the rows of the windows joined. Positions in the padding hold nothing.
    template <int Rows>
    void join_rows(const T* plane, int64_t o) const {
      const int64_t d = distance(p), r_begin = p.h.begin(o), pitch = p.w.size * d * p.h.dilation;
      const int64_t rows = Rows ? Rows : p.h.end(o) - r_begin;
      const int64_t first = p.w.first(begin) * d, length = span(p, begin, end) * d;
      const int64_t from = first > 0 ? first : 0;
      const int64_t to = first + length < p.w.size * d ? first + length : p.w.size * d;
      const T* x = plane + (p.h.first(o) + r_begin * p.h.dilation) * p.w.size * d;
      for (int64_t i = 0; i < from - first; i += L) set(line, i, State::nothing());
      const auto vector = [&](int64_t i, int n) {
        State state = State::nothing(r_begin * p.w.kernel);
#pragma GCC unroll 4
        for (int64_t r = 0; r < rows; ++r) {
          const T* at = x + r * pitch + i;
          state.take(n == L ? load(at) : load_partial(at, n), State::Kind::all_ids((r_begin + r) * p.w.kernel));
        }
        set(line, i - first, state);
      };
      int64_t i = from;
      for (; i + L <= to; i += L) vector(i, L);
      if (i < to) vector(i, static_cast<int>(to - i));
      for (i = to > first ? to - first : 0; i < length; i += L) set(line, i, State::nothing());
    }

    void write_windows(const State& given, int64_t at, int64_t j, int n, int64_t row_count) const {
      State state = given;
      if constexpr (kAdds<State>) {
        if (common != 0)
          state.value *= splat(static_cast<A>(1 / common));
        else
          state.value /= load(counts + j) * splat(static_cast<A>(row_count));
      }
      write<T>(p, at + j, state, n);
    }

    void join_columns(int64_t at, int64_t row_count) const {
      const int64_t d = distance(p), S = p.w.kernel, step = p.w.dilation * d;
      const int64_t count = windows() * d;
      if (p.w.adaptive || p.w.stride > 2) return join_single(at, row_count);
      if (p.w.stride == 2) {
        vectors<T>(count, [&](int64_t j, int n) {
          State state = second(2 * j);
          for (int64_t s = 1; s < S; ++s) state.join(later(second(2 * j + s * step), s));
          write_windows(state, at, j, n, row_count);
        });
        return;
      }
      if (!State::kTakesTwice || S < kDoubledColumns) {
        vectors<T>(count, [&](int64_t j, int n) {
          State state = get<State>(line, j);
          for (int64_t s = 1; s < S; ++s) state.join(later(get<State>(line, j + s * step), s));
          write_windows(state, at, j, n, row_count);
        });
        return;
      }
      // Doubling: after each round an element is that of a window of `columns` columns which begins there.
      const int64_t length = span(p, begin, end) * d;
      int64_t columns = 1;
      for (; 2 * columns <= S; columns *= 2)
        for (int64_t i = 0; i + columns * step < length; i += L) {
          State state = get<State>(line, i);
          state.join(later(get<State>(line, i + columns * step), columns));
          set(line, i, state);
        }
      vectors<T>(count, [&](int64_t j, int n) {
        State state = get<State>(line, j);
        if (columns < S) state.join(later(get<State>(line, j + (S - columns) * step), S - columns));
        write_windows(state, at, j, n, row_count);
      });
    }

    // Every second element from `i` on.
    State second(int64_t i) const {
      const State low = get<State>(line, i), high = get<State>(line, i + L);
      State state;
      state.value = even_lanes<A>(low.value, high.value);
      if constexpr (State::kTracks) state.id = even_lanes<typename LanesOf<A>::type>(low.id, high.id);
      return state;
    }

    // Window by window: other strides, and windows that adapt.
    void join_single(int64_t at, int64_t row_count) const {
      using One = typename State::template As<Single<A>>;
      for (int64_t j = 0; j < windows(); j += L) {
        const int n = static_cast<int>(windows() - j < L ? windows() - j : L);
        State state = State::nothing();
        for (int lane = 0; lane < n; ++lane) {
          const int64_t q = begin + j + lane, from = p.w.first(q) - p.w.first(begin);
          const int64_t taps = p.w.adaptive ? p.w.end(q) : p.w.kernel;
          One one = get<One>(line, from);
          for (int64_t s = 1; s < taps; ++s) one.join(later(get<One>(line, from + s * p.w.dilation), s));
          state.value[lane] = one.value;
          if constexpr (State::kTracks) state.id[lane] = one.id;
        }
        write_windows(state, at, j, n, row_count);
      }
    }

    void run(const T* plane, int64_t o, int64_t at) const {
      switch (p.h.end(o) - p.h.begin(o)) {
        case 1: join_rows<1>(plane, o); break;
        case 2: join_rows<2>(plane, o); break;
        case 3: join_rows<3>(plane, o); break;
        default: join_rows<0>(plane, o);
      }
      join_columns(at, kAdds<State> ? p.h.count(o, p.padding_counts) : 1);
    }
  };

  static void run(const PoolParams& p, void* scratch) {
    const int64_t d = distance(p), planes = p.channels_last ? p.N : p.N * p.C;
    const int64_t windows = chunk(p), chunks = (p.w.outputs + windows - 1) / windows;
    const double common = kAdds<State> ? common_divisor(p) : 1;
    const int64_t rows = planes * p.h.outputs, bytes = thread_bytes(p), elements = line_elements(p);
    const int64_t read = p.w.size * d * (p.h.stride < p.h.kernel ? p.h.stride : p.h.kernel);
    const int64_t rows_per_item = rows_of_item(p, rows, read);
    const int64_t items = (rows + rows_per_item - 1) / rows_per_item;
    parallel_for(p.threads, items * chunks, [&](int64_t item, int thread) {
      const int64_t begin = item % chunks * windows;
      const int64_t end = begin + windows < p.w.outputs ? begin + windows : p.w.outputs;
      Line<A> line;
      line.values = reinterpret_cast<A*>(static_cast<char*>(scratch) + thread * bytes);
      line.ids = reinterpret_cast<typename LanesOf<A>::type*>(line.values + elements);
      A* counts = line.values + elements;  // only sums have them, and those have no ids
      if (common == 0)
        for (int64_t q = begin; q < end; ++q) counts[q - begin] = static_cast<A>(p.w.count(q, p.padding_counts));
      const Chunk work{p, line, counts, common, begin, end};
      const int64_t last = (item / chunks + 1) * rows_per_item;
      for (int64_t row = item / chunks * rows_per_item; row < (last < rows ? last : rows); ++row) {
        const int64_t plane = row / p.h.outputs, o = row % p.h.outputs;
        work.run(static_cast<const T*>(p.input) + plane * p.h.size * p.w.size * d, o, (row * p.w.outputs + begin) * d);
      }
    });
  }
};

// ---- spans ----

template <class T, class State>
struct Spans {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static int64_t scratch(const PoolParams&) { return 0; }

  static auto window(const PoolParams& p, const T* plane, int64_t o, int64_t q) {
    const int64_t r_begin = p.h.begin(o), r_end = p.h.end(o), s_begin = p.w.begin(q), s_end = p.w.end(q);
    typename State::Kind::Id lane;
    for (int i = 0; i < L; ++i) lane[i] = static_cast<uint32_t>(i);
    State state = State::nothing();
    for (int64_t r = r_begin; r < r_end; ++r) {
      const T* row = plane + (p.h.first(o) + r * p.h.dilation) * p.w.size + p.w.first(q);
      int64_t s = s_begin;
      for (; s + L <= s_end; s += L) state.take(load(row + s), lane + State::Kind::all_ids(r * p.w.kernel + s));
      if (s < s_end) {
        const int n = static_cast<int>(s_end - s);
        State more = state;
        more.take(load_partial(row + s, n), lane + State::Kind::all_ids(r * p.w.kernel + s));
        const Mask<A> inside = less(lane, State::Kind::all_ids(n));
        state.value = choose(inside, more.value, state.value);
        if constexpr (State::kTracks) state.id = choose(inside, more.id, state.id);
      }
    }
    auto one = joined(state);
    if constexpr (State::kTracks)  // nothing was greater than negative infinity
      if (one.id == kNoTap) one.id = static_cast<typename LanesOf<A>::type>(r_begin * p.w.kernel + s_begin);
    return one;
  }

  static void run(const PoolParams& p, void*) {
    const int64_t rows = p.N * p.C * p.h.outputs;
    const int64_t read = p.w.size * p.h.kernel;
    const int64_t rows_per_item = rows_of_item(p, rows, read);
    parallel_for(p.threads, (rows + rows_per_item - 1) / rows_per_item, [&](int64_t item, int) {
      const int64_t last = (item + 1) * rows_per_item < rows ? (item + 1) * rows_per_item : rows;
      for (int64_t row = item * rows_per_item; row < last; ++row) {
        const int64_t plane = row / p.h.outputs, o = row % p.h.outputs;
        const T* x = static_cast<const T*>(p.input) + plane * p.h.size * p.w.size;
        for (int64_t q = 0; q < p.w.outputs; ++q) {
          auto one = window(p, x, o, q);
          const int64_t at = row * p.w.outputs + q;
          if constexpr (kAdds<State>) {
            const double divisor = p.divisor != 0 ? p.divisor : window_count(p, o, q);
            one.value /= static_cast<A>(divisor);
          }
          put(static_cast<T*>(p.output) + at, one.value);
          if constexpr (State::kTracks) store_ids<A>(p.ids, p.id_bytes, at, splat(one.id), 1);
        }
      }
    });
  }
};

// ---- choice ----

// Where windows are as wide as the rows and there is one for each plane, rows are joined into one long row; taps are
// counted as before.
inline PoolParams joined_planes(const PoolParams& p) {
  PoolParams q = p;
  const bool whole = p.h.adaptive && p.w.adaptive && p.h.outputs == 1 && p.w.outputs == 1;
  if (p.channels_last || !whole) return q;
  q.w.size = q.w.kernel = p.h.size * p.w.size;
  q.h.size = q.h.kernel = 1;
  return q;
}

constexpr int64_t kSpanColumns = 8;  // windows of fewer columns leave too many lanes of a span empty

// Taps that `lines` saves must pay for the line.
constexpr int64_t kPixelTaps = 9;

template <class T, template <class> class StateOf>
struct Forward {
  using State = StateOf<Wide<Accumulate<T>>>;

  template <class Body>
  static auto choose_walk(const PoolParams& given, const Body& body) {
    const PoolParams p = joined_planes(given);
    if (p.channels_last) {
      const bool even = !kAdds<State> || common_divisor(p) != 0;
      if (!p.w.adaptive && p.w.stride == 1 && p.h.kernel * p.w.kernel >= kPixelTaps && even)
        return body(p, Lines<T, State>{});
      return body(p, Pixels<T, State>{});
    }
    if (p.w.kernel >= kSpanColumns && p.w.dilation == 1 && (p.w.adaptive || p.w.stride > 2))
      return body(p, Spans<T, State>{});
    return body(p, Lines<T, State>{});
  }
  static int64_t scratch(const PoolParams& given) {
    return choose_walk(given, [](const PoolParams& p, auto walk) { return decltype(walk)::scratch(p); });
  }
  static void run(const PoolParams& given, void* memory) {
    choose_walk(given, [&](const PoolParams& p, auto walk) { decltype(walk)::run(p, memory); });
  }
};

}  // namespace
}  // namespace fastconv
