// Which kernel of the table runs: what introspection, the flags of this process and the tests see of it.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace fastconv {

// In the order in which they are asked; those of CUDA tensors can be named on every machine.
std::vector<std::string> conv_kernel_names();
std::vector<std::string> conv_cuda_kernel_names();

// Makes every convolution of this process run the named kernel, or fail where it cannot serve the arguments; an empty
// name returns to the table's order. False where there is no such kernel. CUDA tensors know of it as soon as their own
// library is told (_conv_cuda_force).
bool conv_force_kernel(const std::string& name);
std::string conv_forced_kernel();

// Leaves the rows whose names begin with this word (up to an underscore or the end) out of the table's order for every
// convolution of this process; an empty word leaves out none. False where no kernel has just this name.
bool conv_skip_kernel(const std::string& name);
std::string conv_skipped_kernel();

// A number for the instruction set, the forced and the skipped kernel together: as long as it is the same, the same
// arguments get the same kernel.
int64_t conv_choice();

// A convolution, or a transposed one, by its sizes and strides (in elements): [N, C, H, W] and [K, C, R, S] or without
// a height. The padding of a convolution is that before, then that after, each dimension.
struct ConvQuery {
  std::string dtype;  // as PyTorch names it
  std::vector<int64_t> input, input_strides, weight, weight_strides, stride, padding, dilation;
  int64_t groups;
  int threads;  // as many as may be used
  bool transposed;
  std::vector<int64_t> output_padding;  // of a transposed one
  bool bias;
  bool cuda;        // of CUDA tensors
  bool allow_tf32;  // to these
};
struct ConvRun {
  std::string kernel;                                          // empty where none serves
  std::vector<std::pair<std::string, std::string>> passed_by;  // the rows asked before it, each with the reason
  int64_t packed, scratch;                                     // bytes
};
struct ConvAnswer {
  std::vector<ConvRun> runs;  // in order; of a convolution one, none where the output is empty
  std::string way;            // how a transposed convolution is done, see turn_round() in op_cpu.cpp
  int threads;                // that are used
  bool copies_input;          // into a layout that the kernels read
};
// Asks the table as a call would, and runs nothing.
ConvAnswer conv_explain(const ConvQuery& query);

}  // namespace fastconv
