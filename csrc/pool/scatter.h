// scatter: the gradient of maxima, window by window: each adds its own to the element that has won. An item of work
// owns a band of rows of a few channels, so that nothing is added by two threads, and the sum of an element is that of
// its windows in row-major order, whatever the bands.
//
// One window at a time, whatever its size: for the usual ones a table says where their taps are. To work out a vector
// of places at once and read them back one by one took half as long again (5x5, 256@20, one thread: 0.23 ms, and 0.15
// by the table).
#pragma once
#include "core/move.h"
#include "core/parallel.h"
#include "pool/state.h"

namespace fastconv {
namespace {

template <class T, class Id>
struct Scatter {
  using A = Accumulate<T>;
  static constexpr bool kHoldsSums = std::is_same_v<T, A>;  // whether the tensor can hold the sums
  static constexpr int64_t kBandElements = 1 << 18;         // of sums: they stay in the second level

  // Of an item, at most. Neighbouring windows often have the same winner, and one sum would wait for the other: those
  // of several channels need not.
  static constexpr int kPlanes = 4, kPixelChannels = 16;
  static constexpr int64_t kPixelsAhead = 32;
  static int64_t channels(const PoolParams& p) { return min64(p.C, p.channels_last ? kPixelChannels : kPlanes); }
  // Rows of an item. Windows at the border of two bands are looked at by both, so bands are high, but every thread has
  // some.
  static int64_t band(const PoolParams& p) {
    const int64_t groups = p.N * ceil_div(p.C, channels(p)), least = 2 * p.h.kernel * p.h.dilation;
    const int64_t rows = min64(kBandElements / (p.w.size * channels(p)), ceil_div(p.h.size * groups, 4 * p.threads));
    return min64(p.h.size, max64(max64(rows, 1), least));
  }

  // Planes are added to where they are. Sums of pixels lie side by side in scratch memory: in the tensor those of a few
  // channels are far apart, and fall into a few sets of the cache.
  static bool in_place(const PoolParams& p) { return kHoldsSums && !p.channels_last; }
  static int64_t thread_elements(const PoolParams& p) {
    return in_place(p) ? 0 : round_up(band(p) * p.w.size * channels(p), 16);
  }
  static int64_t scratch(const PoolParams& p) {
    return p.threads * thread_elements(p) * static_cast<int64_t>(sizeof(A));
  }

  // Where the taps of a window are, counted in pixels from its first one. Not of dilated windows: one without an
  // element in the image has a winner beside it.
  static constexpr int kTaps = 256;
  static bool has_table(const PoolParams& p) { return sizeof(Id) == 1 && p.h.dilation == 1 && p.w.dilation == 1; }
  static void fill(const PoolParams& p, int64_t (&table)[kTaps]) {
    for (int64_t tap = 0, r = 0; tap < kTaps; ++r)
      for (int64_t s = 0; s < p.w.kernel && tap < kTaps; ++s) table[tap++] = r * p.w.size + s;
  }
  // The place of a winner in an image, -1 for none. A tap's row is found by a multiplication that is exact below 2^16.
  static int64_t place_of(const PoolParams& p, uint64_t inverse, int64_t o, int64_t q, uint64_t id) {
    const uint64_t S = static_cast<uint64_t>(p.w.kernel), r = sizeof(Id) < 4 ? id * inverse >> 32 : id / S;
    const int64_t h = p.h.first(o) + static_cast<int64_t>(r) * p.h.dilation;
    const int64_t w = p.w.first(q) + static_cast<int64_t>(id - r * S) * p.w.dilation;
    return h < 0 || h >= p.h.size || w < 0 || w >= p.w.size ? -1 : h * p.w.size + w;
  }

  // Of `channels` channels, `Count` of them where that is not 0; sums of rows [begin, end). `to_plane`: elements from
  // one channel to the next, of contiguous memory.
  template <bool Last, int Count, bool Table>
  static void add(const PoolParams& p, const int64_t* table, A* sums, int64_t to_plane, const T* grads, const Id* ids,
                  int64_t channels, int64_t begin, int64_t end) {
    const int64_t count = Count ? Count : channels, windows = p.h.outputs * p.w.outputs;
    const int64_t to_pixel = Last ? count : 1, to_channel = Last ? 1 : to_plane;
    const int64_t from_pixel = Last ? p.C : 1, from_channel = Last ? 1 : windows;
    const int64_t before = begin * p.w.size, S = p.w.kernel;
    const uint64_t inverse = ((uint64_t{1} << 32) + static_cast<uint64_t>(S) - 1) / static_cast<uint64_t>(S);
    const uint64_t pixels = static_cast<uint64_t>((end - begin) * p.w.size);
    for (int64_t o = p.h.covering_begin(begin), o_end = p.h.covering_end(end - 1); o < o_end; ++o) {
      const int64_t top = p.h.first(o) * p.w.size - before;
      for (int64_t q = 0; q < p.w.outputs; ++q) {
        const int64_t first = top + p.w.first(q), at = (o * p.w.outputs + q) * from_pixel;
        if constexpr (Last) {  // a few channels of a pixel, which the processor does not fetch ahead
          __builtin_prefetch(grads + at + kPixelsAhead * from_pixel, 0, 2);
          __builtin_prefetch(ids + at + kPixelsAhead * from_pixel, 0, 2);
        }
#pragma GCC unroll 16
        for (int64_t c = 0; c < count; ++c) {
          const Id id = ids[at + c * from_channel];
          const int64_t found = Table ? first + table[id] : place_of(p, inverse, o, q, id) - before;
          const uint64_t place = static_cast<uint64_t>(found);
          if (place >= pixels) continue;  // another band's, or nobody's
          sums[static_cast<int64_t>(place) * to_pixel + c * to_channel] += get(grads + at + c * from_channel);
        }
      }
    }
  }

  static void run(const PoolParams& p, void* scratch) {
    const int64_t block = channels(p), blocks = ceil_div(p.C, block), rows = band(p), bands = ceil_div(p.h.size, rows);
    const int64_t windows = p.h.outputs * p.w.outputs, plane = p.h.size * p.w.size;
    int64_t table[kTaps];
    const bool has = has_table(p);
    if (has) fill(p, table);
    A* const memory = static_cast<A*>(scratch);
    parallel_for(p.threads, p.N * blocks * bands, [&](int64_t item, int thread) {
      // The channels of a pixel lie side by side in memory.
      const int64_t first = (p.channels_last ? item % blocks : item / bands % blocks) * block;
      const int64_t begin = (p.channels_last ? item / blocks % bands : item % bands) * rows;
      const int64_t end = min64(p.h.size, begin + rows), pixels = (end - begin) * p.w.size;
      const int64_t n = item / bands / blocks, count = min64(block, p.C - first);
      const int64_t from = n * p.C * windows + first * (p.channels_last ? 1 : windows);
      const T* grads = static_cast<const T*>(p.output) + from;
      const Id* ids = static_cast<const Id*>(p.ids) + from;
      A* sums = memory + thread * thread_elements(p);
      if (p.channels_last) {
        T* to = static_cast<T*>(p.input) + (n * plane + begin * p.w.size) * p.C + first;
        zero(sums, pixels * count);
        const auto run = !has                      ? add<true, 0, false>
                         : count == kPixelChannels ? add<true, kPixelChannels, true>
                                                   : add<true, 0, true>;
        run(p, table, sums, 0, grads, ids, count, begin, end);
        for (int64_t i = 0; i < pixels; ++i) copy_row(to + i * p.C, sums + i * count, count);
        return;
      }
      T* to = static_cast<T*>(p.input) + (n * p.C + first) * plane + begin * p.w.size;
      if constexpr (kHoldsSums) sums = to;
      const int64_t step = kHoldsSums ? plane : pixels;
      for (int64_t c = 0; c < count; ++c) zero(sums + c * step, pixels);
      const auto run = !has ? add<false, 0, false> : count == kPlanes ? add<false, kPlanes, true> : add<false, 0, true>;
      run(p, table, sums, step, grads, ids, count, begin, end);
      for (int64_t c = 0; !kHoldsSums && c < count; ++c) copy_row(to + c * plane, sums + c * step, pixels);
    });
  }
};

}  // namespace
}  // namespace fastconv
