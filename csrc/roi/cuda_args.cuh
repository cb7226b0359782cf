// What the kernels of regions of interest start from: the one struct that they take, which bin of which box a thread
// has and how it reads a few channels of a pixel, and how a launcher fills the one and chooses the other.
#pragma once
#include "core/divisor.h"
#include "core/elements.cuh"
#include "core/launch.h"
#include "roi/cuda_bins.cuh"

namespace fastconv {
namespace {

constexpr int kRoiThreads = 256;

// How far it is, in elements, from one to the next.
struct RoiSteps {
  int64_t box, channel, pixel;  // box: or image; pixel: or bin
};

// V channels, of which the last may not be there; and of their ids.
template <class T, int V, bool Wide>
struct RoiChannels : Channels<T, V, Wide> {
  __device__ __forceinline__ void store_ids(int32_t* to, int64_t step, const int32_t (&from)[V]) const {
    if constexpr (Wide) {
      alignas(16) int32_t ids[V];
#pragma unroll
      for (int v = 0; v < V; ++v) ids[v] = from[v];
      copy_wide<V * sizeof(int32_t)>(to, ids);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (v < this->n) to[v * step] = from[v];
    }
  }
};

// A bin of a box, and a group of channels.
struct RoiPlace {
  int64_t k, group, bin, row, column;
};

// Items of work: the bins of all boxes, for each group of channels; in the order in which they lie in memory.
template <class A, class Index>
struct RoiArgs {
  RoiMap<A> map;
  const A* boxes;
  void* input;
  void* output;
  int32_t* ids;
  RoiSteps in, out;
  int64_t channels;  // of the output
  bool channels_last;
  int64_t items;
  Divisor<Index> inner, outer, columns;

  __device__ __forceinline__ RoiPlace locate(int64_t item) const {
    const Index i = static_cast<Index>(item), rest = inner.divide(i), k = outer.divide(rest);
    const Index in_row = i - rest * inner.value, in_box = rest - k * outer.value;
    const Index bin = channels_last ? in_box : in_row, group = channels_last ? in_row : in_box;
    const Index row = columns.divide(bin);
    return {static_cast<int64_t>(k), static_cast<int64_t>(group), static_cast<int64_t>(bin), static_cast<int64_t>(row),
            static_cast<int64_t>(bin - row * columns.value)};
  }
  __device__ __forceinline__ RoiBox<A> box(int64_t k) const { return {map, boxes + 5 * k}; }
};

__device__ __forceinline__ int64_t roi_first() { return int64_t{blockIdx.x} * kRoiThreads + threadIdx.x; }
__device__ __forceinline__ int64_t roi_next() { return int64_t{gridDim.x} * kRoiThreads; }

// ---- launchers ----

// What the tests may lower to reach at small sizes what only huge tensors do on a GPU.
struct RoiLimits {
  int64_t grid = kMaxGrid;     // blocks
  int64_t narrow = INT32_MAX;  // items that 32-bit arithmetic is used for
};

inline RoiSteps roi_input_steps(const RoiParams& p) {
  const int64_t positions = p.H * p.W;
  return {p.C * positions, p.channels_last ? 1 : positions, p.channels_last ? p.C : 1};
}
inline RoiSteps roi_output_steps(const RoiParams& p) {
  const int64_t bins = p.P * p.Q;
  return {p.channels * bins, p.channels_last ? 1 : bins, p.channels_last ? p.channels : 1};
}

// A call, and how it may be started.
struct RoiLauncher {
  RoiParams p;
  Stream stream;
  RoiLimits limits;

  // Whether 16 bytes of channels are accessed at once.
  bool wide(int64_t element) const {
    return p.channels_last && p.C * element % 16 == 0 && aligned(p.input, 16) && aligned(p.output, 16) &&
           aligned(p.ids, 16);
  }
  template <class Args>
  void run(void (*kernel)(Args), const Args& args, int64_t blocks, size_t shared = 0) const {
    const int64_t grid = blocks < limits.grid ? blocks : limits.grid;
    launch(kernel, dim3(static_cast<unsigned>(grid)), dim3(kRoiThreads), shared, stream, args);
  }
  template <class A, class Index>
  void run_items(void (*kernel)(RoiArgs<A, Index>), int64_t groups) const {
    RoiArgs<A, Index> args = {};
    const int64_t bins = p.P * p.Q;
    args.map = roi_map<A>(p);
    args.boxes = static_cast<const A*>(p.boxes);
    args.input = p.input;
    args.output = p.output;
    args.ids = p.ids;
    args.in = roi_input_steps(p);
    args.out = roi_output_steps(p);
    args.channels = p.channels;
    args.channels_last = p.channels_last;
    args.items = p.K * groups * bins;
    args.inner = Divisor<Index>(static_cast<Index>(p.channels_last ? groups : bins));
    args.outer = Divisor<Index>(static_cast<Index>(p.channels_last ? bins : groups));
    args.columns = Divisor<Index>(static_cast<Index>(p.Q));
    run(kernel, args, ceil_divide(args.items, kRoiThreads));
  }
  // Calls body with an element, and an integer that has all items.
  template <class Body>
  void with_items(const Body& body) const {
    const bool narrow = p.K * p.channels * p.P * p.Q <= limits.narrow - kRoiThreads;
    with_element(p.dtype, [&](auto element) {
      if (narrow) return body(element, uint32_t{});
      body(element, uint64_t{});
    });
  }
};

}  // namespace
}  // namespace fastconv
