// Stochastic pooling (Zeiler and Fergus, 2013): of each window one element is drawn, with a probability proportional to
// its value, or its elements are averaged with these probabilities.
//
// A draw is the first tap at which the sum of the taps up to it exceeds u times the sum of all, u uniform in [0, 1). u
// comes from the window's logical position ((n * C + c) * P + p) * Q + q and the seed alone, and every window is added
// up in the order of its taps: so draws do not depend on threads, on the instruction set or on the layout. Taps are
// read twice, from the first level of the caches.
//
// pixels: channels_last memory; vectors run along the channels.
//
// rows: contiguous memory; vectors run along the windows of a row. The rows of the input that a row of windows looks at
// lie in scratch memory, between zeros (which are never drawn), sorted by the residue of the column modulo the stride:
// a tap of neighbouring windows is then a vector, whatever the stride. Rows that the next windows look at too stay
// there.
#pragma once
#include "pool/forward.h"
#include "pool/philox.h"

namespace fastconv {
namespace {

template <class A>
constexpr A kLargestFinite = sizeof(A) == 8 ? static_cast<A>(__DBL_MAX__) : static_cast<A>(__FLT_MAX__);

// `value`, or the largest finite number where it is infinite or NaN.
template <class A>
inline Vec<A> finite(Vec<A> value) {
  const Vec<A> most = splat(kLargestFinite<A>);
  return choose(greater(most, value), value, most);
}

// The sum of windows whose taps `each` calls a body with, in their order: of lanes where it overflows, of the taps
// times a scale so small that only an infinite one can be too large.
template <class A>
struct Total {
  Vec<A> sum, scale;
};
template <class A, class Each>
inline Total<A> total(const Each& each) {
  Total<A> t = {Vec<A>{}, splat(A{1})};
  each([&](Vec<A> x, Lanes<A>) { t.sum += x; });
  const Mask<A> overflows = greater(t.sum, splat(kLargestFinite<A>));
  if (any(overflows)) {
    t.scale = choose(overflows, splat(static_cast<A>(0x1p-31)), t.scale);
    t.sum = Vec<A>{};
    each([&](Vec<A> x, Lanes<A>) { t.sum += x * t.scale; });
  }
  return t;
}

// An element of each window, and its tap; zero and `first` where all are zero. In training.
template <class K>
struct Drawn {
  using A = typename K::Element;
  static constexpr bool kTracks = true;
  typename K::Value value;
  typename K::Id id;

  template <class Each>
  static Drawn of(const Each& each, int64_t first, uint64_t seed, uint64_t position, uint64_t step) {
    const Total<A> all = total<A>(each);
    // Beyond the largest finite number is what an infinite tap makes of the sum: it is drawn.
    const Vec<A> target = finite<A>(uniform(A{}, position, step, seed) * all.sum);
    Vec<A> sum = {};
    Mask<A> found = {};
    Drawn drawn = {Vec<A>{}, K::all_ids(first)};
    each([&](Vec<A> x, Lanes<A> tap) {
      drawn.value = choose(found, drawn.value, x);
      drawn.id = choose(found, drawn.id, tap);
      sum += x * all.scale;
      found = greater(sum, target);
    });
    drawn.value = choose(found, drawn.value, Vec<A>{});
    drawn.id = choose(found, drawn.id, K::all_ids(first));
    return drawn;
  }
};

// sum(x^2) / sum(x), or zero where all are zero and infinite where one is. In evaluation.
template <class K>
struct Weighted {
  using A = typename K::Element;
  static constexpr bool kTracks = false;
  typename K::Value value;

  template <class Each>
  static Weighted of(const Each& each, int64_t, uint64_t, uint64_t, uint64_t) {
    const Total<A> all = total<A>(each);
    const Vec<A> inverse = finite<A>(1 / all.sum);
    Weighted mean = {Vec<A>{}};
    each([&](Vec<A> x, Lanes<A>) { mean.value += x * (x * all.scale * inverse); });
    mean.value = choose(greater(all.sum, splat(kLargestFinite<A>)), all.sum, mean.value);
    return mean;
  }
};

// Means have none.
inline uint64_t seed_of(const PoolParams& p) { return p.seed ? static_cast<uint64_t>(*p.seed) : 0; }

template <class T, class Result>
struct StochasticPixels {
  using A = Accumulate<T>;
  using K = Wide<A>;
  static constexpr int L = kLanes<A>;
  static int64_t scratch(const PoolParams& p) { return reach_bytes(p.w); }

  static void run(const PoolParams& p, void* memory) {
    const Reach* columns = all_reaches(p.w, memory);
    const uint64_t seed = seed_of(p);
    const uint64_t windows = static_cast<uint64_t>(p.h.outputs * p.w.outputs);  // of a plane
    parallel_for(p.threads, p.N * p.h.outputs, [&](int64_t row, int) {
      const int64_t n = row / p.h.outputs, o = row % p.h.outputs;
      const Reach h = reach_of(p.h, o);
      const T* image = static_cast<const T*>(p.input) + n * p.h.size * p.w.size * p.C;
      for (int64_t q = 0; q < p.w.outputs; ++q) {
        const Reach w = columns[q];
        for (int64_t c = 0; c < p.C; c += L) {
          const int lanes = static_cast<int>(p.C - c < L ? p.C - c : L);
          const auto each = [&](const auto& body) {
            for (int64_t r = h.begin; r < h.end; ++r) {
              const T* x = image + ((h.first + r) * p.w.size + w.first + w.begin) * p.C + c;
              for (int64_t s = w.begin; s < w.end; ++s, x += p.C)
                body(lanes == L ? load(x) : load_partial(x, lanes), K::all_ids(r * p.w.kernel + s));
            }
          };
          const uint64_t position =
              static_cast<uint64_t>(n * p.C + c) * windows + static_cast<uint64_t>(o * p.w.outputs + q);
          const auto result = Result::of(each, h.begin * p.w.kernel + w.begin, seed, position, windows);
          write<T>(p, (row * p.w.outputs + q) * p.C + c, result, lanes);
        }
      }
    });
  }
};

template <class T, class Result>
struct StochasticRows {
  using A = Accumulate<T>;
  using K = Wide<A>;
  static constexpr int L = kLanes<A>;

  // Scratch memory of a thread, in elements.
  struct Shape {
    int64_t pitch;  // of one residue of a row
    int64_t row;    // a row of the input between zeros, as it lies
    explicit Shape(const PoolParams& p) {
      pitch = (p.w.outputs + (p.w.kernel - 1) / p.w.stride + kSlack + 15) / 16 * 16;
      const int64_t read = p.w.stride * pitch, written = p.w.padding + p.w.size;
      row = ((read > written ? read : written) + kSlack + 15) / 16 * 16;
    }
    int64_t elements(const PoolParams& p) const { return row + p.h.kernel * p.w.stride * pitch; }
  };
  static int64_t table_bytes(const PoolParams& p) { return (reach_bytes(p.w) + 63) / 64 * 64; }
  static int64_t scratch(const PoolParams& p) {
    return table_bytes(p) + p.threads * Shape(p).elements(p) * static_cast<int64_t>(sizeof(A));
  }

  // One row of the input, from `row`, whose ends hold zeros already, to `to`, sorted by residue.
  static void sort(const PoolParams& p, const Shape& shape, const T* from, A* row, A* to) {
    A* at = p.w.stride == 1 ? to : row;
    for (int64_t i = 0; i < p.w.size; i += L) {
      const int n = static_cast<int>(p.w.size - i < L ? p.w.size - i : L);
      store(at + p.w.padding + i, n == L ? load(from + i) : load_partial(from + i, n));
    }
    if (p.w.stride == 2) {
      for (int64_t j = 0; j < shape.pitch; j += L) {
        const Vec<A> low = load(row + 2 * j), high = load(row + 2 * j + L);
        store(to + j, even_lanes(low, high, std::make_integer_sequence<int, L>{}));
        store(to + shape.pitch + j, odd_lanes(low, high, std::make_integer_sequence<int, L>{}));
      }
    } else if (p.w.stride > 2) {
      for (int64_t j = 0; j < shape.pitch; ++j)
        for (int64_t i = 0; i < p.w.stride; ++i) to[i * shape.pitch + j] = row[j * p.w.stride + i];
    }
  }

  static void run(const PoolParams& p, void* memory) {
    const Shape shape(p);
    const Reach* columns = all_reaches(p.w, memory);
    const uint64_t seed = seed_of(p);
    A* lines = reinterpret_cast<A*>(static_cast<char*>(memory) + table_bytes(p));
    const int64_t rows = p.N * p.C * p.h.outputs, per_item = rows_of_item(p, rows, p.w.size * p.h.kernel);
    parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int thread) {
      A* row_memory = lines + thread * shape.elements(p);
      A* kept = row_memory + shape.row;  // [R, stride, pitch], row h of the input at h modulo R
      for (int64_t i = 0; i < shape.elements(p); ++i) row_memory[i] = 0;
      const int64_t begin = item * per_item, end = begin + per_item < rows ? begin + per_item : rows;
      int64_t plane = begin / p.h.outputs, o = begin % p.h.outputs, next = 0;
      for (int64_t row = begin; row < end; ++row) {
        const Reach h = reach_of(p.h, o);
        if (next < h.first + h.begin) next = h.first + h.begin;
        for (; next < h.first + h.end; ++next) {
          const T* from = static_cast<const T*>(p.input) + (plane * p.h.size + next) * p.w.size;
          sort(p, shape, from, row_memory, kept + next % p.h.kernel * p.w.stride * shape.pitch);
        }
        vectors<T>(p.w.outputs, [&](int64_t q, int lanes) {
          const auto each = [&](const auto& body) {
            for (int64_t r = h.begin; r < h.end; ++r) {
              const A* line = kept + (h.first + r) % p.h.kernel * p.w.stride * shape.pitch + q;
              for (int64_t s = 0, residue = 0, shift = 0; s < p.w.kernel; ++s) {
                body(load(line + residue * shape.pitch + shift), K::all_ids(r * p.w.kernel + s));
                if (++residue == p.w.stride) {
                  residue = 0;
                  ++shift;
                }
              }
            }
          };
          const int64_t at = row * p.w.outputs + q;
          auto result = Result::of(each, h.begin * p.w.kernel, seed, static_cast<uint64_t>(at), 1);
          if constexpr (Result::kTracks) {
            // Windows of zeros name their first tap that is no padding.
            const Mask<A> something = greater(result.value, Vec<A>{});
            Lanes<A> first = {};
            for (int i = 0; i < lanes; ++i)
              first[i] = static_cast<typename LanesOf<A>::type>(h.begin * p.w.kernel + columns[q + i].begin);
            result.id = choose(something, result.id, first);
          }
          write<T>(p, at, result, lanes);
        });
        if (++o == p.h.outputs) {
          o = next = 0;
          ++plane;
        }
      }
    });
  }
};

template <class T, template <class> class ResultOf>
struct Stochastic {
  using Result = ResultOf<Wide<Accumulate<T>>>;
  static int64_t scratch(const PoolParams& p) {
    return p.channels_last ? StochasticPixels<T, Result>::scratch(p) : StochasticRows<T, Result>::scratch(p);
  }
  static void run(const PoolParams& p, void* memory) {
    return p.channels_last ? StochasticPixels<T, Result>::run(p, memory) : StochasticRows<T, Result>::run(p, memory);
  }
};
template <class T>
using StochasticDraw = Stochastic<T, Drawn>;
template <class T>
using StochasticMean = Stochastic<T, Weighted>;

// The smallest element of the input, or NaN where there is one.
template <class T>
struct Least {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static constexpr int64_t kApart = 8;  // doubles: threads write to lines of their own
  static int64_t scratch(const PoolParams& p) { return p.threads * kApart * static_cast<int64_t>(sizeof(double)); }

  static void join(double& least, double other) {
    if (other < least || other != other) least = other;  // and nothing is less than NaN
  }
  static void run(const PoolParams& p, void* memory) {
    double* found = static_cast<double*>(memory);
    for (int i = 0; i < p.threads; ++i) found[i * kApart] = __builtin_inf();
    const T* input = static_cast<const T*>(p.input);
    const int64_t count = p.N * p.C * p.h.size * p.w.size;
    parallel_for(p.threads, (count + kItemElements - 1) / kItemElements, [&](int64_t item, int thread) {
      const int64_t begin = item * kItemElements, end = begin + kItemElements < count ? begin + kItemElements : count;
      Vec<A> least = splat(static_cast<A>(__builtin_inf()));
      Mask<A> nan = {};
      int64_t i = begin;
      for (; i + L <= end; i += L) {
        const Vec<A> x = load(input + i);
        least = choose(greater(least, x), x, least);
        nan = nan | is_nan(x);
      }
      for (int lane = 0; lane < L; ++lane) join(found[thread * kApart], static_cast<double>(least[lane]));
      for (; i < end; ++i) join(found[thread * kApart], static_cast<double>(get(input + i)));
      if (any(nan)) found[thread * kApart] = __builtin_nan("");
    });
    *p.least = found[0];
    for (int i = 1; i < p.threads; ++i) join(*p.least, found[i * kApart]);
  }
};

}  // namespace
}  // namespace fastconv
