// The one header that includes PyTorch's stable ABI: what a host operator needs to check, allocate and fill params.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/view.h"

namespace fastconv {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises RuntimeError with the message, "<op>: <argument> must <rule> (got <value>)".
template <class... Parts>
inline void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Sizes in a message; written out only where the message is raised.
struct Text {
  IntHeaderOnlyArrayRef values;
};
inline Text text(IntHeaderOnlyArrayRef values) { return {values}; }
inline std::ostream& operator<<(std::ostream& out, const Text& text) {
  const char* separator = "[";
  for (int64_t value : text.values) {
    out << separator << value;
    separator = ", ";
  }
  return out << (text.values.size() ? "]" : "[]");
}

inline const char* dtype_name(ScalarType type) { return torch::headeronly::toString(type); }

inline Dtype dtype_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    default:
      check(false, op, ": input must be float32, float64, bfloat16 or float16 (got ", dtype_name(tensor.scalar_type()),
            ")");
      return Dtype::kFloat32;
  }
}

// PyTorch's rule, of sizes and strides alone: does the channel come first among the strides? Ambiguous tensors (one
// channel, one pixel) count as contiguous unless their strides say otherwise.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.stride(1) == 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (tensor.size(d) == 0 || tensor.stride(d) < least) return false;
    if (d == 0 && least == tensor.stride(1)) return false;
    least = tensor.stride(d) * (tensor.size(d) > 1 ? tensor.size(d) : 1);
  }
  return true;
}

inline MemoryFormat memory_format(const Tensor& tensor) {
  return is_channels_last(tensor) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor empty_as(const Tensor& like, IntHeaderOnlyArrayRef sizes, MemoryFormat format) {
  return torch::stable::empty(sizes, like.scalar_type(), torch::headeronly::Layout::Strided, like.device(), false,
                              format);
}

}  // namespace fastconv
