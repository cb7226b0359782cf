// The operators of deformable convolution for CPU tensors; operators.h says what they do.
#include "core/pages.h"
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
    welcome_large_pages(scratch.mutable_data_ptr(), bytes);
    kernel.run(p, scratch.mutable_data_ptr());
  }
  void forward(DeformParams& p) const {
    const DeformKernels& kernels = FASTCONV_KERNELS(deform_kernels);
    welcome_large_pages(p.output, p.N * p.K * p.P * p.Q * size_of(p.dtype));
    run(p.weight ? kernels.forward : kernels.sampling, p);
  }
  void backward(DeformParams& p) const {
    if (p.grad_input) welcome_large_pages(p.grad_input, p.N * p.C * p.H * p.W * size_of(p.dtype));
    if (p.grad_offset) welcome_large_pages(p.grad_offset, p.N * p.offset.image * size_of(p.dtype));
    if (p.grad_mask) welcome_large_pages(p.grad_mask, p.N * p.mask.image * size_of(p.dtype));
    run(FASTCONV_KERNELS(deform_kernels).backward, p);
  }
};
using Operators = DeformOperators<Cpu>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&Operators::deform_conv2d));
  m.impl("_deform_conv2d_grad", TORCH_BOX(&Operators::deform_conv2d_grad));
  m.impl("deform_sample2d", TORCH_BOX(&Operators::deform_sample2d));
  m.impl("_deform_sample2d_grad", TORCH_BOX(&Operators::deform_sample2d_grad));
}

}  // namespace fastconv
