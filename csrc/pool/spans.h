// spans: contiguous memory; vectors run along the columns of one window, whose lanes are joined in the end. For windows
// that are wide and overlap little, down to one window that is the whole plane.
//
// Lanes joined together: to join the lanes of one vector takes as many steps as a window of a hundred elements, each of
// which waits for the one before it. So as many neighbouring windows as a vector has lanes are left as they are, and
// joined as a tree: two of them interleaved are two vectors, whose sum has half of the lanes of either. After the last
// step lane i is window i, and the results are one vector to divide and to write: two permutations and one addition a
// window. (2048 planes of 7x7, one thread, AVX-512: means 21 us window by window, 12 together; maxima with ids 47, 18.)
//
// Fetched ahead: the rows of a window are no stream that a processor follows by itself, so what a later row of windows
// begins with is fetched while this one is read. (Means of 30x30 windows, 2048@60 to 2, 29 MB: 2.9 ms without, 1.2
// with, and 1.2 is what it takes to read them in order.)
#pragma once
#include <type_traits>

#include "pool/walk.h"

namespace fastconv {
namespace {

// Where there is one window for each plane, all planes are one row of windows.
inline PoolParams planes_in_a_row(const PoolParams& p) {
  if (p.h.outputs > 1 || p.w.outputs > 1 || p.h.size > 1 || !p.w.adaptive) return p;
  PoolParams q = p;
  q.N = q.C = 1;
  q.w = {p.N * p.C * p.w.size, p.N * p.C, p.w.size, p.w.size, 0, 1, false};
  return q;
}

template <class T, class State>
struct Spans {
  using A = Accumulate<T>;
  using Numbers = typename NumbersOf<State>::type;
  static constexpr int L = kLanes<A>;
  // Sums of a wide window, and windows, at a time: each addition waits for the one before it.
  static constexpr int kParts = 4, kSome = L < kParts ? L : kParts;

  // How windows are grouped: whole rows of them where a vector has as many lanes, else parts of one row.
  struct Shape {
    PoolParams p;
    int64_t rows, parts, groups;  // rows of windows of a group, parts of a row
    bool even;                    // all windows of a row have the same columns
    int64_t ahead;                // how far to fetch ahead, in elements

    explicit Shape(const PoolParams& given) : p(planes_in_a_row(given)) {
      rows = p.w.outputs < L ? L / p.w.outputs : 1;
      parts = (p.w.outputs + L - 1) / L;
      groups = (p.N * p.C * p.h.outputs + rows - 1) / rows * parts;
      even = !p.w.adaptive && p.w.padding == 0 && p.w.first(p.w.outputs - 1) + p.w.kernel <= p.w.size;
      // To the same place in a later row of windows.
      const int64_t near = 8192 / static_cast<int64_t>(sizeof(T));
      const int64_t band = p.h.size > 1 ? (p.h.size + p.h.outputs - 1) / p.h.outputs * p.w.size : 1;
      ahead = (near > band ? near / band : 1) * band;
    }
    int64_t table_bytes() const { return even ? 0 : reach_bytes(p.w); }
  };
  static int64_t scratch(const PoolParams& given) { return Shape(given).table_bytes(); }

  static Lanes<A> lane_numbers() {
    Lanes<A> lane;
    for (int i = 0; i < L; ++i) lane[i] = static_cast<typename LanesOf<A>::type>(i);
    return lane;
  }
  template <class Any>
  static void take(Any& state, Vec<A> v, int64_t tap, Mask<A>& nan) {
    if constexpr (!std::is_same_v<Any, State>) nan = nan | is_nan(v);
    if constexpr (Any::kTracks)
      state.take(v, lane_numbers() + Any::Kind::all_ids(tap));
    else
      state.take(v, Lanes<A>{});
  }
  // Fewer than L elements.
  template <class Any>
  static void take_rest(Any& state, const T* x, int n, int64_t tap, Mask<A>& nan) {
    Vec<A> v = load_partial(x, n);
    if constexpr (!kAdds<Any>) v = choose(less(lane_numbers(), Wide<A>::all_ids(n)), v, Any::nothing().value);
    take(state, v, tap, nan);
  }

  // Where a window is: `rows` times `columns` elements, the first of them tap `tap`.
  struct Box {
    int64_t rows, columns, tap;
    int64_t pitch, taps;  // from row to row, in elements and in taps
    int64_t ahead;        // how far to fetch ahead
  };

  // The states of Count windows of the same size, `step` apart. `nan`: where a NaN was read.
  template <class Any, int Count>
  static void reduce(Any* to, const T* x, int64_t step, const Box& box, Mask<A>& nan) {
    Any states[Count];
#pragma GCC unroll 4
    for (int u = 0; u < Count; ++u) states[u] = Any::nothing();
    const int64_t whole = box.columns / L * L;
    const int rest = static_cast<int>(box.columns - whole);
    int64_t tap = box.tap;
    for (int64_t r = 0; r < box.rows; ++r, x += box.pitch, tap += box.taps) {
      for (int64_t s = 0; s < whole; s += L)
#pragma GCC unroll 4
        for (int u = 0; u < Count; ++u) {
          take(states[u], load(x + u * step + s), tap + s, nan);
          __builtin_prefetch(x + u * step + s + box.ahead);
        }
      if (rest)
#pragma GCC unroll 4
        for (int u = 0; u < Count; ++u) {
          take_rest(states[u], x + u * step + whole, rest, tap + whole, nan);
          __builtin_prefetch(x + u * step + whole + box.ahead);
        }
    }
#pragma GCC unroll 4
    for (int u = 0; u < Count; ++u) to[u] = states[u];
  }
  // Of one wide window.
  template <class Any>
  static void reduce_wide(Any* to, const T* x, const Box& box, Mask<A>& nan) {
    Any states[kParts];
#pragma GCC unroll 4
    for (int u = 0; u < kParts; ++u) states[u] = Any::nothing();
    int64_t tap = box.tap;
    for (int64_t r = 0; r < box.rows; ++r, x += box.pitch, tap += box.taps) {
      int64_t s = 0;
      for (; s + kParts * L <= box.columns; s += kParts * L)
#pragma GCC unroll 4
        for (int u = 0; u < kParts; ++u) {
          take(states[u], load(x + s + u * L), tap + s + u * L, nan);
          __builtin_prefetch(x + s + u * L + box.ahead, 0, 2);
        }
      for (; s + L <= box.columns; s += L) take(states[0], load(x + s), tap + s, nan);
      if (s < box.columns) take_rest(states[0], x + s, static_cast<int>(box.columns - s), tap + s, nan);
    }
#pragma GCC unroll 4
    for (int u = 1; u < kParts; ++u) states[0].join(states[u]);
    *to = states[0];
  }

  // Lane i of the result: all lanes of the i-th state.
  template <class Any>
  static Any joined_together(Any* states) {
    using All = std::make_integer_sequence<int, L>;
#pragma GCC unroll 4
    for (int half = L / 2; half > 0; half /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) {
        Any low, high;
        zip(states[i].value, states[i + half].value, low.value, high.value, All{});
        if constexpr (Any::kTracks) zip(states[i].id, states[i + half].id, low.id, high.id, All{});
        low.join(high);
        states[i] = low;
      }
    return states[0];
  }

  // The windows [q, q_end) of the rows [row, row_end), L at most.
  template <class Any>
  static Mask<A> run_group(const Shape& shape, const Reach* columns, A common, int64_t row, int64_t row_end, int64_t q,
                           int64_t q_end) {
    const PoolParams& p = shape.p;
    const int64_t many = q_end - q, at = row * p.w.outputs + q;
    Any states[L];
    A counts[L];
    Lanes<A> first = {};
    Mask<A> nan = {};
    int64_t place = 0;
    for (; row < row_end; ++row, place += many) {
      const int64_t plane = row / p.h.outputs, o = row % p.h.outputs;
      const Reach h = reach_of(p.h, o);
      const T* x = static_cast<const T*>(p.input) + (plane * p.h.size + h.first + h.begin * p.h.dilation) * p.w.size;
      Box box = {h.end - h.begin, p.w.kernel, h.begin * p.w.kernel, p.h.dilation * p.w.size, p.w.kernel, shape.ahead};
      int64_t i = 0;
      if (shape.even && p.w.kernel < kParts * L)
        for (; i + kSome <= many; i += kSome)
          reduce<Any, kSome>(states + place + i, x + (q + i) * p.w.stride, p.w.stride, box, nan);
      for (; i < many; ++i) {
        int64_t from = (q + i) * p.w.stride;
        if (!shape.even) {
          const Reach& w = columns[q + i];
          from = w.first + w.begin;
          box.columns = w.end - w.begin;
          box.tap = h.begin * p.w.kernel + w.begin;
        }
        if (p.w.kernel < kParts * L)
          reduce<Any, 1>(states + place + i, x + from, 0, box, nan);
        else
          reduce_wide(states + place + i, x + from, box, nan);
        if constexpr (Any::kTracks) first[place + i] = static_cast<typename LanesOf<A>::type>(box.tap);
      }
      if (kAdds<Any> && common == 0)
        for (i = 0; i < many; ++i) counts[place + i] = static_cast<A>(window_count(p, o, q + i));
      if constexpr (Any::kTracks)
        if (shape.even)
          for (i = 0; i < many; ++i) first[place + i] = static_cast<typename LanesOf<A>::type>(box.tap);
    }
    for (int64_t i = place; i < L; ++i) states[i] = Any::nothing();
    for (int64_t i = common == 0 ? place : 0; i < L; ++i) counts[i] = common != 0 ? common : 1;
    Any all = joined_together(states);
    if constexpr (kAdds<Any>) all.value /= load(counts);
    if constexpr (Any::kTracks)  // nothing was greater than negative infinity
      all.id = choose(equal(all.id, Any::Kind::all_ids(kNoTap)), first, all.id);
    write<T>(p, at, all, static_cast<int>(place));
    return nan;
  }

  static void run(const PoolParams& given, void* memory) {
    const Shape shape(given);
    const PoolParams& p = shape.p;
    const A common = static_cast<A>(kAdds<State> ? common_divisor(given) : 1);
    const Reach* columns = shape.even ? nullptr : all_reaches(p.w, memory);
    const int64_t rows = p.N * p.C * p.h.outputs, windows = shape.rows * (p.w.outputs < L ? p.w.outputs : L);
    const int64_t per_item = rows_of_item(p, shape.groups, windows * p.h.kernel * p.w.kernel);
    parallel_for(p.threads, (shape.groups + per_item - 1) / per_item, [&](int64_t item, int) {
      const int64_t end = (item + 1) * per_item < shape.groups ? (item + 1) * per_item : shape.groups;
      for (int64_t group = item * per_item; group < end; ++group) {
        const int64_t row = group / shape.parts * shape.rows, q = group % shape.parts * L;
        const int64_t row_end = row + shape.rows < rows ? row + shape.rows : rows;
        const int64_t q_end = q + L < p.w.outputs ? q + L : p.w.outputs;
        // Where there is a NaN, once more with comparisons that know of it.
        if (any(run_group<Numbers>(shape, columns, common, row, row_end, q, q_end)) && !std::is_same_v<Numbers, State>)
          run_group<State>(shape, columns, common, row, row_end, q, q_end);
      }
    });
  }
};

}  // namespace
}  // namespace fastconv
