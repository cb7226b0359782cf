// pixels: channels_last memory; vectors run along the channels, windows are walked tap by tap.
#pragma once
#include <type_traits>

#include "pool/walk.h"

namespace fastconv {
namespace {

// Vectors of channels that one pass over a window reduces.
template <class State>
constexpr int kPixelVectors = (kVecRegisters == 32 ? 16 : 8) / (State::kTracks ? 2 : 1);

// Count vectors of channels of one window; the last has n lanes. Where State is the one for numbers alone nothing is
// written if there is a NaN, and false returned.
template <class T, class State, int Count, bool kLooks>
inline bool try_pixel(const PoolParams& p, const T* image, const Reach& h, const Reach& w, int64_t at, int64_t channel,
                      int n, Accumulate<T> scale) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  State state[Count];
#pragma GCC unroll 16
  for (int u = 0; u < Count; ++u) state[u] = State::nothing(h.begin * p.w.kernel + w.begin);
  const int64_t step = p.w.dilation * p.C;
  Mask<A> nan = {};
  for (int64_t r = h.begin; r < h.end; ++r) {
    const T* x = image + ((h.first + r * p.h.dilation) * p.w.size + w.first) * p.C + w.begin * step + channel;
    int64_t tap = r * p.w.kernel + w.begin;
    for (int s = w.begin; s < w.end; ++s, x += step, ++tap) {
      const auto id = State::Kind::all_ids(tap);
      Vec<A> v[Count];
#pragma GCC unroll 16
      for (int u = 0; u < Count; ++u) {
        const bool whole = u + 1 < Count || n == L;
        v[u] = whole ? load(x + u * L) : load_partial(x + u * L, n);
        state[u].take(v[u], id);
        if (kLooks && (Count == 1 || u % 2)) nan = nan | either_nan(v[u], v[Count == 1 ? 0 : u - 1]);
      }
    }
  }
  if (kLooks && any(nan)) return false;
#pragma GCC unroll 16
  for (int u = 0; u < Count; ++u) {
    if constexpr (kAdds<State>) state[u].value *= splat(scale);
    write<T>(p, at + channel + u * L, state[u], u + 1 < Count ? L : n);
  }
  return true;
}
template <class T, class State, int Count>
inline void reduce_pixel(const PoolParams& p, const T* image, const Reach& h, const Reach& w, int64_t at,
                         int64_t channel, int n, Accumulate<T> scale) {
  using Numbers = typename NumbersOf<State>::type;
  constexpr bool kLooks = !std::is_same_v<Numbers, State>;
  if (!try_pixel<T, Numbers, Count, kLooks>(p, image, h, w, at, channel, n, scale))
    try_pixel<T, State, Count, false>(p, image, h, w, at, channel, n, scale);
}

// Large windows of many channels: pixel by pixel, in the order of the memory, with the states of all channels in a line
// that stays in the first level of the caches; four pixels at a time, so that it is read and written for every fourth.
// (Means of 30x30 windows of 2048 channels took 1.1 ms register by register, which jumps from pixel to pixel.)
template <class T, class State>
inline void reduce_by_pixels(const PoolParams& p, const Line<Accumulate<T>>& line, const T* image, const Reach& h,
                             const Reach& w, int64_t at, int64_t from, int64_t to, Accumulate<T> scale) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const auto channels = [&](const auto& body) {
    int64_t c = from;
    for (; c + L <= to; c += L) body(c, L);
    if (c < to) body(c, static_cast<int>(to - c));
  };
  channels([&](int64_t c, int) { set(line, c - from, State::nothing(h.begin * p.w.kernel + w.begin)); });
  const int64_t step = p.w.dilation * p.C;
  for (int64_t r = h.begin; r < h.end; ++r) {
    const T* row = image + ((h.first + r * p.h.dilation) * p.w.size + w.first) * p.C;
    const auto pixels = [&](int64_t s, auto count) {
      channels([&](int64_t c, int n) {
        State state = get<State>(line, c - from);
#pragma GCC unroll 4
        for (int i = 0; i < decltype(count)::value; ++i) {
          const T* x = row + (s + i) * step + c;
          __builtin_prefetch(x + 4 * step, 0, 2);  // 2048@60 to 2, one thread: 0.84 -> 0.70 ms, maxima 1.44 -> 0.64
          state.take(n == L ? load(x) : load_partial(x, n), State::Kind::all_ids(r * p.w.kernel + s + i));
        }
        set(line, c - from, state);
      });
    };
    int64_t s = w.begin;
    for (; s + 4 <= w.end; s += 4) pixels(s, std::integral_constant<int, 4>{});
    for (; s < w.end; ++s) pixels(s, std::integral_constant<int, 1>{});
  }
  channels([&](int64_t c, int n) {
    State state = get<State>(line, c - from);
    if constexpr (kAdds<State>) state.value *= splat(scale);
    write<T>(p, at + c, state, n);
  });
}

template <class T, class State>
struct Pixels {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>, kMost = kPixelVectors<State>;
  static constexpr int64_t kLargeTaps = 64;
  // From how many taps on what comes next is fetched: windows of fewer leave no time for it (64@360, 2x2: 1.3 -> 1.5
  // ms, 64@112, 3x3 of stride 2, 8 images: 1.6 -> 1.2).
  static constexpr int64_t kFetchedTaps = 9;
  static constexpr int64_t kMostFetched = 64 * 64 / sizeof(T);  // with each window, in elements

  static bool by_pixels(const PoolParams& p) { return p.h.kernel * p.w.kernel >= kLargeTaps && p.C > kMost * L; }
  // Few rows are shared out by their channels; into as few parts as there must be where whole pixels are read in order.
  static int64_t share(const PoolParams& p) {
    const int64_t rows = p.N * p.h.outputs, wanted = by_pixels(p) ? p.threads : 4 * p.threads;
    return rows >= wanted ? p.C : ((p.C * rows + wanted - 1) / wanted + 4 * L - 1) / (4 * L) * 4 * L;
  }
  static int64_t thread_elements(const PoolParams& p) { return by_pixels(p) ? share(p) + L : 0; }
  static int64_t table_bytes(const PoolParams& p) { return (reach_bytes(p.w) + 63) / 64 * 64; }
  static int64_t scratch(const PoolParams& p) {
    const int64_t bytes = static_cast<int64_t>(sizeof(A)) * (State::kTracks ? 2 : 1);
    return table_bytes(p) + p.threads * thread_elements(p) * bytes;
  }

  static void run(const PoolParams& p, void* memory) {
    const double common = kAdds<State> ? common_divisor(p) : 1;
    const Reach* columns = all_reaches(p.w, memory);
    A* lines = reinterpret_cast<A*>(static_cast<char*>(memory) + table_bytes(p));
    const int64_t elements = thread_elements(p), rows = p.N * p.h.outputs;
    const int64_t part = share(p), parts = (p.C + part - 1) / part;
    const bool fetches = elements == 0 && parts == 1 && p.h.dilation == 1 && p.h.kernel * p.w.kernel >= kFetchedTaps &&
                         fetching_pays<T>(p);
    parallel_for(p.threads, rows * parts, [&](int64_t item, int thread) {
      const int64_t row = item / parts, n = row / p.h.outputs, o = row % p.h.outputs;
      const int64_t from = item % parts * part, to = from + part < p.C ? from + part : p.C;
      const Reach h = reach_of(p.h, o);
      const T* image = static_cast<const T*>(p.input) + n * p.h.size * p.w.size * p.C;
      A* values = lines + thread * elements * (State::kTracks ? 2 : 1);
      const Line<A> line = {values, reinterpret_cast<typename LanesOf<A>::type*>(values + elements)};
      A scale = static_cast<A>(1 / common);
      NextItem next;
      if (fetches && item + 1 < rows) {
        // The rows that the next windows have and these do not.
        const bool last = o + 1 == p.h.outputs;
        const Reach after = reach_of(p.h, last ? 0 : o + 1);
        const int64_t begin = last ? p.h.size : max64(h.first + h.end, after.first + after.begin);
        const int64_t end = after.first + after.end + (last ? p.h.size : 0), pixels = p.w.size * p.C;
        const int64_t read = min64((end - begin) * pixels, p.w.outputs * kMostFetched);
        next = NextItem::of(image + begin * pixels, read, static_cast<const T*>(nullptr), 0, p.w.outputs);
      }
      for (int64_t q = 0; q < p.w.outputs; ++q) {
        next.fetch();
        if (common == 0) scale = static_cast<A>(1 / window_count(p, o, q));
        const int64_t at = (row * p.w.outputs + q) * p.C;
        if (elements > 0) {
          reduce_by_pixels<T, State>(p, line, image, h, columns[q], at, from, to, scale);
          continue;
        }
        int64_t c = from;
        for (; c + kMost * L <= to; c += kMost * L)
          reduce_pixel<T, State, kMost>(p, image, h, columns[q], at, c, L, scale);
        for (; c + 4 * L <= to; c += 4 * L) reduce_pixel<T, State, 4>(p, image, h, columns[q], at, c, L, scale);
        for (; c + L <= to; c += L) reduce_pixel<T, State, 1>(p, image, h, columns[q], at, c, L, scale);
        if (c < to) reduce_pixel<T, State, 1>(p, image, h, columns[q], at, c, static_cast<int>(to - c), scale);
      }
    });
  }
};

}  // namespace
}  // namespace fastconv
