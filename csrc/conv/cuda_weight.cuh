// The gradient of the weights on CUDA.
//
// conv_weight_pairs: a thread has a pair of an output channel and an input channel (depthwise in channels_last memory,
// 16 bytes of channels) and up to nine taps of it, whose sums stay in registers while it goes through its pixels: both
// tensors are read once for nine taps (depthwise with more: cuda_depthwise_weight.cuh). A block has pairs side by side
// as memory has channels, adds up over its threads' pixels at the end, and takes everything.
//
// conv_weight_products: a product of matrices, summed up over pixels, without tensor cores. A block has a tile of 64
// output channels by 64 (tap, input channel), a thread 4 by 4 of them. On tensor cores: cuda_weight_tensor.cuh.
//
// Few tiles would leave most of the GPU idle. Then the pixels are split into parts, which depend on the sizes alone,
// and conv_add_parts adds them up in their order: no atomics, and each call gives the same bits again.
#pragma once
#include "conv/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kConvTaps = 9;          // whose sums a thread has
constexpr int64_t kConvBlocks = 512;  // that are enough for a GPU
constexpr int kConvSide = 64;         // of a tile of products
constexpr int kConvStage = 32;        // pixels that are multiplied at once

// Puts down a sum for an element of the weights, in the order in which these lie.
template <class T>
__device__ __forceinline__ void conv_put(const ConvArgs& args, int64_t part, int64_t to, Accumulate<T> sum) {
  using A = Accumulate<T>;
  const ConvParams& p = args.p;
  if (args.sums) {
    static_cast<A*>(args.sums)[part * (p.G * p.K * p.C * p.R * p.S) + to] = sum;
    return;
  }
  T element;
  narrow(sum, element);
  static_cast<T*>(p.weight.data)[to] = element;
}

// Adds the products of the taps from `tap` on at one pixel.
template <class T, int V, bool Wide>
__device__ __forceinline__ void conv_weight_pixel(const ConvArgs& args, const Channels<T, V, Wide>& some, int64_t pixel,
                                                  int64_t k, int64_t c, int64_t tap,
                                                  Accumulate<T> (&sum)[kConvTaps][V]) {
  using A = Accumulate<T>;
  const ConvParams& p = args.p;
  int64_t n = pixel;
  const int64_t q = take_last(n, p.Q), row = take_last(n, p.P);
  A grad[V];
  some.load(conv_at<T>(p.output, n, k, row, q), 1, grad);
  const T* x = conv_at<T>(p.input, n, c, 0, 0);
  int64_t r = quotient(tap, p.S), s = tap - r * p.S;
#pragma unroll
  for (int t = 0; t < kConvTaps; ++t) {
    const int64_t h = row * p.stride_h + r * p.dilation_h - p.pad_h, w = q * p.stride_w + s * p.dilation_w - p.pad_w;
    if (r < p.R && h >= 0 && h < p.H && w >= 0 && w < p.W) {
      A value[V];
      some.load(x + h * p.input.h + w * p.input.w, 1, value);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[t][v] += grad[v] * value[v];
    }
    if (++s == p.S) {
      s = 0;
      ++r;
    }
  }
}

// Over the threads that have the same channels: thread * V + v of `shared` becomes the sum of all that are a multiple
// of `lanes` threads further.
template <int V, class A>
__device__ __forceinline__ void conv_add_threads(A* shared, int lanes, int thread) {
  for (int half = kConvThreads / 2; half >= lanes; half /= 2) {
    if (thread < half) {
#pragma unroll
      for (int v = 0; v < V; ++v) shared[v * kConvThreads + thread] += shared[v * kConvThreads + thread + half];
    }
    sync_block();
  }
}

template <class T, int V, bool Wide>
__global__ void __launch_bounds__(kConvThreads) conv_weight_pairs(const ConvArgs args) {
  using A = Accumulate<T>;
  const ConvParams& p = args.p;
  A* shared = dynamic_shared<A>();
  const int thread = static_cast<int>(threadIdx.x), lanes = static_cast<int>(args.lanes), lane = thread % lanes;
  const int64_t pairs = p.G * p.K * p.C / V, taps = p.R * p.S, pixels = p.N * p.P * p.Q;
  const Channels<T, V, Wide> some = {V};
  for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
    int64_t part = item;
    const int64_t tap = take_last(part, (taps + kConvTaps - 1) / kConvTaps) * kConvTaps;
    const int64_t pair = take_last(part, (pairs + lanes - 1) / lanes) * lanes + lane;
    A sum[kConvTaps][V] = {};
    if (pair < pairs) {
      int64_t k = pair;
      const int64_t of_group = take_last(k, p.C), c = quotient(k, p.K) * p.C + of_group;
      const int64_t end = pixels * (part + 1) / args.parts;
      for (int64_t pixel = pixels * part / args.parts + thread / lanes; pixel < end; pixel += kConvThreads / lanes)
        conv_weight_pixel(args, some, pixel, k * V, c * V, tap, sum);
    }
#pragma unroll
    for (int t = 0; t < kConvTaps; ++t) {
      if (tap + t >= taps) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) shared[v * kConvThreads + thread] = sum[t][v];
      sync_block();
      conv_add_threads<V>(shared, lanes, thread);
      if (thread < lanes && pair < pairs) {
#pragma unroll
        for (int v = 0; v < V; ++v)
          conv_put<T>(args, part, (pair * V + v) * taps + tap + t, shared[v * kConvThreads + thread]);
      }
      sync_block();
    }
  }
}

// Columns of a product, pairs of a tap and an input channel, in shared memory.
template <int Count>
struct ConvColumns {
  int64_t column[Count];          // how much further one reads than a pixel without a tap
  int down[Count], right[Count];  // and at which row and column
};

template <int Count>
__device__ __forceinline__ void conv_place_columns(const ConvArgs& args, int64_t g, int64_t first,
                                                   ConvColumns<Count>& shared) {
  const ConvParams& p = args.p;
  for (int e = static_cast<int>(threadIdx.x); e < Count; e += kConvThreads) {
    int64_t r = first + e;
    const int64_t c = take_last(r, p.C), s = take_last(r, p.S);
    const int64_t down = r * p.dilation_h - p.pad_h, right = s * p.dilation_w - p.pad_w;
    shared.down[e] = r < p.R ? static_cast<int>(down) : -(1 << 30);
    shared.right[e] = static_cast<int>(right);
    shared.column[e] = (g * p.C + c) * p.input.c + down * p.input.h + right * p.input.w;
  }
}

// What a block of products shares.
template <class T>
struct ConvWeightTiles : ConvColumns<kConvSide> {
  static constexpr int kLine = kConvSide + 8;  // so that a warp reads rows from different banks

  alignas(16) T grads[kConvStage][kLine];       // [pixel][output channel]
  alignas(16) T inputs[kConvStage][kLine];      // [pixel][column]
  int64_t grad[kConvStage], input[kConvStage];  // where a pixel is in both, without channel and tap; none: grad < 0
  int row[kConvStage], left[kConvStage];
};

template <class T>
__device__ __forceinline__ void conv_place_stage(const ConvArgs& args, int64_t first, int64_t end,
                                                 ConvWeightTiles<T>& shared) {
  const ConvParams& p = args.p;
  for (int e = static_cast<int>(threadIdx.x); e < kConvStage; e += kConvThreads) {
    int64_t n = first + e;
    const bool there = n < end;
    const int64_t q = take_last(n, p.Q), row = take_last(n, p.P);
    shared.row[e] = there ? static_cast<int>(row * p.stride_h) : -(1 << 30);
    shared.left[e] = static_cast<int>(q * p.stride_w);
    shared.input[e] = n * p.input.n + row * p.stride_h * p.input.h + q * p.stride_w * p.input.w;
    shared.grad[e] = there ? n * p.output.n + row * p.output.h + q * p.output.w : -1;
  }
}

// A tile of pixels by channels: `source(pixel, channel)` is where an element is, or null for a zero. Neighbouring
// threads have neighbouring channels, 16 bytes of them where they are as stored and `wide`, or neighbouring pixels.
template <class T, class Source>
__device__ __forceinline__ void conv_load_tile(T (&tile)[kConvStage][ConvWeightTiles<T>::kLine], bool channels_first,
                                               bool wide, const Source& source) {
  constexpr int V = kWide<T>;
  const int thread = static_cast<int>(threadIdx.x);
  if (wide) {
#pragma unroll
    for (int e = thread; e < kConvStage * kConvSide / V; e += kConvThreads) {
      const int pixel = e / (kConvSide / V), channel = e % (kConvSide / V) * V;
      alignas(16) T elements[V] = {};
      if (const T* from = source(pixel, channel)) copy_wide<16>(elements, from);
      copy_wide<16>(&tile[pixel][channel], elements);
    }
    return;
  }
#pragma unroll 4
  for (int e = thread; e < kConvStage * kConvSide; e += kConvThreads) {
    const int pixel = channels_first ? e / kConvSide : e % kConvStage;
    const int channel = channels_first ? e % kConvSide : e / kConvStage;
    const T* from = source(pixel, channel);
    T element = {};
    if (from) element = *from;
    tile[pixel][channel] = element;
  }
}

template <class T>
__device__ __forceinline__ void conv_load_stage(const ConvArgs& args, int64_t g, int64_t k,
                                                ConvWeightTiles<T>& shared) {
  const ConvParams& p = args.p;
  const T* grads = static_cast<const T*>(p.output.data) + (g * p.K + k) * p.output.c;
  const T* inputs = static_cast<const T*>(p.input.data);
  conv_load_tile(shared.grads, args.channels_last, args.wide_output, [&](int pixel, int channel) -> const T* {
    if (shared.grad[pixel] < 0 || k + channel >= p.K) return nullptr;
    return grads + shared.grad[pixel] + channel * p.output.c;
  });
  conv_load_tile(shared.inputs, args.input_last, args.wide_input, [&](int pixel, int column) -> const T* {
    const int h = shared.row[pixel] + shared.down[column], w = shared.left[pixel] + shared.right[column];
    if (h < 0 || h >= p.H || w < 0 || w >= p.W) return nullptr;
    return inputs + shared.input[pixel] + shared.column[column];
  });
}

// The sums of a thread, and where in the tile they are.
template <class T>
struct ConvWeightSums {
  using A = Accumulate<T>;
  A sum[4][4];
  int down, across;

  static __device__ __forceinline__ ConvWeightSums of(int thread) { return {{}, thread / 16 * 4, thread % 16 * 4}; }
  __device__ __forceinline__ void add(const ConvWeightTiles<T>& shared) {
#pragma unroll 8
    for (int i = 0; i < kConvStage; ++i) {
      A a[4], b[4];
      load_wide<4>(shared.grads[i] + down, a);
      load_wide<4>(shared.inputs[i] + across, b);
#pragma unroll
      for (int y = 0; y < 4; ++y)
#pragma unroll
        for (int x = 0; x < 4; ++x) sum[y][x] += a[y] * b[x];
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_weight_products(const ConvArgs args) {
  if constexpr (sizeof(T) > 2 || kNoTensorCores) {
    using Sums = ConvWeightSums<T>;
    auto& shared = *dynamic_shared<ConvWeightTiles<T>>();
    const ConvParams& p = args.p;
    const int64_t columns = p.C * p.R * p.S, pixels = p.N * p.P * p.Q, stages = (pixels + kConvStage - 1) / kConvStage;
    for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
      int64_t part = item;
      const int64_t first = take_last(part, (columns + kConvSide - 1) / kConvSide) * kConvSide;
      const int64_t k = take_last(part, (p.K + kConvSide - 1) / kConvSide) * kConvSide, g = take_last(part, p.G);
      conv_place_columns(args, g, first, shared);
      Sums own = Sums::of(static_cast<int>(threadIdx.x));
      for (int64_t stage = stages * part / args.parts; stage < stages * (part + 1) / args.parts; ++stage) {
        conv_place_stage(args, stage * kConvStage, pixels, shared);
        sync_block();
        conv_load_stage<T>(args, g, k, shared);
        sync_block();
        own.add(shared);
      }
#pragma unroll
      for (int y = 0; y < 4; ++y)
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          const int64_t row = k + own.down + y, column = first + own.across + x;
          if (row >= p.K || column >= columns) continue;
          int64_t tap = column;
          const int64_t c = take_last(tap, p.C);
          conv_put<T>(args, part, ((g * p.K + row) * p.C + c) * (p.R * p.S) + tap, own.sum[y][x]);
        }
      sync_block();
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kConvThreads) conv_add_parts(const ConvArgs args) {
  for (int64_t i = int64_t{blockIdx.x} * kConvThreads + threadIdx.x; i < args.items;
       i += int64_t{gridDim.x} * kConvThreads)
    add_parts<T>(args.sums, args.parts, args.items, i, args.p.weight.data);
}

// ---- launchers ----

inline int64_t conv_pair_width(const ConvParams& p) {
  const int64_t wide = 16 / p.element_size();
  const bool fits = conv_depthwise(p) && conv_wide(p.input, p.G, wide, p.element_size()) &&
                    conv_wide(p.output, p.G, wide, p.element_size());
  return fits ? wide : 1;
}

// Pairs that a block has side by side: one where pixels are neighbours in memory.
inline int64_t conv_pair_lanes(const ConvParams& p) {
  if (!conv_both_last(p)) return 1;
  const int64_t pairs = p.G * p.K * p.C / conv_pair_width(p);
  int64_t lanes = 1;
  while (lanes < 32 && lanes < pairs) lanes *= 2;
  return lanes;
}

inline int64_t conv_pair_tiles(const ConvParams& p) {
  return ceil_divide(p.G * p.K * p.C / conv_pair_width(p), conv_pair_lanes(p)) * ceil_divide(p.R * p.S, kConvTaps);
}
inline int64_t conv_weight_tiles(const ConvParams& p) {
  return p.G * ceil_divide(p.K, kConvSide) * ceil_divide(p.C * p.R * p.S, kConvSide);
}

// Into how many parts, `most` at most, the pixels are split where there are so many tiles of the result.
inline int64_t conv_parts(const ConvParams& p, int64_t tiles, int64_t most, const ConvLimits& limits) {
  const int64_t bytes = conv_weight_elements(p) * conv_accumulate_bytes(p);
  const int64_t parts = std::min({kConvBlocks / tiles, most, limits.sums / bytes});
  return parts < 1 ? 1 : parts;
}
inline int64_t conv_pixel_parts(const ConvParams& p, int64_t tiles, const ConvLimits& limits) {
  return conv_parts(p, tiles, p.N * p.P * p.Q / limits.part, limits);
}
inline int64_t conv_sums_bytes(const ConvParams& p, int64_t parts) {
  return parts > 1 ? parts * conv_weight_elements(p) * conv_accumulate_bytes(p) : 0;
}

// Runs a kernel with so many tiles of the result, for args.parts of the pixels, and adds these up.
template <class T>
void conv_in_parts(const ConvLauncher& call, void (*kernel)(ConvArgs), ConvArgs args, int64_t tiles, int64_t shared) {
  args.sums = args.parts > 1 ? call.scratch : nullptr;
  args.items = args.parts * tiles;
  call.run(kernel, args, args.items, shared);
  if (!args.sums) return;
  args.items = conv_weight_elements(call.p);
  call.run(conv_add_parts<T>, args, ceil_divide(args.items, kConvThreads));
}

inline int64_t conv_pairs_scratch(const ConvParams& p, const ConvLimits& limits) {
  return conv_sums_bytes(p, conv_pixel_parts(p, conv_pair_tiles(p), limits));
}
inline void conv_pairs_grad_weight(const ConvLauncher& call) {
  with_element(call.p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t width = conv_pair_width(call.p);
    ConvArgs args = call.args();
    args.lanes = conv_pair_lanes(call.p);
    args.parts = conv_pixel_parts(call.p, conv_pair_tiles(call.p), call.limits);
    conv_in_parts<T>(call, width > 1 ? conv_weight_pairs<T, kWide<T>, true> : conv_weight_pairs<T, 1, false>, args,
                     conv_pair_tiles(call.p), kConvThreads * width * sizeof(Accumulate<T>));
  });
}

}  // namespace
}  // namespace fastconv
