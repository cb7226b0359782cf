// Regions of interest on CUDA, from the map to the bins.
//
// roi_mean, roi_largest: a thread has a bin, and 16 bytes of neighbouring channels (channels_last memory) or a few
// planes (contiguous memory): where its samples are is worked out once for all of these. Neighbouring threads have
// neighbouring channels, or neighbouring bins, and so write side by side.
//
// roi_sensitive: a thread has one element of the output, since each looks at another channel of the input.
//
// roi_pick: the input at the ids of maxima.
//
// Boxes of no image become NaN; their ids are -1, and what is picked for them is zero, as they have no gradient.
#pragma once
#include "roi/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kRoiPlanes = 4;  // of a thread, in contiguous memory

// Adds what a sample sees: four pixels, of which those that weigh nothing are not looked at.
template <class T, int V, bool Wide>
__device__ __forceinline__ void roi_add(const RoiChannels<T, V, Wide>& channels, const T* map, const RoiSteps& in,
                                        int64_t row, const RoiSample<Accumulate<T>>& y,
                                        const RoiSample<Accumulate<T>>& x, Accumulate<T> (&sum)[V]) {
  using A = Accumulate<T>;
  const bool down = y.second != 0, right = x.second != 0;
  const T* at = map + y.low * row + x.low * in.pixel;
  const int64_t below = down ? row : 0, beside = right ? in.pixel : 0;
  A pixels[4][V];
  channels.load(at, in.channel, pixels[0]);
  channels.load(at + beside, in.channel, pixels[1]);
  channels.load(at + below, in.channel, pixels[2]);
  channels.load(at + below + beside, in.channel, pixels[3]);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    // Not by a weight of zero: an infinite pixel times that is NaN.
    sum[v] += y.first * x.first * pixels[0][v];
    sum[v] += y.first * x.second * (right ? pixels[1][v] : A{0});
    sum[v] += y.second * x.first * (down ? pixels[2][v] : A{0});
    sum[v] += y.second * x.second * (down && right ? pixels[3][v] : A{0});
  }
}

// Calls body(sample of the rows, sample of the columns) for those of a bin that are on the map.
template <class A, class Body>
__device__ __forceinline__ void roi_each_sample(const RoiBin<A>& rows, const RoiBin<A>& columns, const Body& body) {
  for (int64_t i = 0; i < rows.count; ++i) {
    RoiSample<A> y;
    if (!rows.sample(i, y)) continue;
    for (int64_t j = 0; j < columns.count; ++j) {
      RoiSample<A> x;
      if (columns.sample(j, x)) body(y, x);
    }
  }
}

template <class T, int V, bool Wide, class Index>
__global__ void __launch_bounds__(kRoiThreads) roi_mean(const RoiArgs<Accumulate<T>, Index> args) {
  using A = Accumulate<T>;
  for (int64_t i = roi_first(); i < args.items; i += roi_next()) {
    const RoiPlace place = args.locate(i);
    const RoiBox<A> box = args.box(place.k);
    const int64_t c = place.group * V, left = args.channels - c;
    const RoiChannels<T, V, Wide> channels = {left < V ? static_cast<int>(left) : V};
    A sum[V];
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = box.image < 0 ? static_cast<A>(NAN) : A{0};
    if (box.image >= 0) {
      const T* map = static_cast<const T*>(args.input) + box.image * args.in.box + c * args.in.channel;
      const int64_t row = args.map.W * args.in.pixel;
      const RoiBin<A> rows(box.rows(args.map), place.row), columns(box.columns(args.map), place.column);
      roi_each_sample(rows, columns, [&](const RoiSample<A>& y, const RoiSample<A>& x) {
        roi_add(channels, map, args.in, row, y, x, sum);
      });
    }
    channels.store(
        static_cast<T*>(args.output) + place.k * args.out.box + c * args.out.channel + place.bin * args.out.pixel,
        args.out.channel, sum);
  }
}

// The largest of a bin, and where it was: of equal ones the first. NaN is larger than all, and the last of them counts.
template <class T, int V>
struct RoiLargest {
  using A = Accumulate<T>;
  A value[V];
  int32_t id[V];

  __device__ __forceinline__ void set(A same, int32_t at) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      value[v] = same;
      id[v] = at;
    }
  }
  __device__ __forceinline__ void take(const A (&pixel)[V], int32_t at) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool wins = pixel[v] > value[v] || pixel[v] != pixel[v] || id[v] < 0;
      value[v] = wins ? pixel[v] : value[v];
      id[v] = wins ? at : id[v];
    }
  }
};

template <class T, int V, bool Wide, class Index>
__global__ void __launch_bounds__(kRoiThreads) roi_largest(const RoiArgs<Accumulate<T>, Index> args) {
  using A = Accumulate<T>;
  for (int64_t i = roi_first(); i < args.items; i += roi_next()) {
    const RoiPlace place = args.locate(i);
    const RoiBox<A> box = args.box(place.k);
    const int64_t c = place.group * V, left = args.channels - c;
    const RoiChannels<T, V, Wide> channels = {left < V ? static_cast<int>(left) : V};
    RoiLargest<T, V> largest;
    largest.set(box.image < 0 ? static_cast<A>(NAN) : A{0}, -1);
    if (box.image >= 0) {
      const T* map = static_cast<const T*>(args.input) + box.image * args.in.box + c * args.in.channel;
      const RoiPixels<A> rows(box.rows(args.map), place.row), columns(box.columns(args.map), place.column);
      for (int y = rows.begin; y < rows.end; ++y)
        for (int x = columns.begin; x < columns.end; ++x) {
          const int32_t at = y * args.map.W + x;
          A pixel[V];
          channels.load(map + at * args.in.pixel, args.in.channel, pixel);
          largest.take(pixel, at);
        }
    }
    const int64_t to = place.k * args.out.box + c * args.out.channel + place.bin * args.out.pixel;
    channels.store(static_cast<T*>(args.output) + to, args.out.channel, largest.value);
    if (args.ids) channels.store_ids(args.ids + to, args.out.channel, largest.id);
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kRoiThreads) roi_sensitive(const RoiArgs<Accumulate<T>, Index> args) {
  using A = Accumulate<T>;
  const RoiChannels<T, 1, false> one = {1};
  for (int64_t i = roi_first(); i < args.items; i += roi_next()) {
    const RoiPlace place = args.locate(i);
    const RoiBox<A> box = args.box(place.k);
    A sum[1] = {box.image < 0 ? static_cast<A>(NAN) : A{0}};
    if (box.image >= 0) {
      const int64_t channel = place.group * args.map.P * args.map.Q + place.bin;
      const T* map = static_cast<const T*>(args.input) + box.image * args.in.box + channel * args.in.channel;
      const int64_t row = args.map.W * args.in.pixel;
      const RoiBin<A> rows(box.rows(args.map), place.row), columns(box.columns(args.map), place.column);
      roi_each_sample(rows, columns, [&](const RoiSample<A>& y, const RoiSample<A>& x) {
        roi_add(one, map, args.in, row, y, x, sum);
      });
    }
    one.store(static_cast<T*>(args.output) + i, 0, sum);
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kRoiThreads) roi_pick(const RoiArgs<Accumulate<T>, Index> args) {
  const int64_t positions = int64_t{args.map.H} * args.map.W;
  for (int64_t i = roi_first(); i < args.items; i += roi_next()) {
    const RoiPlace place = args.locate(i);
    const int64_t image = args.box(place.k).image, id = args.ids[i];
    T value = {};
    if (image >= 0 && id >= 0 && id < positions)
      value =
          static_cast<const T*>(args.input)[image * args.in.box + place.group * args.in.channel + id * args.in.pixel];
    static_cast<T*>(args.output)[i] = value;
  }
}

// ---- launchers ----

template <class T, class Index>
void roi_forward_of(const RoiLauncher& call) {
  const RoiParams& p = call.p;
  if (p.kind == Roi::kPsAlign || p.kind == Roi::kPsPool) return call.run_items(roi_sensitive<T, Index>, p.channels);
  const bool pools = p.kind == Roi::kPool;
  if (call.wide(sizeof(T))) {
    constexpr int V = kWide<T>;
    return call.run_items(pools ? roi_largest<T, V, true, Index> : roi_mean<T, V, true, Index>, p.C / V);
  }
  constexpr int V = kRoiPlanes;
  call.run_items(pools ? roi_largest<T, V, false, Index> : roi_mean<T, V, false, Index>, ceil_divide(p.C, V));
}

inline void roi_forward(const RoiParams& p, const Stream& stream, const RoiLimits& limits = {}) {
  const RoiLauncher call = {p, stream, limits};
  call.with_items([&](auto element, auto index) { roi_forward_of<decltype(element), decltype(index)>(call); });
}

inline void roi_picked(const RoiParams& p, const Stream& stream, const RoiLimits& limits = {}) {
  const RoiLauncher call = {p, stream, limits};
  call.with_items(
      [&](auto element, auto index) { call.run_items(roi_pick<decltype(element), decltype(index)>, p.channels); });
}

}  // namespace
}  // namespace fastconv
