// Convolution on tensor cores, of 16-bit types and of float32 in TF32: the products of cuda_products.cuh with the tiles
// in shared memory as they are stored, and sums in float32 that each warp has of 32 pixels by half of the block's 64 or
// 128 output channels. Steps of 64 bytes of (tap, channel) are on their way, by asynchronous copies, while two before
// them are multiplied; only what does not lie in runs of 16 bytes goes through registers. The weights have output
// channels side by side, a multiple of 16 bytes of them.
#pragma once
#include "conv/cuda_mma.cuh"
#include "conv/cuda_tiles.cuh"

namespace fastconv {
namespace {

template <class T>
constexpr int kTensorStep = 64 / static_cast<int>(sizeof(T));  // (tap, channel) in a buffer
constexpr int kTensorBuffers = 3;

// Rows are longer than what they hold, so that a warp reads them from different banks.
template <class T, int Columns>
struct ConvTensorTiles : ConvPixels {
  static constexpr int kPixelLine = kTensorStep<T> + kWide<T>, kWeightLine = Columns + 8;

  alignas(16) T pixels[kTensorBuffers][kConvPixels][kPixelLine];
  alignas(16) T weights[kTensorBuffers][kTensorStep<T>][kWeightLine];
};

// Brings one step after the other into shared memory: begin() starts, end() puts down what went through registers.
template <class T, int Columns, bool Wide>
struct ConvTensorLoader {
  static constexpr int kStep = kTensorStep<T>;
  static constexpr int kItems = kConvPixels * kStep / kConvThreads;  // elements of pixels
  static constexpr int kAcross = Columns / kWide<T>;

  static constexpr int kRows = kStep * kAcross / kConvThreads;  // of weights that a thread brings

  const ConvArgs& args;
  const ConvTile& tile;
  ConvTensorTiles<T, Columns>& shared;
  int thread;
  ConvCursor cursor, rows[kRows];  // of the step or, Wide, of the thread's piece of it; of its weights
  T pixels[Wide ? 1 : kItems];

  __device__ __forceinline__ ConvTensorLoader(const ConvArgs& args, const ConvTile& tile,
                                              ConvTensorTiles<T, Columns>& shared, int thread, const ConvCursor& first)
      : args(args), tile(tile), shared(shared), thread(thread), cursor(first) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows[i] = ahead((i * kConvThreads + thread) / kAcross);
    if (Wide) cursor = ahead(thread % 4 * kWide<T>);
  }
  __device__ __forceinline__ ConvCursor ahead(const ConvCursor& from, int by) const {
    return from.ahead(by, static_cast<int>(args.p.C), static_cast<int>(tile.w.count));
  }
  __device__ __forceinline__ ConvCursor ahead(int by) const { return ahead(cursor, by); }
  // Neighbouring threads load neighbouring channels, or neighbouring pixels, as memory has them.
  __device__ __forceinline__ int step(int item) const {
    return args.input_last ? thread % kStep : thread / 32 + 8 * (item / 4);
  }
  __device__ __forceinline__ int pixel(int item) const {
    return args.input_last ? thread / kStep + kConvThreads / kStep * item : thread % 32 + 32 * (item % 4);
  }

  __device__ __forceinline__ void begin(int buffer) {
    if constexpr (Wide) {
      const ConvReads reads = conv_reads(args, tile, cursor);
      const T* from = static_cast<const T*>(args.p.input.data) + reads.further;
#pragma unroll
      for (int down = 0; down < kConvPixels; down += kConvThreads / 4) {  // of a count that the compiler knows
        const int i = down + thread / 4;
        copy_async<16>(&shared.pixels[buffer][i][thread % 4 * kWide<T>], from + shared.from[i],
                       reads.inside(args.p, shared, i) ? 16 : 0);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const T* source = conv_source<T>(args, tile, shared, ahead(step(i)), pixel(i));
        pixels[i] = source ? *source : T{};
      }
    }
    const View4& weight = args.p.weight;
    const int64_t k = tile.k + thread % kAcross * kWide<T>;
    const T* weights =
        conv_at<T>(weight, k < args.p.K ? k : 0, 0, tile.h.first, tile.w.first) + tile.g * args.p.weight_g;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const ConvCursor& at = rows[i];
      const bool there = at.r < static_cast<int>(tile.h.count) && k < args.p.K;
      const int64_t further = at.c * weight.c + at.r * args.h.period * weight.h + at.s * args.w.period * weight.w;
      copy_async<16>(&shared.weights[buffer][(i * kConvThreads + thread) / kAcross][thread % kAcross * kWide<T>],
                     weights + (there ? further : 0), there ? 16 : 0);
    }
  }
  __device__ __forceinline__ void end(int buffer) {
    if constexpr (!Wide) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) shared.pixels[buffer][pixel(i)][step(i)] = pixels[i];
    }
    cursor = ahead(kStep);
#pragma unroll
    for (ConvCursor& row : rows) row = ahead(row, kStep);
  }
};

// Brings steps into shared memory, two ahead of the one that is multiplied: `multiply(buffer)`.
template <class Loader, class Multiply>
__device__ __forceinline__ void conv_in_steps(int64_t steps, Loader& loader, const Multiply& multiply) {
#pragma unroll
  for (int i = 0; i < kTensorBuffers - 1; ++i) {
    if (i < steps) {
      loader.begin(i);
      loader.end(i);
    }
    copy_async_commit();
  }
  int buffer = 0;
  for (int64_t step = 0; step < steps; ++step) {
    copy_async_wait<kTensorBuffers - 2>();
    sync_block();
    const bool more = step + kTensorBuffers - 1 < steps;
    const int next = buffer == 0 ? kTensorBuffers - 1 : buffer - 1;  // was multiplied in the step before
    if (more) loader.begin(next);
    copy_async_commit();
    sync_warp();  // a warp multiplies together, whatever ways its lanes went while they loaded
    multiply(buffer);
    if (more) loader.end(next);
    buffer = buffer == kTensorBuffers - 1 ? 0 : buffer + 1;
  }
  copy_async_wait<0>();
}

// Where a warp's part of the tile begins, and a lane's part of a product of 16 by 8.
template <int Columns>
struct ConvWarp {
  static constexpr int kProducts = Columns / 16;  // of 8 channels
  int row, column, lane;

  static __device__ __forceinline__ ConvWarp of(int thread) {
    return {thread / kWarpSize % 4 * 32, thread / kWarpSize / 4 * (Columns / 2), thread % kWarpSize};
  }
};

template <class T, int Columns>
__device__ __forceinline__ void conv_tensor_multiply(const ConvTensorTiles<T, Columns>& shared, int buffer,
                                                     const ConvWarp<Columns>& warp,
                                                     float (&sum)[2][ConvWarp<Columns>::kProducts][4]) {
  using Tiles = ConvTensorTiles<T, Columns>;
#pragma unroll
  for (int i = 0; i < kTensorStep<T>; i += kTensorDepth<T>) {
    uint32_t a[2][4];
#pragma unroll
    for (int y = 0; y < 2; ++y)
      conv_load_rows(a[y], &shared.pixels[buffer][warp.row + 16 * y][i], Tiles::kPixelLine, warp.lane);
#pragma unroll
    for (int x = 0; x < ConvWarp<Columns>::kProducts; x += 2) {
      uint32_t b[2][2];
      conv_load_columns(b, &shared.weights[buffer][i][warp.column + 8 * x], Tiles::kWeightLine, warp.lane);
#pragma unroll
      for (int y = 0; y < 2; ++y) {
        conv_mma<T>(sum[y][x], a[y], b[0]);
        conv_mma<T>(sum[y][x + 1], a[y], b[1]);
      }
    }
  }
}

template <class T, int Columns>
__device__ __forceinline__ void conv_tensor_store(const ConvArgs& args, const ConvTile& tile,
                                                  ConvTensorTiles<T, Columns>& shared, const ConvWarp<Columns>& warp,
                                                  const float (&sum)[2][ConvWarp<Columns>::kProducts][4]) {
  constexpr int kTurn = kConvSlab, kLine = kConvTurnLine;
  static_assert(kConvPixels * kLine * sizeof(float) <= sizeof shared.pixels + sizeof shared.weights, "no space");
  const ConvParams& p = args.p;
  float* stage = reinterpret_cast<float*>(shared.pixels);
  for (int turn = 0; turn < Columns; turn += kTurn) {
    if (turn > 0) sync_block();
    const int column = warp.column - turn + warp.lane % 4 * 2;
    if (column >= 0 && column < kTurn) {
#pragma unroll
      for (int y = 0; y < 4; ++y) {
        float* to = stage + (warp.row + 8 * y + warp.lane / 4) * kLine + column;
#pragma unroll
        for (int x = 0; x < ConvWarp<Columns>::kProducts; ++x) {
          to[8 * x] = sum[y / 2][x][y % 2 * 2];
          to[8 * x + 1] = sum[y / 2][x][y % 2 * 2 + 1];
        }
      }
    }
    sync_block();
    conv_store_turn<T>(args, shared.to, stage, tile.g * p.K + tile.k + turn, p.K - tile.k - turn);
  }
}

template <class T, int Columns, bool Wide>
__global__ void __launch_bounds__(kConvThreads, Wide ? 2 : 1) conv_tensor_products(const ConvArgs args) {
  if constexpr (kTensorCores) {
    using Tiles = ConvTensorTiles<T, Columns>;
    Tiles& shared = *dynamic_shared<Tiles>();
    const int thread = static_cast<int>(threadIdx.x);
    const auto warp = ConvWarp<Columns>::of(thread);
    for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
      const ConvTile tile = conv_tile(args, item, Columns);
      conv_place_pixels(args, tile, shared);
      sync_block();
      float sum[2][ConvWarp<Columns>::kProducts][4] = {};
      const ConvSteps own = tile.steps(args, kTensorStep<T>);
      const int64_t steps = own.last - own.first;
      ConvTensorLoader<T, Columns, Wide> loader(args, tile, shared, thread,
                                                tile.cursor(args, own.first * kTensorStep<T>));
      conv_in_steps(steps, loader, [&](int buffer) { conv_tensor_multiply(shared, buffer, warp, sum); });
      sync_block();
      conv_tensor_store(args, tile, shared, warp, sum);
      sync_block();
    }
  }
}

// ---- launchers ----

template <class T, int Columns>
void conv_tensor_of(const ConvLauncher& call, const ConvArgs& args) {
  const bool wide = conv_wide(call.p.input, call.p.C, kWide<T>, sizeof(T));
  conv_run_products<T>(call, wide ? conv_tensor_products<T, Columns, true> : conv_tensor_products<T, Columns, false>,
                       args, Columns, sizeof(ConvTensorTiles<T, Columns>));
}

// The weights are in order already.
template <class T>
void conv_tensor_forward(const ConvLauncher& call, ConvArgs args) {
  const ConvParams& p = call.p;
  args.wide_output = conv_wide(p.output, p.K, kWide<T>, sizeof(T));
  if (conv_larger_tiles(call, args)) return conv_tensor_of<T, 128>(call, args);
  conv_tensor_of<T, 64>(call, args);
}

}  // namespace
}  // namespace fastconv
