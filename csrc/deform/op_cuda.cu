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
  implement(m, "deform_conv2d", TORCH_BOX(&Operators::deform_conv2d));
  implement(m, "_deform_conv2d_grad", TORCH_BOX(&Operators::deform_conv2d_grad));
  implement(m, "deform_sample2d", TORCH_BOX(&Operators::deform_sample2d));
  implement(m, "_deform_sample2d_grad", TORCH_BOX(&Operators::deform_sample2d_grad));
}

}  // namespace fastconv
