// The plan of the pairs kernel (pairs.h): what lies in scratch, in which pieces pixels are computed, how many rows of
// output a work item has.
#pragma once
#include "conv/tile.h"

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

struct PairsPlan {
  Geometry g;
  bool thin, in_place, planar, prepack;
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
// follow the taps where that saves more than smaller pieces cost. (Not tried with AMX.)
struct Trim {
  bool trimmed = false;    // every piece has steps of its own
  bool cut = false;        // and pieces end where the set of live taps changes
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
  if (kPiecesAtOnce > 1 || spread(p) || plan.thin || plan.in_place) return trim;
  const int64_t dilation = max64(p.R > 1 ? p.dilation_h : 1, p.S > 1 ? p.dilation_w : 1);
  trim.trimmed = dilation >= kSegmentDilation && p.R * p.S <= kMostTaps;
  if (!trim.trimmed || plan.g.w.tiles > 1) return trim;
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
  if (plan.trimmed || plan.thin || plan.in_place || plan.planar || rows == 1) return false;
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
inline Geometry thin_geometry(const PairsPlan& plan, int64_t stride) {
  Geometry g = plan.g;
  g.w.tile = (g.w.tile - 1) * stride + 1;
  return g;
}
inline Tile thin_tile(Tile t, int64_t stride) {
  t.q0 *= stride;
  t.columns = (t.columns - 1) * stride + 1;
  return t;
}

// Whether the weights of a kernel row are one run in memory, columns of `channels` channels.
inline bool pairs_row_adjoins(const ConvParams& p, int64_t channels) {
  return p.C == channels && p.weight.c == 1 && p.weight.w == channels;
}

inline PairsPlan pairs_plan_for(const ConvParams& p, int64_t rows, int64_t k_splits, const Trim& trim) {
  PairsPlan plan;
  plan.trimmed = trim.trimmed;
  plan.cut = trim.cut;
  const ConvParams base = spread_base(p);
  plan.g = make_geometry(base, rows, spread_columns(p));
  const int64_t channels = p.C <= 4 ? 4 : p.C <= 8 ? 8 : 16;  // of a position, if thin
  plan.thin = !spread(p) && p.S > 1 && p.dilation_w == 1 && (p.C <= 8 || (p.C == 16 && pairs_row_adjoins(p, 16)));
  plan.in_place = false;
  plan.planar =
      !spread(p) && kPiecesAtOnce == 2 && p.R == 1 && p.S == 1 && p.input.c != 1 && p.output.c != 1 && p.output.w == 1;
  plan.columns = 1;
  if (plan.thin) {
    // All values of a kernel row in steps of one size.
    int64_t steps = ceil_div(p.S * channels, 32);
    while (p.S * channels / 2 % steps != 0) ++steps;
    plan.width = p.S * channels / steps;
    plan.c_blocks = 1;
    plan.columns = steps;
    plan.pixel = 2 * channels;
    plan.taps = p.R * steps;
    plan.g.w.period = plan.g.w.planes = 1;
    plan.g.w.step = 1;
    plan.g.w.span = (plan.g.w.tile - 1) * p.stride_w + p.S;
    plan.g.pitch = plan.g.w.span;
    plan.g.channel = plan.g.h.planes * plan.g.h.span * plan.g.pitch;
  } else {
    plan.c_blocks = ceil_div(p.C, 32);
    plan.width = round_up(ceil_div(p.C, plan.c_blocks), 2);
    plan.pixel = plan.width <= 8 ? 16 : plan.width <= 16 ? 32 : 64;
    plan.taps = p.R * p.S;
    plan.in_place = p.input.c == 1 && base.R == 1 && base.S == 1 && base.pad_h == 0 && base.pad_w == 0 &&
                    (base.P - 1) * p.stride_h < p.H && (base.Q - 1) * p.stride_w < p.W &&
                    plan.c_blocks * plan.width == p.C && p.input.w * p.stride_w * 2 <= kInPlaceBytes;
  }
  // Room for the columns that are written beyond a row, and an odd number of cache lines.
  plan.block_bytes = (ceil_div((plan.g.channel + 16) * plan.pixel, 64) | 1) * 64;
  if (plan.planar) {
    plan.pair_bytes = (ceil_div((plan.g.channel + 32) * 4, 64) | 1) * 64;
    plan.block_bytes = plan.width / 2 * plan.pair_bytes;
  }
  const int64_t block_weights = plan.taps * plan.width * kBlockK * 2;
  plan.passes = ceil_div(plan.c_blocks * block_weights, kPassWeightBytes);
  plan.pass_blocks = ceil_div(plan.c_blocks, plan.passes);
  plan.passes = ceil_div(plan.c_blocks, plan.pass_blocks);
  plan.pass_weights = plan.pass_blocks * block_weights;
  plan.k_blocks = ceil_div(p.K, kBlockK);
  plan.k_range = ceil_div(plan.k_blocks, k_splits);
  plan.k_splits = ceil_div(plan.k_blocks, plan.k_range);
  plan.prepack = p.prepacked || p.N * plan.g.h.tiles * plan.g.w.tiles > 1;
  plan.pieces = piece_count(plan, rows, plan.g.w.tile);
  // A ragged tile may have other pieces, never many more.
  plan.pieces = max64(plan.pieces, rows * Pieces(plan.g.w.tile).count) + 1;
  if (plan.cut) plan.pieces = rows * trim.row_pieces;
  if (plan.planar) plan.pieces = rows * round_up(ceil_div(plan.g.w.tile, 16), 2);
  plan.x_bytes = plan.in_place ? 0 : plan.pass_blocks * plan.block_bytes;
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
  const double fill = plan.in_place ? 0
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
  const Trim trim = pairs_trim(p, pairs_plan_for(p, 1, 1, Trim()));
  for (int64_t limit : {kCacheBytes, int64_t{24} << 20}) {
    for (int64_t k_splits = 1; k_splits <= 4 * p.threads; k_splits *= 2) {
      const auto plan_of = [&](int64_t r) { return pairs_plan_for(p, r, k_splits, trim); };
      const int64_t rows = choose_rows(
          base.P, p.threads,
          [&](int64_t r) {
            const PairsPlan plan = plan_of(r);
            // What is read in place stays near from one residue to the next.
            const int64_t in_place = spread(p) && plan.in_place ? r * plan.g.w.tile * p.C * 2 : 0;
            return plan.x_bytes + in_place + plan.pass_weights + (plan.passes > 1 ? plan.sum_bytes / 2 : 0) <= limit;
          },
          [&](int64_t r) { return pairs_items(p, plan_of(r)); }, [&](int64_t r) { return pairs_cost(p, plan_of(r)); });
      if (!rows) continue;
      const PairsPlan plan = plan_of(rows);
      const double total = static_cast<double>(ceil_div(pairs_items(p, plan), p.threads)) * pairs_cost(p, plan);
      if (best_total == 0 || total < best_total) {
        best = plan;
        best_total = total;
      }
      if (k_splits >= plan.k_blocks) break;
    }
    if (best_total != 0) return true;
  }
  return false;
}

}  // namespace
}  // namespace fastconv
