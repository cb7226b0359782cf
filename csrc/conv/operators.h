// The convolution operators, written once for all devices: check, allocate, fill params, run. A `Device` is made of the
// operator's name and a tensor, after the arguments were checked and before anything is allocated; its members run a
// convolution, one turned round (`output` and `input` of the params change places, see turn.h) or the gradient of the
// weight, on tensors that all have memory. Where `Device::kProducts`, it makes a product of matrices of what comes from
// one pixel.
#pragma once
#include "conv/check.h"

namespace fastconv {

inline void check_bias(const char* op, const std::optional<Tensor>& bias, int64_t channels, const Tensor& input) {
  if (!bias) return;
  check_same(op, "bias", *bias, input);
  check(bias->dim() == 1 && bias->size(0) == channels, op, ": bias must have shape [", channels, "] (got ",
        text(bias->sizes()), ")");
}

// Its elements, side by side.
inline const void* dense_bias(std::optional<Tensor>& bias) {
  if (!bias) return nullptr;
  bias = dense(*bias);
  return bias->const_data_ptr();
}

inline Activation activation_of(const char* op, const std::optional<std::string>& name) {
  if (!name) return Activation::kNone;
  constexpr const char* kNames[] = {"relu", "relu6", "silu", "hardswish"};  // in the order of the enumeration
  for (int i = 0; i < 4; ++i)
    if (*name == kNames[i]) return static_cast<Activation>(i + 1);
  check(false, op, ": activation must be None, 'relu', 'relu6', 'silu' or 'hardswish' (got '", *name, "')");
  return Activation::kNone;
}

// A convolution whose arguments were checked, with its output allocated. Holds copies of tensors that the kernels could
// not read where they lay.
template <class Device>
struct ConvForward {
  ConvArguments a;
  ConvParams p;
  Device device;
  Tensor input, output;
  std::optional<Tensor> bias, residual;

  ConvForward(Tensor given, const Tensor& weight, std::optional<Tensor> given_bias, const Sizes& stride,
              const Sizes& padding, const Sizes& dilation, int64_t groups, std::optional<Tensor> given_residual,
              const std::optional<std::string>& activation, bool allow_tf32 = false)
      : a(check_conv(given.sizes(), weight.sizes(), stride, padding, dilation, groups)),
        p(checked_params(given, weight, given_bias, given_residual, activation, allow_tf32)),
        device(a.op, given),
        input(std::move(given)),
        bias(std::move(given_bias)),
        residual(std::move(given_residual)) {
    const MemoryFormat format = memory_format(input);
    p.bias = dense_bias(bias);
    output = empty_as(input, result_sizes(a, a.output), format);
    if (output.numel() == 0) return;
    if (residual) {
      residual = dense(*residual, format);
      p.residual = residual->const_data_ptr();
    }
    p.input = readable(input);
    p.weight = view_of(weight, weight.const_data_ptr());
    p.weight_g = p.K * p.weight.n;
    p.output = readable(output);
  }

 private:
  ConvParams checked_params(const Tensor& given, const Tensor& weight, const std::optional<Tensor>& given_bias,
                            const std::optional<Tensor>& given_residual, const std::optional<std::string>& activation,
                            bool allow_tf32) const {
    ConvParams made = conv_params(a, dtype_of(a.op, given), allow_tf32);
    check_same(a.op, "weight", weight, given);
    check_bias(a.op, given_bias, a.weight[0], given);
    if (given_residual) {
      check_same(a.op, "residual", *given_residual, given);
      check_shape(a.op, "residual", *given_residual, result_sizes(a, a.output));
    }
    made.activation = activation_of(a.op, activation);
    return made;
  }
};

// What comes from one pixel has the layout of the weight first: it is smaller, and better copied.
inline bool conv_from_one_pixel(const ConvParams& p) { return p.P == 1 && p.Q == 1; }

template <class Device>
struct ConvOperators {
  static Tensor conv(Tensor input, Tensor weight, std::optional<Tensor> bias, Sizes stride, Sizes padding,
                     Sizes dilation, int64_t groups, std::optional<Tensor> residual,
                     std::optional<std::string> activation, bool allow_tf32) {
    const ConvForward<Device> f(input, weight, bias, stride, padding, dilation, groups, residual, activation,
                                allow_tf32);
    if (f.output.numel() > 0) f.device.forward(f.p);
    return f.output;
  }

  static Tensor conv_transpose(Tensor input, Tensor weight, std::optional<Tensor> bias, Sizes stride, Sizes padding,
                               Sizes output_padding, Sizes dilation, int64_t groups, bool allow_tf32) {
    const ConvArguments a =
        check_conv_transpose(input.sizes(), weight.sizes(), stride, padding, output_padding, dilation, groups);
    ConvParams p = conv_params(a, dtype_of(a.op, input), allow_tf32);
    check_same(a.op, "weight", weight, input);
    check_bias(a.op, bias, a.input[1], input);
    const Device device(a.op, input);
    p.bias = dense_bias(bias);
    return transposed(device, a, p, input, weight);
  }

  static Tensor conv_grad_input(Tensor grad_output, Tensor weight, Sizes input_size, Sizes stride, Sizes padding,
                                Sizes dilation, int64_t groups, bool allow_tf32) {
    const ConvArguments a = check_conv(input_size, weight.sizes(), stride, padding, dilation, groups);
    const ConvParams p = conv_params(a, dtype_of(a.op, grad_output), allow_tf32);
    check_same(a.op, "weight", weight, grad_output);
    check_shape(a.op, "grad_output", grad_output, result_sizes(a, a.output));
    return transposed(Device(a.op, grad_output), a, p, grad_output, weight);
  }

  static Tensor conv_grad_weight(Tensor grad_output, Tensor input, Sizes weight_size, Sizes stride, Sizes padding,
                                 Sizes dilation, int64_t groups, bool allow_tf32) {
    const ConvArguments a = check_conv(input.sizes(), weight_size, stride, padding, dilation, groups);
    const Dtype dtype = dtype_of(a.op, input);
    check_same(a.op, "grad_output", grad_output, input);
    check_shape(a.op, "grad_output", grad_output, result_sizes(a, a.output));
    const Device device(a.op, input);
    Tensor result = empty_as(input, weight_size, MemoryFormat::Contiguous);
    if (result.numel() == 0) return result;
    if (input.numel() == 0 || grad_output.numel() == 0) return torch::stable::zero_(result);
    ConvParams p = conv_params(a, dtype, allow_tf32);
    p.input = readable(input);
    p.output = readable(grad_output);
    p.weight = view_of(result, result.mutable_data_ptr());
    p.weight_g = p.K * p.weight.n;
    device.grad_weight(p);
    return result;
  }

 private:
  // The convolution `p` turned round: the gradient of its input, or with a bias [G*C] a transposed convolution.
  static Tensor transposed(const Device& device, const ConvArguments& a, ConvParams p, Tensor grad_output,
                           const Tensor& weight) {
    const MemoryFormat format = memory_format(grad_output);
    const bool product = Device::kProducts && conv_from_one_pixel(p);
    Tensor grad_input = empty_as(grad_output, result_sizes(a, a.input), product ? memory_format(weight) : format);
    if (grad_input.numel() == 0) return grad_input;
    p.output = readable(grad_output);
    p.weight = view_of(weight, weight.const_data_ptr());
    p.weight_g = p.K * p.weight.n;
    p.input = readable(grad_input);
    device.turned(p, grad_input);
    return dense(grad_input, format);
  }
};

}  // namespace fastconv
