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
  using namespace py::literals;
  m.def("isa", [] { return isa_name(isa()); }, "The instruction set in use.");
  m.def("isa_supported", [] { return isa_name(isa_supported()); }, "The best one for this machine and this build.");
  m.def("isa_select", &isa_select, "Switches to the named instruction set; False where this machine lacks it.");
  m.def("conv_kernels", &conv_kernel_names, "The convolution kernels, in the order in which they are asked.");
  m.def("conv_cuda_kernels", &conv_cuda_kernel_names, "Those of CUDA tensors, likewise.");
  m.def("conv_force_kernel", &conv_force_kernel, "Runs only the named kernel; '' returns to the table's order.");
  m.def("conv_forced_kernel", &conv_forced_kernel, "The only kernel that may run, or ''.");
  m.def("conv_skip_kernel", &conv_skip_kernel, "Leaves the named kernel out of the table's order; '' leaves out none.");
  m.def("conv_skipped_kernel", &conv_skipped_kernel, "The kernel that is left out, or ''.");
  m.def("conv_choice", &conv_choice, "A number for the choices above together.");
  m.def(
      "conv_explain",
      [](std::string dtype, std::vector<int64_t> input, std::vector<int64_t> input_strides, std::vector<int64_t> weight,
         std::vector<int64_t> weight_strides, std::vector<int64_t> stride, std::vector<int64_t> padding,
         std::vector<int64_t> dilation, int64_t groups, int threads, bool transposed,
         std::vector<int64_t> output_padding, bool bias, bool cuda, bool allow_tf32) {
        const ConvAnswer answer =
            conv_explain({dtype, input, input_strides, weight, weight_strides, stride, padding, dilation, groups,
                          threads, transposed, output_padding, bias, cuda, allow_tf32});
        py::list runs;
        for (const ConvRun& run : answer.runs)
          runs.append(py::dict("kernel"_a = run.kernel, "passed_by"_a = run.passed_by, "packed"_a = run.packed,
                               "scratch"_a = run.scratch));
        return py::dict("runs"_a = runs, "way"_a = answer.way, "threads"_a = answer.threads,
                        "copies_input"_a = answer.copies_input);
      },
      "dtype"_a, "input"_a, "input_strides"_a, "weight"_a, "weight_strides"_a, "stride"_a, "padding"_a, "dilation"_a,
      "groups"_a, "threads"_a, "transposed"_a = false, "output_padding"_a = std::vector<int64_t>{}, "bias"_a = false,
      "cuda"_a = false, "allow_tf32"_a = false,
      "The kernels that a convolution would run, or a transposed one; runs nothing.");
  m.def(
      "peak_work",
      [](bool wide, int64_t rounds, int threads) {
        const PeakKernels& kernels = FASTCONV_KERNELS(peak_kernels);
        return (wide ? kernels.float64 : kernels.float32)(rounds, threads);
      },
      "Multiply-adds in registers, float64 if wide; returns how many operations they were.");
  m.attr("compiler") = __VERSION__;
}
