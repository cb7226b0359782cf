// Where the bins of a box lie, for CUDA: bins.h says it for CPUs, with lists for which a thread here has no room. It
// makes the samples of a bin one by one; those that are not on the map are passed over without a look at each.
//
// Nobody looks at boxes before kernels do, since that would be to wait for the GPU. A box whose index is not in the
// batch, or that is not finite on the map, has no image.
#pragma once
#include <cmath>

#include "core/device.cuh"
#include "roi/params.h"

namespace fastconv {
namespace {

// What all boxes have in common.
template <class A>
struct RoiMap {
  Roi kind;
  bool aligned;
  int H, W;
  int64_t N, P, Q;
  A scale, sampling;
};

template <class A>
RoiMap<A> roi_map(const RoiParams& p) {
  return {p.kind, p.aligned, static_cast<int>(p.H),   static_cast<int>(p.W),     p.N,
          p.P,    p.Q,       static_cast<A>(p.scale), static_cast<A>(p.sampling)};
}

// NaN is `least`.
template <class A>
__device__ __forceinline__ A roi_between(A value, A least, A most) {
  return !(value >= least) ? least : value > most ? most : value;
}

// One axis of a box: bins of a size each, from `start` on, in pixels.
template <class A>
struct RoiAxis {
  Roi kind;
  bool adapts;
  int size;
  A start, extent, bin;
  A samples;  // a bin, of kAlign and kPsAlign

  __device__ __forceinline__ RoiAxis(const RoiMap<A>& map, A first, A last, int size, int64_t bins)
      : kind(map.kind), adapts(map.sampling == 0), size(size) {
    if (kind == Roi::kPool || kind == Roi::kPsPool) {
      start = std::round(first);
      extent = std::round(last) - start + (kind == Roi::kPool ? 1 : 0);
      extent = extent < 1 ? 1 : extent;
    } else {
      const A shift = kind == Roi::kPsAlign || map.aligned ? static_cast<A>(0.5) : 0;
      start = first - shift;
      extent = last - shift - start;
      if (kind == Roi::kAlign && !map.aligned && extent < 1) extent = 1;
    }
    bin = extent / static_cast<A>(bins);
    samples = adapts ? std::ceil(bin) : map.sampling;
  }

  // Whether any bin may reach pixels `begin` to `end`. It does not say no of one that does.
  __device__ __forceinline__ bool reaches(int begin, int end) const {
    const A margin = 2 + (std::fabs(start) + std::fabs(extent)) * static_cast<A>(0x1p-20);
    const A least = extent < 0 ? start + extent : start, most = extent < 0 ? start : start + extent;
    return !(most + margin < static_cast<A>(begin)) && !(least - margin > static_cast<A>(end));
  }
};

template <class A>
struct RoiBox {
  int64_t image;  // -1: of none
  A x1, y1, x2, y2;

  // Rounded before anything is subtracted: with a multiply-add some boxes would have another number of samples than
  // they have on a CPU, and in torchvision.
  __device__ __forceinline__ RoiBox(const RoiMap<A>& map, const A* row)
      : x1(multiply_rounded(row[1], map.scale)),
        y1(multiply_rounded(row[2], map.scale)),
        x2(multiply_rounded(row[3], map.scale)),
        y2(multiply_rounded(row[4], map.scale)) {
    const bool known = row[0] >= 0 && row[0] < static_cast<A>(map.N);
    const bool finite = x1 - x1 == 0 && y1 - y1 == 0 && x2 - x2 == 0 && y2 - y2 == 0;
    image = known && finite ? static_cast<int64_t>(row[0]) : -1;
  }
  __device__ __forceinline__ RoiAxis<A> rows(const RoiMap<A>& map) const { return {map, y1, y2, map.H, map.P}; }
  __device__ __forceinline__ RoiAxis<A> columns(const RoiMap<A>& map) const { return {map, x1, x2, map.W, map.Q}; }
};

// The whole pixels of bin `b`.
template <class A>
struct RoiPixels {
  int begin, end;

  __device__ __forceinline__ RoiPixels(const RoiAxis<A>& axis, int64_t b) {
    // The map's last row and column are not in any bin of position-sensitive pooling, nobody knows why.
    const int size = axis.kind == Roi::kPsPool ? axis.size - 1 : axis.size;
    begin = on_map(std::floor(multiply_rounded(static_cast<A>(b), axis.bin)) + axis.start, size);
    end = on_map(std::ceil(multiply_rounded(static_cast<A>(b + 1), axis.bin)) + axis.start, size);
  }

 private:
  // float32 has not all sizes; it may have rounded one up.
  static __device__ __forceinline__ int on_map(A at, int size) {
    const int64_t pixel = static_cast<int64_t>(roi_between(at, A{0}, static_cast<A>(size)));
    return pixel < size ? static_cast<int>(pixel) : size;
  }
};

// A sample lies between pixels `low` and `low + 1`.
template <class A>
struct RoiSample {
  int low;
  A first, second;  // what they weigh; of the second, 0: it is not to be read
};

// The samples of bin `b`: those from `least` to `most`, and a few for rounding.
template <class A>
struct RoiBin {
  bool whole;  // pixels, of kPsPool
  int size, begin;
  int64_t count;
  A origin, bin, samples, first, weight;

  __device__ __forceinline__ RoiBin(const RoiAxis<A>& axis, int64_t b, A least, A most)
      : whole(axis.kind == Roi::kPsPool), size(axis.size), begin(0), bin(axis.bin), samples(axis.samples), first(0) {
    if (whole) {
      const RoiPixels<A> pixels(axis, b);
      begin = pixels.begin;
      count = pixels.end > pixels.begin ? pixels.end - pixels.begin : 0;
      weight = 1 / static_cast<A>(count);
      origin = 0;
      return;
    }
    origin = axis.start + multiply_rounded(static_cast<A>(b), bin);
    weight = 1 / samples;
    const A step = bin / samples;
    A end = samples;
    if (step > 0 && samples > 4) {
      first = roi_between(std::floor((least - origin) / step) - 2, A{0}, samples);
      end = roi_between(std::ceil((most - origin) / step) + 2, first, samples);
    }
    // Samples that adapt are half a pixel apart or more.
    const A few = axis.adapts ? 2 * static_cast<A>(size) + 16 : samples;
    count = static_cast<int64_t>(roi_between(end - first, A{0}, few));
  }
  __device__ __forceinline__ RoiBin(const RoiAxis<A>& axis, int64_t b)
      : RoiBin(axis, b, A{-1}, static_cast<A>(axis.size)) {}

  // Whether sample `i` is on the map.
  __device__ __forceinline__ bool sample(int64_t i, RoiSample<A>& s) const {
    s.second = 0;
    s.first = weight;
    s.low = begin + static_cast<int>(i);
    if (whole) return true;
    const A y = origin + multiply_rounded(first + static_cast<A>(i) + static_cast<A>(0.5), bin) / samples;
    if (!(y >= -1 && y <= static_cast<A>(size))) return false;
    const A inside = y > 0 ? y : 0;
    const int64_t low = static_cast<int64_t>(inside);
    s.low = low < size - 1 ? static_cast<int>(low) : size - 1;
    if (low >= size - 1) return true;
    const A part = inside - static_cast<A>(low);
    s.first = (1 - part) * weight;
    s.second = part * weight;
    return true;
  }
};

// What a row or a column of the map weighs in bin `b`.
template <class A>
__device__ __forceinline__ A roi_weight(const RoiAxis<A>& axis, int64_t b, int line) {
  if (axis.kind == Roi::kPsPool) {
    const RoiPixels<A> pixels(axis, b);
    return line >= pixels.begin && line < pixels.end ? 1 / static_cast<A>(pixels.end - pixels.begin) : 0;
  }
  const RoiBin<A> bin(axis, b, static_cast<A>(line) - 1, static_cast<A>(line) + 1);
  A sum = 0;
  for (int64_t i = 0; i < bin.count; ++i) {
    RoiSample<A> s;
    if (!bin.sample(i, s)) continue;
    if (s.low == line) sum += s.first;
    if (s.low + 1 == line) sum += s.second;
  }
  return sum;
}

}  // namespace
}  // namespace fastconv
