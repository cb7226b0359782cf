// The table of kernels for deformable convolution of one instruction set.
#include "deform/backward.h"
#include "deform/forward.h"
#include "deform/params.h"
#include "deform/sampling.h"

namespace fastconv::FASTCONV_ISA {
namespace {

template <template <class> class Kernel, class T>
int64_t one(const DeformParams& p, void* scratch) {
  Memory memory = scratch ? Memory(scratch) : Memory();
  const Kernel<T> kernel(p, memory);
  if (scratch) kernel.run();
  return memory.used;
}

// Runs, or without memory says how much it takes.
template <template <class> class Kernel>
int64_t any(const DeformParams& p, void* scratch) {
  switch (p.dtype) {
    case Dtype::kFloat32: return one<Kernel, float>(p, scratch);
    case Dtype::kFloat64: return one<Kernel, double>(p, scratch);
    case Dtype::kBFloat16: return one<Kernel, bfloat16>(p, scratch);
    case Dtype::kFloat16: return one<Kernel, float16>(p, scratch);
  }
  return 0;
}

template <template <class> class Kernel>
int64_t scratch(const DeformParams& p) {
  return any<Kernel>(p, nullptr);
}
template <template <class> class Kernel>
void run(const DeformParams& p, void* scratch) {
  any<Kernel>(p, scratch);
}

}  // namespace

extern const DeformKernels deform_kernels = {
    {scratch<DeformForward>, run<DeformForward>},
    {scratch<DeformSampling>, run<DeformSampling>},
    {scratch<DeformBackward>, run<DeformBackward>},
};

}  // namespace fastconv::FASTCONV_ISA
