// How grouped.h cuts a layer into pieces: groups into vectors, kernels into patches, outputs into tiles.
#pragma once
#include "conv/spread.h"

namespace fastconv {
namespace {

// Pixels of a register tile: kGroupedRows by kGroupedWide or kGroupedNarrow, or fewer of either where the image ends.
// Seven columns divide the maps of most networks.
constexpr int kGroupedRows = 2;
constexpr int kGroupedWide = kVecRegisters == 32 ? 7 : 4;
constexpr int kGroupedNarrow = kVecRegisters == 32 ? 4 : 2;
constexpr int64_t kGroupedShare = 8;           // blocks of channels that a work item reads and writes together
constexpr int64_t kGroupedFewBytes = 6 << 10;  // weights of a vector that leave room in the first-level cache
constexpr int64_t kGroupedBytes = 512 << 10;   // scratch that leaves room in the second-level cache
constexpr int64_t kGroupedLargestBytes = 8 << 20;

// Neighbouring taps of one plane.
struct Patch {
  int32_t rows, columns;
  int32_t offset;  // position in a channel's planes that output 0 of the tile reads through the first tap
  int32_t first;   // taps of the patches before this
};

// Where a tap's weights of one block of input channels are: place + channel * step vectors from their beginning.
struct TapPlace {
  int32_t place, step;
};

// How output channels are dealt to the lanes of vectors.
struct GroupedLanes {
  int64_t groups, lanes;  // groups of a vector; output channels, of those groups or of one register's share of a group
  int64_t blocks, k_blocks;  // vectors' worth of groups; vectors of output channels of a block

  template <class A>
  static GroupedLanes of(const ConvParams& p, int64_t groups) {
    constexpr int64_t L = kLanes<A>;
    return {groups, groups > 1 ? groups * p.K : L, ceil_div(p.G, groups), groups > 1 ? 1 : ceil_div(p.K, L)};
  }
};

struct GroupedPlan : GroupedLanes {
  Geometry g;  // of the input as it is copied, see grouped_view
  int stride;
  int64_t rows, row_tiles, tile_columns, column_tiles;  // of output
  int64_t c_block, c_blocks;  // input channels of a block that are in one vector of scratch, and how many such
  int64_t share, sets;        // blocks of a work item: of channels_last they share cache lines and pages
  int64_t columns;            // of register tiles that cover a row
  bool quads;                 // see grouped_quad_micro()
  bool by_tile;               // write a register tile once it is there for all blocks, not a row
  int64_t held;               // columns that wait for being written
  int64_t patches;
  bool prepack;
  int64_t x_vector, x_elements, acc_elements, weight_elements;  // of one thread
};

// The columns of register tiles that cover `columns`, with the least work: wide ones, then narrow ones.
inline int64_t grouped_wide(int64_t columns) {
  int64_t best = 0, best_total = 0;
  for (int64_t wide = 0; wide <= ceil_div(columns, kGroupedWide); ++wide) {
    const int64_t rest = max64(0, columns - wide * kGroupedWide);
    const int64_t total = wide * kGroupedWide + round_up(rest, kGroupedNarrow);
    if (best_total == 0 || total <= best_total) {
      best = wide;
      best_total = total;
    }
  }
  return best;
}

// Calls patch(height, width, r, s) for the patches of `rows` by `columns` taps, of which those that follow each other
// are neighbours or not.
template <class Each>
inline void patches_of(int64_t rows, int64_t columns, bool near_rows, bool near_columns, const Each& patch) {
  for (int64_t r = 0; r < rows;) {
    const bool three = near_rows && near_columns && rows - r >= 3 && columns >= 3;
    const int64_t height = three ? 3 : 1;
    for (int64_t s = 0; s < columns;) {
      const int64_t width = near_columns ? min64(3, columns - s) : 1;
      if (width == 3 || height == 1)
        patch(height, width, r, s);
      else
        for (int64_t i = 0; i < height; ++i) patch(int64_t{1}, width, r + i, s);
      s += width;
    }
    r += height;
  }
}

// The taps of one axis that serve residue `e` of an input spread out, which is dilated by nothing: the first, and how
// many.
struct GroupedResidue {
  int64_t first, count;

  GroupedResidue(int64_t e, int64_t taps, int64_t up, int64_t pad)
      : first(((pad - e) % up + up) % up), count(ceil_div(taps - first, up)) {}
};

// Whether all four residues of outputs are made at once: 3x3 over an input spread out by two, as the gradient of a
// layer of stride 2 and padding 1 is.
inline bool grouped_makes_quads(const ConvParams& p) {
  return kVecRegisters == 32 && p.up_h == 2 && p.up_w == 2 && p.R == 3 && p.S == 3 && p.dilation_h == 1 &&
         p.dilation_w == 1 && p.pad_h == 1 && p.pad_w == 1;
}

// Calls patch(residue, height, width, tap, step_h, step_w, offset) for every patch of every residue: its first tap, how
// far it is to the tap of the next row and column, and the position in a channel's planes that output 0 reads through
// it. Without a spread-out input there is one residue.
template <class Each>
inline void for_each_patch(const ConvParams& p, const Geometry& g, const Each& patch) {
  if (grouped_makes_quads(p)) {
    patch(int64_t{0}, int64_t{3}, int64_t{3}, int64_t{0}, int64_t{1}, int64_t{1}, int64_t{0});
    return;
  }
  if (spread(p)) {
    const ConvParams base = spread_base(p);
    for (int64_t e = 0; e < p.up_h; ++e)
      for (int64_t i = 0; i < p.up_w; ++i) {
        const GroupedResidue h(e, p.R, p.up_h, p.pad_h), w(i, p.S, p.up_w, p.pad_w);
        const int64_t row = base.pad_h + spread_row(h.first, p.up_h, 1, p.pad_h);
        const int64_t column = base.pad_w + spread_row(w.first, p.up_w, 1, p.pad_w);
        patches_of(h.count, w.count, true, true, [&](int64_t height, int64_t width, int64_t r, int64_t s) {
          patch(e * p.up_w + i, height, width, (h.first + r * p.up_h) * p.S + w.first + s * p.up_w, p.up_h, p.up_w,
                (row + r) * g.pitch + column + s);
        });
      }
    return;
  }
  for (int64_t jh = 0; jh < g.h.planes; ++jh)
    for (int64_t jw = 0; jw < g.w.planes; ++jw)
      patches_of(ceil_div(p.R - jh, g.h.period), ceil_div(p.S - jw, g.w.period), g.h.step == 1, g.w.step == 1,
                 [&](int64_t height, int64_t width, int64_t r, int64_t s) {
                   const int64_t plane = jh * g.w.planes + jw;
                   patch(int64_t{0}, height, width, (jh + r * g.h.period) * p.S + jw + s * g.w.period, g.h.period,
                         g.w.period, (plane * g.h.span + r * g.h.step) * g.pitch + s * g.w.step);
                 });
}

// ends[residue]: the patches of that residue and of those before it.
inline void grouped_patches(const ConvParams& p, const Geometry& g, int64_t c_block, Patch* patches, TapPlace* places,
                            int32_t* ends) {
  int32_t first = 0, count = 0;
  for_each_patch(
      p, g,
      [&](int64_t residue, int64_t rows, int64_t columns, int64_t tap, int64_t step_h, int64_t step_w, int64_t offset) {
        patches[count] = {static_cast<int32_t>(rows), static_cast<int32_t>(columns), static_cast<int32_t>(offset),
                          first};
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < columns; ++j)
            places[tap + i * step_h * p.S + j * step_w] = {static_cast<int32_t>(first * c_block + i * columns + j),
                                                           static_cast<int32_t>(rows * columns)};
        first += static_cast<int32_t>(rows * columns);
        ends[residue] = ++count;
      });
}

inline Tile grouped_tile_of(const ConvParams& p, const GroupedPlan& plan, int64_t n, int64_t tile) {
  Tile t;
  t.n = n;
  t.p0 = tile / plan.column_tiles * plan.rows;
  t.q0 = tile % plan.column_tiles * plan.tile_columns;
  t.rows = min64(plan.rows, ceil_div(p.P, p.up_h) - t.p0);
  t.columns = min64(plan.tile_columns, ceil_div(p.Q, p.up_w) - t.q0);
  return t;
}

// A kernel of stride 2 reads every second position of a copy that is made as if the stride were 1: cheaper to copy than
// planes, and one patch of taps instead of one in each plane. The convolution that makes such a copy.
inline ConvParams grouped_view(const ConvParams& p, int stride) {
  ConvParams view = spread_base(p);
  if (stride == 1) return view;
  view.P = (p.P - 1) * stride + 1;
  view.Q = (p.Q - 1) * stride + 1;
  view.stride_h = view.stride_w = 1;
  return view;
}

inline int grouped_stride(const ConvParams& p) {
  const bool two = p.stride_h == 2 && p.stride_w == 2 && p.dilation_h == 1 && p.dilation_w == 1;
  return two && p.R > 1 && p.S > 1 && 2 * p.Q - 1 <= kMaxTileColumns ? 2 : 1;
}

// Groups whose output channels fit into one vector and whose input channels do as well; or 1.
template <class A>
int64_t grouped_groups(const ConvParams& p) {
  return max64(1, min64(p.G, min64(kLanes<A> / p.K, kLanes<A> / p.C)));
}

// Elements of a row of sums.
template <class A>
int64_t grouped_acc_row(const GroupedPlan& plan) {
  return plan.held * (plan.quads ? 2 : 1) * kLanes<A>;
}

template <class A>
GroupedPlan grouped_plan_for(const ConvParams& p, int64_t rows, int64_t share) {
  constexpr int64_t L = kLanes<A>;
  GroupedPlan plan;
  static_cast<GroupedLanes&>(plan) = GroupedLanes::of<A>(p, grouped_groups<A>(p));
  plan.stride = grouped_stride(p);
  plan.g = make_geometry(grouped_view(p, plan.stride), (rows - 1) * plan.stride + 1);
  plan.rows = rows;
  plan.row_tiles = ceil_div(ceil_div(p.P, p.up_h), rows);
  plan.tile_columns = plan.stride == 1 ? plan.g.w.tile : p.Q;
  plan.column_tiles = plan.g.w.tiles;
  plan.c_block = plan.groups > 1 ? p.C : min64(p.C, L);
  plan.c_blocks = plan.groups > 1 ? 1 : ceil_div(p.C, L);
  plan.share = min64(share, plan.blocks);
  plan.sets = ceil_div(plan.blocks, plan.share);
  const int64_t wide = grouped_wide(plan.tile_columns) * kGroupedWide;
  plan.columns = wide + round_up(max64(0, plan.tile_columns - wide), kGroupedNarrow);
  plan.quads = grouped_makes_quads(p);
  const bool few = plan.c_blocks * plan.c_block * p.R * p.S * L * static_cast<int64_t>(sizeof(A)) <= kGroupedFewBytes;
  plan.by_tile = p.output.c == 1 && few;
  plan.held = plan.by_tile ? kGroupedWide : plan.columns;
  plan.patches = 0;
  for_each_patch(p, plan.g, [&](int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t) { ++plan.patches; });
  plan.x_vector = plan.g.channel * L;
  // Columns that only fill up a register tile read beyond the last row.
  plan.x_elements = plan.share * plan.c_blocks * plan.x_vector + plan.stride * kGroupedWide * L;
  plan.acc_elements = plan.share * plan.k_blocks * kGroupedRows * grouped_acc_row<A>(plan);
  plan.prepack = p.prepacked || p.N * plan.row_tiles * plan.column_tiles >= 4;
  const int64_t block = plan.c_blocks * plan.c_block * p.R * p.S * L;
  plan.weight_elements = plan.prepack ? 0 : plan.share * plan.k_blocks * block;
  return plan;
}

template <class A>
int64_t grouped_items(const ConvParams& p, const GroupedPlan& plan) {
  return p.N * plan.sets * plan.row_tiles * plan.column_tiles;
}

// Estimated cycles of one item.
template <class A>
double grouped_cost(const ConvParams& p, const GroupedPlan& plan) {
  const double pixels = static_cast<double>(plan.rows) * static_cast<double>(plan.columns * plan.k_blocks);
  const double moved = p.input.c == 1 ? (plan.share * plan.c_blocks >= 4 ? 3 : 6) : 6;
  return static_cast<double>(plan.share) *
             (pixels * (static_cast<double>(p.C * p.R * p.S) * 0.65 + 6 * static_cast<double>(p.up_h * p.up_w)) +
              moved * static_cast<double>(plan.c_blocks * plan.g.channel)) +
         500;
}

template <class A>
bool grouped_plan(const ConvParams& p, GroupedPlan& best) {
  double best_total = 0;
  if (spread(p)) {
    // Every residue has a tap, and there are few.
    constexpr int64_t kMostResidues = 16;
    if (p.up_h * p.up_w > kMostResidues) return false;
    if (p.R < p.up_h || p.S < p.up_w || p.dilation_h != 1 || p.dilation_w != 1) return false;
    if (spread_too_far(p, spread_base(p))) return false;
  }
  for (int64_t limit : {kGroupedBytes, kGroupedLargestBytes}) {
    for (int64_t share = p.input.c == 1 || p.output.c == 1 ? kGroupedShare : 1; share > 0; share /= 2) {
      const auto plan_of = [&](int64_t r) { return grouped_plan_for<A>(p, r, share); };
      const int64_t rows = choose_rows(
          ceil_div(p.P, p.up_h), p.threads,
          [&](int64_t r) {
            const GroupedPlan plan = plan_of(r);
            const int64_t elements = plan.x_elements + plan.acc_elements + plan.weight_elements;
            return elements * static_cast<int64_t>(sizeof(A)) <= limit;
          },
          [&](int64_t r) { return grouped_items<A>(p, plan_of(r)); },
          [&](int64_t r) { return grouped_cost<A>(p, plan_of(r)); });
      if (!rows) continue;
      const GroupedPlan plan = plan_of(rows);
      const double total = finish_time(grouped_items<A>(p, plan), p.threads, grouped_cost<A>(p, plan));
      if (best_total == 0 || total < best_total) {
        best = plan;
        best_total = total;
      }
    }
    if (best_total != 0) return true;
  }
  return false;
}

}  // namespace
}  // namespace fastconv
