// The operators of regions of interest for CPU tensors; operators.h says what they do.
#include <cmath>

#include "roi/operators.h"

namespace fastconv {
namespace {

constexpr double kSmallElements = 1 << 14;  // below so many elements a second thread costs more than it saves

struct Cpu {
  Cpu(const char*, const Tensor&) {}

  template <class A>
  static void check_each(const char* op, const RoiParams& p, const A* box) {
    for (int64_t k = 0; k < p.K; ++k, box += 5) {
      bool finite = true;
      for (int i = 0; i < 5; ++i) finite &= std::isfinite(box[i]);
      if (finite && box[0] >= 0 && box[0] < static_cast<A>(p.N)) continue;
      std::ostringstream got;
      for (int i = 0; i < 5; ++i) got << (i ? ", " : "[") << box[i];
      check(finite, op, ": boxes must be finite (got ", got.str(), "] in row ", k, ")");
      check(false, op, ": boxes must begin with an index in the batch, in [0, ", p.N, ") (got ", got.str(), "] in row ",
            k, ")");
    }
  }
  void check_boxes(const char* op, const RoiParams& p, const Tensor& boxes) const {
    if (p.dtype == Dtype::kFloat64) return check_each(op, p, static_cast<const double*>(boxes.const_data_ptr()));
    check_each(op, p, static_cast<const float*>(boxes.const_data_ptr()));
  }

  static void run(const RoiKernel& kernel, RoiParams& p, bool backward) {
    const double elements = static_cast<double>(p.K * p.channels * p.P * p.Q);
    const double written = backward ? static_cast<double>(p.N * p.C * p.H * p.W) : 0;
    p.threads = elements + written < kSmallElements ? 1 : static_cast<int>(torch::stable::get_num_threads());
    const int64_t bytes = kernel.scratch(p);
    Tensor scratch;
    if (bytes > 0) scratch = cpu_scratch(bytes);
    kernel.run(p, bytes > 0 ? scratch.mutable_data_ptr() : nullptr);
  }
  void forward(RoiParams& p) const { run(FASTCONV_KERNELS(roi_kernels).forward, p, false); }
  void backward(RoiParams& p) const { run(FASTCONV_KERNELS(roi_kernels).backward, p, true); }
  void pick(RoiParams& p) const { run(FASTCONV_KERNELS(roi_kernels).pick, p, false); }
};
using Operators = RoiOperators<Cpu>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
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
