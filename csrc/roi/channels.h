// A few channels of one pixel, which lie side by side in memory: what every loop over the pixels of a bin carries. And
// how maps come into that order.
//
// Contiguous maps are turned over a block of channels at a time, [C, H, W] to [H, W, block], by the thread that then
// does all boxes of the image for that block: 128 bytes a pixel, which stay in the caches. Where the boxes read less
// than that would move, or a map is too large, they read the planes as they are, one channel at a time.
#pragma once
#include <type_traits>

#include "core/mask.h"
#include "core/move.h"
#include "roi/params.h"

namespace fastconv {
namespace {

constexpr int kOne = 0;    // a single channel
constexpr int kPart = -1;  // as many channels as are left, less than a vector

// V vectors; or kOne, or kPart.
template <class A, int V>
struct Channels {
  static constexpr int kVectors = V == kPart ? 1 : V, kCount = kVectors * kLanes<A>;
  Vec<A> v[kVectors];

  // n: of kPart, how many.
  template <class E>
  static Channels load(const E* from, int n) {
    Channels c;
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      if constexpr (V == kPart)
        c.v[i] = load_partial(from, n);
      else
        c.v[i] = fastconv::load(from + i * kLanes<A>);
    }
    return c;
  }
  template <class E>
  void store(E* to, int n) const {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      if constexpr (V == kPart)
        store_partial(to, v[i], n);
      else
        fastconv::store(to + i * kLanes<A>, v[i]);
    }
  }
  static Channels zeros() {
    Channels c;
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) c.v[i] = Vec<A>{};
    return c;
  }
  void add(const Channels& other, A weight) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) v[i] += splat(weight) * other.v[i];
  }
};

template <class A>
struct Channels<A, kOne> {
  static constexpr int kVectors = 1, kCount = 1;
  A v[1];

  template <class E>
  static Channels load(const E* from, int) {
    return {{get(from)}};
  }
  template <class E>
  void store(E* to, int) const {
    put(to, v[0]);
  }
  static Channels zeros() { return {{0}}; }
  void add(const Channels& other, A weight) { v[0] += weight * other.v[0]; }
};

// The largest so far, and where it was: of equal ones the first. NaN is larger than all, and the last of them counts,
// as in max pooling.
template <class A, int V>
struct Largest {
  using Id = Lanes<A>;
  Channels<A, V> value;
  Id id[Channels<A, V>::kVectors];

  static Largest none() {
    Largest l;
    l.value = Channels<A, V>::zeros();
    for (auto& each : l.id) each = ~Id{};
    return l;
  }
  static Largest of(const Channels<A, V>& value, int32_t at) {
    Largest l;
    l.value = value;
    for (auto& each : l.id) each = Id{} + static_cast<uint32_t>(at);
    return l;
  }
  void take(const Channels<A, V>& other, int32_t at) {
    const Id here = Id{} + static_cast<uint32_t>(at);
#pragma GCC unroll 8
    for (int i = 0; i < Channels<A, V>::kVectors; ++i) {
      const Mask<A> wins = greater(other.v[i], value.v[i]) | is_nan(other.v[i]);
      value.v[i] = choose(wins, other.v[i], value.v[i]);
      id[i] = choose(wins, here, id[i]);
    }
  }
  void store_ids(int32_t* to, int n) const {
    if constexpr (sizeof(A) == 4) {
      Channels<A, V> bits;
      for (int i = 0; i < Channels<A, V>::kVectors; ++i) bits.v[i] = bits_as<Vec<A>>(id[i]);
      bits.store(reinterpret_cast<float*>(to), n);
    } else {
      const int count = V == kPart ? n : Channels<A, V>::kCount;
      for (int i = 0; i < count; ++i) to[i] = static_cast<int32_t>(id[i / kLanes<A>][i % kLanes<A>]);
    }
  }
};
template <class A>
struct Largest<A, kOne> {
  Channels<A, kOne> value;
  int32_t id;

  static Largest none() { return {Channels<A, kOne>::zeros(), -1}; }
  static Largest of(const Channels<A, kOne>& value, int32_t at) { return {value, at}; }
  void take(const Channels<A, kOne>& other, int32_t at) {
    const A x = other.v[0];
    if (x <= value.v[0]) return;
    if (!(x > value.v[0]) && x == x) return;  // what is there is NaN
    value = other;
    id = at;
  }
  void store_ids(int32_t* to, int) const { *to = id; }
};

constexpr int64_t kPixelBytes = 128;  // of a block of channels
constexpr int kBlock = static_cast<int>(kPixelBytes / kVecBytes);
constexpr int64_t kMostBlockBytes = 8 << 20;  // of a map, beyond it blocks have a vector

// Planes, `plane` elements from one to the next, to [count, stride], a few lines of each at a time, of which the next
// are fetched meanwhile: so many planes at once are more than processors see coming.
template <class To, class From>
inline void to_pixels(To* to, int64_t stride, const From* from, int64_t plane, int64_t count, int channels) {
  constexpr int64_t kEach = 64, kLine = 64 / static_cast<int64_t>(sizeof(From));
  for (int64_t i = 0; i < count; i += kEach) {
    const int64_t some = min64(kEach, count - i), next = min64(i + 2 * kEach, count);
    for (int c = 0; c < channels; ++c)
      for (int64_t j = i + kEach; j < next; j += kLine) __builtin_prefetch(from + c * plane + j);
    transpose_block(to + i * stride, stride, 1, from + i, plane, 1, channels, some);
  }
}
// And back. What is left after whole squares is turned as one of those as well, over what has been turned already: a
// square that is cut takes several times as long, and 49 bins leave one.
template <class To, class From>
inline void from_pixels(To* to, int64_t plane, const From* from, int64_t stride, int64_t count, int channels) {
  constexpr int64_t L = kLanes<Accumulate<From>>;
  const int64_t whole = count < L ? count : count / L * L, rest = whole < count ? count - L : count;
  transpose_block(to, plane, 1, from, stride, 1, whole, channels);
  transpose_block(to + rest, plane, 1, from + rest * stride, stride, 1, count - rest, channels);
}

// Reads of the map and its size: below this many of the first for one of the second it stays as it is.
constexpr double kReadsToTurn = 0.5;
constexpr double kReadsOfBin = 9;

template <int V>
using Constant = std::integral_constant<int, V>;

// How the channels are dealt out: in blocks of `vectors`, then vectors, then what is left.
template <class A>
struct Blocks {
  static constexpr int L = kLanes<A>;
  int64_t channels;
  int vectors;  // kBlock, 1 or kOne

  int64_t count() const {
    if (vectors == kOne) return channels;
    const int64_t whole = channels / (vectors * L), rest = channels % (vectors * L);
    return whole + rest / L + (rest % L > 0);
  }
  // Calls body(Constant<V>, first channel, channels) for block i.
  template <class Body>
  void with(int64_t i, const Body& body) const {
    if (vectors == kOne) return body(Constant<kOne>{}, i, 1);
    const int64_t whole = channels / (vectors * L);
    if (vectors == kBlock && i < whole) return body(Constant<kBlock>{}, i * kBlock * L, kBlock * L);
    const int64_t c = whole * vectors * L + (i - whole) * L;
    if (c + L <= channels) return body(Constant<1>{}, c, L);
    body(Constant<kPart>{}, c, static_cast<int>(channels - c));
  }
};

}  // namespace
}  // namespace fastconv
