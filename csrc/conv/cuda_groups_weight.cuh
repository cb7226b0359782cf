// The gradient of the weights where channels of a group are few, on tensor cores: the products of cuda_groups.cuh
// turned over. A block has 64 output channels, a part of the tiles of pixels, and brings of each tile what it reads of
// the input and the gradient of its outputs into shared memory once. Sixteen rows of a product are two pieces of 8
// channels (four of 4 in TF32), of one tap or of several, its eight columns are output channels, its terms pixels. A
// warp keeps its sums, of up to five such products for each of Share times eight output channels, in registers over all
// tiles; warps that have the same output channels have different pieces. Kernels of many taps take several blocks, each
// for its part of the pieces. Sums of an input channel with another group's output channel are left where they are.
#pragma once
#include "conv/cuda_groups.cuh"
#include "conv/cuda_weight_tensor.cuh"

namespace fastconv {
namespace {

// Products whose sums a warp has of eight output channels: with more, fewer blocks are resident, and nobody multiplies
// while a block loads.
constexpr int kConvGroupSums = 5;

// [16, depth] of the input turned round: rows are channels of two or four pieces, terms are pixels. `from`: where the
// lane's pixels read, `piece`: how much further its pieces lie; negative where there are none.
__device__ __forceinline__ const void* conv_group_row(const void* input, const void* zeros, int from, int piece,
                                                      int element) {
  return (from | piece) < 0 ? zeros : static_cast<const unsigned char*>(input) + (from + piece) * element;
}

template <class T>
struct ConvGroupRows {
  static constexpr int kPieces = 16 / kWide<T>;        // of a product
  static constexpr int kOwn = sizeof(T) == 2 ? 1 : 2;  // that a lane reads
  static constexpr int kPixels = 2 * kTensorDepth<T>;  // of two products, one after the other
  int piece[kOwn];

  // Those of product `product`: pieces from `kPieces * product` on, of `all`.
  __device__ __forceinline__ void place(const ConvArgs& args, int product, int all, int lane) {
    const int each = args.group.window.pieces, S = static_cast<int>(args.p.S);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = product * kPieces + (sizeof(T) == 2 ? lane / 8 % 2 : lane / 16 + 2 * i);
      const int tap = at / each, r = tap / S;
      piece[i] = at < all ? conv_group_further(args, r, tap - r * S) + (at - tap * each) * kWide<T> : -1;
    }
  }
  // `from`: of the pixels of a product.
  __device__ __forceinline__ void load(uint32_t (&a)[4], const T* input, const int* from, const void* zeros,
                                       int lane) const {
    if constexpr (sizeof(T) == 2) {
      load_matrices<true>(a, conv_group_row(input, zeros, from[lane / 16 * 8 + lane % 8], piece[0], sizeof(T)));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const void* row = conv_group_row(input, zeros, from[lane % 4 + i / 2 * 4], piece[i % 2], sizeof(T));
        a[i] = to_tf32(static_cast<const float*>(row)[lane / 4 % 4]);
      }
    }
  }
};

// [depth, 8] twice, the second of the next pixels.
template <class T>
__device__ __forceinline__ void conv_group_grads(uint32_t (&b)[2][2], const T* grads, int lane) {
  if constexpr (sizeof(T) == 2) {
    uint32_t both[4];
    load_matrices<true>(both, grads + lane * kConvGradLine);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = both[i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = to_tf32(grads[(lane % 4 + i * 4) * kConvGradLine + lane / 4]);
  }
}

// The gradient of a tile's outputs, [pixel][kConvGradLine], zeros where there is no output.
template <class T>
__device__ __forceinline__ void conv_group_load_grads(const ConvArgs& args, const int64_t* to, int pixels,
                                                      int64_t channel, T* grads) {
  constexpr int V = kWide<T>, E = kPair<T>;
  const ConvParams& p = args.p;
  const T* from = static_cast<const T*>(p.output.data) + channel * p.output.c;
  const int64_t channels = p.G * p.K - channel;
  const int thread = static_cast<int>(threadIdx.x);
  if (args.wide_output) {
    for (int e = thread; e < pixels * kConvSlab / V; e += kConvThreads) {
      const int pixel = e / (kConvSlab / V), x = e % (kConvSlab / V) * V;
      const bool there = to[pixel] >= 0 && x < channels;
      copy_async<16>(grads + pixel * kConvGradLine + x, there ? from + to[pixel] + x : p.output.data, there ? 16 : 0);
    }
    return;
  }
  conv_group_copy<T>(
      thread, pixels * kConvSlab / E, kConvThreads,
      [&](int e, T(&elements)[E]) {
        const int pixel = e % pixels, x = e / pixels * E;
        if (to[pixel] < 0) return;
#pragma unroll
        for (int v = 0; v < E; ++v)
          if (x + v < channels) elements[v] = from[to[pixel] + (x + v) * p.output.c];
      },
      [&](int e) { return grads + e % pixels * kConvGradLine + e / pixels * E; });
}

// Brings a tile, of tiles and slabs, into shared memory: what its outputs read of the input through the taps from
// (down, right) of it on, and their gradient. Where there is no output its pixel reads from nowhere: what is infinite
// there would spoil the sums.
template <class T>
__device__ __forceinline__ ConvGroupPlace conv_group_bring(const ConvArgs& args, int64_t item, int down, int right,
                                                           ConvGroupShared& shared, T* input, T* grads) {
  const ConvParams& p = args.p;
  const ConvGroupTile& t = args.group;
  const ConvGroupPlace at = conv_group_place(args, item);
  conv_group_pixels(args, at, shared);
  sync_block();
  conv_group_load<T>(args, at.n, at.row * static_cast<int>(p.stride_h) + down,
                     at.column * static_cast<int>(p.stride_w) + right, t.halo_rows, t.halo_columns,
                     t.window.first(at.slab * (kConvSlab / kConvEight)), input);
  conv_group_load_grads<T>(args, shared.to, t.pixels(), at.slab * kConvSlab, grads);
  copy_async_commit();
  for (int e = static_cast<int>(threadIdx.x); e < kConvPixels; e += kConvThreads)
    if (shared.to[e] < 0) shared.from[e] = -1;
  copy_async_wait<0>();
  sync_block();
  return at;
}

template <class T, int Share>
__global__ void __launch_bounds__(kConvThreads, Share == 4 ? 1 : 2) conv_group_weights(const ConvArgs args) {
  if constexpr (kTensorCores) {
    using Rows = ConvGroupRows<T>;
    constexpr int kSums = kConvGroupSums, kAcross = kConvSlab / kConvEight / Share;
    const ConvParams& p = args.p;
    const ConvGroupTile& t = args.group;
    const ConvWindow& window = t.window;
    auto* memory = dynamic_shared<unsigned char>();
    auto& shared = *reinterpret_cast<ConvGroupShared*>(memory);
    T* input = reinterpret_cast<T*>(memory + args.input_at);
    T* grads = input + t.halo_rows * t.halo_columns * t.line;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
    const int taps = static_cast<int>(p.R * p.S), pieces = taps * window.pieces;
    const int eights = static_cast<int>(p.G * p.K) / kConvEight;
    const int products = (pieces + Rows::kPieces - 1) / Rows::kPieces;
    for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
      int64_t part = item;
      const int slab = static_cast<int>(take_last(part, t.slabs)),
                pass = static_cast<int>(take_last(part, args.passes));
      const int eight = slab * (kConvSlab / kConvEight) + warp % kAcross * Share;
      // Products are divided among the passes, and those of a pass among the warps of the same channels.
      const int mine = pass * Share + warp / kAcross, all = static_cast<int>(args.passes) * Share;
      const int first = products * mine / all, last = products * (mine + 1) / all;
      const int slab_piece = window.first(slab * (kConvSlab / kConvEight));
      const T* own = input;
      if (eight < eights) own += (window.first(eight) - slab_piece) * kWide<T>;
      Rows rows[kSums];
#pragma unroll
      for (int i = 0; i < kSums; ++i) rows[i].place(args, first + i, pieces, lane);
      float sum[kSums][Share][4] = {};
      const int64_t end = quotient(args.tiles * (part + 1), args.parts);
      for (int64_t tile = quotient(args.tiles * part, args.parts); tile < end; ++tile) {
        conv_group_bring(args, tile * t.slabs + slab, -static_cast<int>(p.pad_h), -static_cast<int>(p.pad_w), shared,
                         input, grads);
        if (eight < eights) {
          for (int pixel = 0; pixel < t.pixels(); pixel += Rows::kPixels) {
            uint32_t b[Share][2][2];
#pragma unroll
            for (int x = 0; x < Share; ++x)
              conv_group_grads(b[x], grads + pixel * kConvGradLine + (warp % kAcross * Share + x) * kConvEight, lane);
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
              for (int i = 0; i < kSums; ++i) {
                if (first + i >= last) continue;
                uint32_t a[4];
                rows[i].load(a, own, shared.from + pixel + half * kTensorDepth<T>, shared.zeros, lane);
#pragma unroll
                for (int x = 0; x < Share; ++x) conv_mma<T>(sum[i][x], a, b[x][half]);
              }
          }
        }
        sync_block();
      }
      if (eight >= eights) continue;
      const int C = window.C, K = window.K;
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        if (first + i >= last) continue;
#pragma unroll
        for (int down = 0; down < 2; ++down) {
          const int row = lane / 4 + 8 * down, at = (first + i) * Rows::kPieces + row / kWide<T>;
          const int tap = at / window.pieces;
          if (tap >= taps) continue;
          // All of them read the same pieces.
          const int channel = (window.first(eight) + at - tap * window.pieces) * kWide<T> + row % kWide<T>;
          const int g = channel / C, c = channel - g * C;
#pragma unroll
          for (int x = 0; x < Share; ++x)
#pragma unroll
            for (int right = 0; right < 2; ++right) {
              const int k = (eight + x) * kConvEight + lane % 4 * 2 + right;
              if (eight + x < eights && k / K == g)
                conv_put<T>(args, part, (int64_t{k} * C + c) * taps + tap, sum[i][x][2 * down + right]);
            }
        }
      }
    }
  }
}

// ---- launchers ----

// Into how many blocks the products of one slab are divided, so that sums fit into registers.
inline int64_t conv_group_passes(const ConvParams& p, const ConvGroupTile& t) {
  const int64_t pieces = 16 / t.window.wide, products = ceil_divide(p.R * p.S * t.window.pieces, pieces);
  return ceil_divide(products, t.share * kConvGroupSums);
}
inline int64_t conv_group_blocks(const ConvParams& p, const ConvGroupTile& t) {
  return conv_group_passes(p, t) * t.slabs;
}

// A part has two tiles at least: its sums are as large as one.
inline int64_t conv_tiles_of_part(const ConvLimits& limits) { return limits.part < 2 * kConvPixels ? 1 : 2; }
inline int64_t conv_group_parts(const ConvParams& p, const ConvGroupTile& t, int64_t blocks, const ConvLimits& limits) {
  const int64_t tiles = p.N * t.down * t.across;
  return conv_parts(p, blocks, tiles / conv_tiles_of_part(limits), limits);
}

// Chips without tensor cores for these types have other kernels, with sums of their own.
inline int64_t conv_group_scratch(const ConvParams& p, const ConvLimits& limits) {
  const ConvGroupTile t = conv_groups_pay(p, true);
  const int64_t without = conv_fills_tiles(p) && conv_countable_pixels(p) ? conv_weight_parts_bytes(p, limits)
                                                                          : conv_pairs_scratch(p, limits);
  return std::max(conv_sums_bytes(p, conv_group_parts(p, t, conv_group_blocks(p, t), limits)), without);
}
inline void conv_group_grad_weight(const ConvLauncher& call) {
  const ConvParams& p = call.p;
  if (!call.tensor_cores()) return conv_fills_tiles(p) ? conv_products_grad_weight(call) : conv_pairs_grad_weight(call);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) <= 4) {
      const ConvGroupTile t = conv_groups_pay(p, true);
      ConvArgs args = conv_group_args<T>(call, t, true);
      args.passes = conv_group_passes(p, t);
      auto* kernel = conv_group_weights<T, 1>;
      if (t.share == 2) kernel = conv_group_weights<T, 2>;
      if (t.share == 4) kernel = conv_group_weights<T, 4>;
      const int64_t blocks = conv_group_blocks(p, t);
      args.parts = conv_group_parts(p, t, blocks, call.limits);
      conv_in_parts<T>(call, kernel, args, blocks, t.bytes(p, true));
    }
  });
}

}  // namespace
}  // namespace fastconv
