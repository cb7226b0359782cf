// What the kernels of deformable convolution start from: the struct that they take, where a tap looks and what it sees
// there, the products of two tiles in shared memory, and how a launcher fills the one and chooses the others.
//
// Products are of register tiles of 4 by 4 in float32, or float64 for that: all threads of a block together have 64
// rows and 64 columns.
#pragma once
#include <cmath>

#include "core/elements.cuh"
#include "core/launch.h"
#include "deform/params.h"

namespace fastconv {
namespace {

constexpr int kDeformThreads = 256;
constexpr int kDeformTile = 64;   // rows and columns of a tile of products
constexpr int kDeformPlanes = 4;  // channels of a thread, where they are not 16 bytes
constexpr int kDeformPad = 4;     // behind a row in shared memory, so that columns are not all in one bank

// Of channels that share their offsets and their weights, so many are looked at together.
struct DeformChannels {
  int64_t unit, parts;  // channels of a unit: none is across a border of groups; parts of a unit

  __device__ __forceinline__ int64_t first(int64_t i) const { return i / parts * unit + i % parts * kDeformTile; }
  __device__ __forceinline__ int count(int64_t i) const {
    const int64_t left = unit - i % parts * kDeformTile;
    return left < kDeformTile ? static_cast<int>(left) : kDeformTile;
  }
  __device__ __forceinline__ int64_t in(int64_t channels) const { return channels / unit * parts; }
};

// The smallest square of the input that holds what some samples see. Of none: bottom is -1.
struct DeformReach {
  int top, left, bottom, right;
};

struct DeformArgs {
  DeformParams p;
  DeformMap input, output, grad_input;
  DeformChannels pieces;
  void* packed;          // the weight as [groups, R * S, C / groups, K / groups], or null
  DeformReach* reaches;  // [N, offset_groups, R * S, blocks of pixels]
  void* sums;            // [parts, the weight's elements], in the type that is added up in; or null: there is one part
  int64_t parts;
  int64_t items;
};

template <class T>
__device__ __forceinline__ const T* deform_at(const DeformMap& map, int64_t n, int64_t channel, int64_t pixel) {
  return static_cast<const T*>(map.data) + n * map.image + channel * map.channel + pixel * map.pixel;
}
template <class T>
__device__ __forceinline__ T* deform_to(const DeformMap& map, int64_t n, int64_t channel, int64_t pixel) {
  return static_cast<T*>(map.data) + n * map.image + channel * map.channel + pixel * map.pixel;
}

// A pixel of the output.
struct DeformPixel {
  int64_t pixel, o, q;  // row * Q + column; row; column

  static __device__ __forceinline__ DeformPixel of(const DeformParams& p, int64_t pixel) {
    const int64_t o = quotient(pixel, p.Q);
    return {pixel, o, pixel - o * p.Q};
  }
};

// A tap of an offset group.
struct DeformTap {
  int64_t group, tap, r, s;

  static __device__ __forceinline__ DeformTap of(const DeformParams& p, int64_t group, int64_t tap) {
    const int64_t r = quotient(tap, p.S);
    return {group, tap, r, tap - r * p.S};
  }
};

// What a tap sees: the four pixels around it that are on the map. Those that are not are not read.
template <class A>
struct DeformSample {
  int row, column;  // of the upper left one
  int inside;       // bits: upper left, upper right, lower left, lower right. None: the sample is not on the map
  A y, x, mask;     // how far down and to the right of the first

  __device__ __forceinline__ A weight(int corner) const {
    return (corner & 2 ? y : 1 - y) * (corner & 1 ? x : 1 - x) * mask;
  }
  __device__ __forceinline__ int64_t position(int64_t W) const { return int64_t{row} * W + column; }
};

template <class T>
__device__ __forceinline__ DeformSample<Accumulate<T>> deform_look(const DeformParams& p, int64_t n,
                                                                   const DeformTap& tap, const DeformPixel& at) {
  using A = Accumulate<T>;
  const int64_t channel = tap.group * p.R * p.S + tap.tap;
  const A dy = widen(*deform_at<T>(p.offset, n, 2 * channel, at.pixel));
  const A dx = widen(*deform_at<T>(p.offset, n, 2 * channel + 1, at.pixel));
  const A y = static_cast<A>(at.o * p.stride[0] - p.padding[0]) + static_cast<A>(tap.r * p.dilation[0]) + dy;
  const A x = static_cast<A>(at.q * p.stride[1] - p.padding[1]) + static_cast<A>(tap.s * p.dilation[1]) + dx;
  DeformSample<A> sample = {};
  // Of NaN no comparison holds.
  if (!(y >= -1 && y < static_cast<A>(p.H) && x >= -1 && x < static_cast<A>(p.W))) return sample;
  const A row = std::floor(y), column = std::floor(x);
  sample.row = static_cast<int>(row);
  sample.column = static_cast<int>(column);
  sample.y = y - row;
  sample.x = x - column;
  sample.mask = p.mask.data ? widen(*deform_at<T>(p.mask, n, channel, at.pixel)) : A{1};
  // float32 has not all sizes, and may have rounded one up: hence the second comparison of the first two.
  const int up = sample.row >= 0 && sample.row < p.H ? 3 : 0, down = sample.row + 1 < p.H ? 12 : 0;
  const int left = sample.column >= 0 && sample.column < p.W ? 5 : 0, right = sample.column + 1 < p.W ? 10 : 0;
  sample.inside = (up | down) & (left | right);
  return sample;
}

// Calls body(corner, V channels of it) for the four corners that are on the map.
template <class T, int V, bool Wide, class Body>
__device__ __forceinline__ void deform_corners(const Channels<T, V, Wide>& channels,
                                               const DeformSample<Accumulate<T>>& sample, const T* map,
                                               const DeformMap& steps, int64_t W, const Body& body) {
  using A = Accumulate<T>;
  const T* first = map + sample.position(W) * steps.pixel;
  const int64_t below = W * steps.pixel;
  if (sample.inside == 15) {
    A corners[4][V];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      channels.load(first + (j >> 1) * below + (j & 1) * steps.pixel, steps.channel, corners[j]);
#pragma unroll
    for (int j = 0; j < 4; ++j) body(j, corners[j]);
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (!(sample.inside >> j & 1)) continue;
    A corner[V];
    channels.load(first + (j >> 1) * below + (j & 1) * steps.pixel, steps.channel, corner);
    body(j, corner);
  }
}

// Adds what a sample sees in V channels.
template <class T, int V, bool Wide>
__device__ __forceinline__ void deform_see(const Channels<T, V, Wide>& channels,
                                           const DeformSample<Accumulate<T>>& sample, const T* map,
                                           const DeformMap& steps, int64_t W, Accumulate<T> (&sum)[V]) {
  using A = Accumulate<T>;
  deform_corners(channels, sample, map, steps, W, [&](int corner, const A(&pixels)[V]) {
    const A weight = sample.weight(corner);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] += weight * pixels[v];
  });
}

// A part of a tile of rows and columns: of neighbouring threads the rows or the columns are neighbours, as they are in
// memory.
template <int Rows, int Columns>
struct DeformPlace {
  int row, column;

  static __device__ __forceinline__ DeformPlace of(int item, bool columns_first) {
    if (columns_first) return {item / Columns, item % Columns};
    return {item % Rows, item / Rows};
  }
};

// The samples of a block's pixels in `channels` channels from `channel` on, of at most Most, to
// to[pixel * pixel_step + channel * channel_step].
template <class T, int V, bool Wide, int Pixels, int Most>
__device__ __forceinline__ void deform_gather(const DeformArgs& args, int64_t n, int64_t channel, int channels,
                                              const DeformSample<Accumulate<T>>* plan, Accumulate<T>* to,
                                              int pixel_step, int channel_step) {
  using A = Accumulate<T>;
  constexpr int kGroups = Most / V;
  for (int item = static_cast<int>(threadIdx.x); item < Pixels * kGroups; item += kDeformThreads) {
    const auto place = DeformPlace<Pixels, kGroups>::of(item, args.p.channels_last);
    const int first = place.column * V, left = channels - first;
    if (left <= 0) continue;
    const Channels<T, V, Wide> some = {left < V ? left : V};
    A sum[V] = {};
    deform_see(some, plan[place.row], deform_at<T>(args.input, n, channel + first, 0), args.input, args.p.W, sum);
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (v < left) to[place.row * pixel_step + (first + v) * channel_step] = sum[v];
  }
}

// Adds the products of four rows and four columns, for each of `steps` lines of two tiles in shared memory.
template <class A>
__device__ __forceinline__ void deform_multiply(const A* rows, int row_line, const A* columns, int column_line,
                                                int steps, A (&sum)[4][4]) {
#pragma unroll 4
  for (int i = 0; i < steps; ++i) {
    alignas(16) A a[4], b[4];
    copy_wide<sizeof a>(a, rows + i * row_line);
    copy_wide<sizeof b>(b, columns + i * column_line);
#pragma unroll
    for (int y = 0; y < 4; ++y)
#pragma unroll
      for (int x = 0; x < 4; ++x) sum[y][x] += a[y] * b[x];
  }
}

// ---- launchers ----

// What the tests may lower to reach at small sizes what only huge tensors do on a GPU, and what they may raise.
struct DeformLimits {
  int64_t grid = kMaxGrid;  // blocks
  int64_t part = 512;       // pixels that are worth a part of the gradient of the weights, at least
  int64_t sums = 8 << 20;   // bytes, of all these parts
};

inline DeformMap deform_map(const void* data, bool channels_last, int64_t channels, int64_t pixels) {
  return {const_cast<void*>(data), channels * pixels, channels_last ? 1 : pixels, channels_last ? channels : 1};
}

inline int64_t greatest_divisor(int64_t a, int64_t b) { return b == 0 ? a : greatest_divisor(b, a % b); }

// A call, and how it may be started.
struct DeformLauncher {
  DeformParams p;
  Stream stream;
  DeformLimits limits;

  // Whether 16 bytes of channels are accessed at once. No group's channels begin between.
  bool wide(int64_t element) const {
    return p.channels_last && p.C / p.groups * element % 16 == 0 && p.C / p.offset_groups * element % 16 == 0 &&
           aligned(p.input, 16) && (p.weight || aligned(p.output, 16));
  }
  DeformArgs args() const {
    DeformArgs args = {};
    args.p = p;
    args.input = deform_map(p.input, p.channels_last, p.C, p.H * p.W);
    args.output = deform_map(p.output, p.channels_last, p.K, p.P * p.Q);
    args.grad_input = deform_map(p.grad_input, p.channels_last, p.C, p.H * p.W);
    args.pieces.unit = greatest_divisor(p.C / p.groups, p.C / p.offset_groups);
    args.pieces.parts = ceil_divide(args.pieces.unit, kDeformTile);
    return args;
  }
  void run(void (*kernel)(DeformArgs), const DeformArgs& args, int64_t blocks, size_t shared = 0) const {
    const int64_t grid = blocks < limits.grid ? blocks : limits.grid;
    launch(kernel, dim3(static_cast<unsigned>(grid)), dim3(kDeformThreads), shared, stream, args);
  }
};

}  // namespace
}  // namespace fastconv
