// The one header that includes PyTorch's stable ABI: what a host operator needs to check, allocate and fill params.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/pages.h"
#include "core/view.h"

namespace fastconv {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// An operator that has a rule for autograd has another of the same schema that has none, for calls that nobody
// differentiates: to go past such a rule takes a call a third longer than to have none, when caches hold neither.
inline std::string without_autograd(const std::string& op) { return op + ".no_grad"; }

// Registers the kernel of both.
inline void implement(torch::stable::detail::StableLibrary& library, const char* op,
                      void (*kernel)(StableIValue*, uint64_t, uint64_t)) {
  library.impl(op, kernel);
  library.impl(without_autograd(op).c_str(), kernel);
}

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

// PyTorch's Python names, where they are not those of C++.
inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::ComplexHalf: return "complex32";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(type);
  }
}

inline Dtype dtype_of(const char* op, ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    default:
      check(false, op, ": input must be float32, float64, bfloat16 or float16 (got ", dtype_name(type), ")");
      return Dtype::kFloat32;
  }
}
inline Dtype dtype_of(const char* op, const Tensor& tensor) { return dtype_of(op, tensor.scalar_type()); }

// PyTorch's rule, of sizes and strides alone: does the channel come first among the strides? Ambiguous tensors (one
// channel, one pixel) count as contiguous unless their strides say otherwise.
inline bool is_channels_last(IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides) {
  if (sizes.size() != 4 || strides[1] == 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (sizes[d] == 0 || strides[d] < least) return false;
    if (d == 0 && least == strides[1]) return false;
    least = strides[d] * (sizes[d] > 1 ? sizes[d] : 1);
  }
  return true;
}

inline MemoryFormat memory_format(const Tensor& tensor) {
  return is_channels_last(tensor.sizes(), tensor.strides()) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// The dimension that is `i`-th from the innermost one.
inline int64_t inner_dimension(MemoryFormat format, int64_t dims, int64_t i) {
  constexpr int64_t kChannelsLast[] = {1, 3, 2, 0};
  return format == MemoryFormat::ChannelsLast ? kChannelsLast[i] : dims - 1 - i;
}

// Whether the elements lie side by side in the order of the format.
inline bool is_dense(const Tensor& tensor, MemoryFormat format) {
  const IntHeaderOnlyArrayRef sizes = tensor.sizes(), strides = tensor.strides();
  int64_t next = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t d = inner_dimension(format, static_cast<int64_t>(sizes.size()), static_cast<int64_t>(i));
    if (sizes[d] != 1 && strides[d] != next) return false;
    next *= sizes[d];
  }
  return true;
}

// The tensor itself where it is dense, else a copy. (To ask PyTorch's `contiguous` costs half a microsecond through the
// dispatcher, also where there is nothing to do.)
inline Tensor dense(const Tensor& tensor, MemoryFormat format = MemoryFormat::Contiguous) {
  return is_dense(tensor, format) ? tensor : torch::stable::contiguous(tensor, format);
}

// Without the dispatcher as well, which for `empty` boxes sizes, dtype, layout and device one by one: 0.9 microseconds
// a tensor instead of 2.4 (one core of a Xeon with AVX-512).
inline Tensor empty_on(const torch::stable::Device& device, IntHeaderOnlyArrayRef sizes, MemoryFormat format,
                       ScalarType type) {
  const int64_t dims = static_cast<int64_t>(sizes.size());
  const bool last = format == MemoryFormat::ChannelsLast;
  Sizes strides(sizes.size());
  int64_t next = 1;
  bool fits = true;
  for (int64_t i = 0; i < dims; ++i) {
    const int64_t d = inner_dimension(format, dims, i);
    strides[d] = next;
    fits = !__builtin_mul_overflow(next, last || sizes[d] > 0 ? sizes[d] : 1, &next) && fits;
  }
  using torch::stable::detail::from, torch::stable::detail::to;
  const int32_t dtype = to<int32_t>(from(type));
  AtenTensorHandle made = nullptr;
  fits = fits && aoti_torch_empty_strided(dims, sizes.data(), strides.data(), dtype, to<int32_t>(from(device.type())),
                                          device.index(), &made) == 0;
  check(fits, "fastconv: output must fit into memory (got ", text(sizes), ")");
  const Tensor result(made);
  if (device.type() == torch::headeronly::DeviceType::CPU)
    welcome_large_pages(result.mutable_data_ptr(),
                        result.numel() * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype)));
  return result;
}
inline Tensor empty_as(const Tensor& like, IntHeaderOnlyArrayRef sizes, MemoryFormat format) {
  return empty_on(like.device(), sizes, format, like.scalar_type());
}

// Bytes for a kernel to work in.
inline Tensor scratch_on(const torch::stable::Device& device, int64_t bytes) {
  return empty_on(device, IntHeaderOnlyArrayRef(&bytes, 1), MemoryFormat::Contiguous, ScalarType::Byte);
}
inline Tensor cpu_scratch(int64_t bytes) { return scratch_on({torch::headeronly::DeviceType::CPU, -1}, bytes); }

// Of strides, dilations and padding; far beyond use, and no sum or product of them overflows.
constexpr int64_t kLargest = INT32_MAX;

inline void check_list(const char* op, const char* name, IntHeaderOnlyArrayRef values, size_t count, int64_t least,
                       const char* rule) {
  check(values.size() == count, op, ": ", name, " must have ", count, " elements (got ", text(values), ")");
  for (int64_t v : values) {
    check(v >= least, op, ": ", name, " must ", rule, " (got ", text(values), ")");
    check(v <= kLargest, op, ": ", name, " must be at most ", kLargest, " (got ", text(values), ")");
  }
}

inline std::string device_name(const Tensor& tensor) {
  const auto device = tensor.device();
  if (device.type() == torch::headeronly::DeviceType::CPU) return "cpu";
  if (device.type() != torch::headeronly::DeviceType::CUDA) return "another";
  return "cuda:" + std::to_string(device.index());
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& sizes) {
  const auto got = tensor.sizes();
  check(std::equal(got.begin(), got.end(), sizes.begin(), sizes.end()), op, ": ", name, " must have shape ",
        text(sizes), " (got ", text(got), ")");
}

inline void check_same(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  check(tensor.scalar_type() == input.scalar_type(), op, ": ", name, " must have the dtype of input, ",
        dtype_name(input.scalar_type()), " (got ", dtype_name(tensor.scalar_type()), ")");
  if (tensor.device() != input.device())
    check(false, op, ": ", name, " must be on the device of input, ", device_name(input), " (got ", device_name(tensor),
          ")");
}

}  // namespace fastconv
