// What a window is reduced to: a sum, a maximum, or a maximum and the tap that it came from. The same code serves
// vectors of windows (`Wide`) and one window (`Single`).
#pragma once
#include "core/mask.h"
#include "pool/params.h"

namespace fastconv {
namespace {

// One window, in the words of mask.h.
inline bool greater(float a, float b) { return a > b; }
inline bool greater(double a, double b) { return a > b; }
inline bool equal(float a, float b) { return a == b; }
inline bool equal(double a, double b) { return a == b; }
inline bool is_nan(float a) { return a != a; }
inline bool is_nan(double a) { return a != a; }
inline bool less(uint32_t a, uint32_t b) { return a < b; }
inline bool less(uint64_t a, uint64_t b) { return a < b; }
inline float larger(float a, float b) { return a > b ? a : b; }
inline double larger(double a, double b) { return a > b ? a : b; }
template <class V>
inline V choose(bool holds, V a, V b) {
  return holds ? a : b;
}

template <class A>
struct Wide {
  using Element = A;
  using Value = Vec<A>;
  using Id = Lanes<A>;
  static Value all(A value) { return splat(value); }
  static Id all_ids(int64_t id) { return splat(static_cast<typename LanesOf<A>::type>(id)); }
};
template <class A>
struct Single {
  using Element = A;
  using Value = A;
  using Id = typename LanesOf<A>::type;
  static Value all(A value) { return value; }
  static Id all_ids(int64_t id) { return static_cast<Id>(id); }
};

// Of what is not in the input: larger than every tap, also where distances are added to it.
constexpr int64_t kNoTap = 1 << 30;

template <class K>
struct Sum {
  using Kind = K;
  template <class Other>
  using As = Sum<Other>;
  static constexpr bool kTracks = false;
  static constexpr bool kTakesTwice = false;  // whether an element may be taken twice

  typename K::Value value;
  static Sum nothing(int64_t = kNoTap) { return {K::all(0)}; }
  static Sum one(typename K::Value x, typename K::Id) { return {x}; }
  void take(typename K::Value x, typename K::Id) { value += x; }
  void join(const Sum& other) { value += other.value; }
};

// NaN is larger than every number. Numbers: there is none, and a comparison less.
template <class K, bool Numbers>
struct MaxOf {
  using Kind = K;
  template <class Other>
  using As = MaxOf<Other, Numbers>;
  static constexpr bool kTracks = false;
  static constexpr bool kTakesTwice = true;

  typename K::Value value;
  static MaxOf nothing(int64_t = kNoTap) { return {K::all(-__builtin_inff())}; }
  static MaxOf one(typename K::Value x, typename K::Id) { return {x}; }
  void take(typename K::Value x, typename K::Id) {
    if constexpr (Numbers)
      value = larger(x, value);
    else
      value = choose(greater(x, value) | is_nan(x), x, value);
  }
  void join(const MaxOf& other) { take(other.value, typename K::Id{}); }
};
template <class K>
using Max = MaxOf<K, false>;

// Among equal values the first tap wins, among NaN the last: what PyTorch's loop does, which takes whatever is greater
// than what it has or is NaN.
template <class K, bool Numbers>
struct MaxIdOf {
  using Kind = K;
  template <class Other>
  using As = MaxIdOf<Other, Numbers>;
  static constexpr bool kTracks = true;
  static constexpr bool kTakesTwice = true;

  typename K::Value value;
  typename K::Id id;
  // `first`: the tap that wins where all values are negative infinity.
  static MaxIdOf nothing(int64_t first = kNoTap) { return {K::all(-__builtin_inff()), K::all_ids(first)}; }
  static MaxIdOf one(typename K::Value x, typename K::Id tap) { return {x, tap}; }
  // Of taps in their order.
  void take(typename K::Value x, typename K::Id tap) {
    auto wins = greater(x, value);
    if constexpr (!Numbers) wins = wins | is_nan(x);
    value = choose(wins, x, value);
    id = choose(wins, tap, id);
  }
  // In any order.
  void join(const MaxIdOf& other) {
    auto wins = greater(other.value, value) | (equal(other.value, value) & less(other.id, id));
    if constexpr (!Numbers) wins = wins | (is_nan(other.value) & (equal(value, value) | less(id, other.id)));
    value = choose(wins, other.value, value);
    id = choose(wins, other.id, id);
  }
};
template <class K>
using MaxId = MaxIdOf<K, false>;

// The same for windows in which there is no NaN.
template <class State>
struct NumbersOf {
  using type = State;
};
template <class K>
struct NumbersOf<MaxOf<K, false>> {
  using type = MaxOf<K, true>;
};
template <class K>
struct NumbersOf<MaxIdOf<K, false>> {
  using type = MaxIdOf<K, true>;
};

// A state for each element of a line of memory.
template <class A>
struct Line {
  A* values;
  typename LanesOf<A>::type* ids;  // only where the state tracks them
};

template <class State, class A>
inline State get(const Line<A>& line, int64_t i) {
  State state;
  __builtin_memcpy(&state.value, line.values + i, sizeof state.value);
  if constexpr (State::kTracks) __builtin_memcpy(&state.id, line.ids + i, sizeof state.id);
  return state;
}
template <class State, class A>
inline void set(const Line<A>& line, int64_t i, const State& state) {
  __builtin_memcpy(line.values + i, &state.value, sizeof state.value);
  if constexpr (State::kTracks) __builtin_memcpy(line.ids + i, &state.id, sizeof state.id);
}
// The same, seen from a window whose tap 0 is so many taps before it.
template <class State>
inline State later(State state, int64_t taps) {
  if constexpr (State::kTracks) state.id += State::Kind::all_ids(taps);
  return state;
}

// ---- ids in memory ----

// The lower bits of each lane. These are a few instructions, for which g++ takes the lanes apart: a row of 28 windows
// of 2x2 with ids took 77 cycles so with AVX-512.
template <class Id, class A>
inline auto narrow_ids(Lanes<A> v) {
  typedef Id Narrow __attribute__((vector_size(sizeof(Id) * kLanes<A>)));
#if defined(__AVX512F__)
  if constexpr (sizeof(Id) == 1 && sizeof(A) == 4)
    return bits_as<Narrow>(_mm512_maskz_cvtepi32_epi8(0xffff, bits_as<__m512i>(v)));
  else if constexpr (sizeof(Id) == 2 && sizeof(A) == 4)
    return bits_as<Narrow>(_mm512_maskz_cvtepi32_epi16(0xffff, bits_as<__m512i>(v)));
  else if constexpr (sizeof(Id) == 1)
    return bits_as<Narrow>(_mm_cvtsi128_si64(_mm512_maskz_cvtepi64_epi8(0xff, bits_as<__m512i>(v))));
  else
#elif defined(__AVX2__)
  const __m256i lanes = bits_as<__m256i>(v & static_cast<Id>(~Id{0}));
  if constexpr (sizeof(Id) < 4 && sizeof(A) == 4) {
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    if constexpr (sizeof(Id) == 2)
      return bits_as<Narrow>(halves);
    else
      return bits_as<Narrow>(_mm_cvtsi128_si64(_mm_packus_epi16(halves, halves)));
  } else if constexpr (sizeof(Id) == 1) {
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    const __m128i halves = _mm_packus_epi32(words, words);  // every second of the words is zero
    return bits_as<Narrow>(_mm_cvtsi128_si32(_mm_packus_epi16(halves, halves)));
  } else
#endif
    return __builtin_convertvector(v, Narrow);
}

template <class Id, class A>
inline void store_ids_as(void* ids, int64_t at, Lanes<A> v, int n) {
  const auto narrow = narrow_ids<Id, A>(v);
  Id* to = static_cast<Id*>(ids) + at;
  if (n == kLanes<A>) {
    __builtin_memcpy(to, &narrow, sizeof narrow);
    return;
  }
#if defined(__AVX512F__)
  if constexpr (sizeof narrow == 16 && sizeof(Id) == 1) {
    _mm_mask_storeu_epi8(to, static_cast<__mmask16>((1u << n) - 1), bits_as<__m128i>(narrow));
    return;
  }
#endif
  for (int i = 0; i < n; ++i) to[i] = narrow[i];
}
// The first n lanes.
template <class A>
inline void store_ids(void* ids, int bytes, int64_t at, Lanes<A> v, int n) {
  if (bytes == 1) return store_ids_as<uint8_t, A>(ids, at, v, n);
  if (bytes == 2) return store_ids_as<uint16_t, A>(ids, at, v, n);
  store_ids_as<uint32_t, A>(ids, at, v, n);
}

// Which of the lanes' ids are `tap`.
template <class A, class Id>
inline Mask<A> ids_equal(const Id* ids, Id tap) {
  typedef Id Narrow __attribute__((vector_size(sizeof(Id) * kLanes<A>)));
  Narrow narrow;
  __builtin_memcpy(&narrow, ids, sizeof narrow);
#if defined(__AVX512F__)
  if constexpr (sizeof narrow == 16 && sizeof(Id) == 1)  // bytes give the mask of the lanes as they are
    return {_mm_cmpeq_epi8_mask(bits_as<__m128i>(narrow), _mm_set1_epi8(static_cast<char>(tap)))};
  if constexpr (sizeof narrow == 32 && sizeof(Id) == 2)
    return {_mm256_cmpeq_epi16_mask(bits_as<__m256i>(narrow), _mm256_set1_epi16(static_cast<short>(tap)))};
#elif defined(__AVX2__)
  if constexpr (sizeof(Id) == 1 && sizeof(A) == 4)
    return equal(bits_as<Lanes<A>>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bits_as<int64_t>(narrow)))),
                 Wide<A>::all_ids(tap));
#endif
  return equal(__builtin_convertvector(narrow, Lanes<A>), Wide<A>::all_ids(tap));
}
// Calls body with an id of the type that ids are kept in.
template <class Body>
inline auto with_id_type(int bytes, const Body& body) {
  if (bytes == 1) return body(uint8_t{});
  if (bytes == 2) return body(uint16_t{});
  return body(uint32_t{});
}
inline int64_t load_id(const void* ids, int bytes, int64_t at) {
  if (bytes == 1) return static_cast<const uint8_t*>(ids)[at];
  if (bytes == 2) return static_cast<const uint16_t*>(ids)[at];
  return static_cast<const uint32_t*>(ids)[at];
}

}  // namespace
}  // namespace fastconv
