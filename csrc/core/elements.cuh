// Elements in registers, whatever their type: what they add up in, and accesses to memory that are as wide as they may
// be; and positions taken apart into coordinates. For the kernels of all families.
#pragma once
#include "core/launch.h"
#include "core/view.h"

namespace fastconv {
namespace {

template <class T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateOf<T>::type;
template <class T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));  // elements

// At most 16 bytes at once; both addresses are multiples of as many.
template <int Bytes>
__device__ __forceinline__ void copy_wide(void* to, const void* from) {
  if constexpr (Bytes > 16) {
    copy_wide<16>(to, from);
    copy_wide<Bytes - 16>(static_cast<char*>(to) + 16, static_cast<const char*>(from) + 16);
  } else if constexpr (Bytes == 16) {
    store16(to, load16(from));
  } else if constexpr (Bytes == 8) {
    *static_cast<uint2*>(to) = *static_cast<const uint2*>(from);
  } else if constexpr (Bytes == 4) {
    *static_cast<uint32_t*>(to) = *static_cast<const uint32_t*>(from);
  } else if constexpr (Bytes == 2) {
    *static_cast<uint16_t*>(to) = *static_cast<const uint16_t*>(from);
  } else {
    *static_cast<uint8_t*>(to) = *static_cast<const uint8_t*>(from);
  }
}

template <int V, class T>
__device__ __forceinline__ void load_wide(const T* from, Accumulate<T> (&to)[V]) {
  alignas(16) T elements[V];
  copy_wide<V * sizeof(T)>(elements, from);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = widen(elements[v]);
}
template <int V, class T>
__device__ __forceinline__ void store_wide(T* to, const Accumulate<T> (&from)[V]) {
  alignas(16) T elements[V];
#pragma unroll
  for (int v = 0; v < V; ++v) narrow(from[v], elements[v]);
  copy_wide<V * sizeof(T)>(to, elements);
}

// V channels: side by side in 16 bytes (`Wide`), or a step apart, of which those from the n-th on are not there.
template <class T, int V, bool Wide>
struct Channels {
  using A = Accumulate<T>;
  int n;

  __device__ __forceinline__ void load(const T* from, int64_t step, A (&to)[V]) const {
    if constexpr (Wide) {
      load_wide<V>(from, to);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) to[v] = v < n ? widen(from[v * step]) : A{0};
    }
  }
  __device__ __forceinline__ void store(T* to, int64_t step, const A (&from)[V]) const {
    if constexpr (Wide) {
      store_wide<V>(to, from);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        T element;
        narrow(from[v], element);
        if (v < n) to[v * step] = element;
      }
    }
  }
};

// Of numbers that are not negative; most have 32 bits, in which it costs a third.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}
// Takes the last coordinate off a number.
__device__ __forceinline__ int64_t take_last(int64_t& number, int64_t size) {
  const int64_t rest = quotient(number, size), last = number - rest * size;
  number = rest;
  return last;
}

// What the parts of a sum, [parts, elements], add up to at element i, in their order.
template <class A>
__device__ __forceinline__ A sum_parts(const A* sums, int64_t parts, int64_t elements, int64_t i) {
  A sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += sums[part * elements + i];
  return sum;
}
// And that as element i of `to`.
template <class T>
__device__ __forceinline__ void add_parts(const void* sums, int64_t parts, int64_t elements, int64_t i, void* to) {
  T element;
  narrow(sum_parts(static_cast<const Accumulate<T>*>(sums), parts, elements, i), element);
  static_cast<T*>(to)[i] = element;
}

// ---- launchers ----

inline bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes < 16 ? bytes : 16) == 0;
}

template <class Body>
void with_element(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat32: return body(float{});
    case Dtype::kFloat64: return body(double{});
    case Dtype::kBFloat16: return body(bfloat16{});
    case Dtype::kFloat16: return body(float16{});
  }
}

}  // namespace
}  // namespace fastconv
