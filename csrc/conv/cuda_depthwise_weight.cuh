// The gradient of depthwise weights where a kernel has more taps than conv_weight_pairs (cuda_weight.cuh) sums up in
// one pass: 5x5, 7x7, large ones, and long ones of one dimension. A block has 64 channels, up to 8 rows by 3, 5 or 7
// columns of taps, and a part of the tiles of pixels. What a tile reads of the input, and the gradient of its outputs,
// come into shared memory once, as cuda_groups.cuh brings them. A lane has two channels; a warp goes along pieces of
// rows of 16 outputs, keeps the columns of the input that its taps read in registers, and so loads two numbers for 3, 5
// or 7 multiply-adds of each channel; its sums, of 4 rows of taps, stay in registers over all tiles.
#pragma once
#include "conv/cuda_groups_weight.cuh"

namespace fastconv {
namespace {

constexpr int kConvTapRows = 4;  // of a warp
constexpr int kConvRun = 16;     // outputs of a row, one after the other

// Adds what one row of taps has of a run of `count` outputs. `x`: what the first output reads through the row's first
// tap; `line` elements from a pixel to the next.
template <class T, int Columns>
__device__ __forceinline__ void conv_run_taps(const T* x, int line, const T* grad, int count,
                                              float (&sum)[Columns][2]) {
  float window[Columns][2];  // column s of the input is in s % Columns
#pragma unroll
  for (int s = 0; s < Columns - 1; ++s) load_wide<2>(x + s * line, window[s]);
  for (int q = 0; q < count; q += Columns) {
#pragma unroll
    for (int i = 0; i < Columns; ++i) {
      if (q + i >= count) break;
      float g[2];
      load_wide<2>(grad + (q + i) * kConvGradLine, g);
      load_wide<2>(x + (q + i + Columns - 1) * line, window[(i + Columns - 1) % Columns]);
#pragma unroll
      for (int s = 0; s < Columns; ++s)
#pragma unroll
        for (int v = 0; v < 2; ++v) sum[s][v] += g[v] * window[(i + s) % Columns][v];
    }
  }
}

template <class T, int Columns>
__global__ void __launch_bounds__(kConvThreads, 2) conv_depthwise_weights(const ConvArgs args) {
  if constexpr (kTensorCores) {  // the chips that have them are those that have asynchronous copies
    constexpr int kWarps = kConvThreads / kWarpSize;
    const ConvParams& p = args.p;
    const ConvGroupTile& t = args.group;
    auto* memory = dynamic_shared<unsigned char>();
    auto& shared = *reinterpret_cast<ConvGroupShared*>(memory);
    T* input = reinterpret_cast<T*>(memory + args.input_at);
    T* grads = input + t.halo_rows * t.halo_columns * t.line;
    auto* stage = reinterpret_cast<float*>(memory + args.input_at);  // [warp][column of taps][channel], at the end
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
    const int taps_h = static_cast<int>(p.R), taps_w = static_cast<int>(p.S), step_h = static_cast<int>(p.dilation_h);
    // Warps are divided between two groups of rows of taps, where there are as many.
    const int groups = args.tap_rows / kConvTapRows, workers = kWarps / groups, worker = warp % workers;
    const bool here = 2 * lane < t.slab * kWide<T>;  // fewer than 64 channels may be all there are
    const int runs = t.columns / kConvRun, all_runs = t.rows * runs;
    for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
      int64_t part = item;
      const int slab = static_cast<int>(take_last(part, t.slabs));
      const int s0 = static_cast<int>(take_last(part, (taps_w + Columns - 1) / Columns)) * Columns;
      const int r0 = static_cast<int>(take_last(part, (taps_h + args.tap_rows - 1) / args.tap_rows)) * args.tap_rows;
      const int own_r = r0 + warp / workers * kConvTapRows;
      float sum[kConvTapRows][Columns][2] = {};
      const int64_t end = quotient(args.tiles * (part + 1), args.parts);
      for (int64_t tile = quotient(args.tiles * part, args.parts); tile < end; ++tile) {
        const ConvGroupPlace at = conv_group_bring(args, tile * t.slabs + slab, r0 * step_h - static_cast<int>(p.pad_h),
                                                   s0 - static_cast<int>(p.pad_w), shared, input, grads);
        for (int run = here ? worker : all_runs; run < all_runs; run += workers) {
          const int row = run / runs, column = run % runs * kConvRun;
          const int left = at.columns - column, count = left < kConvRun ? left : kConvRun;
          if (row >= at.rows || count <= 0) continue;
          const T* grad = grads + (row * t.columns + column) * kConvGradLine + 2 * lane;
#pragma unroll
          for (int r = 0; r < kConvTapRows; ++r) {
            if (own_r + r >= taps_h) break;
            const int from = row * static_cast<int>(p.stride_h) + (own_r - r0 + r) * step_h;
            conv_run_taps<T, Columns>(input + (from * t.halo_columns + column) * t.line + 2 * lane, t.line, grad, count,
                                      sum[r]);
          }
        }
        sync_block();
      }
#pragma unroll
      for (int r = 0; r < kConvTapRows; ++r) {
#pragma unroll
        for (int s = 0; s < Columns; ++s)
#pragma unroll
          for (int v = 0; v < 2; ++v) stage[(warp * Columns + s) * kConvSlab + 2 * lane + v] = sum[r][s][v];
        sync_block();
        for (int e = thread; e < groups * Columns * kConvSlab; e += kConvThreads) {
          const int group = e / (Columns * kConvSlab), s = e / kConvSlab % Columns,
                    channel = slab * kConvSlab + e % kConvSlab;
          const int row = r0 + group * kConvTapRows + r;
          if (row >= taps_h || s0 + s >= taps_w || channel >= p.G) continue;
          float total = 0;
          for (int i = 0; i < workers; ++i)
            total += stage[i * Columns * kConvSlab + group * workers * Columns * kConvSlab + e % (Columns * kConvSlab)];
          conv_put<T>(args, part, int64_t{channel} * (taps_h * taps_w) + row * taps_w + s0 + s, total);
        }
        sync_block();
      }
    }
  }
}

// ---- launchers ----

// How a block divides the taps, and its tile for them; it fits where the kernel serves.
struct ConvTapTile {
  int rows, columns;  // of taps
  ConvGroupTile tile;
  int64_t shared;

  int64_t blocks(const ConvParams& p) const { return ceil_divide(p.R, rows) * ceil_divide(p.S, columns) * tile.slabs; }
};
inline ConvTapTile conv_tap_tile(const ConvParams& p) {
  ConvTapTile t = {};
  if (!conv_depthwise(p) || p.dtype == Dtype::kFloat64 || p.stride_w != 1 || p.dilation_w != 1 ||
      !conv_small_sizes(p) || p.R * p.S <= kConvTaps)
    return t;
  t.rows = p.R <= kConvTapRows ? kConvTapRows : 2 * kConvTapRows;
  t.columns = p.S <= 3 ? 3 : p.S <= 5 ? 5 : 7;
  ConvParams block = p;  // with a block's taps
  block.R = t.rows;
  block.S = t.columns;
  t.tile = conv_group_tile(block, true, kConvRun);
  t.tile.fits = conv_tiles_filled(t.tile);
  const int64_t sums = int64_t{kConvThreads} / kWarpSize * t.columns * kConvSlab * 4;
  t.shared = std::max(t.tile.bytes(p, true), t.tile.input_at(true) + sums);
  return t;
}

inline int64_t conv_depthwise_scratch(const ConvParams& p, const ConvLimits& limits) {
  const int64_t pairs = conv_pairs_scratch(p, limits);
  const ConvTapTile t = conv_tap_tile(p);
  return t.tile.fits ? std::max(pairs, conv_sums_bytes(p, conv_group_parts(p, t.tile, t.blocks(p), limits))) : pairs;
}
inline void conv_depthwise_grad_weight(const ConvLauncher& call) {
  const ConvTapTile t = conv_tap_tile(call.p);
  if (!t.tile.fits || !call.from_80()) return conv_pairs_grad_weight(call);
  with_element(call.p.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) <= 4) {
      ConvArgs args = conv_group_args<T>(call, t.tile, true);
      args.tap_rows = t.rows;
      args.parts = conv_group_parts(call.p, t.tile, t.blocks(call.p), call.limits);
      auto* kernel = conv_depthwise_weights<T, 3>;
      if (t.columns == 5) kernel = conv_depthwise_weights<T, 5>;
      if (t.columns == 7) kernel = conv_depthwise_weights<T, 7>;
      conv_in_parts<T>(call, kernel, args, t.blocks(call.p), t.shared);
    }
  });
}

}  // namespace
}  // namespace fastconv
