// What happens to a result in registers on its way to the output: the residual is added, the activation applied.
#pragma once
#include "conv/params.h"
#include "core/move.h"

namespace fastconv {
namespace {

template <class V>
inline V clamp(V v, V low, V high) {  // NaN stays NaN
  const V raised = v < low ? low : v;
  return raised > high ? high : raised;
}

template <class T>
inline Vec<T> activate(Activation activation, Vec<T> v) {
  const Vec<T> zero = {};
  switch (activation) {
    case Activation::kNone: return v;
    case Activation::kRelu: return v < zero ? zero : v;
    case Activation::kRelu6: return clamp(v, zero, splat(T(6)));
    case Activation::kSilu: return v / (T(1) + exp(-v));
    case Activation::kHardswish: return v * clamp(v + T(3), zero, splat(T(6))) / T(6);
  }
  return v;
}

// Of an output that no cache keeps: 16 MB, and half of the last one. What is stored the ordinary way is first read from
// memory, and then evicts what would still have been used: in memory that is used again stores past the caches saved 10
// to 28 % of the time of such layers (an EPYC). Where the last cache holds 300 MB (a Xeon, two threads), 1x1, 64 to 256
// at 56x56, 8 images, 25.7 MB, took 4.6 ms past the caches and 3.5 the ordinary way. And what is larger than glibc
// keeps is mapped anew by every call, and the system has just cleared its pages through the caches: there a
// channels_last 1x1 layer, 128 to 256 at 196x196, took 29.6 ms past the caches and 26.6 the ordinary way.
constexpr int64_t kStreamBytes = 16 << 20, kMappedBytes = 32 << 20;

template <class T>
struct Finish {
  using A = Accumulate<T>;
  bool plain;        // no residual, no activation, and not
  bool streams;      // past the caches
  int64_t residual;  // bytes from an element of the output to that of the residual; only where `add`
  bool add;
  Activation activation;

  explicit Finish(const ConvParams& p)
      : plain(!p.residual && p.activation == Activation::kNone),
        streams(past_caches(p)),
        residual(static_cast<const char*>(p.residual) - static_cast<const char*>(p.output.data)),
        add(p.residual),
        activation(p.activation) {
    plain = plain && !streams;
  }

  void store(T* to, Vec<A> v) const {
    if (plain)
      fastconv::store(to, v);
    else
      store_otherwise(to, v);
  }
  void store_partial(T* to, Vec<A> v, int n) const {
    if (!plain) v = apply(to, 1, v, n);
    fastconv::store_partial(to, v, n);
  }
  void store_strided(T* to, int64_t step, Vec<A> v, int n) const {
    if (!plain) v = apply(to, step, v, n);
    fastconv::store_strided(to, step, v, n);
  }

 private:
  static bool past_caches(const ConvParams& p) {
    // The output may be a lattice of a larger tensor.
    const int64_t bytes = max64(p.N * p.output.n, p.N * p.G * p.K * p.P * p.Q) * p.element_size();
    return bytes >= max64(kStreamBytes, last_cache_bytes() / 2) && (bytes < kMappedBytes || p.output.c != 1);
  }
  [[gnu::noinline]] void store_otherwise(T* to, Vec<A> v) const {
    if (add || activation != Activation::kNone) v = apply(to, 1, v, kLanes<A>);
    if (streams)
      stream(to, v);
    else
      fastconv::store(to, v);
  }
  // Not inlined: it would stand in every one of hundreds of register tiles.
  [[gnu::noinline]] Vec<A> apply(const T* to, int64_t step, Vec<A> v, int n) const {
    if (add) {
      const T* from = reinterpret_cast<const T*>(reinterpret_cast<const char*>(to) + residual);
      v += load_strided(from, step, n);
    }
    return activate<A>(activation, v);
  }
};

}  // namespace
}  // namespace fastconv
