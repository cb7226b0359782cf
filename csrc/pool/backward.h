// From the gradient of the output to that of the input, which is written by whoever owns it: nothing is added by two
// threads, and the order of the sums is always the same.
//
// gather: every element of the input asks the windows that cover it what they have for it: a share of their gradient,
// or all of it where it has won. In contiguous memory the positions of a row are sorted by their residue modulo the
// stride: those of one residue are reached by the same taps, and the windows that reach neighbours are neighbours. The
// usual windows have gather_strips.h, which does that in registers.
//
// scatter.h: where an element is covered by many windows, windows are far apart or rows short, it is cheaper to go
// through the windows and add each one's gradient to its winner.
//
// spread: windows in contiguous memory that adapt, or are far apart, add their share to all of their positions.
//
// Means of stride 1 that all divide by the same need none of these: their gradient is such a mean itself (forward.h).
#pragma once
#include "pool/forward.h"
#include "pool/gather_strips.h"
#include "pool/scatter.h"

namespace fastconv {
namespace {

// The tap of window `o` that is at position `i`, or -1.
inline int64_t tap_at(const PoolAxis& axis, int64_t o, int64_t i) {
  const int64_t distance = i - axis.first(o);
  if (distance < 0 || (axis.dilation > 1 && distance % axis.dilation)) return -1;
  const int64_t tap = axis.dilation > 1 ? distance / axis.dilation : distance;
  return tap < axis.end(o) ? tap : -1;
}

// At most so many windows cover a position.
inline int64_t most_covering(const PoolAxis& axis) {
  const int64_t most = axis.adaptive ? (axis.outputs + axis.size - 1) / axis.size + 1
                                     : (axis.kernel - 1) * axis.dilation / axis.stride + 1;
  return min64(axis.outputs, most);
}
inline int64_t most_covering(const PoolParams& p) {
  int64_t most;
  return __builtin_mul_overflow(most_covering(p.h), most_covering(p.w), &most) ? INT64_MAX : most;
}

constexpr int64_t kMostCovering = 36;  // windows that an element is gathered from, whatever the lanes

// Scattering takes as long whatever the windows, four to five cycles for each; gathering, a few instructions for a
// vector of elements and every window that covers them: the more the fewer lanes there are, and the more where short
// rows of contiguous memory fill them badly. (float32, 16 lanes, two threads, gathered and scattered: contiguous 3x3,
// 256@28 0.19 and 0.17 ms, 64@112 0.43 and 0.63, 4x4 0.64 and 0.57, 7x7 1.5 and 0.61; channels_last 5x5, 256@28 0.15
// and 0.21, 7x7 0.30 and 0.21. float64, 8 lanes: contiguous 3x3, 64@112 1.8 and 0.66, channels_last 1.5 and 1.1.)
template <class T>
inline bool scatters(const PoolParams& p) {
  constexpr int64_t L = kLanes<Accumulate<T>>, kShort = 512;
  static_assert(L <= 16 && 16 <= kMostCovering);
  if (p.channels_last) return most_covering(p) > kMostCovering * L / 16;
  const bool regular = !p.h.adaptive && !p.w.adaptive && p.w.stride <= 2;
  return !regular || most_covering(p) >= L || p.w.size <= kShort / L;
}

// The windows that cover a position of an axis, [begin, end): asked once for each column, because it takes divisions.
struct Covering {
  int64_t begin, end;
};
inline Covering covering_of(const PoolAxis& axis, int64_t i) { return {axis.covering_begin(i), axis.covering_end(i)}; }
inline int64_t covering_bytes(const PoolAxis& axis) { return axis.size * static_cast<int64_t>(sizeof(Covering)); }
inline const Covering* all_covering(const PoolAxis& axis, void* memory) {
  Covering* covering = static_cast<Covering*>(memory);
  for (int64_t i = 0; i < axis.size; ++i) covering[i] = covering_of(axis, i);
  return covering;
}

// Calls body(channel, vectors, lanes of the last) for the channels of a pixel, four vectors at a time where there are.
template <class A, class Body>
inline void channel_vectors(int64_t channels, const Body& body) {
  constexpr int L = kLanes<A>;
  int64_t c = 0;
  for (; c + 4 * L <= channels; c += 4 * L) body(c, std::integral_constant<int, 4>{}, L);
  for (; c + L <= channels; c += L) body(c, std::integral_constant<int, 1>{}, L);
  if (c < channels) body(c, std::integral_constant<int, 1>{}, static_cast<int>(channels - c));
}

// ---- gather, channels_last ----

template <class T, class Id>
struct WinnersOfPixels {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static int64_t scratch(const PoolParams& p) { return covering_bytes(p.w); }

  // A window, and the tap by which it reaches the pixel.
  struct Reached {
    int64_t at;
    Id tap;
  };

  // Ids are read as whole vectors: where those end beyond the tensor, from a copy.
  static Mask<A> won(const Id* ids, Id tap, int lanes) {
    if (lanes == L) return ids_equal<A>(ids, tap);
    Id copy[L] = {};
    for (int i = 0; i < lanes; ++i) copy[i] = ids[i];
    return ids_equal<A>(copy, tap);
  }

  static void run(const PoolParams& p, void* scratch) {
    const Covering* columns = all_covering(p.w, scratch);
    parallel_for(p.threads, p.N * p.h.size, [&](int64_t row, int) {
      const int64_t n = row / p.h.size, h = row % p.h.size;
      Reached rows[kMostCovering], reached[kMostCovering];
      int row_count = 0;
      const Covering covering = covering_of(p.h, h);
      for (int64_t o = covering.begin; o < covering.end; ++o) {
        const int64_t r = tap_at(p.h, o, h);
        if (r >= 0) rows[row_count++] = {(n * p.h.outputs + o) * p.w.outputs * p.C, static_cast<Id>(r * p.w.kernel)};
      }
      const Id* ids = static_cast<const Id*>(p.ids);
      const T* grads = static_cast<const T*>(p.output);
      for (int64_t w = 0; w < p.w.size; ++w) {
        int count = 0;
        for (int64_t q = columns[w].begin; q < columns[w].end; ++q) {
          const int64_t s = tap_at(p.w, q, w);
          for (int i = 0; s >= 0 && i < row_count; ++i)
            reached[count++] = {rows[i].at + q * p.C, static_cast<Id>(rows[i].tap + s)};
        }
        T* to = static_cast<T*>(p.input) + (row * p.w.size + w) * p.C;
        channel_vectors<A>(p.C, [&](int64_t c, auto vectors, int last) {
          constexpr int kCount = decltype(vectors)::value;
          Vec<A> sum[kCount] = {};
          for (int i = 0; i < count; ++i) {
            const int64_t at = reached[i].at + c;
#pragma GCC unroll 4
            for (int u = 0; u < kCount; ++u) {
              const Vec<A> g = last == L ? load(grads + at + u * L) : load_partial(grads + at + u * L, last);
              sum[u] = add_where(won(ids + at + u * L, reached[i].tap, last), g, sum[u]);
            }
          }
#pragma GCC unroll 4
          for (int u = 0; u < kCount; ++u) {
            if (last == L)
              store(to + c + u * L, sum[u]);
            else
              store_partial(to + c + u * L, sum[u], last);
          }
        });
      }
    });
  }
};

template <class T>
struct SharesOfPixels {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static int64_t scratch(const PoolParams& p) { return covering_bytes(p.w); }

  static void run(const PoolParams& p, void* scratch) {
    const double common = common_divisor(p);
    const Covering* columns = all_covering(p.w, scratch);
    parallel_for(p.threads, p.N * p.h.size, [&](int64_t row, int) {
      const int64_t n = row / p.h.size;
      const Covering rows = covering_of(p.h, row % p.h.size);
      for (int64_t w = 0; w < p.w.size; ++w) {
        T* to = static_cast<T*>(p.input) + (row * p.w.size + w) * p.C;
        channel_vectors<A>(p.C, [&](int64_t c, auto vectors, int last) {
          constexpr int kCount = decltype(vectors)::value;
          Vec<A> sum[kCount] = {};
          for (int64_t o = rows.begin; o < rows.end; ++o)
            for (int64_t q = columns[w].begin; q < columns[w].end; ++q) {
              const T* grad = static_cast<const T*>(p.output) + ((n * p.h.outputs + o) * p.w.outputs + q) * p.C + c;
              const Vec<A> weight = splat(static_cast<A>(common != 0 ? 1 : 1 / window_count(p, o, q)));
#pragma GCC unroll 4
              for (int u = 0; u < kCount; ++u)
                sum[u] += (last == L ? load(grad + u * L) : load_partial(grad + u * L, last)) * weight;
            }
#pragma GCC unroll 4
          for (int u = 0; u < kCount; ++u) {
            if (common != 0) sum[u] *= splat(static_cast<A>(1 / common));
            if (last == L)
              store(to + c + u * L, sum[u]);
            else
              store_partial(to + c + u * L, sum[u], last);
          }
        });
      }
    });
  }
};

// ---- gather, contiguous, strides of 1 and 2 ----

// Position w of the input has w + padding = j * stride + phase; tap s of window j - shift reaches it, where
// shift * stride + phase = s * dilation. How rows of windows and of sums lie in scratch memory:
struct GatherShape {
  int64_t places;    // numbers of j
  int64_t before;    // most shifts: window 0 lies so far behind the beginning of its row
  int64_t elements;  // of a row of windows
  int64_t sums;      // of a row of sums
  int64_t kept;      // rows of windows that cover one row of the input

  explicit GatherShape(const PoolParams& p) {
    places = (p.w.size - 1 + p.w.padding) / p.w.stride + 1;
    before = (p.w.kernel - 1) * p.w.dilation / p.w.stride;
    elements = (before + places + kSlack + 15) / 16 * 16;
    sums = (places + kSlack) * p.w.stride;
    kept = most_covering(p.h);
  }
};

// The taps of one phase: tap, tap + period, ..., which reach windows `shift`, shift + step, ... before.
struct Phase {
  int64_t tap, period, shift, step;
};
inline Phase phase_of(const PoolAxis& axis, int64_t phase) {
  const int64_t period = axis.stride == 2 && axis.dilation % 2 ? 2 : 1;
  for (int64_t s = 0; s < axis.kernel && s < period; ++s)
    if (s * axis.dilation % axis.stride == phase)
      return {s, period, s * axis.dilation / axis.stride, period * axis.dilation / axis.stride};
  return {axis.kernel, 1, 0, 0};
}

// Neighbouring vectors of a row of sums: each addition waits for the one before it, those of another vector do not.
template <class A>
struct Pair {
  Vec<A> v[2];
};

// A row of sums, of vectors that gather(phase, j) computes, to a row of the input's gradient.
template <class T, class Gather>
inline void gather_row(const PoolParams& p, const GatherShape& shape, const Phase* phases, Accumulate<T>* sums, T* to,
                       const Gather& gather) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < shape.places; j += 2 * L) {
    const Pair<A> first = gather(phases[0], j);
    if (p.w.stride == 1) {
      store(sums + j, first.v[0]);
      store(sums + j + L, first.v[1]);
      continue;
    }
    const Pair<A> second = gather(phases[1], j);
    for (int i = 0; i < 2; ++i) {
      Vec<A> low, high;
      zip(first.v[i], second.v[i], low, high, std::make_integer_sequence<int, L>{});
      store(sums + 2 * (j + i * L), low);
      store(sums + 2 * (j + i * L) + L, high);
    }
  }
  vectors<T>(p.w.size, [&](int64_t w, int n) {
    const Vec<A> v = load(sums + p.w.padding + w);
    if (n == L)
      store(to + w, v);
    else
      store_partial(to + w, v, n);
  });
}

// Zeros where there is no window: before the first and behind the last.
template <class A>
inline void clear_ends(const GatherShape& shape, const PoolParams& p, A* row) {
  constexpr int L = kLanes<A>;
  for (int64_t i = 0; i < shape.before; i += L) store(row + i, Vec<A>{});
  for (int64_t i = shape.before + p.w.outputs; i + L <= shape.elements; i += L) store(row + i, Vec<A>{});
}

template <class T, class Id>
struct WinnersOfLines {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static int64_t thread_bytes(const PoolParams& p) {
    const GatherShape shape(p);
    const int64_t windows = shape.kept * shape.elements * static_cast<int64_t>(sizeof(A) + sizeof(Id));
    return (windows + shape.sums * static_cast<int64_t>(sizeof(A)) + 63) / 64 * 64;
  }
  static int64_t scratch(const PoolParams& p) { return p.threads * thread_bytes(p); }

  // A kept row of windows, and the tap by which it reaches the row of the input that is being computed.
  struct Reached {
    const A* grads;
    const Id* ids;
    Id tap;
  };

  static void run(const PoolParams& p, void* scratch) {
    const GatherShape shape(p);
    const Phase phases[2] = {phase_of(p.w, 0), phase_of(p.w, 1)};
    const int64_t bytes = thread_bytes(p), rows = p.N * p.C * p.h.size, per_item = rows_of_item(p, rows, p.w.size);
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int thread) {
      A* sums = reinterpret_cast<A*>(static_cast<char*>(scratch) + thread * bytes);
      A* grads = sums + shape.sums;  // [kept, elements]
      Id* ids = reinterpret_cast<Id*>(grads + shape.kept * shape.elements);
      for (int64_t slot = 0; slot < shape.kept; ++slot) clear_ends(shape, p, grads + slot * shape.elements);
      const int64_t begin = item * per_item, end = begin + per_item < rows ? begin + per_item : rows;
      int64_t plane = begin / p.h.size, h = begin % p.h.size, next = p.h.covering_begin(h);
      for (int64_t row = begin; row < end; ++row) {
        const Covering covering = covering_of(p.h, h);
        if (next < covering.begin) next = covering.begin;
        for (; next < covering.end; ++next) {  // rows of windows that this row is the first to need
          const int64_t at = (plane * p.h.outputs + next) * p.w.outputs;
          const int64_t to = next % shape.kept * shape.elements + shape.before;
          const T* from = static_cast<const T*>(p.output) + at;
          vectors<T>(p.w.outputs, [&](int64_t q, int n) {
            if (n == L)
              store(grads + to + q, load(from + q));
            else
              for (int i = 0; i < n; ++i) grads[to + q + i] = get(from + q + i);
          });
          __builtin_memcpy(ids + to, static_cast<const Id*>(p.ids) + at, static_cast<size_t>(p.w.outputs) * sizeof(Id));
        }
        Reached reached[kMostCovering];
        int count = 0;
        for (int64_t o = covering.begin; o < covering.end; ++o) {
          const int64_t r = tap_at(p.h, o, h), at = o % shape.kept * shape.elements + shape.before;
          if (r >= 0) reached[count++] = {grads + at, ids + at, static_cast<Id>(r * p.w.kernel)};
        }
        gather_row<T>(p, shape, phases, sums, static_cast<T*>(p.input) + row * p.w.size,
                      [&](const Phase& phase, int64_t j) {
                        Pair<A> sum = {};
                        for (int i = 0; i < count; ++i) {
                          int64_t at = j - phase.shift;
                          for (int64_t s = phase.tap; s < p.w.kernel; s += phase.period, at -= phase.step) {
                            const Id tap = static_cast<Id>(reached[i].tap + s);
                            for (int u = 0; u < 2; ++u)
                              sum.v[u] = add_where(ids_equal<A>(reached[i].ids + at + u * L, tap),
                                                   load(reached[i].grads + at + u * L), sum.v[u]);
                          }
                        }
                        return sum;
                      });
        if (++h == p.h.size) {
          h = next = 0;
          ++plane;
        }
      }
    });
  }
};

template <class T>
struct SharesOfLines {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static int64_t thread_bytes(const PoolParams& p) {
    const GatherShape shape(p);
    return (shape.elements + shape.sums + p.w.outputs + kSlack) * static_cast<int64_t>(sizeof(A)) / 64 * 64 + 64;
  }
  static int64_t scratch(const PoolParams& p) { return p.threads * thread_bytes(p); }

  static void run(const PoolParams& p, void* scratch) {
    const GatherShape shape(p);
    const Phase phases[2] = {phase_of(p.w, 0), phase_of(p.w, 1)};
    const double common = common_divisor(p);
    const int64_t bytes = thread_bytes(p), rows = p.N * p.C * p.h.size, per_item = rows_of_item(p, rows, p.w.size);
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int thread) {
      A* sums = reinterpret_cast<A*>(static_cast<char*>(scratch) + thread * bytes);
      A* grads = sums + shape.sums;        // [elements], of the windows that cover a row
      A* shares = grads + shape.elements;  // [outputs], of the columns where divisors differ
      clear_ends(shape, p, grads);
      if (common == 0)
        for (int64_t q = 0; q < p.w.outputs; ++q)
          shares[q] = static_cast<A>(1 / static_cast<double>(p.w.count(q, p.padding_counts)));
      const int64_t begin = item * per_item, end = begin + per_item < rows ? begin + per_item : rows;
      int64_t plane = begin / p.h.size, h = begin % p.h.size;
      for (int64_t row = begin; row < end; ++row) {
        const Covering covering = covering_of(p.h, h);
        const T* from = static_cast<const T*>(p.output) + plane * p.h.outputs * p.w.outputs;
        vectors<T>(p.w.outputs, [&](int64_t q, int n) {
          Vec<A> sum = {};
          for (int64_t o = covering.begin; o < covering.end; ++o) {
            const T* at = from + o * p.w.outputs + q;
            const Vec<A> g = n == L ? load(at) : load_partial(at, n);
            sum += common != 0 ? g : g / splat(static_cast<A>(p.h.count(o, p.padding_counts)));
          }
          sum *= common != 0 ? splat(static_cast<A>(1 / common)) : load(shares + q);
          if (n == L)
            store(grads + shape.before + q, sum);
          else
            store_partial(grads + shape.before + q, sum, n);
        });
        gather_row<T>(p, shape, phases, sums, static_cast<T*>(p.input) + row * p.w.size,
                      [&](const Phase& phase, int64_t j) {
                        Pair<A> sum = {};
                        int64_t at = j - phase.shift;
                        for (int64_t s = phase.tap; s < p.w.kernel; s += phase.period, at -= phase.step)
                          for (int u = 0; u < 2; ++u) sum.v[u] += load(grads + shape.before + at + u * L);
                        return sum;
                      });
        if (++h == p.h.size) {
          h = 0;
          ++plane;
        }
      }
    });
  }
};

// ---- spread ----

template <class T>
struct Spread {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static int64_t thread_elements(const PoolParams& p) { return (p.w.size + kSlack + 15) / 16 * 16; }
  static int64_t table_bytes(const PoolParams& p) { return (reach_bytes(p.w) + 63) / 64 * 64; }
  static int64_t scratch(const PoolParams& p) {
    return table_bytes(p) + p.threads * thread_elements(p) * static_cast<int64_t>(sizeof(A));
  }

  static void run(const PoolParams& p, void* scratch) {
    const int64_t rows = p.N * p.C * p.h.size, per_item = rows_of_item(p, rows, p.w.size);
    const double common = common_divisor(p);
    const Reach* columns = all_reaches(p.w, scratch);
    A* memory = reinterpret_cast<A*>(static_cast<char*>(scratch) + table_bytes(p));
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int thread) {
      A* sums = memory + thread * thread_elements(p);
      const int64_t begin = item * per_item, end = begin + per_item < rows ? begin + per_item : rows;
      int64_t plane = begin / p.h.size, h = begin % p.h.size;
      Covering last = {-1, -1};
      for (int64_t row = begin; row < end; ++row) {
        const Covering covering = covering_of(p.h, h);
        // Rows that the same windows cover are the same.
        if (covering.begin != last.begin || covering.end != last.end) {
          last = covering;
          int64_t written = 0;  // positions that hold a sum; windows begin in order
          for (int64_t q = 0; q < p.w.outputs; ++q) {
            A value = 0;
            for (int64_t o = covering.begin; o < covering.end; ++o)
              value += get(static_cast<const T*>(p.output) + (plane * p.h.outputs + o) * p.w.outputs + q) /
                       static_cast<A>(common != 0 ? common : window_count(p, o, q));
            const int64_t from = columns[q].first + columns[q].begin, to = columns[q].first + columns[q].end;
            for (int64_t w = written; w < from; w += L) store(sums + w, Vec<A>{});
            for (int64_t w = from; w < written; ++w) sums[w] += value;
            for (int64_t w = from > written ? from : written; w < to; w += L) store(sums + w, splat(value));
            if (to > written) written = to;
          }
          for (int64_t w = written; w < p.w.size; w += L) store(sums + w, Vec<A>{});
        }
        T* to = static_cast<T*>(p.input) + row * p.w.size;
        vectors<T>(p.w.size, [&](int64_t w, int n) {
          if (n == L)
            store(to + w, load(sums + w));
          else
            store_partial(to + w, load(sums + w), n);
        });
        if (++h == p.h.size) {
          h = 0;
          ++plane;
          last = {-1, -1};
        }
      }
    });
  }
};

// ---- choice ----

template <class T>
struct MaxBackward {
  template <class Body>
  static auto choose_walk(const PoolParams& given, const Body& body) {
    const PoolParams p = joined_planes(given);
    if (!scatters<T>(p) && gather_strips_fit(p)) return with_gather_strips<T, uint8_t>(p, body);
    return with_id_type(p.id_bytes, [&](auto id) {
      using Id = decltype(id);
      if (scatters<T>(p)) return body(p, Scatter<T, Id>{});
      return p.channels_last ? body(p, WinnersOfPixels<T, Id>{}) : body(p, WinnersOfLines<T, Id>{});
    });
  }
  static int64_t scratch(const PoolParams& given) {
    return choose_walk(given, [](const PoolParams& p, auto walk) { return decltype(walk)::scratch(p); });
  }
  static void run(const PoolParams& given, void* memory) {
    choose_walk(given, [&](const PoolParams& p, auto walk) { decltype(walk)::run(p, memory); });
  }
};

// The gradient of means over windows of stride 1 is a mean over such windows itself: position i gets the shares of the
// windows i + padding - kernel + 1 to i + padding.
inline bool gradient_is_mean(const PoolParams& p) {
  return !p.h.adaptive && !p.w.adaptive && p.h.stride == 1 && p.w.stride == 1 && common_divisor(p) != 0;
}
inline PoolParams gradient_as_mean(const PoolParams& p) {
  PoolParams q = p;
  q.input = p.output;
  q.output = p.input;
  q.divisor = common_divisor(p);
  const auto turn = [](const PoolAxis& axis) {
    return PoolAxis{axis.outputs, axis.size, axis.kernel, 1, axis.kernel - 1 - axis.padding, 1, false};
  };
  q.h = turn(p.h);
  q.w = turn(p.w);
  return q;
}

template <class T>
struct AvgBackward {
  template <class Body>
  static auto choose_walk(const PoolParams& given, const Body& body) {
    const PoolParams p = joined_planes(given);
    if (gradient_is_mean(p)) return Forward<T, Sum>::choose_walk(gradient_as_mean(p), body);
    if (p.channels_last) return body(p, SharesOfPixels<T>{});
    if (gather_strips_fit(p)) return with_gather_strips<T, void>(p, body);
    if (p.w.adaptive || p.w.stride > 2) return body(p, Spread<T>{});
    return body(p, SharesOfLines<T>{});
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
