// Convolution of 16-bit types on the tensor cores of compute capability 9.0, which give all they have to `wgmma` alone:
// the products of cuda_products.cuh, in tiles of 128 pixels by 128 output channels whose halves, of 64 pixels, belong
// to a warpgroup each. Both factors are read from shared memory, in rows of 64 terms of (tap, channel) that
// asynchronous copies bring, 16 bytes at once: input channels lie side by side, those of a pixel and those of the
// weights, and 8 of them belong to one tap. While a step is multiplied the next has arrived and the one behind it is
// started; two blocks have room beside each other, so one works while the other stores.
#pragma once
#include "conv/cuda_tiles.cuh"

namespace fastconv {
namespace {

constexpr int kWgmmaColumns = 128;
constexpr int kWgmmaStep = 64;  // terms in a buffer: rows of 128 bytes
constexpr int kWgmmaBuffers = 3;
constexpr int kWgmmaPieces = kWgmmaStep / 8;                             // of 16 bytes, in a row
constexpr int kWgmmaRows = kConvThreads / kWgmmaPieces;                  // that the block's threads bring at once
constexpr int kWgmmaWarpgroup = 4 * kWarpSize;                           // threads
constexpr int kWgmmaOwn = kConvPixels * kWgmmaWarpgroup / kConvThreads;  // rows of a warpgroup

// Rows as wgmma_matrix() says.
template <class T>
struct ConvWgmmaTiles : ConvPixels {
  alignas(1024) T pixels[kWgmmaBuffers][kConvPixels][kWgmmaStep];
  alignas(1024) T weights[kWgmmaBuffers][kWgmmaColumns][kWgmmaStep];
};

// Starts one step after the other. A thread brings the same piece of every row that is its own, so it has one place in
// the sum; and of these rows, as they are a multiple of 8 apart, the piece stands at the same place. A step takes the
// tensor cores some 500 cycles, in which all threads have to come by here: what can be done before or in 32 bits is.
template <class T>
struct ConvWgmmaLoader {
  const ConvArgs& args;
  const ConvTile& tile;
  ConvWgmmaTiles<T>& shared;
  int row, place;
  int channels;      // output channels from that of the first row on
  const T* weights;  // of the first tap, and the first row's output channel
  ConvCursor cursor;

  __device__ __forceinline__ ConvWgmmaLoader(const ConvArgs& args, const ConvTile& tile, ConvWgmmaTiles<T>& shared,
                                             int thread)
      : args(args),
        tile(tile),
        shared(shared),
        row(thread / kWgmmaPieces),
        channels(static_cast<int>(args.p.K - tile.k) - row),
        weights(conv_at<T>(args.p.weight, tile.k + row, 0, tile.h.first, tile.w.first) + tile.g * args.p.weight_g),
        cursor{0, 0, 0} {
    const int piece = thread % kWgmmaPieces;
    place = (piece ^ row % 8) * 8;
    go(8 * piece);
  }
  __device__ __forceinline__ void go(int by) {
    cursor = cursor.ahead(by, static_cast<int>(args.p.C), static_cast<int>(tile.w.count));
  }

  __device__ __forceinline__ void begin(int buffer) {
    const ConvParams& p = args.p;
    const ConvReads reads = conv_reads(args, tile, cursor);
    const T* pixels = static_cast<const T*>(p.input.data) + reads.further;
#pragma unroll
    for (int i = 0; i < kConvPixels; i += kWgmmaRows)
      copy_async<16>(&shared.pixels[buffer][row + i][place], pixels + shared.from[row + i],
                     reads.inside(p, shared, row + i) ? 16 : 0);
    const int64_t r = cursor.r * args.h.period, s = cursor.s * args.w.period;
    const T* tap = reads.there ? weights + r * p.weight.h + s * p.weight.w + cursor.c : weights;  // a multiple of 16
#pragma unroll
    for (int i = 0; i < kWgmmaColumns; i += kWgmmaRows) {
      const bool inside = reads.there & (i < channels);
      copy_async<16>(&shared.weights[buffer][row + i][place], tap + i * p.weight.n, inside ? 16 : 0);
    }
    go(kWgmmaStep);
  }
};

// All channels at once: the buffers are larger than that.
template <class T>
__device__ __forceinline__ void conv_wgmma_store(const ConvArgs& args, const ConvTile& tile, ConvWgmmaTiles<T>& shared,
                                                 int thread, const float (&sum)[64]) {
  constexpr int kLine = kWgmmaColumns + 1;
  static_assert(kConvPixels * kLine * sizeof(float) <= sizeof shared.pixels + sizeof shared.weights, "no space");
  const ConvParams& p = args.p;
  float* stage = reinterpret_cast<float*>(shared.pixels);
  const int lane = thread % kWarpSize;
  float* to = stage + (thread / kWarpSize * 16 + lane / 4) * kLine + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 64; ++i) to[i / 2 % 2 * 8 * kLine + i / 4 * 8 + i % 2] = sum[i];
  sync_block();
  for (int turn = 0; turn < kWgmmaColumns; turn += kConvSlab)
    conv_store_turn<T, kLine>(args, shared.to, stage + turn, tile.g * p.K + tile.k + turn, p.K - tile.k - turn);
}

template <class T>
__global__ void __launch_bounds__(kConvThreads, 2) conv_wgmma_products(const ConvArgs args) {
  if constexpr (kWarpgroups) {
    auto& shared = *dynamic_shared_aligned<ConvWgmmaTiles<T>>();
    constexpr int kPixels = sizeof shared.pixels[0] / 16, kWeights = sizeof shared.weights[0] / 16;
    const int thread = static_cast<int>(threadIdx.x);
    const uint64_t pixels = wgmma_matrix(shared.pixels[0][thread / kWgmmaWarpgroup * kWgmmaOwn]);
    const uint64_t weights = wgmma_matrix(shared.weights[0]);
    for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
      const ConvTile tile = conv_tile(args, item, kWgmmaColumns);
      conv_place_pixels(args, tile, shared);
      sync_block();
      float sum[64] = {};
      const int steps = static_cast<int>(tile.steps(args, kWgmmaStep).last);
      ConvWgmmaLoader<T> loader(args, tile, shared, thread);
#pragma unroll
      for (int i = 0; i < kWgmmaBuffers - 1; ++i) {
        if (i < steps) loader.begin(i);
        copy_async_commit();
      }
      int buffer = 0;
      for (int step = 0; step < steps; ++step) {
        copy_async_wait<kWgmmaBuffers - 2>();
        fence_async_shared();
        sync_block();
        sync_warp();  // a warp multiplies together, whatever ways its lanes went while they loaded
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kWgmmaStep / 16; ++i)
          wgmma_m64n128k16(sum, pixels + buffer * kPixels + 2 * i, weights + buffer * kWeights + 2 * i, T{});
        wgmma_commit();
        wgmma_wait<1>();  // and once no warpgroup reads what was multiplied in the step before, that is overwritten
        sync_block();
        if (step + kWgmmaBuffers - 1 < steps) loader.begin(buffer == 0 ? kWgmmaBuffers - 1 : buffer - 1);
        copy_async_commit();
        buffer = buffer == kWgmmaBuffers - 1 ? 0 : buffer + 1;
      }
      sync_warp();
      wgmma_wait<0>();
      sync_block();
      conv_wgmma_store(args, tile, shared, thread, sum);
      sync_block();
    }
  }
}

// ---- launchers ----

// Of a sum in one part.
template <class T>
bool conv_wgmma_serves(const ConvLauncher& call, const ConvArgs& args) {
  const ConvParams& p = call.p;
  return conv_for_warpgroups(p) && conv_wide(p.input, p.C, kWide<T>, sizeof(T)) && call.warpgroups() &&
         conv_larger_tiles(call, args);
}

template <class T>
void conv_wgmma_forward(const ConvLauncher& call, ConvArgs args) {
  const ConvParams& p = call.p;
  if (conv_packs_rows(p) > 0) call.pack_rows<T>(args);
  args.wide_output = conv_wide(p.output, p.K, kWide<T>, sizeof(T));
  conv_run_products<T>(call, conv_wgmma_products<T>, args, kWgmmaColumns,
                       sizeof(ConvWgmmaTiles<T>) + alignof(ConvWgmmaTiles<T>));
}

}  // namespace
}  // namespace fastconv
