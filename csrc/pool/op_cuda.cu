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
  void l2(PoolParams& p) const { pool_l2(p, guard.stream()); }
  void stochastic(PoolParams& p) const { pool_stochastic(p, guard.stream()); }
  void weighted(PoolParams& p) const { pool_weighted(p, guard.stream()); }
  double least(PoolParams&) const { return 0; }  // to know it somebody would have to wait for the GPU
  std::optional<int64_t> unpool_scatter(UnpoolParams& p) const {
    const int64_t bytes = unpool_scratch(p);
    const Tensor reaches = scratch_on(guard.device(), bytes);
    fastconv::unpool_scatter(p, reaches.mutable_data_ptr(), guard.stream());
    return std::nullopt;
  }
  std::optional<int64_t> unpool_gather(UnpoolParams& p) const {
    fastconv::unpool_gather(p, guard.stream());
    return std::nullopt;
  }

  CudaGuard guard;
};
using Operators = PoolOperators<Cuda>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  implement(m, "max_pool", TORCH_BOX(&Operators::max_pool));
  implement(m, "_max_pool_ids", TORCH_BOX(&Operators::max_pool_ids));
  implement(m, "_max_pool_indices", TORCH_BOX(&Operators::max_pool_indices));
  implement(m, "_max_pool_grad", TORCH_BOX(&Operators::max_pool_grad));
  implement(m, "_max_pool_pick", TORCH_BOX(&Operators::max_pool_pick));
  implement(m, "avg_pool", TORCH_BOX(&Operators::avg_pool));
  implement(m, "_avg_pool_grad", TORCH_BOX(&Operators::avg_pool_grad));
  implement(m, "_l2_pool", TORCH_BOX(&Operators::l2_pool));
  implement(m, "_stochastic_pool", TORCH_BOX(&Operators::stochastic_pool));
  implement(m, "_stochastic_pool_mean", TORCH_BOX(&Operators::stochastic_pool_mean));
  implement(m, "max_unpool", TORCH_BOX(&Operators::max_unpool));
  implement(m, "_max_unpool_grad", TORCH_BOX(&Operators::max_unpool_grad));
}

}  // namespace fastconv
