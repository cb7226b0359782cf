// How a contiguous layer is cut into panels (panel.h), and what memory that takes.
#pragma once
#include "conv/channel.h"

namespace fastconv {
namespace {

// A register tile: sums, loaded pixels and one broadcast must fit.
constexpr int kPanelChannels = kVecRegisters == 32 ? 8 : 4;
constexpr int kPanelVectors = kVecBytes == 16 && kVecRegisters == 16 ? 2 : 3;
constexpr int64_t kPanelDepth = 600;  // (channel, tap) pairs of a pass
// Of the panels of a work item; processors without AVX-512 have half the second-level cache of those with it (256 to
// 512 KB). There 200 KB instead of 400 took 5 to 11 % off strided 3x3 and 1x1 layers.
constexpr int64_t kPanelBytes = (kVecRegisters == 32 ? 400 : 200) << 10;
constexpr int64_t kPanelLargest = 4 << 20;  // of a thread's memory; beyond this another kernel must serve
// For preferred(): products of a sum for which the copy pays, and instructions for a multiply-add of a vector. With 16
// registers the tiles of `rows` are so small that panels gain on every 1x1 layer (an EPYC with AVX2, one thread, 16 to
// 96 at 112x112 29 GFLOP/s against 16; 64 to 256 at 56x56 67 and 41).
constexpr int64_t kPanelLeast = kVecRegisters == 32 ? 96 : 16;
constexpr double kPanelStep = kVecRegisters == 32 ? 1.03 : 1;
constexpr int64_t kPanelTaps = 256;  // of the largest kernel

struct PanelPlan {
  int64_t vectors, spans;     // of pixels of an output plane; work items that share them
  int64_t panels, pitch;      // of a work item; elements of a row of a panel
  int64_t k_block, k_blocks;  // L output channels, and how many such
  int64_t k_range, k_splits;  // of a work item; work items that share their panels
  int64_t c_pass, passes;     // input channels that are in scratch at a time
  int64_t pieces;             // the most that the pixels of a work item are copied in
  int64_t block_elements;     // packed weights of L output channels and one pass
  int64_t panel_elements, acc_elements;
};

// Where rows of the input follow each other as those of the output do, a tap reads a run of pixels from one run, and a
// piece goes on from row to row.
inline bool panel_joins(const ConvParams& p) {
  return p.stride_h == 1 && p.stride_w == 1 && p.input.h == p.W && p.W == p.Q;
}

// Whether pixels of a spread-out input make pairs of outputs, by weights that lie side by side: the way back through a
// layer without padding or dilation whose kernel is its stride.
inline bool panel_weaves(const ConvParams& p) {
  return weaves(p) && p.S == 2 && p.R == p.up_h && p.pad_w == 1 && p.pad_h == p.R - 1 && p.dilation_w == 1 &&
         (p.R == 1 || p.dilation_h == 1) && p.weight.n == p.R * p.S && p.weight.w == -1 &&
         (p.R == 1 || p.weight.h == -p.S);
}

// The layer whose pixels are copied into panels: `p` itself, or the one that makes all residues of a spread-out input,
// with rows of whole vectors. Without a bias then.
template <class A>
ConvParams panel_base(const ConvParams& p) {
  if (!spread(p)) return p;
  ConvParams base = spread_base(p);
  base.K = p.K * p.R * p.S;
  base.Q = round_up(base.Q, kLanes<A>);
  base.weight = {
      static_cast<char*>(p.weight.data) + ((p.R - 1) * p.weight.h + (p.S - 1) * p.weight.w) * p.element_size(), 1,
      p.weight.c, 1, 1};
  base.bias = nullptr;
  return base;
}

template <class A>
PanelPlan panel_plan_for(const ConvParams& p, int64_t spans, int64_t k_splits) {
  constexpr int64_t L = kLanes<A>;
  PanelPlan plan;
  const int64_t taps = p.R * p.S;
  plan.vectors = ceil_div(p.P * p.Q, L);
  plan.spans = spans;
  const int64_t most = ceil_div(plan.vectors, spans);
  plan.panels = ceil_div(most, kPanelVectors);
  plan.pitch = ceil_div(most, plan.panels) * L;
  plan.k_block = L;
  plan.k_blocks = ceil_div(p.K, L);
  plan.k_range = ceil_div(plan.k_blocks, k_splits);
  plan.k_splits = ceil_div(plan.k_blocks, plan.k_range);
  plan.passes = ceil_div(p.C * taps, kPanelDepth);
  plan.c_pass = min64(round_up(ceil_div(p.C, plan.passes), L), round_up(p.C, L));
  plan.passes = ceil_div(p.C, plan.c_pass);
  plan.pieces = plan.panels * (plan.pitch / L + (panel_joins(p) ? 0 : plan.pitch / p.Q + 2));
  plan.block_elements = plan.c_pass * taps * L;
  plan.panel_elements = min64(plan.c_pass, p.C) * taps * plan.pitch + L;
  // Sums wait for the next pass, or for being narrowed to the type of the output.
  const int64_t waiting = plan.passes > 1 ? plan.panels * plan.k_range * L : kPanelChannels;
  plan.acc_elements = waiting * plan.pitch;
  return plan;
}

template <class A>
int64_t panel_items(const ConvParams& p, const PanelPlan& plan) {
  return p.N * p.G * plan.spans * plan.k_splits;
}

// Estimated cycles of one item.
template <class A>
double panel_cost(const ConvParams& p, const PanelPlan& plan) {
  constexpr double L = kLanes<A>;
  const double depth = static_cast<double>(p.C * p.R * p.S);
  const double vectors = static_cast<double>(ceil_div(plan.vectors, plan.spans));
  const double macs = depth * static_cast<double>(min64(p.K, plan.k_range * plan.k_block)) * vectors;
  const double fill = depth * static_cast<double>(plan.pieces) * 4;
  const double out = static_cast<double>(plan.k_range * plan.passes) * L * vectors * 2;
  const double weights = depth * static_cast<double>(plan.k_range) * L * sizeof(A) / 8;
  return macs * 0.6 + fill + out + weights + 2000;
}

// Up to a vector of output pixels, whose input is read by one load for each tap (two where columns are strided).
template <class A>
struct PanelPiece {
  Lanes<A> h, w[2];  // row and column of the input that a lane of the load holds for tap (0, 0)
  int64_t from;      // elements from the first of the channel
  int64_t to;        // its place in a row of the panels
};

// Where the pieces are read from for one tap: the lanes that are inside the image, and elements from where tap (0, 0)
// reads.
template <class T>
struct PanelSource {
  Chosen<T> inside[2];
  int64_t from;
};

// Rows of a panel that one tap and up to L input channels make, and where their weights begin.
struct PanelRun {
  int32_t weight, rows;
};

template <class T>
struct PanelScratch {
  using A = Accumulate<T>;
  A* bias;
  char* threads;
  int64_t thread_bytes, total;

  PanelScratch(const ConvParams& p, const PanelPlan& plan, void* scratch) {
    Carver carve(scratch);
    bias = carve.take<A>(p.G * plan.k_blocks * kLanes<A>);
    Carver thread(nullptr);
    take(p, plan, thread);
    thread_bytes = thread.used();
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
  struct Thread {
    A *x, *acc;
    PanelPiece<A>* pieces;
    PanelSource<T>* sources;
    PanelRun* runs;
    Tap* taps;
  };
  static Thread take(const ConvParams& p, const PanelPlan& plan, Carver& carve) {
    Thread t;
    t.x = carve.take<A>(plan.panels * plan.panel_elements);
    t.acc = carve.take<A>(plan.acc_elements);
    t.pieces = carve.take<PanelPiece<A>>(plan.pieces);
    t.sources = carve.take<PanelSource<T>>(plan.pieces);
    t.runs = carve.take<PanelRun>(ceil_div(plan.c_pass, kLanes<A>) * p.R * p.S);
    t.taps = carve.take<Tap>(p.R * p.S);
    return t;
  }
};

template <class A>
bool panel_plan(const ConvParams& p, PanelPlan& best) {
  double best_total = 0;
  const int64_t vectors = ceil_div(p.P * p.Q, kLanes<A>);
  for (int64_t panels : {1, 2, 3, 4, 6, 8})
    for (int64_t k_splits = 1; k_splits <= 2 * p.threads; k_splits *= 2) {
      // As many work items as every thread gets the same number of.
      int64_t spans = ceil_div(vectors, panels * kPanelVectors);
      if (p.N * p.G * k_splits % p.threads != 0) spans = min64(round_up(spans, p.threads), vectors);
      const PanelPlan plan = panel_plan_for<A>(p, spans, k_splits);
      if (plan.k_splits < k_splits) break;
      const int64_t bytes = plan.panels * plan.panel_elements * static_cast<int64_t>(sizeof(A));
      if (best_total != 0 && bytes > kPanelBytes) continue;
      const double total = finish_time(panel_items<A>(p, plan), p.threads, panel_cost<A>(p, plan), 0.5);
      if (best_total != 0 && total >= best_total) continue;
      best = plan;
      best_total = total;
    }
  return PanelScratch<A>(p, best, nullptr).thread_bytes <= kPanelLargest;
}

}  // namespace
}  // namespace fastconv
