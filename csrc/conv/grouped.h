// Grouped convolution with vectors along (group, output channel), for groups that have fewer output channels than a
// vector has lanes, or a few vectors of them, in either layout.
//
// A vector of output channels covers one group, or several that have few channels. The input channels of several
// groups lie one after the other, and no more than a vector of them: a permutation in registers brings input channel c
// of each group into all lanes of that group. Of a single group, c is broadcast. Either costs an instruction, which
// must serve many multiply-adds: a register tile is rows by columns of output pixels, and an input value brought into
// place serves every tap of every pixel that reads it; up to 6 with a 3x3 kernel and two rows, where taps of one pixel
// would have it brought six times.
//
// Kernels larger than 3x3, and those that strides cut into planes, are a sum over patches: taps that are neighbours in
// one plane, 3x3 or up to three of a row. Where the input is spread out, every residue of the outputs has patches of
// its own, and all of them read one copy of the input.
#pragma once
#include "conv/grouped_plan.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

// Tables lie in front of the packed weights; they are all there is where weights are packed as they are used.
template <class A>
struct GroupedPacked {
  Patch* patches;
  TapPlace* places;
  int32_t* ends;  // see grouped_patches()
  A* weights;
  int64_t block;  // elements of the weights of one vector of output channels
  int64_t total;

  GroupedPacked(const ConvParams& p, const GroupedPlan& plan, void* packed) {
    Carver carve(packed);
    patches = carve.take<Patch>(plan.patches);
    places = carve.take<TapPlace>(p.R * p.S);
    ends = carve.take<int32_t>(p.up_h * p.up_w);
    block = plan.c_blocks * plan.c_block * p.R * p.S * kLanes<A>;
    weights = carve.take<A>(plan.prepack ? plan.blocks * plan.k_blocks * block : 0);
    total = carve.used();
  }
};

// Where the weights of every lane of vector `item` of output channels begin; the number of lanes that are used.
template <class T, class A>
int grouped_lanes(const ConvParams& p, const GroupedLanes& plan, int64_t item, T** rows) {
  const int64_t g0 = item / plan.k_blocks * plan.groups, k0 = item % plan.k_blocks * kLanes<A>;
  int count = 0;
  for (; count < plan.lanes; ++count) {
    const int64_t g = plan.groups > 1 ? g0 + count / p.K : g0, k = plan.groups > 1 ? count % p.K : k0 + count;
    if (g >= p.G || k >= p.K) break;
    rows[count] = at<T>(p.weight, k, 0, 0, 0) + g * p.weight_g;
  }
  return count;
}

// Where every lane finds channel 0 of its group.
template <class A>
Lanes<A> grouped_from(const ConvParams& p, const GroupedPlan& plan) {
  Lanes<A> from = {};
  for (int64_t lane = 0; lane < plan.lanes && plan.groups > 1; ++lane) from[lane] = lane / p.K * p.C;
  return from;
}

// bias[block][k_block][lane], zero in the lanes beyond the output channels.
template <class T, class A>
void grouped_bias(const ConvParams& p, const GroupedLanes& plan, A* bias) {
  const int64_t lanes = plan.k_blocks * kLanes<A>, block_k = plan.groups > 1 ? plan.lanes : p.K;
  zero(bias, plan.blocks * lanes);
  if (!p.bias) return;
  for (int64_t k = 0; k < p.G * p.K; ++k)
    bias[k / block_k * lanes + k % block_k] = get(static_cast<const T*>(p.bias) + k);
}

// Weights of vector `item` of output channels as to[block of input channels][patch][channel][tap][lane]; lanes beyond
// the output channels are zero. Those of a lane are usually one run of memory, forwards or, for the input gradient,
// backwards: squares of registers are transposed.
template <class T, class A>
void grouped_pack_vector(const ConvParams& p, const GroupedLanes& plan, const TapPlace* places, int64_t item, A* to) {
  constexpr int64_t L = kLanes<A>;
  const int64_t taps = p.R * p.S;
  const View4& w = p.weight;
  const bool forwards = w.w == 1 && w.h == p.S, backwards = w.w == -1 && w.h == -p.S;
  const bool dense = forwards && w.c == taps;
  const int64_t run = dense ? p.C * taps : forwards || backwards ? taps : 1, runs = p.C * taps / run;
  const T* rows[L];
  const int count = grouped_lanes<const T, A>(p, plan, item, rows);
  if (w.c == 1 && taps > 1) {  // channels_last weights: the runs are those of the channels of a tap
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < p.C; c += L) {
        const int n = static_cast<int>(min64(L, p.C - c));
        Vec<A> v[L];
        for (int lane = 0; lane < count; ++lane)
          v[lane] = load_partial(rows[lane] + tap / p.S * w.h + tap % p.S * w.w + c, n);
        for (int lane = count; lane < L; ++lane) v[lane] = Vec<A>{};
        transpose<A>(v);
        const TapPlace place = places[tap];
        for (int e = 0; e < n; ++e) store(to + (c * taps + place.place + e * place.step) * L, v[e]);
      }
    return;
  }
  for (int64_t i = 0; i < runs; ++i) {
    const int64_t first = i * run, r0 = first % taps / p.S, s0 = first % taps % p.S;
    const int64_t offset = first / taps * w.c + r0 * w.h + s0 * w.w - (backwards ? taps - 1 : 0);
    for (int64_t j = 0; j < run; j += L) {
      const int n = static_cast<int>(min64(L, run - j));
      Vec<A> v[L];
      if (n == L && count == L) {  // counts that are known keep v in registers
#pragma GCC unroll 16
        for (int lane = 0; lane < L; ++lane) v[lane] = load(rows[lane] + offset + j);
        transpose<A>(v);
      } else {
        for (int lane = 0; lane < count; ++lane) v[lane] = load_partial(rows[lane] + offset + j, n);
        for (int lane = count; lane < L; ++lane) v[lane] = Vec<A>{};
        transpose<A>(v);
      }
      int64_t c = (first + j) / taps, tap = (first + j) % taps;
      for (int e = 0; e < n; ++e) {
        const TapPlace place = places[backwards ? taps - 1 - tap : tap];
        store(to + (c / L * L * taps + place.place + c % L * place.step) * L, v[e]);
        if (++tap == taps) {
          tap = 0;
          ++c;
        }
      }
    }
  }
}

template <class T, class A>
void grouped_pack(const ConvParams& p, const GroupedPlan& plan, void* memory) {
  const GroupedPacked<A> packed(p, plan, memory);
  grouped_patches(p, plan.g, plan.c_block, packed.patches, packed.places, packed.ends);
  if (!plan.prepack) return;
  const int64_t vectors = plan.blocks * plan.k_blocks;
  compute_for(vectors * packed.block > 65536 ? p.threads : 1, vectors, [&](int64_t item, int) {
    grouped_pack_vector<T>(p, plan, packed.places, item, packed.weights + item * packed.block);
  });
}

// A register tile of RT rows by CT columns of pixels through one patch of NR by NS taps, over `channels` input channels
// of one vector of scratch, at least one. from[lane]: where a lane finds channel 0, of several groups; x_step is 0 for
// those, else 1, in a variable so that the compiler does not take all loads out of the loop, onto the stack.
template <class A, int NR, int NS, int RT, int CT, int Stride, bool Several>
void grouped_micro(const A* x, int64_t x_step, int64_t x_row, const A* w, int64_t channels, Lanes<A> from,
                   const A* start, int64_t start_row, int64_t start_step, A* acc, int64_t acc_row) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[RT][CT];
#pragma GCC unroll 2
  for (int i = 0; i < RT; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < CT; ++j) sum[i][j] = load(start + i * start_row + j * start_step);
  const A* const end = w + channels * (NR * NS * L);
  do {
#pragma GCC unroll 8
    for (int row = 0; row < (RT - 1) * Stride + NR; ++row) {
#pragma GCC unroll 16
      for (int column = 0; column < (CT - 1) * Stride + NS; ++column) {
        const A* const pixel = x + row * x_row + column * L;
        const Vec<A> v = Several ? permute(load(pixel), from) : splat(*pixel);
#pragma GCC unroll 4
        for (int r = 0; r < NR; ++r)
#pragma GCC unroll 4
          for (int s = 0; s < NS; ++s)
            if (const int i = row - r, j = column - s;
                i >= 0 && i % Stride == 0 && i < RT * Stride && j >= 0 && j % Stride == 0 && j < CT * Stride)
              sum[i / Stride][j / Stride] += v * load(w + (r * NS + s) * L);
      }
    }
    if (Several) from += 1;
    x += x_step;
    w += NR * NS * L;
  } while (w != end);
#pragma GCC unroll 2
  for (int i = 0; i < RT; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < CT; ++j) store(acc + i * acc_row + j * L, sum[i][j]);
}

// As grouped_micro, for two rows by twice CT columns of outputs: a row and CT columns of the base. Of every two rows
// and columns of outputs the first has one tap, the middle one, and the second two. (3x3 of stride 2, 256@56, 8 a
// group, 8 images, channels_last: two threads: residue by residue 3.8 ms, at once 3.1.)
template <class A, int CT, bool Several>
void grouped_quad_micro(const A* x, int64_t x_step, int64_t x_row, const A* w, int64_t channels, Lanes<A> from,
                        const A* start, int64_t start_row, int64_t start_step, A* acc, int64_t acc_row) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[2][2 * CT];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < 2 * CT; ++j) sum[i][j] = load(start + i * start_row + j * start_step);
  const A* const end = w + channels * (9 * L);
  do {
#pragma GCC unroll 2
    for (int row = 0; row < 2; ++row) {
#pragma GCC unroll 16
      for (int column = 0; column <= CT; ++column) {
        const A* const pixel = x + row * x_row + column * L;
        const Vec<A> v = Several ? permute(load(pixel), from) : splat(*pixel);
#pragma GCC unroll 2
        for (int i = row; i < 2; ++i) {
          const int r = i == 0 ? 1 : 2 * row;
          const A* const taps = w + r * 3 * L;
          if (column < CT) {
            sum[i][2 * column] += v * load(taps + L);
            sum[i][2 * column + 1] += v * load(taps);
          }
          if (column > 0) sum[i][2 * column - 1] += v * load(taps + 2 * L);
        }
      }
    }
    if (Several) from += 1;
    x += x_step;
    w += 9 * L;
  } while (w != end);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < 2 * CT; ++j) store(acc + i * acc_row + j * L, sum[i][j]);
}

template <class A>
using GroupedMicro = void (*)(const A*, int64_t, int64_t, const A*, int64_t, Lanes<A>, const A*, int64_t, int64_t, A*,
                              int64_t);

template <class A, int Stride, bool Several>
GroupedMicro<A> grouped_micro_of(const Patch& patch, bool two, bool wide) {
  constexpr int W = kGroupedWide, N = kGroupedNarrow;
  static const GroupedMicro<A> kTable[] = {
      grouped_micro<A, 1, 1, 1, N, Stride, Several>, grouped_micro<A, 1, 1, 1, W, Stride, Several>,
      grouped_micro<A, 1, 1, 2, N, Stride, Several>, grouped_micro<A, 1, 1, 2, W, Stride, Several>,
      grouped_micro<A, 1, 2, 1, N, Stride, Several>, grouped_micro<A, 1, 2, 1, W, Stride, Several>,
      grouped_micro<A, 1, 2, 2, N, Stride, Several>, grouped_micro<A, 1, 2, 2, W, Stride, Several>,
      grouped_micro<A, 1, 3, 1, N, Stride, Several>, grouped_micro<A, 1, 3, 1, W, Stride, Several>,
      grouped_micro<A, 1, 3, 2, N, Stride, Several>, grouped_micro<A, 1, 3, 2, W, Stride, Several>,
      grouped_micro<A, 3, 3, 1, N, Stride, Several>, grouped_micro<A, 3, 3, 1, W, Stride, Several>,
      grouped_micro<A, 3, 3, 2, N, Stride, Several>, grouped_micro<A, 3, 3, 2, W, Stride, Several>,
  };
  return kTable[(patch.rows == 3 ? 12 : (patch.columns - 1) * 4) + two * 2 + wide];
}

template <class A>
GroupedMicro<A> grouped_micro_of(int stride, bool several, const Patch& patch, bool two, bool wide) {
  if (stride == 2)
    return several ? grouped_micro_of<A, 2, true>(patch, two, wide) : grouped_micro_of<A, 2, false>(patch, two, wide);
  return several ? grouped_micro_of<A, 1, true>(patch, two, wide) : grouped_micro_of<A, 1, false>(patch, two, wide);
}

template <class A>
GroupedMicro<A> grouped_quad_micro_of(bool several, bool wide) {
  constexpr int W = kGroupedWide, N = kGroupedNarrow;
  if (several) return wide ? grouped_quad_micro<A, W, true> : grouped_quad_micro<A, N, true>;
  return wide ? grouped_quad_micro<A, W, false> : grouped_quad_micro<A, N, false>;
}

template <class A>
struct GroupedScratch {
  A* bias;  // [blocks][k_blocks][lane]
  char* threads;
  int64_t thread_bytes, total;

  GroupedScratch(const ConvParams& p, const GroupedPlan& plan, void* scratch) {
    Carver carve(scratch);
    bias = carve.take<A>(plan.blocks * plan.k_blocks * kLanes<A>);
    thread_bytes = round_up(plan.x_elements * static_cast<int64_t>(sizeof(A)), 64) +
                   round_up(plan.acc_elements * static_cast<int64_t>(sizeof(A)), 64) +
                   round_up(plan.weight_elements * static_cast<int64_t>(sizeof(A)), 64);
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

// One register tile of one vector of output channels, over all input channels and taps.
template <class A>
void grouped_tile(const ConvParams& p, const GroupedPlan& plan, const Patch* patches, const Patch* patches_end,
                  bool two, bool wide, const A* x, int64_t x_row, const A* weights, Lanes<A> from, const A* bias,
                  A* acc, int64_t acc_row) {
  constexpr int64_t L = kLanes<A>;
  const A* start = bias;
  int64_t start_row = 0, start_step = 0;
  for (int64_t c = 0; c < plan.c_blocks; ++c) {
    const int64_t channels = min64(plan.c_block, p.C - c * L);
    for (const Patch* patch = patches; patch != patches_end; ++patch) {
      const auto micro = plan.quads ? grouped_quad_micro_of<A>(plan.groups > 1, wide)
                                    : grouped_micro_of<A>(plan.stride, plan.groups > 1, *patch, two, wide);
      micro(x + c * plan.x_vector + patch->offset * L, plan.groups > 1 ? 0 : 1, x_row,
            weights + (c * L * p.R * p.S + patch->first * plan.c_block) * L, channels, from, start, start_row,
            start_step, acc, acc_row);
      start = acc;
      start_row = acc_row;
      start_step = L;
    }
  }
}

// `count` output channels of one pixel, from one vector each `step` apart.
template <class T, class A>
void grouped_store_pixel(const GroupedPlan& plan, int64_t K, int64_t count, T* to, const A* from, int64_t step,
                         const Finish<T>& finish) {
  constexpr int64_t L = kLanes<A>;
  const bool several = plan.groups > 1;
  if (count % L == 0 && (several ? plan.lanes == L : K % L == 0)) {
    for (int64_t k = 0; k < count; k += L, from += step) finish.store(to + k, load(from));
    return;
  }
  for (int64_t k = 0, v = 0; k < count; ++v, from += step) {
    const int64_t n = min64(several ? plan.lanes : min64(L, K - v % plan.k_blocks * L), count - k);
    finish.store_partial(to + k, load(from), static_cast<int>(n));
    k += n;
  }
}

// Rows and columns of `count` output channels, so many rows and columns of outputs apart.
template <class T, class A>
void grouped_store(const ConvParams& p, const GroupedPlan& plan, const A* acc, int64_t acc_row, int64_t rows,
                   int64_t columns, int64_t count, T* to, int64_t step_h, int64_t step_w, const Finish<T>& finish) {
  constexpr int64_t L = kLanes<A>;
  const int64_t acc_vector = kGroupedRows * acc_row, step = p.output.w * step_w;
  for (int64_t i = 0; i < rows; ++i, to += p.output.h * step_h, acc += acc_row) {
    if (p.output.c == 1) {
      for (int64_t q = 0; q < columns; ++q)
        grouped_store_pixel(plan, p.K, count, to + q * step, acc + q * L, acc_vector, finish);
      continue;
    }
    for (int64_t k = 0, v = 0; k < count; ++v) {
      const int64_t n = min64(plan.groups > 1 ? plan.lanes : min64(L, p.K - v % plan.k_blocks * L), count - k);
      transpose_block(to + k * p.output.c, p.output.c, step, acc + v * acc_vector, L, 1, columns, n, finish);
      k += n;
    }
  }
}

// What output rows [row, row + kGroupedRows) read and those above do not.
template <class T>
Ahead grouped_ahead(const ConvParams& p, int64_t n, int64_t row, int64_t c0, int64_t count) {
  if (row >= p.P) return {};
  const int64_t last = (p.R - 1) * p.dilation_h - p.pad_h;
  const int64_t begin = max64(0, min64(p.H, (row - 1) * p.stride_h + last + 1));
  const int64_t end = max64(begin, min64(p.H, (row + kGroupedRows - 1) * p.stride_h + last + 1));
  return Ahead::of<T>(p.input, n, c0, count, {begin, end}, {0, p.W});
}

// Input of rows [begin, end) of the planes of a tile and a set of blocks, as
// x[block][block of input channels][position][L].
template <class T, class A>
void grouped_fill(const ConvParams& p, const GroupedPlan& plan, Tile t, int64_t begin, int64_t end, int64_t g0,
                  int64_t groups, A* x) {  // p: grouped_view
  constexpr int64_t L = kLanes<A>;
  t.p0 = t.p0 * plan.stride + begin;
  t.q0 *= plan.stride;
  t.columns = (t.columns - 1) * plan.stride + 1;
  t.rows = end - begin - (plan.g.h.span - plan.g.h.tile);
  x += begin * plan.g.pitch * L;
  const int64_t block_c = plan.groups * p.C, count = groups * p.C;
  if (p.input.c != 1) {
    for (int64_t c = 0; c < count; c += block_c)
      fill_packed<T>(p, plan.g, t, g0 * p.C + c, min64(block_c, count - c),
                     x + c / block_c * plan.c_blocks * plan.x_vector);
    return;
  }
  const int64_t step = p.stride_w * p.input.w, vectors = ceil_div(count, block_c) * plan.c_blocks;
  for_each_row(p, plan.g, t, [&](int64_t position, int64_t h, int64_t w, int64_t begin, int64_t end) {
    A* row = x + position * L;
    for (int64_t v = 0; v < vectors; ++v) {
      zero(row + v * plan.x_vector, begin * L);
      zero(row + v * plan.x_vector + end * L, (plan.g.pitch - end) * L);
    }
    if (begin == end) return;
    const T* from = at<const T>(p.input, t.n, g0 * p.C, h, w);
    const bool whole = block_c % L == 0 && count % L == 0;
    const int64_t x_vector = plan.x_vector;  // the compiler cannot know that stores leave the plan alone
    for (int64_t i = begin; i < end; ++i, from += step) {
      A* to = row + i * L;
      if (whole)
        for (const T* f = from; f != from + vectors * L; f += L, to += x_vector) store(to, load(f));
      else
        for (int64_t c = 0; c < count; c += block_c)
          for (int64_t j = 0; j < min64(block_c, count - c); j += L, to += plan.x_vector)
            store(to, load_partial(from + c + j, static_cast<int>(min64(L, min64(block_c, count - c) - j))));
    }
  });
}

template <class T>
void grouped_forward(const ConvParams& p, const GroupedPlan& plan, const void* packed_memory, void* scratch) {
  using A = Accumulate<T>;
  constexpr int64_t L = kLanes<A>;
  const GroupedScratch<A> memory(p, plan, scratch);
  const GroupedPacked<A> packed(p, plan, const_cast<void*>(packed_memory));
  const Finish<T> finish(p);
  grouped_bias<T>(p, plan, memory.bias);
  const Lanes<A> from = grouped_from<A>(p, plan);
  const int64_t tiles = plan.row_tiles * plan.column_tiles;
  const ConvParams base = spread_base(p), view = grouped_view(p, plan.stride);
  const int64_t x_row = plan.g.pitch * L, acc_row = grouped_acc_row<A>(plan), acc_vector = kGroupedRows * acc_row;
  compute_for(p.threads, grouped_items<A>(p, plan), [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    A* x = carve.take<A>(plan.x_elements);
    A* acc = carve.take<A>(plan.acc_elements);
    A* own_weights = carve.take<A>(plan.weight_elements);
    // The sets of a tile share cache lines.
    const int64_t first = item % plan.sets * plan.share, g0 = first * plan.groups;
    const int64_t blocks = min64(plan.share, plan.blocks - first), groups = min64(blocks * plan.groups, p.G - g0);
    const int64_t vectors = blocks * plan.k_blocks, count = groups * p.K;
    const Tile t = grouped_tile_of(p, plan, item / plan.sets / tiles, item / plan.sets % tiles);
    const A* weights = packed.weights + first * plan.k_blocks * packed.block;
    if (!plan.prepack) {
      weights = own_weights;
      for (int64_t v = 0; v < vectors; ++v)
        grouped_pack_vector<T>(p, plan, packed.places, first * plan.k_blocks + v, own_weights + v * packed.block);
    }
    const int64_t wide = grouped_wide(t.columns) * kGroupedWide;
    const int64_t chunks = (wide / kGroupedWide + ceil_div(t.columns - wide, kGroupedNarrow)) * vectors;
    int64_t filled = 0;
    for (int64_t row = 0; row < t.rows; row += kGroupedRows) {
      const int64_t rows = min64(kGroupedRows, t.rows - row);
      const int64_t wanted = (row + rows - 1) * plan.stride + 1 + plan.g.h.span - plan.g.h.tile;
      grouped_fill<T>(view, plan, t, filled, wanted, g0, groups, x);
      filled = wanted;
      Ahead ahead = grouped_ahead<T>(base, t.n, t.p0 + row + kGroupedRows, g0 * p.C, groups * p.C);
      const int64_t share = ceil_div(ahead.lines(), chunks);
      // What is made at once: the rows of one residue after the other, or both rows of outputs that a row of the base
      // has.
      const int64_t parts = plan.quads ? rows : p.up_h * p.up_w;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t residue = plan.quads ? 0 : part, e = residue / p.up_w, i = residue % p.up_w;
        const int64_t tile_row = row + (plan.quads ? part : 0), scale_w = plan.quads ? p.up_w : 1;
        const int64_t step_h = plan.quads ? 1 : p.up_h, step_w = p.up_w / scale_w;
        const int64_t out_row = (t.p0 + tile_row) * p.up_h + e, out_column = t.q0 * p.up_w + i;
        const Patch* patches = packed.patches + (residue > 0 ? packed.ends[residue - 1] : 0);
        const Patch* patches_end = packed.patches + packed.ends[residue];
        // Of the last rows and columns some residues have none.
        const int64_t out_rows = min64(plan.quads ? 2 : rows, ceil_div(p.P - out_row, step_h));
        const int64_t out_columns = min64(t.columns, ceil_div(p.Q - out_column, p.up_w));
        for (int64_t q0 = 0, q1; q0 < out_columns && out_rows > 0; q0 = q1) {
          q1 = plan.by_tile ? min64(q0 + (q0 < wide ? kGroupedWide : kGroupedNarrow), out_columns) : out_columns;
          for (int64_t v = 0; v < vectors; ++v) {
            const A* bias = memory.bias + (first * plan.k_blocks + v) * L;
            const A* source = x + v / plan.k_blocks * plan.c_blocks * plan.x_vector + tile_row * plan.stride * x_row;
            for (int64_t q = q0; q < q1; q += q < wide ? kGroupedWide : kGroupedNarrow) {
              A* target = acc + v * acc_vector + (q - q0) * scale_w * L;
              ahead.fetch<2>(share);
              if (plan.by_tile) {  // the lines that will be written (that layer, one thread: 5.7 -> 5.1 ms)
                const T* line = at<T>(p.output, t.n, g0 * p.K, out_row, out_column + q0 * p.up_w) + v * plan.lanes;
                for (int64_t k = 0; k < out_rows; ++k, line += p.output.h * step_h)
                  for (int64_t j = 0; j < (q1 - q0) * scale_w; ++j)
                    __builtin_prefetch(line + j * p.output.w * step_w, 1);
              }
              grouped_tile(p, plan, patches, patches_end, out_rows > 1, q < wide, source + q * plan.stride * L, x_row,
                           weights + v * packed.block, from, bias, target, acc_row);
            }
          }
          grouped_store<T>(p, plan, acc, acc_row, out_rows,
                           min64((q1 - q0) * scale_w, ceil_div(p.Q - out_column, step_w) - q0 * scale_w), count,
                           at<T>(p.output, t.n, g0 * p.K, out_row, out_column + q0 * p.up_w), step_h, step_w, finish);
        }
      }
    }
  });
}

// The lanes of a vector that groups fill together; none where that is not what this serves best. Of more channels a
// group the channel kernel makes more: a vector is one group's, and inputs are broadcast anyway.
template <class A>
int64_t grouped_filled(const ConvParams& p) {
  if (p.G == 1 || p.R * p.S == 1 || p.C > 16 || p.K > 16 || kLanes<A> < 8) return 0;
  return min64(kLanes<A>, grouped_groups<A>(p) * p.K);
}

struct GroupedForward {
  using Plan = GroupedPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    // Two or three inputs a group, and more outputs: two to four channels, 32 groups at 28x28, channels_last, 0.19 ms,
    // 0.15 in `pixel`.
    const bool few = p.C < 4 && p.K > p.C && p.input.c == 1;
    return p.C > 1 && !few && grouped_filled<A>(p) * 2 > kLanes<A>;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!grouped_plan<A>(p, plan)) return false;
    memory.packed = GroupedPacked<A>(p, plan, nullptr).total;
    memory.scratch = GroupedScratch<A>(p, plan, nullptr).total;
    return true;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    grouped_pack<T, Accumulate<T>>(p, plan, packed);
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    grouped_forward<T>(p, plan, packed, scratch);
  }
};

}  // namespace
}  // namespace fastconv
