// What every host operator of the convolution family shares: the rules for its arguments, and the params they come down
// to. The operators take 1-D ([N, C, W]) and 2-D ([N, C, H, W]) convolutions; a 1-D one is a 2-D one of height 1.
#pragma once
#include "conv/turn.h"
#include "core/torch.h"

namespace fastconv {

struct ConvArguments {
  const char* op;               // "conv1d", "conv_transpose2d" and so on, for messages
  int64_t dims;                 // 1 or 2
  std::vector<int64_t> input;   // [N, G*C, H, W]
  std::vector<int64_t> weight;  // [G*K, C, R, S]
  std::vector<int64_t> output;  // [N, G*K, P, Q]
  int64_t stride[2], before[2], dilation[2], groups;
  int64_t extent[2];  // what the kernel spans, dilation included
};

// [N, C, W] as [N, C, 1, W].
inline std::vector<int64_t> as_2d(IntHeaderOnlyArrayRef sizes) {
  std::vector<int64_t> out(sizes.begin(), sizes.end());
  if (out.size() == 3) out.insert(out.begin() + 2, 1);
  return out;
}

// What convolutions and transposed ones have in common: everything but padding, channels and sizes.
inline ConvArguments check_common(const char* op, IntHeaderOnlyArrayRef input, IntHeaderOnlyArrayRef weight,
                                  IntHeaderOnlyArrayRef stride, IntHeaderOnlyArrayRef dilation, int64_t groups) {
  ConvArguments a;
  a.op = op;
  check(weight.size() == 3 || weight.size() == 4, op, ": weight must have 3 or 4 dimensions (got ", text(weight), ")");
  const size_t dims = weight.size() - 2;
  check(input.size() == weight.size(), op, ": input must have ", weight.size(), " dimensions, or ", weight.size() - 1,
        " without a batch (got ", text(input), ")");
  check_list(op, "stride", stride, dims, 1, "be positive");
  check_list(op, "dilation", dilation, dims, 1, "be positive");
  check(groups > 0, op, ": groups must be positive (got ", groups, ")");
  a.dims = static_cast<int64_t>(dims);
  a.groups = groups;
  a.weight = as_2d(weight);
  for (int64_t d = 0; d < 2; ++d) {
    const int64_t from = d - (2 - a.dims), taps = a.weight[2 + d];  // 1-D arguments have no height
    a.stride[d] = from < 0 ? 1 : stride[from];
    a.dilation[d] = from < 0 ? 1 : dilation[from];
    a.before[d] = 0;
    check(taps > 0, op, ": weight must not have an empty kernel (got ", text(weight), ")");
    check(taps <= kLargest, op, ": weight must be at most ", kLargest, " in every dimension (got ", text(weight), ")");
    a.extent[d] = a.dilation[d] * (taps - 1) + 1;
  }
  return a;
}

// padding: that before each dimension, then that after. The latter may be negative, which leaves out the end of the
// input: the gradient of a transposed convolution with output padding is such a convolution.
inline ConvArguments check_conv(IntHeaderOnlyArrayRef input, IntHeaderOnlyArrayRef weight, IntHeaderOnlyArrayRef stride,
                                IntHeaderOnlyArrayRef padding, IntHeaderOnlyArrayRef dilation, int64_t groups) {
  ConvArguments a = check_common(weight.size() == 3 ? "conv1d" : "conv2d", input, weight, stride, dilation, groups);
  check_list(a.op, "padding", padding, static_cast<size_t>(2 * a.dims), -kLargest, "not be negative");
  a.input = as_2d(input);
  check(a.weight[0] % groups == 0, a.op, ": groups must divide the number of output channels ", a.weight[0], " (got ",
        groups, ")");
  check(a.input[1] % groups == 0, a.op, ": groups must divide the number of input channels ", a.input[1], " (got ",
        groups, ")");
  check(a.input[1] / groups == a.weight[1], a.op, ": weight must have ", a.input[1] / groups,
        " channels, those of the input divided by groups (got ", text(weight), ")");
  a.output = {a.input[0], a.weight[0], 1, 1};
  for (int64_t from = 0; from < a.dims; ++from) {
    const int64_t d = from + 2 - a.dims;
    a.before[d] = padding[from];
    check(a.before[d] >= 0, a.op, ": padding must not be negative (got ", text(padding), ")");
    const int64_t padded = a.input[2 + d] + a.before[d] + padding[from + a.dims];
    check(a.extent[d] <= padded, a.op, ": weight must not have a kernel larger than the padded input, ", a.extent[d],
          " > ", padded, " in dimension ", d - 2, " (got ", text(weight), ")");
    a.output[2 + d] = (padded - a.extent[d]) / a.stride[d] + 1;
  }
  return a;
}

// The convolution that a transposed one turns round: `given`, [N, G*K, P, Q], is its output, and its input,
// [N, G*C, H, W], is what comes out. It pads by `padding` before and by `padding - output_padding` after.
inline ConvArguments check_conv_transpose(IntHeaderOnlyArrayRef given, IntHeaderOnlyArrayRef weight,
                                          IntHeaderOnlyArrayRef stride, IntHeaderOnlyArrayRef padding,
                                          IntHeaderOnlyArrayRef output_padding, IntHeaderOnlyArrayRef dilation,
                                          int64_t groups) {
  ConvArguments a = check_common(weight.size() == 3 ? "conv_transpose1d" : "conv_transpose2d", given, weight, stride,
                                 dilation, groups);
  const size_t dims = weight.size() - 2;
  check_list(a.op, "padding", padding, dims, 0, "not be negative");
  check_list(a.op, "output_padding", output_padding, dims, 0, "not be negative");
  a.output = as_2d(given);
  check(a.output[1] > 0, a.op, ": input must have channels (got ", text(given), ")");
  check(a.output[1] == a.weight[0], a.op, ": weight must have ", a.output[1],
        " channels in its first dimension, those of the input (got ", text(weight), ")");
  check(a.output[1] % groups == 0, a.op, ": groups must divide the number of input channels ", a.output[1], " (got ",
        groups, ")");
  a.input = {a.output[0], a.weight[1] * groups, 1, 1};
  for (int64_t from = 0; from < a.dims; ++from) {
    const int64_t d = from + 2 - a.dims, size = a.output[2 + d], more = output_padding[from];
    a.before[d] = padding[from];
    check(more < a.stride[d] || more < a.dilation[d], a.op,
          ": output_padding must be smaller than stride or dilation, ", a.stride[d], " and ", a.dilation[d],
          " in dimension ", d - 2, " (got ", text(output_padding), ")");
    check(size > 0, a.op, ": input must not be empty in dimension ", d - 2, " (got ", text(given), ")");
    check(size <= INT64_MAX / 4 / a.stride[d], a.op, ": output must fit into memory (got input ", text(given), ")");
    a.input[2 + d] = (size - 1) * a.stride[d] + a.extent[d] + more - 2 * a.before[d];
    check(a.input[2 + d] > 0, a.op, ": padding must leave at least one output, not ", a.input[2 + d], ", in dimension ",
          d - 2, " (got ", text(padding), ")");
  }
  return a;
}

// The sizes to give back: without the height that a 1-D convolution does not have.
inline std::vector<int64_t> result_sizes(const ConvArguments& a, std::vector<int64_t> sizes) {
  if (a.dims == 1) sizes.erase(sizes.begin() + 2);
  return sizes;
}

inline View4 view_of(void* data, IntHeaderOnlyArrayRef strides) {
  if (strides.size() == 3) return {data, strides[0], strides[1], 0, strides[2]};
  return {data, strides[0], strides[1], strides[2], strides[3]};
}

inline View4 view_of(const Tensor& t, const void* data) { return view_of(const_cast<void*>(data), t.strides()); }

// Whether the kernels can read a view: its w or c must have stride 1. Strides of dimensions of size 1 mean nothing, so
// they are chosen to say which layout it is.
inline bool settle(View4& v, int64_t channels, int64_t columns, int64_t elements) {
  if (channels == 1) v.c = v.w == 1 ? elements : 1;
  if (columns == 1) v.w = v.c == 1 && channels > 1 ? channels : 1;
  return v.w == 1 || v.c == 1;
}

// A view that the kernels can read; `tensor` is replaced by a dense copy where they could not.
inline View4 readable(Tensor& tensor) {
  for (bool copied = false;; copied = true) {
    View4 v = view_of(tensor, tensor.const_data_ptr());
    if (settle(v, tensor.size(1), tensor.size(tensor.dim() - 1), tensor.numel()) || copied) return v;
    tensor = dense(tensor, memory_format(tensor));
  }
}

inline ConvParams conv_params(const ConvArguments& a, Dtype dtype, bool allow_tf32 = false) {
  ConvParams p;
  p.dtype = dtype;
  p.N = a.input[0];
  p.G = a.groups;
  p.C = a.weight[1];
  p.K = a.weight[0] / a.groups;
  p.H = a.input[2];
  p.W = a.input[3];
  p.P = a.output[2];
  p.Q = a.output[3];
  p.R = a.weight[2];
  p.S = a.weight[3];
  p.stride_h = a.stride[0];
  p.stride_w = a.stride[1];
  p.dilation_h = a.dilation[0];
  p.dilation_w = a.dilation[1];
  p.pad_h = a.before[0];
  p.pad_w = a.before[1];
  p.up_h = p.up_w = 1;
  p.bias = nullptr;
  p.residual = nullptr;
  p.activation = Activation::kNone;
  p.tf32 = allow_tf32 && dtype == Dtype::kFloat32;
  p.prepacked = false;
  p.halved = false;
  p.threads = 1;
  return p;
}

}  // namespace fastconv
