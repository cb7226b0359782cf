// The operators of deformable convolution for CPU tensors; operators.h says what they do.
#include "deform/operators.h"

namespace fastconv {
namespace {

constexpr double kSmallProducts = 1 << 16;  // below so many a second thread costs more than it saves

struct Cpu {
  Cpu(const char*, const Tensor&) {}

  static void run(const DeformKernel& kernel, DeformParams& p) {
    const double products =
        static_cast<double>(p.N * p.K * p.P * p.Q) * static_cast<double>((p.weight ? p.C / p.groups : 1) * p.R * p.S);
    p.threads = products < kSmallProducts ? 1 : static_cast<int>(torch::stable::get_num_threads());
    const int64_t bytes = kernel.scratch(p);
    const Tensor scratch = cpu_scratch(bytes);
    kernel.run(p, scratch.mutable_data_ptr());
  }
  void forward(DeformParams& p) const {
    const DeformKernels& kernels = FASTCONV_KERNELS(deform_kernels);
    run(p.weight ? kernels.forward : kernels.sampling, p);
  }
  void backward(DeformParams& p) const { run(FASTCONV_KERNELS(deform_kernels).backward, p); }
};
using Operators = DeformOperators<Cpu>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  implement(m, "deform_conv2d", TORCH_BOX(&Operators::deform_conv2d));
  implement(m, "_deform_conv2d_grad", TORCH_BOX(&Operators::deform_conv2d_grad));
  implement(m, "deform_sample2d", TORCH_BOX(&Operators::deform_sample2d));
  implement(m, "_deform_sample2d_grad", TORCH_BOX(&Operators::deform_sample2d_grad));
}

}  // namespace fastconv
