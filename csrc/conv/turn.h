// A convolution turned round, as other convolutions: what the input gradient and transposed convolutions come down to.
// Only params; no memory is touched.
#pragma once
#include <algorithm>
#include <numeric>

#include "conv/params.h"

namespace fastconv {

// The positions of one axis of the input that have one residue modulo the stride, and the taps that reach them, seen
// from grad_output: an ordinary convolution of stride 1. Position `begin + stride * u`, u in [0, positions), receives
// output `u + i * dilation - pad` through tap `first - i * period`, i in [0, taps).
struct Residue {
  int64_t begin, positions, taps, first, period, dilation, pad;
};

// Of so many residues there is one; no tap reaches the others.
inline int64_t residues(int64_t taps, int64_t stride, int64_t dilation) {
  return std::min(taps, stride / std::gcd(stride, dilation));
}

// The residue that tap `lowest` of the kernel reaches, and no tap before it.
inline Residue residue_of(int64_t lowest, int64_t size, int64_t taps, int64_t stride, int64_t dilation, int64_t pad) {
  Residue out;
  const int64_t shift = lowest * dilation - pad;
  out.begin = (shift % stride + stride) % stride;
  out.positions = out.begin < size ? (size - out.begin - 1) / stride + 1 : 0;
  out.period = stride / std::gcd(stride, dilation);
  out.taps = (taps - lowest + out.period - 1) / out.period;
  out.first = lowest + (out.taps - 1) * out.period;
  out.dilation = out.period * dilation / stride;
  out.pad = (out.taps - 1) * out.dilation - (out.begin - shift) / stride;
  return out;
}

// The convolution of grad_output, spread out by the strides, that yields the input gradient; `p` holds the forward
// convolution with `output` = grad_output and `input` = grad_input.
inline ConvParams spread_params(const ConvParams& p) {
  ConvParams q = p;
  q.C = p.K;
  q.K = p.C;
  q.H = p.P;
  q.W = p.Q;
  q.P = p.H;
  q.Q = p.W;
  q.stride_h = q.stride_w = 1;
  q.up_h = p.stride_h;
  q.up_w = p.stride_w;
  q.pad_h = (p.R - 1) * p.dilation_h - p.pad_h;
  q.pad_w = (p.S - 1) * p.dilation_w - p.pad_w;
  q.input = p.output;
  q.output = p.input;
  q.weight.data =
      static_cast<char*>(p.weight.data) + ((p.R - 1) * p.weight.h + (p.S - 1) * p.weight.w) * p.element_size();
  q.weight.n = p.weight.c;
  q.weight.c = p.weight.n;
  q.weight.h = -p.weight.h;
  q.weight.w = -p.weight.w;
  return q;
}

// The convolution of grad_output that yields the input gradient at the positions of one pair of residues; `p` as
// above.
inline ConvParams residue_params(const ConvParams& p, const Residue& h, const Residue& w) {
  ConvParams q = spread_params(p);
  q.up_h = q.up_w = 1;
  q.P = h.positions;
  q.Q = w.positions;
  q.R = h.taps;
  q.S = w.taps;
  q.dilation_h = h.dilation;
  q.dilation_w = w.dilation;
  q.pad_h = h.pad;
  q.pad_w = w.pad;
  const int64_t size = p.element_size();
  q.output.data = static_cast<char*>(p.input.data) + (h.begin * p.input.h + w.begin * p.input.w) * size;
  q.output.h = p.input.h * p.stride_h;
  q.output.w = p.input.w * p.stride_w;
  q.weight.data = static_cast<char*>(p.weight.data) + (h.first * p.weight.h + w.first * p.weight.w) * size;
  q.weight.h = -p.weight.h * h.period;
  q.weight.w = -p.weight.w * w.period;
  return q;
}

// A single row or column is the same however far it is spread out; as it is it has no residues without taps, of which
// there may be billions.
inline void gather_single(ConvParams& p) {
  if (p.H == 1) p.up_h = 1;
  if (p.W == 1) p.up_w = 1;
}

// A convolution of one tap that skips nothing is the same for every pixel, so rows are joined into one long row.
inline void join_rows(ConvParams& p) {
  const bool pointwise = p.R == 1 && p.S == 1 && p.stride_h == 1 && p.stride_w == 1 && p.pad_h == 0 && p.pad_w == 0;
  if (!pointwise || p.up_h > 1 || p.up_w > 1 || p.H != p.P || p.W != p.Q) return;
  if (p.input.h != p.W * p.input.w || p.output.h != p.Q * p.output.w) return;
  p.W = p.Q = p.H * p.W;
  p.H = p.P = 1;
}

}  // namespace fastconv
