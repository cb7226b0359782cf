// The Python module `_C`. Loading it registers the CPU operators with PyTorch (static objects of op_cpu.cpp and
// schema.cpp); what it offers itself is introspection. It knows nothing of PyTorch's types.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "conv/choice.h"
#include "core/isa.h"
#include "core/peak.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  using namespace fastconv;
  m.def("isa", [] { return isa_name(isa()); }, "The instruction set in use.");
  m.def("isa_supported", [] { return isa_name(isa_supported()); }, "The best one for this machine and this build.");
  m.def("isa_select", &isa_select, "Switches to the named instruction set; False where this machine lacks it.");
  m.def("conv_kernels", &conv_kernel_names, "The convolution kernels, in the order in which they are asked.");
  m.def("conv_force_kernel", &conv_force_kernel, "Runs only the named kernel; '' returns to the table's order.");
  m.def(
      "peak_work",
      [](bool wide, int64_t rounds, int threads) {
        const PeakKernels& kernels = FASTCONV_KERNELS(peak_kernels);
        return (wide ? kernels.float64 : kernels.float32)(rounds, threads);
      },
      "Multiply-adds in registers, float64 if wide; returns how many operations they were.");
  m.attr("compiler") = __VERSION__;
}
