// Deformable convolution on CUDA, from the input to the output.
//
// deform_sample: without weights. A thread has a pixel of the output, and 16 bytes of neighbouring channels
// (channels_last memory) or a few planes (contiguous memory): where a tap looks is worked out once for all of these.
//
// deform_products: with weights. A block has a tile of pixels and output channels. Step by step, of a tap and a few
// channels, it takes samples into shared memory, and weights beside them, and multiplies: there is no column buffer,
// and memory does not grow with the taps. Few output channels have tiles of more pixels.
//
// deform_pack: the weight with output channels side by side, which is how the products read it.
#pragma once
#include "deform/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kDeformFew = 16;  // output channels

template <class T, int V, bool Wide>
__global__ void __launch_bounds__(kDeformThreads) deform_sample(const DeformArgs args) {
  using A = Accumulate<T>;
  const DeformParams& p = args.p;
  const int64_t channels = p.C / p.offset_groups, groups = (channels + V - 1) / V, pixels = p.P * p.Q;
  for (int64_t i = int64_t{blockIdx.x} * kDeformThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kDeformThreads) {
    int64_t n = i, pixel = 0;
    if (!p.channels_last) pixel = take_last(n, pixels);
    const int64_t part = take_last(n, groups), g = take_last(n, p.offset_groups);
    if (p.channels_last) pixel = take_last(n, pixels);
    const int64_t channel = g * channels + part * V, left = channels - part * V;
    const Channels<T, V, Wide> some = {left < V ? static_cast<int>(left) : V};
    const T* map = deform_at<T>(args.input, n, channel, 0);
    const DeformPixel at = DeformPixel::of(p, pixel);
    A sum[V] = {};
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t s = 0; s < p.S; ++s) {
        const DeformSample<A> sample = deform_look<T>(p, n, {g, r * p.S + s, r, s}, at);
        deform_see(some, sample, map, args.input, p.W, sum);
      }
    some.store(deform_to<T>(args.output, n, channel, pixel), args.output.channel, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kDeformThreads) deform_pack(const DeformArgs args) {
  const DeformParams& p = args.p;
  const int64_t taps = p.R * p.S, C = p.C / p.groups, K = p.K / p.groups;
  for (int64_t i = int64_t{blockIdx.x} * kDeformThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kDeformThreads) {
    int64_t g = i;
    const int64_t k = take_last(g, K), c = take_last(g, C), tap = take_last(g, taps);
    const T weight = static_cast<const T*>(p.weight)[((g * K + k) * C + c) * taps + tap];
    static_cast<T*>(args.packed)[i] = weight;
  }
}

// What a block shares, of tiles of so many output channels.
template <class T, int Columns>
struct DeformProducts {
  using A = Accumulate<T>;
  static constexpr int kPixels = kDeformTile * kDeformTile / Columns;
  static constexpr int kStep = sizeof(T) == 2 ? 32 : 16;  // channels, so that all threads take 16 bytes of a sample

  alignas(16) A samples[kStep][kPixels + kDeformPad];
  alignas(16) A weights[kStep][Columns + kDeformPad];
  DeformSample<A> plan[kPixels];
};

template <class T, int V, bool Wide, int Columns>
__global__ void __launch_bounds__(kDeformThreads) deform_products(const DeformArgs args) {
  using A = Accumulate<T>;
  using Shared = DeformProducts<T, Columns>;
  constexpr int kPixels = Shared::kPixels, kStep = Shared::kStep;
  Shared& shared = *dynamic_shared<Shared>();
  const DeformParams& p = args.p;
  const int thread = static_cast<int>(threadIdx.x);
  const auto own = DeformPlace<kPixels / 4, Columns / 4>::of(thread, p.channels_last);
  const int64_t pixels = p.P * p.Q, taps = p.R * p.S, C = p.C / p.groups, K = p.K / p.groups;
  const int64_t of_offset = p.C / p.offset_groups, unit = args.pieces.unit;
  for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
    int64_t n = item;
    const int64_t k = take_last(n, (K + Columns - 1) / Columns) * Columns, g = take_last(n, p.groups);
    const int64_t first = take_last(n, (pixels + kPixels - 1) / kPixels) * kPixels;
    const DeformPixel at = DeformPixel::of(p, first + thread < pixels ? first + thread : pixels - 1);
    A sum[4][4] = {};
    for (int64_t c = 0; c < C; c += unit)
      for (int64_t r = 0; r < p.R; ++r)
        for (int64_t s = 0; s < p.S; ++s) {
          const DeformTap tap = {quotient(g * C + c, of_offset), r * p.S + s, r, s};
          if (thread < kPixels)
            shared.plan[thread] = first + thread < pixels ? deform_look<T>(p, n, tap, at) : DeformSample<A>{};
          sync_block();
          for (int64_t from = c; from < c + unit; from += kStep) {
            const int steps = c + unit - from < kStep ? static_cast<int>(c + unit - from) : kStep;
            deform_gather<T, V, Wide, kPixels, kStep>(args, n, g * C + from, steps, shared.plan, shared.samples[0], 1,
                                                      kPixels + kDeformPad);
            const T* packed = static_cast<const T*>(args.packed) + ((g * taps + tap.tap) * C + from) * K + k;
            for (int e = thread; e < steps * Columns; e += kDeformThreads)
              shared.weights[e / Columns][e % Columns] =
                  k + e % Columns < K ? widen(packed[e / Columns * K + e % Columns]) : A{0};
            sync_block();
            deform_multiply(shared.samples[0] + 4 * own.row, kPixels + kDeformPad, shared.weights[0] + 4 * own.column,
                            Columns + kDeformPad, steps, sum);
            sync_block();
          }
        }
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int64_t channel = k + 4 * own.column + x;
      if (channel >= K) continue;
      const A bias = p.bias ? widen(static_cast<const T*>(p.bias)[g * K + channel]) : A{0};
#pragma unroll
      for (int y = 0; y < 4; ++y) {
        const int64_t pixel = first + 4 * own.row + y;
        T element;
        narrow(sum[y][x] + bias, element);
        if (pixel < pixels) *deform_to<T>(args.output, n, g * K + channel, pixel) = element;
      }
    }
  }
}

// ---- launchers ----

// What the packed weight takes.
inline int64_t deform_packed_bytes(const DeformParams& p) {
  const int64_t element = p.dtype == Dtype::kFloat64 ? 8 : p.dtype == Dtype::kFloat32 ? 4 : 2;
  return p.weight ? p.K * (p.C / p.groups) * p.R * p.S * element : 0;
}

template <class T>
void deform_packed(const DeformLauncher& call, DeformArgs args) {
  args.items = call.p.K * (call.p.C / call.p.groups) * call.p.R * call.p.S;
  call.run(deform_pack<T>, args, ceil_divide(args.items, kDeformThreads));
}

template <class T, int Columns>
void deform_products_of(const DeformLauncher& call, DeformArgs args) {
  const DeformParams& p = call.p;
  using Shared = DeformProducts<T, Columns>;
  args.items = p.N * ceil_divide(p.P * p.Q, Shared::kPixels) * p.groups * ceil_divide(p.K / p.groups, Columns);
  call.run(call.wide(sizeof(T)) ? deform_products<T, kWide<T>, true, Columns>
                                : deform_products<T, kDeformPlanes, false, Columns>,
           args, args.items, sizeof(Shared));
}

template <class T>
void deform_sample_of(const DeformLauncher& call, DeformArgs args) {
  const DeformParams& p = call.p;
  const bool wide = call.wide(sizeof(T));
  args.items = p.N * p.P * p.Q * p.offset_groups * ceil_divide(p.C / p.offset_groups, wide ? kWide<T> : kDeformPlanes);
  call.run(wide ? deform_sample<T, kWide<T>, true> : deform_sample<T, kDeformPlanes, false>, args,
           ceil_divide(args.items, kDeformThreads));
}

inline void deform_forward(const DeformParams& p, void* scratch, const Stream& stream,
                           const DeformLimits& limits = {}) {
  const DeformLauncher call = {p, stream, limits};
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    DeformArgs args = call.args();
    if (!p.weight) return deform_sample_of<T>(call, args);
    args.packed = scratch;
    deform_packed<T>(call, args);
    if (p.K / p.groups <= kDeformFew) return deform_products_of<T, kDeformFew>(call, args);
    deform_products_of<T, kDeformTile>(call, args);
  });
}

}  // namespace
}  // namespace fastconv
