// Which CUDA kernel serves a convolution: two tables in the order in which they are asked, of names and rules. Plain
// C++ that knows neither CUDA nor PyTorch, because whoever explains a call wants to know it on any machine. The kernels
// themselves stand in cuda.cuh, in the same order.
#pragma once
#include <algorithm>
#include <numeric>

#include "conv/cuda_groups_plan.h"
#include "conv/table.h"

namespace fastconv {

// Outputs that a thread of the depthwise kernels has, one below (or beside) the other.
constexpr int64_t kConvStrip = 4;
// What a block of it gets without asking.
constexpr int64_t kConvShared = 48 << 10;
// Below so many output channels of a group a tile of products is mostly empty; up to so many of both tensors, tensor
// cores multiply several groups at once.
constexpr int64_t kConvFewChannels = 12, kConvSeveralGroups = 48;
// Output channels of a thread where they are few.
constexpr int64_t kConvFour = 4;

// Blocks that keep a large chip busy.
constexpr int64_t kConvBusy = 128;

// What the tests may lower to reach at small sizes what only huge tensors do on a GPU.
struct ConvLimits {
  int64_t grid = INT32_MAX;  // blocks
  int64_t part = 512;        // pixels that are worth a part of the gradient of the weights, at least
  int64_t sums = 8 << 20;    // bytes, of all these parts
  int64_t terms = 128;       // of an output's sum that are worth a part of it, at least
  int64_t chip = INT32_MAX;  // compute capability, times ten, beyond which nothing is used
};

// Of a number that is added up in.
inline int64_t conv_accumulate_bytes(const ConvParams& p) { return p.dtype == Dtype::kFloat64 ? 8 : 4; }

// A block's part of contiguous planes, depthwise: outputs of neighbouring planes, and what of the input they read.
struct ConvPlaneTile {
  int64_t planes, rows, columns;    // outputs; rows in whole strips
  int64_t halo_rows, halo_columns;  // of the input
  bool fits;                        // into shared memory

  int64_t bytes(const ConvParams& p) const {
    const int64_t sum = conv_accumulate_bytes(p);
    return planes * (halo_rows * halo_columns * p.element_size() + p.R * p.S * sum) + sum;
  }
};

inline int64_t conv_halo(int64_t outputs, int64_t stride, int64_t taps, int64_t dilation, int64_t up) {
  return ((outputs - 1) * stride + (taps - 1) * dilation) / up + 1 + (up > 1);
}

inline ConvPlaneTile conv_plane_tile(const ConvParams& p) {
  constexpr int64_t kOutputs = 1024, kColumns = 64, kFewest = 16;
  const int64_t strip = kConvStrip * p.up_h, whole = (p.P + strip - 1) / strip * strip;
  ConvPlaneTile t = {};
  t.columns = std::min(p.Q, kColumns);
  t.columns = (p.Q + (p.Q + t.columns - 1) / t.columns - 1) / ((p.Q + t.columns - 1) / t.columns);
  t.rows = std::min(whole, std::max(strip, kOutputs / t.columns / strip * strip));
  const bool alone = t.rows < whole || t.columns < p.Q;
  t.planes = alone ? 1 : std::min(p.N * p.G, std::max(int64_t{1}, kOutputs / (t.rows * t.columns)));
  for (;;) {
    t.halo_rows = conv_halo(t.rows, p.stride_h, p.R, p.dilation_h, p.up_h);
    t.halo_columns = conv_halo(t.columns, p.stride_w, p.S, p.dilation_w, p.up_w);
    t.fits = std::max(t.halo_rows, t.halo_columns) < kConvShared && t.bytes(p) <= kConvShared;
    if (t.fits) return t;
    if (t.planes > 1) {
      t.planes /= 2;
    } else if (t.rows > strip) {
      t.rows = std::max(strip, t.rows / 2 / strip * strip);
    } else if (t.columns > kFewest) {
      t.columns = std::max(kFewest, t.columns / 2);
    } else {
      return t;
    }
  }
}

inline bool conv_depthwise(const ConvParams& p) { return p.C == 1 && p.K == 1 && p.R * p.S > 0; }

// Channels beside each other in both tensors; nothing is depthwise to a single one.
inline bool conv_both_last(const ConvParams& p) { return p.input.c == 1 && p.output.c == 1; }
inline bool conv_both_planes(const ConvParams& p) { return p.input.w == 1 && p.output.w == 1; }

inline bool conv_planes_serve(const ConvParams& p) {
  return conv_depthwise(p) && conv_both_planes(p) && conv_plane_tile(p).fits;
}
inline bool conv_pixels_serve(const ConvParams& p) { return conv_depthwise(p) && conv_both_last(p); }

// Whether positions and channels fit into 32 bits with room to add a few.
inline bool conv_small_sizes(const ConvParams& p) {
  constexpr int64_t kMost = int64_t{1} << 29;
  for (int64_t size : {p.C, p.K, p.H, p.W, p.P * p.stride_h, p.Q * p.stride_w, p.R * p.dilation_h, p.S * p.dilation_w,
                       p.pad_h, p.pad_w, -p.pad_h, -p.pad_w})
    if (size >= kMost) return false;
  return p.C * p.R * p.S < kMost;
}
inline bool conv_on_tensor_cores(const ConvParams& p) { return p.element_size() == 2 || p.tf32; }
inline bool conv_grouped_serves(const ConvParams& p) { return conv_both_last(p) || conv_both_planes(p); }
// Where tensor cores should multiply several groups at once their tile, otherwise one that does not fit. No more than
// seven of eight products may be with zeros.
inline ConvGroupTile conv_groups_pay(const ConvParams& p, bool weights) {
  if (!conv_on_tensor_cores(p) || !conv_small_sizes(p) || p.G == 1 || std::max(p.C, p.K) > kConvSeveralGroups)
    return {};
  const ConvGroupTile tile = conv_group_tile(p, weights);
  return conv_tile_pays(p, tile) && tile.window.pieces * tile.window.wide <= 8 * p.C ? tile : ConvGroupTile{};
}
inline ConvGroupTile conv_group_outputs(const ConvParams& p) {
  return conv_grouped_serves(p) ? conv_groups_pay(p, false) : ConvGroupTile{};
}
inline bool conv_group_weights_pay(const ConvParams& p) { return conv_groups_pay(p, true).fits; }
inline bool conv_fills_tiles(const ConvParams& p) { return p.K >= kConvFewChannels && p.C * p.R * p.S >= 8; }
inline bool conv_products_pay(const ConvParams& p) { return conv_fills_tiles(p) && !conv_group_outputs(p).fits; }
inline bool conv_always(const ConvParams&) { return true; }

inline int64_t conv_weight_elements(const ConvParams& p) { return p.G * p.K * p.C * p.R * p.S; }
// Output channels of a group in packed weights, with zeros behind the last; tensor cores are given 16 bytes at once.
inline int64_t conv_by_fours(const ConvParams& p) { return (p.K + kConvFour - 1) / kConvFour * kConvFour; }
inline int64_t conv_by_wide(const ConvParams& p) {
  const int64_t wide = conv_on_tensor_cores(p) ? 16 / p.element_size() : 1;
  return (p.K + wide - 1) / wide * wide;
}
inline int64_t conv_packs(const ConvParams& p, int64_t channels) {
  return p.G * p.R * p.S * p.C * channels * p.element_size();
}
// Weights of one tap are read as they lie where they can be.
inline int64_t conv_packs_taps(const ConvParams& p) {
  const View4& w = p.weight;
  const int64_t wide = 16 / p.element_size();
  const bool whole =
      p.K % wide == 0 && w.c % wide == 0 && p.weight_g % wide == 0 && reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
  const bool lies_well = conv_on_tensor_cores(p) ? w.n == 1 && whole : w.n == 1 || w.c == 1 || p.C == 1;
  return p.R * p.S == 1 && lies_well ? 0 : conv_packs(p, conv_by_wide(p));
}
inline int64_t conv_whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Whether a tensor's planes are copied to channels_last for tensor cores, which then have 16 bytes of every pixel at
// once: `channels` of a group. It pays where there are several taps, and of a strided input every element is still read
// through two of them on an average.
inline bool conv_copies_to_last(const ConvParams& p, const View4& view, int64_t channels, int64_t W) {
  return conv_on_tensor_cores(p) && p.R * p.S >= std::max(int64_t{4}, 2 * p.stride_h * p.stride_w) && p.K >= 32 &&
         channels * p.element_size() % 16 == 0 && view.w == 1 && view.c != 1 && view.h == W;
}
inline bool conv_copies_input(const ConvParams& p) { return conv_copies_to_last(p, p.input, p.C, p.W); }
inline bool conv_copies_grad(const ConvParams& p) { return conv_copies_to_last(p, p.output, p.K, p.Q); }
// Whether warpgroups may multiply, on the one chip that has them do it: 16 bytes of a pixel are terms of one tap, and
// their tiles have 128 output channels. They read weights whose input channels lie side by side, as they lie or packed.
inline bool conv_for_warpgroups(const ConvParams& p) {
  return p.element_size() == 2 && (p.input.c == 1 || conv_copies_input(p)) && p.C % 8 == 0 && p.K > 64;
}
inline int64_t conv_packs_rows(const ConvParams& p) {
  const View4& w = p.weight;
  const auto whole = [](int64_t size, int64_t step) { return size == 1 || step % 8 == 0; };
  const bool lies_well = w.c == 1 && whole(p.G, p.weight_g) && whole(p.K, w.n) && whole(p.R, w.h) && whole(p.S, w.w) &&
                         reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
  return lies_well ? 0 : conv_packs(p, p.K);
}

// Tiles of pixels, those of all residues.
inline int64_t conv_pixel_tiles(const ConvParams& p) {
  const int64_t rows = (p.P + p.up_h - 1) / p.up_h, columns = (p.Q + p.up_w - 1) / p.up_w;
  return (p.N * rows * columns + kConvPixels - 1) / kConvPixels * p.up_h * p.up_w;
}
// Output channels of a tile; on tensor cores twice as many where there are enough tiles.
inline int64_t conv_tile_channels(const ConvParams& p) {
  return p.dtype == Dtype::kFloat64 || (!conv_on_tensor_cores(p) && p.K <= 32) ? 32 : 64;
}

inline int64_t conv_outputs(const ConvParams& p) { return p.N * p.G * p.K * p.P * p.Q; }
inline bool conv_dense_output(const ConvParams& p) {
  const View4& to = p.output;
  return (p.N - 1) * to.n + (p.G * p.K - 1) * to.c + (p.P - 1) * to.h + (p.Q - 1) * to.w + 1 == conv_outputs(p);
}

// Into how many parts the products split the sum of an output: few tiles would leave most of a GPU idle. It depends on
// the sizes alone, so that every GPU gives the same bits. The parts lie as the output does, one behind the other, in no
// more than 4 MB.
inline int64_t conv_sum_parts(const ConvParams& p, const ConvLimits& limits) {
  if (!conv_dense_output(p)) return 1;
  const int64_t channels = conv_tile_channels(p), tiles = conv_pixel_tiles(p) * p.G * ((p.K + channels - 1) / channels);
  const int64_t terms = p.C * conv_live(p.R, p.dilation_h, p.up_h).taps * conv_live(p.S, p.dilation_w, p.up_w).taps;
  return std::max(int64_t{1}, std::min(kConvBusy / tiles, terms / limits.terms));
}

inline ConvMemory conv_no_memory(const ConvParams&, const ConvLimits&) { return {0, 0}; }
inline ConvMemory conv_pixels_memory(const ConvParams& p, const ConvLimits&) { return {conv_packs(p, p.K), 0}; }
// Pieces of weights for tensor cores: 128 bytes each, those of 16 (8) channels by eight output channels.
inline int64_t conv_packs_pieces(const ConvParams& p, const ConvGroupTile& tile) {
  return p.G * p.K / kConvEight * p.R * p.S * tile.window.pieces * 128;
}
inline int64_t conv_input_bytes(const ConvParams& p) { return p.N * p.G * p.C * p.H * p.W * p.element_size(); }
inline int64_t conv_parts_bytes(const ConvParams& p, const ConvLimits& limits) {
  const int64_t parts = conv_sum_parts(p, limits);
  return parts > 1 ? conv_whole_lines(parts * conv_outputs(p) * conv_accumulate_bytes(p)) : 0;
}
inline ConvMemory conv_products_memory(const ConvParams& p, const ConvLimits& limits) {
  const int64_t rows = conv_for_warpgroups(p) ? conv_packs_rows(p) : 0;  // which chip it will be is not known here
  return {std::max(conv_packs_taps(p), rows),
          conv_parts_bytes(p, limits) + (conv_copies_input(p) ? conv_input_bytes(p) : 0)};
}
// Chips without tensor cores have others of their own: tiles of products where these are filled.
inline ConvMemory conv_grouped_memory(const ConvParams& p, const ConvLimits& limits) {
  const int64_t fours = conv_packs(p, conv_by_fours(p));
  const ConvGroupTile tile = conv_group_outputs(p);
  if (!tile.fits) return {fours, 0};
  const int64_t packed = std::max(fours, conv_packs_pieces(p, tile));
  if (!conv_fills_tiles(p)) return {packed, 0};
  return {std::max(packed, conv_products_memory(p, limits).packed), conv_parts_bytes(p, limits)};
}
// Where in a block of both the scratch memory begins.
inline int64_t conv_behind_packed(const ConvMemory& memory) { return conv_whole_lines(memory.packed); }

// As a row of the CPU's tables, but for a plan: `preferred` says whether a kernel should serve, `serves` whether it
// can.
struct ConvCudaRule {
  const char* name;
  bool (*preferred)(const ConvParams&);
  bool (*serves)(const ConvParams&);
  ConvMemory (*memory)(const ConvParams&, const ConvLimits&);  // of the gradient of the weights see cuda.cuh
};

// Also of the input gradient, and of transposed convolutions: all kernels take inputs that are spread out.
constexpr ConvCudaRule kConvCudaForward[] = {
    {"depthwise_planes", conv_always, conv_planes_serve, conv_no_memory},
    {"depthwise_pixels", conv_always, conv_pixels_serve, conv_pixels_memory},
    {"implicit_gemm", conv_products_pay, conv_small_sizes, conv_products_memory},
    {"grouped", conv_always, conv_grouped_serves, conv_grouped_memory},
    {"general", conv_always, conv_always, conv_no_memory}};
constexpr ConvCudaRule kConvCudaGradWeight[] = {{"depthwise", conv_always, conv_depthwise, conv_no_memory},
                                                {"grouped", conv_always, conv_group_weights_pay, conv_no_memory},
                                                {"implicit_gemm", conv_fills_tiles, conv_small_sizes, conv_no_memory},
                                                {"general", conv_always, conv_always, conv_no_memory}};

// The row that serves, or null: that of the name `only` does not, or there is none.
template <size_t Count, class PassBy>
const ConvCudaRule* conv_cuda_choose(const ConvCudaRule (&table)[Count], const ConvParams& p, const char* only,
                                     const PassBy& pass_by) {
  if (conv_adds_nothing(p)) only = table[Count - 1].name;
  return conv_first(table, p, {only, nullptr}, [&](const ConvCudaRule& rule) { return rule.serves(p); }, pass_by);
}
template <size_t Count>
const ConvCudaRule* conv_cuda_choose(const ConvCudaRule (&table)[Count], const ConvParams& p, const char* only) {
  return conv_cuda_choose(table, p, only, conv_pass_by_silently);
}

}  // namespace fastconv
