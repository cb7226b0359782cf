// The convolution operators for CPU tensors, and how a kernel of the table is chosen; operators.h says what they do.
#include <atomic>
#include <cstring>

#include "conv/choice.h"
#include "conv/cuda_choice.h"
#include "conv/operators.h"
#include "conv/pack.h"

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

// Memory for a kernel, as long as this lives.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
    if (bytes > 0) tensor_ = cpu_scratch(bytes);
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
      served(op, walk(none, FASTCONV_KERNELS(conv_kernels).grad_weight, p, plan, conv_pass_by_silently));
  Memory memory(plan.memory.scratch);
  kernel.run(p, plan, memory.get());
}

// Whether `p`, of spread_params(), is a product of matrices: of images of one pixel every output has one tap, and the
// weights of an input channel lie as the outputs of an image do.
bool is_product(const ConvParams& p) {
  const View4 &w = p.weight, &y = p.output;
  return p.H == 1 && p.W == 1 && p.G == 1 && p.C > 1 && p.input.c == 1 && p.R * p.S > 1 && p.P == p.R && p.Q == p.S &&
         p.dilation_h == 1 && p.dilation_w == 1 && p.pad_h == p.R - 1 && p.pad_w == p.S - 1 &&
         (p.K == 1 || w.n == y.c) && (p.R == 1 || w.h == -y.h) && (p.S == 1 || w.w == -y.w);
}

// As a 1x1 convolution whose pixels are the images and whose output channels are all the outputs of one; without a
// bias.
ConvParams product_params(const ConvParams& p) {
  ConvParams q = p;
  q.N = q.H = q.P = q.R = q.S = q.up_h = q.up_w = q.dilation_h = q.dilation_w = 1;
  q.W = q.Q = p.N;
  q.K = p.K * p.R * p.S;
  q.pad_h = q.pad_w = 0;
  q.input = {p.input.data, p.N * p.input.n, 1, p.N * p.input.n, p.input.n};
  q.output = {p.output.data, p.N * q.K, 1, p.N * q.K, q.K};
  q.weight = {static_cast<char*>(p.weight.data) + ((p.R - 1) * p.weight.h + (p.S - 1) * p.weight.w) * p.element_size(),
              1, p.weight.c, 1, 1};
  q.bias = nullptr;
  return q;
}

// The bias of that convolution: the one of `p` once for every pixel of as many outputs.
Memory product_bias(const ConvParams& p, int64_t rows, int64_t columns) {
  const int64_t size = p.element_size();
  Memory bias(p.bias ? p.K * rows * columns * size : 0);
  for (int64_t k = 0; p.bias && k < p.K; ++k)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t s = 0; s < columns; ++s)
        std::memcpy(bias.get() + (k * p.output.c + r * p.output.h + s * p.output.w) * size,
                    static_cast<const char*>(p.bias) + k * size, static_cast<size_t>(size));
  return bias;
}

// Whether all residues of an axis of spread_params() have as many taps, and every output has one that reads the input.
bool is_blocks(int64_t size, int64_t outputs, int64_t taps, int64_t up, int64_t dilation, int64_t pad) {
  const int64_t crop = taps - 1 - pad;  // outputs on the near side
  return taps % up == 0 && dilation == 1 && crop >= 0 && outputs + crop <= (size - 1) * up + taps;
}

// Whether `p`, of spread_params(), makes patches: what a pixel gives to a row of outputs, up_w columns of K channels,
// lies in channels_last side by side as its weights do, so that the columns' residues are so many more channels of a
// convolution whose pixels do not overlap, 1x1 where kernel and stride are the same. Vectors that K channels do not
// fill are filled by those of a row: 16x16 to 21 channels at 64x64, stride 8, float32, two threads of a Xeon 10.5
// -> 7.4 ms. The input is read once for each residue of the rows, which pays where caches keep it: 2x2, 1024 to 512 at
// 28x28 in bfloat16 5.5 -> 4.8 ms, 128 to 64 at 196x196 (9.8 MB) 6.1 -> 8.2.
bool is_patches(const ConvParams& p) {
  constexpr int64_t kMostInput = 4 << 20;  // bytes
  constexpr int64_t kLanes = 16;
  const View4 &w = p.weight, &y = p.output;
  const bool one_tap = p.R == p.up_h && p.S == p.up_w, fills = p.up_w > 1 && p.K % kLanes && p.up_w * p.K >= kLanes;
  return p.G == 1 && p.up_h * p.up_w > 1 && (one_tap || fills) &&
         (p.up_h == 1 || p.N * p.C * p.H * p.W * p.element_size() <= kMostInput) &&
         is_blocks(p.H, p.P, p.R, p.up_h, p.dilation_h, p.pad_h) &&
         is_blocks(p.W, p.Q, p.S, p.up_w, p.dilation_w, p.pad_w) && y.c == 1 && y.w == p.K && w.n == 1 &&
         (p.S == 1 || w.w == -p.K);
}

// Columns that one of those convolutions makes: from `first` on, the `width` neighbours of as many blocks of a stride.
struct Columns {
  int64_t first, width, blocks;
};

// From `first` on, of which there are `left`: whole blocks, or what there is of one that is cropped.
Columns columns_from(int64_t first, int64_t left, int64_t stride, int64_t pad) {
  const int64_t residue = (first + pad) % stride;
  if (residue == 0 && left >= stride) return {first, stride, left / stride};
  return {first, std::min(stride - residue, left), 1};
}

// The convolution of the first of these columns, with the channels of its neighbours as so many more; `p` as in
// transposed(). Without a bias.
ConvParams patches_params(const ConvParams& p, const Residue& h, const Columns& columns) {
  const Residue w = residue_of((columns.first + p.pad_w) % p.stride_w, p.W, p.S, p.stride_w, p.dilation_w, p.pad_w);
  ConvParams q = residue_params(p, h, w);
  q.K *= columns.width;
  q.Q = columns.blocks;
  q.pad_w -= (columns.first - w.begin) / p.stride_w;
  q.output.data = static_cast<char*>(q.output.data) + (columns.first - w.begin) * p.input.w * p.element_size();
  q.bias = nullptr;
  return q;
}

// The outputs that no tap reaches are the bias alone; `p` as in transposed().
ConvParams nothing_params(const ConvParams& p) {
  ConvParams q = p;
  q.K = p.C;
  q.P = p.H;
  q.Q = p.W;
  q.R = q.S = 0;
  q.output = p.input;
  return q;
}

// The forward convolutions that `p` turned round comes down to, as in transposed(), in order: `runs.run(params)` is
// told of each, and `runs.try_run(params)` of one that need not be served; that is false where no kernel does.
// `runs.clear()` fills the output with zeros. Returns the name of the way.
template <class Runs>
const char* turn_round(const ConvParams& p, Runs& runs) {
  const ConvParams whole = spread_params(p);
  if (is_product(whole)) {
    Memory bias = product_bias(whole, whole.R, whole.S);
    ConvParams product = product_params(whole);
    product.bias = bias.get();
    runs.run(product);
    return "product";
  }
  if (is_patches(whole)) {
    Memory bias = product_bias(whole, 1, whole.up_w);
    for (int64_t r = 0; r < p.stride_h; ++r) {
      const Residue h = residue_of(r, p.H, p.R, p.stride_h, p.dilation_h, p.pad_h);
      for (int64_t next = 0; h.positions > 0 && next < p.W;) {
        const Columns columns = columns_from(next, p.W - next, p.stride_w, p.pad_w);
        ConvParams patches = patches_params(p, h, columns);
        patches.bias = bias.get();
        runs.run(patches);
        next += columns.width * columns.blocks;
      }
    }
    return "patches";
  }
  if (p.stride_h == 1 && p.stride_w == 1) {
    runs.run(whole);
    return "backwards";
  }
  if (runs.try_run(whole)) return "spread";
  // One convolution for each residue of the position modulo the strides.
  const int64_t rows = residues(p.R, p.stride_h, p.dilation_h), columns = residues(p.S, p.stride_w, p.dilation_w);
  if (rows < p.stride_h || columns < p.stride_w) {  // there are positions that no tap reaches
    if (p.bias)
      runs.run(nothing_params(p));
    else
      runs.clear();
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; ++s) {
      const Residue h = residue_of(r, p.H, p.R, p.stride_h, p.dilation_h, p.pad_h);
      const Residue w = residue_of(s, p.W, p.S, p.stride_w, p.dilation_w, p.pad_w);
      if (h.positions * w.positions > 0) runs.run(residue_params(p, h, w));
    }
  return "residues";
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
