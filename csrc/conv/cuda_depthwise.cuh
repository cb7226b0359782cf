// Depthwise convolution on CUDA, and its input gradient. A thread has a strip of four outputs, and uses each element of
// the input that it loads for all of them, and each weight.
//
// conv_depthwise_planes: contiguous memory. A block brings what a tile of one plane reads, or several small planes,
// into shared memory once, zeros around it; strips run down a column, and neighbouring threads have neighbouring
// columns.
//
// conv_depthwise_pixels: channels_last memory. A thread has 16 bytes of channels; strips run along a row. The weights
// are brought into the same order first.
//
// Where the input is spread out, a strip has outputs of one residue, which read through the same taps.
#pragma once
#include "conv/cuda_args.cuh"
#include "core/divisor.h"

namespace fastconv {
namespace {

constexpr int kStrip = static_cast<int>(kConvStrip);

// Adds to a strip what its taps read along its axis: output o reads through tap i at position i * step + o * stride.
// `input(position, to)`: V channels at this distance from the first, false where there are none; `weight(i, to)`:
// those of tap i.
template <int V, class A, class Input, class Weight>
__device__ __forceinline__ void conv_strip(int count, int64_t step, int64_t stride, const Input& input,
                                           const Weight& weight, A (&sum)[kStrip][V]) {
  if (count == 0) return;  // `input` starts from nowhere
  if (step != stride) {
    for (int i = 0; i < count; ++i) {
      A factor[V], value[V];
      weight(i, factor);
#pragma unroll
      for (int o = 0; o < kStrip; ++o) {
        if (!input(i * step + o * stride, value)) continue;
#pragma unroll
        for (int v = 0; v < V; ++v) sum[o][v] += value[v] * factor[v];
      }
    }
    return;
  }
  // A position is that of tap i for the first output, of tap i - 1 for the second and so on: the weights of the last
  // four taps stay in registers.
  A factor[kStrip][V] = {};
#pragma unroll 4
  for (int i = 0; i < count + kStrip - 1; ++i) {
#pragma unroll
    for (int o = kStrip - 1; o > 0; --o)
#pragma unroll
      for (int v = 0; v < V; ++v) factor[o][v] = factor[o - 1][v];
    if (i < count) weight(i, factor[0]);
    A value[V];
    if (!input(i * step, value)) continue;
#pragma unroll
    for (int o = 0; o < kStrip; ++o)
      if (i >= o && i - o < count) {
#pragma unroll
        for (int v = 0; v < V; ++v) sum[o][v] += value[v] * factor[o][v];
      }
  }
}

// The first output of a strip: those of one residue modulo `up` are together.
__device__ __forceinline__ int64_t conv_strip_first(int64_t strip, int64_t up) {
  if (up == 1) return strip * kStrip;
  const int64_t block = quotient(strip, up);
  return block * kStrip * up + strip - block * up;
}
// Its last one that exists; the first does.
__device__ __forceinline__ int64_t conv_strip_last(int64_t first, int64_t up, int64_t outputs) {
  const int64_t last = first + (kStrip - 1) * up;
  return last < outputs ? last : first + quotient(outputs - 1 - first, up) * up;
}

// Rounded down, of any sign.
__device__ __forceinline__ int64_t conv_floor(int64_t a, int64_t up) {
  return up == 1 ? a : a < 0 ? -quotient(up - 1 - a, up) : quotient(a, up);
}

struct ConvPlanesArgs {
  ConvArgs conv;
  Divisor<uint32_t> halo_rows, halo_columns, columns, strips, taps;  // of a tile
};

// What a tile reads, and its weights; `halo` begins at that row and column of the input.
template <class T>
__device__ __forceinline__ void conv_fill_planes(const ConvPlanesArgs& args, int64_t plane, int64_t planes, int64_t row,
                                                 int64_t column, T* halo, Accumulate<T>* weights) {
  const ConvParams& p = args.conv.p;
  const uint32_t elements = static_cast<uint32_t>(planes) * args.halo_rows.value * args.halo_columns.value;
  for (uint32_t e = threadIdx.x; e < elements; e += kConvThreads) {
    const uint32_t line = args.halo_columns.divide(e), of_plane = args.halo_rows.divide(line);
    const int64_t h = row + (line - of_plane * args.halo_rows.value), w = column + (e - line * args.halo_columns.value);
    int64_t n = plane + of_plane;
    const int64_t g = take_last(n, p.G);
    T element = {};
    if (h >= 0 && h < p.H && w >= 0 && w < p.W) element = *conv_at<T>(p.input, n, g, h, w);
    halo[e] = element;
  }
  for (uint32_t e = threadIdx.x; e < static_cast<uint32_t>(planes) * args.taps.value; e += kConvThreads) {
    const uint32_t of_plane = args.taps.divide(e), tap = e - of_plane * args.taps.value;
    int64_t n = plane + of_plane;
    const int64_t g = take_last(n, p.G), r = quotient(tap, p.S);
    weights[e] = widen(conv_at<T>(p.weight, 0, 0, r, tap - r * p.S)[g * p.weight_g]);
  }
}

template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_depthwise_planes(const ConvPlanesArgs args) {
  using A = Accumulate<T>;
  const ConvArgs& conv = args.conv;
  const ConvParams& p = conv.p;
  const ConvPlaneTile& tile = conv.tile;
  A* weights = dynamic_shared<A>();
  T* halo = reinterpret_cast<T*>(weights + tile.planes * p.R * p.S);
  const int64_t down = (p.P + tile.rows - 1) / tile.rows, across = (p.Q + tile.columns - 1) / tile.columns;
  const uint32_t units = static_cast<uint32_t>(tile.planes) * args.strips.value * args.columns.value;
  for (int64_t item = blockIdx.x; item < conv.items; item += gridDim.x) {
    int64_t plane = item;
    const int64_t q0 = take_last(plane, across) * tile.columns, p0 = take_last(plane, down) * tile.rows;
    plane *= tile.planes;
    const int64_t planes = p.N * p.G - plane < tile.planes ? p.N * p.G - plane : tile.planes;
    const int64_t row = conv_floor(p0 * p.stride_h - p.pad_h, p.up_h);
    const int64_t column = conv_floor(q0 * p.stride_w - p.pad_w, p.up_w);
    conv_fill_planes(args, plane, planes, row, column, halo, weights);
    sync_block();
    for (uint32_t unit = threadIdx.x; unit < units; unit += kConvThreads) {
      const uint32_t line = args.columns.divide(unit), of_plane = args.strips.divide(line);
      const int64_t q = q0 + (unit - line * args.columns.value);
      const int64_t first = p0 + conv_strip_first(line - of_plane * args.strips.value, p.up_h);
      if (of_plane >= planes || q >= p.Q || first >= p.P) continue;
      const int64_t last = conv_strip_last(first, p.up_h, p.P);
      const ConvReach h = conv.h.reach(first, last), w = conv.w.reach(q);
      const T* own = halo + (int64_t{of_plane} * tile.halo_rows + h.at - row) * tile.halo_columns + w.at - column;
      const A* factors = weights + of_plane * p.R * p.S + h.first * p.S + w.first;
      // Rows from there on belong to no output of the strip that exists.
      const int64_t end = tile.halo_rows - (h.at - row);
      A sum[kStrip][1] = {};
      for (int s = 0; s < static_cast<int>(w.count); ++s)
        conv_strip(
            static_cast<int>(h.count), conv.h.step, p.stride_h,
            [&](int64_t position, A(&to)[1]) {
              if (position >= end) return false;
              to[0] = widen(own[position * tile.halo_columns + s * conv.w.step]);
              return true;
            },
            [&](int i, A(&to)[1]) { to[0] = factors[i * conv.h.period * p.S + s * conv.w.period]; }, sum);
      int64_t n = plane + of_plane;
      const int64_t g = take_last(n, p.G), to = n * p.output.n + g * p.output.c + q * p.output.w;
#pragma unroll
      for (int o = 0; o < kStrip; ++o)
        if (first + o * p.up_h < p.P) conv_store<T>(p, sum[o][0], g, to + (first + o * p.up_h) * p.output.h);
    }
    sync_block();
  }
}

template <class T, int V, bool Wide>
__global__ void __launch_bounds__(kConvThreads) conv_depthwise_pixels(const ConvArgs args) {
  using A = Accumulate<T>;
  const ConvParams& p = args.p;
  const int64_t groups = (p.G + V - 1) / V;
  const int64_t strips = (p.Q + kStrip * p.up_w - 1) / (kStrip * p.up_w) * p.up_w;
  for (int64_t i = int64_t{blockIdx.x} * kConvThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kConvThreads) {
    int64_t n = i;
    const int64_t g = take_last(n, groups) * V, first = conv_strip_first(take_last(n, strips), p.up_w);
    const int64_t row = take_last(n, p.P);
    if (first >= p.Q) continue;
    const Channels<T, V, Wide> some = {p.G - g < V ? static_cast<int>(p.G - g) : V};
    const ConvReach h = args.h.reach(row), w = args.w.reach(first, conv_strip_last(first, p.up_w, p.Q));
    A sum[kStrip][V] = {};
    for (int64_t r = 0; r < h.count; ++r) {
      const T* x = conv_at<T>(p.input, n, g, h.at + r * args.h.step, 0);
      const T* weights = conv_at<T>(p.weight, 0, 0, h.first + r * args.h.period, w.first) + g * p.weight_g;
      conv_strip(
          static_cast<int>(w.count), args.w.step, p.stride_w,
          [&](int64_t position, A(&to)[V]) {
            const int64_t column = w.at + position;
            if (column < 0 || column >= p.W) return false;
            some.load(x + column * p.input.w, 1, to);
            return true;
          },
          [&](int tap, A(&to)[V]) { some.load(weights + tap * args.w.period * p.weight.w, p.weight_g, to); }, sum);
    }
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
      const int64_t q = first + o * p.up_w;
      if (q >= p.Q) continue;
      const int64_t offset = n * p.output.n + g + row * p.output.h + q * p.output.w;
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (v < some.n) sum[o][v] = conv_finish<T>(p, sum[o][v], g + v, offset + v);
      some.store(static_cast<T*>(p.output.data) + offset, 1, sum[o]);
    }
  }
}

// ---- launchers ----

inline void conv_planes_forward(const ConvLauncher& call) {
  const ConvParams& p = call.p;
  ConvArgs args = call.args();
  args.tile = conv_plane_tile(p);
  const ConvPlaneTile& tile = args.tile;
  args.items = ceil_divide(p.N * p.G, tile.planes) * ceil_divide(p.P, tile.rows) * ceil_divide(p.Q, tile.columns);
  const auto divisor = [](int64_t by) { return Divisor<uint32_t>(static_cast<uint32_t>(by)); };
  const ConvPlanesArgs all = {args,
                              divisor(tile.halo_rows),
                              divisor(tile.halo_columns),
                              divisor(tile.columns),
                              divisor(tile.rows / kStrip),
                              divisor(p.R * p.S)};
  const int64_t grid = std::min(args.items, call.limits.grid);
  with_element(p.dtype, [&](auto element) {
    launch(conv_depthwise_planes<decltype(element)>, dim3(static_cast<unsigned>(grid)), dim3(kConvThreads),
           static_cast<size_t>(tile.bytes(p)), call.stream, all);
  });
}

inline void conv_pixels_forward(const ConvLauncher& call) {
  const ConvParams& p = call.p;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int V = kWide<T>;
    ConvArgs args = call.args();
    call.pack<T>(args, 1);
    const bool wide = conv_wide(p.input, p.G, V, sizeof(T)) && conv_wide(p.output, p.G, V, sizeof(T));
    args.items = p.N * p.P * ceil_divide(p.Q, kStrip * p.up_w) * p.up_w * ceil_divide(p.G, wide ? V : 1);
    call.run(wide ? conv_depthwise_pixels<T, V, true> : conv_depthwise_pixels<T, 1, false>, args,
             ceil_divide(args.items, kConvThreads));
  });
}

}  // namespace
}  // namespace fastconv
