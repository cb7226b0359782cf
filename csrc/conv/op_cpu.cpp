// The convolution operators for CPU tensors, and how a kernel of the table is chosen; operators.h says what they do.
#include <atomic>

#include "conv/choice.h"
#include "conv/cuda_choice.h"
#include "conv/operators.h"
#include "conv/pack.h"
#include "conv/ways.h"

namespace fastconv {
namespace {

constexpr double kSmallMacs = 2e5;  // below this a second thread costs more than it computes

constexpr const char* kWinograd = "winograd";  // may be switched off whether or not there are such rows

std::atomic<const char*> forced{nullptr};   // the name of the only kernel that may run
std::atomic<const char*> skipped{nullptr};  // the name of the rows that are not asked
std::atomic<int64_t> switches{0};           // how often one of them has changed

bool worth_threads(const ConvParams& p) {
  return static_cast<double>(p.N) * p.G * p.K * p.C * p.R * p.S * p.P * p.Q >= kSmallMacs;
}

// What of the params is this machine's.
void settle_machine(ConvParams& p, int threads) {
  p.threads = worth_threads(p) ? threads : 1;
  p.halved = isa_halves_vectors();
}
void settle_machine(ConvParams& p) { settle_machine(p, static_cast<int>(torch::stable::get_num_threads())); }

// First those kernels are asked that the instruction set in use adds (`extra`, null if none), then those that every one
// has. `pass_by(name, reason)` hears of every row before the one that is found.
template <class Kernel, size_t Extra, size_t Count, class PassBy>
const Kernel* walk(const Kernel (*extra)[Extra], const Kernel (&table)[Count], const ConvParams& p, ConvPlan& plan,
                   const PassBy& pass_by) {
  ConvWish wish = {forced.load(std::memory_order_relaxed), skipped.load(std::memory_order_relaxed)};
  if (conv_adds_nothing(p)) wish.only = table[Count - 1].name;
  const auto can = [&](const Kernel& kernel) { return kernel.plan(p, plan); };
  if (extra)
    if (const Kernel* found = conv_first(*extra, p, wish, can, pass_by)) return found;
  return conv_first(table, p, wish, can, pass_by);
}

template <class Kernel>
const Kernel& served(const char* op, const Kernel* kernel) {
  return conv_served(op, kernel, forced.load(std::memory_order_relaxed));
}

const ConvExtraKernels* extra_kernels() { return FASTCONV_EXTRA_KERNELS(conv_extra_kernels); }

// Forward kernels, in the order in which they are asked.
template <class Body>
void for_each_kernel(const Body& body) {
  if (const ConvExtraKernels* extra = extra_kernels())
    for (const ConvKernel& kernel : extra->forward) body(kernel);
  for (const ConvKernel& kernel : FASTCONV_KERNELS(conv_kernels).forward) body(kernel);
}

template <class PassBy>
const ConvKernel* find_forward(const ConvParams& p, ConvPlan& plan, const PassBy& pass_by) {
  const ConvExtraKernels* extra = extra_kernels();
  return walk(extra ? &extra->forward : nullptr, FASTCONV_KERNELS(conv_kernels).forward, p, plan, pass_by);
}

const ConvKernel* find_forward(const ConvParams& p, ConvPlan& plan) {
  return find_forward(p, plan, conv_pass_by_silently);
}

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
      served(op, walk(none, FASTCONV_KERNELS(conv_kernels).grad_weight, p, plan, conv_pass_by_silently));
  Memory memory(plan.memory.scratch);
  kernel.run(p, plan, memory.get());
}

// Runs what it is told of.
struct Running {
  const char* op;
  Tensor& output;

  void run(const ConvParams& p) { forward(op, p); }
  bool try_run(const ConvParams& p) {
    ConvPlan plan;
    const ConvKernel* kernel = find_forward(p, plan);
    if (kernel) fastconv::run(*kernel, p, plan);
    return kernel;
  }
  void clear() { torch::stable::zero_(output); }
  void turn(const ConvTurn& t) { FASTCONV_KERNELS(conv_kernels).turn(t); }
};

struct Cpu {
  // What comes from one pixel may be a product of matrices.
  static constexpr bool kProducts = true;

  Cpu(const char* op, const Tensor&) : op(op) {}
  void forward(ConvParams p) const {
    settle_machine(p);
    fastconv::forward(op, p);
  }
  void turned(ConvParams p, Tensor& output) const {
    settle_machine(p);
    Running runs{op, output};
    turn_round(p, runs);
  }
  void grad_weight(ConvParams p) const {
    settle_machine(p);
    fastconv::grad_weight(op, p);
  }

  const char* op;
};
using Operators = ConvOperators<Cpu>;

Tensor conv_pack(Tensor input, Tensor weight, Sizes stride, Sizes padding, Sizes dilation, int64_t groups) {
  const ConvForward<Cpu> f(input, weight, std::nullopt, stride, padding, dilation, groups, std::nullopt, std::nullopt);
  if (f.output.numel() == 0) return cpu_scratch(0);
  ConvParams p = f.p;
  settle_machine(p);
  join_rows(p);
  p.prepacked = true;
  ConvPlan plan;
  const ConvKernel& kernel = served(f.a.op, find_forward(p, plan));
  Tensor result = cpu_scratch(Pack::header_bytes() + plan.memory.packed);
  Pack* pack = new (result.mutable_data_ptr()) Pack{Pack::kMagic, pack_sample(p), pack_key(p), &kernel, plan};
  kernel.pack(p, plan, pack->weights());
  return result;
}

Tensor conv_packed(Tensor input, Tensor weight, std::optional<Tensor> bias, Tensor packed, Sizes stride, Sizes padding,
                   Sizes dilation, int64_t groups, std::optional<Tensor> residual,
                   std::optional<std::string> activation) {
  const ConvForward<Cpu> f(input, weight, bias, stride, padding, dilation, groups, residual, activation);
  if (f.output.numel() == 0) return f.output;
  ConvParams p = f.p;
  settle_machine(p);
  join_rows(p);
  p.prepacked = true;
  const Pack& pack = check_pack(f.a.op, packed, p);
  Memory scratch(pack.plan.memory.scratch);
  for_each_kernel([&](const ConvKernel& kernel) {
    if (&kernel == pack.kernel) kernel.run(p, pack.plan, pack.weights(), scratch.get());
  });
  return f.output;
}

}  // namespace

namespace {

// The names of the CUDA kernels, each once.
template <class Body>
void for_each_cuda_name(const Body& body) {
  for (const ConvCudaRule& rule : kConvCudaForward) body(rule.name);
  for (const ConvCudaRule& rule : kConvCudaGradWeight) {
    bool told = false;
    for (const ConvCudaRule& other : kConvCudaForward) told = told || conv_named(rule.name, other.name);
    if (!told) body(rule.name);
  }
}

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

// As readable() sees a tensor of these sizes that empty_as() has made.
View4 dense_view(const Sizes& s, bool channels_last) {
  View4 view = {nullptr, s[1] * s[2] * s[3], s[2] * s[3], s[3], 1};
  if (channels_last) view = {nullptr, s[1] * s[2] * s[3], 1, s[3] * s[1], s[1]};
  settle(view, s[1], s[3], product(s));
  return view;
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

std::vector<std::string> conv_cuda_kernel_names() {
  std::vector<std::string> names;
  for_each_cuda_name([&](const char* name) { names.emplace_back(name); });
  return names;
}

bool conv_force_kernel(const std::string& name) {
  const char* of_cuda = "";
  for_each_cuda_name([&](const char* one) {
    if (name == one) of_cuda = one;
  });
  return switch_to(forced, name, of_cuda);
}

bool conv_skip_kernel(const std::string& name) { return switch_to(skipped, name, kWinograd); }

std::string conv_forced_kernel() { return current(forced); }

std::string conv_skipped_kernel() { return current(skipped); }

int64_t conv_choice() { return switches.load(std::memory_order_relaxed) * 8 + static_cast<int64_t>(isa()); }

namespace {

// Writes down what it is told of.
struct Noting {
  std::vector<ConvRun>& notes;

  void run(const ConvParams& p) { notes.push_back(note(p)); }
  bool try_run(const ConvParams& p) {
    ConvRun found = note(p);
    const bool served = !found.kernel.empty();
    if (served) notes.push_back(std::move(found));
    return served;
  }
  void clear() {}
  void turn(const ConvTurn&) {}

 private:
  static ConvRun note(ConvParams p) {
    join_rows(p);
    ConvPlan plan;
    ConvRun found = {};
    const ConvKernel* kernel = find_forward(
        p, plan, [&](const char* name, const char* reason) { found.passed_by.emplace_back(name, reason); });
    if (!kernel) return found;
    found.kernel = kernel->name;
    found.packed = plan.memory.packed;
    found.scratch = plan.memory.scratch;
    return found;
  }
};

// A tensor of these sizes and strides as the kernels see it: as it lies, or as a dense copy.
View4 readable_view(const Sizes& sizes, const Sizes& strides, bool channels_last, bool& copied) {
  View4 view = view_of(nullptr, strides);
  copied = !settle(view, sizes[1], sizes[3], product(sizes));
  if (copied) view = dense_view(sizes, channels_last);
  return view;
}

ConvRun cuda_run(ConvParams p) {
  gather_single(p);
  join_rows(p);
  ConvRun found = {};
  const ConvCudaRule* rule =
      conv_cuda_choose(kConvCudaForward, p, forced.load(std::memory_order_relaxed),
                       [&](const char* name, const char* reason) { found.passed_by.emplace_back(name, reason); });
  if (!rule) return found;
  found.kernel = rule->name;
  const ConvMemory memory = rule->memory(p, {});
  found.packed = memory.packed;
  found.scratch = memory.scratch;
  return found;
}

}  // namespace

ConvAnswer conv_explain(const ConvQuery& q) {
  const ConvArguments a = q.transposed ? check_conv_transpose(q.input, q.weight, q.stride, q.padding, q.output_padding,
                                                              q.dilation, q.groups)
                                       : check_conv(q.input, q.weight, q.stride, q.padding, q.dilation, q.groups);
  ConvParams p = conv_params(a, dtype_named(a.op, q.dtype), q.allow_tf32);
  const bool last = is_channels_last(q.input, q.input_strides);
  ConvAnswer answer = {};
  p.weight = view_of(nullptr, q.weight_strides);
  p.weight_g = p.K * p.weight.n;
  if (!q.cuda) settle_machine(p, q.threads);
  answer.threads = p.threads;
  Noting runs{answer.runs};
  if (q.transposed) {
    const bool product_of_one = conv_from_one_pixel(p) && !q.cuda;
    p.output = readable_view(a.output, q.input_strides, last, answer.copies_input);
    p.input = dense_view(a.input, product_of_one ? is_channels_last(q.weight, q.weight_strides) : last);
    const std::vector<double> bias(static_cast<size_t>(q.bias ? a.input[1] : 0));  // of any dtype
    p.bias = q.bias ? bias.data() : nullptr;
    if (product(a.input) == 0) return answer;
    if (q.cuda) {
      answer.way = p.stride_h == 1 && p.stride_w == 1 ? "backwards" : "spread";
      answer.runs.push_back(cuda_run(spread_params(p)));
    } else {
      answer.way = turn_round(p, runs);
    }
  } else {
    p.input = readable_view(a.input, q.input_strides, last, answer.copies_input);
    p.output = dense_view(a.output, last);
    if (product(a.output) == 0) return answer;
    if (q.cuda)
      answer.runs.push_back(cuda_run(p));
    else
      runs.run(p);
  }
  return answer;
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  implement(m, "conv", TORCH_BOX(&Operators::conv));
  implement(m, "conv_transpose", TORCH_BOX(&Operators::conv_transpose));
  m.impl("_conv_pack", TORCH_BOX(&conv_pack));
  m.impl("_conv_packed", TORCH_BOX(&conv_packed));
  implement(m, "_conv_grad_input", TORCH_BOX(&Operators::conv_grad_input));
  implement(m, "_conv_grad_weight", TORCH_BOX(&Operators::conv_grad_weight));
}

}  // namespace fastconv
