// What the convolution kernels start from: the struct that they take, which taps of an output are not padding, how a
// sum becomes an output, the weights in another order, and how a launcher starts a kernel.
#pragma once
#include <cmath>
#include <numeric>

#include "conv/cuda_choice.h"
#include "conv/params.h"
#include "core/divisor.h"
#include "core/elements.cuh"
#include "core/launch.h"

namespace fastconv {
namespace {

constexpr int kConvThreads = 256;

// The taps that read the input and not padding: tap `first + i * period` reads position `at + i * step`, i in
// [0, count); period and step are the axis's.
struct ConvReach {
  int64_t first, at, count;
};

// One axis of a convolution.
struct ConvAxis {
  int64_t inputs, outputs, taps, stride, dilation, pad, up;
  int64_t period;  // one of so many taps reads a row that is no zero between rows
  int64_t step;    // and the next such tap the row so many further

  // Those of output `one`, or of any up to `last`, which is as `one` modulo `up`; `at` is where `one` reads.
  __device__ __forceinline__ ConvReach reach(int64_t one, int64_t last) const {
    int64_t tap = 0, at = one * stride - pad;
    if (up > 1) {
      while (tap < period && (at + tap * dilation) % up != 0) ++tap;
      if (tap == period) return {0, 0, 0};
      at = (at + tap * dilation) / up;
    }
    const int64_t end = at + (last - one) / up * stride;
    if (end < 0) {
      const int64_t skipped = quotient(step - 1 - end, step);
      tap += skipped * period;
      at += skipped * step;
    }
    if (tap >= taps || at >= inputs) return {0, 0, 0};
    const int64_t left = quotient(taps - 1 - tap, period) + 1, inside = quotient(inputs - 1 - at, step) + 1;
    return {tap, at, left < inside ? left : inside};
  }
  __device__ __forceinline__ ConvReach reach(int64_t output) const { return reach(output, output); }
};

// Sizes by which a tile of several groups is taken apart.
struct ConvGroupBy {
  Divisor<uint32_t> slabs, across, down, up_w, up_h;  // the blocks
  Divisor<uint32_t> slab, columns, halo_columns;      // the pixels
};

struct ConvArgs {
  ConvParams p;
  ConvAxis h, w;
  bool channels_last;  // outputs of one pixel are neighbours, so threads of one are
  bool input_last;     // and those of the input
  bool wide_output;    // several channels of a pixel are accessed at once
  bool wide_input;     // likewise
  bool by_channel;     // weights of one output channel are neighbours, not those of an input channel
  ConvPlaneTile tile;
  Divisor<uint32_t> by_rows, by_columns;  // of the output
  ConvGroupTile group;                    // of several groups at once on tensor cores
  ConvGroupBy by;                         // what its places are divided by
  int64_t input_at;                       // where in shared memory the input is
  int64_t tiles;                          // of pixels
  int tap_rows;                           // of a block, of the depthwise weights' gradient
  int64_t passes;                         // blocks that divide the products of the weights' gradient
  int64_t packed_k;  // output channels of a group in the packed weights, those that are not there included
  int64_t lanes;     // channels that a block has side by side
  int64_t parts;     // into which pixels are split, or the terms of an output's sum
  void* sums;        // [parts, the result's elements], in the type that is added up in; or null: there is one part
  void* packed;
  int64_t items;
};

template <class T>
__device__ __forceinline__ const T* conv_at(const View4& view, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<const T*>(view.data) + n * view.n + c * view.c + h * view.h + w * view.w;
}

template <class A>
__device__ __forceinline__ A conv_activate(Activation activation, A v) {  // NaN stays NaN
  const A zero = 0, six = 6;
  if (activation == Activation::kRelu) return v < zero ? zero : v;
  if (activation == Activation::kRelu6) return v < zero ? zero : v > six ? six : v;
  if (activation == Activation::kSilu) return v / (1 + std::exp(-v));
  if (activation == Activation::kHardswish) {
    const A raised = v + 3;
    return v * (raised < zero ? zero : raised > six ? six : raised) / six;
  }
  return v;
}

// What of a sum goes to the output at `offset`.
template <class T>
__device__ __forceinline__ Accumulate<T> conv_finish(const ConvParams& p, Accumulate<T> sum, int64_t channel,
                                                     int64_t offset) {
  if (p.bias) sum += widen(static_cast<const T*>(p.bias)[channel]);
  if (p.residual) sum += widen(static_cast<const T*>(p.residual)[offset]);
  return conv_activate(p.activation, sum);
}

template <class T>
__device__ __forceinline__ void conv_store(const ConvParams& p, Accumulate<T> sum, int64_t channel, int64_t offset) {
  T element;
  narrow(conv_finish<T>(p, sum, channel, offset), element);
  static_cast<T*>(p.output.data)[offset] = element;
}

// The weights as [groups, taps, input channels, packed_k], zeros behind the last output channel; with room for a single
// one, where all is depthwise, as [taps, groups]; `by_channel` as [groups, output channels, taps, input channels].
template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_pack(const ConvArgs args) {
  const ConvParams& p = args.p;
  const bool depthwise = args.packed_k == 1;
  for (int64_t i = int64_t{blockIdx.x} * kConvThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kConvThreads) {
    int64_t g = i;
    const int64_t group = depthwise ? take_last(g, p.G) : 0;
    int64_t k = args.by_channel ? 0 : take_last(g, args.packed_k);
    const int64_t c = take_last(g, p.C), s = take_last(g, p.S), r = take_last(g, p.R);
    if (args.by_channel) k = take_last(g, args.packed_k);
    T weight = {};
    if (k < p.K) weight = conv_at<T>(p.weight, k, c, r, s)[(depthwise ? group : g) * p.weight_g];
    static_cast<T*>(args.packed)[i] = weight;
  }
}

// ---- launchers ----

static_assert(ConvLimits{}.grid == kMaxGrid, "as many blocks as there may be");

inline ConvAxis conv_axis(int64_t inputs, int64_t outputs, int64_t taps, int64_t stride, int64_t dilation, int64_t pad,
                          int64_t up) {
  const int64_t period = up / std::gcd(up, dilation);
  return {inputs, outputs, taps, stride, dilation, pad, up, period, period * dilation / up};
}

// Whether `count` channels of a pixel can be accessed at once, of channels that lie side by side.
inline bool conv_wide(const View4& view, int64_t channels, int64_t count, int64_t element) {
  return view.c == 1 && channels % count == 0 && view.n % count == 0 && view.h % count == 0 && view.w % count == 0 &&
         aligned(view.data, count * element);
}

// A call, and how it may be started. `scratch`: as many bytes as the kernel needs.
struct ConvLauncher {
  ConvParams p;
  Stream stream;
  ConvLimits limits;
  void* scratch;

  ConvArgs args() const {
    ConvArgs args = {};
    args.p = p;
    args.h = conv_axis(p.H, p.P, p.R, p.stride_h, p.dilation_h, p.pad_h, p.up_h);
    args.w = conv_axis(p.W, p.Q, p.S, p.stride_w, p.dilation_w, p.pad_w, p.up_w);
    args.input_last = p.input.c == 1;
    args.channels_last = p.output.c == 1;
    args.packed = scratch;
    return args;
  }
  // Asynchronous copies, and tensor cores for all types that have any.
  bool from_80() const { return std::min<int64_t>(device_limits(stream).capability, limits.chip) >= 80; }
  bool tensor_cores() const { return conv_on_tensor_cores(p) && from_80(); }
  bool warpgroups() const { return device_limits(stream).warpgroups && limits.chip >= 90; }
  // The weights in the order of conv_pack, from there on, with room for so many output channels a group.
  template <class T>
  void pack(ConvArgs& args, int64_t channels) const {
    const bool depthwise = channels == 1;
    args.packed_k = channels;
    args.items = p.G * p.R * p.S * p.C * args.packed_k;
    run(conv_pack<T>, args, ceil_divide(args.items, kConvThreads));
    const int64_t pairs = depthwise ? p.G : args.packed_k * p.C;
    args.p.weight = {scratch, 1, args.packed_k, p.S * pairs, pairs};
    args.p.weight_g = depthwise ? 1 : p.R * p.S * pairs;
  }
  // The weights with the terms of each output channel side by side.
  template <class T>
  void pack_rows(ConvArgs& args) const {
    args.by_channel = true;
    args.packed_k = p.K;
    args.items = conv_weight_elements(p);
    run(conv_pack<T>, args, ceil_divide(args.items, kConvThreads));
    const int64_t row = p.R * p.S * p.C;
    args.p.weight = {scratch, row, 1, p.S * p.C, p.C};
    args.p.weight_g = p.K * row;
  }
  void run(void (*kernel)(ConvArgs), const ConvArgs& args, int64_t blocks, int64_t shared = 0) const {
    const int64_t grid = blocks < limits.grid ? blocks : limits.grid;
    launch(kernel, dim3(static_cast<unsigned>(grid)), dim3(kConvThreads), static_cast<size_t>(shared), stream, args);
  }
};

}  // namespace
}  // namespace fastconv
