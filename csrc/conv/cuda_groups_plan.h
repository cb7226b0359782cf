// How tensor cores multiply groups of few channels, several groups at once: which of the input's channels eight output
// channels read, and the tile of pixels that a block has. Plain C++, as cuda_choice.h, which asks here.
//
// A product of tensor cores has eight columns. They are given eight neighbouring output channels, of as many groups as
// that takes, and of one tap the channels that these groups read, in pieces of 16 bytes: 8 channels of 16 bits, 4 of
// float32. Two pieces, of any taps, make the 16 (8) terms of a product. Groups of 8, 16, 24 and so on waste nothing; of
// smaller ones a piece has channels of other groups too, whose weights are zeros: half of the products of 4 channels a
// group, which costs nothing where memory is what bounds the layer.
#pragma once
#include <algorithm>
#include <numeric>

#include "conv/params.h"
#include "core/inline.h"

namespace fastconv {

constexpr int kConvPixels = 128;               // of a tile of products, at most
constexpr int kConvEight = 8, kConvSlab = 64;  // output channels of a product, and of a block
constexpr int kConvTurnLine = kConvSlab + 1;   // floats from a pixel to the next on the way to being stored
constexpr int kConvGradLine = kConvSlab + 8;   // elements from a pixel to the next of the output's gradient

// Bytes of shared memory that a block may have on every chip with these products.
constexpr int64_t kConvGroupShared = 99 << 10;
// Of them, where each pixel is, 16 bytes of zeros, and which taps there are.
constexpr int64_t kConvGroupHead = kConvPixels * 12 + 48;

// Which pieces of `wide` channels output channels read, eight after eight.
struct ConvWindow {
  int C, K;  // of a group
  int wide;
  int pieces;  // that eight of them read, at most
  int all;     // of a pixel

  FASTCONV_INLINE int reads(int eight) const { return eight * kConvEight / K * C / wide; }
  FASTCONV_INLINE int end(int eight) const { return (((eight + 1) * kConvEight - 1) / K * C + C + wide - 1) / wide; }
  // The first of `pieces`, all of them there.
  FASTCONV_INLINE int first(int eight) const {
    const int from = reads(eight);
    return from < all - pieces ? from : all - pieces;
  }
};

// The tile of a block, where its part of the input fits into shared memory.
struct ConvGroupTile {
  ConvWindow window;
  bool foreign;                 // channels of other groups are among the pieces
  int share;                    // so many times eight output channels, 1, 2 or 4, read the same pieces
  int slab;                     // pieces that a block's output channels read
  int line;                     // elements from a pixel to the next in shared memory
  int rows, columns;            // outputs of one residue
  int halo_rows, halo_columns;  // of the input that they read, at most
  int terms;                    // pieces of all taps that an output reads through, at most
  int all_rows, all_columns;    // of a residue
  int down, across;             // tiles of them
  int slabs;                    // of output channels
  bool fits;

  FASTCONV_INLINE int pixels() const { return rows * columns; }
  // Of shared memory, and where in it the input lies.
  int64_t input_at(bool weights) const { return kConvGroupHead + (weights ? 0 : (int64_t{terms} + 2) / 2 * 16); }
  int64_t bytes(const ConvParams& p, bool weights) const {
    const int64_t element = p.element_size(), input = int64_t{halo_rows} * halo_columns * line * element;
    if (weights) return input_at(weights) + input + int64_t{pixels()} * kConvGradLine * element;
    return input_at(weights) + std::max(input, int64_t{kConvPixels} * kConvTurnLine * 4);
  }
};

// After how many times eight output channels their pieces are the same again, from another piece on.
inline int64_t conv_window_period(const ConvParams& p) {
  const int64_t wide = 16 / p.element_size();
  const int64_t groups = std::lcm(wide / std::gcd(wide, p.C), kConvEight / std::gcd(int64_t{kConvEight}, p.K));
  return groups * p.K / kConvEight;
}
inline ConvWindow conv_window(const ConvParams& p, int64_t period) {
  const int wide = static_cast<int>(16 / p.element_size());
  ConvWindow w = {static_cast<int>(p.C), static_cast<int>(p.K), wide, 1, static_cast<int>(p.G * p.C / wide)};
  for (int i = 0; i < period; ++i) w.pieces = std::max(w.pieces, w.end(i) - w.reads(i));
  return w;
}

// One axis: taps that an output reads through, at most, and how far apart these read; see ConvReach.
struct ConvLive {
  int64_t taps, step;
};
inline ConvLive conv_live(int64_t taps, int64_t dilation, int64_t up) {
  const int64_t period = up / std::gcd(up, dilation);
  return {(taps + period - 1) / period, period * dilation / up};
}

// That of the outputs, or of the gradient of the weights; with rows of so many outputs at least.
inline ConvGroupTile conv_group_tile(const ConvParams& p, bool weights, int64_t fewest = 1) {
  ConvGroupTile t = {};
  const int64_t wide = 16 / p.element_size(), eights = p.G * p.K / kConvEight;
  constexpr int64_t kMost = int64_t{1} << 29;
  for (int64_t size : {p.C, p.K, p.G, p.G * p.C, p.G * p.K})
    if (size <= 0 || size >= kMost) return t;
  if (p.G * p.C % wide != 0 || p.G * p.K % kConvEight != 0 || p.R * p.S == 0) return t;
  if (p.up_h > p.P || p.up_w > p.Q) return t;  // residues without an output
  const int64_t period = conv_window_period(p);
  const ConvWindow w = t.window = conv_window(p, period);
  t.foreign = p.G > 1 && (p.C % wide != 0 || p.K % kConvEight != 0);
  t.share = 4;
  for (int i = 0, end = static_cast<int>(std::min(eights, kConvEight * period)); i < end; ++i) {
    while (w.first(i) != w.first(i / t.share * t.share)) t.share /= 2;
    t.slab = std::max(t.slab, w.first(i) + w.pieces - w.first(i / kConvEight * kConvEight));
  }
  t.slabs = static_cast<int>((p.G * p.K + kConvSlab - 1) / kConvSlab);
  t.line = (t.slab | 1) * w.wide;  // odd, so that neighbouring pixels lie in different banks
  const ConvLive h = conv_live(p.R, p.dilation_h, p.up_h), v = conv_live(p.S, p.dilation_w, p.up_w);
  t.terms = static_cast<int>(h.taps * v.taps * w.pieces);
  const int64_t P = (p.P + p.up_h - 1) / p.up_h, Q = (p.Q + p.up_w - 1) / p.up_w;
  t.all_rows = static_cast<int>(P);
  t.all_columns = static_cast<int>(Q);
  double least = 0;
  for (int64_t pixels = kConvPixels; pixels >= kConvPixels / 4; pixels /= 2)
    for (int64_t rows = 1; rows * fewest <= pixels; rows *= 2) {
      const int64_t columns = pixels / rows;
      const int64_t halo_rows = (rows - 1) * p.stride_h + (h.taps - 1) * h.step + 1;
      const int64_t halo_columns = (columns - 1) * p.stride_w + (v.taps - 1) * v.step + 1;
      if (std::max(halo_rows, halo_columns) > kConvGroupShared) continue;
      ConvGroupTile one = t;
      one.rows = static_cast<int>(rows);
      one.columns = static_cast<int>(columns);
      one.halo_rows = static_cast<int>(halo_rows);
      one.halo_columns = static_cast<int>(halo_columns);
      one.down = static_cast<int>((P + rows - 1) / rows);
      one.across = static_cast<int>((Q + columns - 1) / columns);
      one.fits = true;
      // Pixels that are loaded and stored, and the products of a tile, which cost the same whatever its size.
      constexpr double kEach = kConvPixels;
      const double tiles = static_cast<double>(p.N * one.slabs) * static_cast<double>(p.up_h * p.up_w) *
                           static_cast<double>(int64_t{one.down} * one.across);
      const double cost = tiles * (static_cast<double>(halo_rows * halo_columns + pixels) + kEach);
      if (one.bytes(p, weights) > kConvGroupShared || tiles >= kMost || (t.fits && cost >= least)) continue;
      least = cost;
      t = one;
    }
  return t;
}

// Whether a third of the tiles' pixels are there.
inline bool conv_tiles_filled(const ConvGroupTile& t) {
  return t.fits && 3 * int64_t{t.all_rows} * t.all_columns >= int64_t{t.down} * t.across * t.pixels();
}
// And a third of what a tile loads is read.
inline bool conv_tile_pays(const ConvParams& p, const ConvGroupTile& t) {
  const int64_t rows = std::min<int64_t>(t.halo_rows, t.rows * conv_live(p.R, p.dilation_h, p.up_h).taps);
  const int64_t columns = std::min<int64_t>(t.halo_columns, t.columns * conv_live(p.S, p.dilation_w, p.up_w).taps);
  return conv_tiles_filled(t) && int64_t{t.halo_rows} * t.halo_columns <= 3 * rows * columns;
}

}  // namespace fastconv
