// The operators of deformable convolution, written once for all devices: check, allocate, fill params, run. A `Device`
// is made of the operator's name and a tensor before anything is allocated; its members run forward or backward, with
// weights or without, on tensors that all have memory.
#pragma once
#include "deform/check.h"

namespace fastconv {

inline void* data_of(const Tensor& tensor) { return const_cast<void*>(tensor.const_data_ptr()); }

// The tensors that a call reads, as kernels read them.
struct DeformRead {
  MemoryFormat format;
  Tensor input, offset;
  std::optional<Tensor> weight, mask;

  DeformRead(const DeformArguments& a, DeformParams& p)
      : format(memory_format(a.input)),
        input(dense(a.input, format)),
        offset(dense(a.offset, memory_format(a.offset))) {
    p.channels_last = format == MemoryFormat::ChannelsLast;
    p.input = data_of(input);
    p.offset = map_of(offset);
    if (a.weight) {
      weight = dense(*a.weight);
      p.weight = data_of(*weight);
    }
    if (a.mask) {
      mask = dense(*a.mask, memory_format(*a.mask));
      p.mask = map_of(*mask);
    }
  }

 private:
  static DeformMap map_of(const Tensor& dense) {
    const int64_t channels = dense.size(1), pixels = dense.size(2) * dense.size(3);
    const bool last = memory_format(dense) == MemoryFormat::ChannelsLast;
    return {data_of(dense), channels * pixels, last ? 1 : pixels, last ? channels : 1};
  }
};

template <class Device>
struct DeformOperators {
  using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // those that are not wanted are empty

  static Tensor deform_conv2d(Tensor input, Tensor offset, Tensor weight, std::optional<Tensor> bias,
                              std::optional<Tensor> mask, Sizes stride, Sizes padding, Sizes dilation) {
    return forward({input, offset, &weight, {}, mask, stride, padding, dilation}, bias);
  }
  static Gradients deform_conv2d_grad(Tensor grad_output, Tensor input, Tensor offset, Tensor weight,
                                      std::optional<Tensor> mask, Sizes stride, Sizes padding, Sizes dilation,
                                      bool of_input, bool of_offset, bool of_weight, bool of_mask) {
    return backward(grad_output, {input, offset, &weight, {}, mask, stride, padding, dilation},
                    {of_input, of_offset, of_weight, of_mask});
  }

  static Tensor deform_sample2d(Tensor input, Tensor offset, std::optional<Tensor> mask, Sizes kernel, Sizes stride,
                                Sizes padding, Sizes dilation) {
    return forward({input, offset, nullptr, kernel, mask, stride, padding, dilation}, std::nullopt);
  }
  static std::tuple<Tensor, Tensor, Tensor> deform_sample2d_grad(Tensor grad_output, Tensor input, Tensor offset,
                                                                 std::optional<Tensor> mask, Sizes kernel, Sizes stride,
                                                                 Sizes padding, Sizes dilation, bool of_input,
                                                                 bool of_offset, bool of_mask) {
    const Gradients all = backward(grad_output, {input, offset, nullptr, kernel, mask, stride, padding, dilation},
                                   {of_input, of_offset, false, of_mask});
    return {std::get<0>(all), std::get<1>(all), std::get<3>(all)};
  }

 private:
  struct Wanted {
    bool input, offset, weight, mask;
  };

  static Tensor forward(const DeformArguments& a, const std::optional<Tensor>& bias) {
    DeformParams p = check_deform(a);
    if (bias) {
      check_same(a.op(), "bias", *bias, a.input);
      check_shape(a.op(), "bias", *bias, {p.K});
    }
    const Device device(a.op(), a.input);
    Tensor output = empty_as(a.input, Sizes{p.N, p.K, p.P, p.Q}, memory_format(a.input));
    if (output.numel() == 0) return output;
    const DeformRead read(a, p);
    Tensor added;
    if (bias) {
      added = dense(*bias);
      p.bias = data_of(added);
    }
    p.output = output.mutable_data_ptr();
    device.forward(p);
    return output;
  }

  static Gradients backward(Tensor grad_output, const DeformArguments& a, const Wanted& wanted) {
    DeformParams p = check_deform(a);
    check_same(a.op(), "grad_output", grad_output, a.input);
    check_shape(a.op(), "grad_output", grad_output, {p.N, p.K, p.P, p.Q});
    check(a.mask || !wanted.mask, a.op(), ": mask must be there for its gradient (got none)");
    const Device device(a.op(), a.input);
    const auto like = [&](bool wants, const Tensor* of) {
      if (!wants) return empty_as(a.input, Sizes{0}, MemoryFormat::Contiguous);
      return empty_as(a.input, sizes_of(*of), of == a.weight ? MemoryFormat::Contiguous : memory_format(*of));
    };
    Tensor grad_input = like(wanted.input, &a.input), grad_offset = like(wanted.offset, &a.offset);
    Tensor grad_weight = like(wanted.weight, a.weight), grad_mask = like(wanted.mask, a.mask ? &*a.mask : nullptr);
    if (p.N == 0 && wanted.weight) torch::stable::zero_(grad_weight);
    if (p.N > 0) {
      const DeformRead read(a, p);
      grad_output = dense(grad_output, read.format);
      p.output = data_of(grad_output);
      if (wanted.input) p.grad_input = grad_input.mutable_data_ptr();
      if (wanted.offset) p.grad_offset = grad_offset.mutable_data_ptr();
      if (wanted.weight) p.grad_weight = grad_weight.mutable_data_ptr();
      if (wanted.mask) p.grad_mask = grad_mask.mutable_data_ptr();
      device.backward(p);
    }
    return {grad_input, grad_offset, grad_weight, grad_mask};
  }
};

}  // namespace fastconv
