// From the taps that have won to PyTorch's int64 indices. A pass of its own, after the taps: these are one byte a
// window and still in the second level of the caches, and what takes the time are the eight bytes that are written.
//
// Table of a plane: where tap 0 of every window is, once for all planes. Small planes have short rows, and to begin one
// takes as long as to fill a dozen indices; with the table a plane is one run. (512 planes of 22x30 windows, one
// thread, AVX-512: 285 us row by row, 150 plane by plane, which is 18 GB/s.)
#pragma once
#include <type_traits>

#include "pool/walk.h"

namespace fastconv {
namespace {

constexpr int64_t kTableWindows = 1 << 12;  // of a plane: the table stays in the first level of the caches

// Calls body(from, count) for pieces of [0, count), whose lengths the compiler knows where it can be: the last one
// begins earlier, so that some are filled twice, not one by one.
template <class Body>
inline void index_pieces(int64_t count, const Body& body) {
  constexpr int kMany = 16;
  if (count < kMany) return body(0, static_cast<int>(count));
  for (int64_t i = 0; i + kMany <= count; i += kMany) body(i, std::integral_constant<int, kMany>{});
  if (count % kMany) body(count - kMany, std::integral_constant<int, kMany>{});
}

// Of a tap the place in the plane, seen from tap 0. Int: 32 bits where they are enough, because 64-bit products take
// three times as long in vectors. The row of a tap is a product with the inverse of the number of columns, in Bits
// bits: exact for taps below 2^(Bits / 2).
template <class Int, int Bits>
struct TapPlaces {
  using Unsigned = std::make_unsigned_t<Int>;
  Unsigned inverse, next_row;  // from past the end of a row of taps to the next

  explicit TapPlaces(const PoolParams& p) {
    const Unsigned S = static_cast<Unsigned>(p.w.kernel);
    inverse = ((Unsigned{1} << Bits) + S - 1) / S;
    next_row = static_cast<Unsigned>(p.w.size - p.w.kernel);
  }
  Unsigned operator()(Unsigned tap) const { return tap + (tap * inverse >> Bits) * next_row; }
};

// `count` indices of neighbouring windows, or of neighbouring channels of one, of which the first has tap 0 at
// `origin`. That may be before the plane, and wraps around.
template <class Int, int Bits, class Id>
inline void fill_indices(const PoolParams& p, const Id* ids, int64_t* indices, int64_t count, int64_t origin,
                         int64_t step) {
  const TapPlaces<Int, Bits> place(p);
  using Unsigned = typename TapPlaces<Int, Bits>::Unsigned;
  index_pieces(count, [&](int64_t from, auto many) {
    Unsigned at = static_cast<Unsigned>(origin + from * step);
    for (int i = 0; i < many; ++i, at += static_cast<Unsigned>(step))
      indices[from + i] = static_cast<Int>(at + place(ids[from + i]));
  });
}

struct MaxIndices {
  // Half of what 32 bits hold leaves room for the padding.
  static bool small(const PoolParams& p) {
    return p.id_bytes == 1 && p.h.size < int64_t{1} << 30 && p.w.size < (int64_t{1} << 30) / p.h.size;
  }
  static int64_t scratch(const PoolParams& p) {
    const int64_t windows = p.h.outputs * p.w.outputs;
    const bool dilated = p.h.dilation > 1 || p.w.dilation > 1;
    return p.channels_last || dilated || !small(p) || windows > kTableWindows ? 0 : 4 * windows;
  }

  // Without dilation, where every window has a tap in the input; ids of one or two bytes.
  static void run(const PoolParams& p, void* memory) {
    if (scratch(p) > 0) return run_planes(p, static_cast<uint32_t*>(memory));
    const int64_t planes = p.channels_last ? p.N : p.N * p.C, inner = p.channels_last ? p.C : 1;
    const int64_t rows = planes * p.h.outputs, per_item = rows_of_item(p, rows, p.w.outputs * inner);
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int) {
      const int64_t end = (item + 1) * per_item < rows ? (item + 1) * per_item : rows;
      for (int64_t row = item * per_item; row < end; ++row) {
        const int64_t top = p.h.first(row % p.h.outputs) * p.w.size, begin = row * p.w.outputs * inner;
        const auto fill = [&](int64_t from, int64_t count, int64_t origin, int64_t step) {
          const auto* bytes = static_cast<const uint8_t*>(p.ids) + begin + from;
          const auto* halves = static_cast<const uint16_t*>(p.ids) + begin + from;
          int64_t* to = p.indices + begin + from;
          if (small(p)) return fill_indices<int32_t, 16>(p, bytes, to, count, origin, step);
          if (p.id_bytes == 1) return fill_indices<int64_t, 32>(p, bytes, to, count, origin, step);
          fill_indices<int64_t, 32>(p, halves, to, count, origin, step);
        };
        if (inner == 1 && !p.w.adaptive) {
          fill(0, p.w.outputs, top - p.w.padding, p.w.stride);
          continue;
        }
        for (int64_t q = 0; q < p.w.outputs; ++q) fill(q * inner, inner, top + p.w.first(q), 0);
      }
    });
  }

  static void run_planes(const PoolParams& p, uint32_t* origins) {
    const int64_t windows = p.h.outputs * p.w.outputs, planes = p.N * p.C, per_item = rows_of_item(p, planes, windows);
    for (int64_t o = 0, at = 0; o < p.h.outputs; ++o) {
      const int64_t top = p.h.first(o) * p.w.size;
      for (int64_t q = 0; q < p.w.outputs; ++q, ++at) origins[at] = static_cast<uint32_t>(top + p.w.first(q));
    }
    const TapPlaces<int32_t, 16> place(p);
    parallel_for(p.threads, (planes + per_item - 1) / per_item, [&](int64_t item, int) {
      const int64_t end = (item + 1) * per_item < planes ? (item + 1) * per_item : planes;
      for (int64_t plane = item * per_item; plane < end; ++plane) {
        const uint8_t* ids = static_cast<const uint8_t*>(p.ids) + plane * windows;
        int64_t* indices = p.indices + plane * windows;
        index_pieces(windows, [&](int64_t from, auto many) {
          for (int i = 0; i < many; ++i)
            indices[from + i] = static_cast<int32_t>(origins[from + i] + place(ids[from + i]));
        });
      }
    });
  }
};

}  // namespace
}  // namespace fastconv
