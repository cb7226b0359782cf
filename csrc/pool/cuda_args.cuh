// What all kernels of the pooling family start from: accesses to the ids of windows, the one struct they
// take, where in it a thread is, and how a launcher fills it.
#pragma once
#include <cmath>
#include <type_traits>

#include "core/divisor.h"
#include "core/elements.cuh"
#include "core/launch.h"
#include "pool/params.h"

namespace fastconv {
namespace {

constexpr int kPoolThreads = 256;

// ---- memory ----

template <class Id, int V>
__device__ __forceinline__ void store_ids_as(void* ids, int64_t at, const uint32_t (&from)[V]) {
  alignas(16) Id elements[V];
#pragma unroll
  for (int v = 0; v < V; ++v) elements[v] = static_cast<Id>(from[v]);
  copy_wide<V * sizeof(Id)>(static_cast<Id*>(ids) + at, elements);
}
template <int V>
__device__ __forceinline__ void store_ids(void* ids, int bytes, int64_t at, const uint32_t (&from)[V]) {
  if (bytes == 1) return store_ids_as<uint8_t>(ids, at, from);
  if (bytes == 2) return store_ids_as<uint16_t>(ids, at, from);
  store_ids_as<uint32_t>(ids, at, from);
}
template <class Id, int V>
__device__ __forceinline__ void load_ids(const void* ids, int64_t at, uint32_t (&to)[V]) {
  alignas(16) Id elements[V];
  copy_wide<V * sizeof(Id)>(elements, static_cast<const Id*>(ids) + at);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = elements[v];
}
__device__ __forceinline__ uint32_t load_id(const void* ids, int bytes, int64_t at) {
  if (bytes == 1) return static_cast<const uint8_t*>(ids)[at];
  if (bytes == 2) return static_cast<const uint16_t*>(ids)[at];
  return static_cast<const uint32_t*>(ids)[at];
}

// ---- where a thread is ----

// Work is a tensor [outer, rows, columns, inner] of items. `Int` holds its number and every product of an axis.
template <class Int>
struct Place {
  int64_t outer;
  Int row, column, inner;
};

template <class Int>
struct PoolArgs {
  using Index = std::make_unsigned_t<Int>;
  void* input;   // [outer, H, W, pitch]
  void* output;  // [outer, P, Q, pitch]
  void* ids;     // [outer, P, Q, pitch]
  int64_t* indices;
  PoolAxisOf<Int> h, w;
  int64_t pitch;                        // C in channels_last memory, else 1
  int64_t items;                        // in all
  Divisor<Index> rows, columns, inner;  // items
  Divisor<uint32_t> kernel_columns;
  int id_bytes;
  int group;  // threads of a window (spans), or of the channels of a window (slices)
  int piece;  // elements of an access to the input (strips)
  bool wide;  // whether 16-byte accesses of what is written are aligned (strips, rows)
  bool padding_counts;
  double divisor;
  const int64_t* seed;

  __device__ __forceinline__ Place<Int> locate(int64_t item) const {
    const Index i = static_cast<Index>(item), pixel = inner.divide(i), row = columns.divide(pixel);
    const Index outer = rows.divide(row);
    return {static_cast<int64_t>(outer), static_cast<Int>(row - outer * rows.value),
            static_cast<Int>(pixel - row * columns.value), static_cast<Int>(i - pixel * inner.value)};
  }
  __device__ __forceinline__ int64_t input_at(int64_t outer, Int row, Int column) const {
    return ((outer * h.size + row) * w.size + column) * pitch;
  }
  __device__ __forceinline__ int64_t output_at(int64_t outer, Int row, Int column) const {
    return ((outer * h.outputs + row) * w.outputs + column) * pitch;
  }
  // What the sum of a window is divided by.
  template <class A>
  __device__ __forceinline__ A divisor_of(Int o, Int q) const {
    if (divisor != 0) return static_cast<A>(divisor);
    return static_cast<A>(h.count(o, padding_counts) * w.count(q, padding_counts));
  }
  // As many elements as a window without an end counts for, where all are not divided by the same.
  template <class A>
  __device__ __forceinline__ A whole() const {
    return divisor != 0 ? A{1} : static_cast<A>(h.kernel * w.kernel);
  }
};

__device__ __forceinline__ int64_t first_item() { return int64_t{blockIdx.x} * kPoolThreads + threadIdx.x; }
__device__ __forceinline__ int64_t next_item() { return int64_t{gridDim.x} * kPoolThreads; }

// The taps of a window along one axis that are in the input.
template <class Int>
struct Taps {
  Int begin, end, at;  // at: the position of tap `begin`
  __device__ __forceinline__ Taps(const PoolAxisOf<Int>& axis, Int o)
      : begin(axis.begin(o)), end(axis.end(o)), at(axis.first(o) + begin * axis.dilation) {}
};

// ---- launchers ----

// What the tests may lower to reach at small sizes what only huge tensors do on a GPU.
struct PoolLimits {
  int64_t grid = kMaxGrid;     // blocks
  int64_t narrow = INT32_MAX;  // items, and products of an axis, that 32-bit arithmetic is used for
  int64_t threads = 0;         // that fill the device; 0: what it has
};

// Whether no number that is made of an axis passes `most`.
inline bool fits(const PoolAxis& a, int64_t most) {
  const int64_t step = a.adaptive ? a.size + 1 : a.stride, reach = a.size + 2 * a.padding + a.stride;
  return a.kernel <= most / a.dilation && step <= most / (a.outputs + 1) &&
         reach + a.kernel * a.dilation + step * (a.outputs + 1) <= most;
}

// One window that is the whole plane is one of a plane of one row; taps are counted as before.
inline PoolParams joined_planes(PoolParams p) {
  if (!p.h.adaptive || !p.w.adaptive || p.h.outputs != 1 || p.w.outputs != 1) return p;
  p.w.size = p.w.kernel = p.h.size * p.w.size;
  p.h.size = p.h.kernel = 1;
  return p;
}

// The positions that all windows divide by, if they are as many for all and `divisor` says nothing else. Those of a
// window are fewest at the ends.
inline double common_divisor(const PoolParams& p) {
  if (p.divisor != 0) return p.divisor;
  for (const PoolAxis* axis : {&p.h, &p.w}) {
    if (axis->adaptive && axis->outputs > 1) return 0;
    for (int64_t o : {int64_t{0}, axis->outputs - 1})
      if (axis->count(o, p.padding_counts) != axis->kernel) return 0;
  }
  return static_cast<double>(p.h.kernel * p.w.kernel);
}

template <class Int>
PoolAxisOf<Int> axis_of(const PoolAxis& a) {
  return {static_cast<Int>(a.size),
          static_cast<Int>(a.outputs),
          static_cast<Int>(a.kernel),
          static_cast<Int>(a.stride),
          static_cast<Int>(a.padding),
          static_cast<Int>(a.dilation),
          a.adaptive};
}

// Items: rows * columns * inner for each image or plane.
template <class Int>
PoolArgs<Int> pool_args(const PoolParams& p, int64_t rows, int64_t columns, int64_t inner) {
  using Index = typename PoolArgs<Int>::Index;
  PoolArgs<Int> args = {};
  args.input = p.input;
  args.output = p.output;
  args.ids = p.ids;
  args.id_bytes = p.id_bytes;
  args.indices = p.indices;
  args.h = axis_of<Int>(p.h);
  args.w = axis_of<Int>(p.w);
  args.pitch = p.channels_last ? p.C : 1;
  args.items = (p.channels_last ? p.N : p.N * p.C) * rows * columns * inner;
  args.rows = Divisor<Index>(static_cast<Index>(rows));
  args.columns = Divisor<Index>(static_cast<Index>(columns));
  args.inner = Divisor<Index>(static_cast<Index>(inner));
  args.kernel_columns = Divisor<uint32_t>(static_cast<uint32_t>(p.w.kernel));
  args.divisor = p.divisor;
  args.seed = p.seed;
  args.padding_counts = p.padding_counts;
  return args;
}

// A call, and how it may be started.
struct PoolLauncher {
  PoolParams p;
  Stream stream;
  PoolLimits limits;

  int64_t inner() const { return p.channels_last ? p.C : 1; }
  int64_t outer() const { return p.channels_last ? p.N : p.N * p.C; }
  bool narrow(int64_t items) const {
    return items <= limits.narrow - kPoolThreads && fits(p.h, limits.narrow) && fits(p.w, limits.narrow);
  }
  int64_t threads() const {
    return limits.threads ? limits.threads : int64_t{2048} * device_limits(stream).multiprocessors;
  }
  // Whether `V` channels are accessed at once.
  bool wide_channels(int64_t element, int64_t V) const {
    return p.channels_last && p.C % V == 0 && aligned(p.input, V * element) && aligned(p.output, V * element) &&
           aligned(p.ids, V * p.id_bytes + (p.id_bytes == 0));
  }

  template <class Args>
  void run(void (*kernel)(Args), const Args& args, int64_t blocks, int64_t shared = 0) const {
    const int64_t grid = blocks < limits.grid ? blocks : limits.grid;
    launch(kernel, dim3(static_cast<unsigned>(grid)), dim3(kPoolThreads), static_cast<size_t>(shared), stream, args);
  }
  template <class Args>
  void run_items(void (*kernel)(Args), const Args& args) const {
    run(kernel, args, ceil_divide(args.items, kPoolThreads));
  }
};

}  // namespace
}  // namespace fastconv
