// Convolution with vectors along the output channels, for dense layers and groups with many channels: a register tile
// is PX pixels by KV vectors of output channels, each input value is one broadcast that serves KV multiply-adds, and
// weights are packed so that their vectors are contiguous. Scratch is packed whatever the layout of the input: the L
// channels of a pixel are one cache line, where planar scratch touches L lines for the same broadcasts. Transposing a
// contiguous input on its way there is worth it (6 % of a 3x3 layer of 64 channels at 56x56) unless every pixel is used
// only once, by a 1x1 kernel: that reads a contiguous input where it lies.
#pragma once
#include "conv/tile.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

constexpr int64_t kWeightBlockBytes = 20 << 10;  // of weights that stay in the first-level cache while pixels pass
constexpr int64_t kPrepackBytes = 16 << 20;  // weights larger than this are packed block by block where they are used

// Pixels of a register tile of `kv` vectors: accumulators, weights and two broadcasts must fit.
constexpr int channel_pixels(int kv) { return min64((kVecRegisters - 2 - kv) / kv, 14); }

struct ChannelPlan {
  Geometry g;
  bool packed;
  bool in_place;  // the input serves as it is, without a copy: one tap, no padding, channel by channel
  int kv;
  int64_t k_block, k_blocks;  // output channels of a register tile, tiles of a group
  int64_t k_splits, k_range;  // work items that share a tile of pixels, k_blocks of each
  int64_t c_pass, passes;     // input channels that are in scratch at a time
  int64_t c_sub;              // input channels whose weights stay in the first-level cache
  int64_t x_channel;
  int64_t block_elements;  // packed weights of one k_block and one pass
  bool prepack;
  int64_t x_elements, acc_elements, weight_elements;  // of one thread
};

template <class A>
ChannelPlan channel_plan_for(const ConvParams& p, int64_t rows, int64_t k_splits, int64_t c_pass) {
  constexpr int L = kLanes<A>;
  ChannelPlan plan;
  plan.g = make_geometry(p, rows);
  plan.packed = is_channels_last(p.input) || (p.R * p.S > 1 && p.C >= L);
  plan.in_place = !plan.packed && p.R == 1 && p.S == 1 && p.stride_w == 1 && p.pad_h == 0 && p.pad_w == 0 &&
                  p.P <= p.H && p.Q <= p.W && p.stride_h == 1 && static_cast<int64_t>(sizeof(A)) == p.element_size();
  plan.kv = p.K <= L ? 1 : 2;
  plan.k_block = plan.kv * L;
  plan.k_blocks = ceil_div(p.K, plan.k_block);
  plan.k_range = ceil_div(plan.k_blocks, k_splits);
  plan.k_splits = ceil_div(plan.k_blocks, plan.k_range);
  plan.c_pass = min64(round_up(c_pass, L), round_up(p.C, L));
  plan.passes = ceil_div(p.C, plan.c_pass);
  const int64_t sub = kWeightBlockBytes / (p.R * p.S * plan.k_block * static_cast<int64_t>(sizeof(A)));
  plan.c_sub = min64(max64(sub / L * L, L), plan.c_pass);
  // An odd number of cache lines, so that the same pixel of many channels does not fall into the same cache set.
  plan.x_channel = plan.packed ? plan.g.channel : (round_up(plan.g.channel, L) / L | 1) * L;
  plan.block_elements = plan.c_pass * p.R * p.S * plan.k_block;
  const int64_t all = p.G * plan.k_blocks * plan.passes * plan.block_elements * static_cast<int64_t>(sizeof(A));
  plan.prepack = p.prepacked || (all <= kPrepackBytes && p.N * plan.g.h.tiles * plan.g.w.tiles >= 4);
  plan.x_elements = plan.in_place ? 0 : plan.c_pass * plan.x_channel + 16 * L;
  plan.acc_elements = rows * plan.g.w.tile * plan.k_range * plan.k_block;
  plan.weight_elements = plan.prepack ? 0 : plan.c_sub * p.R * p.S * plan.k_block;
  return plan;
}

template <class A>
int64_t channel_thread_elements(const ChannelPlan& plan) {
  return plan.x_elements + plan.acc_elements + plan.weight_elements + 64;
}

template <class A>
int64_t channel_items(const ConvParams& p, const ChannelPlan& plan) {
  return p.N * p.G * plan.g.h.tiles * plan.g.w.tiles * plan.k_splits;
}

// Estimated cycles of one item.
template <class A>
double channel_cost(const ConvParams& p, const ChannelPlan& plan) {
  constexpr int L = kLanes<A>;
  const int px = channel_pixels(plan.kv);
  const double columns = static_cast<double>(plan.g.w.tile);
  const double steps = static_cast<double>(plan.g.h.tile) * p.C * p.R * p.S * plan.k_range;
  // A register tile of fewer pixels is bound by its loads.
  const double step = max64(ceil_div(plan.g.w.tile, ceil_div(plan.g.w.tile, px)) * plan.kv, 6) / 2.0;
  const double macs = steps * static_cast<double>(ceil_div(plan.g.w.tile, px)) * step;
  const double fill = plan.in_place ? 0 : static_cast<double>(p.C) * plan.g.channel * (plan.packed ? 0.12 : 0.2);
  const double out = plan.g.h.tile * columns * plan.k_range * plan.k_block * 0.3;
  // An item reads all its weights once: from the second-level cache, from beyond it, or packing them on the way.
  const double weights = static_cast<double>(plan.k_range * plan.passes * plan.block_elements);
  const double all = static_cast<double>(p.G * plan.k_blocks * plan.passes * plan.block_elements);
  const double pack = plan.prepack ? weights * (all * sizeof(A) > (1 << 20) ? 0.35 : 0.06) +
                                         1.2 * all / static_cast<double>(channel_items<A>(p, plan))
                                   : weights * 1.2;
  return macs + fill + out + pack + 2.0 * L + 500;
}

template <class A>
bool channel_plan(const ConvParams& p, ChannelPlan& best) {
  double best_total = 0;
  for (int64_t limit : {256 << 10, 6 << 20}) {
    // Several passes over the input channels only where one does not fit; several work items to a tile of pixels only
    // where there are too few tiles.
    for (int64_t c_pass = p.C; best_total == 0; c_pass = ceil_div(c_pass, 2)) {
      for (int64_t k_splits = 1; k_splits <= 2 * p.threads; k_splits *= 2) {
        const auto plan_of = [&](int64_t r) { return channel_plan_for<A>(p, r, k_splits, c_pass); };
        const int64_t rows = choose_rows(
            p.P, p.threads,
            [&](int64_t r) {
              return channel_thread_elements<A>(plan_of(r)) * static_cast<int64_t>(sizeof(A)) <= limit;
            },
            [&](int64_t r) { return channel_items<A>(p, plan_of(r)); },
            [&](int64_t r) { return channel_cost<A>(p, plan_of(r)); });
        if (!rows) continue;
        const ChannelPlan plan = plan_of(rows);
        const double total =
            static_cast<double>(ceil_div(channel_items<A>(p, plan), p.threads)) * channel_cost<A>(p, plan);
        if (best_total == 0 || total < best_total) {
          best = plan;
          best_total = total;
        }
        if (channel_items<A>(p, plan) >= 8 * p.threads || k_splits >= plan.k_blocks) break;
      }
      if (c_pass == 1) break;
    }
    if (best_total != 0) return true;
  }
  return false;
}

// One register tile: PX consecutive pixels by KV vectors of output channels, over `channels` input channels. Starts
// from bias where it is given, else from what acc holds. w[c / L][tap][c % L][KV * L]; at least one channel and one
// tap.
template <class A, int KV, int PX, bool Packed>
void channel_micro(const A* x, int64_t x_channel, int64_t channels, const Tap* taps, int tap_count, const A* w,
                   int64_t w_block, const A* bias, A* acc, int64_t acc_stride) {
  constexpr int L = kLanes<A>;
  constexpr int kPixel = Packed ? L : 1;
  const A* start = bias ? bias : acc;
  const int64_t start_stride = bias ? 0 : acc_stride;
  Vec<A> sum[PX][KV];
#pragma GCC unroll 16
  for (int i = 0; i < PX; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < KV; ++v) sum[i][v] = load(start + i * start_stride + v * L);
  // Loops that run at least once: with a way around them the compiler keeps the sums in memory at their end.
  const int64_t last = channels - 1;
  int64_t c0 = 0;
  do {
    const int64_t n = min64(L, channels - c0);
    const Tap* tap = taps;
    do {
      const A* from = x + static_cast<int64_t>(tap->offset) * kPixel;
      const A* weight = w + static_cast<int64_t>(tap->index) * (L * KV * L);
      const A* weight_end = weight + n * KV * L;
      do {
        Vec<A> b[KV];
#pragma GCC unroll 2
        for (int v = 0; v < KV; ++v) b[v] = load(weight + v * L);
#pragma GCC unroll 16
        for (int i = 0; i < PX; ++i) {
          const Vec<A> value = splat(from[i * kPixel]);
#pragma GCC unroll 2
          for (int v = 0; v < KV; ++v) sum[i][v] += value * b[v];
        }
        from += Packed ? 1 : x_channel;
        weight += KV * L;
      } while (weight != weight_end);
    } while (++tap != taps + tap_count);
    x += L * x_channel;
    w += w_block;
    c0 += L;
  } while (c0 <= last);
#pragma GCC unroll 16
  for (int i = 0; i < PX; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < KV; ++v) store(acc + i * acc_stride + v * L, sum[i][v]);
}

template <class A>
using ChannelMicro = void (*)(const A*, int64_t, int64_t, const Tap*, int, const A*, int64_t, const A*, A*, int64_t);

template <class A, int KV, bool Packed, int... I>
ChannelMicro<A> channel_micro_of(int pixels, std::integer_sequence<int, I...>) {
  static const ChannelMicro<A> kTable[] = {channel_micro<A, KV, I + 1, Packed>...};
  return kTable[pixels - 1];
}

template <class A>
ChannelMicro<A> channel_micro_of(int kv, bool packed, int pixels) {
  using One = std::make_integer_sequence<int, channel_pixels(1)>;
  using Two = std::make_integer_sequence<int, channel_pixels(2)>;
  if (kv == 1)
    return packed ? channel_micro_of<A, 1, true>(pixels, One{}) : channel_micro_of<A, 1, false>(pixels, One{});
  return packed ? channel_micro_of<A, 2, true>(pixels, Two{}) : channel_micro_of<A, 2, false>(pixels, Two{});
}

// Weights of output channels [k0, k0 + k_block) and input channels [c0, c0 + c_pass) of group g as
// to[c / L][tap][c % L][k_block], zero beyond K and C.
template <class T, class A>
void channel_pack(const ConvParams& p, int64_t k_block, int64_t g, int64_t k0, int64_t c0, int64_t c_pass, A* to) {
  constexpr int L = kLanes<A>;
  const int64_t taps = p.R * p.S, count = min64(k_block, p.K - k0), channels = min64(c_pass, p.C - c0);
  if (count < k_block || channels < c_pass) zero(to, c_pass * taps * k_block);
  const T* from = at<const T>(p.weight, k0, c0, 0, 0) + g * p.weight_g;
  const bool dense = p.weight.w == 1 && p.weight.h == p.S && p.weight.c == taps;
  if (dense && taps > 1) {
    // (c, tap) is one contiguous run of each output channel: squares of registers, whose rows then go their ways.
    for (int64_t k = 0; k < count; k += L) {
      const int nk = static_cast<int>(min64(L, count - k));
      for (int64_t j = 0; j < channels * taps; j += L) {
        const int nj = static_cast<int>(min64(L, channels * taps - j));
        Vec<A> v[L];
        for (int i = 0; i < nk; ++i) v[i] = load_strided(from + (k + i) * p.weight.n + j, 1, nj);
        for (int i = nk; i < L; ++i) v[i] = Vec<A>{};
        transpose<A>(v);
        int64_t c = j / taps, tap = j % taps;
        for (int i = 0; i < nj; ++i) {
          store(to + ((c / L * taps + tap) * L + c % L) * k_block + k, v[i]);
          if (++tap == taps) {
            tap = 0;
            ++c;
          }
        }
      }
    }
    return;
  }
  for (int64_t r = 0; r < p.R; ++r)
    for (int64_t s = 0; s < p.S; ++s)
      for (int64_t c = 0; c < channels; c += L) {
        const T* source = from + c * p.weight.c + r * p.weight.h + s * p.weight.w;
        A* target = to + (c / L * taps + r * p.S + s) * L * k_block;
        const int64_t nc = min64(L, channels - c);
        if (p.weight.n == 1)
          for (int64_t i = 0; i < nc; ++i) copy_row(target + i * k_block, source + i * p.weight.c, count);
        else
          transpose_block(target, k_block, 1, source, p.weight.n, p.weight.c, count, nc);
      }
}

template <class A>
struct ChannelScratch {
  A* bias;
  char* threads;
  int64_t thread_bytes, total;

  ChannelScratch(const ConvParams& p, const ChannelPlan& plan, void* scratch) {
    Carver carve(scratch);
    bias = carve.take<A>(p.G * plan.k_blocks * plan.k_block);
    thread_bytes = round_up(channel_thread_elements<A>(plan) * static_cast<int64_t>(sizeof(A)), 64) + 256 +
                   round_up(p.R * p.S * static_cast<int64_t>(sizeof(Tap)), 64);
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

template <class T, class A>
void channel_pack_all(const ConvParams& p, const ChannelPlan& plan, A* packed) {
  parallel_for(p.threads, p.G * plan.k_blocks * plan.passes, [&](int64_t item, int) {
    const int64_t pass = item % plan.passes, block = item / plan.passes;
    channel_pack<T>(p, plan.k_block, block / plan.k_blocks, block % plan.k_blocks * plan.k_block, pass * plan.c_pass,
                    plan.c_pass, packed + item * plan.block_elements);
  });
}

template <class T>
void channel_forward(const ConvParams& p, const ChannelPlan& plan, const void* packed, void* scratch) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const ChannelScratch<A> memory(p, plan, scratch);
  const int64_t taps_of_kernel = p.R * p.S, group_k = plan.k_blocks * plan.k_block;
  padded_bias<T>(p, group_k, memory.bias);
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles;
  const int most = channel_pixels(plan.kv);
  const int64_t pixel = plan.packed ? L : 1;
  parallel_for(p.threads, channel_items<A>(p, plan), [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    Tap* taps = carve.take<Tap>(taps_of_kernel);
    A* x = carve.take<A>(plan.x_elements);
    A* acc = carve.take<A>(plan.acc_elements);
    A* own_weights = carve.take<A>(plan.weight_elements);
    const int64_t first_block = item % plan.k_splits * plan.k_range;
    const int64_t blocks = min64(plan.k_range, plan.k_blocks - first_block);
    const Tile t = make_tile(p, plan.g, item / plan.k_splits / tiles / p.G, item / plan.k_splits % tiles);
    const int64_t g = item / plan.k_splits / tiles % p.G;
    const int tap_count = live_taps(p, plan.g, t, taps);
    const int64_t acc_stride = blocks * plan.k_block;
    const int64_t chunks = ceil_div(t.columns, most);
    for (int64_t pass = 0; pass < plan.passes; ++pass) {
      const int64_t c0 = pass * plan.c_pass, channels = min64(plan.c_pass, p.C - c0);
      const A* source = x;
      int64_t x_channel = plan.x_channel, pitch = plan.g.pitch;
      if (plan.in_place) {
        source = at<const A>(p.input, t.n, g * p.C + c0, t.p0, t.q0);
        x_channel = p.input.c;
        pitch = p.input.h;
      } else if (plan.packed)
        fill_packed<T>(p, plan.g, t, g * p.C + c0, channels, x);
      else
        fill_planar<T>(p, plan.g, t, g * p.C + c0, channels, plan.x_channel, x);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t block = first_block + b;
        const int64_t weights = ((g * plan.k_blocks + block) * plan.passes + pass) * plan.block_elements;
        for (int64_t c = 0; c < channels; c += plan.c_sub) {
          const A* sub = static_cast<const A*>(packed) + weights + c * taps_of_kernel * plan.k_block;
          if (!plan.prepack) {
            channel_pack<T>(p, plan.k_block, g, block * plan.k_block, c0 + c, min64(plan.c_sub, plan.c_pass - c),
                            own_weights);
            sub = own_weights;
          }
          const A* bias = pass == 0 && c == 0 ? memory.bias + g * group_k + block * plan.k_block : nullptr;
          const int64_t sub_elements = min64(plan.c_sub, plan.c_pass - c) * taps_of_kernel * plan.k_block;
          for (int64_t row = 0; row < t.rows; ++row) {
            // Packed weights may come from far away: those of the next channels are fetched while these compute.
            if (plan.prepack)
              for (int64_t i = sub_elements * row / t.rows; i < sub_elements * (row + 1) / t.rows; i += L)
                __builtin_prefetch(sub + sub_elements + i);
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
              const int64_t q = t.columns * chunk / chunks, end = t.columns * (chunk + 1) / chunks;
              channel_micro_of<A>(plan.kv, plan.packed, static_cast<int>(end - q))(
                  source + c * x_channel + (row * pitch + q) * pixel, x_channel, min64(plan.c_sub, channels - c), taps,
                  tap_count, sub, taps_of_kernel * L * plan.k_block, bias,
                  acc + (row * t.columns + q) * acc_stride + b * plan.k_block, acc_stride);
            }
          }
        }
      }
    }
    const int64_t k0 = first_block * plan.k_block;
    store_packed<T>(p, t, g * p.K + k0, min64(acc_stride, p.K - k0), acc, acc_stride);
  });
}

struct ChannelForward {
  using Plan = ChannelPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    // With half a vector of output channels or fewer, or with the three of a picture, vectors along the pixels waste
    // less.
    return p.K * 2 > kLanes<A> && p.C > 4;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!channel_plan<A>(p, plan)) return false;
    if (plan.prepack)
      memory.packed = p.G * plan.k_blocks * plan.passes * plan.block_elements * static_cast<int64_t>(sizeof(A));
    memory.scratch = ChannelScratch<A>(p, plan, nullptr).total;
    return true;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    if (plan.prepack) channel_pack_all<T>(p, plan, static_cast<Accumulate<T>*>(packed));
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    channel_forward<T>(p, plan, packed, scratch);
  }
};

}  // namespace
}  // namespace fastconv
