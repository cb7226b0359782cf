// The operators of deformable convolution for CUDA tensors; operators.h says what they do.
#include "core/torch_cuda.h"
#include "deform/cuda.cuh"
#include "deform/operators.h"

namespace fastconv {
namespace {

struct Cuda {
  Cuda(const char* op, const Tensor& tensor) : guard(op, tensor) {}
  // It may be freed before the kernels run: what is allocated next is used behind them, on the same stream.
  Tensor scratch(const DeformParams& p) const {
    const int64_t bytes = deform_scratch(p);
    return scratch_on(guard.device(), bytes);
  }
  void forward(DeformParams& p) const { deform_forward(p, scratch(p).mutable_data_ptr(), guard.stream()); }
  void backward(DeformParams& p) const { deform_backward(p, scratch(p).mutable_data_ptr(), guard.stream()); }

  CudaGuard guard;
};
using Operators = DeformOperators<Cuda>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("deform_conv2d", TORCH_BOX(&Operators::deform_conv2d));
  m.impl("_deform_conv2d_grad", TORCH_BOX(&Operators::deform_conv2d_grad));
  m.impl("deform_sample2d", TORCH_BOX(&Operators::deform_sample2d));
  m.impl("_deform_sample2d_grad", TORCH_BOX(&Operators::deform_sample2d_grad));
}

}  // namespace fastconv
