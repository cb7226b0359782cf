// lines: vectors run along the pixels of a row, or along the pixels and channels of a channels_last row. First the rows
// of the windows become one line in scratch memory, column by column, then the columns of each window are joined in it.
// That takes R + S steps instead of R * S, and the ends of the rows, padding and strides are the line's business alone.
// Where windows of stride 1 are wide and an element may be taken twice, the line is joined with itself at distances of
// 1, 2, 4, ...: windows of 13 columns take 4 steps.
#pragma once
#include <type_traits>

#include "pool/walk.h"

namespace fastconv {
namespace {

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

}  // namespace
}  // namespace fastconv
