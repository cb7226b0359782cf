// Convolution with vectors along the pixels, for groups with few channels: grouped and depthwise layers, in which a
// group has too few output channels to fill a vector. One broadcast weight serves a vector of pixels; a register tile
// is KB output channels by NV vectors. Scratch is planar, so every load is contiguous whatever the stride.
//
// Flat runs: rows of a 7- or 28-wide map leave the last vector half empty. Where it pays, the rows of a tile are
// computed as one run over the padded pitch; the results in the gaps between rows are thrown away when the tile is
// stored. Where a row is at most one vector wide and a flat run does not pay, the NV vectors are NV rows.
//
// With pairs of bfloat16 for elements the same tiles are pixel_pairs.h.
#pragma once
#include "conv/tile.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

// Vectors of pixels in a register tile of KB channels: accumulators, the loaded pixels and one broadcast must fit.
constexpr int pixel_vectors(int kb) { return min64((kVecRegisters - 2) / (kb + 1), kb == 4 ? 5 : 8); }
constexpr int kMaxPixelVectors = 8;

// The elements of scratch and of packed weights: what is summed up, as it is.
template <class T>
struct Singles {
  using A = T;
  using X = T;
  static void add(Vec<A>& sum, Vec<X> weight, Vec<X> x) { sum += weight * x; }
};

struct PixelPlan {
  Geometry g;
  int64_t groups;  // groups of one work item
  int64_t group_items;
  int64_t kb, k_padded;  // output channels of a register tile, K rounded up to it
  int64_t x_channel, acc_channel;
  int64_t acc_channels;  // that are stored at a time: of a planar output those of a register tile
  bool flat;
};

// Output channels of a register tile: as many as there are registers for, unless fewer leave so many less empty that
// loading pixels more often pays.
inline int64_t pixel_block(int64_t K) {
  int64_t best = 1;
  double least = 2.0 * static_cast<double>(K);
  for (const auto& [kb, cost] : {std::pair<int64_t, double>{2, 1.4}, {4, 1.1}, {8, 1.0}}) {
    const double of_block = static_cast<double>(round_up(K, kb)) * cost;
    if (pixel_vectors(static_cast<int>(kb)) < 2 || of_block > least) continue;
    best = kb;
    least = of_block;
  }
  return best;
}

template <class A>
int64_t pixel_thread_bytes(const ConvParams& p, const PixelPlan& plan) {
  const int64_t slack = kMaxPixelVectors * kLanes<A>;
  return (plan.groups * p.C * plan.x_channel + slack + plan.acc_channels * plan.acc_channel) *
         static_cast<int64_t>(sizeof(A));
}

constexpr int64_t kFirstLevelBytes = 24 << 10;
constexpr int64_t kPreferredBytes = 384 << 10;  // stays in a second-level cache, with the weights that pass over it
constexpr int64_t kLargestBytes = 8 << 20;      // beyond this another kernel must serve

// The most columns of a tile. A plane of one row, which join_rows() makes of 1x1 layers, is cut into as many tiles as
// every thread gets the same number of, and no larger than the second-level cache.
template <class A>
int64_t pixel_columns(const ConvParams& p, int64_t group_items) {
  constexpr int64_t kMore = 8;
  if (p.P > 1 || p.Q <= kLanes<A>) return kMaxTileColumns;
  const int64_t vectors = ceil_div(p.Q, kLanes<A>), row_bytes = p.Q * p.C * static_cast<int64_t>(sizeof(A));
  const int64_t least = max64(ceil_div(p.Q, kMaxTileColumns), min64(vectors, ceil_div(row_bytes, kPreferredBytes)));
  int64_t best = 0;
  double best_time = 0;
  for (int64_t tiles = least; tiles <= least + kMore; ++tiles) {
    const int64_t of_tile = ceil_div(vectors, tiles);
    const double time =
        finish_time(p.N * group_items * ceil_div(vectors, of_tile), p.threads, static_cast<double>(of_tile + 1));
    if (best != 0 && time >= best_time) continue;
    best = of_tile * kLanes<A>;
    best_time = time;
  }
  return best;
}

template <class A>
PixelPlan pixel_plan_for(const ConvParams& p, int64_t rows, int64_t groups) {
  PixelPlan plan;
  plan.g = make_geometry(p, rows, pixel_columns<A>(p, ceil_div(p.G, groups)));
  plan.groups = groups;
  plan.group_items = ceil_div(p.G, groups);
  plan.kb = pixel_block(p.K);
  plan.k_padded = round_up(p.K, plan.kb);
  // Whole vectors, written beyond the last position as well, and an odd number of them: channels whose distance is a
  // multiple of 4 KB would share a few sets of the first-level cache.
  plan.x_channel = (ceil_div(plan.g.channel + kLanes<A> - 1, kLanes<A>) | 1) * kLanes<A>;
  plan.acc_channels = is_channels_last(p.output) ? groups * plan.k_padded : plan.kb;
  plan.acc_channel = round_up(rows * plan.g.pitch, kLanes<A>) + kMaxPixelVectors * kLanes<A>;
  plan.flat = plan.g.pitch < round_up(plan.g.w.tile, kLanes<A>);
  return plan;
}

// Estimated cycles of one item.
template <class A>
double pixel_cost(const ConvParams& p, const PixelPlan& plan) {
  const double lanes = plan.g.h.tile * (plan.flat ? plan.g.pitch : round_up(plan.g.w.tile, kLanes<A>));
  const double macs = lanes * plan.k_padded * p.C * p.R * p.S / kLanes<A>;
  const double moved = static_cast<double>(p.C * plan.g.channel + p.K * plan.g.h.tile * plan.g.w.tile) / 8;
  return plan.groups * (macs * (plan.kb == 1 ? 1.0 : 0.6) + moved + 200) + 300;
}

template <class A>
bool pixel_plan(const ConvParams& p, PixelPlan& plan) {
  // Channels_last tensors are transposed a vector of channels at a time, so such an item takes enough groups for one.
  const bool last = is_channels_last(p.input) || is_channels_last(p.output);
  int64_t groups = last ? min64(p.G, ceil_div(kLanes<A>, max64(1, min64(p.C, p.K)))) : 1;
  const double work = static_cast<double>(p.P) * p.Q * p.C * p.K * p.R * p.S;
  while (!last && groups * 2 <= p.G && work * groups < 30000) groups *= 2;
  const int64_t weights = groups * p.K * p.C * p.R * p.S * static_cast<int64_t>(sizeof(A));
  for (int64_t limit : {kFirstLevelBytes, max64(kPreferredBytes - weights, kPreferredBytes / 4), kLargestBytes}) {
    const int64_t rows = choose_rows(
        p.P, p.threads, [&](int64_t r) { return pixel_thread_bytes<A>(p, pixel_plan_for<A>(p, r, groups)) <= limit; },
        [&](int64_t r) {
          const PixelPlan plan = pixel_plan_for<A>(p, r, groups);
          return p.N * plan.group_items * plan.g.h.tiles * plan.g.w.tiles;
        },
        [&](int64_t r) { return pixel_cost<A>(p, pixel_plan_for<A>(p, r, groups)); });
    if (!rows) continue;
    plan = pixel_plan_for<A>(p, rows, groups);
    // Tiles so low that they read mostly what their neighbours read too gain nothing from the first-level cache.
    if (limit == kFirstLevelBytes && rows < p.P && plan.g.h.span * 2 > rows * 3) continue;
    return true;
  }
  return false;
}

// acc[k][i] = bias[k] + sum over terms of w[term.index + k] * x[term.offset + i], for KB channels and NV vectors of
// positions, `step` from one to the next. A term is a tap of one input channel; there is at least one.
template <class E, int KB, int NV>
void pixel_micro(const typename E::X* x, const Tap* terms, int64_t term_count, const typename E::X* w,
                 const typename E::A* bias, typename E::A* acc, int64_t acc_channel, int64_t step) {
  using A = typename E::A;
  using X = typename E::X;
  Vec<A> sum[KB][NV];
#pragma GCC unroll 16
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[k][j] = splat(bias[k]);
  const Tap* const end = terms + term_count;
  do {
    const X* from = x + terms->offset;
    const X* weight = w + terms->index;
    Vec<X> v[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) v[j] = load(from + j * step);
#pragma GCC unroll 16
    for (int k = 0; k < KB; ++k) {
      const Vec<X> b = splat(weight[k]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) E::add(sum[k][j], b, v[j]);
    }
  } while (++terms != end);
#pragma GCC unroll 16
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) store(acc + k * acc_channel + j * step, sum[k][j]);
}

template <class E>
using PixelMicro = void (*)(const typename E::X*, const Tap*, int64_t, const typename E::X*, const typename E::A*,
                            typename E::A*, int64_t, int64_t);

template <class E, int KB>
PixelMicro<E> pixel_micro_of(int vectors) {
  constexpr int kMax = pixel_vectors(KB);
  static const PixelMicro<E> kTable[] = {
      pixel_micro<E, KB, 1>,
      pixel_micro<E, KB, min64(2, kMax)>,
      pixel_micro<E, KB, min64(3, kMax)>,
      pixel_micro<E, KB, min64(4, kMax)>,
      pixel_micro<E, KB, min64(5, kMax)>,
      pixel_micro<E, KB, min64(6, kMax)>,
      pixel_micro<E, KB, min64(7, kMax)>,
      pixel_micro<E, KB, min64(8, kMax)>,
  };
  return kTable[vectors - 1];
}

constexpr int kMostPixelChannels = kVecRegisters == 32 ? 16 : 8;  // of one vector of pixels

template <class E>
PixelMicro<E> pixel_micro_of(int64_t kb, int vectors) {
  switch (kb) {
    case 1: return pixel_micro_of<E, 1>(vectors);
    case 2: return pixel_micro_of<E, 2>(vectors);
    case 4: return pixel_micro_of<E, 4>(vectors);
    case 8: return pixel_micro_of<E, 8>(vectors);
    default: return pixel_micro<E, kMostPixelChannels, 1>;
  }
}

// A register tile's output channels over a run of `vectors` vectors of positions.
template <class E>
void pixel_run(const PixelPlan& plan, const typename E::X* x, const Tap* terms, int64_t term_count,
               const typename E::X* weights, const typename E::A* bias, typename E::A* acc, int64_t vectors,
               int64_t step) {
  const int64_t chunks = ceil_div(vectors, pixel_vectors(static_cast<int>(plan.kb)));
  int64_t i = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t n = (vectors * (chunk + 1)) / chunks - (vectors * chunk) / chunks;
    pixel_micro_of<E>(plan.kb, static_cast<int>(n))(x + i, terms, term_count, weights, bias, acc + i, plan.acc_channel,
                                                    step);
    i += n * step;
  }
}

// weights[g][k / KB][c][tap][k % KB], padded with zeros.
template <class T, class A>
void pixel_pack(const ConvParams& p, const PixelPlan& plan, A* weights) {
  const int64_t taps = p.R * p.S;
  const bool dense = (taps == 1 || (p.weight.w == 1 && p.weight.h == p.S)) && p.weight.c == taps;
  compute_for(p.G * plan.k_padded * p.C * taps > 65536 ? p.threads : 1, p.G, [&](int64_t g, int) {
    A* to = weights + g * plan.k_padded * p.C * taps;
    for (int64_t k0 = 0; k0 < plan.k_padded; k0 += plan.kb) {
      if (dense && k0 + plan.kb <= p.K) {  // (1x1, 64 to 256 channels: 36 us -> 9)
        const T* from = at<const T>(p.weight, k0, 0, 0, 0) + g * p.weight_g;
        for (int64_t i = 0; i < p.C * taps; ++i)
          for (int64_t k = 0; k < plan.kb; ++k) *to++ = get(from + k * p.weight.n + i);
        continue;
      }
      for (int64_t c = 0; c < p.C; ++c)
        for (int64_t r = 0; r < p.R; ++r)
          for (int64_t s = 0; s < p.S; ++s)
            for (int64_t k = k0; k < k0 + plan.kb; ++k)
              *to++ = k < p.K ? get(at<const T>(p.weight, k, c, r, s) + g * p.weight_g) : A(0);
    }
  });
}

template <class A>
int64_t pixel_packed_bytes(const ConvParams& p, const PixelPlan& plan) {
  return p.G * plan.k_padded * p.C * p.R * p.S * static_cast<int64_t>(sizeof(A));
}

template <class A>
struct PixelScratch {
  A* bias;
  char* threads;  // x, acc and taps of each
  int64_t thread_bytes, total;

  PixelScratch(const ConvParams& p, const PixelPlan& plan, void* scratch) {
    Carver carve(scratch);
    bias = carve.take<A>(p.G * plan.k_padded);
    thread_bytes = round_up(pixel_thread_bytes<A>(p, plan), 64) + 128 +
                   round_up(p.C * p.R * p.S * static_cast<int64_t>(sizeof(Tap)), 64);
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

// The live taps of every input channel of a group, with their places in the packed weights.
inline int64_t pixel_terms(const ConvParams& p, const PixelPlan& plan, const Tile& t, Tap* terms) {
  const int count = live_taps(p, plan.g, t, terms);
  for (int64_t c = p.C - 1; c >= 0; --c)
    for (int i = 0; i < count; ++i) {
      const Tap tap = terms[i];
      terms[c * count + i].offset = static_cast<int32_t>(c * plan.x_channel + tap.offset);
      terms[c * count + i].index = static_cast<int32_t>((c * p.R * p.S + tap.index) * plan.kb);
    }
  return p.C * count;
}

// `fill(tile, g, groups, x)` copies what these groups read.
template <class T, class E, class Fill>
void pixel_forward(const ConvParams& p, const PixelPlan& plan, const void* packed, void* scratch, const Fill& fill) {
  using A = typename E::A;
  using X = typename E::X;
  constexpr int64_t L = kLanes<A>;
  const PixelScratch<A> memory(p, plan, scratch);
  padded_bias<T>(p, plan.k_padded, memory.bias);
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles;
  const bool last = is_channels_last(p.output);
  compute_for(p.threads, p.N * plan.group_items * tiles, [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    Tap* terms = carve.take<Tap>(p.C * p.R * p.S);
    X* x = carve.take<X>(plan.groups * p.C * plan.x_channel + kMaxPixelVectors * kLanes<A>);
    A* acc = carve.take<A>(plan.acc_channels * plan.acc_channel);
    const int64_t g0 = item / tiles % plan.group_items * plan.groups;
    const int64_t groups = min64(plan.groups, p.G - g0);
    const Tile t = make_tile(p, plan.g, item / tiles / plan.group_items, item % tiles);
    const int64_t term_count = pixel_terms(p, plan, t, terms), pitch = plan.g.pitch;
    fill(t, g0, groups, x);
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t k = 0; k < plan.k_padded; k += plan.kb) {
        const X* xg = x + g * p.C * plan.x_channel;
        const X* weights = static_cast<const X*>(packed) + ((g0 + g) * plan.k_padded + k) * p.C * p.R * p.S;
        const A* bias = memory.bias + (g0 + g) * plan.k_padded + k;
        // The padding of one group is overwritten by the next.
        A* sums = last ? acc + (g * p.K + k) * plan.acc_channel : acc;
        const auto run = [&](int64_t i, int64_t vectors, int64_t step) {
          pixel_run<E>(plan, xg + i, terms, term_count, weights, bias, sums + i, vectors, step);
        };
        if (plan.flat)
          run(0, ceil_div((t.rows - 1) * pitch + t.columns, L), L);
        else if (t.columns <= L && pitch >= L)
          run(0, t.rows, pitch);
        else
          for (int64_t i = 0; i < t.rows; ++i) run(i * pitch, ceil_div(t.columns, L), L);
        if (!last) store_planar<T>(p, t, (g0 + g) * p.K + k, min64(plan.kb, p.K - k), sums, plan.acc_channel, pitch);
      }
    if (last) store_planar<T>(p, t, g0 * p.K, groups * p.K, acc, plan.acc_channel, pitch);
  });
}

// ---- weight gradient
// -------------------------------------------------------------------------------------------------
//
// grad_weight[k, c, tap] = sum over positions of grad_output[k, i] * x[c, offset[tap] + i]: grad_output is laid out
// with the pitch of the planes, zero in the gaps, and a register tile is KB channels by TB pairs (c, tap) of running
// sums.

constexpr int pixel_grad_taps(int kb) { return min64((kVecRegisters - 2 - kb) / kb, kb == 1 ? 12 : kb == 2 ? 9 : 6); }

template <class A, int KB, int TB>
void pixel_grad_micro(const A* grad, int64_t grad_channel, int64_t vectors, const A* const* x, A* sums,
                      int64_t sums_channel) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[KB][TB] = {};
  for (int64_t i = 0; i < vectors * L; i += L) {
    Vec<A> g[KB];
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k) g[k] = load(grad + k * grad_channel + i);
#pragma GCC unroll 16
    for (int t = 0; t < TB; ++t) {
      const Vec<A> v = load(x[t] + i);
#pragma GCC unroll 8
      for (int k = 0; k < KB; ++k) sum[k][t] += g[k] * v;
    }
  }
  for (int k = 0; k < KB; ++k)
    for (int t = 0; t < TB; ++t) sums[k * sums_channel + t] += sum_lanes<A>(sum[k][t]);
}

template <class A>
using PixelGradMicro = void (*)(const A*, int64_t, int64_t, const A* const*, A*, int64_t);

template <class A, int KB>
PixelGradMicro<A> pixel_grad_micro_of(int pairs) {
  constexpr int kMax = pixel_grad_taps(KB);
  static const PixelGradMicro<A> kTable[] = {
      pixel_grad_micro<A, KB, 1>,
      pixel_grad_micro<A, KB, min64(2, kMax)>,
      pixel_grad_micro<A, KB, min64(3, kMax)>,
      pixel_grad_micro<A, KB, min64(4, kMax)>,
      pixel_grad_micro<A, KB, min64(5, kMax)>,
      pixel_grad_micro<A, KB, min64(6, kMax)>,
      pixel_grad_micro<A, KB, min64(7, kMax)>,
      pixel_grad_micro<A, KB, min64(8, kMax)>,
      pixel_grad_micro<A, KB, min64(9, kMax)>,
      pixel_grad_micro<A, KB, min64(10, kMax)>,
      pixel_grad_micro<A, KB, min64(11, kMax)>,
      pixel_grad_micro<A, KB, min64(12, kMax)>,
  };
  return kTable[pairs - 1];
}

struct PixelGradPlan {
  Geometry g;
  int64_t kb, blocks;  // output channels of a work item, work items of a group
  int64_t grad_channel;
  int64_t x_elements, grad_elements, sums_elements;
};

template <class A>
PixelGradPlan pixel_grad_plan_for(const ConvParams& p, int64_t rows) {
  PixelGradPlan plan;
  plan.g = make_geometry(p, rows);
  plan.kb = p.K >= 4 && pixel_grad_taps(4) > 1 ? 4 : p.K >= 2 ? 2 : 1;
  plan.blocks = ceil_div(p.K, plan.kb);
  plan.grad_channel = round_up(rows * plan.g.pitch, kLanes<A>);
  plan.x_elements = p.C * plan.g.channel + kLanes<A>;
  plan.grad_elements = plan.kb * plan.grad_channel;
  plan.sums_elements = plan.kb * p.C * p.R * p.S;
  return plan;
}

template <class A>
int64_t pixel_grad_bytes(const ConvParams& p, const PixelGradPlan& plan) {
  return round_up((plan.x_elements + plan.grad_elements + plan.sums_elements) * static_cast<int64_t>(sizeof(A)), 64) +
         256 + p.R * p.S * static_cast<int64_t>(sizeof(Tap)) + p.C * p.R * p.S * static_cast<int64_t>(2 * sizeof(A*));
}

template <class A>
bool pixel_grad_plan(const ConvParams& p, PixelGradPlan& plan) {
  for (int64_t limit : {kPreferredBytes / 2, kLargestBytes}) {
    const int64_t rows = choose_rows(
        p.P, 1, [&](int64_t r) { return pixel_grad_bytes<A>(p, pixel_grad_plan_for<A>(p, r)) <= limit; },
        [&](int64_t r) { return ceil_div(p.P, r); },
        [&](int64_t r) { return static_cast<double>(pixel_grad_plan_for<A>(p, r).g.channel + 400); });
    if (!rows) continue;
    plan = pixel_grad_plan_for<A>(p, rows);
    return true;
  }
  return false;
}

template <class T>
void pixel_grad_weight(const ConvParams& p, const PixelGradPlan& plan, void* scratch) {
  using A = Accumulate<T>;
  const int64_t thread_bytes = round_up(pixel_grad_bytes<A>(p, plan), 64);
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles, taps_of_kernel = p.R * p.S;
  // A thread owns the sums of its channels over all images: no copies to add up, and the same result every time.
  compute_for(p.threads, p.G * plan.blocks, [&](int64_t item, int thread) {
    Carver carve(static_cast<char*>(scratch) + thread * thread_bytes);
    Tap* taps = carve.take<Tap>(taps_of_kernel);
    const A** pairs = carve.take<const A*>(p.C * taps_of_kernel);
    int64_t* targets = carve.take<int64_t>(p.C * taps_of_kernel);
    A* sums = carve.take<A>(plan.sums_elements);
    A* x = carve.take<A>(plan.x_elements);
    A* grad = carve.take<A>(plan.grad_elements);
    const int64_t g = item / plan.blocks, k0 = item % plan.blocks * plan.kb, count = min64(plan.kb, p.K - k0);
    const int64_t sums_channel = p.C * taps_of_kernel;
    zero(sums, plan.sums_elements);
    zero(x, plan.x_elements);  // gaps are multiplied by zero, and must not hold NaN
    zero(grad, plan.grad_elements);
    for (int64_t n = 0; n < p.N; ++n)
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const Tile t = make_tile(p, plan.g, n, tile);
        const int tap_count = live_taps(p, plan.g, t, taps);
        fill_planar<T>(p, plan.g, t, g * p.C, p.C, plan.g.channel, x);
        fill_grad<T>(p, t, g * p.K + k0, count, plan.grad_channel, plan.g.pitch, grad);
        int64_t pair_count = 0;
        for (int64_t c = 0; c < p.C; ++c)
          for (int i = 0; i < tap_count; ++i) {
            pairs[pair_count] = x + c * plan.g.channel + taps[i].offset;
            targets[pair_count++] = c * taps_of_kernel + taps[i].index;
          }
        const int64_t vectors = ceil_div((t.rows - 1) * plan.g.pitch + t.columns, kLanes<A>);
        const int64_t most = pixel_grad_taps(static_cast<int>(plan.kb));
        const int64_t chunks = ceil_div(pair_count, most);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          const int64_t begin = pair_count * chunk / chunks, end = pair_count * (chunk + 1) / chunks;
          const int size = static_cast<int>(end - begin);
          A local[4 * 12] = {};
          const auto micro = plan.kb == 4   ? pixel_grad_micro_of<A, 4>(size)
                             : plan.kb == 2 ? pixel_grad_micro_of<A, 2>(size)
                                            : pixel_grad_micro_of<A, 1>(size);
          micro(grad, plan.grad_channel, vectors, pairs + begin, local, size);
          for (int64_t k = 0; k < plan.kb; ++k)
            for (int i = 0; i < size; ++i) sums[k * sums_channel + targets[begin + i]] += local[k * size + i];
        }
      }
    for (int64_t k = 0; k < count; ++k)
      for (int64_t c = 0; c < p.C; ++c)
        for (int64_t r = 0; r < p.R; ++r)
          for (int64_t s = 0; s < p.S; ++s)
            put(at<T>(p.weight, k0 + k, c, r, s) + g * p.weight_g, sums[k * sums_channel + (c * p.R + r) * p.S + s]);
  });
}

struct PixelForward {
  using Plan = PixelPlan;
  template <class A>
  static bool preferred(const ConvParams&) {
    return true;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!pixel_plan<A>(p, plan)) return false;
    memory.packed = pixel_packed_bytes<A>(p, plan);
    memory.scratch = PixelScratch<A>(p, plan, nullptr).total;
    return true;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    pixel_pack<T>(p, plan, static_cast<Accumulate<T>*>(packed));
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    using A = Accumulate<T>;
    pixel_forward<T, Singles<A>>(p, plan, packed, scratch, [&](const Tile& t, int64_t g, int64_t groups, A* x) {
      fill_planar<T>(p, plan.g, t, g * p.C, groups * p.C, plan.x_channel, x);
    });
  }
};

struct PixelGradWeight {
  using Plan = PixelGradPlan;
  template <class A>
  static bool preferred(const ConvParams&) {
    return true;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!pixel_grad_plan<A>(p, plan)) return false;
    memory.scratch = round_up(pixel_grad_bytes<A>(p, plan), 64) * p.threads;
    return true;
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, void* scratch) {
    pixel_grad_weight<T>(p, plan, scratch);
  }
};

}  // namespace
}  // namespace fastconv
