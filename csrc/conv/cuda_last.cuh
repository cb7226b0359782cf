// Contiguous tensors as channels_last ones, for the products of tensor cores. Their tiles want 16 bytes of a pixel's
// channels, which asynchronous copies bring; of contiguous planes every element goes through registers, once for every
// tap, and costs an instruction each time it is loaded and another when it is put down. A copy is made once instead: it
// reads and writes the tensor one time more, where a kernel of 3x3 would load every element nine times.
#pragma once
#include "conv/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kConvLastTile = 64;  // pixels, and channels
template <class T>
constexpr int kConvLastLine =
    kConvLastTile + 4 / static_cast<int>(sizeof(T));  // so that columns are in different banks

struct ConvLastArgs {
  const void* from;  // [N, C, pixels]
  void* to;          // [N, pixels, C]
  int64_t n, c;      // strides of `from`
  int64_t C, pixels;
  int64_t items;
};

template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_channels_last(const ConvLastArgs args) {
  constexpr int kTile = kConvLastTile, kLine = kConvLastLine<T>;
  auto* tile = dynamic_shared<T>();
  const int own = static_cast<int>(threadIdx.x) % kTile, first = static_cast<int>(threadIdx.x) / kTile;
  constexpr int kStep = kConvThreads / kTile;
  for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
    int64_t n = item;
    const int64_t pixel = take_last(n, (args.pixels + kTile - 1) / kTile) * kTile;
    const int64_t channel = take_last(n, (args.C + kTile - 1) / kTile) * kTile;
    const T* from = static_cast<const T*>(args.from) + n * args.n + channel * args.c + pixel;
    T* to = static_cast<T*>(args.to) + (n * args.pixels + pixel) * args.C + channel;
    const int pixels = static_cast<int>(args.pixels - pixel < kTile ? args.pixels - pixel : kTile);
    const int channels = static_cast<int>(args.C - channel < kTile ? args.C - channel : kTile);
    T elements[kTile / kStep];
#pragma unroll
    for (int i = 0; i < kTile / kStep; ++i) {
      const int c = first + i * kStep;
      if (own < pixels && c < channels) elements[i] = from[c * args.c + own];
    }
#pragma unroll
    for (int i = 0; i < kTile / kStep; ++i) {
      const int c = first + i * kStep;
      if (own < pixels && c < channels) tile[c * kLine + own] = elements[i];
    }
    sync_block();
#pragma unroll 4
    for (int i = 0; i < kTile / kStep; ++i) {
      const int x = first + i * kStep;
      if (x < pixels && own < channels) to[x * args.C + own] = tile[own * kLine + x];
    }
    sync_block();
  }
}

// ---- launchers ----

// A channels_last copy, at `to`, of planes without gaps; there may be nothing to copy.
inline View4 conv_to_channels_last(const ConvLauncher& call, const View4& view, int64_t C, int64_t H, int64_t W,
                                   void* to) {
  constexpr int64_t kTile = kConvLastTile;
  ConvLastArgs args = {view.data, to, view.n, view.c, C, H * W, 0};
  args.items = call.p.N * ceil_divide(C, kTile) * ceil_divide(H * W, kTile);
  const int64_t grid = std::min(args.items, call.limits.grid);
  with_element(call.p.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) <= 4)
      if (grid > 0)
        launch(conv_channels_last<T>, dim3(static_cast<unsigned>(grid)), dim3(kConvThreads),
               kTile * kConvLastLine<T> * sizeof(T), call.stream, args);
  });
  return channels_last_view(to, C, H, W);
}

}  // namespace
}  // namespace fastconv
