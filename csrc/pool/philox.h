// Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, 2011): random bits that
// are a function of a seed and a counter, so that whoever needs the bits of a position computes them, in any order, on
// any thread, in vectors of any length.
#pragma once
#include "core/vec.h"

namespace fastconv {
namespace {

using Words64 = Vec<uint64_t>;  // as many lanes as Vec<double>

// The lower halves of the lanes times m.
inline Words64 multiply(Words64 a, uint32_t m) {
#if defined(__AVX512F__)
  return bits_as<Words64>(_mm512_maskz_mul_epu32(0xff, bits_as<__m512i>(a), _mm512_set1_epi64(m)));
#elif defined(__AVX2__)
  return bits_as<Words64>(_mm256_mul_epu32(bits_as<__m256i>(a), _mm256_set1_epi64x(m)));
#elif defined(__x86_64__)
  return bits_as<Words64>(_mm_mul_epu32(bits_as<__m128i>(a), _mm_set1_epi64x(m)));
#else
  return (a & 0xffffffff) * m;
#endif
}

// 64 random bits for each counter: the first two of the four words, the first in the lower half. Each of the words is
// kept in the lower half of a lane; what the upper half holds meanwhile is never looked at.
inline Words64 philox(Words64 counter, uint64_t seed) {
  Words64 c0 = counter, c1 = counter >> 32, c2 = {}, c3 = {};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Words64 a = multiply(c0, 0xD2511F53), b = multiply(c2, 0xCD9E8D57);
    c0 = (b >> 32) ^ c1 ^ k0;
    c2 = (a >> 32) ^ c3 ^ k1;
    c1 = b;
    c3 = a;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c1 << 32 | (c0 & 0xffffffff);
}

// Uniform numbers in [0, 1), as fine as the type is there: lane i has the counter first + i * step.
inline Words64 counters(uint64_t first, uint64_t step) {
  Words64 counter;
  for (int i = 0; i < kLanes<double>; ++i) counter[i] = first + static_cast<uint64_t>(i) * step;
  return counter;
}
inline Vec<double> uniform(double, uint64_t first, uint64_t step, uint64_t seed) {
  return __builtin_convertvector(philox(counters(first, step), seed) >> 11, Vec<double>) * 0x1p-53;
}
inline Vec<float> uniform(float, uint64_t first, uint64_t step, uint64_t seed) {
  typedef uint32_t Half __attribute__((vector_size(kVecBytes / 2)));
  Half halves[2];
  for (int i = 0; i < 2; ++i) {
    const uint64_t from = first + static_cast<uint64_t>(i * kLanes<double>) * step;
    halves[i] = __builtin_convertvector(philox(counters(from, step), seed), Half);
  }
  Vec<int32_t> top;  // 24 bits, for which conversions that know signs are exact
  __builtin_memcpy(&top, halves, sizeof top);
  return __builtin_convertvector(bits_as<Vec<int32_t>>(bits_as<Words>(top) >> 8), Vec<float>) * 0x1p-24f;
}

}  // namespace
}  // namespace fastconv
