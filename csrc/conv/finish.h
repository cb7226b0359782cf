// What happens to a result in registers on its way to the output: the residual is added, the activation applied.
#pragma once
#include "conv/move.h"

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

template <class T>
struct Finish {
  using A = Accumulate<T>;
  bool plain;        // neither residual nor activation
  int64_t residual;  // bytes from an element of the output to that of the residual; only where `add`
  bool add;
  Activation activation;

  explicit Finish(const ConvParams& p)
      : plain(!p.residual && p.activation == Activation::kNone),
        residual(static_cast<const char*>(p.residual) - static_cast<const char*>(p.output.data)),
        add(p.residual),
        activation(p.activation) {}

  void store(T* to, Vec<A> v) const {
    if (!plain) v = apply(to, 1, v, kLanes<A>);
    fastconv::store(to, v);
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
