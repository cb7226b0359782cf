// What the products of matrices that are never written down have in common, on tensor cores and without them: the tile
// of 128 pixels that a block has, which taps it sums up, and what a pixel reads at one step of that sum.
#pragma once
#include "conv/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kConvPixels = 128;  // of a tile

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

// A block's tile of the output, and what it sums up.
struct ConvTile {
  int64_t n, g, k;      // group, first output channel
  int64_t first, last;  // pixels of the residue
  int64_t residue_h, residue_w, rows, columns;
  ConvReach h, w;  // `at` is relative to a pixel's row and column
};

__device__ __forceinline__ ConvReach conv_reach_of(const ConvAxis& axis, int64_t residue, int64_t first, int64_t last) {
  ConvReach reach = axis.reach(residue + first * axis.up, residue + last * axis.up);
  reach.at -= first * axis.stride;
  return reach;
}

__device__ __forceinline__ ConvTile conv_tile(const ConvArgs& args, int64_t item, int columns) {
  const ConvParams& p = args.p;
  ConvTile t;
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

__device__ __forceinline__ void conv_place_pixels(const ConvArgs& args, const ConvTile& tile, ConvPixels& shared) {
  const ConvParams& p = args.p;
  for (int e = static_cast<int>(threadIdx.x); e < kConvPixels; e += kConvThreads) {
    int64_t n = tile.first + e;
    const bool there = n <= tile.last;
    const int64_t j = take_last(n, tile.columns), i = take_last(n, tile.rows);
    const int64_t row = tile.residue_h + i * p.up_h, column = tile.residue_w + j * p.up_w;
    shared.to[e] = there && row < p.P && column < p.Q ? n * p.output.n + row * p.output.h + column * p.output.w : -1;
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

// ---- launchers ----

// Those of all residues.
inline int64_t conv_pixel_tiles(const ConvParams& p) {
  const int64_t pixels = p.N * ceil_divide(p.P, p.up_h) * ceil_divide(p.Q, p.up_w);
  return ceil_divide(pixels, kConvPixels) * p.up_h * p.up_w;
}

}  // namespace
}  // namespace fastconv
