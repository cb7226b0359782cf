// The gradient of weights on CUDA. A block has a tap, and a tile of output channels and channels; it goes through the
// pixels in their order, takes the samples anew, and multiplies them with the gradient of the output.
//
// Few tiles would leave most of the GPU idle. Then the pixels are split into parts, which depend on the sizes alone,
// and a second kernel adds up the parts in their order: no atomics, and each call gives the same bits again.
#pragma once
#include "deform/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kDeformBlocks = 512;  // that are enough for a GPU

template <class A>
struct DeformWeights {
  static constexpr int kPixels = 32;
  static constexpr int kLine = kDeformTile + kDeformPad;

  alignas(16) A grads[kPixels][kLine];    // [pixel][output channel]
  alignas(16) A samples[kPixels][kLine];  // [pixel][channel]
  DeformSample<A> plan[kPixels];
};

// The samples of channels [c, end) of group g, of `count` pixels from `first` on.
template <class T, int V, bool Wide>
__device__ __forceinline__ void deform_take_samples(const DeformArgs& args, int64_t n, int64_t g, int64_t t, int64_t c,
                                                    int64_t end, int64_t first, int count,
                                                    DeformWeights<Accumulate<T>>& shared) {
  using A = Accumulate<T>;
  using Shared = DeformWeights<A>;
  const DeformParams& p = args.p;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t of_offset = p.C / p.offset_groups, begin = g * (p.C / p.groups) + c, stop = begin + end - c;
  for (int64_t from = begin; from < stop;) {
    const int64_t group = quotient(from, of_offset), next = (group + 1) * of_offset;
    const int channels = static_cast<int>((next < stop ? next : stop) - from);
    if (thread < Shared::kPixels)
      shared.plan[thread] = thread < count
                                ? deform_look<T>(p, n, DeformTap::of(p, group, t), DeformPixel::of(p, first + thread))
                                : DeformSample<A>{};
    sync_block();
    deform_gather<T, V, Wide, Shared::kPixels, kDeformTile>(args, n, from, channels, shared.plan,
                                                            shared.samples[0] + (from - begin), Shared::kLine, 1);
    sync_block();
    from += channels;
  }
}

template <class T, int V, bool Wide>
__global__ void __launch_bounds__(kDeformThreads) deform_weight_grads(const DeformArgs args) {
  using A = Accumulate<T>;
  using Shared = DeformWeights<A>;
  constexpr int kPixels = Shared::kPixels;
  Shared& shared = *dynamic_shared<Shared>();
  const DeformParams& p = args.p;
  const int thread = static_cast<int>(threadIdx.x);
  const auto own = DeformPlace<kDeformTile / 4, kDeformTile / 4>::of(thread, true);
  const int64_t pixels = p.P * p.Q, taps = p.R * p.S, C = p.C / p.groups, K = p.K / p.groups;
  const int64_t stages = (pixels + kPixels - 1) / kPixels;  // of an image
  for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
    int64_t part = item;
    const int64_t c = take_last(part, (C + kDeformTile - 1) / kDeformTile) * kDeformTile;
    const int64_t k = take_last(part, (K + kDeformTile - 1) / kDeformTile) * kDeformTile;
    const int64_t t = take_last(part, taps), g = take_last(part, p.groups);
    const int64_t end = C - c < kDeformTile ? C : c + kDeformTile;
    A sum[4][4] = {};
    for (int e = thread; e < kPixels * Shared::kLine; e += kDeformThreads) shared.samples[0][e] = 0;
    for (int64_t stage = p.N * stages * part / args.parts; stage < p.N * stages * (part + 1) / args.parts; ++stage) {
      const int64_t n = quotient(stage, stages), first = (stage - n * stages) * kPixels;
      const int count = pixels - first < kPixels ? static_cast<int>(pixels - first) : kPixels;
      for (int e = thread; e < kPixels * kDeformTile; e += kDeformThreads) {
        const auto at = DeformPlace<kPixels, kDeformTile>::of(e, p.channels_last);
        if (at.row >= count) continue;
        shared.grads[at.row][at.column] =
            k + at.column < K ? widen(*deform_at<T>(args.output, n, g * K + k + at.column, first + at.row)) : A{0};
      }
      deform_take_samples<T, V, Wide>(args, n, g, t, c, end, first, count, shared);
      deform_multiply(shared.grads[0] + 4 * own.row, Shared::kLine, shared.samples[0] + 4 * own.column, Shared::kLine,
                      count, sum);
      sync_block();
    }
#pragma unroll
    for (int y = 0; y < 4; ++y)
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const int64_t row = k + 4 * own.row + y, column = c + 4 * own.column + x;
        if (row >= K || column >= C) continue;
        const int64_t to = ((g * K + row) * C + column) * taps + t;
        T element;
        narrow(sum[y][x], element);
        if (args.sums)
          static_cast<A*>(args.sums)[part * (p.K * C * taps) + to] = sum[y][x];
        else
          static_cast<T*>(p.grad_weight)[to] = element;
      }
  }
}

template <class T>
__global__ void __launch_bounds__(kDeformThreads) deform_add_parts(const DeformArgs args) {
  for (int64_t i = int64_t{blockIdx.x} * kDeformThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kDeformThreads)
    add_parts<T>(args.sums, args.parts, args.items, i, args.p.grad_weight);
}

// ---- launchers ----

inline int64_t deform_weight_elements(const DeformParams& p) { return p.K * (p.C / p.groups) * p.R * p.S; }

inline int64_t deform_weight_tiles(const DeformParams& p) {
  return p.groups * p.R * p.S * ceil_divide(p.K / p.groups, kDeformTile) * ceil_divide(p.C / p.groups, kDeformTile);
}

// Into how many parts the pixels are split.
inline int64_t deform_parts(const DeformParams& p, const DeformLimits& limits) {
  const int64_t bytes = deform_weight_elements(p) * (p.dtype == Dtype::kFloat64 ? 8 : 4);
  int64_t parts = kDeformBlocks / deform_weight_tiles(p);
  for (int64_t most : {p.N * p.P * p.Q / limits.part, limits.sums / bytes}) parts = parts < most ? parts : most;
  return parts < 1 ? 1 : parts;
}
inline int64_t deform_sums_bytes(const DeformParams& p, const DeformLimits& limits) {
  const int64_t parts = p.grad_weight ? deform_parts(p, limits) : 1;
  return parts > 1 ? parts * deform_weight_elements(p) * (p.dtype == Dtype::kFloat64 ? 8 : 4) : 0;
}

template <class T>
void deform_weight_backward(const DeformLauncher& call, DeformArgs args, void* sums) {
  const DeformParams& p = call.p;
  args.parts = deform_parts(p, call.limits);
  args.sums = args.parts > 1 ? sums : nullptr;
  args.items = args.parts * deform_weight_tiles(p);
  call.run(call.wide(sizeof(T)) ? deform_weight_grads<T, kWide<T>, true> : deform_weight_grads<T, kDeformPlanes, false>,
           args, args.items, sizeof(DeformWeights<Accumulate<T>>));
  if (!args.sums) return;
  args.items = deform_weight_elements(p);
  call.run(deform_add_parts<T>, args, ceil_divide(args.items, kDeformThreads));
}

}  // namespace
}  // namespace fastconv
