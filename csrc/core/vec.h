// The SIMD vector: the compilers' own vector extension at the register width of the instruction set this file is
// compiled for, so that one kernel source serves all of them. `a * b + c` becomes a fused multiply-add where there is
// one. Everything is in an anonymous namespace: no symbol of one instruction set may be linked for another.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/isa.h"
#include "core/view.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastconv {
namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64, kVecRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32, kVecRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVecBytes = 16, kVecRegisters = 32;
#else
constexpr int kVecBytes = 16, kVecRegisters = 16;
#endif

template <class T, int Bytes>
struct VecOf {
  typedef T type __attribute__((vector_size(Bytes)));
};
template <class T>
using Vec = typename VecOf<T, kVecBytes>::type;
template <class T>
constexpr int kLanes = kVecBytes / static_cast<int>(sizeof(T));

// What a storage type is computed in.
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

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// sum += a * b, in the register that sum is in. Where there are only 16 of them the compiler (g++ 12) lets the sums of
// a loop that is written out wander from register to register, and some to memory.
template <class V>
inline void add_product(V& sum, V a, V b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float>>) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return;
  }
#endif
  sum += a * b;
}

// A pointer that the compiler takes as it comes, so that it does not keep sums of strides in registers for what an
// address can say (or, where these are too many, on the stack).
template <class T>
inline void settle_pointer(T*& pointer) {
  asm("" : "+r"(pointer));
}

// The value in every lane. Subtracting a vector of zeros is the form that compilers turn into one broadcast.
template <class T>
inline Vec<T> splat(T value) {
  return value - Vec<T>{};
}

using Words = Vec<uint32_t>;                                   // as many lanes as Vec<float>
using Halves = typename VecOf<uint16_t, kVecBytes / 2>::type;  // likewise

// float16 <-> float32. Hardware where there is some; else integer arithmetic. Subnormal numbers of float16 are ordinary
// ones of float32, and stay what they are where denormals are flushed: they are read as the last places of 2^-14, which
// is then subtracted, and rounded by the addition of 0.5, whose last place is the last place of the smallest float16.
inline Vec<float> widen(Halves h, float16) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(h));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(bits_as<__m128i>(h));
#else
  const Words w = __builtin_convertvector(h, Words);
  const Words magnitude = (w & 0x7fff) << 13;
  const Words normal = magnitude + (112u << 23);
  const Words subnormal = bits_as<Words>(bits_as<Vec<float>>(magnitude + (113u << 23)) - 0x1p-14f);
  const Words special = magnitude | 0x7f800000;  // infinity and NaN keep their top exponent
  const Words bits = magnitude < (1u << 23) ? subnormal : magnitude >= (31u << 23) ? special : normal;
  return bits_as<Vec<float>>(bits | ((w & 0x8000) << 16));
#endif
}

inline Halves narrow(Vec<float> v, float16) {
#if defined(__AVX512F__)
  return bits_as<Halves>(_mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
  return bits_as<Halves>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const Words w = bits_as<Words>(v);
  const Words a = w & 0x7fffffff;
  const Words normal = (a - (112u << 23) + 0xfff + ((a >> 13) & 1)) >> 13;
  const Words subnormal = bits_as<Words>(bits_as<Vec<float>>(a) + 0.5f) - 0x3f000000;
  Words h = a < 0x38800000 ? subnormal : normal;
  h = a >= 0x477ff000 ? Words{} + 0x7c00 : h;
  h = a > 0x7f800000 ? Words{} + 0x7e00 : h;
  return __builtin_convertvector(h | ((w >> 16) & 0x8000), Halves);
#endif
}

inline Words words(Halves h) {
#if defined(__AVX512F__)
  return bits_as<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(h)));
#else
  return __builtin_convertvector(h, Words);
#endif
}
inline Halves halves(Words w) {
#if defined(__AVX512F__)
  return bits_as<Halves>(_mm512_maskz_cvtepi32_epi16(0xffff, bits_as<__m512i>(w)));
#else
  return __builtin_convertvector(w, Halves);
#endif
}

inline Vec<float> widen(Halves h, bfloat16) { return bits_as<Vec<float>>(words(h) << 16); }

// Where the processor has AVX512_BF16, one instruction of it takes the place of ten, though these kernels are compiled
// for less: depthwise 3x3 takes 0.6 to 0.8 of the time. It flushes denormal numbers and keeps more of a NaN, so those
// are left to the integers, and results are the same bits with and without it, unless denormals are flushed anyway.
inline Halves narrow(Vec<float> v, bfloat16) {
#if defined(__AVX512F__) && defined(FASTCONV_HAS_avx512_bf16)
  constexpr int kDenormalOrNan = 0xa1;
  if (__builtin_expect(isa_rounds_bfloat16.load(std::memory_order_relaxed), 1) &&
      __builtin_expect(_mm512_fpclass_ps_mask(v, kDenormalOrNan) == 0, 1)) {
    __m256i rounded;
    asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(v));
    return bits_as<Halves>(rounded);
  }
#endif
  const Words w = bits_as<Words>(v);
  const Words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  const Words nan = ((w >> 16) & 0x8000) | 0x7fc0;
  return halves((w & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

// Loads and stores a vector of the type that T is computed in; no alignment is asked for.
inline Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline Vec<double> load(const double* p) {
  Vec<double> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline Words load(const uint32_t* p) {
  Words v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline Vec<float> load(const T* p) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  return widen(h, T{});
}

inline void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof v); }
template <class T>
inline void store(T* p, Vec<float> v) {
  const Halves h = narrow(v, T{});
  __builtin_memcpy(p, &h, sizeof h);
}

// Past the caches, where the vector fills whole lines or halves of them; as ever elsewhere.
template <class T, class V>
inline void stream(T* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    if (reinterpret_cast<uintptr_t>(p) % kVecBytes == 0) return _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    if (reinterpret_cast<uintptr_t>(p) % kVecBytes == 0) return _mm256_stream_ps(p, reinterpret_cast<__m256>(v));
  }
#endif
  store(p, v);
}

// The first n lanes (0 <= n <= lanes); the others are zero, and nothing beyond is touched. Without masks these are
// loops, and not inlined: they would stand in every register tile, and made the object files three times as large.
template <class T>
[[gnu::noinline]] Vec<Accumulate<T>> load_partial(const T* p, int n) {
  T lanes[kLanes<Accumulate<T>>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
[[gnu::noinline]] void store_partial(T* p, Vec<Accumulate<T>> v, int n) {
  T lanes[kLanes<Accumulate<T>>];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
#if defined(__AVX512F__)
template <class T>
inline Vec<float> load_half_partial(const T* p, int n) {
  return widen(bits_as<Halves>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p)), T{});
}
template <class T>
inline void store_half_partial(T* p, Vec<float> v, int n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), bits_as<__m256i>(narrow(v, T{})));
}
template <>
inline Vec<float> load_partial(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
template <>
inline Vec<double> load_partial(const double* p, int n) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
template <>
inline void store_partial(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}
template <>
inline void store_partial(double* p, Vec<double> v, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
}
#elif defined(__AVX2__)
// Masked loads are as fast as others; masked stores are slow on some processors, and done in pieces, as everything of
// 16-bit types is. (16 maxima of 13x13 windows in rows of 19 columns took 130 ns with loops and take 50.)
constexpr int32_t kFirstLanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
template <>
inline Vec<float> load_partial(const float* p, int n) {
  return _mm256_maskload_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirstLanes + 8 - n)));
}
template <>
inline Vec<double> load_partial(const double* p, int n) {
  return _mm256_maskload_pd(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirstLanes + 8 - 2 * n)));
}
template <>
[[gnu::noinline, gnu::unused]] void store_partial(float* p, Vec<float> v, int n) {
  if (n == 8) return store(p, v);
  __m128 part = _mm256_castps256_ps128(v);
  if (n & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps(v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, part);
}
template <>
[[gnu::noinline, gnu::unused]] void store_partial(double* p, Vec<double> v, int n) {
  if (n == 4) return store(p, v);
  __m128d part = _mm256_castpd256_pd128(v);
  if (n & 2) {
    _mm_storeu_pd(p, part);
    part = _mm256_extractf128_pd(v, 1);
    p += 2;
  }
  if (n & 1) _mm_store_sd(p, part);
}
template <class T>
[[gnu::noinline]] Vec<float> load_half_partial(const T* p, int n) {
  if (n == 8) return load(p);
  p += n;  // from the last to the first
  uint64_t low = 0;
  if (n & 1) {
    uint16_t one;
    __builtin_memcpy(&one, p -= 1, sizeof one);
    low = one;
  }
  if (n & 2) {
    uint32_t two;
    __builtin_memcpy(&two, p -= 2, sizeof two);
    low = low << 32 | two;
  }
  uint64_t high = 0;
  if (n & 4) {
    high = low;
    __builtin_memcpy(&low, p - 4, sizeof low);
  }
  return widen(bits_as<Halves>(_mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low))), T{});
}
template <class T>
[[gnu::noinline]] void store_half_partial(T* p, Vec<float> v, int n) {
  if (n == 8) return store(p, v);
  const Halves h = narrow(v, T{});
  uint64_t halves[2];
  __builtin_memcpy(halves, &h, sizeof h);
  uint64_t part = halves[0];
  if (n & 4) {
    __builtin_memcpy(p, &part, 8);
    part = halves[1];
    p += 4;
  }
  if (n & 2) {
    __builtin_memcpy(p, &part, 4);
    part >>= 32;
    p += 2;
  }
  if (n & 1) __builtin_memcpy(p, &part, 2);
}
#endif
#if defined(__AVX2__)
template <>
inline Vec<float> load_partial(const bfloat16* p, int n) {
  return load_half_partial(p, n);
}
template <>
inline Vec<float> load_partial(const float16* p, int n) {
  return load_half_partial(p, n);
}
template <>
inline void store_partial(bfloat16* p, Vec<float> v, int n) {
  store_half_partial(p, v, n);
}
template <>
inline void store_partial(float16* p, Vec<float> v, int n) {
  store_half_partial(p, v, n);
}
#endif

// Integers as wide as T, one for each lane.
template <class T>
struct LanesOf;
template <>
struct LanesOf<float> {
  using type = uint32_t;
};
template <>
struct LanesOf<double> {
  using type = uint64_t;
};
template <class T>
using Lanes = Vec<typename LanesOf<T>::type>;

// The lanes [begin, end) of vectors that are loaded many times over: the others are zero, and nothing of theirs is
// touched.
template <class T>
struct Window {
  static constexpr int L = kLanes<Accumulate<T>>;
#if defined(__AVX512F__)
  uint32_t mask;
  Window(int begin, int end) : mask(((1u << end) - 1) & ~((1u << begin) - 1)) {}
#else
  int begin, end;
  Window(int begin_, int end_) : begin(begin_), end(end_) {}
#endif
  Window() = default;  // of no meaning: tables of them are filled as far as they are used
};
#if defined(__AVX512F__)
inline Vec<float> load(const float* p, Window<float> w) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(w.mask), p);
}
inline Vec<double> load(const double* p, Window<double> w) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(w.mask), p);
}
template <class T>
inline Vec<float> load(const T* p, Window<T> w) {
  return widen(bits_as<Halves>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(w.mask), p)), T{});
}
#else
// A call, without a way around it for whole vectors: that would stand in register tiles several times over.
template <class T>
[[gnu::noinline]] Vec<Accumulate<T>> load(const T* p, Window<T> w) {
  T lanes[Window<T>::L] = {};
  for (int i = w.begin; i < w.end; ++i) lanes[i] = p[i];
  return load(lanes);
}
#if defined(__AVX2__)
// Masks are vectors here, and making one takes longer than loading it: depthwise 3x3 takes a third less so, 7x7 half.
template <class T>
struct MaskWindow {
  static constexpr int L = kLanes<T>;
  Lanes<T> mask;
  MaskWindow(int begin, int end) {
    for (int i = 0; i < L; ++i) mask[i] = i >= begin && i < end ? ~typename LanesOf<T>::type(0) : 0;
  }
  MaskWindow() = default;
};
template <>
struct Window<float> : MaskWindow<float> {
  using MaskWindow::MaskWindow;
};
template <>
struct Window<double> : MaskWindow<double> {
  using MaskWindow::MaskWindow;
};
inline Vec<float> load(const float* p, const Window<float>& w) {
  return _mm256_maskload_ps(p, bits_as<__m256i>(w.mask));
}
inline Vec<double> load(const double* p, const Window<double>& w) {
  return _mm256_maskload_pd(p, bits_as<__m256i>(w.mask));
}
#endif
#endif

// Any lanes of vectors that are loaded many times over, those of which all bits are set in `lanes` (none are in the
// others): the others are zero, and nothing of theirs is touched.
#if defined(__AVX512F__)
template <class T>
struct Chosen {
  Window<T> window;
  Chosen() = default;
  explicit Chosen(Lanes<float> lanes) : window(0, 0) { window.mask = _mm512_movepi32_mask(bits_as<__m512i>(lanes)); }
  explicit Chosen(Lanes<double> lanes) : window(0, 0) { window.mask = _mm512_movepi64_mask(bits_as<__m512i>(lanes)); }
};
template <class T>
inline Vec<Accumulate<T>> load(const T* p, Chosen<T> chosen) {
  return load(p, chosen.window);
}
#else
template <class T>
struct Chosen {
  Lanes<Accumulate<T>> lanes;
  Chosen() = default;
  explicit Chosen(Lanes<Accumulate<T>> chosen) : lanes(chosen) {}
};
template <class T>
[[gnu::noinline]] Vec<Accumulate<T>> load(const T* p, const Chosen<T>& chosen) {
  T lanes[Window<T>::L] = {};
  for (int i = 0; i < Window<T>::L; ++i)
    if (chosen.lanes[i]) lanes[i] = p[i];
  return load(lanes);
}
#if defined(__AVX2__)
template <>
inline Vec<float> load(const float* p, const Chosen<float>& chosen) {
  return _mm256_maskload_ps(p, bits_as<__m256i>(chosen.lanes));
}
template <>
inline Vec<double> load(const double* p, const Chosen<double>& chosen) {
  return _mm256_maskload_pd(p, bits_as<__m256i>(chosen.lanes));
}
#endif
#endif

// One element, to and from the type it is computed in.
inline float get(const float* p) { return *p; }
inline double get(const double* p) { return *p; }
inline float get(const bfloat16* p) { return bits_as<float>(static_cast<uint32_t>(p->bits) << 16); }
inline float get(const float16* p) { return load_partial(p, 1)[0]; }
inline void put(float* p, float v) { *p = v; }
inline void put(double* p, double v) { *p = v; }
template <class T>
inline void put(T* p, float v) {
  store_partial(p, splat(v), 1);
}

// e to the power of v, to 1e-7 relative: a power of two by the exponent's bits, times a polynomial (Taylor's) on what
// is left, of magnitude ln(2) / 2 at most.
inline Vec<float> exp(Vec<float> v) {
  const Vec<float> bounded = v > 89.f ? splat(89.f) : v < -88.f ? splat(-88.f) : v;
  const Vec<float> shifted = bounded * 1.44269504f + 12582912.f;  // 1.5 * 2^23: rounds to an integer in the last bits
  const Vec<float> n = shifted - 12582912.f;
  const Vec<float> r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  const Vec<float> p =
      1.f + r * (1.f + r * (0.5f + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 + r * (1.f / 720))))));
  return p * bits_as<Vec<float>>((bits_as<Words>(shifted) + 127) << 23);
}
inline Vec<double> exp(Vec<double> v) {
  for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_exp(v[i]);
  return v;
}

inline Vec<float> square_root(Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_ps(0xffff, v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#elif defined(__x86_64__)
  return _mm_sqrt_ps(v);
#else
  for (int i = 0; i < kLanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}
inline Vec<double> square_root(Vec<double> v) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_pd(0xff, v);
#elif defined(__AVX2__)
  return _mm256_sqrt_pd(v);
#elif defined(__x86_64__)
  return _mm_sqrt_pd(v);
#else
  for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

template <class T>
inline T sum_lanes(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}

template <class V, int... I>
inline void zip(V a, V b, V& low, V& high, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  low = __builtin_shufflevector(a, b, (I / 2 + I % 2 * L)...);
  high = __builtin_shufflevector(a, b, (L / 2 + I / 2 + I % 2 * L)...);
}

template <class V, int... I>
inline V even_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}
// Lanes 0, 2, 4, ... of a followed by b.
template <class T>
inline Vec<T> even_lanes(Vec<T> a, Vec<T> b) {
  return even_lanes(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}

template <int First, class V, int... I>
inline V lanes_from(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (First + I)...);
}
// Lanes First, First + 1, ... of a followed by b.
template <int First, class T>
inline Vec<T> lanes_from(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)  // g++ would take a permutation with a table
  if constexpr (sizeof(T) == 4)
    return bits_as<Vec<T>>(_mm512_maskz_alignr_epi32(0xffff, bits_as<__m512i>(b), bits_as<__m512i>(a), First));
  else
    return bits_as<Vec<T>>(_mm512_maskz_alignr_epi64(0xff, bits_as<__m512i>(b), bits_as<__m512i>(a), First));
#else
  return lanes_from<First>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
#endif
}

// The same, of which lanes that are not chosen are zero.
template <int First, class T>
inline Vec<T> lanes_from(Vec<T> a, Vec<T> b, Chosen<T> chosen) {
#if defined(__AVX512F__)
  const auto mask = chosen.window.mask;
  if constexpr (sizeof(T) == 4)
    return bits_as<Vec<T>>(
        _mm512_maskz_alignr_epi32(static_cast<__mmask16>(mask), bits_as<__m512i>(b), bits_as<__m512i>(a), First));
  else
    return bits_as<Vec<T>>(
        _mm512_maskz_alignr_epi64(static_cast<__mmask8>(mask), bits_as<__m512i>(b), bits_as<__m512i>(a), First));
#else
  return bits_as<Vec<T>>(bits_as<Lanes<T>>(lanes_from<First, T>(a, b)) & chosen.lanes);
#endif
}

template <class V, int... I>
inline V odd_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// The even and the odd lanes of a followed by b, in the order that takes one instruction: halves of 32-byte vectors
// know little of each other. in_order puts them right, and from there back into this order.
constexpr bool kOrdered = kVecBytes != 32;
template <class T>
inline Vec<T> some_even_lanes(Vec<T> a, Vec<T> b) {
  if constexpr (kOrdered)
    return even_lanes<T>(a, b);
  else if constexpr (sizeof(T) == 4)
    return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
  else
    return __builtin_shufflevector(a, b, 0, 4, 2, 6);
}
template <class T>
inline Vec<T> some_odd_lanes(Vec<T> a, Vec<T> b) {
  if constexpr (kOrdered)
    return odd_lanes(a, b, std::make_integer_sequence<int, kLanes<T>>{});
  else if constexpr (sizeof(T) == 4)
    return __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  else
    return __builtin_shufflevector(a, b, 1, 5, 3, 7);
}

// some_even_lanes of two vectors of memory, of which nothing is touched but the lanes of their windows. Of 16-bit types
// they are the low halves of words: one load, and for bfloat16 one shift, instead of seven instructions.
template <class T>
inline Vec<Accumulate<T>> load_even(const T* p, const Window<T>& low, const Window<T>& high) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2) {
    const auto pairs = bits_as<Words>(_mm512_maskz_loadu_epi16(low.mask | high.mask << 16, p));
    if constexpr (std::is_same_v<T, bfloat16>)
      return bits_as<Vec<float>>(pairs << 16);
    else
      return widen(halves(pairs), T{});
  }
#endif
  return some_even_lanes<Accumulate<T>>(load(p, low), load(p + kLanes<Accumulate<T>>, high));
}

template <class T, class V>
inline V in_order(V v) {
  if constexpr (kOrdered)
    return v;
  else if constexpr (sizeof(T) == 4)
    return __builtin_shufflevector(v, v, 0, 1, 4, 5, 2, 3, 6, 7);
  else
    return __builtin_shufflevector(v, v, 0, 2, 1, 3);
}

// Of a run of Count vectors every Count-th element: v[i] becomes elements i, i + Count, i + 2 * Count, ...; Count is a
// power of two.
template <class T, int Count>
inline void deinterleave(Vec<T>* v) {
  using All = std::make_integer_sequence<int, kLanes<T>>;
#pragma GCC unroll 4
  for (int round = 1; round < Count; round *= 2) {
    Vec<T> t[Count];
#pragma GCC unroll 8
    for (int i = 0; i < Count / 2; ++i) {
      t[i] = even_lanes(v[2 * i], v[2 * i + 1], All{});
      t[Count / 2 + i] = odd_lanes(v[2 * i], v[2 * i + 1], All{});
    }
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) v[i] = t[i];
  }
}

// Lane l of the result is lane from[l] of v, for any vector of lane numbers.
inline Vec<float> permute(Vec<float> v, Lanes<float> from) {
#if defined(__AVX512F__)
  return _mm512_maskz_permutexvar_ps(0xffff, bits_as<__m512i>(from), v);
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_ps(v, bits_as<__m256i>(from));
#else
  Vec<float> result = {};
  for (int i = 0; i < kLanes<float>; ++i) result[i] = v[from[i]];
  return result;
#endif
}
inline Vec<double> permute(Vec<double> v, Lanes<double> from) {
#if defined(__AVX512F__)
  return _mm512_maskz_permutexvar_pd(0xff, bits_as<__m512i>(from), v);
#else
  Vec<double> result = {};
  for (int i = 0; i < kLanes<double>; ++i) result[i] = v[from[i]];
  return result;
#endif
}

// Transposes a square of registers: lane j of v[i] becomes lane i of v[j]. log2(lanes) rounds, each of which
// interleaves v[i] with v[i + lanes / 2] (a perfect shuffle of the lane and register numbers by one bit).
template <class T>
inline void transpose(Vec<T>* v) {
  constexpr int L = kLanes<T>;
  for (int round = 1; round < L; round *= 2) {
    Vec<T> t[L];
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i)
      zip(v[i], v[i + L / 2], t[2 * i], t[2 * i + 1], std::make_integer_sequence<int, L>{});
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = t[i];
  }
}

}  // namespace
}  // namespace fastconv
