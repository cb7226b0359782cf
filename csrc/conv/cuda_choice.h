// Which CUDA kernel serves a convolution: two tables in the order in which they are asked, of names and rules. Plain
// C++ that knows neither CUDA nor PyTorch, because whoever explains a call wants to know it on any machine. The kernels
// themselves stand in cuda.cuh, in the same order.
#pragma once
#include <algorithm>

#include "conv/table.h"

namespace fastconv {

// Outputs that a thread of the depthwise kernels has, one below (or beside) the other.
constexpr int64_t kConvStrip = 4;
// What a block of it gets without asking.
constexpr int64_t kConvShared = 48 << 10;
// Below so many output channels of a group a tile of products is mostly empty.
constexpr int64_t kConvFewChannels = 12;
// Output channels of a thread where they are few.
constexpr int64_t kConvFour = 4;

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
inline bool conv_products_pay(const ConvParams& p) { return p.K >= kConvFewChannels && p.C * p.R * p.S >= 8; }
inline bool conv_grouped_serves(const ConvParams& p) { return conv_both_last(p) || conv_both_planes(p); }
inline bool conv_always(const ConvParams&) { return true; }

inline int64_t conv_weight_elements(const ConvParams& p) { return p.G * p.K * p.C * p.R * p.S; }
inline int64_t conv_packs_all(const ConvParams& p) { return conv_weight_elements(p) * p.element_size(); }
inline int64_t conv_packs_none(const ConvParams&) { return 0; }
// Output channels of a group in packed weights, with zeros behind the last: tensor cores are given eight at once.
inline int64_t conv_by_fours(const ConvParams& p) { return (p.K + kConvFour - 1) / kConvFour * kConvFour; }
inline int64_t conv_by_eights(const ConvParams& p) { return p.element_size() == 2 ? (p.K + 7) / 8 * 8 : p.K; }
inline int64_t conv_packs(const ConvParams& p, int64_t channels) {
  return p.G * p.R * p.S * p.C * channels * p.element_size();
}
inline int64_t conv_packs_fours(const ConvParams& p) { return conv_packs(p, conv_by_fours(p)); }
// Weights of one tap are read as they lie where they can be.
inline int64_t conv_packs_taps(const ConvParams& p) {
  const View4& w = p.weight;
  const bool eights =
      p.K % 8 == 0 && w.c % 8 == 0 && p.weight_g % 8 == 0 && reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
  const bool lies_well = p.element_size() == 2 ? w.n == 1 && eights : w.n == 1 || w.c == 1 || p.C == 1;
  return p.R * p.S == 1 && lies_well ? 0 : conv_packs(p, conv_by_eights(p));
}

// As a row of the CPU's tables, but for a plan: `preferred` says whether a kernel should serve, `serves` whether it
// can.
struct ConvCudaRule {
  const char* name;
  bool (*preferred)(const ConvParams&);
  bool (*serves)(const ConvParams&);
  int64_t (*packs)(const ConvParams&);  // bytes of weights in another order
};

// Also of the input gradient, and of transposed convolutions: all kernels take inputs that are spread out.
constexpr ConvCudaRule kConvCudaForward[] = {{"depthwise_planes", conv_always, conv_planes_serve, conv_packs_none},
                                             {"depthwise_pixels", conv_always, conv_pixels_serve, conv_packs_all},
                                             {"implicit_gemm", conv_products_pay, conv_small_sizes, conv_packs_taps},
                                             {"grouped", conv_always, conv_grouped_serves, conv_packs_fours},
                                             {"general", conv_always, conv_always, conv_packs_none}};
constexpr ConvCudaRule kConvCudaGradWeight[] = {{"depthwise", conv_always, conv_depthwise, conv_packs_none},
                                                {"implicit_gemm", conv_products_pay, conv_small_sizes, conv_packs_none},
                                                {"general", conv_always, conv_always, conv_packs_none}};

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
