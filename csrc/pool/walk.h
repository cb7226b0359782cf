// What the ways to walk the windows have in common (pixels.h, lines.h, strips.h, spans.h, running.h): what a mean
// divides by, how results are written, which taps of a window are in the input, and how work is handed out.
#pragma once
#include "core/move.h"
#include "core/parallel.h"
#include "pool/state.h"

namespace fastconv {
namespace {

template <class State>
constexpr bool kAdds = false;
template <class K>
constexpr bool kAdds<Sum<K>> = true;

// What the mean of one window divides by.
inline double window_count(const PoolParams& p, int64_t o, int64_t q) {
  return static_cast<double>(p.h.count(o, p.padding_counts) * p.w.count(q, p.padding_counts));
}

// What it divides by where that is the same for all windows, else 0.
inline double common_divisor(const PoolParams& p) {
  if (p.divisor != 0) return p.divisor;
  for (const PoolAxis* axis : {&p.h, &p.w}) {
    const int64_t first = axis->count(0, p.padding_counts);
    // Counts differ at the ends alone, except where windows adapt.
    const int64_t from = axis->adaptive && axis->size % axis->outputs ? 1 : axis->outputs - 1;
    for (int64_t o = from; o < axis->outputs; ++o)
      if (axis->count(o, p.padding_counts) != first) return 0;
    if (!axis->adaptive && first != axis->kernel) return 0;
  }
  return window_count(p, 0, 0);
}

template <class T, class State>
inline void write(const PoolParams& p, int64_t at, const State& state, int n) {
  using A = Accumulate<T>;
  T* to = static_cast<T*>(p.output) + at;
  if (n == kLanes<A>)
    store(to, state.value);
  else
    store_partial(to, state.value, n);
  if constexpr (State::kTracks) store_ids<A>(p.ids, p.id_bytes, at, state.id, n);
}

constexpr int64_t kItemElements = 1 << 14;  // of the input: work is handed out in pieces of about so many

// Calls body(j, n) for vectors of [0, count): the last steps back where it would be cut short.
template <class T, class Body>
inline void vectors(int64_t count, const Body& body) {
  constexpr int L = kLanes<Accumulate<T>>;
  if (count < L) return body(0, static_cast<int>(count));
  int64_t j = 0;
  for (; j + L <= count; j += L) body(j, L);
  if (j < count) body(count - L, L);
}

// Rows that are one item of work, of `rows` in all for each of which `read` elements are read.
inline int64_t rows_of_item(const PoolParams& p, int64_t rows, int64_t read) {
  const int64_t enough = kItemElements / (read + 1) + 1, share = rows / (4 * p.threads) + 1;
  return enough < share ? enough : share;
}

// What a thread will read and write after the item it is at: with every step of that some lines are fetched, in the
// order of memory and into the second level (core/ahead.h says why). It pays where tensors are larger than a
// second-level cache: 3x3 windows of stride 1, 64@112, 8 images, contiguous, one thread, 4.8 -> 2.2 ms; where they are
// in it already a row of a block takes a tenth longer. Here all is one run of memory, and a pointer is enough: with
// `Ahead`, which knows of rows and channels, steps of few pixels took longer than without any of it.
constexpr int64_t kFetchBytes = 4 << 20;
class NextItem {
 public:
  // So many elements of T, in so many steps.
  template <class T>
  static NextItem of(const T* input, int64_t read, const T* output, int64_t written, int64_t steps) {
    NextItem next;
    next.input_ = Run(input, read * static_cast<int64_t>(sizeof(T)), steps);
    next.output_ = Run(output, written * static_cast<int64_t>(sizeof(T)), steps);
    return next;
  }
  void fetch() {
    if (__builtin_expect(input_.left == 0, 1))
      return;  // else a loop that has all in registers would make room for this
    input_.fetch<false>();
    output_.fetch<true>();
  }

 private:
  struct Run {
    const char* at = nullptr;
    int64_t left = 0, step = 0;
    Run() = default;
    Run(const void* from, int64_t bytes, int64_t steps)
        : at(static_cast<const char*>(from)), left(ceil_div(bytes, kLine)), step(ceil_div(left, steps)) {}
    template <bool Writes>
    void fetch() {
      const int64_t now = min64(step, left);
      left -= now;
      for (int64_t i = 0; i < now; ++i, at += kLine) __builtin_prefetch(at, Writes, 2);
    }
  };
  static constexpr int64_t kLine = 64;
  Run input_, output_;
};
template <class T>
inline bool fetching_pays(const PoolParams& p) {
  const int64_t elements = p.N * p.C * (p.h.size * p.w.size + p.h.outputs * p.w.outputs);
  return elements * static_cast<int64_t>(sizeof(T)) > kFetchBytes;
}

// Where a window of one axis begins, and which of its taps are in the input: worked out once for each column, because
// windows that adapt take divisions.
struct Reach {
  int64_t first;
  int32_t begin, end;
};
inline Reach reach_of(const PoolAxis& axis, int64_t o) {
  return {axis.first(o), static_cast<int32_t>(axis.begin(o)), static_cast<int32_t>(axis.end(o))};
}
inline int64_t reach_bytes(const PoolAxis& axis) { return axis.outputs * static_cast<int64_t>(sizeof(Reach)); }
inline const Reach* all_reaches(const PoolAxis& axis, void* memory) {
  Reach* reaches = static_cast<Reach*>(memory);
  for (int64_t o = 0; o < axis.outputs; ++o) reaches[o] = reach_of(axis, o);
  return reaches;
}

}  // namespace
}  // namespace fastconv
