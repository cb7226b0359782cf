// The operators of regions of interest for CUDA tensors; operators.h says what they do.
#include "core/torch_cuda.h"
#include "roi/cuda.cuh"
#include "roi/operators.h"

namespace fastconv {
namespace {

struct Cuda {
  Cuda(const char* op, const Tensor& tensor) : guard(op, tensor) {}
  // To know them somebody would have to wait for the GPU: the kernels leave out those that are wrong.
  void check_boxes(const char*, const RoiParams&, const Tensor&) const {}
  void forward(RoiParams& p) const { roi_forward(p, guard.stream()); }
  void backward(RoiParams& p) const { roi_backward(p, guard.stream()); }
  void pick(RoiParams& p) const { roi_picked(p, guard.stream()); }

  CudaGuard guard;
};
using Operators = RoiOperators<Cuda>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  implement(m, "roi_align", TORCH_BOX(&Operators::roi_align));
  implement(m, "_roi_align_grad", TORCH_BOX(&Operators::roi_align_grad));
  implement(m, "ps_roi_align", TORCH_BOX(&Operators::ps_roi_align));
  implement(m, "_ps_roi_align_grad", TORCH_BOX(&Operators::ps_roi_align_grad));
  implement(m, "ps_roi_pool", TORCH_BOX(&Operators::ps_roi_pool));
  implement(m, "_ps_roi_pool_grad", TORCH_BOX(&Operators::ps_roi_pool_grad));
  implement(m, "roi_pool", TORCH_BOX(&Operators::roi_pool));
  implement(m, "_roi_pool_ids", TORCH_BOX(&Operators::roi_pool_ids));
  implement(m, "_roi_pool_grad", TORCH_BOX(&Operators::roi_pool_grad));
  implement(m, "_roi_pool_pick", TORCH_BOX(&Operators::roi_pool_pick));
}

}  // namespace fastconv
