// Comparisons of vectors, and choices by them. With AVX-512 a mask is a register of bits, which compilers do not find
// behind the vector extension's comparisons once two of them are combined; elsewhere it is a vector of integers.
#pragma once
#include "core/vec.h"

namespace fastconv {
namespace {

#if defined(__AVX512F__)
template <class A>
struct Mask {
  uint32_t bits;  // one a lane
};
template <class A>
inline Mask<A> operator|(Mask<A> a, Mask<A> b) {
  return {a.bits | b.bits};
}
template <class A>
inline Mask<A> operator&(Mask<A> a, Mask<A> b) {
  return {a.bits & b.bits};
}

inline Mask<float> greater(Vec<float> a, Vec<float> b) { return {_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ)}; }
inline Mask<float> equal(Vec<float> a, Vec<float> b) { return {_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)}; }
inline Mask<float> is_nan(Vec<float> a) { return {_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q)}; }
inline Mask<float> either_nan(Vec<float> a, Vec<float> b) { return {_mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q)}; }
inline Mask<float> less(Lanes<float> a, Lanes<float> b) {
  return {_mm512_cmplt_epu32_mask(bits_as<__m512i>(a), bits_as<__m512i>(b))};
}
inline Mask<float> equal(Lanes<float> a, Lanes<float> b) {
  return {_mm512_cmpeq_epu32_mask(bits_as<__m512i>(a), bits_as<__m512i>(b))};
}
// The lanes of a where the mask holds, else those of b.
inline Vec<float> choose(Mask<float> m, Vec<float> a, Vec<float> b) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(m.bits), b, a);
}
inline Lanes<float> choose(Mask<float> m, Lanes<float> a, Lanes<float> b) {
  return bits_as<Lanes<float>>(
      _mm512_mask_blend_epi32(static_cast<__mmask16>(m.bits), bits_as<__m512i>(b), bits_as<__m512i>(a)));
}

// b unless a is greater: of equal values, of zeros of different signs too, and where one is NaN, b.
inline Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm512_maskz_max_ps(0xffff, a, b); }
inline Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm512_maskz_max_pd(0xff, a, b); }
inline bool any(Mask<float> m) { return m.bits != 0; }
inline bool any(Mask<double> m) { return m.bits != 0; }

inline Mask<double> greater(Vec<double> a, Vec<double> b) { return {_mm512_cmp_pd_mask(a, b, _CMP_GT_OQ)}; }
inline Mask<double> equal(Vec<double> a, Vec<double> b) { return {_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ)}; }
inline Mask<double> is_nan(Vec<double> a) { return {_mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q)}; }
inline Mask<double> either_nan(Vec<double> a, Vec<double> b) { return {_mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q)}; }
inline Mask<double> less(Lanes<double> a, Lanes<double> b) {
  return {_mm512_cmplt_epu64_mask(bits_as<__m512i>(a), bits_as<__m512i>(b))};
}
inline Mask<double> equal(Lanes<double> a, Lanes<double> b) {
  return {_mm512_cmpeq_epu64_mask(bits_as<__m512i>(a), bits_as<__m512i>(b))};
}
inline Vec<double> choose(Mask<double> m, Vec<double> a, Vec<double> b) {
  return _mm512_mask_blend_pd(static_cast<__mmask8>(m.bits), b, a);
}
inline Lanes<double> choose(Mask<double> m, Lanes<double> a, Lanes<double> b) {
  return bits_as<Lanes<double>>(
      _mm512_mask_blend_epi64(static_cast<__mmask8>(m.bits), bits_as<__m512i>(b), bits_as<__m512i>(a)));
}
// a where the mask holds, else zero, added to b.
inline Vec<float> add_where(Mask<float> m, Vec<float> a, Vec<float> b) {
  return _mm512_mask_add_ps(b, static_cast<__mmask16>(m.bits), a, b);
}
inline Vec<double> add_where(Mask<double> m, Vec<double> a, Vec<double> b) {
  return _mm512_mask_add_pd(b, static_cast<__mmask8>(m.bits), a, b);
}
#else
template <class A>
struct Mask {
  Lanes<A> lanes;  // all bits of a lane, or none
};
template <class A>
inline Mask<A> operator|(Mask<A> a, Mask<A> b) {
  return {a.lanes | b.lanes};
}
template <class A>
inline Mask<A> operator&(Mask<A> a, Mask<A> b) {
  return {a.lanes & b.lanes};
}

template <class A>
struct ElementOf;
template <>
struct ElementOf<Vec<float>> {
  using type = float;
};
template <>
struct ElementOf<Vec<double>> {
  using type = double;
};
template <>
struct ElementOf<Lanes<float>> {
  using type = float;
};
template <>
struct ElementOf<Lanes<double>> {
  using type = double;
};
template <class V>
using MaskOf = Mask<typename ElementOf<V>::type>;

template <class V>
inline MaskOf<V> greater(V a, V b) {
  return {bits_as<Lanes<typename ElementOf<V>::type>>(a > b)};
}
template <class V>
inline MaskOf<V> less(V a, V b) {
  return {bits_as<Lanes<typename ElementOf<V>::type>>(a < b)};
}
template <class V>
inline MaskOf<V> equal(V a, V b) {
  return {bits_as<Lanes<typename ElementOf<V>::type>>(a == b)};
}
template <class V>
inline MaskOf<V> is_nan(V a) {
  return {bits_as<Lanes<typename ElementOf<V>::type>>(a != a)};
}
template <class V>
inline V larger(V a, V b) {
  return a > b ? a : b;
}
#if defined(__AVX2__)
inline Mask<float> either_nan(Vec<float> a, Vec<float> b) {
  return {bits_as<Lanes<float>>(_mm256_cmp_ps(a, b, _CMP_UNORD_Q))};
}
inline Mask<double> either_nan(Vec<double> a, Vec<double> b) {
  return {bits_as<Lanes<double>>(_mm256_cmp_pd(a, b, _CMP_UNORD_Q))};
}
template <class A>
inline bool any(Mask<A> m) {
  return !_mm256_testz_si256(bits_as<__m256i>(m.lanes), bits_as<__m256i>(m.lanes));
}
// g++ compares `m.lanes` with zero, twice.
inline Vec<float> choose(Mask<float> m, Vec<float> a, Vec<float> b) {
  return _mm256_blendv_ps(b, a, bits_as<__m256>(m.lanes));
}
inline Vec<double> choose(Mask<double> m, Vec<double> a, Vec<double> b) {
  return _mm256_blendv_pd(b, a, bits_as<__m256d>(m.lanes));
}
template <class A>
inline Lanes<A> choose(Mask<A> m, Lanes<A> a, Lanes<A> b) {
  return bits_as<Lanes<A>>(choose(m, bits_as<Vec<A>>(a), bits_as<Vec<A>>(b)));
}
#else
template <class V>
inline MaskOf<V> either_nan(V a, V b) {
  return is_nan(a) | is_nan(b);
}
template <class A>
inline bool any(Mask<A> m) {
  typename LanesOf<A>::type all = 0;
  for (int i = 0; i < kLanes<A>; ++i) all |= m.lanes[i];
  return all != 0;
}
template <class A>
inline Vec<A> choose(Mask<A> m, Vec<A> a, Vec<A> b) {
  return m.lanes ? a : b;
}
template <class A>
inline Lanes<A> choose(Mask<A> m, Lanes<A> a, Lanes<A> b) {
  return m.lanes ? a : b;
}
#endif
template <class A>
inline Vec<A> add_where(Mask<A> m, Vec<A> a, Vec<A> b) {
  return bits_as<Vec<A>>(bits_as<Lanes<A>>(a) & m.lanes) + b;
}
#endif

}  // namespace
}  // namespace fastconv
