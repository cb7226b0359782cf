// strips: contiguous memory, and the windows that networks are made of: 2 or 3 columns wide, at a stride of 1 or 2. A
// vector has neighbouring windows of a row. What they look at is read where it lies and sorted in registers, since the
// positions of the taps are known to the compiler; what lies beside the row is masked out.
#pragma once
#include <type_traits>

#include "pool/walk.h"

namespace fastconv {
namespace {

template <class T, class State, int K, int Stride>
struct Strips {
  using A = Accumulate<T>;
  using Numbers = typename NumbersOf<State>::type;
  static constexpr int L = kLanes<A>;

  // Vectors that are read of a row for L windows. At a stride of 1 each is a tap. At a stride of 2 tap 0 is every
  // second element of the first two, which are neighbours, and tap 1 are the elements between them. Tap 2 is tap 0 of
  // the window after: its lanes moved by one if they are in order, else it is read anew, two elements further on.
  static constexpr bool kReadsAnew = K == 3 && Stride == 2 && !kOrdered;
  static constexpr int kLoads = kReadsAnew ? 4 : K;
  static constexpr int offset(int i) { return Stride == 1 ? i : kReadsAnew && i >= 2 ? (i - 2) * L + 2 : i * L; }
  // Where windows lie two apart their lanes are in the order of some_even_lanes.
  template <class V>
  static V ordered(V v) {
    return Stride == 1 ? v : in_order<A>(v);
  }

  // The windows of a vector, the same in every row.
  struct Block {
    int64_t q;
    int windows;
    bool whole;  // there are L windows, and all that is read lies in the row
    Window<T> within[kLoads];
    Mask<A> inside[kLoads];
    Lanes<A> first;  // the first tap that is in the input, in a row of taps; not `ordered`
    Vec<A> counts;   // what the means divide by, as far as the columns decide; ordered
  };
  static int64_t blocks(const PoolParams& p) { return (p.w.outputs + L - 1) / L; }
  static int64_t scratch(const PoolParams& p) { return blocks(p) * static_cast<int64_t>(sizeof(Block)); }

  static Block block_at(const PoolParams& p, int64_t q, int windows) {
    Block block = {};
    block.q = q;
    block.windows = windows;
    block.whole = windows == L;
    Lanes<A> lane;
    for (int i = 0; i < L; ++i) lane[i] = static_cast<typename LanesOf<A>::type>(i);
    for (int i = 0; i < kLoads; ++i) {
      const int64_t from = p.w.first(q) + offset(i), left = p.w.size - from;
      const int begin = from >= 0 ? 0 : -from < L ? static_cast<int>(-from) : L;
      const int end = left < begin ? begin : left < L ? static_cast<int>(left) : L;
      block.within[i] = Window<T>(begin, end);
      block.inside[i] = less(lane - Wide<A>::all_ids(begin), Wide<A>::all_ids(end - begin));  // wraps around below
      block.whole = block.whole && begin == 0 && end == L;
    }
    for (int i = 0; i < L; ++i) {
      const int64_t o = i < windows ? q + i : q;
      block.first[i] = static_cast<typename LanesOf<A>::type>(p.w.begin(o));
      block.counts[i] = static_cast<A>(p.w.count(o, p.padding_counts));
    }
    block.first = ordered(block.first);  // and so no longer
    return block;
  }

  // Tap s of all windows, of what has been read.
  template <int Tap>
  static Vec<A> tap(const Vec<A>* v) {
    if constexpr (Stride == 1)
      return v[Tap];
    else if constexpr (Tap == 0)
      return some_even_lanes<A>(v[0], v[1]);
    else if constexpr (Tap == 1)
      return some_odd_lanes<A>(v[0], v[1]);
    else if constexpr (kReadsAnew)
      return some_even_lanes<A>(v[2], v[3]);
    else
      return lanes_from<1, A>(some_even_lanes<A>(v[0], v[1]), v[2]);
  }

  // One row of the windows: `x` is the first position of the first one, an id is a column. `nan`: where a NaN was read.
  template <class Any, bool Whole>
  static Any join_columns(const Block& block, const T* x, Mask<A>& nan) {
    using Kind = typename Any::Kind;
    Vec<A> v[kLoads];
#pragma GCC unroll 4
    for (int i = 0; i < kLoads; ++i) {
      v[i] = Whole ? load(x + offset(i)) : load(x + offset(i), block.within[i]);
      if (!Whole && !kAdds<Any>) v[i] = choose(block.inside[i], v[i], Any::nothing().value);
    }
    if constexpr (!std::is_same_v<Any, State>) {
      nan = nan | either_nan(v[0], v[1]);
      if (K == 3) nan = nan | is_nan(v[kLoads - 1]);
    }
    Any state = Any::nothing(0);
    if constexpr (Any::kTracks && !Whole) state.id = block.first;
    if constexpr (kAdds<Any>)
      state.take(tap<0>(v), Kind::all_ids(0));
    else
      state.value = tap<0>(v);
    state.take(tap<1>(v), Kind::all_ids(1));
    if constexpr (K == 3) state.take(tap<2>(v), Kind::all_ids(2));
    return state;
  }

  // Where no two windows have a row in common, and it does not matter which element is the first, the rows are joined
  // before the columns are sorted: that is half of the permutations.
  template <class Any>
  static constexpr bool kRowsFirst = K == 2 && Stride == 2 && !Any::kTracks;
  template <class Any, bool Whole>
  static Any join_rows(const Block& block, const T* x, int64_t W, Mask<A>& nan) {
    Vec<A> v[kLoads];
#pragma GCC unroll 2
    for (int i = 0; i < kLoads; ++i) {
      Vec<A> rows[K];
#pragma GCC unroll 2
      for (int r = 0; r < K; ++r) {
        const T* at = x + r * W + offset(i);
        rows[r] = Whole ? load(at) : load(at, block.within[i]);
        if (!Whole && !kAdds<Any>) rows[r] = choose(block.inside[i], rows[r], Any::nothing().value);
      }
      if constexpr (!std::is_same_v<Any, State>) nan = nan | either_nan(rows[0], rows[1]);
      Any column = Any::nothing();
#pragma GCC unroll 2
      for (int r = 0; r < K; ++r) column.take(rows[r], Lanes<A>{});
      v[i] = column.value;
    }
    Any state = {tap<0>(v)};
    state.join({tap<1>(v)});
    return state;
  }

  // What of a plane is one piece of work.
  struct Piece {
    const T* plane;
    int64_t row, o, end;  // the first row of windows among all, and in its plane; the end there
    double common;        // what all means divide by, else 0
  };

  // The windows of a block, from row to row: rows that the next windows look at too stay in registers. Full: there are
  // L windows; a function called to store fewer would keep the loop from having anything in registers.
  template <class Any, bool Whole, bool Full>
  static Mask<A> run_block(const PoolParams& p, const Block& block, const Piece& piece, NextItem& next) {
    constexpr int kKept = K > Stride ? K - Stride : 0;
    const int64_t H = p.h.size, W = p.w.size, Q = p.w.outputs;
    const T* x = piece.plane + p.w.first(block.q);
    const Vec<A> scale = splat(static_cast<A>(1 / piece.common));
    Mask<A> nan = {};
    // Where there is no row, the window's first tap is in the next one.
    Any none = Any::nothing(K);
    if constexpr (Any::kTracks) none.id += block.first;
    const auto join_row = [&](int64_t h) {
      return h >= 0 && h < H ? join_columns<Any, Whole>(block, x + h * W, nan) : none;
    };
    const auto finish = [&](Any state, int64_t at, int64_t o) {
      state.value = ordered(state.value);
      if constexpr (Any::kTracks) state.id = ordered(state.id);
      if constexpr (kAdds<Any>) {
        if (piece.common != 0)
          state.value *= scale;
        else
          state.value /= block.counts * splat(static_cast<A>(p.h.count(o, p.padding_counts)));
      }
      write<T>(p, at, state, Full ? L : block.windows);
    };
    int64_t h = p.h.first(piece.o), at = piece.row * Q + block.q;
    if constexpr (kRowsFirst<Any>)
      if (h >= 0 && p.h.first(piece.end - 1) + K <= H) {
        for (int64_t o = piece.o; o < piece.end; ++o, at += Q, h += Stride) {
          next.fetch();
          finish(join_rows<Any, Whole>(block, x + h * W, W, nan), at, o);
        }
        return nan;
      }
    Any rows[K];
#pragma GCC unroll 2
    for (int r = 0; r < kKept; ++r) rows[r] = join_row(h++);
    for (int64_t o = piece.o; o < piece.end; ++o, at += Q) {
      next.fetch();
#pragma GCC unroll 3
      for (int r = kKept; r < K; ++r) rows[r] = join_row(h++);
      Any state = rows[0];
#pragma GCC unroll 2
      for (int r = 1; r < K; ++r) {
        const Any row = later(rows[r], r * K);
        if constexpr (Any::kTracks)
          state.take(row.value, row.id);
        else
          state.join(row);
      }
#pragma GCC unroll 2
      for (int r = 0; r < kKept; ++r) rows[r] = rows[r + Stride];
      finish(state, at, o);
    }
    return nan;
  }
  template <class Any>
  static Mask<A> run_block(const PoolParams& p, const Block& block, const Piece& piece, NextItem& next) {
    if (block.whole) return run_block<Any, true, true>(p, block, piece, next);
    return block.windows == L ? run_block<Any, false, true>(p, block, piece, next)
                              : run_block<Any, false, false>(p, block, piece, next);
  }

  static void run(const PoolParams& p, void* memory) {
    Block* table = static_cast<Block*>(memory);
    int64_t count = 0;
    vectors<T>(p.w.outputs, [&](int64_t q, int n) { table[count++] = block_at(p, q, n); });
    const double common = kAdds<State> ? common_divisor(p) : 1;
    const int64_t rows = p.N * p.C * p.h.outputs, fresh = p.h.stride < p.h.kernel ? p.h.stride : p.h.kernel;
    const int64_t per_item = rows_of_item(p, rows, p.w.size * fresh);
    const bool fetches = count > 1 && fetching_pays<T>(p);  // else the order is that of memory
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int) {
      int64_t row = item * per_item;
      const int64_t end = row + per_item < rows ? row + per_item : rows;
      NextItem next;
      if (fetches) {
        // In a plane that is begun, the first rows of its windows have been read.
        const int64_t o = end % p.h.outputs, begun = o > 0 ? max64(0, p.h.first(o)) + p.h.kernel - fresh : 0;
        const int64_t first = end / p.h.outputs * p.h.size + begun;
        const int64_t many = end - row < rows - end ? end - row : rows - end;
        next =
            NextItem::of(static_cast<const T*>(p.input) + first * p.w.size, many * fresh * p.w.size,
                         static_cast<const T*>(p.output) + end * p.w.outputs, many * p.w.outputs, count * (end - row));
      }
      while (row < end) {
        const int64_t plane = row / p.h.outputs, o = row % p.h.outputs;
        const int64_t left = end - row, stop = o + left < p.h.outputs ? o + left : p.h.outputs;
        const Piece piece = {static_cast<const T*>(p.input) + plane * p.h.size * p.w.size, row, o, stop, common};
        for (int64_t i = 0; i < count; ++i)
          // Where there is a NaN, once more with comparisons that know of it.
          if (any(run_block<Numbers>(p, table[i], piece, next)) && !std::is_same_v<Numbers, State>)
            run_block<State>(p, table[i], piece, next);
        row += stop - o;
      }
    });
  }
};

// Windows that strips serve.
inline bool strips_fit(const PoolParams& p) {
  const auto fits = [](const PoolAxis& axis) {
    return !axis.adaptive && axis.dilation == 1 && (axis.kernel == 2 || axis.kernel == 3) && axis.stride <= 2;
  };
  return !p.channels_last && fits(p.w) && fits(p.h) && p.h.kernel == p.w.kernel && p.h.stride == p.w.stride;
}

// Where windows fill the planes and do not overlap, all planes are one tall plane: those of 14x14 have so few windows
// each that to begin one takes as long.
inline PoolParams planes_as_one(const PoolParams& p) {
  if (p.channels_last || p.h.adaptive || p.h.kernel != p.h.stride || p.h.dilation > 1 || p.h.padding > 0 ||
      p.h.outputs * p.h.stride != p.h.size)
    return p;
  PoolParams q = p;
  q.N = q.C = 1;
  q.h.size *= p.N * p.C;
  q.h.outputs *= p.N * p.C;
  return q;
}

// Calls body(p, walk) with the strips of these windows.
template <class T, class State, class Body>
inline auto with_strips(const PoolParams& given, const Body& body) {
  const PoolParams p = planes_as_one(given);
  if (p.w.kernel == 2) return p.w.stride == 1 ? body(p, Strips<T, State, 2, 1>{}) : body(p, Strips<T, State, 2, 2>{});
  return p.w.stride == 1 ? body(p, Strips<T, State, 3, 1>{}) : body(p, Strips<T, State, 3, 2>{});
}

}  // namespace
}  // namespace fastconv
