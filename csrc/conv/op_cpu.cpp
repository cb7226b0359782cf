#include <atomic>
#include <cstring>

#include "conv/check.h"
#include "conv/choice.h"

namespace fastconv {
namespace {

using Sizes = std::vector<int64_t>;

constexpr double kSmallMacs = 2e5;  // below this a second thread costs more than it computes

std::atomic<const char*> forced{nullptr};  // the name of the only kernel that may run

int threads_for(const ConvParams& p) {
  const double macs = static_cast<double>(p.N) * p.G * p.K * p.C * p.R * p.S * p.P * p.Q;
  return macs < kSmallMacs ? 1 : static_cast<int>(torch::stable::get_num_threads());
}

// The first kernel of a table that wants and can, or null; with a name, only the kernel of that name may.
template <class Kernel, size_t Count>
const Kernel* find(const char* only, const Kernel (&table)[Count], const ConvParams& p, ConvPlan& plan) {
  for (const Kernel& kernel : table) {
    if (only ? std::strcmp(only, kernel.name) != 0 : !kernel.preferred(p)) continue;
    if (kernel.plan(p, plan)) return &kernel;
  }
  return nullptr;
}

// From a table of the instruction set in use: first what it adds (`extra`, null if nothing), then what every one has.
template <class Kernel, size_t Extra, size_t Count>
const Kernel& choose(const char* op, const Kernel (*extra)[Extra], const Kernel (&table)[Count], const ConvParams& p,
                     ConvPlan& plan) {
  // A sum of nothing is the general kernel's, the last; the others count on at least one channel and one tap.
  const char* only = p.C * p.R * p.S == 0 ? table[Count - 1].name : forced.load(std::memory_order_relaxed);
  const Kernel* kernel = extra ? find(only, *extra, p, plan) : nullptr;
  if (!kernel) kernel = find(only, table, p, plan);
  check(kernel, op, ": kernel must be able to serve these arguments (got ", only, ")");
  return *kernel;
}

const ConvExtraKernels* extra_kernels() { return FASTCONV_EXTRA_KERNELS(conv_extra_kernels); }

// Memory for a kernel, as long as this lives.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
    if (bytes > 0) tensor_ = torch::stable::empty(IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte);
  }
  char* get() { return tensor_.defined() ? static_cast<char*>(tensor_.mutable_data_ptr()) : nullptr; }

 private:
  Tensor tensor_;
};

void forward(const char* op, ConvParams p) {
  join_rows(p);
  ConvPlan plan;
  const ConvExtraKernels* extra = extra_kernels();
  const ConvKernel& kernel =
      choose(op, extra ? &extra->forward : nullptr, FASTCONV_KERNELS(conv_kernels).forward, p, plan);
  const int64_t packed = (plan.memory.packed + 63) / 64 * 64;
  Memory memory(packed + plan.memory.scratch);
  kernel.pack(p, plan, memory.get());
  kernel.run(p, plan, memory.get(), memory.get() + packed);
}

void grad_weight(const char* op, ConvParams p) {
  join_rows(p);
  ConvPlan plan;
  const ConvGradKernel(*none)[1] = nullptr;
  const ConvGradKernel& kernel = choose(op, none, FASTCONV_KERNELS(conv_kernels).grad_weight, p, plan);
  Memory memory(plan.memory.scratch);
  kernel.run(p, plan, memory.get());
}

const void* bias_of(const char* op, std::optional<Tensor>& bias, int64_t channels, const Tensor& input) {
  if (!bias) return nullptr;
  check_same(op, "bias", *bias, input);
  check(bias->dim() == 1 && bias->size(0) == channels, op, ": bias must have shape [", channels, "] (got ",
        text(bias->sizes()), ")");
  bias = torch::stable::contiguous(*bias);
  return bias->const_data_ptr();
}

Tensor conv(Tensor input, Tensor weight, std::optional<Tensor> bias, Sizes stride, Sizes padding, Sizes dilation,
            int64_t groups) {
  const ConvArguments a = check_conv(input.sizes(), weight.sizes(), stride, padding, dilation, groups);
  ConvParams p = conv_params(a, dtype_of(a.op, input));
  check_same(a.op, "weight", weight, input);
  p.bias = bias_of(a.op, bias, a.weight[0], input);
  Tensor output = empty_as(input, result_sizes(a, a.output), memory_format(input));
  if (output.numel() == 0) return output;
  p.input = readable(input);
  p.weight = view_of(weight, const_cast<void*>(weight.const_data_ptr()));
  p.weight_g = p.K * p.weight.n;
  p.output = readable(output);
  p.threads = threads_for(p);
  forward(a.op, p);
  return output;
}

// The convolution `p` turned round: the gradient of its input, or with a bias [G*C] a transposed convolution. One
// convolution for each residue of the position modulo the stride.
Tensor transposed(const ConvArguments& a, ConvParams p, Tensor grad_output, const Tensor& weight) {
  Tensor grad_input = empty_as(grad_output, result_sizes(a, a.input), memory_format(grad_output));
  if (grad_input.numel() == 0) return grad_input;
  p.output = readable(grad_output);
  p.weight = view_of(weight, const_cast<void*>(weight.const_data_ptr()));
  p.weight_g = p.K * p.weight.n;
  p.input = readable(grad_input);
  p.threads = threads_for(p);
  const int64_t rows = residues(p.R, p.stride_h, p.dilation_h), columns = residues(p.S, p.stride_w, p.dilation_w);
  if (rows < p.stride_h || columns < p.stride_w) {  // there are positions that no tap reaches
    if (p.bias) {
      ConvParams nothing = p;
      nothing.K = p.C;
      nothing.P = p.H;
      nothing.Q = p.W;
      nothing.R = nothing.S = 0;
      nothing.output = p.input;
      forward(a.op, nothing);
    } else {
      torch::stable::zero_(grad_input);
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; ++s) {
      const Residue h = residue_of(r, p.H, p.R, p.stride_h, p.dilation_h, p.pad_h);
      const Residue w = residue_of(s, p.W, p.S, p.stride_w, p.dilation_w, p.pad_w);
      if (h.positions * w.positions == 0) continue;
      forward(a.op, grad_input_params(p, h, w));
    }
  return grad_input;
}

Tensor conv_transpose(Tensor input, Tensor weight, std::optional<Tensor> bias, Sizes stride, Sizes padding,
                      Sizes output_padding, Sizes dilation, int64_t groups) {
  const ConvArguments a =
      check_conv_transpose(input.sizes(), weight.sizes(), stride, padding, output_padding, dilation, groups);
  ConvParams p = conv_params(a, dtype_of(a.op, input));
  check_same(a.op, "weight", weight, input);
  p.bias = bias_of(a.op, bias, a.input[1], input);
  return transposed(a, p, input, weight);
}

void check_grad(const ConvArguments& a, const Tensor& grad_output) {
  const Sizes sizes = result_sizes(a, a.output);
  const auto got = grad_output.sizes();
  check(Sizes(got.begin(), got.end()) == sizes, a.op, ": grad_output must have shape ", text(sizes), " (got ",
        text(got), ")");
}

Tensor conv_grad_input(Tensor grad_output, Tensor weight, Sizes input_size, Sizes stride, Sizes padding, Sizes dilation,
                       int64_t groups) {
  const ConvArguments a = check_conv(input_size, weight.sizes(), stride, padding, dilation, groups);
  const ConvParams p = conv_params(a, dtype_of(a.op, grad_output));
  check_same(a.op, "weight", weight, grad_output);
  check_grad(a, grad_output);
  return transposed(a, p, grad_output, weight);
}

Tensor conv_grad_weight(Tensor grad_output, Tensor input, Sizes weight_size, Sizes stride, Sizes padding,
                        Sizes dilation, int64_t groups) {
  const ConvArguments a = check_conv(input.sizes(), weight_size, stride, padding, dilation, groups);
  const Dtype dtype = dtype_of(a.op, input);
  check_same(a.op, "grad_output", grad_output, input);
  check_grad(a, grad_output);
  Tensor result = empty_as(input, weight_size, MemoryFormat::Contiguous);
  if (result.numel() == 0) return result;
  if (input.numel() == 0 || grad_output.numel() == 0) return torch::stable::zero_(result);
  ConvParams p = conv_params(a, dtype);
  p.input = readable(input);
  p.output = readable(grad_output);
  p.weight = view_of(result, result.mutable_data_ptr());
  p.weight_g = p.K * p.weight.n;
  p.threads = threads_for(p);
  grad_weight(a.op, p);
  return result;
}

}  // namespace

std::vector<std::string> conv_kernel_names() {
  std::vector<std::string> names;
  if (const ConvExtraKernels* extra = extra_kernels())
    for (const ConvKernel& kernel : extra->forward) names.emplace_back(kernel.name);
  for (const ConvKernel& kernel : FASTCONV_KERNELS(conv_kernels).forward) names.emplace_back(kernel.name);
  return names;
}

bool conv_force_kernel(const std::string& name) {
  const char* found = nullptr;
  if (const ConvExtraKernels* extra = extra_kernels())
    for (const ConvKernel& kernel : extra->forward)
      if (name == kernel.name) found = kernel.name;
  for (const ConvKernel& kernel : FASTCONV_KERNELS(conv_kernels).forward)
    if (name == kernel.name) found = kernel.name;
  if (!found && !name.empty()) return false;
  forced.store(found, std::memory_order_relaxed);
  return true;
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("conv", TORCH_BOX(&conv));
  m.impl("conv_transpose", TORCH_BOX(&conv_transpose));
  m.impl("_conv_grad_input", TORCH_BOX(&conv_grad_input));
  m.impl("_conv_grad_weight", TORCH_BOX(&conv_grad_weight));
}

}  // namespace fastconv
