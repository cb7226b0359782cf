// gather_strips: the gradient of windows that networks are made of, in contiguous memory: 2 or 3 columns at a stride of
// 1 or 2. A vector has neighbouring columns of the input, or every second of them; which windows cover them by which
// tap is known to the compiler, and the windows are read where they lie.
#pragma once
#include <type_traits>

#include "pool/walk.h"

namespace fastconv {
namespace {

// Id: in which a window has kept its winner, which alone gets its gradient; void where all of its positions get a
// share.
template <class T, class Id, int K, int Stride, int Padding>
struct GatherStrips {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static constexpr bool kWinners = !std::is_void_v<Id>;
  static constexpr int kMostRows = 3;  // of windows that cover a row of the input

  // Column Stride * m + e is tap s of window m + shift where shift * Stride + s = e + Padding: shifts are between
  // these.
  static constexpr int kLow = -((K - 1 - Padding) / Stride), kHigh = (Stride - 1 + Padding) / Stride;
  static constexpr int kShifts = kHigh - kLow + 1;
  static constexpr int tap(int e, int shift) { return e + Padding - shift * Stride; }

  // Stride * L columns of the input, the same in every row.
  struct Block {
    int64_t m;
    int columns[Stride];  // that are in the row, of each of the vectors that are written
    bool whole;           // all windows that could cover them are there
    Window<T> there[kShifts];
    Vec<A> shares[kShifts];  // of means, as far as the columns decide
  };
  static int64_t blocks(const PoolParams& p) { return (p.w.size + Stride * L - 1) / (Stride * L); }
  static int64_t scratch(const PoolParams& p) { return blocks(p) * static_cast<int64_t>(sizeof(Block)); }

  static Block block_at(const PoolParams& p, int64_t m) {
    Block block = {};
    block.m = m;
    block.whole = true;
    for (int i = 0; i < Stride; ++i) {
      const int64_t left = p.w.size - (Stride * m + i * L);
      block.columns[i] = left < 0 ? 0 : left < L ? static_cast<int>(left) : L;
      block.whole = block.whole && left >= L;
    }
    for (int i = 0; i < kShifts; ++i) {
      const int64_t first = m + kLow + i, left = p.w.outputs - first;
      const int begin = first >= 0 ? 0 : -first < L ? static_cast<int>(-first) : L;
      const int end = left < begin ? begin : left < L ? static_cast<int>(left) : L;
      block.there[i] = Window<T>(begin, end);
      block.whole = block.whole && begin == 0 && end == L;
      for (int lane = begin; lane < end; ++lane)
        block.shares[i][lane] = 1 / static_cast<A>(p.w.count(first + lane, p.padding_counts));
    }
    return block;
  }

  // A row of windows that covers the row of the input that is being computed.
  struct Row {
    const T* grads;
    const uint8_t* ids;  // bytes, of type Id
    int64_t tap;         // by which they reach it, the first of the row of taps
    A share;
  };

  // Ids of L windows: a copy where some lie before or behind the tensor. Of what is not there the gradient is zero, and
  // the id does not matter.
  static const uint8_t* safe_ids(const PoolParams& p, const uint8_t* at, uint8_t* copy) {
    const uint8_t* begin = static_cast<const uint8_t*>(p.ids);
    const uint8_t* end = begin + p.N * p.C * p.h.outputs * p.w.outputs;
    if (at >= begin && at + L <= end) return at;
    for (int i = 0; i < L; ++i) copy[i] = at + i >= begin && at + i < end ? at[i] : 0;
    return copy;
  }

  template <bool Whole>
  static void run_block(const PoolParams& p, const Block& block, const Row* rows, int count, Vec<A> scale, T* to) {
    Vec<A> sums[Stride] = {};
    Vec<A> all[kShifts] = {};
    for (int r = 0; r < count; ++r) {
      const Row& row = rows[r];
#pragma GCC unroll 3
      for (int i = 0; i < kShifts; ++i) {
        const T* at = row.grads + block.m + kLow + i;
        const Vec<A> g = Whole ? load(at) : load(at, block.there[i]);
        if constexpr (kWinners) {
          uint8_t copy[L];
          const uint8_t* there = row.ids + block.m + kLow + i;
          const uint8_t* ids = Whole ? there : safe_ids(p, there, copy);
#pragma GCC unroll 2
          for (int e = 0; e < Stride; ++e) {
            const int s = tap(e, kLow + i);
            if (s >= 0 && s < K) sums[e] = add_where(ids_equal<A>(ids, static_cast<uint8_t>(row.tap + s)), g, sums[e]);
          }
        } else {
          all[i] += g * splat(row.share);
        }
      }
    }
    if constexpr (!kWinners) {
#pragma GCC unroll 3
      for (int i = 0; i < kShifts; ++i) {
        const Vec<A> share = all[i] * (scale[0] != 0 ? scale : block.shares[i]);
#pragma GCC unroll 2
        for (int e = 0; e < Stride; ++e)
          if (tap(e, kLow + i) >= 0 && tap(e, kLow + i) < K) sums[e] += share;
      }
    }
    if constexpr (Stride == 2) {
      const Vec<A> even = sums[0], odd = sums[1];
      zip(even, odd, sums[0], sums[1], std::make_integer_sequence<int, L>{});
    }
#pragma GCC unroll 2
    for (int i = 0; i < Stride; ++i) {
      if (Whole || block.columns[i] == L)
        store(to + Stride * block.m + i * L, sums[i]);
      else if (block.columns[i] > 0)
        store_partial(to + Stride * block.m + i * L, sums[i], block.columns[i]);
    }
  }

  static void run(const PoolParams& p, void* memory) {
    Block* table = static_cast<Block*>(memory);
    const int64_t count = blocks(p);
    for (int64_t i = 0; i < count; ++i) table[i] = block_at(p, i * L);
    const double common = kWinners ? 1 : common_divisor(p);
    const Vec<A> scale = splat(static_cast<A>(common != 0 ? 1 / common : 0));
    const int64_t rows = p.N * p.C * p.h.size, per_item = rows_of_item(p, rows, p.w.size);
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int) {
      const int64_t begin = item * per_item, end = begin + per_item < rows ? begin + per_item : rows;
      int64_t plane = begin / p.h.size, h = begin % p.h.size;
      // The windows that cover a row, from one row to the next without divisions.
      int64_t first = p.h.covering_begin(h), last = p.h.covering_end(h);
      for (int64_t row = begin; row < end; ++row) {
        Row covering[kMostRows];
        int found = 0;
        for (int64_t o = first; o < last; ++o) {
          const int64_t at = (plane * p.h.outputs + o) * p.w.outputs;
          Row& one = covering[found++];
          one.grads = static_cast<const T*>(p.output) + at;
          one.tap = (h - p.h.first(o)) * K;
          if constexpr (kWinners) one.ids = static_cast<const uint8_t*>(p.ids) + at;
          if constexpr (!kWinners) one.share = common != 0 ? 1 : 1 / static_cast<A>(p.h.count(o, p.padding_counts));
        }
        T* to = static_cast<T*>(p.input) + row * p.w.size;
        for (int64_t i = 0; i < count; ++i) {
          if (table[i].whole)
            run_block<true>(p, table[i], covering, found, scale, to);
          else
            run_block<false>(p, table[i], covering, found, scale, to);
        }
        ++h;
        if (first < last && p.h.first(first) + p.h.kernel <= h) ++first;
        if (last < p.h.outputs && p.h.first(last) <= h) ++last;
        if (h == p.h.size) {
          ++plane;
          h = first = 0;
          last = p.h.covering_end(0);
        }
      }
    });
  }
};

// Windows whose gradients strips gather. Their ids have one byte.
inline bool gather_strips_fit(const PoolParams& p) {
  const PoolAxis &h = p.h, &w = p.w;
  if (p.channels_last || h.adaptive || w.adaptive || h.dilation > 1 || w.dilation > 1 || h.kernel > 3) return false;
  if (w.kernel == 2) return w.stride == 2 && w.padding == 0;
  return w.kernel == 3 && w.stride <= 2;  // padding is 0 or 1, half a window at most
}

// Calls body(p, walk) with the strips of these windows.
template <class T, class Id, class Body>
inline auto with_gather_strips(const PoolParams& p, const Body& body) {
  if (p.w.kernel == 2) return body(p, GatherStrips<T, Id, 2, 2, 0>{});
  if (p.w.stride == 1)
    return p.w.padding ? body(p, GatherStrips<T, Id, 3, 1, 1>{}) : body(p, GatherStrips<T, Id, 3, 1, 0>{});
  return p.w.padding ? body(p, GatherStrips<T, Id, 3, 2, 1>{}) : body(p, GatherStrips<T, Id, 3, 2, 0>{});
}

}  // namespace
}  // namespace fastconv
