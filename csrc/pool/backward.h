// From the gradient of the output to that of the input, which is written by whoever owns it: nothing is added by two
// threads, and the order of the sums is always the same.
//
// gather_pixels (channels_last) and gather_lines (contiguous): every element of the input asks the windows that cover
// it what they have for it: a share of their gradient, or all of it where it has won. In contiguous memory the
// positions of a row are sorted by their residue modulo the stride: those of one residue are reached by the same taps,
// and the windows that reach neighbours are neighbours.
//
// scatter: where a position is covered by many windows it is cheaper to go through the windows and add each one's
// gradient to its winner. A thread owns a band of rows of a plane, or of a few channels in channels_last memory.
//
// spread: adaptive windows in contiguous memory add their share to all of their positions.
#pragma once
#include "pool/forward.h"

namespace fastconv {
namespace {

// The tap of window `o` that is at position `i`, or -1.
inline int64_t tap_at(const PoolAxis& axis, int64_t o, int64_t i) {
  const int64_t distance = i - axis.first(o);
  if (distance < 0 || (axis.dilation > 1 && distance % axis.dilation)) return -1;
  const int64_t tap = axis.dilation > 1 ? distance / axis.dilation : distance;
  return tap < axis.end(o) ? tap : -1;
}

constexpr int64_t kMostWindows = 16;  // that cover a position, and are gathered from

// ---- channels_last ----

template <class T, bool Winner>
struct GatherPixels {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;

  // The windows that cover a column, [begin, end): asked once, because it takes divisions.
  struct Covering {
    int32_t begin, end;
  };
  static int64_t scratch(const PoolParams& p) { return p.w.size * static_cast<int64_t>(sizeof(Covering)); }

  // Count vectors of channels of one element; the last has `last` lanes.
  template <int Count>
  static void pixel(const PoolParams& p, double common, Covering rows, Covering columns, int64_t n, int64_t h,
                    int64_t w, int64_t channel, int last) {
    Vec<A> sum[Count] = {};
    for (int64_t o = rows.begin; o < rows.end; ++o) {
      const int64_t r = tap_at(p.h, o, h);
      if (r < 0) continue;
      for (int64_t q = columns.begin; q < columns.end; ++q) {
        const int64_t s = tap_at(p.w, q, w);
        if (s < 0) continue;
        const int64_t at = ((n * p.h.outputs + o) * p.w.outputs + q) * p.C + channel;
        const T* grad = static_cast<const T*>(p.output) + at;
        const Vec<A> weight = splat(static_cast<A>(Winner || common != 0 ? 1 : 1 / window_count(p, o, q)));
        const Lanes<A> tap = Wide<A>::all_ids(r * p.w.kernel + s);
#pragma GCC unroll 8
        for (int u = 0; u < Count; ++u) {
          const int lanes = u + 1 < Count ? L : last;
          const Vec<A> g = lanes == L ? load(grad + u * L) : load_partial(grad + u * L, lanes);
          if constexpr (Winner)
            sum[u] = add_where(equal(load_ids<A>(p.ids, p.id_bytes, at + u * L, lanes), tap), g, sum[u]);
          else
            sum[u] += g * weight;
        }
      }
    }
    T* to = static_cast<T*>(p.input) + ((n * p.h.size + h) * p.w.size + w) * p.C + channel;
#pragma GCC unroll 8
    for (int u = 0; u < Count; ++u) {
      if (!Winner && common != 0) sum[u] *= splat(static_cast<A>(1 / common));
      if (u + 1 < Count || last == L)
        store(to + u * L, sum[u]);
      else
        store_partial(to + u * L, sum[u], last);
    }
  }

  static void run(const PoolParams& p, void* scratch) {
    const double common = Winner ? 1 : common_divisor(p);
    Covering* covering = static_cast<Covering*>(scratch);
    for (int64_t w = 0; w < p.w.size; ++w)
      covering[w] = {static_cast<int32_t>(p.w.covering_begin(w)), static_cast<int32_t>(p.w.covering_end(w))};
    parallel_for(p.threads, p.N * p.h.size, [&](int64_t row, int) {
      const int64_t n = row / p.h.size, h = row % p.h.size;
      const Covering rows = {static_cast<int32_t>(p.h.covering_begin(h)), static_cast<int32_t>(p.h.covering_end(h))};
      for (int64_t w = 0; w < p.w.size; ++w) {
        int64_t c = 0;
        for (; c + 4 * L <= p.C; c += 4 * L) pixel<4>(p, common, rows, covering[w], n, h, w, c, L);
        for (; c + L <= p.C; c += L) pixel<1>(p, common, rows, covering[w], n, h, w, c, L);
        if (c < p.C) pixel<1>(p, common, rows, covering[w], n, h, w, c, static_cast<int>(p.C - c));
      }
    });
  }
};

// ---- contiguous ----

// A row of the input's gradient, and what it is made of, for one thread. Position w of the input has w + padding =
// j * stride + phase; tap s of window j - shift reaches it, where shift * stride + phase = s * dilation.
template <class T, bool Winner>
struct GatherLines {
  using A = Accumulate<T>;
  using Id = typename LanesOf<A>::type;
  static constexpr int L = kLanes<A>;

  static int64_t reach(const PoolAxis& axis) { return (axis.kernel - 1) * axis.dilation / axis.stride; }  // most shifts
  static int64_t places(const PoolParams& p) { return (p.w.size - 1 + p.w.padding) / p.w.stride + 1; }  // numbers of j
  static int64_t window_elements(const PoolParams& p) { return reach(p.w) + places(p) + kSlack; }
  static int64_t sum_elements(const PoolParams& p) { return (places(p) + kSlack) * p.w.stride; }
  // Rows of windows that are kept: those that cover one row of the input. Means keep only their sum.
  static int64_t kept(const PoolParams& p) { return Winner ? reach(p.h) + 1 : 1; }
  static int64_t thread_bytes(const PoolParams& p) {
    const int64_t windows = kept(p) * window_elements(p) * static_cast<int64_t>(sizeof(A)) * (Winner ? 2 : 1);
    const int64_t shares = Winner ? 0 : (p.w.outputs + kSlack) * static_cast<int64_t>(sizeof(A));
    return (windows + shares + sum_elements(p) * static_cast<int64_t>(sizeof(A)) + 63) / 64 * 64;
  }
  static int64_t scratch(const PoolParams& p) { return p.threads * thread_bytes(p); }

  struct Work {
    const PoolParams& p;
    A* grads;   // [kept, window_elements], window j - shift at reach + j - shift: zero where there is none
    Id* ids;    // likewise
    A* shares;  // [outputs], of the columns where divisors differ
    A* sums;    // [places * stride]
    double common;

    // Fills the windows' row for window row `o` of a plane.
    void keep(int64_t plane, int64_t o) const {
      const int64_t elements = window_elements(p), first = reach(p.w);
      A* grad = grads + o % kept(p) * elements;
      Id* id = ids + o % kept(p) * elements;
      const int64_t at = (plane * p.h.outputs + o) * p.w.outputs;
      const T* from = static_cast<const T*>(p.output) + at;
      const Vec<A> zero = {};
      for (int64_t i = 0; i < first; i += L) store(grad + i, zero);
      int64_t q = 0;
      for (; q < p.w.outputs; q += L) {
        const int n = static_cast<int>(p.w.outputs - q < L ? p.w.outputs - q : L);
        store(grad + first + q, n == L ? load(from + q) : load_partial(from + q, n));
        const Lanes<A> v = load_ids<A>(p.ids, p.id_bytes, at + q, n);
        __builtin_memcpy(id + first + q, &v, sizeof v);
      }
      // No id there equals a tap by which anything but zero would be added.
      for (q = p.w.outputs; q < places(p) + L; q += L) store(grad + first + q, zero);
    }

    // The sum of the window rows that cover row h, shares of the rows and columns included.
    void add_up(int64_t plane, int64_t h) const {
      const int64_t first = reach(p.w), o_begin = p.h.covering_begin(h), o_end = p.h.covering_end(h);
      const Vec<A> zero = {};
      for (int64_t i = 0; i < first; i += L) store(grads + i, zero);
      for (int64_t q = 0; q < p.w.outputs; q += L) {
        const int n = static_cast<int>(p.w.outputs - q < L ? p.w.outputs - q : L);
        Vec<A> sum = zero;
        for (int64_t o = o_begin; o < o_end; ++o) {
          const T* from = static_cast<const T*>(p.output) + (plane * p.h.outputs + o) * p.w.outputs + q;
          const Vec<A> g = n == L ? load(from) : load_partial(from, n);
          sum += common != 0 ? g : g / splat(static_cast<A>(p.h.count(o, p.padding_counts)));
        }
        store(grads + first + q, sum * (common != 0 ? splat(static_cast<A>(1 / common)) : load(shares + q)));
      }
      for (int64_t q = p.w.outputs; q < places(p) + L; q += L) store(grads + first + q, zero);
    }

    // The taps of one phase: tap, tap + period, ..., which reach windows `shift`, shift + step, ... before.
    struct Phase {
      int64_t tap, period, shift, step;
    };
    Phase phase_of(int64_t phase) const {
      const int64_t stride = p.w.stride, dilation = p.w.dilation;
      int64_t period = 1;
      while (period * dilation % stride) ++period;
      for (int64_t s = 0; s < p.w.kernel && s < period; ++s)
        if (s * dilation % stride == phase) return {s, period, s * dilation / stride, period * dilation / stride};
      return {p.w.kernel, 1, 0, 0};
    }

    // A kept row of windows, and the tap by which it reaches the row of the input that is being computed.
    struct Reached {
      const A* grad;
      const Id* id;
      int64_t tap;
    };

    Vec<A> gather(const Reached* rows, int64_t count, const Phase& phase, int64_t j) const {
      Vec<A> sum = {};
      for (int64_t i = 0; i < count; ++i) {
        int64_t at = j - phase.shift;
        for (int64_t s = phase.tap; s < p.w.kernel; s += phase.period, at -= phase.step) {
          const Vec<A> g = load(rows[i].grad + at);
          if constexpr (Winner) {
            Lanes<A> id;
            __builtin_memcpy(&id, rows[i].id + at, sizeof id);
            sum = add_where(equal(id, Wide<A>::all_ids(rows[i].tap + s)), g, sum);
          } else {
            sum += g;
          }
        }
      }
      return sum;
    }

    void row(int64_t plane, int64_t h) const {
      Reached rows[kMostWindows + 1];
      int64_t reached = 0;
      if constexpr (Winner) {
        for (int64_t o = p.h.covering_begin(h), end = p.h.covering_end(h); o < end; ++o) {
          const int64_t r = tap_at(p.h, o, h), at = o % kept(p) * window_elements(p) + reach(p.w);
          if (r >= 0) rows[reached++] = {grads + at, ids + at, r * p.w.kernel};
        }
      } else {
        rows[reached++] = {grads + reach(p.w), nullptr, 0};
      }
      const int64_t count = places(p), stride = p.w.stride;
      if (stride == 1) {
        const Phase all = phase_of(0);
        for (int64_t j = 0; j < count; j += L) store(sums + j, gather(rows, reached, all, j));
      } else if (stride == 2) {
        const Phase even = phase_of(0), odd = phase_of(1);
        for (int64_t j = 0; j < count; j += L) {
          Vec<A> low, high;
          zip(gather(rows, reached, even, j), gather(rows, reached, odd, j), low, high,
              std::make_integer_sequence<int, L>{});
          store(sums + 2 * j, low);
          store(sums + 2 * j + L, high);
        }
      } else {
        for (int64_t f = 0; f < stride; ++f) {
          const Phase phase = phase_of(f);
          for (int64_t j = 0; j < count; j += L) {
            const Vec<A> v = gather(rows, reached, phase, j);
            for (int lane = 0; lane < L; ++lane) sums[(j + lane) * stride + f] = v[lane];
          }
        }
      }
      T* to = static_cast<T*>(p.input) + (plane * p.h.size + h) * p.w.size;
      vectors<T>(p.w.size, [&](int64_t w, int n) {
        const Vec<A> v = load(sums + p.w.padding + w);
        if (n == L)
          store(to + w, v);
        else
          store_partial(to + w, v, n);
      });
    }
  };

  static void run(const PoolParams& p, void* scratch) {
    const int64_t bytes = thread_bytes(p), rows = p.N * p.C * p.h.size;
    const int64_t rows_per_item = rows_of_item(p, rows, p.w.size);
    const double common = Winner ? 1 : common_divisor(p);
    parallel_for(p.threads, (rows + rows_per_item - 1) / rows_per_item, [&](int64_t item, int thread) {
      A* memory = reinterpret_cast<A*>(static_cast<char*>(scratch) + thread * bytes);
      const int64_t windows = kept(p) * window_elements(p);
      A* sums = memory + windows * (Winner ? 2 : 1);
      A* shares = sums + sum_elements(p);
      const Work work{p, memory, reinterpret_cast<Id*>(memory + windows), shares, sums, common};
      if (common == 0)
        for (int64_t q = 0; q < p.w.outputs; ++q)
          shares[q] = static_cast<A>(1 / static_cast<double>(p.w.count(q, p.padding_counts)));
      const int64_t end = (item + 1) * rows_per_item < rows ? (item + 1) * rows_per_item : rows;
      int64_t next = 0;  // window rows of this plane that have been kept
      for (int64_t row = item * rows_per_item; row < end; ++row) {
        const int64_t plane = row / p.h.size, h = row % p.h.size;
        if constexpr (Winner) {
          if (h == 0 || row == item * rows_per_item) next = p.h.covering_begin(h);
          if (next < p.h.covering_begin(h)) next = p.h.covering_begin(h);
          for (; next < p.h.covering_end(h); ++next) work.keep(plane, next);
        } else {
          work.add_up(plane, h);
        }
        work.row(plane, h);
      }
    });
  }
};

// ---- many windows a position ----

// Winners alone. Sums are kept in scratch memory where the type is not that of the sums.
template <class T>
struct Scatter {
  using A = Accumulate<T>;
  static constexpr bool kInPlace = sizeof(T) == sizeof(A);
  static constexpr int64_t kBandElements = 1 << 16;

  static int64_t channels(const PoolParams& p) {  // of an item
    if (!p.channels_last) return 1;
    return p.C < 16 ? p.C : 16;
  }
  static int64_t band(const PoolParams& p) {  // rows of an item
    const int64_t rows = kBandElements / (p.w.size * channels(p)), least = 2 * p.h.kernel * p.h.dilation;
    const int64_t most = rows > least ? rows : least;
    return most < p.h.size ? most : p.h.size;
  }
  static int64_t thread_elements(const PoolParams& p) { return kInPlace ? 0 : band(p) * p.w.size * channels(p); }
  static int64_t scratch(const PoolParams& p) {
    return p.threads * thread_elements(p) * static_cast<int64_t>(sizeof(A));
  }

  template <class Id>
  static void add(const PoolParams& p, A* sums, int64_t pixel, int64_t n, int64_t channel, int64_t count, int64_t begin,
                  int64_t end) {
    const int64_t step = p.channels_last ? p.C : 1;  // from window to window
    const int64_t image = p.channels_last ? n * p.h.outputs * p.w.outputs * p.C + channel
                                          : (n * p.C + channel) * p.h.outputs * p.w.outputs;
    const T* grads = static_cast<const T*>(p.output) + image;
    const Id* ids = static_cast<const Id*>(p.ids) + image;
    const uint32_t S = static_cast<uint32_t>(p.w.kernel);
    for (int64_t o = p.h.covering_begin(begin), o_end = p.h.covering_end(end - 1); o < o_end; ++o)
      for (int64_t q = 0; q < p.w.outputs; ++q) {
        const int64_t at = (o * p.w.outputs + q) * step, top = p.h.first(o) - begin, left = p.w.first(q);
        for (int64_t c = 0; c < count; ++c) {
          const uint32_t id = ids[at + c], r = id / S;
          const int64_t h = top + r * p.h.dilation, w = left + (id - r * S) * p.w.dilation;
          if (h < 0 || h >= end - begin || w < 0 || w >= p.w.size) continue;  // another band's, or nobody's
          sums[(h * p.w.size + w) * pixel + c] += get(grads + at + c);
        }
      }
  }

  static void run(const PoolParams& p, void* scratch) {
    const int64_t block = channels(p), blocks = (p.C + block - 1) / block, rows = band(p);
    const int64_t bands = (p.h.size + rows - 1) / rows;
    parallel_for(p.threads, p.N * blocks * bands, [&](int64_t item, int thread) {
      const int64_t begin = item % bands * rows, end = begin + rows < p.h.size ? begin + rows : p.h.size;
      const int64_t n = item / bands / blocks, channel = item / bands % blocks * block;
      const int64_t count = channel + block < p.C ? block : p.C - channel;
      const int64_t pixels = (end - begin) * p.w.size, step = p.channels_last ? p.C : 1;
      T* out = static_cast<T*>(p.input) + (p.channels_last ? (n * p.h.size + begin) * p.w.size * p.C + channel
                                                           : ((n * p.C + channel) * p.h.size + begin) * p.w.size);
      A* sums = kInPlace ? reinterpret_cast<A*>(out) : static_cast<A*>(scratch) + thread * thread_elements(p);
      const int64_t pixel = kInPlace ? step : count;
      for (int64_t i = 0; i < pixels; ++i)
        for (int64_t c = 0; c < count; ++c) sums[i * pixel + c] = 0;
      if (p.id_bytes == 1)
        add<uint8_t>(p, sums, pixel, n, channel, count, begin, end);
      else if (p.id_bytes == 2)
        add<uint16_t>(p, sums, pixel, n, channel, count, begin, end);
      else
        add<uint32_t>(p, sums, pixel, n, channel, count, begin, end);
      if constexpr (!kInPlace)
        for (int64_t i = 0; i < pixels; ++i)
          for (int64_t c = 0; c < count; ++c) put(out + i * step + c, sums[i * pixel + c]);
    });
  }
};

// ---- adaptive windows ----

template <class T>
struct Spread {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static int64_t thread_elements(const PoolParams& p) { return p.w.size + kSlack; }
  static int64_t scratch(const PoolParams& p) {
    return p.threads * thread_elements(p) * static_cast<int64_t>(sizeof(A));
  }

  static void run(const PoolParams& p, void* scratch) {
    const int64_t rows = p.N * p.C * p.h.size;
    const int64_t rows_per_item = rows_of_item(p, rows, p.w.size);
    parallel_for(p.threads, (rows + rows_per_item - 1) / rows_per_item, [&](int64_t item, int thread) {
      A* sums = static_cast<A*>(scratch) + thread * thread_elements(p);
      const int64_t end = (item + 1) * rows_per_item < rows ? (item + 1) * rows_per_item : rows;
      for (int64_t row = item * rows_per_item; row < end; ++row) {
        const int64_t plane = row / p.h.size, h = row % p.h.size;
        int64_t written = 0;  // positions that hold a sum; windows begin in order
        for (int64_t q = 0; q < p.w.outputs; ++q) {
          A value = 0;
          for (int64_t o = p.h.covering_begin(h), o_end = p.h.covering_end(h); o < o_end; ++o)
            value += get(static_cast<const T*>(p.output) + (plane * p.h.outputs + o) * p.w.outputs + q) /
                     static_cast<A>(window_count(p, o, q));
          const int64_t first = p.w.first(q), last = first + p.w.end(q);
          for (int64_t w = first; w < written; ++w) sums[w] += value;
          for (int64_t w = written; w < last; w += L) store(sums + w, splat(value));
          written = last;
        }
        T* to = static_cast<T*>(p.input) + row * p.w.size;
        vectors<T>(p.w.size, [&](int64_t w, int n) {
          if (n == L)
            store(to + w, load(sums + w));
          else
            store_partial(to + w, load(sums + w), n);
        });
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
    const bool adapts = p.h.adaptive || p.w.adaptive;  // then a position is covered by few windows, mostly by one
    const int64_t windows = adapts ? 1 : p.h.kernel * p.w.kernel / (p.h.stride * p.w.stride);
    if (windows > kMostWindows) return body(p, Scatter<T>{});
    if (p.channels_last) return body(p, GatherPixels<T, true>{});
    return adapts ? body(p, Scatter<T>{}) : body(p, GatherLines<T, true>{});
  }
  static int64_t scratch(const PoolParams& given) {
    return choose_walk(given, [](const PoolParams& p, auto walk) { return decltype(walk)::scratch(p); });
  }
  static void run(const PoolParams& given, void* memory) {
    choose_walk(given, [&](const PoolParams& p, auto walk) { decltype(walk)::run(p, memory); });
  }
};

template <class T>
struct AvgBackward {
  template <class Body>
  static auto choose_walk(const PoolParams& given, const Body& body) {
    const PoolParams p = joined_planes(given);
    if (p.channels_last) return body(p, GatherPixels<T, false>{});
    if (p.w.adaptive) return body(p, Spread<T>{});
    return body(p, GatherLines<T, false>{});
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
