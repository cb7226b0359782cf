// What the products of matrices that are never written down have in common, on tensor cores and without them: the tile
// of 128 pixels that a block has, which taps it sums up, and what a pixel reads at one step of that sum.
#pragma once
#include "conv/cuda_args.cuh"

namespace fastconv {
namespace {

// A tile's pixels, in shared memory.
struct ConvPixels {
  int64_t from[kConvPixels];  // the element that a pixel would read through a tap at 0, 0
  int64_t to[kConvPixels];    // where its output is, without the channel; negative: there is none
  int row[kConvPixels], column[kConvPixels];
};

// Where in the sum a step is: tap (r, s) of those that are alive, channel c.
struct ConvCursor {
  int c, s, r;

  __device__ __forceinline__ ConvCursor ahead(int by, int channels, int columns) const {
    ConvCursor next = {c + by, s, r};
    while (next.c >= channels) {
      next.c -= channels;
      if (++next.s == columns) {
        next.s = 0;
        ++next.r;
      }
    }
    return next;
  }
};

struct ConvSteps {
  int64_t first, last;  // the last is none of them
};

// A block's tile of the output, and what it sums up.
struct ConvTile {
  int64_t part;         // of the sum
  int64_t g, k;         // group, first output channel
  int64_t first, last;  // pixels of the residue
  int64_t residue_h, residue_w, rows, columns;
  ConvReach h, w;  // `at` is relative to a pixel's row and column

  // The steps, of so many terms, that are the part's.
  __device__ __forceinline__ ConvSteps steps(const ConvArgs& args, int terms) const {
    const int64_t all = quotient(h.count * w.count * args.p.C + terms - 1, terms);
    return {quotient(all * part, args.parts), quotient(all * (part + 1), args.parts)};
  }
  __device__ __forceinline__ ConvCursor cursor(const ConvArgs& args, int64_t term) const {
    if (term == 0) return {0, 0, 0};  // there may be no tap
    int64_t r = term;
    const int64_t c = take_last(r, args.p.C), s = take_last(r, w.count);
    return {static_cast<int>(c), static_cast<int>(s), static_cast<int>(r)};
  }
};

__device__ __forceinline__ ConvReach conv_reach_of(const ConvAxis& axis, int64_t residue, int64_t first, int64_t last) {
  ConvReach reach = axis.reach(residue + first * axis.up, residue + last * axis.up);
  reach.at -= first * axis.stride;
  return reach;
}

__device__ __forceinline__ ConvTile conv_tile(const ConvArgs& args, int64_t item, int columns) {
  const ConvParams& p = args.p;
  ConvTile t;
  t.part = take_last(item, args.parts);
  t.k = take_last(item, (p.K + columns - 1) / columns) * columns;
  t.g = take_last(item, p.G);
  t.residue_w = take_last(item, p.up_w);
  t.residue_h = take_last(item, p.up_h);
  t.rows = (p.P + p.up_h - 1) / p.up_h;
  t.columns = (p.Q + p.up_w - 1) / p.up_w;
  t.first = item * kConvPixels;
  const int64_t pixels = p.N * t.rows * t.columns;
  t.last = t.first + kConvPixels < pixels ? t.first + kConvPixels - 1 : pixels - 1;
  int64_t n0 = t.first, n1 = t.last;
  int64_t q0 = take_last(n0, t.columns), q1 = take_last(n1, t.columns);
  int64_t p0 = take_last(n0, t.rows), p1 = take_last(n1, t.rows);
  if (n0 != n1) p0 = 0, p1 = t.rows - 1;
  if (p0 != p1) q0 = 0, q1 = t.columns - 1;
  t.h = conv_reach_of(args.h, t.residue_h, p0, p1);
  t.w = conv_reach_of(args.w, t.residue_w, q0, q1);
  return t;
}

// Of a sum in parts, the outputs are those of the tile's part.
__device__ __forceinline__ void conv_place_pixels(const ConvArgs& args, const ConvTile& tile, ConvPixels& shared) {
  const ConvParams& p = args.p;
  const int64_t part = tile.part * (p.N * p.G * p.K * p.P * p.Q);
  for (int e = static_cast<int>(threadIdx.x); e < kConvPixels; e += kConvThreads) {
    int64_t n = tile.first + e;
    const bool there = n <= tile.last;
    const int64_t j = take_last(n, tile.columns), i = take_last(n, tile.rows);
    const int64_t row = tile.residue_h + i * p.up_h, column = tile.residue_w + j * p.up_w;
    shared.to[e] = -1;
    if (there && row < p.P && column < p.Q)
      shared.to[e] = part + n * p.output.n + row * p.output.h + column * p.output.w;
    shared.row[e] = there ? static_cast<int>(i * p.stride_h) : -(1 << 30);
    shared.column[e] = static_cast<int>(j * p.stride_w);
    shared.from[e] = n * p.input.n + tile.g * p.C * p.input.c + i * p.stride_h * p.input.h + j * p.stride_w * p.input.w;
  }
}

// What a pixel reads at that place of the sum; null where it is padding, or the sum has come to its end.
template <class T>
__device__ __forceinline__ const T* conv_source(const ConvArgs& args, const ConvTile& tile, const ConvPixels& pixels,
                                                const ConvCursor& cursor, int pixel) {
  const ConvParams& p = args.p;
  const int64_t h = tile.h.at + cursor.r * args.h.step, w = tile.w.at + cursor.s * args.w.step;
  const int64_t row = pixels.row[pixel] + h, column = pixels.column[pixel] + w;
  if (cursor.r >= tile.h.count || row < 0 || row >= p.H || column < 0 || column >= p.W) return nullptr;
  return static_cast<const T*>(p.input.data) + pixels.from[pixel] + h * p.input.h + w * p.input.w +
         cursor.c * p.input.c;
}

// The same for asynchronous copies, in 32 bits (conv_small_sizes): what is not there has an address all the same, which
// is not read, and beyond the end of the sum numbers may wrap around.
struct ConvReads {
  bool there;
  unsigned h, w;    // relative to a pixel's row and column
  int64_t further;  // elements from where it is

  __device__ __forceinline__ bool inside(const ConvParams& p, const ConvPixels& pixels, int pixel) const {
    return there & (pixels.row[pixel] + h < static_cast<unsigned>(p.H)) &
           (pixels.column[pixel] + w < static_cast<unsigned>(p.W));
  }
};
__device__ __forceinline__ ConvReads conv_reads(const ConvArgs& args, const ConvTile& tile, const ConvCursor& cursor) {
  const unsigned h = static_cast<unsigned>(tile.h.at) + cursor.r * static_cast<unsigned>(args.h.step);
  const unsigned w = static_cast<unsigned>(tile.w.at) + cursor.s * static_cast<unsigned>(args.w.step);
  return {cursor.r < static_cast<int>(tile.h.count), h, w,
          static_cast<int>(h) * args.p.input.h + static_cast<int>(w) * args.p.input.w + cursor.c * args.p.input.c};
}

// Stores what a tile's pixels have of up to 64 output channels, of which `channels` are there, the first of them
// `channel`. They come through shared memory, [pixel][Line], so that neighbouring threads store what lies side
// by side; `to`: where the outputs of a pixel are, without the channel, negative where there is none.
template <class T, int Line = kConvTurnLine>
__device__ __forceinline__ void conv_store_turn(const ConvArgs& args, const int64_t* to, const float* stage,
                                                int64_t channel, int64_t channels) {
  constexpr int V = kWide<T>;
  const ConvParams& p = args.p;
  if (args.wide_output && args.parts == 1) {
    for (int e = static_cast<int>(threadIdx.x); e < kConvPixels * kConvSlab / V; e += kConvThreads) {
      const int pixel = e / (kConvSlab / V), from = e % (kConvSlab / V) * V;
      if (to[pixel] < 0 || from >= channels) continue;
      const int64_t at = to[pixel] + channel + from;
      float values[V];
#pragma unroll
      for (int v = 0; v < V; ++v)
        values[v] = conv_finish<T>(p, stage[pixel * Line + from + v], channel + from + v, at + v);
      store_wide<V>(static_cast<T*>(p.output.data) + at, values);
    }
  } else {
    for (int e = static_cast<int>(threadIdx.x); e < kConvPixels * kConvSlab; e += kConvThreads) {
      const int pixel = args.channels_last ? e / kConvSlab : e % kConvPixels;
      const int from = args.channels_last ? e % kConvSlab : e / kConvPixels;
      if (to[pixel] < 0 || from >= channels) continue;
      const int64_t at = to[pixel] + (channel + from) * p.output.c;
      if (args.parts == 1)
        conv_store<T>(p, stage[pixel * Line + from], channel + from, at);
      else
        static_cast<float*>(p.output.data)[at] = stage[pixel * Line + from];
    }
  }
}

// The outputs, from the parts of their sums.
template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_add_outputs(const ConvArgs args) {
  const ConvParams& p = args.p;
  for (int64_t i = int64_t{blockIdx.x} * kConvThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kConvThreads) {
    int64_t rest = quotient(i, p.output.c);
    const int64_t channel = take_last(rest, p.G * p.K);
    const auto* sums = static_cast<const Accumulate<T>*>(args.sums);
    conv_store<T>(p, sum_parts(sums, args.parts, args.items, i), channel, i);
  }
}

// ---- launchers ----

// Whether tiles have 128 output channels, on tensor cores: larger ones read less, as long as there are enough of them.
inline bool conv_larger_tiles(const ConvLauncher& call, const ConvArgs& args) {
  const ConvParams& p = call.p;
  const int64_t tiles = conv_pixel_tiles(p) * p.G * ceil_divide(p.K, 128);
  return args.parts == 1 && p.K > 64 && tiles >= device_limits(call.stream).multiprocessors;
}

// Runs a kernel of products with tiles of so many channels. Where the sum is in parts, these are outputs without
// anything added to them, in the type that is added up in.
template <class T>
void conv_run_products(const ConvLauncher& call, void (*kernel)(ConvArgs), ConvArgs args, int64_t channels,
                       int64_t shared) {
  const ConvParams& p = call.p;
  args.items = args.parts * conv_pixel_tiles(p) * p.G * ceil_divide(p.K, channels);
  if (args.parts == 1) return call.run(kernel, args, args.items, shared);
  const ConvMemory memory = conv_products_memory(p, call.limits);
  args.sums = args.p.output.data = static_cast<char*>(call.scratch) + conv_behind_packed(memory);
  args.p.bias = args.p.residual = nullptr;
  args.p.activation = Activation::kNone;
  call.run(kernel, args, args.items, shared);
  args.p = p;
  args.items = conv_outputs(p);
  call.run(conv_add_outputs<T>, args, ceil_divide(args.items, kConvThreads));
}

}  // namespace
}  // namespace fastconv
