// The gradients of offsets and masks on CUDA. A block has a tap of an offset group at 64 pixels: for its channels, up
// to 64 at a time, it works out what the samples should have been more (cuda_wanted.cuh) and multiplies that with the
// four pixels that each sample saw. Four threads share the channels of a pixel, and are added up in their order.
#pragma once
#include "deform/cuda_wanted.cuh"

namespace fastconv {
namespace {

template <class A>
struct DeformOffsets {
  static constexpr int kLanes = kDeformThreads / kDeformTile;

  DeformWanted<A> products;
  DeformSample<A> plan[kDeformTile];
  A dots[kLanes][kDeformTile][4];
};

// Of a pixel, from the sums of what was wanted times what was seen in each corner.
template <class T>
__device__ __forceinline__ void deform_store_offset(const DeformParams& p, int64_t n, const DeformTap& tap,
                                                    int64_t pixel, const DeformSample<Accumulate<T>>& s,
                                                    const Accumulate<T> (&d)[4]) {
  const int64_t channel = tap.group * p.R * p.S + tap.tap;
  const auto put = [&](void* data, DeformMap map, int64_t channel, Accumulate<T> value) {
    map.data = data;
    T element;
    narrow(value, element);
    *deform_to<T>(map, n, channel, pixel) = element;
  };
  const bool counts = s.inside != 0;
  if (p.grad_offset) {
    const auto y = s.mask * ((d[2] - d[0]) * (1 - s.x) + (d[3] - d[1]) * s.x);
    const auto x = s.mask * ((d[1] - d[0]) * (1 - s.y) + (d[3] - d[2]) * s.y);
    put(p.grad_offset, p.offset, 2 * channel, counts ? y : 0);
    put(p.grad_offset, p.offset, 2 * channel + 1, counts ? x : 0);
  }
  if (p.grad_mask)
    put(p.grad_mask, p.mask, channel,
        (d[0] * (1 - s.x) + d[1] * s.x) * (1 - s.y) + (d[2] * (1 - s.x) + d[3] * s.x) * s.y);
}

template <class T, int V, bool Wide>
__global__ void __launch_bounds__(kDeformThreads) deform_offset_grads(const DeformArgs args) {
  using A = Accumulate<T>;
  using Shared = DeformOffsets<A>;
  Shared& shared = *dynamic_shared<Shared>();
  const DeformParams& p = args.p;
  const int thread = static_cast<int>(threadIdx.x);
  const auto own = DeformPlace<kDeformTile, Shared::kLanes>::of(thread, p.channels_last);
  const int64_t pixels = p.P * p.Q, pieces = args.pieces.in(p.C / p.offset_groups);
  for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
    int64_t n = item;
    const int64_t t = take_last(n, p.R * p.S), g = take_last(n, p.offset_groups);
    const int64_t first = take_last(n, (pixels + kDeformTile - 1) / kDeformTile) * kDeformTile;
    const DeformTap tap = DeformTap::of(p, g, t);
    if (thread < kDeformTile)
      shared.plan[thread] =
          first + thread < pixels ? deform_look<T>(p, n, tap, DeformPixel::of(p, first + thread)) : DeformSample<A>{};
    A dots[4] = {};
    for (int64_t i = g * pieces; i < (g + 1) * pieces; ++i) {
      const int64_t channel = args.pieces.first(i);
      const int channels = args.pieces.count(i);
      deform_want<T>(
          args, n, t, channel, channels, [&](int row) { return first + row < pixels ? first + row : -1; },
          shared.products);
      const DeformSample<A> sample = shared.plan[own.row];
      for (int c = own.column * V; c < channels; c += Shared::kLanes * V) {
        const Channels<T, V, Wide> some = {channels - c < V ? channels - c : V};
        const A* wanted = &shared.products.wanted[own.row][c];
        deform_corners(some, sample, deform_at<T>(args.input, n, channel + c, 0), args.input, p.W,
                       [&](int corner, const A(&seen)[V]) {
#pragma unroll
                         for (int v = 0; v < V; ++v)
                           if (v < some.n) dots[corner] += wanted[v] * seen[v];
                       });
      }
      sync_block();
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) shared.dots[own.column][own.row][j] = dots[j];
    sync_block();
    if (thread < kDeformTile && first + thread < pixels) {
      A sums[4] = {};
      for (int lane = 0; lane < Shared::kLanes; ++lane)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[j] += shared.dots[lane][thread][j];
      deform_store_offset<T>(p, n, tap, first + thread, shared.plan[thread], sums);
    }
    sync_block();
  }
}

// ---- launchers ----

template <class T>
void deform_offset_backward(const DeformLauncher& call, DeformArgs args) {
  const DeformParams& p = call.p;
  args.items = p.N * ceil_divide(p.P * p.Q, kDeformTile) * p.offset_groups * p.R * p.S;
  call.run(call.wide(sizeof(T)) ? deform_offset_grads<T, kWide<T>, true> : deform_offset_grads<T, kDeformPlanes, false>,
           args, args.items, sizeof(DeformOffsets<Accumulate<T>>));
}

}  // namespace
}  // namespace fastconv
