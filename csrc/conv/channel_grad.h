// The weight gradient of dense layers and of groups with many channels, the counterpart of channel.h:
// grad_weight[k, c, tap] is a product over pixels: a register tile is KV vectors of output channels, loaded from packed
// grad_output, by CB input channels, broadcast from packed input. Sums have the layout of packed weights. Threads own
// ranges of output channels, each reading the whole input, or ranges of tiles, each with sums of its own that are added
// up in order at the end: whichever costs less. (1x1, 256 to 64 at 56x56, 8 images, channels_last, two threads: 5.5 ms
// with 32 output channels each, 3.8 with four images.)
//
// A tap is multiplied with those outputs of a tile alone that it serves from within the image. (8 images, two threads:
// 3x3, 256@14 8.7 -> 8.2 ms; 32 a group, 1024@7 1.22 -> 1.10; 25@64x128 of rate 16, together with register tiles of
// nine channels, 2.75 -> 2.14.)
//
// The columns of a picture's kernel rows are folded as in channel.h, so that channels fill register tiles. (7x7 of
// stride 2, 3 to 64@224: 17.0 -> 11.2 ms.)
#pragma once
#include "conv/channel_plan.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

constexpr int64_t kSplitSumBytes = 4 << 20;    // a thread, where threads have sums of their own
constexpr int64_t kNearPixelBytes = 32 << 10;  // of the pixels that a register tile reads and the first level holds
constexpr int64_t kNearColumns = 168;  // of a tile of long rows: of 16 input and 32 output channels about as much

// The most input channels of a register tile; those of a block of L are dealt evenly to as few as will do.
constexpr int kGradChannels = kVecRegisters >= 32 ? 9 : 4;

struct ChannelGradPlan {
  Geometry g;
  int64_t folds;  // columns of the kernel that are channels, or 0; then the plan is that of fold_columns()
  int kv;
  int64_t k_block, k_blocks, c_blocks;
  int64_t k_splits, k_range, n_splits;
  int64_t block_elements;  // sums of one k_block
  int64_t x_elements, grad_elements;

  int64_t items(const ConvParams& p) const { return p.G * k_splits * n_splits; }
  int64_t all_sums(const ConvParams& p) const { return n_splits * p.G * k_blocks * block_elements; }
};

template <class A>
ChannelGradPlan channel_grad_plan_for(const ConvParams& p, int64_t rows, int64_t columns, int64_t k_splits,
                                      int64_t folds) {
  constexpr int L = kLanes<A>;
  ChannelGradPlan plan;
  plan.folds = folds;
  plan.g = folds ? fold_geometry(p, rows, columns, folds) : make_geometry(p, rows, columns);
  plan.kv = p.K <= L ? 1 : kVecRegisters >= 32 && round_up(p.K, 3 * L) < round_up(p.K, 2 * L) ? 3 : 2;
  plan.k_block = plan.kv * L;
  plan.k_blocks = ceil_div(p.K, plan.k_block);
  plan.c_blocks = ceil_div(p.C, L);
  plan.k_range = ceil_div(plan.k_blocks, k_splits);
  plan.k_splits = ceil_div(plan.k_blocks, plan.k_range);
  plan.block_elements = plan.c_blocks * L * p.R * p.S * plan.k_block;
  const int64_t sum_bytes = p.G * plan.k_blocks * plan.block_elements * static_cast<int64_t>(sizeof(A));
  const int64_t wanted = min64(p.threads / (p.G * plan.k_splits), kSplitSumBytes * p.threads / sum_bytes);
  plan.n_splits = min64(max64(1, wanted), p.N * plan.g.h.tiles * plan.g.w.tiles);
  plan.x_elements = (folds ? plan.g.channel * p.stride_w * (p.C / folds) : plan.c_blocks * L * plan.g.channel) + 16 * L;
  plan.grad_elements = plan.k_range * plan.k_block * rows * plan.g.w.tile;
  return plan;
}

// Estimated cycles of copying what a tile reads of a tensor. Each plane of a contiguous one is a page of its own.
inline double channel_grad_fill(const View4& view, int64_t elements, int64_t channels) {
  return is_channels_last(view) ? 0.6 * static_cast<double>(elements)
                                : 0.9 * static_cast<double>(elements) + 80.0 * static_cast<double>(channels);
}

// Estimated cycles of one item.
template <class A>
double channel_grad_cost(const ConvParams& p, const ChannelGradPlan& plan) {
  constexpr int L = kLanes<A>;
  const int64_t tiles = ceil_div(p.N * plan.g.h.tiles * plan.g.w.tiles, plan.n_splits);
  const int64_t pixels = plan.g.h.tile * plan.g.w.tile;
  const double fill = channel_grad_fill(p.input, plan.x_elements, plan.c_blocks * L) +
                      channel_grad_fill(p.output, plan.grad_elements, plan.k_range * plan.k_block);
  const double own = static_cast<double>(plan.k_range * plan.block_elements);
  const double used = static_cast<double>(plan.k_range * plan.k_block * p.C * p.R * p.S);
  const bool near = pixels * (L + plan.k_block) * static_cast<int64_t>(sizeof(A)) <= kNearPixelBytes;
  const double products = used / L * static_cast<double>(pixels) * (near ? 0.5 : 0.57);
  // Every tile adds to all sums.
  return static_cast<double>(tiles) * (fill + products + 0.3 * own + 500) +
         0.1 * own * static_cast<double>(plan.n_splits);
}

template <class A>
bool channel_grad_plan(const ConvParams& original, ChannelGradPlan& best) {
  constexpr int64_t size = sizeof(A);
  const int64_t folds = can_fold(original) ? original.S : 0;
  const ConvParams p = folds ? fold_columns(original) : original;
  double best_total = 0;
  for (int64_t limit : {512 << 10, 8 << 20}) {
    for (int64_t k_splits = 1; k_splits < 2 * p.threads; k_splits *= 2) {
      for (int64_t columns : {kMaxTileColumns, kNearColumns}) {
        const auto plan_of = [&](int64_t r) {
          return channel_grad_plan_for<A>(p, r, columns, min64(k_splits, p.threads), folds);
        };
        const auto fits = [&](int64_t r) {
          const ChannelGradPlan plan = plan_of(r);
          return (plan.x_elements + plan.grad_elements) * size <= limit;
        };
        const auto items = [&](int64_t r) { return plan_of(r).items(p); };
        const auto cost = [&](int64_t r) { return channel_grad_cost<A>(p, plan_of(r)); };
        const int64_t rows = choose_rows(p.P, p.threads, fits, items, cost);
        if (!rows) continue;
        const double total = finish_time(items(rows), p.threads, cost(rows));
        if (best_total == 0 || total < best_total) {
          best = plan_of(rows);
          best_total = total;
        }
        if (p.Q <= kNearColumns) break;
      }
      if (k_splits * kLanes<A> >= p.K) break;  // more than there are blocks
    }
    if (best_total != 0) return true;
  }
  return false;
}

// A tap, and the rows and columns of a tile's outputs that it serves from within the image.
struct GradTap {
  int64_t offset, index;  // see Tap
  Range rows, columns;
};

inline int grad_taps(const ConvParams& p, const ChannelGradPlan& plan, const Tile& t, GradTap* taps) {
  int count = 0;
  for (int64_t r = 0; r < p.R; ++r) {
    const Range rows = served_outputs(t.p0, t.rows, p.stride_h, r * p.dilation_h - p.pad_h, p.H);
    if (rows.begin == rows.end) continue;
    for (int64_t s = 0; s < p.S; ++s) {
      const Range columns = plan.folds ? Range{0, t.columns}
                                       : served_outputs(t.q0, t.columns, p.stride_w, s * p.dilation_w - p.pad_w, p.W);
      if (columns.begin == columns.end) continue;
      const Tap tap = tap_of(p, plan.g, r, s);
      taps[count++] = {tap.offset, tap.index, rows, columns};
    }
  }
  return count;
}

template <class A>
struct ChannelGradScratch {
  A* sums;
  char* threads;
  int64_t thread_bytes, total;

  ChannelGradScratch(const ConvParams& p, const ChannelGradPlan& plan, void* scratch) {
    Carver carve(scratch);
    sums = carve.take<A>(plan.all_sums(p));
    thread_bytes = round_up((plan.x_elements + plan.grad_elements) * static_cast<int64_t>(sizeof(A)), 64) + 256 +
                   round_up(p.R * p.S * static_cast<int64_t>(sizeof(GradTap)), 64);
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

// sums[c][KV * L] += sum over the pixels of a tile of x[pixel][c] * grad[pixel][KV * L], for CB input channels. Where
// Fetch, fetches so many lines of what comes next, one a pixel: the processor's own fetching does not run ahead of
// copies that are interrupted by products. (1x1, 256 to 64 at 56x56, 8 images, channels_last: one thread 7.7 -> 6.6 ms,
// two 4.2 -> 3.4, in a slow mood of the machine 12.4 -> 11.6 and 5.2 -> 5.1; several lines at once, before the first
// pixel, gained nothing.)
template <class A, int KV, int CB, bool Fetch>
void channel_grad_micro(const A* x, int64_t pixel, int64_t pitch, const A* grad, int64_t grad_pitch, int64_t grad_block,
                        int64_t rows, int64_t columns, A* sums, Ahead& next, int64_t lines) {
  constexpr int L = kLanes<A>;
  // The sums of the next tap.
  for (int i = 0; i < CB * KV * L; i += 64 / static_cast<int>(sizeof(A))) __builtin_prefetch(sums + L * KV * L + i);
  Vec<A> sum[CB][KV];
#pragma GCC unroll 16
  for (int c = 0; c < CB; ++c)
#pragma GCC unroll 3
    for (int v = 0; v < KV; ++v) sum[c][v] = load(sums + (c * KV + v) * L);
  Ahead ahead;
  if constexpr (Fetch) ahead = next;
  for (int64_t row = 0; row < rows; ++row, x += pitch, grad += grad_pitch) {
    const A *from = x, *with = grad;
    for (int64_t q = 0; q < columns; ++q, from += pixel, with += L) {
      if (Fetch && lines-- > 0) ahead.fetch<2>();
      Vec<A> g[KV];
#pragma GCC unroll 3
      for (int v = 0; v < KV; ++v) g[v] = load(with + v * grad_block);
#pragma GCC unroll 16
      for (int c = 0; c < CB; ++c) {
        const Vec<A> value = splat(from[c]);
#pragma GCC unroll 3
        for (int v = 0; v < KV; ++v) sum[c][v] += value * g[v];
      }
    }
  }
  if constexpr (Fetch) next = ahead;
#pragma GCC unroll 16
  for (int c = 0; c < CB; ++c)
#pragma GCC unroll 3
    for (int v = 0; v < KV; ++v) store(sums + (c * KV + v) * L, sum[c][v]);
}

template <class A>
using ChannelGradMicro = void (*)(const A*, int64_t, int64_t, const A*, int64_t, int64_t, int64_t, int64_t, A*, Ahead&,
                                  int64_t);

template <class A, int KV, bool Fetch, int... I>
ChannelGradMicro<A> channel_grad_micro_of(int64_t channels, std::integer_sequence<int, I...>) {
  static const ChannelGradMicro<A> kTable[] = {channel_grad_micro<A, KV, I + 1, Fetch>...};
  return kTable[channels - 1];
}

template <class A, bool Fetch>
ChannelGradMicro<A> channel_grad_micro_of(int kv, int64_t channels) {
  using Channels = std::make_integer_sequence<int, kGradChannels>;
  return kv == 1   ? channel_grad_micro_of<A, 1, Fetch>(channels, Channels{})
         : kv == 2 ? channel_grad_micro_of<A, 2, Fetch>(channels, Channels{})
                   : channel_grad_micro_of<A, 3, Fetch>(channels, Channels{});
}

// Sums of `count` output channels to where they belong. Gradients of weights are contiguous: (c, tap) is one run of
// each output channel, written in squares of registers. (One tap at a time every line was written nine times, in
// parts.)
template <class T, class A>
void channel_unpack(const ConvParams& p, const ChannelGradPlan& plan, T* to, const A* sums, int64_t count) {
  constexpr int L = kLanes<A>;
  const int64_t taps = p.R * p.S, k_block = plan.k_block;
  const auto slot = [&](int64_t c, int64_t tap) {
    const int64_t channel = plan.folds ? tap % p.S * p.C + c : c, kept = plan.folds ? tap / p.S : tap;
    return (channel / L * (plan.folds ? p.R : taps) + kept) * L + channel % L;
  };
  for (int64_t k = 0; k < count; k += L) {
    const int nk = static_cast<int>(min64(L, count - k));
    for (int64_t j = 0; j < p.C * taps; j += L) {
      const int nj = static_cast<int>(min64(L, p.C * taps - j));
      Vec<A> v[L];
      int64_t c = j / taps, tap = j % taps;
      for (int i = 0; i < nj; ++i) {
        v[i] = load(sums + slot(c, tap) * k_block + k);
        if (++tap == taps) {
          tap = 0;
          ++c;
        }
      }
      for (int i = nj; i < L; ++i) v[i] = Vec<A>{};
      transpose<A>(v);
      for (int i = 0; i < nk; ++i) store_strided(to + (k + i) * p.weight.n + j, 1, v[i], nj);
    }
  }
}

// What tile t reads of the input.
template <class T>
Ahead channel_grad_ahead(const ConvParams& p, const Tile& t, int64_t c0) {
  const int64_t h = t.p0 * p.stride_h - p.pad_h, w = t.q0 * p.stride_w - p.pad_w;
  const int64_t h_end = h + (t.rows - 1) * p.stride_h + (p.R - 1) * p.dilation_h + 1;
  const int64_t w_end = w + (t.columns - 1) * p.stride_w + (p.S - 1) * p.dilation_w + 1;
  return Ahead::of<T>(p.input, t.n, c0, p.C, {max64(0, h), min64(p.H, h_end)}, {max64(0, w), min64(p.W, w_end)});
}

template <class T>
void channel_grad_weight(const ConvParams& original, const ChannelGradPlan& plan, void* scratch) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const ConvParams p = plan.folds ? fold_columns(original) : original;
  const ChannelGradScratch<A> memory(p, plan, scratch);
  const bool fetches = p.R * p.S == 1 && !plan.folds;  // with more taps copies are little beside products
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles, taps_of_kernel = p.R * p.S;
  const int64_t all = p.G * plan.k_blocks * plan.block_elements;
  const int64_t pixel = plan.folds ? p.stride_w * original.C : L, calls_of_block = ceil_div(L, kGradChannels);
  compute_for(p.threads, plan.items(p), [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    GradTap* taps = carve.take<GradTap>(taps_of_kernel);
    A* x = carve.take<A>(plan.x_elements);
    A* grad = carve.take<A>(plan.grad_elements);
    const int64_t split = item / (p.G * plan.k_splits), g = item / plan.k_splits % p.G;
    const int64_t first_block = item % plan.k_splits * plan.k_range;
    const int64_t blocks = min64(plan.k_range, plan.k_blocks - first_block), k0 = first_block * plan.k_block;
    A* sums = memory.sums + split * all + (g * plan.k_blocks + first_block) * plan.block_elements;
    zero(sums, blocks * plan.block_elements);
    zero(grad, plan.grad_elements);
    const int64_t work = p.N * tiles, end = work * (split + 1) / plan.n_splits;
    const int64_t outputs = min64(blocks * plan.k_block, p.K - k0);
    for (int64_t i = work * split / plan.n_splits; i < end; ++i) {
      const Tile t = make_tile(p, plan.g, i / tiles, i % tiles);
      const int tap_count = grad_taps(p, plan, t, taps);
      const int64_t grad_pitch = t.columns * L, grad_block = t.rows * grad_pitch;
      if (plan.folds)
        fill_folded<T>(original, plan.g, t, g * original.C, x);
      else
        fill_packed<T>(p, plan.g, t, g * p.C, p.C, x);
      fill_grad_packed<T>(p, t, g * p.K + k0, outputs, grad_block, grad);
      Ahead next_x, next_grad;
      if (fetches && i + 1 < end) {
        const Tile next = make_tile(p, plan.g, (i + 1) / tiles, (i + 1) % tiles);
        next_x = channel_grad_ahead<T>(p, next, g * p.C);
        next_grad = Ahead::of<T>(p.output, next.n, g * p.K + k0, outputs, {next.p0, next.p0 + next.rows},
                                 {next.q0, next.q0 + next.columns});
      }
      const int64_t share =
          ceil_div(next_x.lines() + next_grad.lines(), blocks * plan.c_blocks * calls_of_block * max64(tap_count, 1));
      for (int64_t b = 0; b < blocks; ++b)
        for (int64_t c0 = 0; c0 < p.C; c0 += L) {
          const int64_t channels = min64(L, p.C - c0), calls = ceil_div(channels, kGradChannels);
          for (int64_t call = 0; call < calls; ++call) {
            const int64_t c = channels * call / calls, count = channels * (call + 1) / calls - c;
            const auto micro =
                (fetches ? channel_grad_micro_of<A, true> : channel_grad_micro_of<A, false>)(plan.kv, count);
            const A* from = x + (plan.folds ? c0 : c0 * plan.g.channel) + c;
            A* to = sums + b * plan.block_elements + (c0 * taps_of_kernel + c) * plan.k_block;
            for (const GradTap* tap = taps; tap != taps + tap_count; ++tap)
              micro(from + (tap->offset + tap->rows.begin * plan.g.pitch + tap->columns.begin) * pixel, pixel,
                    plan.g.pitch * pixel,
                    grad + b * plan.kv * grad_block + tap->rows.begin * grad_pitch + tap->columns.begin * L, grad_pitch,
                    grad_block, tap->rows.end - tap->rows.begin, tap->columns.end - tap->columns.begin,
                    to + tap->index * L * plan.k_block, next_x.empty() ? next_grad : next_x, share);
          }
        }
    }
  });
  compute_for(p.threads, p.G * plan.k_blocks, [&](int64_t item, int) {
    const int64_t g = item / plan.k_blocks, k0 = item % plan.k_blocks * plan.k_block;
    A* sums = memory.sums + item * plan.block_elements;
    for (int64_t split = 1; split < plan.n_splits; ++split)
      for (int64_t i = 0; i < plan.block_elements; i += L)
        store(sums + i, load(sums + i) + load(sums + split * all + i));
    channel_unpack(original, plan, at<T>(p.weight, k0, 0, 0, 0) + g * p.weight_g, sums, min64(plan.k_block, p.K - k0));
  });
}

struct ChannelGradWeight {
  using Plan = ChannelGradPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    return p.K * 2 > kLanes<A>;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!channel_grad_plan<A>(p, plan)) return false;
    memory.scratch = ChannelGradScratch<A>(p, plan, nullptr).total;
    return true;
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, void* scratch) {
    channel_grad_weight<T>(p, plan, scratch);
  }
};

}  // namespace
}  // namespace fastconv
