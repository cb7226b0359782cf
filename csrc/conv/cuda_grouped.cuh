// Convolution with few output channels a group. A thread has four outputs (along a row in channels_last memory, down a
// column in contiguous memory, as the depthwise kernels have) by four output channels of a group: each element of the
// input that it loads serves four sums, and each weight, which it loads by fours, four more. Where the input's channels
// lie side by side, four of them are loaded at once. Weights are brought into the order in which they are read first.
#pragma once
#include "conv/cuda_depthwise.cuh"
#include "conv/cuda_groups.cuh"
#include "conv/cuda_products.cuh"

namespace fastconv {
namespace {

constexpr int kFour = static_cast<int>(kConvFour);

// Adds what a thread's outputs read through one tap. `x`: where the first of them reads, `next` elements before the
// second; `inside`: which of them read no padding; `weights`: [C, packed_k].
template <class T, bool Wide>
__device__ __forceinline__ void conv_grouped_tap(const ConvArgs& args, const T* x, int64_t next, int inside,
                                                 const T* weights, Accumulate<T> (&sum)[kStrip][kFour]) {
  using A = Accumulate<T>;
  constexpr int kChannels = Wide ? kFour : 1;
  for (int64_t c = 0; c < args.p.C; c += kChannels) {
    A factor[kChannels][kFour];
#pragma unroll
    for (int v = 0; v < kChannels; ++v) load_wide<kFour>(weights + (c + v) * args.packed_k, factor[v]);
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
      if (!(inside >> o & 1)) continue;
      const T* from = x + o * next + c * args.p.input.c;
      A value[kChannels];
      if constexpr (Wide)
        load_wide<kFour>(from, value);
      else
        value[0] = widen(*from);
#pragma unroll
      for (int v = 0; v < kChannels; ++v)
#pragma unroll
        for (int k = 0; k < kFour; ++k) sum[o][k] += value[v] * factor[v][k];
    }
  }
}

template <class T, bool Last, bool Wide>
__global__ void __launch_bounds__(kConvThreads) conv_grouped(const ConvArgs args) {
  using A = Accumulate<T>;
  const ConvParams& p = args.p;
  const ConvAxis &along = Last ? args.w : args.h, &other = Last ? args.h : args.w;
  const View4 &in = p.input, &out = p.output;
  const int64_t in_along = Last ? in.w : in.h, out_along = Last ? out.w : out.h;
  const int64_t pieces = (p.K + kFour - 1) / kFour;
  const int64_t strips = (along.outputs + kStrip * along.up - 1) / (kStrip * along.up) * along.up;
  for (int64_t i = int64_t{blockIdx.x} * kConvThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kConvThreads) {
    int64_t n = i, across = 0, strip = 0;
    if (!Last) across = take_last(n, p.Q), strip = take_last(n, strips);
    const int64_t k = take_last(n, pieces) * kFour, g = take_last(n, p.G);
    if (Last) strip = take_last(n, strips), across = take_last(n, p.P);
    const int64_t first = conv_strip_first(strip, along.up);
    if (first >= along.outputs) continue;
    const int64_t last = conv_strip_last(first, along.up, along.outputs);
    const ConvReach a = along.reach(first, last), b = other.reach(across);
    A sum[kStrip][kFour] = {};
    for (int64_t tap = 0; tap < a.count * b.count; ++tap) {
      const int64_t t = quotient(tap, a.count), j = tap - t * a.count;
      const int64_t at = a.at + j * along.step, line = b.at + t * other.step;
      int inside = 0;
#pragma unroll
      for (int o = 0; o < kStrip; ++o) {
        const int64_t position = at + o * along.stride;
        inside |= static_cast<int>(position >= 0 && position < along.inputs) << o;
      }
      const int64_t r = Last ? b.first + t * other.period : a.first + j * along.period;
      const int64_t s = Last ? a.first + j * along.period : b.first + t * other.period;
      conv_grouped_tap<T, Wide>(
          args, conv_at<T>(in, n, g * p.C, Last ? line : at, Last ? at : line), along.stride * in_along, inside,
          static_cast<const T*>(args.packed) + ((g * p.R + r) * p.S + s) * p.C * args.packed_k + k, sum);
    }
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
      if (first + o * along.up >= along.outputs) continue;
      const int64_t channel = g * p.K + k;
      const int64_t to =
          n * out.n + channel * out.c + (Last ? across * out.h : across * out.w) + (first + o * along.up) * out_along;
      if (args.wide_output) {
#pragma unroll
        for (int y = 0; y < kFour; ++y) sum[o][y] = conv_finish<T>(p, sum[o][y], channel + y, to + y);
        store_wide<kFour>(static_cast<T*>(out.data) + to, sum[o]);
        continue;
      }
#pragma unroll
      for (int y = 0; y < kFour; ++y)
        if (k + y < p.K) conv_store<T>(p, sum[o][y], channel + y, to + y * out.c);
    }
  }
}

// ---- launchers ----

inline void conv_grouped_forward(const ConvLauncher& call) {
  const ConvParams& p = call.p;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) <= 4) {
      const ConvGroupTile tile = conv_group_outputs(p);
      if (tile.fits && call.tensor_cores()) return conv_group_forward<T>(call, tile);
      if (tile.fits && conv_fills_tiles(p)) return conv_products_forward(call);
    }
    ConvArgs args = call.args();
    call.pack<T>(args, conv_by_fours(p));
    const bool last = conv_both_last(p);
    args.wide_output = last && conv_wide(p.output, p.K, kFour, sizeof(T));
    const int64_t strips =
        last ? ceil_divide(p.Q, kStrip * p.up_w) * p.up_w * p.P : ceil_divide(p.P, kStrip * p.up_h) * p.up_h * p.Q;
    args.items = p.N * strips * p.G * ceil_divide(p.K, kFour);
    const int64_t blocks = ceil_divide(args.items, kConvThreads);
    if (!last) return call.run(conv_grouped<T, false, false>, args, blocks);
    const bool wide = conv_wide(p.input, p.C, kFour, sizeof(T));
    call.run(wide ? conv_grouped<T, true, true> : conv_grouped<T, true, false>, args, blocks);
  });
}

}  // namespace
}  // namespace fastconv
