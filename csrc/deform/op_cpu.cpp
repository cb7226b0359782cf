// Deformable convolution for CPU tensors: check, allocate, fill params, run.
#include "deform/check.h"

namespace fastconv {
namespace {

constexpr double kSmallProducts = 1 << 16;  // below so many a second thread costs more than it saves

void run(const DeformKernel& kernel, DeformParams& p) {
  const double products = static_cast<double>(p.N * p.K * p.P * p.Q) * static_cast<double>(p.C / p.groups * p.R * p.S);
  p.threads = products < kSmallProducts ? 1 : static_cast<int>(torch::stable::get_num_threads());
  const int64_t bytes = kernel.scratch(p);
  const Tensor scratch = torch::stable::empty(IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte);
  kernel.run(p, scratch.mutable_data_ptr());
}

void* data(const Tensor& tensor) { return const_cast<void*>(tensor.const_data_ptr()); }

// In the memory format that it has, if it is one.
Tensor dense(const Tensor& tensor) { return torch::stable::contiguous(tensor, memory_format(tensor)); }

DeformMap map_of(const Tensor& dense) {
  const int64_t channels = dense.size(1), pixels = dense.size(2) * dense.size(3);
  const bool last = memory_format(dense) == MemoryFormat::ChannelsLast;
  return {data(dense), channels * pixels, last ? 1 : pixels, last ? channels : 1};
}

// The tensors that a call reads, as kernels read them.
struct Read {
  MemoryFormat format;
  Tensor input, offset, weight;
  std::optional<Tensor> mask;

  Read(const DeformArguments& a, DeformParams& p)
      : format(memory_format(a.input)),
        input(torch::stable::contiguous(a.input, format)),
        offset(dense(a.offset)),
        weight(torch::stable::contiguous(a.weight)) {
    p.channels_last = format == MemoryFormat::ChannelsLast;
    p.input = data(input);
    p.offset = map_of(offset);
    p.weight = data(weight);
    if (!a.mask) return;
    mask = dense(*a.mask);
    p.mask = map_of(*mask);
  }
};

Tensor deform_conv2d(Tensor input, Tensor offset, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> mask,
                     Sizes stride, Sizes padding, Sizes dilation) {
  const DeformArguments a = {input, offset, weight, mask, stride, padding, dilation};
  DeformParams p = check_deform(a);
  if (bias) {
    check_same(kDeform, "bias", *bias, input);
    check_shape(kDeform, "bias", *bias, {p.K});
  }
  Tensor output = empty_as(input, Sizes{p.N, p.K, p.P, p.Q}, memory_format(input));
  if (output.numel() == 0) return output;
  const Read read(a, p);
  Tensor added;
  if (bias) {
    added = torch::stable::contiguous(*bias);
    p.bias = data(added);
  }
  p.output = output.mutable_data_ptr();
  run(FASTCONV_KERNELS(deform_kernels).forward, p);
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_conv2d_grad(Tensor grad_output, Tensor input, Tensor offset,
                                                              Tensor weight, std::optional<Tensor> mask, Sizes stride,
                                                              Sizes padding, Sizes dilation, bool of_input,
                                                              bool of_offset, bool of_weight, bool of_mask) {
  const DeformArguments a = {input, offset, weight, mask, stride, padding, dilation};
  DeformParams p = check_deform(a);
  check_same(kDeform, "grad_output", grad_output, input);
  check_shape(kDeform, "grad_output", grad_output, {p.N, p.K, p.P, p.Q});
  check(mask || !of_mask, kDeform, ": mask must be there for its gradient (got none)");
  const auto like = [&](const Tensor& of, bool wanted, MemoryFormat format) {
    return wanted ? empty_as(input, sizes_of(of), format) : empty_as(input, Sizes{0}, MemoryFormat::Contiguous);
  };
  Tensor grad_input = like(input, of_input, memory_format(input));
  Tensor grad_offset = like(offset, of_offset, memory_format(offset));
  Tensor grad_weight = like(weight, of_weight, MemoryFormat::Contiguous);
  Tensor grad_mask = like(of_mask ? *mask : offset, of_mask, of_mask ? memory_format(*mask) : MemoryFormat::Contiguous);
  if (p.N == 0 && of_weight) torch::stable::zero_(grad_weight);
  if (p.N > 0) {
    const Read read(a, p);
    grad_output = torch::stable::contiguous(grad_output, read.format);
    p.output = data(grad_output);
    if (of_input) p.grad_input = grad_input.mutable_data_ptr();
    if (of_offset) p.grad_offset = grad_offset.mutable_data_ptr();
    if (of_weight) p.grad_weight = grad_weight.mutable_data_ptr();
    if (of_mask) p.grad_mask = grad_mask.mutable_data_ptr();
    run(FASTCONV_KERNELS(deform_kernels).backward, p);
  }
  return {grad_input, grad_offset, grad_weight, grad_mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("_deform_conv2d_grad", TORCH_BOX(&deform_conv2d_grad));
}

}  // namespace fastconv
