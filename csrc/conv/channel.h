// Convolution with vectors along the output channels, for dense layers and groups with many channels: a register tile
// is PX pixels by KV vectors of output channels, each input value is one broadcast that serves KV multiply-adds, and
// weights are packed so that their vectors are contiguous. Scratch is packed whatever the layout of the input: the L
// channels of a pixel are one cache line, where planar scratch touches L lines for the same broadcasts. Transposing a
// contiguous input on its way there is worth it (6 % of a 3x3 layer of 64 channels at 56x56) unless every pixel is used
// only once, by a 1x1 kernel: that reads the input where it lies, in either layout.
//
// Sums stay in registers over all taps and channels of a pass; weights stream from the second-level cache, with
// AVX-512 fetched 1 KB ahead. (Blocks of weights that fit the first level, with sums in memory between them, gave 165
// GFLOP/s where this gives 217, on one core for 256 channels at 14x14; with AVX2 blocks of 128 to 512 channels of 1024
// were up to a tenth slower than none.)
//
// Live taps. Kernel rows that read only padding are left out for each output row. Where the dilation is large, a row of
// outputs is also cut into segments at the columns where a tap begins or ceases to read the image. Then no tap reads
// padding, scratch holds none of it, and the half of all taps of an ASPP layer that fall outside cost nothing.
//
// Folded columns. Of a picture's pixel only 3 of the channels in a cache line exist, and each tap would be a loop of
// three turns. So its rows are copied as a channels_last image has them, zeros around them: the S columns of a kernel
// row are then one run of S * C values, and the layer is one of S * C channels and R taps whose pixels overlap.
//
// Where the input is spread out, scratch is filled once for all residues of the output position and each runs with the
// taps that serve it. Their sums alternate in memory as the outputs do, so that rows of them are written as ever.
#pragma once
#include "conv/channel_tile.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

// Where packed weights of a tap are: of a block of L input channels, slot first[tap] + block * step[tap]. Otherwise the
// taps of a block follow each other, but of a spread-out input each residue's taps and blocks do: what a register tile
// reads is then one run, and fetched ahead as such.
struct TapSlots {
  static constexpr int64_t kMost = 256;
  int64_t taps;
  bool sorted;
  int32_t first[kMost], step[kMost];

  static bool sorts(const ConvParams& p) { return spread(p) && p.R * p.S <= kMost; }
  TapSlots(const ConvParams& p, int64_t blocks) : taps(p.R * p.S), sorted(sorts(p)) {
    for (int64_t tap = 0; sorted && tap < taps; ++tap) {
      const ResidueTap h = residue_tap(tap / p.S, p.R, p.up_h, p.dilation_h);
      const ResidueTap w = residue_tap(tap % p.S, p.S, p.up_w, p.dilation_w);
      first[tap] = static_cast<int32_t>((h.begin * p.S + h.count * w.begin) * blocks + h.index * w.count + w.index);
      step[tap] = static_cast<int32_t>(h.count * w.count);
    }
  }
  int64_t at(int64_t tap, int64_t block) const { return sorted ? first[tap] + block * step[tap] : block * taps + tap; }
};

// The weights of one input channel and up to L output channels, `count` elements in one run of [channel][Taps], as
// to[slot * L * k_block].
template <class A, int Taps, class T>
void channel_pack_run(const T* from, int64_t count, bool backwards, const TapSlots& slots, int64_t block, A* to,
                      int64_t k_block) {
  constexpr int L = kLanes<A>;
  Vec<A> v[Taps];
#pragma GCC unroll 8
  for (int i = 0; i < Taps; ++i)
    v[i] = load_strided(from + i * L, 1, static_cast<int>(max64(0, min64(L, count - i * L))));
  deinterleave<A, Taps>(v);
#pragma GCC unroll 8
  for (int i = 0; i < Taps; ++i) store(to + slots.at(backwards ? Taps - 1 - i : i, block) * (L * k_block), v[i]);
}

// Weights of output channels [k0, k0 + k_block) and input channels [c0, c0 + c_pass) of group g as
// to[slot][c % L][k_block], zero beyond K and C.
template <class T, class A>
void channel_pack(const ConvParams& p, int64_t k_block, int64_t g, int64_t k0, int64_t c0, int64_t c_pass, A* to) {
  constexpr int L = kLanes<A>;
  const int64_t taps = p.R * p.S, count = min64(k_block, p.K - k0), channels = min64(c_pass, p.C - c0);
  const TapSlots slots(p, ceil_div(c_pass, static_cast<int64_t>(L)));
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
        const T* row = from + k * p.weight.n + j;
        if (nk == L && nj == L) {  // counts that are known keep v in registers
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i, row += p.weight.n) {
            v[i] = load(row);
            __builtin_prefetch(row + L * taps);  // the rows of a square are far apart, and each is short
          }
        } else {
          for (int i = 0; i < nk; ++i) v[i] = load_strided(row + i * p.weight.n, 1, nj);
          for (int i = nk; i < L; ++i) v[i] = Vec<A>{};
        }
        transpose<A>(v);
        int64_t c = j / taps, tap = j % taps;
        for (int i = 0; i < nj; ++i) {
          store(to + (slots.at(tap, c / L) * L + c % L) * k_block + k, v[i]);
          if (++tap == taps) {
            tap = 0;
            ++c;
          }
        }
      }
    }
    return;
  }
  const bool backwards = p.weight.w == -1 && p.weight.h == -p.S;
  if (taps > 1 && taps <= L && (backwards || (p.weight.w == 1 && p.weight.h == p.S))) {
    // The taps of a pair of channels are one run, as in the input gradient: L output channels of it are a square.
    const T* first = backwards ? from + (p.R - 1) * p.weight.h + (p.S - 1) * p.weight.w : from;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t k = 0; k < count; k += L) {
        const int nk = static_cast<int>(min64(L, count - k));
        A* run = to + c % L * k_block + k;
        if (p.weight.n == taps && (taps == 2 || taps == 4 || taps == 8)) {
          (taps == 2   ? channel_pack_run<A, 2, T>
           : taps == 4 ? channel_pack_run<A, 4, T>
                       : channel_pack_run<A, 8, T>)(first + k * taps + c * p.weight.c, nk * taps, backwards, slots,
                                                    c / L, run, k_block);
          continue;
        }
        Vec<A> v[L];
        for (int i = 0; i < nk; ++i)
          v[i] = load_partial(first + (k + i) * p.weight.n + c * p.weight.c, static_cast<int>(taps));
        for (int i = nk; i < L; ++i) v[i] = Vec<A>{};
        transpose<A>(v);
        for (int64_t tap = 0; tap < taps; ++tap)
          store(run + slots.at(tap, c / L) * L * k_block, v[backwards ? taps - 1 - tap : tap]);
      }
    return;
  }
  for (int64_t r = 0; r < p.R; ++r)
    for (int64_t s = 0; s < p.S; ++s)
      for (int64_t c = 0; c < channels; c += L) {
        const T* source = from + c * p.weight.c + r * p.weight.h + s * p.weight.w;
        A* target = to + slots.at(r * p.S + s, c / L) * L * k_block;
        const int64_t nc = min64(L, channels - c);
        if (p.weight.n == 1 || p.weight.n < p.weight.c) {
          for (int64_t i = 0; i < nc; ++i)
            copy_strided(target + i * k_block, source + i * p.weight.c, p.weight.n, count);
        } else {
          // Rows of many taps fall into few sets of the first level, so what comes next is fetched into the second.
          for (int64_t k = 0; k < count; ++k) __builtin_prefetch(source + k * p.weight.n + L, 0, 2);
          transpose_block(target, k_block, 1, source, p.weight.n, p.weight.c, count, nc);
        }
      }
}

template <class A>
struct ChannelScratch {
  A* bias;
  Tap* taps;  // [R, S], sorted by residue
  SortedTaps h, w;
  char* threads;
  int64_t thread_bytes, total;

  ChannelScratch(const ConvParams& p, const ChannelPlan& plan, void* scratch) {
    Carver carve(scratch);
    bias = carve.take<A>(p.G * plan.k_blocks * plan.k_block);
    taps = carve.take<Tap>(p.R * p.S);
    h.place(carve, p.R, p.up_h);
    w.place(carve, p.S, p.up_w);
    thread_bytes = round_up(channel_thread_elements<A>(plan) * static_cast<int64_t>(sizeof(A)), 64) + 256;
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

template <class T, class Plan, class A>
void channel_pack_all(const ConvParams& p, const Plan& plan, A* packed) {
  compute_for(p.threads, p.G * plan.k_blocks * plan.passes, [&](int64_t item, int) {
    const int64_t pass = item % plan.passes, block = item / plan.passes;
    channel_pack<T>(p, plan.k_block, block / plan.k_blocks, block % plan.k_blocks * plan.k_block, pass * plan.c_pass,
                    plan.c_pass, packed + item * plan.block_elements);
  });
}

// The weights of the folded layer; `p` is the layer itself.
template <class T, class A>
void fold_pack(const ConvParams& p, const ChannelPlan& plan, A* packed) {
  constexpr int64_t L = kLanes<A>;
  zero(packed, p.G * plan.k_blocks * plan.block_elements);
  for (int64_t g = 0; g < p.G; ++g)
    for (int64_t k0 = 0; k0 < p.K; k0 += plan.k_block, packed += plan.block_elements)
      for (int64_t r = 0; r < p.R; ++r)
        for (int64_t s = 0; s < p.S; ++s)
          for (int64_t c = 0; c < p.C; ++c) {
            const int64_t channel = s * p.C + c;
            A* to = packed + ((channel / L * p.R + r) * L + channel % L) * plan.k_block;
            const T* from = at<const T>(p.weight, k0, c, r, s) + g * p.weight_g;
            for (int64_t k = 0; k < min64(plan.k_block, p.K - k0); ++k) to[k] = get(from + k * p.weight.n);
          }
}

template <class T>
void channel_forward(const ConvParams& original, const ChannelPlan& plan, const void* packed, void* scratch) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const ConvParams p = plan.folds ? fold_columns(original) : original;
  ChannelScratch<A> memory(p, plan, scratch);
  const int64_t taps_of_kernel = p.R * p.S, group_k = plan.k_blocks * plan.k_block;
  const ConvParams base = spread_base(p);
  padded_bias<T>(p, group_k, memory.bias);
  memory.h.sort(p.R, p.up_h, p.dilation_h, p.pad_h);
  memory.w.sort(p.S, p.up_w, p.dilation_w, p.pad_w);
  for (int64_t i = 0; i < p.R; ++i)
    for (int64_t j = 0; j < p.S; ++j)
      memory.taps[i * p.S + j] = spread_tap(p, base, plan.g, memory.h.order[i], memory.w.order[j]);
  const bool sorted = TapSlots::sorts(p);
  for (int64_t e = 0; sorted && e < p.up_h; ++e)
    for (int64_t i = 0; i < p.up_w; ++i) {
      const ResidueTaps h = memory.h.residues[e], w = memory.w.residues[i];
      for (int64_t tap = 0; tap < h.count * w.count; ++tap)
        memory.taps[(h.begin + tap / w.count) * p.S + w.begin + tap % w.count].index = static_cast<int32_t>(tap);
    }
  const Finish<A> finish(p);  // used only where sums have the type of the output
  Segment segments[kMostSegments];
  int64_t segment_count = 1;
  if (plan.segments) segment_count = tap_segments(p, segments);
  if (spread(p)) segment_count = p.up_w;
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles;
  const int most = channel_pixels(plan.kv);
  compute_for(p.threads, channel_items<A>(p, plan), [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    A* x = carve.take<A>(plan.x_elements);
    A* scratch_acc = carve.take<A>(plan.acc_elements);
    A* own_weights = carve.take<A>(plan.weight_elements);
    const WorkItem work = work_item(item, tiles, p.G / plan.g_range, p.N);
    const int64_t first_block = work.split * plan.k_range, k0 = first_block * plan.k_block;
    const int64_t blocks = min64(plan.k_range, plan.k_blocks - first_block);
    const Tile t = make_tile(base, plan.g, work.n, work.tile);
    const Tile out = spread_tile(p, t);
    if (plan.g_range > 1) fill_pixels<T>(base, plan.g, t, p.G * p.C, x);
    for (int64_t g = work.g * plan.g_range; g < (work.g + 1) * plan.g_range; ++g) {
      A* acc = plan.out_place ? at<A>(p.output, t.n, g * p.K + k0, out.p0, out.q0) : scratch_acc;
      const bool at_once = plan.acc_range == plan.k_range;  // the sums of all blocks are kept
      const int64_t acc_stride = plan.out_place ? p.output.w : (at_once ? blocks : 1) * plan.k_block;
      const int64_t acc_row = plan.out_place ? p.output.h : out.columns * acc_stride;
      const int64_t column_stride = p.up_w * acc_stride;
      const int64_t pixel = plan.folds                       ? p.stride_w * original.C
                            : plan.source == Source::kPacked ? L
                            : plan.source == Source::kPlanes ? 1
                                                             : p.stride_w * p.input.w;
      for (int64_t pass = 0; pass < plan.passes; ++pass) {
        const int64_t c0 = pass * plan.c_pass, channels = min64(plan.c_pass, p.C - c0);
        const A* source = plan.g_range > 1 ? x + g * p.C * plan.x_channel : x;
        int64_t x_channel = plan.x_channel, pitch = plan.g.pitch * pixel;
        if (plan.in_place) {
          source = at<const A>(p.input, t.n, g * p.C + c0, t.p0 * p.stride_h, t.q0 * p.stride_w);
          x_channel = p.input.c;
          pitch = p.stride_h * p.input.h;
        } else if (plan.folds) {
          fill_folded<T>(original, plan.g, t, g * original.C, x);
        } else if (plan.segments) {
          source += fill_segments<T>(base, plan.g, t, g * p.C + c0, channels, x) * L;
        } else if (plan.source == Source::kPacked && plan.g_range == 1) {
          fill_packed<T>(base, plan.g, t, g * p.C + c0, channels, x);
        } else if (plan.source == Source::kPlanes) {
          fill_planar<T>(base, plan.g, t, g * p.C + c0, channels, plan.x_channel, x);
        }
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t block = first_block + b;
          const int64_t weights = ((g * plan.k_blocks + block) * plan.passes + pass) * plan.block_elements;
          const int64_t sub_channels = plan.prepack ? plan.c_pass : plan.c_sub;
          for (int64_t c = 0; c < channels; c += sub_channels) {
            const int64_t sub_size = min64(sub_channels, plan.c_pass - c);
            const A* sub = static_cast<const A*>(packed) + weights;
            if (!plan.prepack) {
              channel_pack<T>(p, plan.k_block, g, block * plan.k_block, c0 + c, sub_size, own_weights);
              sub = own_weights;
            }
            const A* bias = pass == 0 && c == 0 ? memory.bias + g * group_k + block * plan.k_block : nullptr;
            const bool ends = pass == plan.passes - 1 && c + sub_channels >= channels;
            // The rows of one residue after the other, so that the weights of its taps stay near.
            for (int64_t e = 0; e < p.up_h; ++e) {
              const ResidueTaps h = memory.h.residues[e];
              for (int64_t i = 0; i < segment_count; ++i) {
                // A segment of the row, or one residue of its columns.
                const ResidueTaps w = memory.w.residues[plan.segments ? 0 : i];
                const Segment segment =
                    plan.segments ? segments[i] : Segment{{0, ceil_div(out.columns - i, p.up_w)}, {0, w.count}};
                const int64_t columns = segment.columns.end - segment.columns.begin, chunks = ceil_div(columns, most);
                for (int64_t row = e; row < out.rows; row += p.up_h) {
                  A* sums =
                      acc + row * acc_row + (plan.segments ? 0 : i * acc_stride) + (at_once ? b : 0) * plan.k_block;
                  if (h.count == 0 || w.count == 0) {  // no tap reaches these
                    for (int64_t q = 0; bias && q < columns; ++q)
                      copy_row(sums + q * column_stride, bias, plan.k_block);
                    continue;
                  }
                  const Range rows = live_axis(t.p0 + row / p.up_h, 1, h.count, p.stride_h, memory.h.step, -h.row, p.H);
                  const TapGrid taps = {memory.taps + (h.begin + rows.begin) * p.S + w.begin + segment.taps.begin,
                                        rows.end - rows.begin, segment.taps.end - segment.taps.begin, p.S};
                  const int64_t before = sorted ? (h.begin * p.S + h.count * w.begin) * ceil_div(sub_size, L) : 0;
                  const int64_t w_block = (sorted ? h.count * w.count : taps_of_kernel) * L * plan.k_block;
                  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                    const int64_t q = columns * chunk / chunks, end = columns * (chunk + 1) / chunks;
                    const int64_t column = segment.columns.begin + q;
                    channel_micro_of<A>(plan.kv, plan.source, static_cast<int>(end - q))(
                        source + c * x_channel + row / p.up_h * pitch + column * pixel, x_channel, pixel,
                        min64(sub_channels, channels - c), taps, sub + before * L * plan.k_block, w_block, bias,
                        sums + column * column_stride, column_stride, plan.out_place && ends ? &finish : nullptr);
                  }
                }
              }
            }
          }
          if (!plan.out_place && !at_once)
            store_packed<T>(p, out, g * p.K + block * plan.k_block, min64(plan.k_block, p.K - block * plan.k_block),
                            acc, acc_stride);
        }
      }
      if (!plan.out_place && at_once)
        store_packed<T>(p, out, g * p.K + k0, min64(acc_stride, p.K - k0), acc, acc_stride);
    }
  });
}

struct ChannelForward {
  using Plan = ChannelPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    // With half a vector of output channels or fewer, or with the three of a contiguous picture, vectors along the
    // pixels waste less.
    if (spread(p) && ((p.G > 1 && p.K <= 16) || (p.R == 3 * p.up_h && p.S == 3 * p.up_w))) return false;
    return p.K * 2 > kLanes<A> && (p.C > 4 || (p.input.c == 1 && p.output.c == 1));
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
    if (plan.folds)
      fold_pack<T>(p, plan, static_cast<Accumulate<T>*>(packed));
    else if (plan.prepack)
      channel_pack_all<T>(p, plan, static_cast<Accumulate<T>*>(packed));
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    channel_forward<T>(p, plan, packed, scratch);
  }
};

}  // namespace
}  // namespace fastconv
