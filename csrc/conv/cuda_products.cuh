// Convolution of float32 (without TF32) and float64, and of 16-bit types where chips have no tensor cores for them, as
// a product of matrices that is never written down. A block has a tile of 128 pixels (of any images; of one residue,
// where the input is spread out) by 64 or 32 output channels of a group. It sums up over (tap, channel) in steps of 8:
// what the tile's pixels read, and the weights, go through registers into shared memory while the step before is
// multiplied; a thread has a tile of 8 or 4 pixels by 4 channels in float32, or float64 for that. Taps that none of the
// tile's pixels reads anything but padding through are left out.
//
// Few tiles would leave most of the GPU idle. Then a block has a part of the sum, in whole steps, and conv_add_outputs
// adds the parts up in their order: no atomics, and each call gives the same bits again.
//
// Where the input lies in contiguous memory neighbouring threads load neighbouring pixels, in channels_last memory
// neighbouring channels, 16 bytes at once where they can. Weights of more than one tap are brought into the order in
// which they are read first.
#pragma once
#include "conv/cuda_last.cuh"
#include "conv/cuda_tensor.cuh"
#include "conv/cuda_wgmma.cuh"

namespace fastconv {
namespace {

constexpr int kConvPad = 4;  // behind a row in shared memory, so that columns are not all in one bank

// What a block shares.
template <class T, int Columns>
struct ConvTiles : ConvPixels {
  using A = Accumulate<T>;
  static constexpr int kStep = 8;

  alignas(16) A pixels[2][kStep][kConvPixels + kConvPad];
  alignas(16) A weights[2][kStep][Columns + kConvPad];
};

// What a thread loads of one step, and where to: elements of the pixels' tile, then of the weights'.
template <class T, int Columns, bool Wide>
struct ConvLoader {
  using A = Accumulate<T>;
  using Tiles = ConvTiles<T, Columns>;
  static constexpr int kStep = Tiles::kStep;
  static constexpr int kPixelItems = kConvPixels * kStep / kConvThreads;
  static constexpr int kWeightItems = Columns * kStep / kConvThreads;
  static constexpr int kRows = kConvThreads / kStep;  // pixels, or output channels, at once where steps are neighbours

  const ConvArgs& args;
  const ConvTile& tile;
  Tiles& shared;
  A pixels[kPixelItems], weights[kWeightItems];

  __device__ __forceinline__ int pixel_step(int item, int thread) const {
    if constexpr (Wide) return thread % 2 * kPixelItems + item;
    return args.input_last ? thread % kStep : thread / 32 + 8 * (item / 4);
  }
  __device__ __forceinline__ int pixel(int item, int thread) const {
    if constexpr (Wide) return thread / 2;
    return args.input_last ? thread / kStep + kRows * item : thread % 32 + 32 * (item % 4);
  }
  __device__ __forceinline__ int weight_step(int item, int thread) const {
    return args.by_channel ? thread % kStep : thread / Columns + kConvThreads / Columns * item;
  }
  __device__ __forceinline__ int channel(int item, int thread) const {
    return args.by_channel ? thread / kStep + kRows * item : thread % Columns;
  }
  __device__ __forceinline__ ConvCursor ahead(const ConvCursor& cursor, int by) const {
    return cursor.ahead(by, static_cast<int>(args.p.C), static_cast<int>(tile.w.count));
  }

  __device__ __forceinline__ void load(const ConvCursor& cursor, int thread) {
    const ConvParams& p = args.p;
    if constexpr (Wide) {
      const T* from = conv_source<T>(args, tile, shared, ahead(cursor, pixel_step(0, thread)), pixel(0, thread));
      if (from) {
        load_wide<kPixelItems>(from, pixels);
      } else {
#pragma unroll
        for (int i = 0; i < kPixelItems; ++i) pixels[i] = 0;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPixelItems; ++i) {
        const T* from = conv_source<T>(args, tile, shared, ahead(cursor, pixel_step(i, thread)), pixel(i, thread));
        pixels[i] = from ? widen(*from) : A{0};
      }
    }
#pragma unroll
    for (int i = 0; i < kWeightItems; ++i) {
      const ConvCursor at = ahead(cursor, weight_step(i, thread));
      const int64_t k = tile.k + channel(i, thread);
      weights[i] = 0;
      if (at.r < tile.h.count && k < p.K)
        weights[i] = widen(conv_at<T>(p.weight, k, at.c, tile.h.first + at.r * args.h.period,
                                      tile.w.first + at.s * args.w.period)[tile.g * p.weight_g]);
    }
  }
  __device__ __forceinline__ void keep(int buffer, int thread) {
#pragma unroll
    for (int i = 0; i < kPixelItems; ++i) shared.pixels[buffer][pixel_step(i, thread)][pixel(i, thread)] = pixels[i];
#pragma unroll
    for (int i = 0; i < kWeightItems; ++i)
      shared.weights[buffer][weight_step(i, thread)][channel(i, thread)] = weights[i];
  }
};

// Rows of a thread's tile are together by four.
template <int Columns>
struct ConvOwn {
  static constexpr int kAcross = Columns / 4, kDown = kConvThreads / kAcross, kRows = kConvPixels / kDown;
  int down, across;

  static __device__ __forceinline__ ConvOwn of(int thread, bool channels_first) {
    if (channels_first) return {thread / kAcross, thread % kAcross};
    return {thread % kDown, thread / kDown};
  }
  __device__ __forceinline__ int row(int y) const { return y / 4 * 4 * kDown + 4 * down + y % 4; }
};

template <class T, int Columns, int Rows>
__device__ __forceinline__ void conv_multiply(const ConvTiles<T, Columns>& shared, int buffer,
                                              const ConvOwn<Columns>& own, Accumulate<T> (&sum)[Rows][4]) {
  using A = Accumulate<T>;
#pragma unroll 8
  for (int i = 0; i < ConvTiles<T, Columns>::kStep; ++i) {
    alignas(16) A a[Rows], b[4];
#pragma unroll
    for (int y = 0; y < Rows; y += 4) copy_wide<4 * sizeof(A)>(a + y, shared.pixels[buffer][i] + own.row(y));
    copy_wide<sizeof b>(b, shared.weights[buffer][i] + 4 * own.across);
#pragma unroll
    for (int y = 0; y < Rows; ++y)
#pragma unroll
      for (int x = 0; x < 4; ++x) sum[y][x] += a[y] * b[x];
  }
}

template <class T, int Columns, int Rows>
__device__ __forceinline__ void conv_store_tile(const ConvArgs& args, const ConvTile& tile,
                                                const ConvTiles<T, Columns>& shared, const ConvOwn<Columns>& own,
                                                Accumulate<T> (&sum)[Rows][4]) {
  const ConvParams& p = args.p;
  const int64_t k = tile.k + 4 * own.across, channel = tile.g * p.K + k;
#pragma unroll
  for (int y = 0; y < Rows; ++y) {
    const int64_t to = shared.to[own.row(y)] + channel * p.output.c;
    if (shared.to[own.row(y)] < 0) continue;
    if (sizeof(T) == 2 && args.parts > 1) {
#pragma unroll
      for (int x = 0; x < 4; ++x)
        if (k + x < p.K) static_cast<Accumulate<T>*>(p.output.data)[to + x * p.output.c] = sum[y][x];
      continue;
    }
    if (args.wide_output && k < p.K) {
#pragma unroll
      for (int x = 0; x < 4; ++x) sum[y][x] = conv_finish<T>(p, sum[y][x], channel + x, to + x);
      store_wide<4>(static_cast<T*>(p.output.data) + to, sum[y]);
      continue;
    }
#pragma unroll
    for (int x = 0; x < 4; ++x)
      if (k + x < p.K) conv_store<T>(p, sum[y][x], channel + x, to + x * p.output.c);
  }
}

template <class T, int Columns, bool Wide>
__global__ void __launch_bounds__(kConvThreads) conv_products(const ConvArgs args) {
  if constexpr (sizeof(T) > 2 || kNoTensorCores) {
    using A = Accumulate<T>;
    using Tiles = ConvTiles<T, Columns>;
    Tiles& shared = *dynamic_shared<Tiles>();
    const int thread = static_cast<int>(threadIdx.x);
    const auto own = ConvOwn<Columns>::of(thread, args.channels_last);
    for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
      const ConvTile tile = conv_tile(args, item, Columns);
      conv_place_pixels(args, tile, shared);
      sync_block();
      A sum[ConvOwn<Columns>::kRows][4] = {};
      const ConvSteps steps = tile.steps(args, Tiles::kStep);
      if (steps.first < steps.last) {
        ConvLoader<T, Columns, Wide> loader = {args, tile, shared, {}, {}};
        ConvCursor cursor = tile.cursor(args, steps.first * Tiles::kStep);
        loader.load(cursor, thread);
        loader.keep(0, thread);
        sync_block();
        int buffer = 0;
        for (int64_t step = steps.first; step < steps.last; ++step, buffer = 1 - buffer) {
          if (step + 1 < steps.last) {
            cursor = loader.ahead(cursor, Tiles::kStep);
            loader.load(cursor, thread);
          }
          conv_multiply(shared, buffer, own, sum);
          if (step + 1 < steps.last) loader.keep(1 - buffer, thread);
          sync_block();
        }
      }
      conv_store_tile(args, tile, shared, own, sum);
      sync_block();
    }
  }
}

// ---- launchers ----

template <class T, int Columns>
void conv_products_of(const ConvLauncher& call, const ConvArgs& args) {
  const ConvParams& p = call.p;
  auto* kernel = conv_products<T, Columns, false>;
  if constexpr (sizeof(T) <= 4)
    if (conv_wide(p.input, p.C, 4, sizeof(T))) kernel = conv_products<T, Columns, true>;
  conv_run_products<T>(call, kernel, args, Columns, sizeof(ConvTiles<T, Columns>));
}

inline void conv_products_forward(const ConvLauncher& call) {
  const ConvParams& p = call.p;
  if (conv_copies_input(p) && call.tensor_cores()) {
    ConvLauncher last = call;
    const int64_t behind = conv_behind_packed(conv_products_memory(p, call.limits)) + conv_parts_bytes(p, call.limits);
    last.p.input = conv_to_channels_last(call, p.input, p.G * p.C, p.H, p.W, static_cast<char*>(call.scratch) + behind);
    return conv_products_forward(last);
  }
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    ConvArgs args = call.args();
    args.parts = conv_sum_parts(p, call.limits);
    if constexpr (sizeof(T) == 2)
      if (conv_wgmma_serves<T>(call, args)) return conv_wgmma_forward<T>(call, args);
    if (conv_packs_taps(p) > 0) call.pack<T>(args, conv_by_wide(p));
    if constexpr (sizeof(T) <= 4)
      if (call.tensor_cores()) return conv_tensor_forward<T>(call, args);
    args.by_channel = args.p.weight.n != 1 && p.K > 1;
    args.wide_output = conv_wide(p.output, p.K, 4, sizeof(T));
    if constexpr (sizeof(T) <= 4)
      if (conv_tile_channels(p) == 64) return conv_products_of<T, 64>(call, args);
    if constexpr (sizeof(T) >= 4) conv_products_of<T, 32>(call, args);
  });
}

}  // namespace
}  // namespace fastconv
