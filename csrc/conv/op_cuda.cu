// The convolution operators for CUDA tensors; operators.h says what they do. Weights are not packed here: the modules
// call the functions.
#include <atomic>
#include <mutex>
#include <set>

#include "conv/cuda.cuh"
#include "conv/operators.h"
#include "core/torch_cuda.h"

namespace fastconv {
namespace {

std::atomic<const char*> forced{nullptr};  // the name of the only kernel that may run

// Names are kept for good: calls that are running may still read them.
void cuda_force(std::string name) {
  static std::mutex mutex;
  static std::set<std::string> names;
  const std::lock_guard<std::mutex> lock(mutex);
  forced.store(name.empty() ? nullptr : names.insert(std::move(name)).first->c_str(), std::memory_order_relaxed);
}

struct Cuda {
  static constexpr bool kProducts = false;

  Cuda(const char* op, const Tensor& tensor) : guard(op, tensor) {}
  // It may be freed before the kernels run: what is allocated next is used behind them, on the same stream.
  Tensor scratch(int64_t bytes) const { return scratch_on(guard.device(), bytes); }
  void forward(ConvParams p) const {
    gather_single(p);
    join_rows(p);
    const Stream stream = guard.stream();
    const char* only = forced.load(std::memory_order_relaxed);
    conv_forward(p, scratch(conv_scratch(p, stream.op, {}, only)).mutable_data_ptr(), stream, {}, only);
  }
  void turned(const ConvParams& p, Tensor&) const { forward(spread_params(p)); }
  void grad_weight(ConvParams p) const {
    join_rows(p);
    const Stream stream = guard.stream();
    const char* only = forced.load(std::memory_order_relaxed);
    const int64_t bytes = conv_grad_weight_scratch(p, stream.op, {}, only);
    conv_grad_weight(p, scratch(bytes).mutable_data_ptr(), stream, {}, only);
  }

  CudaGuard guard;
};
using Operators = ConvOperators<Cuda>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  implement(m, "conv", TORCH_BOX(&Operators::conv));
  implement(m, "conv_transpose", TORCH_BOX(&Operators::conv_transpose));
  implement(m, "_conv_grad_input", TORCH_BOX(&Operators::conv_grad_input));
  implement(m, "_conv_grad_weight", TORCH_BOX(&Operators::conv_grad_weight));
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) {
  m.impl("_conv_cuda_force", TORCH_BOX(&cuda_force));
}

}  // namespace fastconv
