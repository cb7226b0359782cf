// How `channel` (channel.h) cuts a layer: what lies where in scratch, which tiles, passes and shares of the output
// channels, chosen by an estimate of cycles. Segments of rows and folded columns are explained there.
#pragma once
#include "conv/spread.h"

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
constexpr int kCacheWays = 8;                  // of a set of the first-level cache

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

inline Geometry fold_geometry(const ConvParams& folded, int64_t rows, int64_t columns, int64_t folds) {
  Geometry g = make_geometry(folded, rows, columns);
  g.pitch = ceil_div((g.w.tile - 1) * folded.stride_w + folds, folded.stride_w);
  g.channel = g.h.planes * g.h.span * g.pitch;
  return g;
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

// A group's channels of a pixel are a few cache lines, far from those of the next: where there are images for all
// threads, the pixels of a tile are copied whole, for all groups. (8 images, two threads: 16 a group, 512 channels at
// 14x14 1.32 -> 1.12 ms; 48 a group, 1x1, 384 to 96 at 28x28 0.96 -> 0.78.)
template <class A>
bool short_runs(const ConvParams& p) {
  return is_channels_last(p.input) && p.G > 1 && p.C % kLanes<A> == 0 && p.C * p.element_size() <= 4 * kCacheLine &&
         p.N >= p.threads && !spread(p);
}

template <class A>
ChannelPlan channel_plan_for(const ConvParams& p, int64_t rows, int64_t columns, int64_t k_splits, int64_t c_pass,
                             bool segments, int64_t folds) {
  constexpr int L = kLanes<A>;
  ChannelPlan plan;
  plan.folds = folds;
  const ConvParams base = spread_base(p);
  plan.kv = channel_vectors<A>(p);
  const int pixels = channel_pixels(plan.kv);
  plan.g = make_geometry(base, rows, columns, pixels);
  const bool same_type = static_cast<int64_t>(sizeof(A)) == p.element_size(), last = is_channels_last(p.input);
  const bool one_tap =
      base.R == 1 && base.S == 1 && base.pad_h == 0 && base.pad_w == 0 && base.P <= p.H && base.Q <= p.W && same_type;
  // The pixels of a register tile, of which 16 registers allow six by two vectors, may all lie in one set of the
  // first-level cache.
  const bool near =
      p.input.w * p.stride_w * p.element_size() <= kInPlaceBytes || (pixels < kCacheWays && !short_runs<A>(p));
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
  if (folds) plan.g = fold_geometry(p, rows, columns, folds);
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
  // An item reads all its weights once: from the second-level cache, from beyond it, or packing them on the way. A
  // thread's items come one split of the output channels after the other: of those of one split, where a cache holds
  // its weights, only the first brings them. (512 to 2048 channels, 1x1, 7x7, 8 images, two threads, 64 or 256 channels
  // of weights a split: contiguous 3.6 -> 3.2 ms, channels_last 3.2 -> 2.9.)
  const double weights = static_cast<double>(plan.k_range * plan.passes * plan.block_elements);
  const double all = static_cast<double>(p.G * plan.k_blocks * plan.passes * plan.block_elements);
  const int64_t near = 1 << 20, items = channel_items<A>(p, plan);
  double far = all * sizeof(A) > near ? 1 : 0;
  if (far > 0 && p.G == 1 && p.N > 1 && weights * sizeof(A) <= near)
    far /= static_cast<double>(max64(1, min64(items / p.threads, items / plan.k_splits)));
  const double pack = plan.prepack
                          ? weights * (0.06 + 0.29 * far) + 1.2 * all / static_cast<double>(items * plan.g_range)
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
  // Smaller items cost little where their weights are few: 1x1 of stride 2, 256 to 512 at 56x56, channels_last,
  // two threads 1.04 -> 0.96 ms, 5x5, 96 to 256 at 27x27 in 2 groups 2.31 -> 1.89. Where they are many, 3x3 of rate 6,
  // 512 to 1024 at 19x19, 9.5 -> 13.2.
  const double waited = heavy ? 0 : 0.5;
  double best_total = 0;
  // Splits of the output channels that leave each so few weights as stay near; see channel_cost().
  const int64_t far_splits = p.G == 1 && p.N > 1 ? p.K * p.C * p.R * p.S * static_cast<int64_t>(sizeof(A)) >> 20 : 0;
  const int64_t most_splits = max64(2 * p.threads, far_splits);
  // Where the pixels of a channels_last input are one long row, narrower tiles are what lower ones are elsewhere. (1x1,
  // 256 to 64 at 56x56, 8 images, two threads: 3.03 -> 2.77 ms.)
  const bool one_row = base.P == 1 && !spread(p) && !folds && !segments && is_channels_last(p.input);
  const int64_t least_columns = one_row ? 64 : spread_columns(p);
  const int64_t pass_bytes = p.R * p.S * channel_vectors<A>(p) * kLanes<A> * static_cast<int64_t>(sizeof(A));
  for (int64_t limit : {384 << 10, 6 << 20}) {
    // Several passes over the input channels only where one does not fit, or its weights do not; several work items to
    // a tile of pixels only where there are too few tiles.
    for (int64_t c_pass = folds ? p.C : ceil_div(p.C, ceil_div(p.C * pass_bytes, kPassWeightBytes));
         best_total == 0 || (heavy && c_pass >= 2 * kLanes<A>); c_pass = ceil_div(c_pass, 2)) {
      for (int64_t columns = spread_columns(p); columns >= least_columns; columns /= 2)
        for (int64_t k_splits = 1; k_splits <= most_splits; k_splits *= 2) {
          const auto plan_of = [&](int64_t r) {
            return channel_plan_for<A>(p, r, columns, k_splits, c_pass, segments, folds);
          };
          const int64_t rows = choose_rows(
              base.P, p.threads,
              [&](int64_t r) {
                const ChannelPlan plan = plan_of(r);
                // What several blocks of output channels read and write in turn.
                const bool again = plan.k_range > 1 && plan.source == Source::kPixels;
                const int64_t reads = plan.in_place && again ? r * plan.g.w.tile * min64(p.C, plan.c_pass) : 0;
                const int64_t writes =
                    plan.out_place && (spread(p) || again) ? r * p.up_h * plan.g.w.tile * p.up_w * p.K : 0;
                // A heavy layer returns to its sums once for all weights of a pass, whether they are the output itself,
                // which is not counted either, or lie in scratch. (512 to 1024 channels at 19x19, rate 6, contiguous,
                // on an Intel Xeon: 21 to 18 ms; 2048 at 33x33, rate 18: 40 to 34.)
                const int64_t size = sizeof(A);
                const int64_t sums = heavy && plan.acc_elements * size <= kSumBytes ? plan.acc_elements : 0;
                return (channel_thread_elements<A>(plan) - sums + reads + writes) * size <= limit;
              },
              [&](int64_t r) { return channel_items<A>(p, plan_of(r)); },
              [&](int64_t r) { return channel_cost<A>(p, plan_of(r)); }, waited);
          if (!rows) continue;
          const ChannelPlan plan = plan_of(rows);
          const double total = finish_time(channel_items<A>(p, plan), p.threads, channel_cost<A>(p, plan), waited);
          if (best_total == 0 || total < best_total) {
            best = plan;
            best_total = total;
          }
          if ((channel_items<A>(p, plan) >= 8 * p.threads && k_splits >= far_splits) || k_splits >= plan.k_blocks)
            break;
        }
      if (c_pass == 1 || folds) break;
    }
    if (best_total != 0) return true;
  }
  return false;
}

}  // namespace
}  // namespace fastconv
