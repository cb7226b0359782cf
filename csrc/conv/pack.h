// A pack: the weights of one convolution in the order in which its kernel reads them, together with what they were
// packed for, in one tensor of bytes. It serves the process, the weight and the arguments that it was made with, and is
// refused with any other.
#pragma once
#include <cstring>

#include "conv/check.h"
#include "conv/choice.h"

namespace fastconv {

// What the choice of a kernel and its plan may depend on: all of the params but the addresses of input, output, bias
// and residual, the activation, and TF32, which is CUDA's.
struct PackKey {
  int64_t choice, threads, sizes[10], geometry[8], weight[6], strides[9];
};

inline PackKey pack_key(const ConvParams& p) {
  static_assert(sizeof(ConvParams) == 312, "a new field belongs into the key, or into the list of those left out");
  const View4 &x = p.input, &w = p.weight, &y = p.output;
  return {
      conv_choice(),
      p.threads,
      {p.N, p.G, p.C, p.K, p.H, p.W, p.P, p.Q, p.R, p.S},
      {p.stride_h, p.stride_w, p.dilation_h, p.dilation_w, p.pad_h, p.pad_w, p.up_h, p.up_w},
      {reinterpret_cast<int64_t>(w.data), w.n, w.c, w.h, w.w, p.weight_g},
      {static_cast<int64_t>(p.dtype), x.n, x.c, x.h, x.w, y.n, y.c, y.h, y.w},
  };
}

// The bits of one weight of every output channel, at changing places. PyTorch counts the changes of a tensor, but not
// those made through `.data`; nearly all of them show here.
template <class Bits>
uint64_t pack_sample(const ConvParams& p) {
  uint64_t sum = 0;
  if (p.C * p.R * p.S == 0) return sum;
  const Bits* weight = static_cast<const Bits*>(p.weight.data);
  for (int64_t k = 0, c = 0, r = 0, s = 0; k < p.G * p.K; ++k) {
    sum = sum * 0x9E3779B97F4A7C15 + weight[k * p.weight.n + c * p.weight.c + r * p.weight.h + s * p.weight.w];
    if (++c == p.C) c = 0;
    if (++r == p.R) r = 0;
    if (++s == p.S) s = 0;
  }
  return sum;
}

inline uint64_t pack_sample(const ConvParams& p) {
  switch (p.element_size()) {
    case 2: return pack_sample<uint16_t>(p);
    case 4: return pack_sample<uint32_t>(p);
    default: return pack_sample<uint64_t>(p);
  }
}

struct Pack {
  static constexpr uint64_t kMagic = 0x6661737470616b31;

  uint64_t magic, sample;
  PackKey key;
  const ConvKernel* kernel;  // a row of the table; compared, never followed
  ConvPlan plan;
  // Behind it: plan.memory.packed bytes.

  static constexpr int64_t header_bytes() { return (static_cast<int64_t>(sizeof(Pack)) + 63) / 64 * 64; }
  char* weights() { return reinterpret_cast<char*>(this) + header_bytes(); }
  const char* weights() const { return reinterpret_cast<const char*>(this) + header_bytes(); }
};

// What `tensor` holds, if it was made for these params.
inline const Pack& check_pack(const char* op, const Tensor& tensor, const ConvParams& p) {
  const int64_t bytes = tensor.numel();
  const Pack* pack = nullptr;
  if (tensor.scalar_type() == ScalarType::Byte && tensor.dim() == 1 && device_name(tensor) == "cpu" &&
      tensor.stride(0) == 1 && bytes >= Pack::header_bytes())
    pack = static_cast<const Pack*>(tensor.const_data_ptr());
  check(pack && reinterpret_cast<uintptr_t>(pack) % 64 == 0 && pack->magic == Pack::kMagic &&
            pack->plan.memory.packed == bytes - Pack::header_bytes(),
        op, ": pack must be a tensor that _conv_pack made (got ", dtype_name(tensor.scalar_type()), " ",
        text(tensor.sizes()), ")");
  const PackKey key = pack_key(p);
  if (std::memcmp(&key, &pack->key, sizeof key) == 0 && pack->sample == pack_sample(p)) return *pack;
  const PackKey& made = pack->key;
  check(made.choice == key.choice, op, ": pack must be made under the flags in force (got one of others)");
  check(made.threads == key.threads, op, ": pack must be made for ", key.threads, " threads (got one for ",
        made.threads, ")");
  check(made.weight[0] == key.weight[0], op, ": pack must be made of this weight (got one of another)");
  check(std::memcmp(&key, &made, sizeof key) == 0, op,
        ": pack must be made for these sizes, layouts and arguments (got one for others)");
  check(false, op, ": pack must be made of this weight as it is (got one from before it was changed)");
  return *pack;
}

}  // namespace fastconv
