// Division by a number that the host knows: an integer division costs a GPU some 20 instructions, a multiplication and
// a shift cost 3. Exact for dividends below 2^31 (Granlund and Montgomery, 1994); the 64-bit twin divides plainly and
// is used where a tensor has more elements than that.
#pragma once
#include <cstdint>

#include "core/device.cuh"

namespace fastconv {

template <class Index>
struct Divisor {
  Index value;

  Divisor() = default;
  explicit Divisor(Index divisor) : value(divisor) {}
  __host__ __device__ Index divide(Index dividend) const { return dividend / value; }
};

template <>
struct Divisor<uint32_t> {
  uint32_t value, multiplier, shift;

  Divisor() = default;
  explicit Divisor(uint32_t divisor) : value(divisor), shift(0) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor)) / divisor + 1);
  }
  __host__ __device__ uint32_t divide(uint32_t dividend) const {
    return (multiply_high(dividend, multiplier) + dividend) >> shift;
  }
  // Takes the last coordinate, of so many, off a number.
  __host__ __device__ int take_last(uint32_t& number) const {
    const uint32_t rest = divide(number), last = number - rest * value;
    number = rest;
    return static_cast<int>(last);
  }
};

}  // namespace fastconv
