// The operators of regions of interest, written once for all devices: check, allocate, fill params, run. A `Device` is
// made of the operator's name and a tensor before anything is allocated; it looks at the boxes where it can, and its
// members run one kernel each, those of RoiKernels, on tensors that all have memory.
#pragma once
#include "roi/check.h"

namespace fastconv {

template <class Device>
struct RoiOperators {
  static Tensor roi_align(Tensor input, Tensor boxes, double scale, Sizes output_size, int64_t sampling, bool aligned) {
    return forward({Roi::kAlign, scale, output_size, sampling, aligned}, input, boxes, nullptr);
  }
  static Tensor roi_align_grad(Tensor grad_output, Tensor boxes, Sizes input_size, bool channels_last, double scale,
                               Sizes output_size, int64_t sampling, bool aligned) {
    return backward({Roi::kAlign, scale, output_size, sampling, aligned}, grad_output, boxes, nullptr, input_size,
                    channels_last);
  }

  static Tensor ps_roi_align(Tensor input, Tensor boxes, double scale, Sizes output_size, int64_t sampling) {
    return forward({Roi::kPsAlign, scale, output_size, sampling}, input, boxes, nullptr);
  }
  static Tensor ps_roi_align_grad(Tensor grad_output, Tensor boxes, Sizes input_size, bool channels_last, double scale,
                                  Sizes output_size, int64_t sampling) {
    return backward({Roi::kPsAlign, scale, output_size, sampling}, grad_output, boxes, nullptr, input_size,
                    channels_last);
  }

  static Tensor ps_roi_pool(Tensor input, Tensor boxes, double scale, Sizes output_size) {
    return forward({Roi::kPsPool, scale, output_size}, input, boxes, nullptr);
  }
  static Tensor ps_roi_pool_grad(Tensor grad_output, Tensor boxes, Sizes input_size, bool channels_last, double scale,
                                 Sizes output_size) {
    return backward({Roi::kPsPool, scale, output_size}, grad_output, boxes, nullptr, input_size, channels_last);
  }

  static Tensor roi_pool(Tensor input, Tensor boxes, double scale, Sizes output_size) {
    return forward({Roi::kPool, scale, output_size}, input, boxes, nullptr);
  }
  static std::tuple<Tensor, Tensor> roi_pool_ids(Tensor input, Tensor boxes, double scale, Sizes output_size) {
    Tensor ids;
    Tensor output = forward({Roi::kPool, scale, output_size}, input, boxes, &ids);
    return {output, ids};
  }
  static Tensor roi_pool_grad(Tensor grad_output, Tensor ids, Tensor boxes, Sizes input_size, bool channels_last) {
    const auto shape = grad_output.sizes();
    check(shape.size() == 4, "roi_pool: grad_output must have 4 dimensions (got ", text(shape), ")");
    return backward({Roi::kPool, 1, {shape[2], shape[3]}}, grad_output, boxes, &ids, input_size, channels_last);
  }
  // The input at the ids: the gradient of roi_pool_grad.
  static Tensor roi_pool_pick(Tensor input, Tensor ids, Tensor boxes) {
    const auto shape = ids.sizes();
    check(shape.size() == 4, "roi_pool: ids must have 4 dimensions (got ", text(shape), ")");
    const RoiArguments a = {Roi::kPool, 1, {shape[2], shape[3]}};
    const Sizes size = check_roi(a, input.sizes(), input, boxes);
    check_ids(ids, size, input);
    const MemoryFormat format = memory_format(input);
    const Device device(a.op(), input);
    Tensor output = empty_as(input, size, format);
    RoiParams p = roi_params(a, input.sizes(), size, dtype_of(a.op(), input), format);
    if (output.numel() == 0) return output;
    input = dense(input, format);
    ids = dense(ids, format);
    boxes = prepared(boxes, input);
    device.check_boxes(a.op(), p, boxes);
    p.boxes = boxes.const_data_ptr();
    p.input = const_cast<void*>(input.const_data_ptr());
    p.ids = const_cast<int32_t*>(static_cast<const int32_t*>(ids.const_data_ptr()));
    p.output = output.mutable_data_ptr();
    device.pick(p);
    return output;
  }

 private:
  static void check_ids(const Tensor& ids, const Sizes& size, const Tensor& given) {
    check_shape("roi_pool", "ids", ids, size);
    check(ids.scalar_type() == ScalarType::Int, "roi_pool: ids must be int32 (got ", dtype_name(ids.scalar_type()),
          ")");
    if (ids.device() != given.device())
      check(false, "roi_pool: ids must be on the device of input, ", device_name(given), " (got ", device_name(ids),
            ")");
  }

  // Boxes as kernels read them.
  static Tensor prepared(const Tensor& boxes, const Tensor& given) {
    const ScalarType type = given.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    return dense(boxes.scalar_type() == type ? boxes : torch::stable::to(boxes, type));
  }

  static Tensor forward(const RoiArguments& a, Tensor input, Tensor boxes, Tensor* ids) {
    const Sizes size = check_roi(a, input.sizes(), input, boxes);
    const Device device(a.op(), input);
    const MemoryFormat format = memory_format(input);
    Tensor output = empty_as(input, size, format);
    if (ids) *ids = empty_on(input.device(), size, format, ScalarType::Int);
    RoiParams p = roi_params(a, input.sizes(), size, dtype_of(a.op(), input), format);
    if (output.numel() == 0) return output;
    input = dense(input, format);
    boxes = prepared(boxes, input);
    device.check_boxes(a.op(), p, boxes);
    p.boxes = boxes.const_data_ptr();
    p.input = const_cast<void*>(input.const_data_ptr());
    p.output = output.mutable_data_ptr();
    if (ids) p.ids = static_cast<int32_t*>(ids->mutable_data_ptr());
    device.forward(p);
    return output;
  }

  static Tensor backward(const RoiArguments& a, Tensor grad_output, Tensor boxes, Tensor* ids, const Sizes& input_size,
                         bool channels_last) {
    const Sizes size = check_roi(a, input_size, grad_output, boxes);
    check_shape(a.op(), "grad_output", grad_output, size);
    if (ids) check_ids(*ids, size, grad_output);
    const Device device(a.op(), grad_output);
    const MemoryFormat format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
    Tensor grad_input = empty_as(grad_output, input_size, format);
    RoiParams p = roi_params(a, input_size, size, dtype_of(a.op(), grad_output), format);
    if (grad_input.numel() == 0) return grad_input;
    if (grad_output.numel() == 0) return torch::stable::zero_(grad_input);
    grad_output = dense(grad_output, format);
    boxes = prepared(boxes, grad_output);
    device.check_boxes(a.op(), p, boxes);
    p.boxes = boxes.const_data_ptr();
    p.input = grad_input.mutable_data_ptr();
    p.output = const_cast<void*>(grad_output.const_data_ptr());
    Tensor dense_ids;
    if (ids) {
      dense_ids = dense(*ids, format);
      p.ids = const_cast<int32_t*>(static_cast<const int32_t*>(dense_ids.const_data_ptr()));
    }
    device.backward(p);
    return grad_input;
  }
};

}  // namespace fastconv
