// The gradient of the weights on tensor cores, of 16-bit types and of float32 in TF32: a product of matrices that are
// never written down, summed up over pixels. A block has a tile of 64 or 128 output channels by 128 pairs of a tap and
// an input channel, a warp 32 by 32 or 64 of it. Steps of 32 pixels (16 in TF32) are on their way into shared memory,
// by asynchronous copies, while two before them are multiplied; where channels of a pixel are not side by side, or not
// a multiple of 16 bytes, elements go through registers. Both tensors lie there as [pixel][channel], and are turned on
// their way into registers.
//
// The pixels are split into parts as in cuda_weight.cuh.
#pragma once
#include "conv/cuda_last.cuh"
#include "conv/cuda_tensor.cuh"
#include "conv/cuda_weight.cuh"

namespace fastconv {
namespace {

constexpr int kConvPairs = 128;  // columns of a tile

// What a block shares.
template <class T, int Rows>
struct ConvWeightShared : ConvColumns<kConvPairs> {
  static constexpr int kStage = kTensorStep<T>;                            // pixels
  static constexpr int kRowLine = Rows + 8, kColumnLine = kConvPairs + 8;  // a warp reads from different banks

  alignas(16) T grads[kTensorBuffers][kStage][kRowLine];
  alignas(16) T inputs[kTensorBuffers][kStage][kColumnLine];
};

// Brings one step of pixels after the other into shared memory: begin() starts, end() puts down what went through
// registers.
template <class T, int Rows, bool Wide>
struct ConvWeightLoader {
  using Shared = ConvWeightShared<T, Rows>;
  static constexpr int kStage = Shared::kStage, V = kWide<T>;
  static constexpr int kApart = kConvThreads / kStage;  // channels that a thread has of its pixel
  static constexpr int kRowItems = Rows / kApart, kColumnItems = kConvPairs / kApart;

  const ConvArgs& args;
  Shared& shared;
  int thread;
  int64_t k, channel;   // first output channel, within its group and among all
  uint32_t pixel, all;  // the step's first, and how many there are
  T grads[Wide ? 1 : kRowItems], inputs[Wide ? 1 : kColumnItems];

  // Where the i-th pixel of the step is in both tensors.
  struct Place {
    bool there;
    int row, left;
    int64_t grad, input;
  };
  __device__ __forceinline__ Place place(int i) const {
    const ConvParams& p = args.p;
    uint32_t n = pixel + static_cast<uint32_t>(i);
    Place at;
    at.there = n < all;
    const int q = args.by_columns.take_last(n), row = args.by_rows.take_last(n);
    at.row = row * static_cast<int>(p.stride_h);
    at.left = q * static_cast<int>(p.stride_w);
    at.grad = n * p.output.n + row * p.output.h + q * p.output.w;
    at.input = n * p.input.n + at.row * p.input.h + at.left * p.input.w;
    return at;
  }
  // What it reads in a column of the tile, or null.
  __device__ __forceinline__ const T* source(const Place& at, int column) const {
    const ConvParams& p = args.p;
    const int h = at.row + shared.down[column], w = at.left + shared.right[column];
    if (!at.there || h < 0 || h >= p.H || w < 0 || w >= p.W) return nullptr;
    return static_cast<const T*>(p.input.data) + at.input + shared.column[column];
  }

  __device__ __forceinline__ void begin(int buffer) {
    const ConvParams& p = args.p;
    const T* output = static_cast<const T*>(p.output.data) + channel * p.output.c;
    if constexpr (Wide) {
      constexpr int kDown = Rows / V, kAcross = kConvPairs / V;
#pragma unroll
      for (int first = 0; first < kStage; first += kConvThreads / kDown) {  // of a count that the compiler knows
        const int i = first + thread / kDown;
        const int row = thread % kDown * V;
        const Place at = place(i);
        const bool there = at.there && k + row < p.K;
        copy_async<16>(&shared.grads[buffer][i][row], there ? output + at.grad + row : p.output.data, there ? 16 : 0);
      }
#pragma unroll
      for (int first = 0; first < kStage; first += kConvThreads / kAcross) {
        const int i = first + thread / kAcross;
        const int column = thread % kAcross * V;
        const T* from = source(place(i), column);
        copy_async<16>(&shared.inputs[buffer][i][column], from ? from : p.input.data, from ? 16 : 0);
      }
    } else {  // neighbouring threads have neighbouring pixels
      const Place at = place(thread % kStage);
      const int first = thread / kStage;
#pragma unroll
      for (int i = 0; i < kRowItems; ++i) {
        const int row = first + i * kApart;
        grads[i] = at.there && k + row < p.K ? output[at.grad + row * p.output.c] : T{};
      }
#pragma unroll
      for (int i = 0; i < kColumnItems; ++i) {
        const T* from = source(at, first + i * kApart);
        inputs[i] = from ? *from : T{};
      }
    }
  }
  __device__ __forceinline__ void end(int buffer) {
    if constexpr (!Wide) {
      const int i = thread % kStage, first = thread / kStage;
#pragma unroll
      for (int x = 0; x < kRowItems; ++x) shared.grads[buffer][i][first + x * kApart] = grads[x];
#pragma unroll
      for (int x = 0; x < kColumnItems; ++x) shared.inputs[buffer][i][first + x * kApart] = inputs[x];
    }
    pixel += kStage;
  }
};

// A warp's part of the tile.
template <int Rows>
struct ConvWeightWarp {
  static constexpr int kDown = Rows / 32;  // warps
  static constexpr int kColumns = kConvPairs * kDown / (kConvThreads / kWarpSize);
  static constexpr int kProducts = kColumns / 8;
  int row, column, lane;

  static __device__ __forceinline__ ConvWeightWarp of(int thread) {
    const int warp = thread / kWarpSize;
    return {warp % kDown * 32, warp / kDown * kColumns, thread % kWarpSize};
  }
};

template <class T, int Rows>
__device__ __forceinline__ void conv_weight_multiply(const ConvWeightShared<T, Rows>& shared, int buffer,
                                                     const ConvWeightWarp<Rows>& warp,
                                                     float (&sum)[2][ConvWeightWarp<Rows>::kProducts][4]) {
  using Shared = ConvWeightShared<T, Rows>;
#pragma unroll
  for (int i = 0; i < Shared::kStage; i += kTensorDepth<T>) {
    uint32_t a[2][4];
#pragma unroll
    for (int y = 0; y < 2; ++y)
      conv_load_rows_turned(a[y], &shared.grads[buffer][i][warp.row + 16 * y], Shared::kRowLine, warp.lane);
#pragma unroll
    for (int x = 0; x < ConvWeightWarp<Rows>::kProducts; x += 2) {
      uint32_t b[2][2];
      conv_load_columns(b, &shared.inputs[buffer][i][warp.column + 8 * x], Shared::kColumnLine, warp.lane);
#pragma unroll
      for (int y = 0; y < 2; ++y) {
        conv_mma<T>(sum[y][x], a[y], b[0]);
        conv_mma<T>(sum[y][x + 1], a[y], b[1]);
      }
    }
  }
}

template <class T, int Rows, bool Wide>
__global__ void __launch_bounds__(kConvThreads) conv_tensor_weights(const ConvArgs args) {
  if constexpr (kTensorCores) {
    using Shared = ConvWeightShared<T, Rows>;
    using Warp = ConvWeightWarp<Rows>;
    auto& shared = *dynamic_shared<Shared>();
    const ConvParams& p = args.p;
    const int thread = static_cast<int>(threadIdx.x), taps = static_cast<int>(p.R * p.S);
    const int columns = static_cast<int>(p.C) * taps;
    const uint32_t pixels = static_cast<uint32_t>(p.N * p.P * p.Q);
    const auto warp = Warp::of(thread);
    for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
      int64_t part = item;
      const int first = static_cast<int>(take_last(part, (columns + kConvPairs - 1) / kConvPairs)) * kConvPairs;
      const int64_t k = take_last(part, quotient(p.K + Rows - 1, Rows)) * Rows, g = take_last(part, p.G);
      conv_place_columns(args, g, first, shared);
      sync_block();
      float sum[2][Warp::kProducts][4] = {};
      const int64_t stages = (int64_t{pixels} + Shared::kStage - 1) / Shared::kStage;
      const int64_t from = quotient(stages * part, args.parts);
      const int steps = static_cast<int>(quotient(stages * (part + 1), args.parts) - from);
      ConvWeightLoader<T, Rows, Wide> loader = {
          args, shared, thread, k, g * p.K + k, static_cast<uint32_t>(from) * Shared::kStage, pixels, {}, {}};
      conv_in_steps(steps, loader, [&](int buffer) { conv_weight_multiply(shared, buffer, warp, sum); });
#pragma unroll
      for (int x = 0; x < Warp::kProducts; ++x)
#pragma unroll
        for (int right = 0; right < 2; ++right) {
          const int column = first + warp.column + 8 * x + warp.lane % 4 * 2 + right;
          if (column >= columns) continue;
          const int tap = column / static_cast<int>(p.C), c = column - tap * static_cast<int>(p.C);
#pragma unroll
          for (int y = 0; y < 4; ++y) {
            const int64_t row = k + warp.row + 8 * y + warp.lane / 4;
            if (row < p.K)
              conv_put<T>(args, part, ((g * p.K + row) * p.C + c) * taps + tap, sum[y / 2][x][y % 2 * 2 + right]);
          }
        }
      sync_block();
    }
  }
}

// ---- launchers ----

// Output channels of a tile on tensor cores: the larger reads less, unless it is mostly empty.
inline int64_t conv_weight_rows(const ConvParams& p) {
  return 3 * ceil_divide(p.K, 128) * 128 <= 4 * ceil_divide(p.K, 64) * 64 ? 128 : 64;
}
inline int64_t conv_tensor_weight_tiles(const ConvParams& p) {
  return p.G * ceil_divide(p.K, conv_weight_rows(p)) * ceil_divide(p.C * p.R * p.S, kConvPairs);
}
// Whether pixels can be counted in 31 bits; beyond them there is conv_weight_pairs.
inline bool conv_countable_pixels(const ConvParams& p) { return p.N * p.P * p.Q < (int64_t{1} << 31) - kConvPairs; }

// Whether both tensors are copied to channels_last, or one where the other is loaded by 16 bytes as it lies.
inline bool conv_copies_for_weights(const ConvParams& p) {
  const int64_t element = p.element_size(), wide = 16 / element;
  const bool input = conv_copies_input(p), grad = conv_copies_grad(p);
  return (input || grad) && (input || conv_wide(p.input, p.C, wide, element)) &&
         (grad || conv_wide(p.output, p.K, wide, element));
}
inline int64_t conv_weight_parts_bytes(const ConvParams& p, const ConvLimits& limits) {
  const auto bytes = [&](int64_t tiles) { return conv_sums_bytes(p, conv_pixel_parts(p, tiles, limits)); };
  const int64_t plain = bytes(conv_weight_tiles(p));
  return conv_whole_lines(conv_on_tensor_cores(p) ? std::max(plain, bytes(conv_tensor_weight_tiles(p))) : plain);
}

inline int64_t conv_weight_products_scratch(const ConvParams& p, const ConvLimits& limits) {
  if (!conv_countable_pixels(p)) return conv_pairs_scratch(p, limits);
  int64_t bytes = conv_weight_parts_bytes(p, limits);
  if (conv_copies_for_weights(p)) bytes += conv_whole_lines(conv_input_bytes(p)) + conv_outputs(p) * p.element_size();
  return bytes;
}

template <class T, int Rows>
void conv_tensor_grad_weight(const ConvLauncher& call, ConvArgs args) {
  const bool wide = args.wide_input && args.wide_output;
  args.parts = conv_pixel_parts(call.p, conv_tensor_weight_tiles(call.p), call.limits);
  conv_in_parts<T>(call, wide ? conv_tensor_weights<T, Rows, true> : conv_tensor_weights<T, Rows, false>, args,
                   conv_tensor_weight_tiles(call.p), sizeof(ConvWeightShared<T, Rows>));
}

inline void conv_products_grad_weight(const ConvLauncher& call) {
  const ConvParams& p = call.p;
  if (!conv_countable_pixels(p)) return conv_pairs_grad_weight(call);
  if (conv_copies_for_weights(p) && call.tensor_cores()) {
    ConvLauncher last = call;
    char* to = static_cast<char*>(call.scratch) + conv_weight_parts_bytes(p, call.limits);
    if (conv_copies_input(p)) last.p.input = conv_to_channels_last(call, p.input, p.G * p.C, p.H, p.W, to);
    to += conv_whole_lines(conv_input_bytes(p));
    if (conv_copies_grad(p)) last.p.output = conv_to_channels_last(call, p.output, p.G * p.K, p.P, p.Q, to);
    return conv_products_grad_weight(last);
  }
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    ConvArgs args = call.args();
    args.wide_input = conv_wide(p.input, p.C, kWide<T>, sizeof(T));
    args.wide_output = conv_wide(p.output, p.K, kWide<T>, sizeof(T));
    if constexpr (sizeof(T) <= 4) {
      if (call.tensor_cores()) {
        args.by_rows = Divisor<uint32_t>(static_cast<uint32_t>(p.P));
        args.by_columns = Divisor<uint32_t>(static_cast<uint32_t>(p.Q));
        return conv_weight_rows(p) == 128 ? conv_tensor_grad_weight<T, 128>(call, args)
                                          : conv_tensor_grad_weight<T, 64>(call, args);
      }
    }
    args.parts = conv_pixel_parts(p, conv_weight_tiles(p), call.limits);
    conv_in_parts<T>(call, conv_weight_products<T>, args, conv_weight_tiles(p), sizeof(ConvWeightTiles<T>));
  });
}

}  // namespace
}  // namespace fastconv
