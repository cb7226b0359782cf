// Deformable convolution for CPU tensors: check, allocate, fill params, run.
#include "deform/check.h"

namespace fastconv {
namespace {

constexpr double kSmallProducts = 1 << 16;  // below so many a second thread costs more than it saves

void run(const DeformKernel& kernel, DeformParams& p) {
  const double products =
      static_cast<double>(p.N * p.K * p.P * p.Q) * static_cast<double>((p.weight ? p.C / p.groups : 1) * p.R * p.S);
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
  Tensor input, offset;
  std::optional<Tensor> weight, mask;

  Read(const DeformArguments& a, DeformParams& p)
      : format(memory_format(a.input)), input(torch::stable::contiguous(a.input, format)), offset(dense(a.offset)) {
    p.channels_last = format == MemoryFormat::ChannelsLast;
    p.input = data(input);
    p.offset = map_of(offset);
    if (a.weight) {
      weight = torch::stable::contiguous(*a.weight);
      p.weight = data(*weight);
    }
    if (a.mask) {
      mask = dense(*a.mask);
      p.mask = map_of(*mask);
    }
  }
};

Tensor forward(const DeformArguments& a, const std::optional<Tensor>& bias) {
  DeformParams p = check_deform(a);
  if (bias) {
    check_same(a.op(), "bias", *bias, a.input);
    check_shape(a.op(), "bias", *bias, {p.K});
  }
  Tensor output = empty_as(a.input, Sizes{p.N, p.K, p.P, p.Q}, memory_format(a.input));
  if (output.numel() == 0) return output;
  const Read read(a, p);
  Tensor added;
  if (bias) {
    added = torch::stable::contiguous(*bias);
    p.bias = data(added);
  }
  p.output = output.mutable_data_ptr();
  const DeformKernels& kernels = FASTCONV_KERNELS(deform_kernels);
  run(a.weight ? kernels.forward : kernels.sampling, p);
  return output;
}

struct Wanted {
  bool input, offset, weight, mask;
};
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // those that are not wanted are empty

Gradients backward(Tensor grad_output, const DeformArguments& a, const Wanted& wanted) {
  DeformParams p = check_deform(a);
  check_same(a.op(), "grad_output", grad_output, a.input);
  check_shape(a.op(), "grad_output", grad_output, {p.N, p.K, p.P, p.Q});
  check(a.mask || !wanted.mask, a.op(), ": mask must be there for its gradient (got none)");
  const auto like = [&](bool wants, const Tensor* of) {
    if (!wants) return empty_as(a.input, Sizes{0}, MemoryFormat::Contiguous);
    return empty_as(a.input, sizes_of(*of), of == a.weight ? MemoryFormat::Contiguous : memory_format(*of));
  };
  Tensor grad_input = like(wanted.input, &a.input), grad_offset = like(wanted.offset, &a.offset);
  Tensor grad_weight = like(wanted.weight, a.weight), grad_mask = like(wanted.mask, a.mask ? &*a.mask : nullptr);
  if (p.N == 0 && wanted.weight) torch::stable::zero_(grad_weight);
  if (p.N > 0) {
    const Read read(a, p);
    grad_output = torch::stable::contiguous(grad_output, read.format);
    p.output = data(grad_output);
    if (wanted.input) p.grad_input = grad_input.mutable_data_ptr();
    if (wanted.offset) p.grad_offset = grad_offset.mutable_data_ptr();
    if (wanted.weight) p.grad_weight = grad_weight.mutable_data_ptr();
    if (wanted.mask) p.grad_mask = grad_mask.mutable_data_ptr();
    run(FASTCONV_KERNELS(deform_kernels).backward, p);
  }
  return {grad_input, grad_offset, grad_weight, grad_mask};
}

Tensor deform_conv2d(Tensor input, Tensor offset, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> mask,
                     Sizes stride, Sizes padding, Sizes dilation) {
  return forward({input, offset, &weight, {}, mask, stride, padding, dilation}, bias);
}

Gradients deform_conv2d_grad(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, std::optional<Tensor> mask,
                             Sizes stride, Sizes padding, Sizes dilation, bool of_input, bool of_offset, bool of_weight,
                             bool of_mask) {
  return backward(grad_output, {input, offset, &weight, {}, mask, stride, padding, dilation},
                  {of_input, of_offset, of_weight, of_mask});
}

Tensor deform_sample2d(Tensor input, Tensor offset, std::optional<Tensor> mask, Sizes kernel, Sizes stride,
                       Sizes padding, Sizes dilation) {
  return forward({input, offset, nullptr, kernel, mask, stride, padding, dilation}, std::nullopt);
}

std::tuple<Tensor, Tensor, Tensor> deform_sample2d_grad(Tensor grad_output, Tensor input, Tensor offset,
                                                        std::optional<Tensor> mask, Sizes kernel, Sizes stride,
                                                        Sizes padding, Sizes dilation, bool of_input, bool of_offset,
                                                        bool of_mask) {
  const Gradients all = backward(grad_output, {input, offset, nullptr, kernel, mask, stride, padding, dilation},
                                 {of_input, of_offset, false, of_mask});
  return {std::get<0>(all), std::get<1>(all), std::get<3>(all)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("_deform_conv2d_grad", TORCH_BOX(&deform_conv2d_grad));
  m.impl("deform_sample2d", TORCH_BOX(&deform_sample2d));
  m.impl("_deform_sample2d_grad", TORCH_BOX(&deform_sample2d_grad));
}

}  // namespace fastconv
