// Convolution with vectors along the output channels, for dense layers and groups with many channels: a register tile
// is PX pixels by KV vectors of output channels, each input value is one broadcast that serves KV multiply-adds, and
// weights are packed so that their vectors are contiguous. Scratch is packed whatever the layout of the input: the L
// channels of a pixel are one cache line, where planar scratch touches L lines for the same broadcasts. Transposing a
// contiguous input on its way there is worth it (6 % of a 3x3 layer of 64 channels at 56x56) unless every pixel is used
// only once, by a 1x1 kernel: that reads the input where it lies, in either layout.
//
// Sums stay in registers over all taps and channels of a pass; weights stream from the second-level cache, fetched
// 1 KB ahead. (Blocks of weights that fit the first level, with sums in memory between them, gave 165 GFLOP/s where
// this gives 217, on one core for 256 channels at 14x14.)
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
#include "conv/tile.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

constexpr int64_t kOwnWeightBytes = 64 << 10;   // of weights that are packed just before they are used
constexpr int64_t kNearWeightBytes = 40 << 10;  // of those that a first-level cache can hold
constexpr int64_t kSumBytes = 1536 << 10;      // of sums in scratch that the many passes of a heavy layer may return to
constexpr int kWeightsAhead = 1024;            // bytes
constexpr int64_t kFoldChannels = 4;           // the most whose kernel columns are folded
constexpr int64_t kInPlaceOutputs = 64;        // fewer read a contiguous input in place
constexpr int64_t kTogetherBytes = 320 << 10;  // of the pixels of a tile that are copied for all groups
constexpr int64_t kPrepackBytes = 16 << 20;    // a thread; larger weights are packed block by block where they are used

// Pixels of a register tile of `kv` vectors: accumulators, weights and two broadcasts must fit.
constexpr int channel_pixels(int kv) { return min64((kVecRegisters - 2 - kv) / kv, 14); }

// How the channels and pixels that a register tile reads lie in memory.
enum class Source : int32_t {
  kPacked,  // scratch: L channels of a pixel side by side, then the next pixel
  kPlanes,  // scratch or a contiguous input: pixels of a channel side by side
  kPixels   // a channels_last input, or its rows in scratch: all channels of a pixel side by side
};

struct ChannelPlan {
  Geometry g;  // of spread_base
  Source source;
  bool in_place;   // the input serves as it is: one tap, no padding
  bool out_place;  // sums are kept in the output itself
  int64_t folds;   // kernel columns that are folded into the channels, or 0; all else here is of fold_columns then
  bool segments;   // rows are cut where the set of live taps changes, and scratch has no padding
  int kv;
  int64_t k_block, k_blocks;  // output channels of a register tile, tiles of a group
  int64_t k_splits, k_range;  // work items that share a tile of pixels, k_blocks of each
  int64_t g_range;            // groups of a work item
  int64_t acc_range;          // k_blocks whose sums are in scratch at a time
  int64_t c_pass, passes;     // input channels that are in scratch at a time
  int64_t c_sub;              // input channels whose weights are packed at a time, where that is done on the way
  int64_t x_channel;
  int64_t block_elements;  // packed weights of one k_block and one pass
  bool prepack;
  int64_t x_elements, acc_elements, weight_elements;  // of one thread
};

// Every output must have a live tap: register tiles have no way around their loops.
inline bool reaches_image(int64_t outputs, int64_t taps, int64_t dilation, int64_t pad, int64_t size) {
  for (int64_t i = 0; i < outputs; ++i) {
    const Range live = live_axis(i, 1, taps, 1, dilation, pad, size);
    const int64_t at = i - pad + live.begin * dilation;
    if (at < 0 || at >= size) return false;
  }
  return true;
}

// Takes microseconds, so it is not asked for every plan that is looked at.
inline bool can_segment(const ConvParams& p) {
  Segment segments[kMostSegments];
  const double farthest =
      static_cast<double>(p.R - 1) * p.dilation_h * p.W + static_cast<double>(p.S - 1) * p.dilation_w;
  return !spread(p) && farthest < INT32_MAX && p.stride_h == 1 && p.stride_w == 1 && p.dilation_w >= kSegmentDilation &&
         p.S > 1 && p.Q <= kMaxTileColumns && reaches_image(p.P, p.R, p.dilation_h, p.pad_h, p.H) &&
         reaches_image(p.Q, p.S, p.dilation_w, p.pad_w, p.W) && tap_segments(p, segments) > 0;
}

// Scratch is a copy of the rows of the image that a tile reads: for each kernel row a band of as many as the tile has,
// or all from the first to the last, where those are fewer. (With bands 2048 channels at 65x65, rate 36, contiguous,
// took 92 ms instead of 165.)
inline Geometry segment_geometry(const ConvParams& p, Geometry g) {
  g.h.period = g.w.period = g.h.planes = g.w.planes = 1;
  const int64_t joined = min64(p.H, g.h.tile + (p.R - 1) * p.dilation_h), bands = p.R * g.h.tile;
  g.h.step = bands < joined ? g.h.tile : p.dilation_h;
  g.h.span = min64(bands, joined);
  g.w.step = p.dilation_w;
  g.w.span = g.pitch = p.W;
  g.channel = g.h.span * g.pitch;
  return g;
}

// Fills it, and says where in it the input of output (0, 0) of the tile would begin, if there were padding.
template <class T, class A>
int64_t fill_segments(const ConvParams& p, const Geometry& g, const Tile& t, int64_t c0, int64_t count, A* x) {
  ConvParams whole = p;
  whole.pad_h = whole.pad_w = 0;
  Geometry rows = g;
  rows.h.tile = rows.h.span;
  rows.w.tile = rows.w.span;
  const auto fill = [&](int64_t first, int64_t end, A* to) {
    if (first < end) fill_packed<T>(whole, rows, {t.n, first, 0, end - first, p.W}, c0, count, to);
  };
  const int64_t first = t.p0 - p.pad_h;
  if (g.h.step == p.dilation_h) {
    const int64_t h0 = max64(0, first);
    fill(h0, min64(p.H, first + t.rows + (p.R - 1) * p.dilation_h), x);
    return (first - h0) * g.pitch - p.pad_w;
  }
  for (int64_t r = 0; r < p.R; ++r) {
    const int64_t row = first + r * p.dilation_h, h0 = max64(0, row);
    fill(h0, min64(p.H, row + t.rows), x + (r * g.h.step + h0 - row) * g.pitch * kLanes<A>);
  }
  return -p.pad_w;
}

inline bool can_fold(const ConvParams& p) {
  return !spread(p) && p.C <= kFoldChannels && p.S > 1 && p.stride_w <= p.S && p.dilation_w == 1;
}

// The layer of S * C channels; its input and weight are those of the copies that fill_folded and fold_pack make.
inline ConvParams fold_columns(const ConvParams& p) {
  ConvParams folded = p;
  folded.C = p.S * p.C;
  folded.S = 1;
  folded.pad_w = 0;
  return folded;
}

// Rows of the image as a tile reads them, zeros for padding, each g.pitch * stride_w columns of C channels.
template <class T, class A>
void fill_folded(const ConvParams& p, const Geometry& g, const Tile& t, int64_t c0, A* x) {
  const int64_t width = g.pitch * p.stride_w, w = t.q0 * p.stride_w - p.pad_w;
  const int64_t rows = g.h.span - g.h.tile + t.rows;
  for (int64_t plane = 0; plane < g.h.planes; ++plane)
    for (int64_t i = 0; i < rows; ++i) {
      A* to = x + (plane * g.h.span + i) * width * p.C;
      const int64_t h = (t.p0 + i) * p.stride_h + plane * p.dilation_h - p.pad_h;
      const int64_t begin = h < 0 || h >= p.H ? width : max64(0, min64(-w, width));
      const int64_t end = max64(begin, min64(width, p.W - w));
      zero(to, begin * p.C);
      zero(to + end * p.C, (width - end) * p.C);
      if (begin == end) continue;
      const T* from = at<const T>(p.input, t.n, c0, h, w + begin);
      to += begin * p.C;
      if (p.input.c == 1 && p.input.w == p.C) {
        copy_row(to, from, (end - begin) * p.C);
      } else {
        for (int64_t j = 0; j < end - begin; ++j)
          for (int64_t c = 0; c < p.C; ++c) *to++ = get(from + j * p.input.w + c * p.input.c);
      }
    }
}

// Vectors of output channels in a register tile: as few lanes wasted as possible, then two.
template <class A>
int channel_vectors(const ConvParams& p) {
  constexpr int L = kLanes<A>;
  int best = 1;
  for (int kv : {1, 3, 2})
    if (channel_pixels(kv) >= 4 && round_up(p.K, kv * L) <= round_up(p.K, best * L)) best = kv;
  return best;
}

// A group's channels of a pixel are one cache line, far from those of the next: where there are images for all threads,
// the pixels of a tile are copied whole, for all groups. (16 a group, 8 images of 512 channels at 14x14, two threads:
// 1.32 -> 1.12 ms.)
template <class A>
bool short_runs(const ConvParams& p) {
  return is_channels_last(p.input) && p.G > 1 && p.C % kLanes<A> == 0 && p.C * p.element_size() <= kCacheLine &&
         p.N >= p.threads && !spread(p);
}

template <class A>
ChannelPlan channel_plan_for(const ConvParams& p, int64_t rows, int64_t k_splits, int64_t c_pass, bool segments,
                             int64_t folds) {
  constexpr int L = kLanes<A>;
  ChannelPlan plan;
  plan.folds = folds;
  const ConvParams base = spread_base(p);
  plan.g = make_geometry(base, rows, spread_columns(p));
  const bool same_type = static_cast<int64_t>(sizeof(A)) == p.element_size(), last = is_channels_last(p.input);
  const bool one_tap =
      base.R == 1 && base.S == 1 && base.pad_h == 0 && base.pad_w == 0 && base.P <= p.H && base.Q <= p.W && same_type;
  const bool near = p.input.w * p.stride_w * p.element_size() <= kInPlaceBytes;
  // Contiguous planes fall into few sets as well, and copies of them do not, which pays where many output channels read
  // them: 1024 to 256 channels at 14x14, two threads, 0.72 -> 0.65 ms.
  const bool few = !spread(p) && p.stride_w == 1 && p.stride_h == 1 && p.K < kInPlaceOutputs;
  plan.in_place = one_tap && !folds && (last ? near : few);
  plan.source = folds                                 ? Source::kPixels
                : plan.in_place                       ? (last ? Source::kPixels : Source::kPlanes)
                : last || (p.R * p.S > 1 && p.C >= L) ? Source::kPacked
                                                      : Source::kPlanes;
  plan.segments = segments && plan.source == Source::kPacked;
  if (plan.segments) plan.g = segment_geometry(p, plan.g);
  if (folds) {
    plan.g.pitch = ceil_div((plan.g.w.tile - 1) * p.stride_w + folds, p.stride_w);
    plan.g.channel = plan.g.h.planes * plan.g.h.span * plan.g.pitch;
  }
  plan.kv = channel_vectors<A>(p);
  plan.k_block = plan.kv * L;
  plan.out_place = same_type && p.output.c == 1 && p.K % plan.k_block == 0;
  plan.k_blocks = ceil_div(p.K, plan.k_block);
  plan.k_range = ceil_div(plan.k_blocks, k_splits);
  plan.k_splits = ceil_div(plan.k_blocks, plan.k_range);
  plan.c_pass = min64(round_up(c_pass, L), round_up(p.C, L));
  plan.passes = ceil_div(p.C, plan.c_pass);
  // The narrow register tiles of a segment read 20 bytes of weights a cycle. (2048 channels at 33x33, rate 6, one
  // thread, on an Intel Xeon: 61 to 58 ms; where tiles are wide, 512 channels at 14x14, 6.3 to 6.5.)
  const int64_t sub = (plan.segments ? kNearWeightBytes : kOwnWeightBytes) /
                      (p.R * p.S * plan.k_block * static_cast<int64_t>(sizeof(A)));
  plan.c_sub = min64(max64(sub / L * L, L), plan.c_pass);
  // An odd number of cache lines, so that the same pixel of many channels does not fall into the same cache set.
  plan.x_channel = folds                            ? 1
                   : plan.source == Source::kPacked ? plan.g.channel
                                                    : (round_up(plan.g.channel, L) / L | 1) * L;
  const int64_t all_groups = p.G * plan.c_pass * plan.x_channel * static_cast<int64_t>(sizeof(A));
  plan.g_range = short_runs<A>(p) && plan.source == Source::kPacked && !plan.segments && plan.passes == 1 &&
                         plan.k_splits == 1 && all_groups <= kTogetherBytes
                     ? p.G
                     : 1;
  plan.block_elements = plan.c_pass * p.R * p.S * plan.k_block;
  const int64_t all = p.G * plan.k_blocks * plan.passes * plan.block_elements * static_cast<int64_t>(sizeof(A));
  plan.prepack =
      p.prepacked || folds || (all <= kPrepackBytes * p.threads && p.N * plan.g.h.tiles * plan.g.w.tiles >= 4);
  plan.x_elements = plan.in_place ? 0
                    : folds       ? plan.g.channel * p.stride_w * (p.C / folds) + 16 * L
                                  : plan.g_range * plan.c_pass * plan.x_channel + 16 * L;
  plan.acc_range = spread(p) && !plan.out_place && plan.passes == 1 ? 1 : plan.k_range;
  plan.acc_elements = plan.out_place ? 0 : rows * p.up_h * plan.g.w.tile * p.up_w * plan.acc_range * plan.k_block;
  plan.weight_elements = plan.prepack ? 0 : plan.c_sub * p.R * p.S * plan.k_block;
  return plan;
}

template <class A>
int64_t channel_thread_elements(const ChannelPlan& plan) {
  return plan.x_elements + plan.acc_elements + plan.weight_elements + 64;
}

template <class A>
int64_t channel_items(const ConvParams& p, const ChannelPlan& plan) {
  return p.N * (p.G / plan.g_range) * plan.g.h.tiles * plan.g.w.tiles * plan.k_splits;
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
  // Cycles an element. What is read in place comes from afar as well, for every split of the output channels again.
  // (256 to 64 channels, 1x1, 56x56, channels_last, two threads: a half of the channels each 0.50 ms, of the pixels
  // 0.42.) Contiguous pixels are transposed.
  const bool lines = plan.g_range == 1 && short_runs<A>(p);
  const double each = !lines && (plan.in_place || is_channels_last(p.input)) ? 0.25
                      : plan.source == Source::kPacked                       ? 0.8
                                                                             : 0.2;
  const double fill = plan.folds      ? static_cast<double>(plan.x_elements)
                      : plan.in_place ? each * static_cast<double>(p.C * plan.g.h.tile * plan.g.w.tile)
                                      : each * static_cast<double>(p.C * plan.g.channel);
  const double outputs = plan.g.h.tile * columns * static_cast<double>(p.up_h * p.up_w);
  const double out = plan.out_place ? 0 : outputs * static_cast<double>(plan.k_range * plan.k_block) * 0.3;
  // An item reads all its weights once: from the second-level cache, from beyond it, or packing them on the way.
  const double weights = static_cast<double>(plan.k_range * plan.passes * plan.block_elements);
  const double all = static_cast<double>(p.G * plan.k_blocks * plan.passes * plan.block_elements);
  const double pack = plan.prepack ? weights * (all * sizeof(A) > (1 << 20) ? 0.35 : 0.06) +
                                         1.2 * all / static_cast<double>(channel_items<A>(p, plan) * plan.g_range)
                                   : weights * 1.2;
  // Sums in scratch are read and written again for every run of weights; those in the output lie far apart, and cost as
  // much as their passes.
  const bool runs = !plan.prepack && !plan.out_place;
  const int64_t visits = runs ? plan.passes * ceil_div(plan.c_pass, plan.c_sub) : plan.passes;
  const double passes = static_cast<double>(visits - 1) * outputs * static_cast<double>(plan.k_range * plan.k_block) *
                        (plan.out_place ? 1.5 : 1.0);
  return static_cast<double>(plan.g_range) * (macs + fill + out + pack + passes + 2.0 * L + 500);
}

template <class A>
bool channel_plan(const ConvParams& original, ChannelPlan& best) {
  const int64_t folds = can_fold(original) ? original.S : 0;
  const ConvParams p = folds ? fold_columns(original) : original;
  const ConvParams base = spread_base(p);
  if (spread_too_far(p, base) || (spread(p) && (p.residual || p.activation != Activation::kNone))) return false;
  const bool segments = can_segment(p);
  // Where the weights of a group are so many that every tile reads them from afar, more passes over fewer tiles may
  // cost less: 2048 channels at 33x33, rate 6, in channels_last 44 ms -> 37 (one thread 112 -> 74); 512 at 14x14,
  // 3x3, 4.5 -> 4.1.
  const bool heavy = !folds && p.K * p.C * p.R * p.S * static_cast<int64_t>(sizeof(A)) > (1 << 20);
  double best_total = 0;
  const int64_t pass_bytes = p.R * p.S * channel_vectors<A>(p) * kLanes<A> * static_cast<int64_t>(sizeof(A));
  for (int64_t limit : {384 << 10, 6 << 20}) {
    // Several passes over the input channels only where one does not fit, or its weights do not; several work items to
    // a tile of pixels only where there are too few tiles.
    for (int64_t c_pass = folds ? p.C : ceil_div(p.C, ceil_div(p.C * pass_bytes, kPassWeightBytes));
         best_total == 0 || (heavy && c_pass >= 2 * kLanes<A>); c_pass = ceil_div(c_pass, 2)) {
      for (int64_t k_splits = 1; k_splits <= 2 * p.threads; k_splits *= 2) {
        const auto plan_of = [&](int64_t r) { return channel_plan_for<A>(p, r, k_splits, c_pass, segments, folds); };
        const int64_t rows = choose_rows(
            base.P, p.threads,
            [&](int64_t r) {
              const ChannelPlan plan = plan_of(r);
              // What several blocks of output channels read and write in turn.
              const bool again = plan.k_range > 1 && plan.source == Source::kPixels;
              const int64_t reads = plan.in_place && again ? r * plan.g.w.tile * p.C : 0;
              const int64_t writes =
                  plan.out_place && (spread(p) || again) ? r * p.up_h * plan.g.w.tile * p.up_w * p.K : 0;
              // A heavy layer returns to its sums once for all weights of a pass, whether they are the output itself,
              // which is not counted either, or lie in scratch. (512 to 1024 channels at 19x19, rate 6, contiguous, on
              // an Intel Xeon: 21 to 18 ms; 2048 at 33x33, rate 18: 40 to 34.)
              const int64_t size = sizeof(A);
              const int64_t sums = heavy && plan.acc_elements * size <= kSumBytes ? plan.acc_elements : 0;
              return (channel_thread_elements<A>(plan) - sums + reads + writes) * size <= limit;
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
      if (c_pass == 1 || folds) break;
    }
    if (best_total != 0) return true;
  }
  return false;
}

// The taps of one register tile: `rows` kernel rows of `columns` taps each, the first at `first`; `pitch` taps from one
// kernel row to the next.
struct TapGrid {
  const Tap* first;
  int64_t rows, columns, pitch;
};

// One register tile: PX consecutive pixels by KV vectors of output channels, over `channels` input channels. Starts
// from bias where it is given, else from what acc holds. w[c / L][tap][c % L][KV * L]; at least one channel and one
// tap. Where `finish` is given, acc is the output.
template <class A, int KV, int PX, Source From>
void channel_micro(const A* x, int64_t x_channel, int64_t x_pixel, int64_t channels, TapGrid taps, const A* w,
                   int64_t w_block, const A* bias, A* acc, int64_t acc_stride, const Finish<A>* finish) {
  constexpr int L = kLanes<A>;
  const int64_t pixel = From == Source::kPacked ? L : From == Source::kPlanes ? 1 : x_pixel;
  const int64_t channel = From == Source::kPlanes ? x_channel : 1;
  const A* start = bias ? bias : acc;
  const int64_t start_stride = bias ? 0 : acc_stride;
  Vec<A> sum[PX][KV];
#pragma GCC unroll 16
  for (int i = 0; i < PX; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < KV; ++v) sum[i][v] = load(start + i * start_stride + v * L);
  // The lines of the output that are about to be written are fetched, those of a pixel with each channel. (On an EPYC,
  // 2 threads, channels_last: 1x1, 64 to 256 at 56x56 0.57 -> 0.50 ms; 16 to 96 at 112x112 0.43 -> 0.28; 3x3, 3 to 64
  // at 224x224 1.6 -> 0.96, where all of them before the first channel gave 1.15.)
  const A* line = acc;
  int lines = finish ? PX : 0;
  // Loops that run at least once: with a way around them the compiler keeps the sums in memory at their end.
  const int64_t last = channels - 1;
  int64_t c0 = 0;
  do {
    const int64_t n = min64(L, channels - c0);
    const Tap* tap = taps.first;
    const Tap* const end = tap + taps.rows * taps.pitch;
    do {
      const Tap* const row_end = tap + taps.columns;
      do {
        const A* from = x + static_cast<int64_t>(tap->offset) * pixel;
        const A* ahead = From == Source::kPacked ? from + L * x_channel : from + L;
        const A* weight = w + static_cast<int64_t>(tap->index) * (L * KV * L);
        const A* weight_end = weight + n * KV * L;
        do {
          Vec<A> b[KV];
#pragma GCC unroll 4
          for (int v = 0; v < KV; ++v) {
            b[v] = load(weight + v * L);
            if (v * kVecBytes % kCacheLine == 0)
              __builtin_prefetch(reinterpret_cast<const char*>(weight + v * L) + kWeightsAhead);
          }
#pragma GCC unroll 16
          for (int i = 0; i < PX; ++i) {
            const Vec<A> value = splat(from[i * pixel]);
#pragma GCC unroll 4
            for (int v = 0; v < KV; ++v) sum[i][v] += value * b[v];
          }
          if (From != Source::kPlanes) {  // the next channels of one pixel after the other
            __builtin_prefetch(ahead);
            ahead += pixel;
          }
          if (lines > 0) {
#pragma GCC unroll 4
            for (int v = 0; v < KV; ++v) __builtin_prefetch(line + v * L, 1);
            line += acc_stride;
            --lines;
          }
          from += channel;
          weight += KV * L;
        } while (weight != weight_end);
      } while (++tap != row_end);
      tap += taps.pitch - taps.columns;
    } while (tap != end);
    x += L * x_channel;
    w += w_block;
    c0 += L;
  } while (c0 <= last);
  if (finish) {
#pragma GCC unroll 16
    for (int i = 0; i < PX; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < KV; ++v) finish->store(acc + i * acc_stride + v * L, sum[i][v]);
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < PX; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < KV; ++v) store(acc + i * acc_stride + v * L, sum[i][v]);
}

template <class A>
using ChannelMicro = void (*)(const A*, int64_t, int64_t, int64_t, TapGrid, const A*, int64_t, const A*, A*, int64_t,
                              const Finish<A>*);

template <class A, int KV, Source From, int... I>
ChannelMicro<A> channel_micro_of(int pixels, std::integer_sequence<int, I...>) {
  static const ChannelMicro<A> kTable[] = {channel_micro<A, KV, I + 1, From>...};
  return kTable[pixels - 1];
}

template <class A, int KV>
ChannelMicro<A> channel_micro_of(Source from, int pixels) {
  using Pixels = std::make_integer_sequence<int, channel_pixels(KV)>;
  return from == Source::kPacked   ? channel_micro_of<A, KV, Source::kPacked>(pixels, Pixels{})
         : from == Source::kPlanes ? channel_micro_of<A, KV, Source::kPlanes>(pixels, Pixels{})
                                   : channel_micro_of<A, KV, Source::kPixels>(pixels, Pixels{});
}

template <class A>
ChannelMicro<A> channel_micro_of(int kv, Source from, int pixels) {
  return kv == 1   ? channel_micro_of<A, 1>(from, pixels)
         : kv == 2 ? channel_micro_of<A, 2>(from, pixels)
                   : channel_micro_of<A, 3>(from, pixels);
}

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
