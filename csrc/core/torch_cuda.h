// What a host operator for CUDA tensors needs on top of torch.h: the tensor's device made current for as long as the
// operator runs, and PyTorch's current stream there.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "core/launch.h"
#include "core/torch.h"

namespace fastconv {

class CudaGuard {
 public:
  CudaGuard(const char* op, const Tensor& tensor)
      : op_(op), device_(tensor.get_device_index()), guard_(tensor.get_device_index()) {}

  torch::stable::Device device() const { return {torch::headeronly::DeviceType::CUDA, device_}; }
  Stream stream() const {
    void* handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &handle));
    return {op_, device_, handle};
  }

 private:
  const char* op_;
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace fastconv
