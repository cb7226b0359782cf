// The convolution that takes everything: any size, stride, dilation and layout, in 64-bit positions. A thread has a
// pixel and a few output channels, goes through the taps that are not padding in their order, and shares each element
// of the input among its channels. It serves what the others cannot.
#pragma once
#include "conv/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kConvGeneral = 4;  // output channels of a thread

template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_general(const ConvArgs args) {
  using A = Accumulate<T>;
  const ConvParams& p = args.p;
  const int64_t pieces = (p.K + kConvGeneral - 1) / kConvGeneral;
  for (int64_t i = int64_t{blockIdx.x} * kConvThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kConvThreads) {
    int64_t n = i, row = 0, q = 0;
    if (!args.channels_last) q = take_last(n, p.Q), row = take_last(n, p.P);
    const int64_t k = take_last(n, pieces) * kConvGeneral, g = take_last(n, p.G);
    if (args.channels_last) q = take_last(n, p.Q), row = take_last(n, p.P);
    const int channels = p.K - k < kConvGeneral ? static_cast<int>(p.K - k) : kConvGeneral;
    const ConvReach h = args.h.reach(row), w = args.w.reach(q);
    A sum[kConvGeneral] = {};
    for (int64_t r = 0; r < h.count; ++r)
      for (int64_t s = 0; s < w.count; ++s) {
        const T* x = conv_at<T>(p.input, n, g * p.C, h.at + r * args.h.step, w.at + s * args.w.step);
        const T* weights =
            conv_at<T>(p.weight, k, 0, h.first + r * args.h.period, w.first + s * args.w.period) + g * p.weight_g;
#pragma unroll 2  // more would cost registers, and so warps to wait with
        for (int64_t c = 0; c < p.C; ++c) {
          const A value = widen(x[c * p.input.c]);
#pragma unroll
          for (int y = 0; y < kConvGeneral; ++y)
            if (y < channels) sum[y] += value * widen(weights[y * p.weight.n + c * p.weight.c]);
        }
      }
    const int64_t to = n * p.output.n + row * p.output.h + q * p.output.w;
#pragma unroll
    for (int y = 0; y < kConvGeneral; ++y)
      if (y < channels) conv_store<T>(p, sum[y], g * p.K + k + y, to + (g * p.K + k + y) * p.output.c);
  }
}

// ---- launchers ----

inline void conv_general_forward(const ConvLauncher& call) {
  with_element(call.p.dtype, [&](auto element) {
    using T = decltype(element);
    ConvArgs args = call.args();
    args.items = call.p.N * call.p.G * ceil_divide(call.p.K, kConvGeneral) * call.p.P * call.p.Q;
    call.run(conv_general<T>, args, ceil_divide(args.items, kConvThreads));
  });
}

}  // namespace
}  // namespace fastconv
