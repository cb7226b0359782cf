// From the input to the output: which of the ways to walk the windows (pixels.h, lines.h, strips.h, spans.h, running.h)
// is taken for which, for every state of state.h.
#pragma once
#include "pool/lines.h"
#include "pool/pixels.h"
#include "pool/running.h"
#include "pool/spans.h"
#include "pool/strips.h"

namespace fastconv {
namespace {

// Where windows are as wide as the rows and there is one for each plane, rows are joined into one long row; taps are
// counted as before.
inline PoolParams joined_planes(const PoolParams& p) {
  PoolParams q = p;
  const bool whole = p.h.adaptive && p.w.adaptive && p.h.outputs == 1 && p.w.outputs == 1;
  if (p.channels_last || !whole) return q;
  q.w.size = q.w.kernel = p.h.size * p.w.size;
  q.h.size = q.h.kernel = 1;
  return q;
}

// Whether spans take fewer steps than a line: that is joined window by window, where the stride is not 1 or 2.
template <class T>
inline bool spans_pay(const PoolParams& p) {
  constexpr int64_t L = kLanes<Accumulate<T>>, kJoin = 3;  // steps of joining the lanes of a window
  if (p.w.dilation > 1 || (!p.w.adaptive && p.w.stride <= 2)) return false;
  const int64_t line = p.h.kernel * ((p.w.size + L - 1) / L) + p.w.outputs * p.w.kernel;
  return p.w.outputs * (p.h.kernel * ((p.w.kernel + L - 1) / L) + kJoin) < line;
}

// Taps that `lines` saves must pay for the line.
constexpr int64_t kPixelTaps = 9;

template <class T, template <class> class StateOf>
struct Forward {
  using State = StateOf<Wide<Accumulate<T>>>;

  template <class Body>
  static auto choose_walk(const PoolParams& given, const Body& body) {
    const PoolParams p = joined_planes(given);
    if (running_fits<T, State>(p))
      return running_pairs<T, State>(p) ? body(p, Running<T, State, 2>{}) : body(p, Running<T, State, 1>{});
    if (p.channels_last) {
      const bool even = !kAdds<State> || common_divisor(p) != 0;
      if (!p.w.adaptive && p.w.stride == 1 && p.h.kernel * p.w.kernel >= kPixelTaps && even)
        return body(p, Lines<T, State>{});
      return body(p, Pixels<T, State>{});
    }
    if (strips_fit(p)) return with_strips<T, State>(p, body);
    if (spans_pay<T>(p)) return body(p, Spans<T, State>{});
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
