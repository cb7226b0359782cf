// The convolution operators for CUDA tensors; operators.h says what they do. Weights are not packed here: the modules
// call the functions.
#include "conv/cuda.cuh"
#include "conv/operators.h"
#include "core/torch_cuda.h"

namespace fastconv {
namespace {

struct Cuda {
  static constexpr bool kProducts = false;

  Cuda(const char* op, const Tensor& tensor) : guard(op, tensor) {}
  // It may be freed before the kernels run: what is allocated next is used behind them, on the same stream.
  Tensor scratch(int64_t bytes) const { return scratch_on(guard.device(), bytes); }
  void forward(ConvParams p) const {
    gather_single(p);
    join_rows(p);
    conv_forward(p, scratch(conv_scratch(p)).mutable_data_ptr(), guard.stream());
  }
  void turned(const ConvParams& p, Tensor&) const { forward(spread_params(p)); }
  void grad_weight(ConvParams p) const {
    join_rows(p);
    conv_grad_weight(p, scratch(conv_grad_weight_scratch(p)).mutable_data_ptr(), guard.stream());
  }

  CudaGuard guard;
};
using Operators = ConvOperators<Cuda>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("conv", TORCH_BOX(&Operators::conv));
  m.impl("conv_transpose", TORCH_BOX(&Operators::conv_transpose));
  m.impl("_conv_grad_input", TORCH_BOX(&Operators::conv_grad_input));
  m.impl("_conv_grad_weight", TORCH_BOX(&Operators::conv_grad_weight));
}

}  // namespace fastconv
