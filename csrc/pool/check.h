// What the host operators of the pooling family share: the rules for their arguments, and the params they come down to.
// The operators take 1-D ([N, C, W]) and 2-D ([N, C, H, W]) inputs; a 1-D one is a 2-D one of height 1.
#pragma once
#include "core/torch.h"
#include "pool/params.h"

namespace fastconv {

// The taps of a window are counted in 32 bits, with room for distances.
constexpr int64_t kMostTaps = int64_t{1} << 30;
// Of an input that has windows; nothing that is computed from it and from arguments up to kLargest overflows.
constexpr int64_t kLargestInput = int64_t{1} << 60;

// Where the windows are, as operators are told: one list, because each list of a call is boxed by itself, which takes
// a microsecond. It has the sizes of the windows, their strides, paddings and dilations, each for all dimensions; or
// the sizes of the output alone, to which windows adapt.
struct PoolWindows {
  IntHeaderOnlyArrayRef kernel, stride, padding, dilation;
  bool ceil_mode;

  PoolWindows(const Sizes& list, size_t dims, bool ceil)
      : kernel(part(list, dims, 0)),
        stride(part(list, dims, 1)),
        padding(part(list, dims, 2)),
        dilation(part(list, dims, 3)),
        ceil_mode(ceil) {}

 private:
  static IntHeaderOnlyArrayRef part(const Sizes& list, size_t dims, size_t number) {
    return {list.data() + number * dims, dims};
  }
};

// An operator's arguments after the rules have been checked.
struct PoolArguments {
  std::string op;  // "max_pool2d", "adaptive_avg_pool1d" and so on, for messages
  Sizes input;     // as given, [N, C, W] or [N, C, H, W]
  Sizes output;    // of as many dimensions
  PoolAxis h, w;
};

// Windows that ceil_mode adds begin in the input or in the padding before it.
inline PoolAxis window_axis(const char* op, size_t d, int64_t size, const PoolWindows& windows) {
  PoolAxis axis = {size, 0, windows.kernel[d], windows.stride[d], windows.padding[d], windows.dilation[d], false};
  const int64_t extent = (axis.kernel - 1) * axis.dilation + 1, padded = size + 2 * axis.padding;
  check(axis.padding <= extent / 2, op, ": padding must be at most half of what a window spans, ", extent,
        " in dimension ", d, " (got ", text(windows.padding), ")");
  check(extent < padded + (windows.ceil_mode ? axis.stride : 1), op,
        ": kernel_size must not span more than the padded input, ", extent, " > ", padded, " in dimension ", d,
        " (got ", text(windows.kernel), ")");
  const int64_t room = padded - extent + (windows.ceil_mode ? axis.stride - 1 : 0);
  axis.outputs = room / axis.stride + 1;
  if (windows.ceil_mode && (axis.outputs - 1) * axis.stride >= size + axis.padding) --axis.outputs;
  return axis;
}

// Windows that divide the input evenly are plain ones. One window adapts, however large the input is.
inline PoolAxis adaptive_axis(int64_t size, int64_t outputs) {
  if (outputs > 1 && size % outputs == 0) return {size, outputs, size / outputs, size / outputs, 0, 1, false};
  const int64_t most = outputs > 1 ? size / outputs + 2 : size;
  return {size, outputs, most < size ? most : size, 1, 0, 1, true};
}

// `kind`: "max", "avg", "lp" or "stochastic". Only the first knows dilation, only the first two have windows that
// adapt.
inline PoolArguments check_pool(const char* kind, IntHeaderOnlyArrayRef input, const Sizes& list, bool ceil_mode) {
  PoolArguments a;
  const bool adapts = list.size() <= 2 && (kind[0] == 'm' || kind[0] == 'a');
  a.op = std::string(adapts ? "adaptive_" : "") + kind + (input.size() == 3 ? "_pool1d" : "_pool2d");
  const char* op = a.op.c_str();
  check(input.size() == 3 || input.size() == 4, op, ": input must have 3 or 4 dimensions (got ", text(input), ")");
  const size_t dims = input.size() - 2;
  for (size_t d = adapts ? 2 : 1; d < input.size(); ++d)
    check(input[d] > 0, op, ": input must not be empty but for its batch (got ", text(input), ")");
  a.input.assign(input.begin(), input.end());
  a.output = {input[0], input[1]};
  PoolAxis axes[2] = {{1, 1, 1, 1, 0, 1, false}, {}};
  if (adapts) {
    check_list(op, "output_size", list, dims, 0, "not be negative");
    int64_t taps = 1;
    for (size_t d = 0; d < dims; ++d) {
      PoolAxis& axis = axes[d + 2 - dims];
      axis = adaptive_axis(input[2 + d], list[d]);
      check(axis.kernel <= kMostTaps / taps, op, ": input must have at most ", kMostTaps, " positions a window (got ",
            text(input), ")");
      taps *= axis.kernel;
    }
  } else {
    check(list.size() == 4 * dims, op, ": windows must have ", 4 * dims, " elements, or ", dims,
          " where they adapt (got ", text(list), ")");
    const PoolWindows windows(list, dims, ceil_mode);
    check_list(op, "kernel_size", windows.kernel, dims, 1, "be positive");
    check_list(op, "stride", windows.stride, dims, 1, "be positive");
    check_list(op, "padding", windows.padding, dims, 0, "not be negative");
    check_list(op, "dilation", windows.dilation, dims, 1, "be positive");
    for (int64_t d : windows.dilation)
      check(d == 1 || kind[0] == 'm', op, ": dilation must be 1 (got ", text(windows.dilation), ")");
    check(windows.kernel[0] <= kMostTaps / (dims == 2 ? windows.kernel[1] : 1), op, ": kernel_size must have at most ",
          kMostTaps, " positions (got ", text(windows.kernel), ")");
    for (size_t d = 0; d < dims; ++d) {
      check(input[2 + d] <= kLargestInput, op, ": input must be at most ", kLargestInput, " in every dimension (got ",
            text(input), ")");
      axes[d + 2 - dims] = window_axis(op, d, input[2 + d], windows);
    }
  }
  a.h = axes[0];
  a.w = axes[1];
  for (size_t d = 0; d < dims; ++d) a.output.push_back(axes[d + 2 - dims].outputs);
  return a;
}

inline PoolParams pool_params(const PoolArguments& a, Dtype dtype, MemoryFormat format) {
  PoolParams p = {};
  p.dtype = dtype;
  p.channels_last = format == MemoryFormat::ChannelsLast;
  p.N = a.input[0];
  p.C = a.input[1];
  p.h = a.h;
  p.w = a.w;
  p.threads = 1;
  return p;
}

// What the number of a tap takes.
inline int id_bytes(const PoolArguments& a) {
  const int64_t taps = a.h.kernel * a.w.kernel;
  return taps <= 1 << 8 ? 1 : taps <= 1 << 16 ? 2 : 4;
}
// PyTorch has no unsigned types that all of its functions know; what they hold is ours alone.
inline ScalarType id_type(const PoolArguments& a) {
  const int bytes = id_bytes(a);
  return bytes == 1 ? ScalarType::Byte : bytes == 2 ? ScalarType::Short : ScalarType::Int;
}

inline void check_ids(const PoolArguments& a, const Tensor& ids) {
  check_shape(a.op.c_str(), "ids", ids, a.output);
  check(ids.scalar_type() == id_type(a), a.op, ": ids must be ", dtype_name(id_type(a)), " (got ",
        dtype_name(ids.scalar_type()), ")");
}

// The operator's name.
inline std::string check_unpool(const Tensor& given, const char* name, const Tensor& indices) {
  const std::string op = given.dim() == 3 ? "max_unpool1d" : "max_unpool2d";
  const auto sizes = given.sizes();
  check(sizes.size() == 3 || sizes.size() == 4, op, ": ", name, " must have 3 or 4 dimensions (got ", text(sizes), ")");
  dtype_of(op.c_str(), given);
  check(indices.scalar_type() == ScalarType::Long, op, ": indices must be int64 (got ",
        dtype_name(indices.scalar_type()), ")");
  if (indices.device() != given.device())
    check(false, op, ": indices must be on the device of ", name, ", ", device_name(given), " (got ",
          device_name(indices), ")");
  return op;
}

}  // namespace fastconv
