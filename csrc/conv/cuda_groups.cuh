// Convolution with few channels a group on tensor cores, of 16-bit types and of float32 in TF32: several groups at
// once, as cuda_groups_plan.h packs them. A block has a tile of up to 128 outputs (of one image and residue, a
// rectangle) by 64 output channels. What these read of the input comes into shared memory once, whatever the number of
// taps, pixel by pixel; a tap is then a distance in shared memory, and a piece of 16 bytes of a pixel what `ldmatrix`
// calls a row. So a product's terms are any two pieces, of one tap or of two, and a layer moves hardly more bytes than
// it has: memory bounds these layers, at 4 to 32 channels a group.
//
// A warp has 8, 16 or 32 output channels that read the same pieces (`Share` times eight) and all of the tile's pixels,
// a half or a quarter. Weights come in the order of the warp's registers: conv_group_pack.
//
// Zeros stand for the weights of other groups' channels. What is infinite or NaN there would spoil the sums, so a lane
// whose sums are not finite adds up its own groups' products again, one by one.
#pragma once
#include "conv/cuda_mma.cuh"
#include "conv/cuda_tiles.cuh"
#include "core/divisor.h"

namespace fastconv {
namespace {

template <class T>
constexpr int kPair = 4 / static_cast<int>(sizeof(T));  // elements of a register

// Where a piece lies: elements beyond what a pixel reads through no distance, and in the packed weights; beyond the
// last one negative, where zeros are.
struct ConvPiece {
  int from, weight;
};

// The taps of a tile that read more than padding: `count`, the first of them `first`, at `at` from a pixel's own place.
struct ConvGroupTaps {
  int first_h, at_h, count_h, first_w, at_w, count_w;

  __device__ __forceinline__ int pieces(const ConvWindow& window) const { return count_h * count_w * window.pieces; }
};

// What a block has in shared memory; the input behind it is [halo_rows][halo_columns][line].
struct ConvGroupShared {
  int64_t to[kConvPixels];  // where a pixel's output is, without the channel; none: negative
  int from[kConvPixels];    // and where in shared memory its first tap reads
  alignas(16) unsigned char zeros[16];
  ConvGroupTaps taps;
};
static_assert(sizeof(ConvGroupShared) == kConvGroupHead, "as the plan counts");

// A block's tile: output channels from 64 * slab on, outputs of one residue from (row, column) on, and how many.
struct ConvGroupPlace {
  int slab, n, residue_h, residue_w, row, column, rows, columns;
};

__device__ __forceinline__ ConvGroupPlace conv_group_place(const ConvArgs& args, int64_t item) {
  const ConvGroupTile& t = args.group;
  ConvGroupPlace at;
  uint32_t rest = static_cast<uint32_t>(item);
  at.slab = args.by.slabs.take_last(rest);
  at.column = args.by.across.take_last(rest) * t.columns;
  at.row = args.by.down.take_last(rest) * t.rows;
  at.residue_w = args.by.up_w.take_last(rest);
  at.residue_h = args.by.up_h.take_last(rest);
  at.n = static_cast<int>(rest);
  at.rows = t.all_rows - at.row < t.rows ? t.all_rows - at.row : t.rows;
  at.columns = t.all_columns - at.column < t.columns ? t.all_columns - at.column : t.columns;
  return at;
}

__device__ __forceinline__ void conv_group_pixels(const ConvArgs& args, const ConvGroupPlace& at,
                                                  ConvGroupShared& shared) {
  const ConvParams& p = args.p;
  const ConvGroupTile& t = args.group;
  for (int e = static_cast<int>(threadIdx.x); e < kConvPixels; e += kConvThreads) {
    const int i = static_cast<int>(args.by.columns.divide(static_cast<uint32_t>(e))), j = e - i * t.columns;
    const int64_t row = at.residue_h + (at.row + i) * p.up_h, column = at.residue_w + (at.column + j) * p.up_w;
    const bool there = i < at.rows && j < at.columns && row < p.P && column < p.Q;
    shared.to[e] = there ? at.n * p.output.n + row * p.output.h + column * p.output.w : -1;
    const int from = (i * static_cast<int>(p.stride_h) * t.halo_columns + j * static_cast<int>(p.stride_w)) * t.line;
    shared.from[e] = i < t.rows ? from : 0;
  }
  if (threadIdx.x < 4) reinterpret_cast<uint32_t*>(shared.zeros)[threadIdx.x] = 0;
}

// Copies kPair elements for each item, of those from `first` on that are `step` apart; four at once, so that their
// loads are on their way together. `load(item, elements)` leaves zeros where nothing is.
template <class T, class Load, class Place>
__device__ __forceinline__ void conv_group_copy(int first, int items, int step, const Load& load, const Place& place) {
  constexpr int kTogether = 4;
  for (int item = first; item < items; item += kTogether * step) {
    alignas(4) T elements[kTogether][kPair<T>] = {};
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (item + i * step < items) load(item + i * step, elements[i]);
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (item + i * step < items) copy_wide<4>(place(item + i * step), elements[i]);
  }
}

// Brings what a tile reads into shared memory: `rows` by `columns` pixels from (row, column) of the input on, zeros
// around it, and of each the pieces from `piece` on. It has arrived when asynchronous copies are waited for, and after
// a barrier behind that.
template <class T>
__device__ __forceinline__ void conv_group_load(const ConvArgs& args, int n, int row, int column, int rows, int columns,
                                                int piece, T* to) {
  constexpr int V = kWide<T>, E = kPair<T>;
  const ConvParams& p = args.p;
  const ConvGroupTile& t = args.group;
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t pitch = static_cast<uint32_t>(t.halo_columns);
  const T* from = static_cast<const T*>(p.input.data) + n * p.input.n + piece * V * p.input.c;
  const int channels = (args.group.window.all - piece) * V;
  const auto inside = [&](int h, int w) { return h >= 0 && h < p.H && w >= 0 && w < p.W; };
  if (args.wide_input) {
    const uint32_t slab = static_cast<uint32_t>(t.slab), items = static_cast<uint32_t>(rows) * pitch * slab;
    for (uint32_t e = static_cast<uint32_t>(thread); e < items; e += kConvThreads) {
      const uint32_t pixel = args.by.slab.divide(e), x = e - pixel * slab;
      const uint32_t i = args.by.halo_columns.divide(pixel), j = pixel - i * pitch;
      if (j >= static_cast<uint32_t>(columns)) continue;
      const int h = row + static_cast<int>(i), w = column + static_cast<int>(j);
      const bool there = inside(h, w) && static_cast<int>(x) * V < channels;
      copy_async<16>(to + pixel * static_cast<uint32_t>(t.line) + x * V,
                     there ? from + h * p.input.h + w * p.input.w + x * V : p.input.data, there ? 16 : 0);
    }
    return;
  }
  // Neighbouring threads have neighbouring pixels.
  for (int x = thread / kWarpSize * E; x < t.slab * V; x += kConvThreads / kWarpSize * E)
    conv_group_copy<T>(
        thread % kWarpSize, rows * t.halo_columns, kWarpSize,
        [&](int pixel, T(&elements)[E]) {
          const int i = static_cast<int>(args.by.halo_columns.divide(static_cast<uint32_t>(pixel)));
          const int j = pixel - i * t.halo_columns;
          if (j >= columns || !inside(row + i, column + j)) return;
          const T* at = from + (row + i) * p.input.h + (column + j) * p.input.w + x * p.input.c;
#pragma unroll
          for (int v = 0; v < E; ++v)
            if (x + v < channels) elements[v] = at[v * p.input.c];
        },
        [&](int pixel) { return to + pixel * t.line + x; });
}

// [eight output channels][tap][piece][lane][kPair]: a lane's register of such a piece, of the channels that it has of
// the piece by the output channel that it has of the eight.
template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_group_pack(const ConvArgs args) {
  constexpr int V = kWide<T>, E = kPair<T>;
  const ConvParams& p = args.p;
  const ConvWindow& window = args.group.window;
  for (int64_t i = int64_t{blockIdx.x} * kConvThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kConvThreads) {
    int64_t eight = i;
    const int64_t v = take_last(eight, E), lane = take_last(eight, kWarpSize), piece = take_last(eight, window.pieces);
    const int64_t s = take_last(eight, p.S), r = take_last(eight, p.R);
    int64_t g = eight * kConvEight + lane / 4;
    int64_t group = (window.first(static_cast<int>(eight)) + piece) * V + lane % 4 * E + v;
    const int64_t k = take_last(g, p.K), c = take_last(group, p.C);
    T weight = {};
    if (group == g) weight = conv_at<T>(p.weight, k, c, r, s)[g * p.weight_g];
    static_cast<T*>(args.packed)[i] = weight;
  }
}

template <class T>
__device__ __forceinline__ uint32_t conv_register(const T* from) {
  if constexpr (sizeof(T) == 2) {
    uint32_t bits;
    copy_wide<4>(&bits, from);
    return bits;
  } else {
    return to_tf32(*from);
  }
}

// The part of the tile that a warp has: products of 16 pixels by eight output channels, kDown by Share.
template <int Share>
struct ConvGroupWarp {
  static constexpr int kAcross = kConvSlab / kConvEight / Share;  // warps side by side
  static constexpr int kDown = kConvPixels / 16 * kAcross / (kConvThreads / kWarpSize);
  int lane, down, eight;  // the first pixel; the first eight of the slab

  static __device__ __forceinline__ ConvGroupWarp of(int thread) {
    const int warp = thread / kWarpSize;
    return {thread % kWarpSize, warp / kAcross * kDown * 16, warp % kAcross * Share};
  }
  __device__ __forceinline__ int row(int y, int i) const { return down + 16 * y + lane / 4 + i / 2 * 8; }
  __device__ __forceinline__ int column(int x, int i) const { return (eight + x) * kConvEight + lane % 4 * 2 + i % 2; }
};

__device__ __forceinline__ ConvGroupTaps conv_group_taps(const ConvArgs& args, const ConvGroupPlace& at) {
  const ConvReach h = conv_reach_of(args.h, at.residue_h, at.row, at.row + at.rows - 1);
  const ConvReach w = conv_reach_of(args.w, at.residue_w, at.column, at.column + at.columns - 1);
  return {static_cast<int>(h.first), static_cast<int>(h.at), static_cast<int>(h.count),
          static_cast<int>(w.first), static_cast<int>(w.at), static_cast<int>(w.count)};
}

// How many elements further the i-th and j-th taps of a tile read than the first.
__device__ __forceinline__ int conv_group_further(const ConvArgs& args, int i, int j) {
  const ConvGroupTile& t = args.group;
  return (i * static_cast<int>(args.h.step) * t.halo_columns + j * static_cast<int>(args.w.step)) * t.line;
}

template <class T>
__device__ __forceinline__ void conv_group_list(const ConvArgs& args, const ConvGroupTaps& taps, ConvPiece* pieces) {
  const int each = args.group.window.pieces, all = taps.pieces(args.group.window);
  for (int e = static_cast<int>(threadIdx.x); e <= all; e += kConvThreads) {
    pieces[e].from = pieces[e].weight = -1;
    if (e == all) continue;
    const int tap = e / each, piece = e - tap * each, i = tap / taps.count_w, j = tap - i * taps.count_w;
    const int r = taps.first_h + i * static_cast<int>(args.h.period);
    const int s = taps.first_w + j * static_cast<int>(args.w.period);
    pieces[e].from = conv_group_further(args, i, j) + piece * kWide<T>;
    pieces[e].weight = (r * static_cast<int>(args.p.S) + s) * each + piece;
  }
}

// One output, of its own group's products alone. `x`: what its pixel reads through the first tap, from channel `first`
// on.
template <class T>
__device__ __forceinline__ float conv_group_sum(const ConvArgs& args, const ConvGroupTaps& taps, const T* x, int first,
                                                int channel) {
  const ConvParams& p = args.p;
  const ConvWindow& window = args.group.window;
  const int g = channel / window.K, k = channel - g * window.K;
  float sum = 0;
  for (int i = 0; i < taps.count_h; ++i)
    for (int j = 0; j < taps.count_w; ++j) {
      const T* from = x + conv_group_further(args, i, j) + (g * window.C - first);
      const T* weight = conv_at<T>(p.weight, k, 0, taps.first_h + i * args.h.period, taps.first_w + j * args.w.period);
      for (int c = 0; c < window.C; ++c) sum += widen(from[c]) * widen(weight[g * p.weight_g + c * p.weight.c]);
    }
  return sum;
}

template <class T, int Share>
__global__ void __launch_bounds__(kConvThreads, 3) conv_group_products(const ConvArgs args) {
  if constexpr (kTensorCores) {
    using Warp = ConvGroupWarp<Share>;
    constexpr int kDown = Warp::kDown, V = kWide<T>, E = kPair<T>;
    const ConvParams& p = args.p;
    const ConvGroupTile& t = args.group;
    const ConvWindow& window = t.window;
    auto* memory = dynamic_shared<unsigned char>();
    auto& shared = *reinterpret_cast<ConvGroupShared*>(memory);
    auto* pieces = reinterpret_cast<ConvPiece*>(memory + sizeof shared);
    T* input = reinterpret_cast<T*>(memory + args.input_at);
    auto* stage = reinterpret_cast<float*>(memory + args.input_at);  // when all of the input is read
    const Warp warp = Warp::of(static_cast<int>(threadIdx.x));
    for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
      const ConvGroupPlace at = conv_group_place(args, item);
      const int slab_eight = at.slab * (kConvSlab / kConvEight), slab_piece = window.first(slab_eight);
      int terms;
      {
        const ConvGroupTaps taps = conv_group_taps(args, at);
        terms = taps.pieces(window);
        if (threadIdx.x == 0) shared.taps = taps;
        conv_group_pixels(args, at, shared);
        conv_group_list<T>(args, taps, pieces);
        const int rows =
            (t.rows - 1) * static_cast<int>(p.stride_h) + (taps.count_h - 1) * static_cast<int>(args.h.step) + 1;
        const int columns =
            (t.columns - 1) * static_cast<int>(p.stride_w) + (taps.count_w - 1) * static_cast<int>(args.w.step) + 1;
        if (terms > 0)
          conv_group_load<T>(args, at.n, at.row * static_cast<int>(p.stride_h) + taps.at_h,
                             at.column * static_cast<int>(p.stride_w) + taps.at_w, rows, columns, slab_piece, input);
      }
      copy_async_commit();
      copy_async_wait<0>();
      sync_block();
      float sum[kDown][Share][4] = {};
      const int all = static_cast<int>(p.G * p.K) / kConvEight, eight = slab_eight + warp.eight;
      const T* own = input;  // from the pieces that the warp reads on
      if (eight < all && warp.down < t.pixels()) {
        own += (window.first(eight) - slab_piece) * V;
        const T* weights[Share];
#pragma unroll
        for (int x = 0; x < Share; ++x) {
          const int64_t there = eight + x < all ? eight + x : all - 1;
          weights[x] =
              static_cast<const T*>(args.packed) + there * (p.R * p.S * window.pieces * kWarpSize * E) + warp.lane * E;
        }
        int from[kDown];
#pragma unroll
        for (int y = 0; y < kDown; ++y) from[y] = shared.from[warp.down + 16 * y + warp.lane % 16];
        for (int u = 0; u < terms; u += 2) {
          const int at_piece = pieces[u + warp.lane / 16].from, first = pieces[u].weight, second = pieces[u + 1].weight;
          uint32_t b[Share][2];
#pragma unroll
          for (int x = 0; x < Share; ++x) {
            b[x][0] = conv_register(weights[x] + int64_t{first} * kWarpSize * E);
            b[x][1] = second < 0 ? 0 : conv_register(weights[x] + int64_t{second} * kWarpSize * E);
          }
#pragma unroll
          for (int y = 0; y < kDown; ++y) {
            uint32_t a[4];
            conv_load_pieces<T>(a, at_piece < 0 ? static_cast<const void*>(shared.zeros) : own + from[y] + at_piece);
#pragma unroll
            for (int x = 0; x < Share; ++x) conv_mma<T>(sum[y][x], a, b[x]);
          }
        }
        if (t.foreign) {
          float test = 0;
#pragma unroll
          for (int e = 0; e < kDown * Share * 4; ++e) test += sum[e / 4 / Share][e / 4 % Share][e % 4] * 0.0f;
          if (test != 0.0f) {
#pragma unroll 1
            for (int e = 0; e < kDown * Share * 4; ++e) {
              const int pixel = warp.row(e / 4 / Share, e % 4);
              const int channel = at.slab * kConvSlab + warp.column(e / 4 % Share, e % 4);
              if (channel >= p.G * p.K) continue;
              const float value =
                  conv_group_sum(args, shared.taps, input + shared.from[pixel], slab_piece * V, channel);
#pragma unroll
              for (int i = 0; i < kDown * Share * 4; ++i)
                if (i == e) sum[i / 4 / Share][i / 4 % Share][i % 4] = value;
            }
          }
        }
      }
      sync_block();
#pragma unroll
      for (int y = 0; y < kDown; ++y)
#pragma unroll
        for (int x = 0; x < Share; ++x)
#pragma unroll
          for (int i = 0; i < 4; ++i) stage[warp.row(y, i) * kConvTurnLine + warp.column(x, i)] = sum[y][x][i];
      sync_block();
      conv_store_turn<T>(args, shared.to, stage, at.slab * kConvSlab, p.G * p.K - at.slab * kConvSlab);
      sync_block();
    }
  }
}

// ---- launchers ----

// Divisions and sizes of shared memory that both kernels need.
template <class T>
ConvArgs conv_group_args(const ConvLauncher& call, const ConvGroupTile& tile, bool weights) {
  const ConvParams& p = call.p;
  ConvArgs args = call.args();
  args.group = tile;
  const ConvGroupTile& t = args.group;
  const auto by = [](int64_t size) { return Divisor<uint32_t>(static_cast<uint32_t>(size)); };
  args.by = {by(t.slabs), by(t.across), by(t.down),    by(p.up_w),
             by(p.up_h),  by(t.slab),   by(t.columns), by(t.halo_columns)};
  args.tiles = p.N * p.up_h * p.up_w * t.down * t.across;
  args.input_at = args.group.input_at(weights);
  args.wide_input = conv_wide(p.input, p.G * p.C, kWide<T>, sizeof(T));
  args.wide_output = conv_wide(p.output, p.G * p.K, kWide<T>, sizeof(T));
  args.parts = 1;
  return args;
}

template <class T>
void conv_group_forward(const ConvLauncher& call, const ConvGroupTile& t) {
  const ConvParams& p = call.p;
  ConvArgs args = conv_group_args<T>(call, t, false);
  args.items = conv_packs_pieces(p, t) / static_cast<int64_t>(sizeof(T));
  call.run(conv_group_pack<T>, args, ceil_divide(args.items, kConvThreads));
  args.items = args.tiles * t.slabs;
  auto* kernel = conv_group_products<T, 1>;
  if (t.share == 2) kernel = conv_group_products<T, 2>;
  if (t.share == 4) kernel = conv_group_products<T, 4>;
  call.run(kernel, args, args.items, t.bytes(p, false));
}

}  // namespace
}  // namespace fastconv
