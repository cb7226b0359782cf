// spans: contiguous memory; vectors run along the columns of one window, whose lanes are joined in the end. For windows
// that are wide and overlap little, down to one window that is the whole plane.
#pragma once
#include "pool/walk.h"

namespace fastconv {
namespace {

template <class T, class State>
struct Spans {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static int64_t scratch(const PoolParams& p) { return reach_bytes(p.w); }

  static auto window(const PoolParams& p, const T* plane, const Reach& h, const Reach& w) {
    typename State::Kind::Id lane;
    for (int i = 0; i < L; ++i) lane[i] = static_cast<uint32_t>(i);
    State state = State::nothing();
    for (int64_t r = h.begin; r < h.end; ++r) {
      const T* row = plane + (h.first + r * p.h.dilation) * p.w.size + w.first;
      int64_t s = w.begin;
      for (; s + L <= w.end; s += L) state.take(load(row + s), lane + State::Kind::all_ids(r * p.w.kernel + s));
      if (s < w.end) {
        const int n = static_cast<int>(w.end - s);
        State more = state;
        more.take(load_partial(row + s, n), lane + State::Kind::all_ids(r * p.w.kernel + s));
        const Mask<A> inside = less(lane, State::Kind::all_ids(n));
        state.value = choose(inside, more.value, state.value);
        if constexpr (State::kTracks) state.id = choose(inside, more.id, state.id);
      }
    }
    auto one = joined(state);
    if constexpr (State::kTracks)  // nothing was greater than negative infinity
      if (one.id == kNoTap) one.id = static_cast<typename LanesOf<A>::type>(h.begin * p.w.kernel + w.begin);
    return one;
  }

  static void run(const PoolParams& p, void* memory) {
    const int64_t rows = p.N * p.C * p.h.outputs, per_item = rows_of_item(p, rows, p.w.size * p.h.kernel);
    const double common = kAdds<State> ? common_divisor(p) : 1;
    const Reach* columns = all_reaches(p.w, memory);
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int) {
      const int64_t begin = item * per_item, end = begin + per_item < rows ? begin + per_item : rows;
      int64_t plane = begin / p.h.outputs, o = begin % p.h.outputs;
      for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(p.input) + plane * p.h.size * p.w.size;
        const Reach h = reach_of(p.h, o);
        for (int64_t q = 0; q < p.w.outputs; ++q) {
          auto one = window(p, x, h, columns[q]);
          const int64_t at = row * p.w.outputs + q;
          if constexpr (kAdds<State>) one.value /= static_cast<A>(common != 0 ? common : window_count(p, o, q));
          put(static_cast<T*>(p.output) + at, one.value);
          if constexpr (State::kTracks) store_ids<A>(p.ids, p.id_bytes, at, splat(one.id), 1);
        }
        if (++o == p.h.outputs) {
          o = 0;
          ++plane;
        }
      }
    });
  }
};

}  // namespace
}  // namespace fastconv
