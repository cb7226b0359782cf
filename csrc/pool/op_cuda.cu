// The pooling operators for CUDA tensors; operators.h says what they do.
#include "core/torch_cuda.h"
#include "pool/cuda.cuh"
#include "pool/operators.h"

namespace fastconv {
namespace {

struct Cuda {
  Cuda(const char* op, const Tensor& tensor) : guard(op, tensor) {}
  void max(PoolParams& p) const { pool_max(p, guard.stream()); }
  void max_backward(PoolParams& p) const { pool_max_backward(p, guard.stream()); }
  void max_pick(PoolParams& p) const { pool_max_pick(p, guard.stream()); }
  void max_indices(PoolParams& p) const { pool_max_indices(p, guard.stream()); }
  void avg(PoolParams& p) const { pool_avg(p, guard.stream()); }
  void avg_backward(PoolParams& p) const { pool_avg_backward(p, guard.stream()); }

  CudaGuard guard;
};
using Operators = PoolOperators<Cuda>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("max_pool", TORCH_BOX(&Operators::max_pool));
  m.impl("_max_pool_ids", TORCH_BOX(&Operators::max_pool_ids));
  m.impl("_max_pool_indices", TORCH_BOX(&Operators::max_pool_indices));
  m.impl("_max_pool_grad", TORCH_BOX(&Operators::max_pool_grad));
  m.impl("_max_pool_pick", TORCH_BOX(&Operators::max_pool_pick));
  m.impl("avg_pool", TORCH_BOX(&Operators::avg_pool));
  m.impl("_avg_pool_grad", TORCH_BOX(&Operators::avg_pool_grad));
}

}  // namespace fastconv
