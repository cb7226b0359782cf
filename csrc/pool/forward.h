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
#include <type_traits>

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

// Where a window of one axis begins, and which of its taps are in the input: worked out once for each column, because
// windows that adapt take divisions.
struct Reach {
  int64_t first;
  int32_t begin, end;
};
inline Reach reach_of(const PoolAxis& axis, int64_t o) {
  return {axis.first(o), static_cast<int32_t>(axis.begin(o)), static_cast<int32_t>(axis.end(o))};
}
inline int64_t reach_bytes(const PoolAxis& axis) { return axis.outputs * static_cast<int64_t>(sizeof(Reach)); }
inline const Reach* all_reaches(const PoolAxis& axis, void* memory) {
  Reach* reaches = static_cast<Reach*>(memory);
  for (int64_t o = 0; o < axis.outputs; ++o) reaches[o] = reach_of(axis, o);
  return reaches;
}

// ---- pixels ----

// Vectors of channels that one pass over a window reduces.
template <class State>
constexpr int kPixelVectors = (kVecRegisters == 32 ? 16 : 8) / (State::kTracks ? 2 : 1);

// Count vectors of channels of one window; the last has n lanes.
template <class T, class State, int Count>
inline void reduce_pixel(const PoolParams& p, const T* image, const Reach& h, const Reach& w, int64_t at,
                         int64_t channel, int n, Accumulate<T> scale) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  State state[Count];
#pragma GCC unroll 16
  for (int u = 0; u < Count; ++u) state[u] = State::nothing(h.begin * p.w.kernel + w.begin);
  const int64_t step = p.w.dilation * p.C;
  for (int64_t r = h.begin; r < h.end; ++r) {
    const T* x = image + ((h.first + r * p.h.dilation) * p.w.size + w.first) * p.C + w.begin * step + channel;
    int64_t tap = r * p.w.kernel + w.begin;
    for (int s = w.begin; s < w.end; ++s, x += step, ++tap) {
      const auto id = State::Kind::all_ids(tap);
#pragma GCC unroll 16
      for (int u = 0; u < Count; ++u) {
        const bool whole = u + 1 < Count || n == L;
        state[u].take(whole ? load(x + u * L) : load_partial(x + u * L, n), id);
      }
    }
  }
#pragma GCC unroll 16
  for (int u = 0; u < Count; ++u) {
    if constexpr (kAdds<State>) state[u].value *= splat(scale);
    write<T>(p, at + channel + u * L, state[u], u + 1 < Count ? L : n);
  }
}

// Large windows of many channels: pixel by pixel, in the order of the memory, with the states of all channels in a line
// that stays in the first level of the caches; four pixels at a time, so that it is read and written for every fourth.
// (Means of 30x30 windows of 2048 channels took 1.1 ms register by register, which jumps from pixel to pixel.)
template <class T, class State>
inline void reduce_by_pixels(const PoolParams& p, const Line<Accumulate<T>>& line, const T* image, const Reach& h,
                             const Reach& w, int64_t at, int64_t from, int64_t to, Accumulate<T> scale) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const auto channels = [&](const auto& body) {
    int64_t c = from;
    for (; c + L <= to; c += L) body(c, L);
    if (c < to) body(c, static_cast<int>(to - c));
  };
  channels([&](int64_t c, int) { set(line, c - from, State::nothing(h.begin * p.w.kernel + w.begin)); });
  const int64_t step = p.w.dilation * p.C;
  for (int64_t r = h.begin; r < h.end; ++r) {
    const T* row = image + ((h.first + r * p.h.dilation) * p.w.size + w.first) * p.C;
    const auto pixels = [&](int64_t s, auto count) {
      channels([&](int64_t c, int n) {
        State state = get<State>(line, c - from);
#pragma GCC unroll 4
        for (int i = 0; i < decltype(count)::value; ++i) {
          const T* x = row + (s + i) * step + c;
          state.take(n == L ? load(x) : load_partial(x, n), State::Kind::all_ids(r * p.w.kernel + s + i));
        }
        set(line, c - from, state);
      });
    };
    int64_t s = w.begin;
    for (; s + 4 <= w.end; s += 4) pixels(s, std::integral_constant<int, 4>{});
    for (; s < w.end; ++s) pixels(s, std::integral_constant<int, 1>{});
  }
  channels([&](int64_t c, int n) {
    State state = get<State>(line, c - from);
    if constexpr (kAdds<State>) state.value *= splat(scale);
    write<T>(p, at + c, state, n);
  });
}

template <class T, class State>
struct Pixels {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>, kMost = kPixelVectors<State>;
  static constexpr int64_t kLargeTaps = 64;

  static bool by_pixels(const PoolParams& p) { return p.h.kernel * p.w.kernel >= kLargeTaps && p.C > kMost * L; }
  // Few rows are shared out by their channels; into as few parts as there must be where whole pixels are read in order.
  static int64_t share(const PoolParams& p) {
    const int64_t rows = p.N * p.h.outputs, wanted = by_pixels(p) ? p.threads : 4 * p.threads;
    return rows >= wanted ? p.C : ((p.C * rows + wanted - 1) / wanted + 4 * L - 1) / (4 * L) * 4 * L;
  }
  static int64_t thread_elements(const PoolParams& p) { return by_pixels(p) ? share(p) + L : 0; }
  static int64_t table_bytes(const PoolParams& p) { return (reach_bytes(p.w) + 63) / 64 * 64; }
  static int64_t scratch(const PoolParams& p) {
    const int64_t bytes = static_cast<int64_t>(sizeof(A)) * (State::kTracks ? 2 : 1);
    return table_bytes(p) + p.threads * thread_elements(p) * bytes;
  }

  static void run(const PoolParams& p, void* memory) {
    const double common = kAdds<State> ? common_divisor(p) : 1;
    const Reach* columns = all_reaches(p.w, memory);
    A* lines = reinterpret_cast<A*>(static_cast<char*>(memory) + table_bytes(p));
    const int64_t elements = thread_elements(p), rows = p.N * p.h.outputs;
    const int64_t part = share(p), parts = (p.C + part - 1) / part;
    parallel_for(p.threads, rows * parts, [&](int64_t item, int thread) {
      const int64_t row = item / parts, n = row / p.h.outputs, o = row % p.h.outputs;
      const int64_t from = item % parts * part, to = from + part < p.C ? from + part : p.C;
      const Reach h = reach_of(p.h, o);
      const T* image = static_cast<const T*>(p.input) + n * p.h.size * p.w.size * p.C;
      A* values = lines + thread * elements * (State::kTracks ? 2 : 1);
      const Line<A> line = {values, reinterpret_cast<typename LanesOf<A>::type*>(values + elements)};
      A scale = static_cast<A>(1 / common);
      for (int64_t q = 0; q < p.w.outputs; ++q) {
        if (common == 0) scale = static_cast<A>(1 / window_count(p, o, q));
        const int64_t at = (row * p.w.outputs + q) * p.C;
        if (elements > 0) {
          reduce_by_pixels<T, State>(p, line, image, h, columns[q], at, from, to, scale);
          continue;
        }
        int64_t c = from;
        for (; c + kMost * L <= to; c += kMost * L)
          reduce_pixel<T, State, kMost>(p, image, h, columns[q], at, c, L, scale);
        for (; c + 4 * L <= to; c += 4 * L) reduce_pixel<T, State, 4>(p, image, h, columns[q], at, c, L, scale);
        for (; c + L <= to; c += L) reduce_pixel<T, State, 1>(p, image, h, columns[q], at, c, L, scale);
        if (c < to) reduce_pixel<T, State, 1>(p, image, h, columns[q], at, c, static_cast<int>(to - c), scale);
      }
    });
  }
};

// ---- lines ----

// Elements that are worked on together: with their ids they stay in the first level of the caches.
constexpr int64_t kLineElements = 4096;
constexpr int64_t kSlack = 4 * 16;  // vectors are read and written so far beyond the end of a line
constexpr int kMostRows = 16;       // whose lines are worked on together

// From how many columns on a line is joined with itself.
constexpr int64_t kDoubledColumns = 5;

// Some windows of a row, and where they look; in elements.
struct Chunk {
  int64_t begin, windows;  // the first, and how many
  int64_t first, length;   // of the line, from the beginning of the input's row
  int64_t from, to;        // what of it is in the input
};

// How rows are cut, and their lines laid out.
template <class T, class State>
struct LineShape {
  using A = Accumulate<T>;
  const PoolParams& p;
  int64_t d;        // how far neighbouring pixels of a channel are apart, in elements
  int64_t windows;  // of a row that share a line
  int64_t pitch;    // of lines, in elements
  int64_t rows;     // whose lines are worked on together

  explicit LineShape(const PoolParams& params) : p(params), d(p.channels_last ? p.C : 1) {
    windows = p.w.outputs;
    if (!p.w.adaptive) {
      const int64_t overlap = (p.w.kernel - 1) * p.w.dilation, most = kLineElements / d - overlap;
      // Neighbouring chunks look at the same columns: those should be few.
      const int64_t least = 4 * overlap / p.w.stride + 1;
      const int64_t wanted = most / p.w.stride > least ? most / p.w.stride : least;
      const int64_t chunks = (p.w.outputs + wanted - 1) / wanted;
      windows = (p.w.outputs + chunks - 1) / chunks;
    }
    pitch = (span(0, windows) * d + 3 * 16 - 1) / 16 * 16;  // a vector before, where it is aligned, and one after
    const int64_t together = kLineElements / pitch;
    rows = together < 1 ? 1 : together > kMostRows ? kMostRows : together;
  }
  // The positions that the windows [begin, end) look at, padding included.
  int64_t span(int64_t begin, int64_t end) const {
    const int64_t taps = p.w.adaptive ? p.w.end(end - 1) : (p.w.kernel - 1) * p.w.dilation + 1;
    return p.w.first(end - 1) + taps - p.w.first(begin);
  }
  Chunk chunk(int64_t begin) const {
    const int64_t end = begin + windows < p.w.outputs ? begin + windows : p.w.outputs;
    const int64_t first = p.w.first(begin) * d, length = span(begin, end) * d, row = p.w.size * d;
    const int64_t last = first + length < row ? first + length : row;
    return {begin, end - begin, first, length, first > 0 ? first : 0, last};
  }
  int64_t line_elements() const { return rows * pitch + kSlack; }
  int64_t thread_bytes() const {
    const int64_t counts = kAdds<State> ? p.w.outputs + kSlack : 0;
    const int64_t bytes = (line_elements() * (State::kTracks ? 2 : 1) + counts) * static_cast<int64_t>(sizeof(A));
    return (bytes + 63) / 64 * 64;
  }
  int64_t table_bytes() const { return p.w.adaptive ? (reach_bytes(p.w) + 63) / 64 * 64 : 0; }
};

// What becomes of one chunk of one row; State may be the one for numbers alone.
template <class T, class State>
struct LineWork {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  const PoolParams& p;
  const Reach* columns;  // of windows that adapt
  const A* counts;       // [outputs], of the columns, where the divisors differ
  double common;         // what all divide by, else 0
  int64_t d, step;       // distances of pixels and of columns of a window, in elements

  // The line: the rows of the windows joined, from `x`, the first of them, on. Positions in the padding hold nothing.
  template <int Rows>
  void join_rows(const Line<A>& line, const Chunk& chunk, const T* x, int64_t tap, int64_t rows) const {
    const int64_t pitch = p.w.size * d * p.h.dilation;
    if (Rows) rows = Rows;
    for (int64_t i = chunk.first; i < chunk.from; i += L) set(line, i - chunk.first, State::nothing());
    const auto vector = [&](int64_t i, int n) {
      State state = State::nothing(tap);
      const T* at = x + i;
#pragma GCC unroll 4
      for (int64_t r = 0; r < rows; ++r, at += pitch)
        state.take(n == L ? load(at) : load_partial(at, n), State::Kind::all_ids(tap + r * p.w.kernel));
      set(line, i - chunk.first, state);
    };
    int64_t i = chunk.from;
    for (; i + L <= chunk.to; i += L) vector(i, L);
    if (i < chunk.to) vector(i, static_cast<int>(chunk.to - i));
    for (i = chunk.to > chunk.first ? chunk.to - chunk.first : 0; i < chunk.length; i += L)
      set(line, i, State::nothing());
  }
  void join_rows(const Line<A>& line, const Chunk& chunk, const T* plane, const Reach& h) const {
    const T* x = plane + (h.first + h.begin * p.h.dilation) * p.w.size * d;
    const int64_t rows = h.end - h.begin, tap = h.begin * p.w.kernel;
    switch (rows) {
      case 1: return join_rows<1>(line, chunk, x, tap, rows);
      case 2: return join_rows<2>(line, chunk, x, tap, rows);
      case 3: return join_rows<3>(line, chunk, x, tap, rows);
      default: join_rows<0>(line, chunk, x, tap, rows);
    }
  }

  void write_windows(const Chunk& chunk, State state, int64_t at, int64_t j, int n, Vec<A> scale) const {
    if constexpr (kAdds<State>) {
      if (common != 0)
        state.value *= scale;
      else
        state.value /= load(counts + chunk.begin + j) * scale;
    }
    write<T>(p, at + j, state, n);
  }

  // Every second element of two vectors, from the first or from the second on.
  template <bool Odd>
  static State second(const State& low, const State& high) {
    using All = std::make_integer_sequence<int, L>;
    State state;
    if constexpr (Odd) {
      state.value = odd_lanes(low.value, high.value, All{});
      if constexpr (State::kTracks) state.id = odd_lanes(low.id, high.id, All{});
    } else {
      state.value = even_lanes(low.value, high.value, All{});
      if constexpr (State::kTracks) state.id = even_lanes(low.id, high.id, All{});
    }
    return state;
  }

  // Columns: how many a window has, or 0 where only `p` knows.
  template <int Columns>
  void join_columns(const Line<A>& line, const Chunk& chunk, int64_t at, Vec<A> scale) const {
    const int64_t S = Columns ? Columns : p.w.kernel;
    if (p.w.stride == 2)
      return vectors<T>(chunk.windows, [&](int64_t j, int n) {
        State low = get<State>(line, 2 * j), high = get<State>(line, 2 * j + L);
        State state = second<false>(low, high);
#pragma GCC unroll 4
        for (int64_t s = 1; s < S; ++s) {
          if (step == 1 && s % 2) {
            state.join(later(second<true>(low, high), s));
          } else {
            low = get<State>(line, 2 * j + s * step);
            high = get<State>(line, 2 * j + s * step + L);
            state.join(later(second<false>(low, high), s));
          }
        }
        write_windows(chunk, state, at, j, n, scale);
      });
    vectors<T>(chunk.windows * d, [&](int64_t j, int n) {
      State state = get<State>(line, j);
#pragma GCC unroll 4
      for (int64_t s = 1; s < S; ++s) state.join(later(get<State>(line, j + s * step), s));
      write_windows(chunk, state, at, j, n, scale);
    });
  }

  // Doubling: an element that was that of a window of so many columns, which begins there, becomes that of twice as
  // many.
  void double_columns(const Line<A>& line, const Chunk& chunk, int64_t columns) const {
    for (int64_t i = 0; i + columns * step < chunk.length; i += L) {
      State state = get<State>(line, i);
      state.join(later(get<State>(line, i + columns * step), columns));
      set(line, i, state);
    }
  }
  // Windows of two that overlap.
  void join_doubled(const Line<A>& line, const Chunk& chunk, int64_t at, Vec<A> scale, int64_t columns) const {
    const int64_t distance = p.w.kernel - columns;
    vectors<T>(chunk.windows * d, [&](int64_t j, int n) {
      State state = get<State>(line, j);
      if (distance > 0) state.join(later(get<State>(line, j + distance * step), distance));
      write_windows(chunk, state, at, j, n, scale);
    });
  }

  // Window by window: other strides, and windows that adapt.
  void join_single(const Line<A>& line, const Chunk& chunk, int64_t at, Vec<A> scale) const {
    using One = typename State::template As<Single<A>>;
    int64_t from = 0, taps = p.w.kernel;
    for (int64_t j = 0; j < chunk.windows; j += L) {
      const int n = static_cast<int>(chunk.windows - j < L ? chunk.windows - j : L);
      A values[L];
      typename LanesOf<A>::type ids[L];
      const Line<A> results = {values, ids};
      for (int lane = 0; lane < n; ++lane, from += p.w.stride) {
        if (columns) {
          from = columns[j + lane].first;
          taps = columns[j + lane].end;
        }
        One one = get<One>(line, from);
        for (int64_t s = 1; s < taps; ++s) one.join(later(get<One>(line, from + s * step), s));
        set(results, lane, one);
      }
      write_windows(chunk, get<State>(results, 0), at, j, n, scale);
    }
  }

  // `joined`: columns that doubling has joined.
  void join_columns(const Line<A>& line, const Chunk& chunk, int64_t o, int64_t at, int64_t joined) const {
    Vec<A> scale = {};
    if constexpr (kAdds<State>)
      scale = splat(static_cast<A>(common != 0 ? 1 / common : static_cast<double>(p.h.count(o, p.padding_counts))));
    if (columns || p.w.stride > 2) return join_single(line, chunk, at, scale);
    if (joined > 1) return join_doubled(line, chunk, at, scale, joined);
    switch (p.w.kernel) {
      case 2: return join_columns<2>(line, chunk, at, scale);
      case 3: return join_columns<3>(line, chunk, at, scale);
      default: return join_columns<0>(line, chunk, at, scale);
    }
  }
};

template <class T, class State>
struct Lines {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  using Shape = LineShape<T, State>;
  static int64_t scratch(const PoolParams& p) {
    const Shape shape(p);
    return shape.table_bytes() + p.threads * shape.thread_bytes();
  }

  // A row of windows.
  struct Row {
    const T* plane;
    int64_t number, o;  // among all, and in its plane
    Reach h;
  };

  // First the lines of all rows, then each step for all of them: of a line that has just been written, unaligned
  // vectors cannot be read before it has left the processor's store buffer, and short rows would wait for that.
  template <class Any>
  static void run_rows(const LineWork<T, Any>& work, const Shape& shape, const Line<A>& lines, const Row* rows,
                       int count) {
    const PoolParams& p = shape.p;
    const bool doubles = State::kTakesTwice && p.w.stride == 1 && !p.w.adaptive && p.w.kernel >= kDoubledColumns;
    for (int64_t q = 0; q < p.w.outputs; q += shape.windows) {
      const Chunk chunk = shape.chunk(q);
      const int64_t lead = (16 - (chunk.from - chunk.first) % 16) % 16;  // so that whole vectors are written aligned
      const auto line = [&](int i) {
        return Line<A>{lines.values + i * shape.pitch + lead, lines.ids + i * shape.pitch + lead};
      };
      for (int i = 0; i < count; ++i) work.join_rows(line(i), chunk, rows[i].plane, rows[i].h);
      int64_t columns = 1;
      for (; doubles && 2 * columns <= p.w.kernel; columns *= 2)
        for (int i = 0; i < count; ++i) work.double_columns(line(i), chunk, columns);
      for (int i = 0; i < count; ++i)
        work.join_columns(line(i), chunk, rows[i].o, (rows[i].number * p.w.outputs + q) * shape.d, columns);
    }
  }

  // Whether there is a NaN in `count` elements.
  static bool has_nan(const T* x, int64_t count) {
    Mask<A> found = {};
    int64_t i = 0;
    for (; i + L <= count; i += L) found = found | is_nan(load(x + i));
    if (i < count) found = found | is_nan(load_partial(x + i, static_cast<int>(count - i)));
    return any(found);
  }

  // NaN is looked for once in each row of the input, not each time that the row is joined: in the rows that `rows`, of
  // one plane, look at, from row `checked` on. Returns the last that has one, or `last`.
  static int64_t last_with_nan(const PoolParams& p, const Row& row, int64_t& checked, int64_t last, int64_t d) {
    const int64_t end = row.h.first + (row.h.end - 1) * p.h.dilation + 1,
                  begin = row.h.first + row.h.begin * p.h.dilation;
    for (int64_t h = begin > checked ? begin : checked; h < end; ++h)
      if (has_nan(row.plane + h * p.w.size * d, p.w.size * d)) last = h;
    if (end > checked) checked = end;
    return last;
  }

  static void run(const PoolParams& p, void* scratch) {
    using Numbers = typename NumbersOf<State>::type;
    // Where rows are joined often enough to pay for looking at them first.
    const bool looks = !std::is_same_v<Numbers, State> && p.h.kernel > 2 * p.h.stride;
    const Shape shape(p);
    const int64_t planes = p.channels_last ? p.N : p.N * p.C, rows = planes * p.h.outputs;
    const double common = kAdds<State> ? common_divisor(p) : 1;
    const Reach* columns = p.w.adaptive ? all_reaches(p.w, scratch) : nullptr;
    char* memory = static_cast<char*>(scratch) + shape.table_bytes();
    const int64_t fresh = p.h.stride < p.h.kernel ? p.h.stride : p.h.kernel;
    const int64_t per_item = rows_of_item(p, rows, p.w.size * shape.d * fresh);
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int thread) {
      Line<A> lines;
      lines.values = reinterpret_cast<A*>(memory + thread * shape.thread_bytes());
      lines.ids = reinterpret_cast<typename LanesOf<A>::type*>(lines.values + shape.line_elements());
      A* counts = lines.values + shape.line_elements();  // only sums have them, and those have no ids
      if (common == 0)
        for (int64_t q = 0; q < p.w.outputs; ++q) counts[q] = static_cast<A>(p.w.count(q, p.padding_counts));
      const LineWork<T, State> work{p, columns, counts, common, shape.d, p.w.dilation * shape.d};
      const LineWork<T, Numbers> quick{p, columns, counts, common, shape.d, p.w.dilation * shape.d};
      const int64_t begin = item * per_item, end = begin + per_item < rows ? begin + per_item : rows;
      int64_t plane = begin / p.h.outputs, o = begin % p.h.outputs, checked = 0, last = -1;
      Row group[kMostRows];
      for (int64_t row = begin; row < end;) {
        int count = 0;
        bool numbers = looks;
        for (; count < shape.rows && row < end; ++count, ++row) {
          const T* x = static_cast<const T*>(p.input) + plane * p.h.size * p.w.size * shape.d;
          group[count] = {x, row, o, reach_of(p.h, o)};
          if (looks) {
            last = last_with_nan(p, group[count], checked, last, shape.d);
            numbers = numbers && last < group[count].h.first;
          }
          if (++o == p.h.outputs) {
            o = checked = 0;
            last = -1;
            ++plane;
          }
        }
        if (numbers)
          run_rows(quick, shape, lines, group, count);
        else
          run_rows(work, shape, lines, group, count);
      }
    });
  }
};

// ---- spans ----

template <class T, class State>
struct Spans {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static int64_t scratch(const PoolParams& p) { return reach_bytes(p.w); }

  static auto window(const PoolParams& p, const T* plane, const Reach& h, const Reach& w) {
    typename State::Kind::Id lane;
    for (int i = 0; i < L; ++i) lane[i] = static_cast<uint32_t>(i);
    State state = State::nothing();
    for (int64_t r = h.begin; r < h.end; ++r) {
      const T* row = plane + (h.first + r * p.h.dilation) * p.w.size + w.first;
      int64_t s = w.begin;
      for (; s + L <= w.end; s += L) state.take(load(row + s), lane + State::Kind::all_ids(r * p.w.kernel + s));
      if (s < w.end) {
        const int n = static_cast<int>(w.end - s);
        State more = state;
        more.take(load_partial(row + s, n), lane + State::Kind::all_ids(r * p.w.kernel + s));
        const Mask<A> inside = less(lane, State::Kind::all_ids(n));
        state.value = choose(inside, more.value, state.value);
        if constexpr (State::kTracks) state.id = choose(inside, more.id, state.id);
      }
    }
    auto one = joined(state);
    if constexpr (State::kTracks)  // nothing was greater than negative infinity
      if (one.id == kNoTap) one.id = static_cast<typename LanesOf<A>::type>(h.begin * p.w.kernel + w.begin);
    return one;
  }

  static void run(const PoolParams& p, void* memory) {
    const int64_t rows = p.N * p.C * p.h.outputs, per_item = rows_of_item(p, rows, p.w.size * p.h.kernel);
    const double common = kAdds<State> ? common_divisor(p) : 1;
    const Reach* columns = all_reaches(p.w, memory);
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int) {
      const int64_t begin = item * per_item, end = begin + per_item < rows ? begin + per_item : rows;
      int64_t plane = begin / p.h.outputs, o = begin % p.h.outputs;
      for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(p.input) + plane * p.h.size * p.w.size;
        const Reach h = reach_of(p.h, o);
        for (int64_t q = 0; q < p.w.outputs; ++q) {
          auto one = window(p, x, h, columns[q]);
          const int64_t at = row * p.w.outputs + q;
          if constexpr (kAdds<State>) one.value /= static_cast<A>(common != 0 ? common : window_count(p, o, q));
          put(static_cast<T*>(p.output) + at, one.value);
          if constexpr (State::kTracks) store_ids<A>(p.ids, p.id_bytes, at, splat(one.id), 1);
        }
        if (++o == p.h.outputs) {
          o = 0;
          ++plane;
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

// Whether spans take fewer steps than a line: that is joined window by window, where the stride is not 1 or 2.
template <class T>
inline bool spans_pay(const PoolParams& p) {
  constexpr int64_t L = kLanes<Accumulate<T>>, kJoin = 24;  // steps of joining the lanes of a vector
  if (p.w.dilation > 1 || (!p.w.adaptive && p.w.stride <= 2)) return false;
  const int64_t line = p.h.kernel * ((p.w.size + L - 1) / L) + p.w.outputs * p.w.kernel;
  return p.w.outputs * (p.h.kernel * ((p.w.kernel + L - 1) / L) + kJoin) < line;
}

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
    if (spans_pay<T>(p)) return body(p, Spans<T, State>{});
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
