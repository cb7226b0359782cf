// Bins that are the largest of whole pixels.
#pragma once
#include "roi/bins.h"
#include "roi/mean.h"

namespace fastconv {
namespace {

template <class A>
struct LargestOf {
  static constexpr bool kTracks = true;
  const Boxes<A>& boxes;

  template <int V, class Map, class Values>
  void run(const BoxCall<const Map, Values>& call) const {
    using C = Channels<A, V>;
    const RoiParams& p = call.p;
    const A* box = boxes.box(call.k);
    const BoxAxis<A> rows(p, box, 0), columns(p, box, 1);
    for (int64_t o = 0; o < p.P; ++o) {
      const Range h = rows.pixels(o);
      for (int64_t q = 0; q < p.Q; ++q) {
        const Range w = columns.pixels(q);
        Largest<A, V> largest = Largest<A, V>::none();
        if (h.begin < h.end && w.begin < w.end) {
          const int64_t first = h.begin * p.W + w.begin;
          largest = Largest<A, V>::of(C::load(call.map + first * call.pixel, call.n), static_cast<int32_t>(first));
          for (int64_t i = h.begin; i < h.end; ++i)
            for (int64_t j = w.begin; j < w.end; ++j) {
              const int64_t at = i * p.W + j;
              largest.take(C::load(call.map + at * call.pixel, call.n), static_cast<int32_t>(at));
            }
        }
        const int64_t to = (o * p.Q + q) * call.stride;
        largest.value.store(call.values + to, call.n);
        if (call.ids) largest.store_ids(call.ids + to, call.n);
      }
    }
  }
};

// The gradient of a bin goes to where its largest was, one by one, each channel to another place. An item of work is a
// few planes of an image and every box of it in their order. Where pixels are not planes, or are not what sums are made
// in, the planes are the thread's own: in the caller's memory the pixels of a plane can be so far apart that all of
// them fall into the same few sets of a cache. (512 channels at 38x50, 300 boxes of 7x7, two threads, AVX-512: 37 ms in
// channels_last where sums were made in the caller's memory, 14 so; 17 ms where planes were done one at a time, which
// reads 200 bytes here and there, 8 so.)
template <class T>
struct LargestGrad {
  using A = Accumulate<T>;
  static constexpr int64_t kMostPlanes = 64 / static_cast<int64_t>(sizeof(A));

  const RoiParams& p;
  const Boxes<A>& boxes;
  int64_t positions, bins;
  bool direct;
  int64_t block;  // planes
  A* planes;      // [threads, block, H * W]

  LargestGrad(const RoiParams& params, const Boxes<A>& all, Memory& memory)
      : p(params), boxes(all), positions(p.H * p.W), bins(p.P * p.Q) {
    direct = std::is_same<T, A>::value && !p.channels_last;
    const int64_t fit = kMostBlockBytes / max64(1, positions * static_cast<int64_t>(sizeof(A)));
    block = max64(1, min64(fit, kMostPlanes));
    planes = memory.take<A>(direct ? 0 : p.threads * block * positions);
  }

  void run() const {
    const int64_t blocks = ceil_div(p.C, block);
    parallel_for(p.threads, p.N * blocks, [&](int64_t item, int thread) {
      const int64_t n = item / blocks, c = item % blocks * block, channels = min64(block, p.C - c);
      T* to = static_cast<T*>(p.input) + (p.channels_last ? n * positions * p.C + c : (n * p.C + c) * positions);
      A* sums = planes + thread * block * positions;
      if constexpr (std::is_same<T, A>::value)
        if (direct) sums = to;
      zero(sums, channels * positions);
      boxes.each(n, [&](int64_t k) { p.channels_last ? pixels(sums, k, c, channels) : rows(sums, k, c, channels); });
      if (p.channels_last)
        to_pixels(to, p.C, sums, positions, positions, static_cast<int>(channels));
      else if (!direct)
        copy_row(to, sums, channels * positions);
    });
  }

 private:
  void add(A* plane, int64_t from) const {
    const uint32_t id = static_cast<uint32_t>(p.ids[from]);  // -1, of empty bins, is no position
    if (id < positions) plane[id] += get(static_cast<const T*>(p.output) + from);
  }
  // Four planes at a time: where bins are smaller than pixels, one after the other adds to the same place, and waits.
  void rows(A* sums, int64_t k, int64_t c, int64_t channels) const {
    const int64_t from = (k * p.C + c) * bins;
    int64_t i = 0;
    for (; i + 4 <= channels; i += 4)
      for (int64_t bin = 0; bin < bins; ++bin)
#pragma GCC unroll 4
        for (int64_t j = i; j < i + 4; ++j) add(sums + j * positions, from + j * bins + bin);
    for (; i < channels; ++i)
      for (int64_t bin = 0; bin < bins; ++bin) add(sums + i * positions, from + i * bins + bin);
  }
  // Bins are so far apart that processors do not see the next one coming.
  void pixels(A* sums, int64_t k, int64_t c, int64_t channels) const {
    constexpr int64_t kAhead = 12;
    for (int64_t bin = 0; bin < bins; ++bin) {
      const int64_t from = (k * bins + bin) * p.C + c;
      __builtin_prefetch(p.ids + from + kAhead * p.C);
      __builtin_prefetch(static_cast<const T*>(p.output) + from + kAhead * p.C);
      for (int64_t i = 0; i < channels; ++i) add(sums + i * positions, from + i);
    }
  }
};

}  // namespace
}  // namespace fastconv
