// The plan of the pairs kernel (pairs.h): what lies in scratch, in which pieces pixels are computed, how many rows of
// output a work item has.
#pragma once
#include "conv/spread.h"

namespace fastconv {
namespace {

#ifdef __AMX_BF16__
constexpr int kPieceRows = 16, kPiecesAtOnce = 2;
#else
constexpr int kPieceRows = 14, kPiecesAtOnce = 1;
#endif
constexpr int64_t kBlockK = 32;              // output channels of a register tile
constexpr int64_t kCacheBytes = 1200 << 10;  // of input and weights that stay in the second-level cache
constexpr int64_t kNearBytes = 512 << 10;    // of them that leave room there for the output as it passes
constexpr int64_t kMostTaps = 64;            // of a kernel whose weights are transposed on the stack, or steps trimmed
constexpr int kPacked16 = 16;                // channels whose weights are transposed at a time
constexpr int64_t kMostFolded = 256;         // values of a pixel that are gathered (pairs_fold.h)
constexpr int64_t kMostPlanes = 80;          // of a contiguous input
constexpr int64_t kFoldOutputs = 32;         // channels that share it: 8 a group lose by it, 0.20 -> 0.28 ms
constexpr int64_t kStripBytes = 32 << 10;    // of a strip of them, which stays in the first-level cache

struct PairsPlan {
  Geometry g;
  bool folded, thin, in_place, planar, prepack;
  int64_t width, c_blocks;      // input channels of a step (thin: values), steps of a tap that they make
  int64_t pixel;                // bytes from a position of scratch to the next
  int64_t columns;              // thin: kernel columns of a step, else 1
  int64_t taps;                 // steps of a block: kernel rows times steps of a row
  int64_t block_bytes;          // of a block of channels in scratch
  int64_t pair_bytes;           // planar: of a pair of channels
  int64_t pass_blocks, passes;  // blocks of channels in scratch at a time
  int64_t k_blocks, k_range, k_splits;
  int64_t pass_weights;  // bytes of packed weights for one block of output channels and one pass
  int64_t x_bytes, sum_bytes, weight_bytes, pieces;
  int64_t strip;       // folded: pieces that are gathered at a time, a multiple of kPiecesAtOnce
  int64_t piece_sums;  // floats: those of a piece, of all residues of the columns
  bool trimmed, cut;   // see Trim
};

// The pieces of `length` adjoining pixels.
struct Pieces {
  int64_t count, rows;
  explicit Pieces(int64_t length) : count(ceil_div(length, kPieceRows)), rows(ceil_div(length, count)) {}
  // Cycles of all with one tile of weights. Half of a tile costs nearly as much as a whole one.
  double cost() const {
    return static_cast<double>(count) * (kPiecesAtOnce == 2 ? (rows <= 8 ? 18 : 21 + 0.15 * (rows - 8)) : rows + 1.0);
  }
};

// Large dilations read much padding, and not the same all over a tile: taps are left out piece by piece. Ends of pieces
// follow the taps where that saves more than smaller pieces cost. AMX, to which a piece of half the pixels costs as
// much, cannot gain by that. It loses most where rows are no multiple of a piece: its pieces go on from row to row,
// over no gap where scratch holds the columns of each kernel column apart, and those that are multiplied at once have
// steps in common. (3x3 of rate 6, 512 to 1024 at 19x19, two threads, channels_last: 9.4 ms, trimmed 7.5, and
// apart 6.1.)
struct Trim {
  bool trimmed = false;    // every piece has steps of its own
  bool cut = false;        // and pieces end where the set of live taps changes
  bool apart = false;      // every kernel column has columns of scratch of its own
  int64_t row_pieces = 0;  // of a row, where it is cut
};

// Cycles of a row of outputs with one tile of weights and one kernel row.
inline double segments_cost(const ConvParams& p, const Segment* segments, int64_t count) {
  double cost = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Range columns = segments[i].columns;
    const Pieces pieces(columns.end - columns.begin);
    for (int64_t j = 0; j < pieces.count; ++j) {
      const int64_t q = min64(columns.begin + j * pieces.rows, columns.end - pieces.rows);
      const Range taps = live_columns(p, q, q + pieces.rows);
      cost += static_cast<double>(taps.end - taps.begin) * pieces.cost() / static_cast<double>(pieces.count);
    }
  }
  return cost;
}

inline Trim pairs_trim(const ConvParams& p, const PairsPlan& plan) {
  Trim trim;
  if (spread(p) || plan.folded || plan.thin || plan.in_place) return trim;
  const int64_t dilation = max64(p.R > 1 ? p.dilation_h : 1, p.S > 1 ? p.dilation_w : 1);
  trim.trimmed = dilation >= kSegmentDilation && p.R * p.S <= kMostTaps;
  if (kPiecesAtOnce > 1 || !trim.trimmed || plan.g.w.tiles > 1) return trim;
  Segment segments[kMostSegments];
  const Segment whole = {{0, p.Q}, {0, p.S}};
  const int64_t count = tap_segments(p, segments);
  trim.cut = count > 1 && segments_cost(p, segments, count) < 0.95 * segments_cost(p, &whole, 1);
  for (int64_t i = 0; i < count; ++i)
    trim.row_pieces += Pieces(segments[i].columns.end - segments[i].columns.begin).count;
  return trim;
}

// Whether pieces go on from row to row, over the gap between them.
inline bool joins_rows(const PairsPlan& plan, int64_t rows, int64_t columns) {
  if (plan.thin || plan.in_place || plan.planar || rows == 1 || (plan.trimmed && kPiecesAtOnce == 1)) return false;
  return Pieces((rows - 1) * plan.g.pitch + columns).cost() < 0.9 * static_cast<double>(rows) * Pieces(columns).cost();
}
inline double piece_cost(const PairsPlan& plan, int64_t rows, int64_t columns) {
  if (plan.planar) return Pieces(rows * columns).cost();
  return joins_rows(plan, rows, columns) ? Pieces((rows - 1) * plan.g.pitch + columns).cost()
                                         : static_cast<double>(rows) * Pieces(columns).cost();
}
inline int64_t piece_count(const PairsPlan& plan, int64_t rows, int64_t columns) {
  return joins_rows(plan, rows, columns) ? Pieces((rows - 1) * plan.g.pitch + columns).count
                                         : rows * Pieces(columns).count;
}

// As a convolution of stride 1 in columns: what `thin` scratch is filled by.
inline ConvParams thin_params(const ConvParams& p) {
  ConvParams q = p;
  q.stride_w = 1;
  return q;
}
inline Geometry thin_geometry(Geometry g, int64_t stride) {
  g.w.tile = (g.w.tile - 1) * stride + 1;
  return g;
}
inline Tile thin_tile(Tile t, int64_t stride) {
  t.q0 *= stride;
  t.columns = (t.columns - 1) * stride + 1;
  return t;
}

// Columns of scratch as they lie in the input, whatever the stride.
inline void keep_columns(const ConvParams& p, Geometry& g) {
  g.w.period = g.w.planes = 1;
  g.w.step = 1;
  g.w.span = (g.w.tile - 1) * p.stride_w + p.S;
  g.pitch = g.w.span;
  g.channel = g.h.planes * g.h.span * g.pitch;
}

// Columns of scratch once for each kernel column, without those that it does not read: no gap is left between rows.
inline void columns_apart(const ConvParams& p, Geometry& g) {
  g.w.period = g.w.planes = p.S;
  g.w.step = 0;
  g.w.span = g.pitch = g.w.tile;
  g.channel = g.h.planes * g.w.planes * g.h.span * g.pitch;
}

// Thin: channels of a position, and steps of one size that take all values of a kernel row.
inline int64_t thin_channels(const ConvParams& p) { return p.C <= 4 ? 4 : p.C <= 8 ? 8 : 16; }
inline int64_t thin_steps(const ConvParams& p) {
  const int64_t pairs = p.S * thin_channels(p) / 2;
  int64_t steps = ceil_div(pairs, 16);
  while (pairs % steps != 0) ++steps;
  return steps;
}

// Steps that the values of a pixel take, row by row of the kernel and folded: AMX takes 32 of them, a dot product two.
inline int64_t unfolded_steps(const ConvParams& p) {
  if (kPiecesAtOnce > 1) return p.R * (p.S > 1 ? thin_steps(p) : 1);
  return p.R * ceil_div(p.S > 1 ? p.S * thin_channels(p) : p.C, 2);
}
inline int64_t folded_steps(int64_t values) { return ceil_div(values, kPiecesAtOnce > 1 ? 32 : 2); }

// Whether all values that a pixel reads are gathered first, see pairs_fold.h. Planes need no transposition then, which
// pays for kMostPlanes values; lines must save two tiles for each part of one that is copied. (One thread, medians in
// milliseconds, planes and lines: 3x3 of 4 channels to 32 at 112x112 0.31 -> 0.26, 0.24 -> 0.29; 3 to 64 at 32x32,
// eight images, 0.41 -> 0.23, 0.27 -> 0.21; but 7x7 of stride 2, 3 to 64 at 224x224, 0.47 -> 0.57, 0.46 -> 0.56.)
// Dot products must save two pairs instead, and there may be one line: two took longer (3x3, 4 to 64 at 112x112 0.35 ->
// 0.58).
inline bool folds_planes(const ConvParams& p) { return p.input.c != 1 && p.output.c != 1 && p.output.w == 1; }
inline bool folds(const ConvParams& p) {
  const int64_t values = p.C * p.R * p.S;
  if (spread(p) || p.R * p.S == 1 || p.C > 8 || values > kMostFolded) return false;
  if (kPiecesAtOnce > 1 && folds_planes(p)) return p.stride_w <= 2 && values <= kMostPlanes && p.K >= kFoldOutputs;
  const int64_t lines = ceil_div(values, 32), parts = lines + p.R - 1;
  if (kPiecesAtOnce == 1 && lines > 1) return false;
  const int64_t saved = (unfolded_steps(p) - folded_steps(values)) * ceil_div(p.K, 16);
  return p.input.c == 1 && p.output.c == 1 && p.dilation_w == 1 && saved >= 2 * parts;
}
// What is left then, a 1x1 convolution. Its input and weights are not where it says.
inline ConvParams folded_params(const ConvParams& p) {
  ConvParams q = p;
  q.C = p.C * p.R * p.S;
  q.R = q.S = q.stride_h = q.stride_w = q.dilation_h = q.dilation_w = 1;
  q.pad_h = q.pad_w = 0;
  q.H = p.P;
  q.W = p.Q;
  q.input.c = folds_planes(p) ? 0 : 1;
  return q;
}

// Of the first copy: rows of one channel at a time for planes, of all columns and channels for lines.
inline Geometry fold_geometry(const ConvParams& p, const PairsPlan& plan) {
  Geometry g = make_geometry(p, plan.g.h.tile, plan.g.w.tile);
  if (!plan.planar) keep_columns(p, g);
  return g;
}
inline int64_t fold_bytes(const ConvParams& p, const PairsPlan& plan) {
  return plan.folded ? round_up((p.C * fold_geometry(p, plan).channel + 96) * 2, 64) : 0;
}

// Whether the weights of a kernel row are one run in memory, columns of `channels` channels.
inline bool pairs_row_adjoins(const ConvParams& p, int64_t channels) {
  return p.C == channels && p.weight.c == 1 && p.weight.w == channels;
}

// In `shares` times as many passes as the weights of one pass alone would want.
inline PairsPlan pairs_plan_for(const ConvParams& given, int64_t rows, int64_t k_splits, const Trim& trim,
                                int64_t shares = 1) {
  PairsPlan plan;
  plan.folded = folds(given);
  const ConvParams p = plan.folded ? folded_params(given) : given;
  plan.trimmed = trim.trimmed;
  plan.cut = trim.cut;
  const ConvParams base = spread_base(p);
  plan.g = make_geometry(base, rows, spread_columns(p));
  if (trim.apart) columns_apart(p, plan.g);
  plan.thin = !spread(p) && p.S > 1 && p.dilation_w == 1 && (p.C <= 8 || (p.C == 16 && pairs_row_adjoins(p, 16)));
  plan.in_place = false;
  plan.planar =
      !spread(p) && kPiecesAtOnce == 2 && p.R == 1 && p.S == 1 && p.input.c != 1 && p.output.c != 1 && p.output.w == 1;
  plan.columns = 1;
  if (plan.thin) {
    const int64_t steps = thin_steps(p);
    plan.width = p.S * thin_channels(p) / steps;
    plan.c_blocks = 1;
    plan.columns = steps;
    plan.pixel = 2 * thin_channels(p);
    plan.taps = p.R * steps;
    keep_columns(p, plan.g);
  } else {
    plan.c_blocks = ceil_div(p.C, 32);
    plan.width = round_up(ceil_div(p.C, plan.c_blocks), 2);
    plan.pixel = plan.width <= 8 ? 16 : plan.width <= 16 ? 32 : 64;
    plan.taps = p.R * p.S;
    plan.in_place = !plan.folded && p.input.c == 1 && base.R == 1 && base.S == 1 && base.pad_h == 0 &&
                    base.pad_w == 0 && (base.P - 1) * p.stride_h < p.H && (base.Q - 1) * p.stride_w < p.W &&
                    plan.c_blocks * plan.width == p.C && p.input.w * p.stride_w * 2 <= kInPlaceBytes;
  }
  // Room for the columns that are written beyond a row, and an odd number of cache lines.
  plan.block_bytes = (ceil_div((plan.g.channel + 16) * plan.pixel, 64) | 1) * 64;
  if (plan.folded && !plan.planar) {
    // The blocks of a pixel adjoin, in whole lines.
    if (plan.c_blocks > 1) plan.width = 32;
    plan.pixel = plan.c_blocks * 64;
    plan.block_bytes = 64;
  }
  if (plan.folded)
    plan.strip = max64(kStripBytes / (plan.planar ? plan.c_blocks * plan.width * 64 : plan.pixel * 16) / 2 * 2, 2);
  if (plan.planar) {
    const int64_t pixels = plan.folded ? plan.strip * 32 : plan.g.channel;
    plan.pair_bytes = (ceil_div((pixels + 32) * 4, 64) | 1) * 64;
    plan.block_bytes = plan.width / 2 * plan.pair_bytes;
  }
  const int64_t block_weights = plan.taps * plan.width * kBlockK * 2;
  plan.passes = ceil_div(plan.c_blocks * block_weights, kPassWeightBytes) * shares;
  plan.pass_blocks = ceil_div(plan.c_blocks, plan.passes);
  plan.passes = ceil_div(plan.c_blocks, plan.pass_blocks);
  plan.pass_weights = plan.pass_blocks * block_weights;
  plan.k_blocks = ceil_div(p.K, kBlockK);
  plan.k_range = ceil_div(plan.k_blocks, k_splits);
  plan.k_splits = ceil_div(plan.k_blocks, plan.k_range);
  plan.prepack = p.prepacked || plan.folded || p.N * plan.g.h.tiles * plan.g.w.tiles > 1;
  plan.pieces = piece_count(plan, rows, plan.g.w.tile);
  // A ragged tile may have other pieces, never many more.
  plan.pieces = max64(plan.pieces, rows * Pieces(plan.g.w.tile).count) + 1;
  if (plan.cut) plan.pieces = rows * trim.row_pieces;
  if (plan.planar) plan.pieces = rows * round_up(ceil_div(plan.g.w.tile, 16), 2);
  plan.x_bytes = plan.in_place                 ? 0
                 : plan.folded && !plan.planar ? (plan.strip + 1) * 16 * plan.pixel
                                               : plan.pass_blocks * plan.block_bytes;
  plan.x_bytes += fold_bytes(given, plan);
  plan.piece_sums = kPieceRows * p.up_w * kBlockK;
  plan.sum_bytes = (plan.passes > 1 ? p.up_h * plan.k_range * plan.pieces : kPiecesAtOnce) * plan.piece_sums * 4;
  plan.sum_bytes += 16 * kBlockK * 4;  // sixteen pixels are written at a time
  plan.weight_bytes = plan.prepack ? 0 : plan.pass_weights;
  return plan;
}

inline int64_t pairs_items(const ConvParams& p, const PairsPlan& plan) {
  return p.N * p.G * plan.g.h.tiles * plan.g.w.tiles * plan.k_splits;
}

// Estimated cycles of one item.
inline double pairs_cost(const ConvParams& p, const PairsPlan& plan) {
  const int64_t rows = plan.g.h.tile, columns = plan.g.w.tile;
  const double steps = static_cast<double>(plan.c_blocks * plan.taps * plan.k_range);
  const double k_tiles = p.K <= 16 ? 1 : 2;
  const double step = kPiecesAtOnce == 2 ? k_tiles : static_cast<double>(plan.width) / 2 * k_tiles;
  const double macs = steps * step * piece_cost(plan, rows, columns);
  const double fold = static_cast<double>(plan.g.channel * (plan.planar ? p.C * p.R * p.S / 8 : 3 * p.R));
  const double fill = plan.in_place ? 0
                      : plan.folded ? fold
                                    : static_cast<double>(plan.c_blocks * plan.g.channel) * (plan.planar      ? 2
                                                                                             : p.input.c == 1 ? 3
                                                                                                              : 7);
  const double out =
      static_cast<double>(rows * p.up_h * columns * p.up_w * plan.k_range) * (plan.planar || p.output.c == 1 ? 6 : 12);
  const double passes = plan.passes > 1 ? static_cast<double>(plan.passes * plan.k_range * plan.pieces) * 100 : 0;
  const double weights = static_cast<double>(plan.k_range * plan.passes * plan.pass_weights);
  const double all = static_cast<double>(p.G * plan.k_blocks * plan.passes * plan.pass_weights);
  const double far = plan.x_bytes + plan.pass_weights > kNearBytes ? 0.08 * macs : 0;
  return macs + far + fill + out + passes + weights * (plan.prepack ? all > kCacheBytes ? 0.12 : 0.02 : 0.2) + 1000;
}

inline bool pairs_plan(const ConvParams& p, PairsPlan& best) {
  double best_total = 0;
  const ConvParams base = spread_base(p);
  if (spread_too_far(p, base)) return false;
  const PairsPlan first = pairs_plan_for(p, 1, 1, Trim());
  Trim trim = pairs_trim(p, first);
  const bool may_part = kPiecesAtOnce == 2 && trim.trimmed && p.S > 1 && p.dilation_w >= kSegmentDilation;
  // Where weights are many, fewer and larger tiles read them, if their input is in scratch a few channels at a time:
  // two blocks and more of contiguous planes, four of pixels, of which less would be read a line here and there. (Two
  // threads of a Zen 4, contiguous and channels_last, ms: rate 6, 512 to 1024@19 7.6 -> 5.8, 7.2 -> 5.8; rate 24, 2048
  // to 256@65 75 -> 62, 75 -> 64; rate 6, 2048 to 256@33 27 -> 20, 23 -> 22; rate 18 there 15 -> 15, 14 -> 14.) AMX's
  // plans are without: they were not measured so.
  const bool may_share = kPiecesAtOnce == 1 && !first.in_place && !spread(p) &&
                         first.k_blocks * first.passes * first.pass_weights > kCacheBytes;
  const int64_t most_shares = may_share ? max64(1, first.pass_blocks / (p.input.c == 1 ? 4 : 2)) : 1;
  constexpr double kLongCycles = 1e7;
  for (int64_t limit : {kCacheBytes, int64_t{24} << 20}) {
    double last_total = 0;
    for (int64_t shares = 1; shares <= most_shares; shares *= 2) {
      // No better than half of them, in a layer that would notice the time of planning.
      if (last_total != 0 && best_total >= last_total && best_total < kLongCycles) break;
      last_total = best_total;
      for (int apart = 0; apart <= may_part; ++apart) {
        trim.apart = apart;
        for (int64_t k_splits = 1; k_splits <= 4 * p.threads; k_splits *= 2) {
          const auto plan_of = [&](int64_t r) { return pairs_plan_for(p, r, k_splits, trim, shares); };
          const int64_t rows = choose_rows(
              base.P, p.threads,
              [&](int64_t r) {
                const PairsPlan plan = plan_of(r);
                // What is read in place stays near from one residue to the next.
                const int64_t in_place = spread(p) && plan.in_place ? r * plan.g.w.tile * p.C * 2 : 0;
                return plan.x_bytes + in_place + plan.pass_weights + (plan.passes > 1 ? plan.sum_bytes / 2 : 0) <=
                       limit;
              },
              [&](int64_t r) { return pairs_items(p, plan_of(r)); },
              [&](int64_t r) { return pairs_cost(p, plan_of(r)); });
          if (!rows) continue;
          const PairsPlan plan = plan_of(rows);
          const double total = finish_time(pairs_items(p, plan), p.threads, pairs_cost(p, plan));
          if (best_total == 0 || total < best_total) {
            best = plan;
            best_total = total;
          }
          if (k_splits >= plan.k_blocks) break;
        }
      }
    }
    if (best_total != 0) return true;
  }
  return false;
}

}  // namespace
}  // namespace fastconv
