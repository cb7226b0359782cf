// Depthwise convolution of contiguous planes, 3x3 of stride 1, each plane seen as one row. Vectors run on from row to
// row, so that none but the last of a plane is partly empty however short the rows are, and a row of the kernel takes
// one load: what its outer columns read is shifted out of neighbouring vectors, through a mask of the lanes for which
// it lies in the same row. Output and input are as large, so the same offset leads from any output to what a tap reads.
#pragma once
#include "conv/depthwise.h"
#include "conv/direct.h"

namespace fastconv {
namespace {

constexpr int64_t kPlanes = 16;  // the most of a work item; the sums of their weight gradients lie in the first level
constexpr auto kThree = std::make_integer_sequence<int, 3>{};

inline bool is_flat(const ConvParams& p) {
  return p.C == 1 && p.K == 1 && p.input.w == 1 && p.output.w == 1 && p.input.h == p.W && p.output.h == p.Q &&
         p.P == p.H && p.Q == p.W && p.W <= INT32_MAX && p.stride_h == 1 && p.stride_w == 1 && p.dilation_h == 1 &&
         p.dilation_w == 1 && p.R == 3 && p.S == 3 && p.pad_h == 1 && p.pad_w == 1;
}

// Planes of a work item, of `planes` and of as many channels: some items for every thread.
inline int64_t flat_planes(const ConvParams& p, int64_t planes) {
  return max64(1, min64(kPlanes, planes / (4 * p.threads)));
}

// The lanes of vectors for which the outer columns of the kernel lie in the same row, which recur after `period`
// vectors, and, of those vectors for which not all that is loaded lies in the plane, the lanes for which it does.
template <class T>
struct PlaneEdges {
  using A = Accumulate<T>;
  int64_t vectors, period;
  int64_t inside, outside;  // vectors [inside, outside) load nothing outside of the plane
  Chosen<A>* columns;       // [vector of the period][left, right]
  Window<T>* rows;          // [vector at an edge][R], and those of one more

  PlaneEdges(const ConvParams& p, Carver& carve) {
    constexpr int64_t L = kLanes<A>;
    vectors = ceil_div(p.P * p.Q, L);
    period = min64(vectors, p.W / gcd(p.W, L));
    // Every vector loads what the next one needs.
    inside = max64(0, min64(vectors, ceil_div(-offset(p, 0), L) - 1));
    outside = max64(inside, min64(vectors, end(p, 0) / L - 1));
    columns = carve.take<Chosen<A>>(period * 2);
    rows = carve.take<Window<T>>((inside + 1 + vectors - outside) * 3);
  }
  void find(const ConvParams& p) const {
    using Lane = typename LanesOf<A>::type;
    constexpr int64_t L = kLanes<A>;
    for (int64_t v = 0; v < period; ++v) {
      Lanes<A> column;
      for (int i = 0; i < L; ++i) column[i] = static_cast<Lane>((v * L + i) % p.W);
      columns[v * 2] = Chosen<A>(bits_as<Lanes<A>>(column > 0));
      columns[v * 2 + 1] = Chosen<A>(bits_as<Lanes<A>>(column < static_cast<Lane>(p.W - 1)));
    }
    for (int64_t i = 0; i < inside + 1 + vectors - outside; ++i) {
      const int64_t v = i <= inside ? i : i - inside + outside;
      for (int64_t r = 0; r < 3; ++r) rows[i * 3 + r] = inside_row<T>(offset(p, r) + v * L, end(p, r));
    }
  }
  // What the first pixel and the one after the last read through the middle of kernel row r, as far as it is inside.
  static int64_t offset(const ConvParams& p, int64_t r) { return (r - p.pad_h) * p.W; }
  static int64_t end(const ConvParams& p, int64_t r) { return p.P * p.Q + min64(0, offset(p, r)); }
};

// Calls body with each of the constants 0, 1, ...: g++ keeps arrays in registers only where it sees their indices
// early.
template <class Body, int... I>
[[gnu::always_inline]] inline void for_each(std::integer_sequence<int, I...>, const Body& body) {
  (body(std::integral_constant<int, I>{}), ...);
}

// Goes through the vectors of a plane: begin(v), then meet(r, s, what tap r, s reads), then end(v). Of the last vector
// what is read for pixels that do not exist is zero.
template <class T, class Begin, class Meet, class End>
[[gnu::always_inline]] inline void walk_plane(const ConvParams& p, const PlaneEdges<T>& edges, const T* x,
                                              const Begin& begin, const Meet& meet, const End& end) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const Window<T>* rows = edges.rows;
  const Chosen<A>* columns = edges.columns;
  const T* from[3];
  Vec<A> before[3], here[3];
  for_each(kThree, [&](auto r) {
    from[r] = x + edges.offset(p, r);
    before[r] = Vec<A>{};
    here[r] = load(from[r], rows[r]);
  });
  const auto step = [&](int64_t v, auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    begin(v);
    if (!kWhole) rows += 3;
    for_each(kThree, [&](auto r) {
      from[r] += L;
      const Vec<A> after = kWhole ? load(from[r]) : load(from[r], rows[r]);
      meet(r, std::integral_constant<int, 0>{}, lanes_from<L - 1, A>(before[r], here[r], columns[0]));
      meet(r, std::integral_constant<int, 1>{}, here[r]);
      meet(r, std::integral_constant<int, 2>{}, lanes_from<1, A>(here[r], after, columns[1]));
      before[r] = here[r];
      here[r] = after;
    });
    end(v);
    columns = columns + 2 == edges.columns + edges.period * 2 ? edges.columns : columns + 2;
  };
  int64_t v = 0;
  for (; v < edges.inside; ++v) step(v, std::false_type{});
  for (; v < edges.outside; ++v) step(v, std::true_type{});
  for (; v < edges.vectors; ++v) step(v, std::false_type{});
}

// ---- forward and the input gradient --------------------------------------------------------------------------------

template <class T>
void plane_forward(const ConvParams& p, const PlaneEdges<T>& edges, const T* x, const Accumulate<T>* w,
                   Accumulate<T> bias, T* out, const Finish<T>& finish) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  Vec<A> sum;
  walk_plane<T>(
      p, edges, x, [&](int64_t) { sum = splat(bias); },
      [&](auto r, auto s, Vec<A> v) { sum += splat(w[r * 3 + s]) * v; },
      [&](int64_t v) {
        if (const int64_t left = p.P * p.Q - v * L; left >= L)
          finish.store(out + v * L, sum);
        else
          finish.store_partial(out + v * L, sum, static_cast<int>(left));
      });
}

template <class T>
void depthwise_flat(const ConvParams& p, const void* packed, void* scratch) {
  using A = Accumulate<T>;
  Carver carve(scratch);
  const PlaneEdges<T> edges(p, carve);
  edges.find(p);
  const Finish<T> finish(p);
  const A* weights = static_cast<const A*>(packed);
  const int64_t planes = p.N * p.G, block = flat_planes(p, planes);
  compute_for(p.threads, ceil_div(planes, block), [&](int64_t item, int) {
    for (int64_t plane = item * block; plane < min64(planes, (item + 1) * block); ++plane) {
      const int64_t n = plane / p.G, g = plane % p.G;
      plane_forward(p, edges, at<const T>(p.input, n, g, 0, 0), weights + g * 9,
                    p.bias ? get(static_cast<const T*>(p.bias) + g) : A(0), at<T>(p.output, n, g, 0, 0), finish);
    }
  });
}

struct DepthwiseFlat {
  struct Plan {};
  template <class A>
  static bool preferred(const ConvParams& p) {
    // Other than rows of nearly full vectors, which share what they load among the rows of the output.
    return p.Q <= kLanes<A> || p.Q * 6 < round_up(p.Q, kLanes<A>) * 5;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan&, ConvMemory& memory) {
    if (!is_flat(p)) return false;
    Carver carve(nullptr);
    const PlaneEdges<A> edges(p, carve);
    memory.packed = p.G * 9 * static_cast<int64_t>(sizeof(A));
    memory.scratch = carve.used();
    return true;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan&, void* packed) {
    DepthwiseRows::pack<T>(p, {}, packed);
  }
  template <class T>
  static void run(const ConvParams& p, const Plan&, const void* packed, void* scratch) {
    depthwise_flat<T>(p, packed, scratch);
  }
};

// ---- weight gradient -----------------------------------------------------------------------------------------------

struct FlatGradPlan {
  int64_t block, blocks, splits;  // channels of a work item, how many such, and shares of the images
};

template <class A>
struct FlatGradScratch {
  A* totals;  // [split][G][R][S]
  A* sums;    // [thread][channel][R][S][L]

  FlatGradScratch(const ConvParams& p, const FlatGradPlan& plan, Carver& carve) {
    totals = carve.take<A>(plan.splits * p.G * 9);
    sums = carve.take<A>(p.threads * kPlanes * 9 * kLanes<A>);
  }
};

// Adds to sums[R][S][L] what one plane contributes.
template <class T>
void plane_grad(const ConvParams& p, const PlaneEdges<T>& edges, const T* x, const T* grad, Accumulate<T>* sums) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  Vec<A> sum[3][3], factor;
  const auto each_sum = [&](const auto& body) {
    for_each(kThree, [&](auto r) { for_each(kThree, [&](auto s) { body(sum[r][s], sums + (r * 3 + s) * L); }); });
  };
  each_sum([](Vec<A>& one, A*) { one = Vec<A>{}; });
  walk_plane<T>(
      p, edges, x,
      [&](int64_t v) {
        const int64_t left = p.P * p.Q - v * L;
        factor = left >= L ? load(grad + v * L) : load_partial(grad + v * L, static_cast<int>(left));
      },
      [&](auto r, auto s, Vec<A> v) { sum[r][s] += factor * v; }, [](int64_t) {});
  each_sum([](const Vec<A>& one, A* to) { store(to, load(to) + one); });
}

template <class T>
void depthwise_flat_grad_weight(const ConvParams& p, const FlatGradPlan& plan, void* scratch) {
  using A = Accumulate<T>;
  constexpr int64_t L = kLanes<A>;
  Carver carve(scratch);
  const PlaneEdges<T> edges(p, carve);
  edges.find(p);
  const FlatGradScratch<A> memory(p, plan, carve);
  compute_for(p.threads, plan.blocks * plan.splits, [&](int64_t item, int thread) {
    A* sums = memory.sums + thread * kPlanes * 9 * L;
    const int64_t g0 = item % plan.blocks * plan.block, count = min64(plan.block, p.G - g0);
    const int64_t split = item / plan.blocks;
    zero(sums, count * 9 * L);
    for (int64_t n = p.N * split / plan.splits; n < p.N * (split + 1) / plan.splits; ++n)
      for (int64_t i = 0; i < count; ++i)
        plane_grad(p, edges, at<const T>(p.input, n, g0 + i, 0, 0), at<const T>(p.output, n, g0 + i, 0, 0),
                   sums + i * 9 * L);
    A* totals = memory.totals + (split * p.G + g0) * 9;
    for (int64_t i = 0; i < count * 9; ++i) totals[i] = sum_lanes<A>(load(sums + i * L));
  });
  for (int64_t g = 0; g < p.G; ++g)
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t s = 0; s < 3; ++s) {
        A sum = 0;
        for (int64_t split = 0; split < plan.splits; ++split) sum += memory.totals[(split * p.G + g) * 9 + r * 3 + s];
        put(at<T>(p.weight, 0, 0, r, s) + g * p.weight_g, sum);
      }
}

struct DepthwiseFlatGradWeight {
  using Plan = FlatGradPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    return p.P * p.Q > 6 * kLanes<A>;  // of fewer vectors a plane's sums are soon moved more than added to
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!is_flat(p)) return false;
    plan.block = flat_planes(p, p.G * p.N);
    plan.blocks = ceil_div(p.G, plan.block);
    plan.splits = depthwise_splits(p, plan.blocks);
    Carver carve(nullptr);
    const PlaneEdges<A> edges(p, carve);
    const FlatGradScratch<A> sums(p, plan, carve);
    memory.scratch = carve.used();
    return true;
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, void* scratch) {
    depthwise_flat_grad_weight<T>(p, plan, scratch);
  }
};

}  // namespace
}  // namespace fastconv
