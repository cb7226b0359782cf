// What a window is reduced to on CUDA: the rules of state.h, one element at a time.
#pragma once
#include "pool/cuda_args.cuh"

namespace fastconv {
namespace {

template <class A>
struct Sum {
  using Value = A;
  static constexpr bool kAdds = true, kTracks = false;

  A value;
  static __device__ __forceinline__ A outside() { return 0; }  // as good as no element
  static __device__ __forceinline__ Sum nothing(uint32_t) { return {0}; }
  __device__ __forceinline__ void take(A x, uint32_t) { value += x; }
  __device__ __forceinline__ void join(const Sum& other) { value += other.value; }
  // Of a window whose elements count as `divisor`, where whole windows have `whole`.
  __device__ __forceinline__ void finish(A divisor, A) { value /= divisor; }
};

// The root of the sum of squares; of a window cut short as if it went on with the same mean.
template <class A>
struct Squares {
  using Value = A;
  static constexpr bool kAdds = true, kTracks = false;

  A value;
  static __device__ __forceinline__ A outside() { return 0; }
  static __device__ __forceinline__ Squares nothing(uint32_t) { return {0}; }
  __device__ __forceinline__ void take(A x, uint32_t) { value += x * x; }
  __device__ __forceinline__ void join(const Squares& other) { value += other.value; }
  __device__ __forceinline__ void finish(A divisor, A whole) { value = sqrt(value / divisor * whole); }
};

// NaN is larger than every number.
template <class A>
struct Max {
  using Value = A;
  static constexpr bool kAdds = false, kTracks = false;

  A value;
  static __device__ __forceinline__ A outside() { return -INFINITY; }
  static __device__ __forceinline__ Max nothing(uint32_t) { return {outside()}; }
  __device__ __forceinline__ void take(A x, uint32_t) { value = x > value || x != x ? x : value; }
  __device__ __forceinline__ void join(const Max& other) { take(other.value, 0); }
};

// Among equal values the first tap wins, among NaN the last.
template <class A>
struct MaxId {
  using Value = A;
  static constexpr bool kAdds = false, kTracks = true;

  A value;
  uint32_t id;
  static __device__ __forceinline__ A outside() { return -INFINITY; }
  // `first`: the tap that wins where all values are negative infinity.
  static __device__ __forceinline__ MaxId nothing(uint32_t first) { return {outside(), first}; }
  // Of taps in their order.
  __device__ __forceinline__ void take(A x, uint32_t tap) {
    const bool wins = x > value || x != x;
    value = wins ? x : value;
    id = wins ? tap : id;
  }
  // In any order.
  __device__ __forceinline__ void join(const MaxId& other) {
    const bool wins = other.value > value || (other.value == value && other.id < id) ||
                      (other.value != other.value && (value == value || other.id > id));
    value = wins ? other.value : value;
    id = wins ? other.id : id;
  }
};

}  // namespace
}  // namespace fastconv
