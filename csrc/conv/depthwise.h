// Depthwise convolution of channels_last tensors: a vector is as many channels of one pixel, weights are vectors too,
// and nothing is broadcast or shuffled. Scratch is packed, so every load is aligned and PX pixels share a weight.
#pragma once
#include "conv/tile.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

constexpr int kDepthwisePixels = kVecRegisters == 32 ? 14 : 8;
constexpr int kDepthwiseTaps = kVecRegisters == 32 ? 12 : 9;  // running sums of the weight gradient

struct DepthwisePlan {
  Geometry g;
  int64_t blocks;  // of as many channels as a vector has lanes
  int64_t x_elements, acc_elements;
};

template <class A>
DepthwisePlan depthwise_plan_for(const ConvParams& p, int64_t rows) {
  constexpr int L = kLanes<A>;
  DepthwisePlan plan;
  plan.g = make_geometry(p, rows);
  plan.blocks = ceil_div(p.G, L);
  plan.x_elements = plan.g.channel * L;
  plan.acc_elements = rows * plan.g.w.tile * L;
  return plan;
}

template <class A>
bool depthwise_plan(const ConvParams& p, DepthwisePlan& plan) {
  if (p.C != 1 || p.K != 1) return false;
  for (int64_t limit : {256 << 10, 8 << 20}) {
    const int64_t rows = choose_rows(
        p.P, p.threads,
        [&](int64_t r) {
          const DepthwisePlan plan = depthwise_plan_for<A>(p, r);
          return (plan.x_elements + plan.acc_elements) * static_cast<int64_t>(sizeof(A)) <= limit;
        },
        [&](int64_t r) {
          const DepthwisePlan plan = depthwise_plan_for<A>(p, r);
          return p.N * plan.blocks * plan.g.h.tiles * plan.g.w.tiles;
        },
        [&](int64_t r) {
          const DepthwisePlan plan = depthwise_plan_for<A>(p, r);
          return plan.g.channel * 2.0 + static_cast<double>(r) * plan.g.w.tile * (p.R * p.S * 0.6 + 2) + 300;
        });
    if (!rows) continue;
    plan = depthwise_plan_for<A>(p, rows);
    return true;
  }
  return false;
}

template <class A, int PX>
void depthwise_micro(const A* x, const Tap* taps, int tap_count, const A* w, Vec<A> bias, A* acc) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[PX];
#pragma GCC unroll 16
  for (int i = 0; i < PX; ++i) sum[i] = bias;
  for (int t = 0; t < tap_count; ++t) {
    const A* from = x + static_cast<int64_t>(taps[t].offset) * L;
    const Vec<A> weight = load(w + static_cast<int64_t>(taps[t].index) * L);
#pragma GCC unroll 16
    for (int i = 0; i < PX; ++i) sum[i] += load(from + i * L) * weight;
  }
#pragma GCC unroll 16
  for (int i = 0; i < PX; ++i) store(acc + i * L, sum[i]);
}

template <class A>
using DepthwiseMicro = void (*)(const A*, const Tap*, int, const A*, Vec<A>, A*);

template <class A, int... I>
DepthwiseMicro<A> depthwise_micro_of(int pixels, std::integer_sequence<int, I...>) {
  static const DepthwiseMicro<A> kTable[] = {depthwise_micro<A, I + 1>...};
  return kTable[pixels - 1];
}

template <class A>
struct DepthwiseScratch {
  A* sums;  // of the weight gradient, [block][tap][L], each copy
  char* threads;
  int64_t thread_bytes, total;

  DepthwiseScratch(const ConvParams& p, const DepthwisePlan& plan, int64_t copies, void* scratch) {
    constexpr int L = kLanes<A>;
    Carver carve(scratch);
    sums = carve.take<A>(copies * plan.blocks * L * p.R * p.S);
    thread_bytes = round_up((plan.x_elements + plan.acc_elements) * static_cast<int64_t>(sizeof(A)), 64) + 256 +
                   round_up(p.R * p.S * static_cast<int64_t>(sizeof(Tap)), 64);
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

// Weights as [block][tap][L].
template <class T, class A>
void depthwise_pack(const ConvParams& p, const DepthwisePlan& plan, A* weights) {
  constexpr int L = kLanes<A>;
  for (int64_t b = 0; b < plan.blocks; ++b) {
    const int n = static_cast<int>(min64(L, p.G - b * L));
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t s = 0; s < p.S; ++s)
        store(weights + ((b * p.R + r) * p.S + s) * L,
              load_strided(at<const T>(p.weight, 0, 0, r, s) + b * L * p.weight_g, p.weight_g, n));
  }
}

template <class T>
void depthwise_forward(const ConvParams& p, const DepthwisePlan& plan, const void* packed, void* scratch) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const DepthwiseScratch<A> memory(p, plan, 0, scratch);
  const A* weights = static_cast<const A*>(packed);
  const int64_t taps_of_kernel = p.R * p.S;
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles;
  compute_for(p.threads, p.N * plan.blocks * tiles, [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    Tap* taps = carve.take<Tap>(taps_of_kernel);
    A* x = carve.take<A>(plan.x_elements);
    A* acc = carve.take<A>(plan.acc_elements);
    // Blocks of channels innermost: those of a pixel lie side by side in memory.
    const int64_t block = item % plan.blocks, count = min64(L, p.G - block * L);
    const Tile t = make_tile(p, plan.g, item / plan.blocks / tiles, item / plan.blocks % tiles);
    const int tap_count = live_taps(p, plan.g, t, taps);
    fill_packed<T>(p, plan.g, t, block * L, count, x);
    const Vec<A> bias =
        p.bias ? load_partial(static_cast<const T*>(p.bias) + block * L, static_cast<int>(count)) : Vec<A>{};
    const int64_t chunks = ceil_div(t.columns, kDepthwisePixels);
    for (int64_t row = 0; row < t.rows; ++row)
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t q = t.columns * chunk / chunks, end = t.columns * (chunk + 1) / chunks;
        depthwise_micro_of<A>(static_cast<int>(end - q), std::make_integer_sequence<int, kDepthwisePixels>{})(
            x + (row * plan.g.pitch + q) * L, taps, tap_count, weights + block * taps_of_kernel * L, bias,
            acc + (row * t.columns + q) * L);
      }
    store_packed<T>(p, t, block * L, count, acc, L);
  });
}

// ---- weight gradient: TB running sums, one a tap, over the pixels of a tile
// ------------------------------------------

template <class A, int TB>
void depthwise_grad_micro(const A* x, const Tap* taps, int64_t pitch, const A* grad, int64_t rows, int64_t columns,
                          A* sums) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[TB] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const A* from = x + row * pitch * L;
    for (int64_t q = 0; q < columns; ++q, from += L, grad += L) {
      const Vec<A> g = load(grad);
#pragma GCC unroll 16
      for (int t = 0; t < TB; ++t) sum[t] += g * load(from + static_cast<int64_t>(taps[t].offset) * L);
    }
  }
  for (int t = 0; t < TB; ++t) {
    A* to = sums + static_cast<int64_t>(taps[t].index) * L;
    store(to, load(to) + sum[t]);
  }
}

template <class A>
using DepthwiseGradMicro = void (*)(const A*, const Tap*, int64_t, const A*, int64_t, int64_t, A*);

template <class A, int... I>
DepthwiseGradMicro<A> depthwise_grad_micro_of(int taps, std::integer_sequence<int, I...>) {
  static const DepthwiseGradMicro<A> kTable[] = {depthwise_grad_micro<A, I + 1>...};
  return kTable[taps - 1];
}

// Where there are fewer blocks of channels than threads can share evenly, images are split too, each share with sums of
// its own.
inline int64_t depthwise_splits(const ConvParams& p, int64_t blocks) {
  return min64(p.N, blocks >= 8 * p.threads ? 1 : ceil_div(8 * p.threads, blocks));
}

template <class T>
void depthwise_grad_weight(const ConvParams& p, const DepthwisePlan& plan, void* scratch) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const int64_t splits = depthwise_splits(p, plan.blocks);
  const DepthwiseScratch<A> memory(p, plan, splits, scratch);
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles, taps_of_kernel = p.R * p.S;
  const int64_t all = plan.blocks * taps_of_kernel * L;
  compute_for(p.threads, plan.blocks * splits, [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    Tap* taps = carve.take<Tap>(taps_of_kernel);
    A* x = carve.take<A>(plan.x_elements);
    A* grad = carve.take<A>(plan.acc_elements);
    const int64_t block = item % plan.blocks, split = item / plan.blocks, count = min64(L, p.G - block * L);
    A* sums = memory.sums + split * all + block * taps_of_kernel * L;
    zero(sums, taps_of_kernel * L);
    for (int64_t n = p.N * split / splits; n < p.N * (split + 1) / splits; ++n)
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const Tile t = make_tile(p, plan.g, n, tile);
        const int tap_count = live_taps(p, plan.g, t, taps);
        fill_packed<T>(p, plan.g, t, block * L, count, x);
        fill_grad_packed<T>(p, t, block * L, count, plan.acc_elements, grad);
        const int64_t chunks = ceil_div(tap_count, kDepthwiseTaps);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          const int64_t begin = tap_count * chunk / chunks, end = tap_count * (chunk + 1) / chunks;
          depthwise_grad_micro_of<A>(static_cast<int>(end - begin), std::make_integer_sequence<int, kDepthwiseTaps>{})(
              x, taps + begin, plan.g.pitch, grad, t.rows, t.columns, sums);
        }
      }
  });
  for (int64_t block = 0; block < plan.blocks; ++block) {
    const int n = static_cast<int>(min64(L, p.G - block * L));
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t s = 0; s < p.S; ++s) {
        const A* sums = memory.sums + (block * taps_of_kernel + r * p.S + s) * L;
        Vec<A> sum = load(sums);
        for (int64_t split = 1; split < splits; ++split) sum += load(sums + split * all);
        store_strided(at<T>(p.weight, 0, 0, r, s) + block * L * p.weight_g, p.weight_g, sum, n);
      }
  }
}

inline bool depthwise_preferred(const ConvParams& p) {
  return p.C == 1 && p.K == 1 && p.G >= 4 && is_channels_last(p.input) && is_channels_last(p.output);
}

struct DepthwiseForward {
  using Plan = DepthwisePlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    return depthwise_preferred(p);
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!depthwise_plan<A>(p, plan)) return false;
    memory.packed = plan.blocks * kLanes<A> * p.R * p.S * static_cast<int64_t>(sizeof(A));
    memory.scratch = DepthwiseScratch<A>(p, plan, 0, nullptr).total;
    return true;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    depthwise_pack<T>(p, plan, static_cast<Accumulate<T>*>(packed));
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    depthwise_forward<T>(p, plan, packed, scratch);
  }
};

struct DepthwiseGradWeight {
  using Plan = DepthwisePlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    return depthwise_preferred(p);
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!depthwise_plan<A>(p, plan)) return false;
    memory.scratch = DepthwiseScratch<A>(p, plan, depthwise_splits(p, plan.blocks), nullptr).total;
    return true;
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, void* scratch) {
    depthwise_grad_weight<T>(p, plan, scratch);
  }
};

}  // namespace
}  // namespace fastconv
