// The square root of the sum of squares of each window: the walks of pixels.h and lines.h with a state of its own,
// whose results go through a square root on their way to memory.
#pragma once
#include "pool/forward.h"

namespace fastconv {
namespace {

template <class K>
struct Squares {
  using Kind = K;
  template <class Other>
  using As = Squares<Other>;
  static constexpr bool kTracks = false;
  static constexpr bool kTakesTwice = false;

  typename K::Value value;
  static Squares nothing(int64_t = kNoTap) { return {K::all(0)}; }
  void take(typename K::Value x, typename K::Id) { value += x * x; }
  void join(const Squares& other) { value += other.value; }
};
template <class K>
constexpr bool kAdds<Squares<K>> = true;

// The walks call this in place of their own `write`. Where a divisor is given it is 1; else the value is a mean, which
// counts for as many elements as a whole window has.
template <class T, class K>
inline void write(const PoolParams& p, int64_t at, const Squares<K>& state, int n) {
  using A = Accumulate<T>;
  const A factor = static_cast<A>(p.divisor != 0 ? 1 : p.h.kernel * p.w.kernel);
  const Vec<A> norm = square_root(state.value * splat(factor));
  T* to = static_cast<T*>(p.output) + at;
  if (n == kLanes<A>)
    store(to, norm);
  else
    store_partial(to, norm, n);
}

// Not `spans`, which writes single values and knows no square root; lines serve its windows as well.
template <class T>
struct L2Forward {
  using State = Squares<Wide<Accumulate<T>>>;

  template <class Body>
  static auto choose_walk(const PoolParams& p, const Body& body) {
    const bool even = common_divisor(p) != 0;
    if (p.channels_last && (p.w.stride > 1 || p.h.kernel * p.w.kernel < kPixelTaps || !even))
      return body(p, Pixels<T, State>{});
    if (strips_fit(p)) return with_strips<T, State>(p, body);
    return body(p, Lines<T, State>{});
  }
  static int64_t scratch(const PoolParams& given) {
    return choose_walk(given, [](const PoolParams& p, auto walk) { return decltype(walk)::scratch(p); });
  }
  static void run(const PoolParams& given, void* memory) {
    choose_walk(given, [&](const PoolParams& p, auto walk) { decltype(walk)::run(p, memory); });
  }
};

}  // namespace
}  // namespace fastconv
