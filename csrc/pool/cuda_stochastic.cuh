// Stochastic pooling on CUDA: the draws of stochastic.h, window by window. Nothing waits for the GPU to hear that an
// element is negative or NaN: windows that have one are NaN.
//
// pool_draw: a thread has a window. It reads it twice, the second time from the caches: first for the sum, then until
// the sum so far exceeds its share of the whole.
//
// pool_mean: the same, for the mean with these probabilities.
#pragma once
#include "pool/cuda_args.cuh"

namespace fastconv {
namespace {

// The first two words of Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, 2011), the first in the lower half.
__device__ __forceinline__ uint64_t philox(uint64_t counter, uint64_t seed) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t a = 0xD2511F53 * c0, b = 0xCD9E8D57 * c2;
    const uint32_t a_high = multiply_high(0xD2511F53, c0), b_high = multiply_high(0xCD9E8D57, c2);
    c0 = b_high ^ c1 ^ k0;
    c2 = a_high ^ c3 ^ k1;
    c1 = b;
    c3 = a;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return static_cast<uint64_t>(c1) << 32 | c0;
}
__device__ __forceinline__ float uniform(float, uint64_t counter, uint64_t seed) {
  return static_cast<float>(static_cast<uint32_t>(philox(counter, seed)) >> 8) * 0x1p-24f;
}
__device__ __forceinline__ double uniform(double, uint64_t counter, uint64_t seed) {
  return static_cast<double>(philox(counter, seed) >> 11) * 0x1p-53;
}

template <class A>
struct Finite;
template <>
struct Finite<float> {
  static constexpr float kMost = 0x1.fffffep127f;
};
template <>
struct Finite<double> {
  static constexpr double kMost = 0x1.fffffffffffffp1023;
};
// `value`, or the largest finite number where it is infinite or NaN.
template <class A>
__device__ __forceinline__ A finite(A value) {
  return value < Finite<A>::kMost ? value : Finite<A>::kMost;
}

template <class T, class Int>
struct Window {
  using A = Accumulate<T>;
  const PoolArgs<Int>& args;
  Place<Int> place;
  Taps<Int> rows, columns;
  const T* x;
  // Of all taps; times `scale`, so small that only an infinite tap can be too large, where the sum would overflow. NaN
  // where one is negative or NaN.
  A sum = 0, scale = 1;

  __device__ __forceinline__ Window(const PoolArgs<Int>& a, int64_t i)
      : args(a), place(a.locate(i)), rows(a.h, place.row), columns(a.w, place.column) {
    x = static_cast<const T*>(args.input) + args.input_at(place.outer, rows.at, columns.at) + place.inner;
    bool wrong = false;
    each([&](A value, uint32_t) {
      wrong = wrong || !(value >= 0);
      sum += value;
      return false;
    });
    if (sum > Finite<A>::kMost) {
      scale = static_cast<A>(0x1p-31);
      sum = 0;
      each([&](A value, uint32_t) {
        sum += value * scale;
        return false;
      });
    }
    if (wrong) sum = NAN;
  }

  __device__ __forceinline__ uint32_t first() const {
    return static_cast<uint32_t>(rows.begin * args.w.kernel + columns.begin);
  }
  // Calls body(value, tap) in the order of the taps, until it says that it has seen enough.
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    const T* row = x;
    for (Int r = rows.begin; r < rows.end; ++r, row += args.pitch * args.w.size) {
      const T* at = row;
      for (Int s = columns.begin; s < columns.end; ++s, at += args.pitch)
        if (body(widen(*at), static_cast<uint32_t>(r * args.w.kernel + s))) return;
    }
  }
  // Its place among all windows, whatever the layout.
  __device__ __forceinline__ uint64_t position() const {
    const int64_t plane = place.outer * args.pitch + place.inner;
    return static_cast<uint64_t>((plane * args.h.outputs + place.row) * args.w.outputs + place.column);
  }
};

template <class T, class Int>
__global__ void __launch_bounds__(kPoolThreads) pool_draw(const PoolArgs<Int> args) {
  using A = Accumulate<T>;
  const uint64_t seed = static_cast<uint64_t>(*args.seed);
  for (int64_t i = first_item(); i < args.items; i += next_item()) {
    const Window<T, Int> window(args, i);
    const A target = finite(uniform(A{}, window.position(), seed) * window.sum);
    A sum = 0, value[1] = {window.sum == window.sum ? A{0} : window.sum};
    uint32_t id[1] = {window.first()};
    if (window.sum > 0)
      window.each([&](A x, uint32_t tap) {
        sum += x * window.scale;
        if (!(sum > target)) return false;
        value[0] = x;
        id[0] = tap;
        return true;
      });
    store_wide<1>(static_cast<T*>(args.output) + i, value);
    store_ids(args.ids, args.id_bytes, i, id);
  }
}

template <class T, class Int>
__global__ void __launch_bounds__(kPoolThreads) pool_mean(const PoolArgs<Int> args) {
  using A = Accumulate<T>;
  for (int64_t i = first_item(); i < args.items; i += next_item()) {
    const Window<T, Int> window(args, i);
    const A inverse = finite(1 / window.sum);
    const bool counts = window.sum <= Finite<A>::kMost;
    A mean[1] = {counts ? A{0} : window.sum};
    if (counts)
      window.each([&](A x, uint32_t) {
        mean[0] += x * (x * window.scale * inverse);
        return false;
      });
    store_wide<1>(static_cast<T*>(args.output) + i, mean);
  }
}

// Calls body with an element and an integer for its arithmetic.
template <class Body>
void with_windows(const PoolLauncher& call, const Body& body) {
  const PoolParams& p = call.p;
  const bool narrow = call.narrow(call.outer() * p.h.outputs * p.w.outputs * call.inner());
  with_element(p.dtype, [&](auto element) {
    if (narrow) return body(element, int32_t{});
    body(element, int64_t{});
  });
}

inline void pool_stochastic(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  const PoolLauncher call = {p, stream, limits};
  with_windows(call, [&](auto element, auto integer) {
    using Int = decltype(integer);
    call.run_items(pool_draw<decltype(element), Int>, pool_args<Int>(p, p.h.outputs, p.w.outputs, call.inner()));
  });
}

inline void pool_weighted(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  const PoolLauncher call = {p, stream, limits};
  with_windows(call, [&](auto element, auto integer) {
    using Int = decltype(integer);
    call.run_items(pool_mean<decltype(element), Int>, pool_args<Int>(p, p.h.outputs, p.w.outputs, call.inner()));
  });
}

}  // namespace
}  // namespace fastconv
