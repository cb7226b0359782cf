// How diagonal.h shares out a layer: blocks of channels, strips of rows, and the input rows that a register tile reads.
#pragma once
#include "conv/spread.h"

namespace fastconv {
namespace {

constexpr int kDiagonalColumns = kVecRegisters == 32 ? 7 : 4;
constexpr int kDiagonalRows = 2;

// An input row, and which row of the kernel connects it with each output row of the tile, -1 for none.
struct DiagonalLine {
  int64_t offset;
  int32_t r[kDiagonalRows];
};

// The input rows of output rows [p0, p0 + rows).
inline int64_t diagonal_lines(const ConvParams& p, int64_t x_row, int64_t p0, int64_t rows, DiagonalLine* lines) {
  const int64_t first = p0 * p.stride_h - p.pad_h;
  const int64_t last = first + (rows - 1) * p.stride_h + (p.R - 1) * p.dilation_h;
  int64_t found = 0;
  for (int64_t h = max64(0, first); h <= min64(p.H - 1, last); ++h) {
    DiagonalLine line = {h * x_row, {-1, -1}};
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t shift = h - first - k * p.stride_h;
      if (shift < 0) continue;
      const int64_t r = p.dilation_h == 1 ? shift : shift / p.dilation_h;  // divisions take longer than all else here
      if (r * p.dilation_h == shift && r < p.R) line.r[k] = static_cast<int32_t>(r);
    }
    if (line.r[0] >= 0 || line.r[1] >= 0) lines[found++] = line;
  }
  return found;
}

// Residues of a spread-out input that run side by side: what one has read the others find in the first-level cache, and
// lines of the output are written in the order of memory.
constexpr int64_t kDiagonalParts = 4;

inline int64_t diagonal_parts(const ConvParams& p) { return min64(kDiagonalParts, p.up_h * p.up_w); }

inline int64_t diagonal_most_lines(const ConvParams& p) { return kDiagonalRows * p.R; }

struct DiagonalPlan {
  bool in_place;                  // channels_last
  int64_t blocks, group, groups;  // vectors of channels, of a work item, and how many such items
  int64_t rows, strips;           // output rows of a work item, and how many such items; of spread_base
  int64_t x_elements, acc_elements;
};

template <class A>
int64_t diagonal_thread_bytes(const ConvParams& p, const DiagonalPlan& plan) {
  Carver carve(nullptr);
  carve.take<DiagonalLine>(diagonal_parts(p) * diagonal_most_lines(p));
  carve.take<A>(plan.x_elements);
  carve.take<A>(plan.acc_elements);
  return carve.used();
}

constexpr int64_t kDiagonalWeights = 16 << 10;  // bytes of weights that stay in the first-level cache
constexpr int64_t kDiagonalScratch = 8 << 20;

// Input rows that `rows` output rows read.
inline int64_t diagonal_span(const ConvParams& p, int64_t rows) {
  return (rows - 1) * p.stride_h + (p.R - 1) * p.dilation_h + 1;
}

template <class A>
bool diagonal_plan(const ConvParams& p, DiagonalPlan& plan) {
  constexpr int64_t L = kLanes<A>;
  const ConvParams base = spread_base(p);
  if (p.C != 1 || p.K != 1 || p.stride_w > 2 || p.dilation_w != 1 || spread_too_far(p, base)) return false;
  plan.in_place = p.input.c == 1 && p.output.c == 1;
  plan.blocks = ceil_div(p.G, L);
  plan.group = plan.in_place ? max64(1, min64(plan.blocks, kDiagonalWeights / (p.R * p.S * kVecBytes))) : 1;
  plan.groups = ceil_div(plan.blocks, plan.group);
  plan.group = ceil_div(plan.blocks, plan.groups);
  // Strips of rows where there is too little else to share out, not so low that transposing their borders tells.
  const int64_t lowest = plan.in_place ? 8 : max64(16, 4 * base.R);
  const int64_t wanted = ceil_div(8 * p.threads, p.N * plan.groups);
  plan.rows = round_up(ceil_div(base.P, min64(wanted, ceil_div(base.P, lowest))), kDiagonalRows);
  const auto elements = [&](int64_t rows) {
    return (min64(p.H, diagonal_span(base, rows)) * p.W + rows * p.up_h * p.Q) * L;
  };
  if (!plan.in_place)
    while (plan.rows > kDiagonalRows && elements(plan.rows) * static_cast<int64_t>(sizeof(A)) > kDiagonalScratch)
      plan.rows = round_up(plan.rows / 2, kDiagonalRows);
  plan.strips = ceil_div(base.P, plan.rows);
  plan.acc_elements = plan.in_place ? 0 : plan.rows * p.up_h * p.Q * L;
  plan.x_elements = plan.in_place ? 0 : elements(plan.rows) - plan.acc_elements;
  return plan.in_place || elements(plan.rows) * static_cast<int64_t>(sizeof(A)) <= kDiagonalScratch;
}

}  // namespace
}  // namespace fastconv
