// The weight gradient of grouped layers, the counterpart of grouped.h with the roles of weights and results exchanged:
// lanes are (group, output channel), a register tile is all taps of a patch, and an input value brought into place
// serves every pixel of grad_output that a tap of it meets. Threads own blocks of output channels; where there are more
// threads than that, also ranges of tiles, each with sums of its own that are added up in order at the end.
#pragma once
#include "conv/grouped.h"

namespace fastconv {
namespace {

struct GroupedGradPlan {
  GroupedPlan grouped;
  int64_t splits;   // ranges of tiles
  int64_t columns;  // of grad_output in scratch: whole register tiles
  int64_t grad_vector, thread_elements;
};

template <class A>
GroupedGradPlan grouped_grad_plan_for(const ConvParams& p, int64_t rows, int64_t share) {
  constexpr int64_t L = kLanes<A>;
  GroupedGradPlan plan;
  plan.grouped = grouped_plan_for<A>(p, rows, share);
  const GroupedPlan& grouped = plan.grouped;
  plan.splits = min64(max64(1, p.threads / grouped.sets), p.N * grouped.row_tiles * grouped.column_tiles);
  plan.columns = round_up(grouped.tile_columns, kGroupedWide);
  plan.grad_vector = kGroupedRows * plan.columns * L;
  plan.thread_elements = grouped.x_elements + L + grouped.share * grouped.k_blocks * plan.grad_vector;
  return plan;
}

template <class A>
bool grouped_grad_plan(const ConvParams& p, GroupedGradPlan& plan) {
  const int64_t blocks = grouped_plan_for<A>(p, 1, 1).blocks;
  for (int64_t limit : {kGroupedBytes, kGroupedLargestBytes})
    for (int64_t share = p.input.c == 1 ? min64(kGroupedShare, ceil_div(blocks, p.threads)) : 1; share > 0;
         share /= 2) {
      const int64_t rows = choose_rows(
          p.P, 1,
          [&](int64_t r) {
            return grouped_grad_plan_for<A>(p, r, share).thread_elements * static_cast<int64_t>(sizeof(A)) <= limit;
          },
          [&](int64_t r) { return ceil_div(p.P, r); },
          [&](int64_t r) { return static_cast<double>(grouped_plan_for<A>(p, r, share).x_elements); });
      if (!rows) continue;
      plan = grouped_grad_plan_for<A>(p, rows, share);
      return true;
    }
  return false;
}

template <class A>
struct GroupedGradScratch {
  Patch* patches;
  TapPlace* places;
  int32_t* ends;
  A* sums;  // [split], each like packed weights
  char* threads;
  int64_t block, all, thread_bytes, total;

  GroupedGradScratch(const ConvParams& p, const GroupedGradPlan& plan, void* scratch) {
    const GroupedPlan& grouped = plan.grouped;
    Carver carve(scratch);
    patches = carve.take<Patch>(grouped.patches);
    places = carve.take<TapPlace>(p.R * p.S);
    ends = carve.take<int32_t>(1);
    block = grouped.c_blocks * grouped.c_block * p.R * p.S * kLanes<A>;
    all = grouped.blocks * grouped.k_blocks * block;
    sums = carve.take<A>(plan.splits * all);
    thread_bytes = round_up(plan.thread_elements * static_cast<int64_t>(sizeof(A)), 64) + 64;
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

// sums[channel][tap] of one patch, over `chunks` register tiles of RT rows by kGroupedWide columns of grad_output.
template <class A, int NR, int NS, int RT, int Stride, bool Several>
void grouped_grad_micro(const A* x, int64_t x_step, int64_t x_row, int64_t channels, Lanes<A> from, const A* grad,
                        int64_t grad_row, int64_t chunks, A* sums) {
  constexpr int L = kLanes<A>, CT = kGroupedWide;
  do {
    Vec<A> sum[NR][NS];
#pragma GCC unroll 4
    for (int r = 0; r < NR; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < NS; ++s) sum[r][s] = load(sums + (r * NS + s) * L);
    const A* tile = x;
    const A* g = grad;
    do {
#pragma GCC unroll 8
      for (int row = 0; row < (RT - 1) * Stride + NR; ++row) {
#pragma GCC unroll 16
        for (int column = 0; column < (CT - 1) * Stride + NS; ++column) {
          const A* const pixel = tile + row * x_row + column * L;
          const Vec<A> v = Several ? permute(load(pixel), from) : splat(*pixel);
#pragma GCC unroll 4
          for (int r = 0; r < NR; ++r)
#pragma GCC unroll 4
            for (int s = 0; s < NS; ++s)
              if (const int i = row - r, j = column - s;
                  i >= 0 && i % Stride == 0 && i < RT * Stride && j >= 0 && j % Stride == 0 && j < CT * Stride)
                sum[r][s] += v * load(g + i / Stride * grad_row + j / Stride * L);
        }
      }
      tile += CT * Stride * L;
      g += CT * L;
    } while (g != grad + chunks * CT * L);
#pragma GCC unroll 4
    for (int r = 0; r < NR; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < NS; ++s) store(sums + (r * NS + s) * L, sum[r][s]);
    sums += NR * NS * L;
    if (Several) from += 1;
    x += x_step;
  } while (--channels);
}

template <class A>
using GroupedGradMicro = void (*)(const A*, int64_t, int64_t, int64_t, Lanes<A>, const A*, int64_t, int64_t, A*);

template <class A, int Stride, bool Several>
GroupedGradMicro<A> grouped_grad_micro_of(const Patch& patch, bool two) {
  static const GroupedGradMicro<A> kTable[] = {
      grouped_grad_micro<A, 1, 1, 1, Stride, Several>, grouped_grad_micro<A, 1, 1, 2, Stride, Several>,
      grouped_grad_micro<A, 1, 2, 1, Stride, Several>, grouped_grad_micro<A, 1, 2, 2, Stride, Several>,
      grouped_grad_micro<A, 1, 3, 1, Stride, Several>, grouped_grad_micro<A, 1, 3, 2, Stride, Several>,
      grouped_grad_micro<A, 3, 3, 1, Stride, Several>, grouped_grad_micro<A, 3, 3, 2, Stride, Several>,
  };
  return kTable[(patch.rows == 3 ? 6 : (patch.columns - 1) * 2) + two];
}

template <class A>
GroupedGradMicro<A> grouped_grad_micro_of(int stride, bool several, const Patch& patch, bool two) {
  if (stride == 2)
    return several ? grouped_grad_micro_of<A, 2, true>(patch, two) : grouped_grad_micro_of<A, 2, false>(patch, two);
  return several ? grouped_grad_micro_of<A, 1, true>(patch, two) : grouped_grad_micro_of<A, 1, false>(patch, two);
}

// `rows` rows of grad_output from row `row` of a tile on, `count` output channels from k0, as
// grad[vector][row][column][L], with zeros in the columns and lanes beyond.
template <class T, class A>
void grouped_fill_grad(const ConvParams& p, const GroupedGradPlan& plan, const Tile& t, int64_t row, int64_t rows,
                       int64_t k0, int64_t count, A* grad) {
  constexpr int64_t L = kLanes<A>;
  const GroupedPlan& grouped = plan.grouped;
  for (int64_t k = 0, v = 0; k < count; ++v) {
    const int64_t n = min64(grouped.groups > 1 ? grouped.lanes : min64(L, p.K - v % grouped.k_blocks * L), count - k);
    for (int64_t i = 0; i < rows; ++i) {
      A* to = grad + v * plan.grad_vector + i * plan.columns * L;
      const T* from = at<const T>(p.output, t.n, k0 + k, t.p0 + row + i, t.q0);
      if (p.output.c == 1) {
        const int64_t step = p.output.w;
        if (n == L)
          for (int64_t q = 0; q < t.columns; ++q) store(to + q * L, load(from + q * step));
        else
          for (int64_t q = 0; q < t.columns; ++q) store(to + q * L, load_partial(from + q * step, static_cast<int>(n)));
      } else {
        if (n < L) zero(to, t.columns * L);
        transpose_block(to, L, 1, from, p.output.c, p.output.w, n, t.columns);
      }
      zero(to + t.columns * L, (plan.columns - t.columns) * L);
    }
    k += n;
  }
}

// The sums of vector `item` of output channels to the weights, whose (channel, tap) are one run.
template <class T, class A>
void grouped_unpack(const ConvParams& p, const GroupedPlan& plan, const TapPlace* places, int64_t item, const A* sums) {
  constexpr int64_t L = kLanes<A>;
  const int64_t taps = p.R * p.S;
  T* rows[L];
  const int count = grouped_lanes<T, A>(p, plan, item, rows);
  for (int64_t j = 0; j < p.C * taps; j += L) {
    const int n = static_cast<int>(min64(L, p.C * taps - j));
    Vec<A> v[L] = {};
    int64_t c = j / taps, tap = j % taps;
    for (int e = 0; e < n; ++e) {
      v[e] = load(sums + (c / L * L * taps + places[tap].place + c % L * places[tap].step) * L);
      if (++tap == taps) {
        tap = 0;
        ++c;
      }
    }
    transpose<A>(v);
    for (int lane = 0; lane < count; ++lane)
      if (n == L)
        store(rows[lane] + j, v[lane]);
      else
        store_partial(rows[lane] + j, v[lane], n);
  }
}

template <class T>
void grouped_grad_weight(const ConvParams& p, const GroupedGradPlan& plan, void* scratch) {
  using A = Accumulate<T>;
  constexpr int64_t L = kLanes<A>;
  const GroupedPlan& grouped = plan.grouped;
  const GroupedGradScratch<A> memory(p, plan, scratch);
  grouped_patches(p, grouped.g, grouped.c_block, memory.patches, memory.places, memory.ends);
  const bool several = grouped.groups > 1;
  const Lanes<A> from = grouped_from<A>(p, grouped);
  const ConvParams view = grouped_view(p, grouped.stride);
  const int64_t tiles = grouped.row_tiles * grouped.column_tiles, work = p.N * tiles;
  const int64_t x_row = grouped.g.pitch * L, chunks = plan.columns / kGroupedWide;
  compute_for(p.threads, plan.splits * grouped.sets, [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    A* x = carve.take<A>(grouped.x_elements);
    A* grad = carve.take<A>(grouped.share * grouped.k_blocks * plan.grad_vector);
    const int64_t split = item / grouped.sets, first = item % grouped.sets * grouped.share;
    const int64_t g0 = first * grouped.groups, blocks = min64(grouped.share, grouped.blocks - first);
    const int64_t groups = min64(blocks * grouped.groups, p.G - g0), vectors = blocks * grouped.k_blocks;
    A* sums = memory.sums + split * memory.all + first * grouped.k_blocks * memory.block;
    zero(sums, vectors * memory.block);
    zero(x, grouped.x_elements);  // what lies between rows is multiplied by zero, and must not hold NaN
    for (int64_t i = work * split / plan.splits; i < work * (split + 1) / plan.splits; ++i) {
      const Tile t = grouped_tile_of(p, grouped, i / tiles, i % tiles);
      int64_t filled = 0;
      for (int64_t row = 0; row < t.rows; row += kGroupedRows) {
        const int64_t rows = min64(kGroupedRows, t.rows - row);
        const int64_t wanted = (row + rows - 1) * grouped.stride + 1 + grouped.g.h.span - grouped.g.h.tile;
        grouped_fill<T>(view, grouped, t, filled, wanted, g0, groups, x);
        filled = wanted;
        grouped_fill_grad<T>(p, plan, t, row, rows, g0 * p.K, groups * p.K, grad);
        for (int64_t v = 0; v < vectors; ++v)
          for (int64_t c = 0; c < grouped.c_blocks; ++c)
            for (int64_t j = 0; j < grouped.patches; ++j) {
              const Patch& patch = memory.patches[j];
              grouped_grad_micro_of<A>(grouped.stride, several, patch, rows > 1)(
                  x + (v / grouped.k_blocks * grouped.c_blocks + c) * grouped.x_vector + row * grouped.stride * x_row +
                      patch.offset * L,
                  several ? 0 : 1, x_row, min64(grouped.c_block, p.C - c * L), from, grad + v * plan.grad_vector,
                  plan.columns * L, chunks,
                  sums + v * memory.block + (c * L * p.R * p.S + patch.first * grouped.c_block) * L);
            }
      }
    }
  });
  compute_for(p.threads, grouped.blocks * grouped.k_blocks, [&](int64_t item, int) {
    A* sums = memory.sums + item * memory.block;
    for (int64_t split = 1; split < plan.splits; ++split)
      for (int64_t i = 0; i < memory.block; i += L)
        store(sums + i, load(sums + i) + load(sums + split * memory.all + i));
    grouped_unpack<T>(p, grouped, memory.places, item, sums);
  });
}

struct GroupedGradWeight {
  using Plan = GroupedGradPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    // `pixel` makes more of contiguous pixels, which fill vectors by themselves, where lanes are left empty: four
    // channels to one, 64 groups at 28x28, 0.31 ms instead of 0.45 (channels_last: 0.75 instead of 0.40).
    return (p.C > 1 || p.K > 1) && grouped_filled<A>(p) * (p.input.c == 1 ? 4 : 2) >= kLanes<A>;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    const View4& w = p.weight;
    if (w.w != 1 || w.h != p.S || w.c != p.R * p.S || !grouped_grad_plan<A>(p, plan)) return false;
    memory.scratch = GroupedGradScratch<A>(p, plan, nullptr).total;
    return true;
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, void* scratch) {
    grouped_grad_weight<T>(p, plan, scratch);
  }
};

}  // namespace
}  // namespace fastconv
