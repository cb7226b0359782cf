// What the host operators of deformable convolution share: the rules for their arguments, and the params they come down
// to.
#pragma once
#include <optional>

#include "core/torch.h"
#include "deform/params.h"

namespace fastconv {

// `weight`, or where there is none `kernel`: [R, S].
struct DeformArguments {
  const Tensor &input, &offset;
  const Tensor* weight;
  const Sizes& kernel;
  const std::optional<Tensor>& mask;
  const Sizes &stride, &padding, &dilation;

  const char* op() const { return weight ? "deform_conv2d" : "deform_sample2d"; }
};

constexpr int64_t kMostDeformPositions = INT32_MAX;

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// Output channels and groups, from the weight.
inline void check_deform_weight(const char* op, const Sizes& weight, DeformParams& p) {
  check(p.C % weight[1] == 0, op, ": weight must have a divisor of input's ", p.C, " channels in dimension 1 (got ",
        text(weight), ")");
  p.K = weight[0];
  p.groups = p.C / weight[1];
  check(p.K % p.groups == 0, op, ": weight must have a multiple of ", p.groups, " output channels, its groups (got ",
        text(weight), ")");
}

// The size of the output, from that of the kernel. `name`, `given`: the argument that says it.
inline void check_deform_windows(const DeformArguments& a, const char* name, const Sizes& given, DeformParams& p) {
  const char* op = a.op();
  const int64_t input[2] = {p.H, p.W}, kernel[2] = {p.R, p.S};
  int64_t output[2];
  for (int d = 0; d < 2; ++d) {
    p.stride[d] = a.stride[d];
    p.padding[d] = a.padding[d];
    p.dilation[d] = a.dilation[d];
    const int64_t padded = input[d] + 2 * p.padding[d];
    check(kernel[d] <= kLargest, op, ": ", name, " must be at most ", kLargest, " in every dimension (got ",
          text(given), ")");
    const int64_t extent = p.dilation[d] * (kernel[d] - 1) + 1;
    check(extent <= padded, op, ": ", name, " must not span more than the padded input, ", extent, " > ", padded,
          " in dimension ", d, " (got ", text(given), ")");
    output[d] = (padded - extent) / p.stride[d] + 1;
  }
  p.P = output[0];
  p.Q = output[1];
}

// Everything but pointers.
inline DeformParams check_deform(const DeformArguments& a) {
  const char* op = a.op();
  const Sizes input = sizes_of(a.input), offset = sizes_of(a.offset);
  const Sizes weight = a.weight ? sizes_of(*a.weight) : Sizes{1, 1, 1, 1};
  check(input.size() == 4, op, ": input must have 4 dimensions (got ", text(input), ")");
  check(weight.size() == 4, op, ": weight must have 4 dimensions (got ", text(weight), ")");
  check(offset.size() == 4, op, ": offset must have 4 dimensions (got ", text(offset), ")");
  DeformParams p = {};
  p.dtype = dtype_of(op, a.input);
  check_same(op, "offset", a.offset, a.input);
  if (a.weight) check_same(op, "weight", *a.weight, a.input);
  if (!a.weight) check_list(op, "kernel_size", a.kernel, 2, 1, "be positive");
  check_list(op, "stride", a.stride, 2, 1, "be positive");
  check_list(op, "padding", a.padding, 2, 0, "not be negative");
  check_list(op, "dilation", a.dilation, 2, 1, "be positive");
  for (size_t d = 1; d < 4; ++d)
    check(input[d] > 0, op, ": input must not be empty but for its batch (got ", text(input), ")");
  for (size_t d = 0; d < 4; ++d) check(weight[d] > 0, op, ": weight must not be empty (got ", text(weight), ")");
  check(input[3] <= kMostDeformPositions / input[2], op, ": input must have at most ", kMostDeformPositions,
        " positions a plane (got ", text(input), ")");
  p.N = input[0];
  p.C = p.K = input[1];
  p.H = input[2];
  p.W = input[3];
  p.groups = 1;
  p.R = a.weight ? weight[2] : a.kernel[0];
  p.S = a.weight ? weight[3] : a.kernel[1];
  if (a.weight) check_deform_weight(op, weight, p);
  check_deform_windows(a, a.weight ? "weight" : "kernel_size", a.weight ? weight : a.kernel, p);
  check(p.R <= kLargest / p.S, op, ": ", a.weight ? "weight" : "kernel_size", " must have at most ", kLargest,
        " taps (got ", text(a.weight ? weight : a.kernel), ")");
  const int64_t each = 2 * p.R * p.S;
  check(offset[1] > 0 && offset[1] % each == 0 && p.C % (offset[1] / each) == 0, op, ": offset must have ", each,
        " channels for each of its groups, whose number divides ", p.C, " (got ", text(offset), ")");
  p.offset_groups = offset[1] / each;
  check_shape(op, "offset", a.offset, {p.N, offset[1], p.P, p.Q});
  if (a.mask) {
    check_same(op, "mask", *a.mask, a.input);
    check_shape(op, "mask", *a.mask, {p.N, offset[1] / 2, p.P, p.Q});
  }
  return p;
}

}  // namespace fastconv
