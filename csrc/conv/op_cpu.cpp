#include <atomic>
#include <cstring>

#include "conv/check.h"
#include "conv/choice.h"
#include "conv/pack.h"

namespace fastconv {
namespace {

using Sizes = std::vector<int64_t>;

constexpr double kSmallMacs = 2e5;  // below this a second thread costs more than it computes

constexpr const char* kWinograd = "winograd";  // may be switched off whether or not there are such rows

std::atomic<const char*> forced{nullptr};   // the name of the only kernel that may run
std::atomic<const char*> skipped{nullptr};  // the name of the rows that are not asked
std::atomic<int64_t> switches{0};           // how often one of them has changed

bool worth_threads(const ConvParams& p) {
  return static_cast<double>(p.N) * p.G * p.K * p.C * p.R * p.S * p.P * p.Q >= kSmallMacs;
}

int threads_for(const ConvParams& p) {
  return worth_threads(p) ? static_cast<int>(torch::stable::get_num_threads()) : 1;
}

bool named(const char* name, const char* other) { return std::strcmp(name, other) == 0; }

// "winograd" is a row of its own and the first word of another's name.
bool begins(const char* word, const char* name) {
  const size_t length = std::strlen(word);
  return std::strncmp(word, name, length) == 0 && (name[length] == '\0' || name[length] == '_');
}

// The first kernel that wants and can, or the forced one; null where none does. First those are asked that the
// instruction set in use adds (`extra`, null if none), then those that every one has. `pass_by(name, reason)` hears of
// every row before it.
template <class Kernel, size_t Extra, size_t Count, class PassBy>
const Kernel* walk(const Kernel (*extra)[Extra], const Kernel (&table)[Count], const ConvParams& p, ConvPlan& plan,
                   const PassBy& pass_by) {
  // A sum of nothing is the general kernel's, the last; the others count on at least one channel and one tap.
  const bool nothing = p.C * p.R * p.S == 0;
  const char* only = nothing ? table[Count - 1].name : forced.load(std::memory_order_relaxed);
  const char* skip = skipped.load(std::memory_order_relaxed);
  const auto serves = [&](const Kernel& kernel) {
    const char* reason = nullptr;
    if (only && !named(only, kernel.name)) {
      reason = nothing ? "there is nothing to add up" : "another kernel is asked for by name";
    } else if (!only && skip && begins(skip, kernel.name)) {
      reason = "switched off";
    } else if (!only && !kernel.preferred(p)) {
      reason = "not preferred";
    } else if (!kernel.plan(p, plan)) {
      reason = "cannot serve these arguments";
    }
    if (reason) pass_by(kernel.name, reason);
    return !reason;
  };
  if (extra)
    for (const Kernel& kernel : *extra)
      if (serves(kernel)) return &kernel;
  for (const Kernel& kernel : table)
    if (serves(kernel)) return &kernel;
  return nullptr;
}

template <class Kernel>
const Kernel& served(const char* op, const Kernel* kernel) {
  check(kernel, op, ": kernel must be able to serve these arguments (got ", forced.load(std::memory_order_relaxed),
        ")");
  return *kernel;
}

const ConvExtraKernels* extra_kernels() { return FASTCONV_EXTRA_KERNELS(conv_extra_kernels); }

// Forward kernels, in the order in which they are asked.
template <class Body>
void for_each_kernel(const Body& body) {
  if (const ConvExtraKernels* extra = extra_kernels())
    for (const ConvKernel& kernel : extra->forward) body(kernel);
  for (const ConvKernel& kernel : FASTCONV_KERNELS(conv_kernels).forward) body(kernel);
}

void pass_by_silently(const char*, const char*) {}

const ConvKernel* find_forward(const ConvParams& p, ConvPlan& plan) {
  const ConvExtraKernels* extra = extra_kernels();
  return walk(extra ? &extra->forward : nullptr, FASTCONV_KERNELS(conv_kernels).forward, p, plan, pass_by_silently);
}

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

void run(const ConvKernel& kernel, const ConvParams& p, const ConvPlan& plan) {
  const int64_t packed = (plan.memory.packed + 63) / 64 * 64;
  Memory memory(packed + plan.memory.scratch);
  kernel.pack(p, plan, memory.get());
  kernel.run(p, plan, memory.get(), memory.get() + packed);
}

void forward(const char* op, ConvParams p) {
  join_rows(p);
  ConvPlan plan;
  run(served(op, find_forward(p, plan)), p, plan);
}

void grad_weight(const char* op, ConvParams p) {
  join_rows(p);
  ConvPlan plan;
  const ConvGradKernel(*none)[1] = nullptr;
  const ConvGradKernel& kernel =
      served(op, walk(none, FASTCONV_KERNELS(conv_kernels).grad_weight, p, plan, pass_by_silently));
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

Activation activation_of(const char* op, const std::optional<std::string>& name) {
  if (!name) return Activation::kNone;
  constexpr const char* kNames[] = {"relu", "relu6", "silu", "hardswish"};  // in the order of the enumeration
  for (int i = 0; i < 4; ++i)
    if (*name == kNames[i]) return static_cast<Activation>(i + 1);
  check(false, op, ": activation must be None, 'relu', 'relu6', 'silu' or 'hardswish' (got '", *name, "')");
  return Activation::kNone;
}

// A convolution whose arguments were checked, with its output allocated. Holds copies of tensors that the kernels could
// not read where they lay.
struct Forward {
  ConvArguments a;
  Tensor input, output;
  std::optional<Tensor> bias, residual;
  ConvParams p;

  Forward(Tensor given, const Tensor& weight, std::optional<Tensor> given_bias, const Sizes& stride,
          const Sizes& padding, const Sizes& dilation, int64_t groups, std::optional<Tensor> given_residual,
          const std::optional<std::string>& activation)
      : a(check_conv(given.sizes(), weight.sizes(), stride, padding, dilation, groups)),
        input(std::move(given)),
        bias(std::move(given_bias)),
        residual(std::move(given_residual)),
        p(conv_params(a, dtype_of(a.op, input))) {
    check_same(a.op, "weight", weight, input);
    p.bias = bias_of(a.op, bias, a.weight[0], input);
    const Sizes sizes = result_sizes(a, a.output);
    if (residual) {
      check_same(a.op, "residual", *residual, input);
      check_shape(a.op, "residual", *residual, sizes);
    }
    p.activation = activation_of(a.op, activation);
    const MemoryFormat format = memory_format(input);
    output = empty_as(input, sizes, format);
    if (output.numel() == 0) return;
    if (residual) {
      residual = torch::stable::contiguous(*residual, format);
      p.residual = residual->const_data_ptr();
    }
    p.input = readable(input);
    p.weight = view_of(weight, weight.const_data_ptr());
    p.weight_g = p.K * p.weight.n;
    p.output = readable(output);
    p.threads = threads_for(p);
  }
};

Tensor conv(Tensor input, Tensor weight, std::optional<Tensor> bias, Sizes stride, Sizes padding, Sizes dilation,
            int64_t groups, std::optional<Tensor> residual, std::optional<std::string> activation) {
  const Forward f(input, weight, bias, stride, padding, dilation, groups, residual, activation);
  if (f.output.numel() > 0) forward(f.a.op, f.p);
  return f.output;
}

Tensor conv_pack(Tensor input, Tensor weight, Sizes stride, Sizes padding, Sizes dilation, int64_t groups) {
  const Forward f(input, weight, std::nullopt, stride, padding, dilation, groups, std::nullopt, std::nullopt);
  int64_t bytes = 0;
  if (f.output.numel() == 0) return torch::stable::empty(IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte);
  ConvParams p = f.p;
  join_rows(p);
  p.prepacked = true;
  ConvPlan plan;
  const ConvKernel& kernel = served(f.a.op, find_forward(p, plan));
  bytes = Pack::header_bytes() + plan.memory.packed;
  Tensor result = torch::stable::empty(IntHeaderOnlyArrayRef(&bytes, 1), ScalarType::Byte);
  Pack* pack = new (result.mutable_data_ptr()) Pack{Pack::kMagic, pack_sample(p), pack_key(p), &kernel, plan};
  kernel.pack(p, plan, pack->weights());
  return result;
}

Tensor conv_packed(Tensor input, Tensor weight, std::optional<Tensor> bias, Tensor packed, Sizes stride, Sizes padding,
                   Sizes dilation, int64_t groups, std::optional<Tensor> residual,
                   std::optional<std::string> activation) {
  const Forward f(input, weight, bias, stride, padding, dilation, groups, residual, activation);
  if (f.output.numel() == 0) return f.output;
  ConvParams p = f.p;
  join_rows(p);
  p.prepacked = true;
  const Pack& pack = check_pack(f.a.op, packed, p);
  Memory scratch(pack.plan.memory.scratch);
  for_each_kernel([&](const ConvKernel& kernel) {
    if (&kernel == pack.kernel) kernel.run(p, pack.plan, pack.weights(), scratch.get());
  });
  return f.output;
}

// Whether `p`, of spread_params(), is a product of matrices: of images of one pixel every output has one tap, and the
// weights of an input channel lie as the outputs of an image do.
bool is_product(const ConvParams& p) {
  const View4 &w = p.weight, &y = p.output;
  return p.H == 1 && p.W == 1 && p.G == 1 && p.C > 1 && p.input.c == 1 && p.R * p.S > 1 && p.P == p.R && p.Q == p.S &&
         p.dilation_h == 1 && p.dilation_w == 1 && p.pad_h == p.R - 1 && p.pad_w == p.S - 1 &&
         (p.K == 1 || w.n == y.c) && (p.R == 1 || w.h == -y.h) && (p.S == 1 || w.w == -y.w);
}

// As a 1x1 convolution whose pixels are the images and whose output channels are all the outputs of one.
void forward_product(const char* op, const ConvParams& p) {
  ConvParams q = p;
  const int64_t size = p.element_size();
  q.N = q.H = q.P = q.R = q.S = q.up_h = q.up_w = q.dilation_h = q.dilation_w = 1;
  q.W = q.Q = p.N;
  q.K = p.K * p.R * p.S;
  q.pad_h = q.pad_w = 0;
  q.input = {p.input.data, p.N * p.input.n, 1, p.N * p.input.n, p.input.n};
  q.output = {p.output.data, p.N * q.K, 1, p.N * q.K, q.K};
  q.weight = {static_cast<char*>(p.weight.data) + ((p.R - 1) * p.weight.h + (p.S - 1) * p.weight.w) * size, 1,
              p.weight.c, 1, 1};
  Memory bias(p.bias ? q.K * size : 0);
  for (int64_t k = 0; p.bias && k < p.K; ++k)
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t s = 0; s < p.S; ++s)
        std::memcpy(bias.get() + (k * p.output.c + r * p.output.h + s * p.output.w) * size,
                    static_cast<const char*>(p.bias) + k * size, static_cast<size_t>(size));
  q.bias = p.bias ? bias.get() : nullptr;
  forward(op, q);
}

// One convolution for each residue of the position modulo the strides; `p` as in transposed().
void each_residue(const char* op, const ConvParams& p, Tensor& grad_input) {
  const int64_t rows = residues(p.R, p.stride_h, p.dilation_h), columns = residues(p.S, p.stride_w, p.dilation_w);
  if (rows < p.stride_h || columns < p.stride_w) {  // there are positions that no tap reaches
    if (p.bias) {
      ConvParams nothing = p;
      nothing.K = p.C;
      nothing.P = p.H;
      nothing.Q = p.W;
      nothing.R = nothing.S = 0;
      nothing.output = p.input;
      forward(op, nothing);
    } else {
      torch::stable::zero_(grad_input);
    }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; ++s) {
      const Residue h = residue_of(r, p.H, p.R, p.stride_h, p.dilation_h, p.pad_h);
      const Residue w = residue_of(s, p.W, p.S, p.stride_w, p.dilation_w, p.pad_w);
      if (h.positions * w.positions == 0) continue;
      forward(op, residue_params(p, h, w));
    }
}

// The convolution `p` turned round: the gradient of its input, or with a bias [G*C] a transposed convolution. Where no
// kernel serves an input that is spread out by the strides, a convolution for each residue of the position modulo them.
Tensor transposed(const ConvArguments& a, ConvParams p, Tensor grad_output, const Tensor& weight) {
  const MemoryFormat format = memory_format(grad_output);
  // What comes from one pixel has the layout of the weight first: it is smaller, and better copied.
  const bool one_pixel = p.P == 1 && p.Q == 1;
  Tensor grad_input = empty_as(grad_output, result_sizes(a, a.input), one_pixel ? memory_format(weight) : format);
  if (grad_input.numel() == 0) return grad_input;
  p.output = readable(grad_output);
  p.weight = view_of(weight, weight.const_data_ptr());
  p.weight_g = p.K * p.weight.n;
  p.input = readable(grad_input);
  p.threads = threads_for(p);
  const ConvParams whole = spread_params(p);
  ConvPlan plan;
  if (is_product(whole)) {
    forward_product(a.op, whole);
  } else if (p.stride_h == 1 && p.stride_w == 1) {
    forward(a.op, whole);
  } else if (const ConvKernel* kernel = find_forward(whole, plan)) {
    run(*kernel, whole, plan);
  } else {
    each_residue(a.op, p, grad_input);
  }
  return torch::stable::contiguous(grad_input, format);
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

Tensor conv_grad_input(Tensor grad_output, Tensor weight, Sizes input_size, Sizes stride, Sizes padding, Sizes dilation,
                       int64_t groups) {
  const ConvArguments a = check_conv(input_size, weight.sizes(), stride, padding, dilation, groups);
  const ConvParams p = conv_params(a, dtype_of(a.op, grad_output));
  check_same(a.op, "weight", weight, grad_output);
  check_shape(a.op, "grad_output", grad_output, result_sizes(a, a.output));
  return transposed(a, p, grad_output, weight);
}

Tensor conv_grad_weight(Tensor grad_output, Tensor input, Sizes weight_size, Sizes stride, Sizes padding,
                        Sizes dilation, int64_t groups) {
  const ConvArguments a = check_conv(input.sizes(), weight_size, stride, padding, dilation, groups);
  const Dtype dtype = dtype_of(a.op, input);
  check_same(a.op, "grad_output", grad_output, input);
  check_shape(a.op, "grad_output", grad_output, result_sizes(a, a.output));
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

namespace {

// Sets it to the name of a row, or of none; `other` is a name to know beside them.
bool switch_to(std::atomic<const char*>& which, const std::string& name, const char* other) {
  const char* found = name == other ? other : nullptr;
  for_each_kernel([&](const ConvKernel& kernel) {
    if (name == kernel.name) found = kernel.name;
  });
  if (name.empty()) found = nullptr;
  if (!found && !name.empty()) return false;
  if (which.exchange(found, std::memory_order_relaxed) != found) switches.fetch_add(1, std::memory_order_relaxed);
  return true;
}

int64_t product(const Sizes& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

Dtype dtype_named(const char* op, const std::string& name) {
  for (ScalarType type : {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half})
    if (name == dtype_name(type)) return dtype_of(op, type);
  return dtype_of(op, ScalarType::Undefined);
}

// As empty_as lays out a tensor of these sizes.
View4 dense(const Sizes& s, bool channels_last) {
  if (channels_last) return {nullptr, s[1] * s[2] * s[3], 1, s[3] * s[1], s[1]};
  return {nullptr, s[1] * s[2] * s[3], s[2] * s[3], s[3], 1};
}

std::string current(const std::atomic<const char*>& which) {
  const char* name = which.load(std::memory_order_relaxed);
  return name ? name : "";
}

}  // namespace

std::vector<std::string> conv_kernel_names() {
  std::vector<std::string> names;
  for_each_kernel([&](const ConvKernel& kernel) { names.emplace_back(kernel.name); });
  return names;
}

bool conv_force_kernel(const std::string& name) { return switch_to(forced, name, ""); }

bool conv_skip_kernel(const std::string& name) { return switch_to(skipped, name, kWinograd); }

std::string conv_forced_kernel() { return current(forced); }

std::string conv_skipped_kernel() { return current(skipped); }

int64_t conv_choice() { return switches.load(std::memory_order_relaxed) * 8 + static_cast<int64_t>(isa()); }

ConvAnswer conv_explain(const ConvQuery& q) {
  const ConvArguments a = check_conv(q.input, q.weight, q.stride, q.padding, q.dilation, q.groups);
  ConvParams p = conv_params(a, dtype_named(a.op, q.dtype));
  const bool last = is_channels_last(q.input, q.input_strides);
  ConvAnswer answer = {};
  p.input = view_of(nullptr, q.input_strides);
  answer.copies_input = !settle(p.input, a.input[1], a.input[3], product(a.input));
  if (answer.copies_input) p.input = dense(a.input, last);
  settle(p.input, a.input[1], a.input[3], product(a.input));
  p.weight = view_of(nullptr, q.weight_strides);
  p.weight_g = p.K * p.weight.n;
  p.output = dense(a.output, last);
  settle(p.output, a.output[1], a.output[3], product(a.output));
  p.threads = worth_threads(p) ? q.threads : 1;
  answer.threads = p.threads;
  if (product(a.output) == 0) return answer;
  join_rows(p);
  ConvPlan plan;
  const ConvExtraKernels* extra = extra_kernels();
  const ConvKernel* kernel =
      walk(extra ? &extra->forward : nullptr, FASTCONV_KERNELS(conv_kernels).forward, p, plan,
           [&](const char* name, const char* reason) { answer.passed_by.emplace_back(name, reason); });
  if (!kernel) return answer;
  answer.kernel = kernel->name;
  answer.packed = plan.memory.packed;
  answer.scratch = plan.memory.scratch;
  return answer;
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("conv", TORCH_BOX(&conv));
  m.impl("conv_transpose", TORCH_BOX(&conv_transpose));
  m.impl("_conv_pack", TORCH_BOX(&conv_pack));
  m.impl("_conv_packed", TORCH_BOX(&conv_packed));
  m.impl("_conv_grad_input", TORCH_BOX(&conv_grad_input));
  m.impl("_conv_grad_weight", TORCH_BOX(&conv_grad_weight));
}

}  // namespace fastconv
