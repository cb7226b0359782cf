#include "pool/operators.h"

namespace fastconv {
namespace {

constexpr double kSmallElements = 1 << 15;  // below so many reads a second thread costs more than it saves

template <class Kernel, class Params>
void run_with_scratch(const Kernel& kernel, const Params& p) {
  const int64_t bytes = kernel.scratch(p);
  Tensor scratch;
  if (bytes > 0) scratch = cpu_scratch(bytes);
  kernel.run(p, bytes > 0 ? scratch.mutable_data_ptr() : nullptr);
}

// Runs a kernel on tensors that all have memory.
void run(const PoolKernel& kernel, PoolParams& p) {
  const double windows = static_cast<double>(p.N * p.C * p.h.outputs * p.w.outputs);
  const double taps = static_cast<double>(p.h.kernel + p.w.kernel);
  const double reads = static_cast<double>(p.N * p.C * p.h.size * p.w.size);
  const bool small = windows * taps < kSmallElements && reads < kSmallElements;
  p.threads = small ? 1 : static_cast<int>(torch::stable::get_num_threads());
  run_with_scratch(kernel, p);
}

// The same; returns the first index that is wrong.
std::optional<int64_t> run(const UnpoolKernel& kernel, UnpoolParams& p) {
  const int64_t count = p.N * p.C * p.windows;
  const bool small = static_cast<double>(count + p.N * p.C * p.positions) < kSmallElements;
  int64_t first_wrong = count;
  p.first_wrong = &first_wrong;
  p.threads = small ? 1 : static_cast<int>(torch::stable::get_num_threads());
  run_with_scratch(kernel, p);
  if (first_wrong == count) return std::nullopt;
  return p.indices[first_wrong];
}

const PoolKernels& kernels() { return FASTCONV_KERNELS(pool_kernels); }

struct Cpu {
  Cpu(const char*, const Tensor&) {}
  void max(PoolParams& p) const { run(kernels().max, p); }
  void max_backward(PoolParams& p) const { run(kernels().max_backward, p); }
  void max_pick(PoolParams& p) const { run(kernels().max_pick, p); }
  void max_indices(PoolParams& p) const { run(kernels().max_indices, p); }
  void avg(PoolParams& p) const { run(kernels().avg, p); }
  void avg_backward(PoolParams& p) const { run(kernels().avg_backward, p); }
  void l2(PoolParams& p) const { run(kernels().l2, p); }
  void stochastic(PoolParams& p) const { run(kernels().stochastic, p); }
  void weighted(PoolParams& p) const { run(kernels().weighted, p); }
  double least(PoolParams& p) const {
    double least = 0;
    p.least = &least;
    run(kernels().least, p);
    return least;
  }
  std::optional<int64_t> unpool_scatter(UnpoolParams& p) const {
    return run(FASTCONV_KERNELS(unpool_kernels).scatter, p);
  }
  std::optional<int64_t> unpool_gather(UnpoolParams& p) const {
    return run(FASTCONV_KERNELS(unpool_kernels).gather, p);
  }
};
using Operators = PoolOperators<Cpu>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
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
