// Depthwise convolution with vectors of channels. A register tile is two output rows of B columns; B columns of an
// input row are held in registers as well. One weight of the kernel connects those output and input columns that lie on
// a diagonal of the square of pairs: loaded once, it serves up to B multiply-adds, and every input vector as many.
// Nothing needs padding: columns outside the image do not come up.
//
// Where the input is spread out, a work item runs the residues of its outputs one after the other, while caches keep
// the input and the lines of the output that they share.
//
// Channels_last tensors are read and written where they lie; contiguous ones are transposed a vector of channels at a
// time, which pays where a row would fill a vector badly.
#pragma once
#include "conv/depthwise.h"
#include "conv/diagonal_plan.h"
#include "conv/direct.h"

namespace fastconv {
namespace {

// What one call computes: output columns [q, q + columns) of up to two rows, from input columns [begin, end).
struct DiagonalTile {
  const DiagonalLine *lines, *lines_end;
  int64_t x_step, w_row;          // elements between input columns, between kernel rows
  int64_t begin, end, first_tap;  // the tap that connects input column `begin` with output column 0 of the tile
  int64_t taps;                   // S
  uint32_t inside;                // of the columns that the tile reads, from its first on, those inside the image
  int64_t out_row, out_step;
  int64_t rows, columns, channels;
};

// Tiles of a whole vector of channels, whose columns all lie inside the image; some of which do not; of fewer channels.
enum class DiagonalCase { kInner, kWhole, kPartial };

template <class A, int Stride, int First, int Rows>
[[gnu::always_inline]] inline void diagonals(Vec<A> (&sum)[kDiagonalRows][kDiagonalColumns],
                                             const Vec<A> (&v)[kDiagonalColumns], const A* w0, const A* w1,
                                             int64_t first_tap, int64_t taps) {
  constexpr int B = kDiagonalColumns, L = kLanes<A>;
#pragma GCC unroll 32
  for (int d = -(B - 1) * Stride; d < B; ++d) {
    if (static_cast<uint64_t>(first_tap + d) >= static_cast<uint64_t>(taps)) continue;
    const Vec<A> a = load((First == 0 ? w0 : w1) + d * L), b = Rows == 2 ? load(w1 + d * L) : a;
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) {
      const int j = i * Stride + d;
      if (j < 0 || j >= B) continue;
      sum[First][i] += a * v[j];
      if constexpr (Rows == 2) sum[1][i] += b * v[j];
    }
  }
}

// The same for a kernel of S columns, few enough to keep their weights in registers: every column of an input row, from
// `x` on, is loaded once and multiplied by all of them, and all that is decided while running is whether it lies inside
// the image.
template <class T, int Stride, DiagonalCase Case, int S, int First, int Rows>
[[gnu::always_inline]] inline void short_line(Vec<Accumulate<T>> (&sum)[kDiagonalRows][kDiagonalColumns], const T* x,
                                              int64_t step, uint32_t inside, int channels, const Accumulate<T>* w0,
                                              const Accumulate<T>* w1) {
  using A = Accumulate<T>;
  constexpr int B = kDiagonalColumns, L = kLanes<A>;
  Vec<A> a[S], b[S];
#pragma GCC unroll 8
  for (int s = 0; s < S; ++s) {
    a[s] = load((First == 0 ? w0 : w1) + s * L);
    b[s] = Rows == 2 ? load(w1 + s * L) : a[s];
  }
#pragma GCC unroll 32
  for (int j = 0; j < (B - 1) * Stride + S; ++j, x += step) {
    if (Case != DiagonalCase::kInner && __builtin_expect(!(inside >> j & 1), 0)) continue;
    const Vec<A> v = Case == DiagonalCase::kPartial ? load_partial(x, channels) : load(x);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      if (j < s || (j - s) % Stride != 0 || (j - s) / Stride >= B) continue;
      sum[First][(j - s) / Stride] += a[s] * v;
      if constexpr (Rows == 2) sum[1][(j - s) / Stride] += b[s] * v;
    }
  }
}

// S: the columns of the kernel where they are few, 0 for any.
template <class T, int Stride, DiagonalCase Case, int S>
void diagonal_micro(const DiagonalTile& t, const T* x, const Accumulate<T>* w, Vec<Accumulate<T>> bias, T* out,
                    const Finish<T>& finish) {
  using A = Accumulate<T>;
  constexpr int B = kDiagonalColumns, L = kLanes<A>;
  constexpr bool Whole = Case != DiagonalCase::kPartial;
  const int channels = static_cast<int>(t.channels);
  Vec<A> sum[kDiagonalRows][B];
#pragma GCC unroll 8
  for (int k = 0; k < kDiagonalRows; ++k)
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) sum[k][i] = bias;
  const int64_t step = t.x_step;
  const uint32_t inside = t.inside;
  if constexpr (S > 0) x += (t.begin - t.first_tap) * step;
  for (const DiagonalLine* line = t.lines; line != t.lines_end; ++line) {
    if constexpr (S > 0) {
      const T* from = x + line->offset;
      const A *w0 = w + line->r[0] * t.w_row, *w1 = w + line->r[1] * t.w_row;
      if (line->r[1] < 0)
        short_line<T, Stride, Case, S, 0, 1>(sum, from, step, inside, channels, w0, w1);
      else if (line->r[0] < 0)
        short_line<T, Stride, Case, S, 1, 1>(sum, from, step, inside, channels, w0, w1);
      else
        short_line<T, Stride, Case, S, 0, 2>(sum, from, step, inside, channels, w0, w1);
      continue;
    }
    const T* from = x + line->offset + t.begin * t.x_step;
    int64_t tap = t.first_tap;
    for (int64_t column = t.begin; column < t.end; column += B, tap += B, from += B * t.x_step) {
      Vec<A> v[B];
#pragma GCC unroll 8
      for (int j = 0; j < B; ++j)
        v[j] = column + j >= t.end ? Vec<A>{}
               : Whole             ? load(from + j * t.x_step)
                                   : load_partial(from + j * t.x_step, channels);
      const A* w0 = w + line->r[0] * t.w_row + tap * L;
      const A* w1 = w + line->r[1] * t.w_row + tap * L;
      if (line->r[1] < 0)
        diagonals<A, Stride, 0, 1>(sum, v, w0, w1, tap, t.taps);
      else if (line->r[0] < 0)
        diagonals<A, Stride, 1, 1>(sum, v, w0, w1, tap, t.taps);
      else
        diagonals<A, Stride, 0, 2>(sum, v, w0, w1, tap, t.taps);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kDiagonalRows; ++k) {
    if (k >= t.rows) break;
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) {
      if (i >= t.columns) break;
      T* to = out + k * t.out_row + i * t.out_step;
      if constexpr (Whole)
        finish.store(to, sum[k][i]);
      else
        finish.store_partial(to, sum[k][i], channels);
    }
  }
}

template <class T>
using DiagonalMicro = void (*)(const DiagonalTile&, const T*, const Accumulate<T>*, Vec<Accumulate<T>>, T*,
                               const Finish<T>&);

// By DiagonalCase.
template <class T>
using DiagonalMicros = DiagonalMicro<T> const*;

template <class T, int S, int Stride>
DiagonalMicros<T> diagonal_micros() {
  using Case = DiagonalCase;
  constexpr Case kInner = S == 0 ? Case::kWhole : Case::kInner;
  static constexpr DiagonalMicro<T> kMicros[] = {diagonal_micro<T, Stride, kInner, S>,
                                                 diagonal_micro<T, Stride, Case::kWhole, S>,
                                                 diagonal_micro<T, Stride, Case::kPartial, S>};
  return kMicros;
}

template <class T>
DiagonalMicros<T> diagonal_micros(int64_t taps, int64_t stride) {
  if (stride == 1) switch (taps) {
      case 1: return diagonal_micros<T, 1, 1>();  // of residues
      case 2: return diagonal_micros<T, 2, 1>();
      case 3: return diagonal_micros<T, 3, 1>();
      case 4: return diagonal_micros<T, 4, 1>();
      case 5: return diagonal_micros<T, 5, 1>();
      case 7: return diagonal_micros<T, 7, 1>();
      default: return diagonal_micros<T, 0, 1>();
    }
  switch (taps) {
    case 3: return diagonal_micros<T, 3, 2>();
    case 5: return diagonal_micros<T, 5, 2>();
    case 7: return diagonal_micros<T, 7, 2>();
    default: return diagonal_micros<T, 0, 2>();
  }
}

template <class X>
struct DiagonalPart {
  const ConvParams* p;  // see spread_residue()
  const Accumulate<X>* weights;
  DiagonalLine* lines;
  X* out;  // where the channels begin
  DiagonalTile tile;
  DiagonalMicros<X> micros;
  DiagonalCase of_whole;  // tiles of whole vectors of channels
};

// Tensors that caches do not hold: what tiles are the first to read, and what they write, is fetched ahead. Where
// tensors are smaller the instructions are what tells.
constexpr int64_t kDiagonalFar = 8 << 20;
constexpr int64_t kDiagonalLead = 8;  // vectors of channels that are computed between fetching and reading, about

template <class T>
bool diagonal_is_far(const ConvParams& p) {
  return p.N * p.G * (p.H * p.W + p.P * p.Q) * static_cast<int64_t>(sizeof(T)) >= kDiagonalFar;
}

// What the tiles of a work item, of some channels of an image, are the first to read, and what they write.
template <class T>
struct DiagonalFar {
  const ConvParams *p, *base;  // see spread_base()
  int64_t n, c0, channels;

  Ahead input(int64_t row, int64_t q) const {
    const int64_t tile = (kDiagonalColumns - 1) * base->stride_w + base->S, w = q * base->stride_w - base->pad_w;
    const int64_t w0 = q > 0 ? max64(0, w + tile - kDiagonalColumns * base->stride_w) : 0;
    const int64_t h = (row + kDiagonalRows - 1) * base->stride_h - base->pad_h + (base->R - 1) * base->dilation_h + 1;
    const int64_t h0 = max64(0, h - kDiagonalRows * base->stride_h);
    return Ahead::of<T>(p->input, n, c0, channels, {h0, min64(p->H, h)}, {w0, min64(p->W, w + tile)});
  }
  Ahead output(int64_t row, int64_t q) const {
    const Range rows = {row * p->up_h, min64(p->P, (row + kDiagonalRows) * p->up_h)};
    return Ahead::of<T>(p->output, n, c0, channels, rows, {q * p->up_w, min64(p->Q, (q + kDiagonalColumns) * p->up_w)});
  }
};

// Output rows [p0, p0 + rows) of each part, of `blocks` vectors of channels, which begin at `x`. What comes next is
// fetched where there is a `far`.
template <class X, bool Several>
void diagonal_rows(DiagonalPart<X>* parts, int64_t several, const X* x, int64_t p0, int64_t rows, int64_t blocks,
                   int64_t channels, int64_t w_block, const Vec<Accumulate<X>>* bias, const DiagonalFar<X>* far,
                   const Finish<X>& finish) {
  constexpr int64_t B = kDiagonalColumns, L = kLanes<Accumulate<X>>;
  const int64_t count = Several ? several : 1;
  int64_t columns = 0;
  for (DiagonalPart<X>* part = parts; part != parts + count; ++part) {
    const ConvParams& p = *part->p;
    DiagonalTile& t = part->tile;
    t.lines = part->lines;
    t.x_step = p.input.w;
    t.w_row = p.S * L;
    t.taps = p.S;
    t.out_row = p.output.h;
    t.out_step = p.output.w;
    part->micros = diagonal_micros<X>(p.S, p.stride_w);
    columns = max64(columns, p.Q);
  }
  const int64_t tiles = ceil_div(columns, B), lead = ceil_div(kDiagonalLead, blocks);
  for (int64_t row = p0; row < p0 + rows; row += kDiagonalRows) {
    for (DiagonalPart<X>* part = parts; part != parts + count; ++part) {
      const ConvParams& p = *part->p;
      part->tile.rows = max64(0, min64(kDiagonalRows, min64(p.P, p0 + rows) - row));
      part->tile.lines_end = part->lines + diagonal_lines(p, p.input.h, row, part->tile.rows, part->lines);
    }
    for (int64_t q = 0; q < columns; q += B) {
      for (DiagonalPart<X>* part = parts; part != parts + count; ++part) {
        const ConvParams& p = *part->p;
        DiagonalTile& t = part->tile;
        t.columns = min64(B, p.Q - q);
        const int64_t first = q * p.stride_w - p.pad_w;
        t.begin = max64(0, first);
        t.end = min64(p.W, first + (t.columns - 1) * p.stride_w + p.S);
        t.first_tap = t.begin - first;
        // None, where the tile lies beyond the image on either side.
        const int64_t inside = max64(0, min64(t.end - first, 31));
        t.inside = t.first_tap < inside ? ((1u << inside) - 1) & ~((1u << t.first_tap) - 1) : 0;
        part->of_whole =
            t.first_tap == 0 && inside == (B - 1) * p.stride_w + p.S ? DiagonalCase::kInner : DiagonalCase::kWhole;
      }
      Ahead next_x, next_out;
      int64_t x_lines = 0, out_lines = 0;  // with each vector of channels
      if (far) {
        const int64_t next = q / B + lead, next_row = row + next / tiles * kDiagonalRows, next_q = next % tiles * B;
        next_x = far->input(next_row, next_q);
        next_out = far->output(next_row, next_q);
        x_lines = ceil_div(next_x.lines(), blocks);
        out_lines = ceil_div(next_out.lines(), blocks);
      }
      for (int64_t b = 0; b < blocks; ++b) {
        next_x.fetch<2>(x_lines);
        next_out.fetch<2, true>(out_lines);
        for (DiagonalPart<X>* part = parts; part != parts + count; ++part) {
          DiagonalTile& t = part->tile;
          if (t.rows <= 0 || t.columns <= 0) continue;
          t.channels = min64(L, channels - b * L);
          const DiagonalCase which = t.channels == L ? part->of_whole : DiagonalCase::kPartial;
          part->micros[static_cast<int>(which)](t, x + b * L, part->weights + b * w_block, bias[b],
                                                part->out + row * t.out_row + q * t.out_step + b * L, finish);
        }
      }
    }
  }
}

// Weights as [block][tap][L]. The taps of a residue of a spread-out input lie side by side; the tables that say which
// those are lie in front.
template <class A>
struct DiagonalPacked {
  SortedTaps h, w;
  A* weights;
  int64_t total;

  DiagonalPacked(const ConvParams& p, const DiagonalPlan& plan, void* packed) {
    Carver carve(packed);
    h.place(carve, p.R, p.up_h);
    w.place(carve, p.S, p.up_w);
    h.step = spread_step(p.up_h, p.dilation_h);
    w.step = spread_step(p.up_w, p.dilation_w);
    weights = carve.take<A>(plan.blocks * p.R * p.S * kLanes<A>);
    total = carve.used();
  }
};

// The first tap of a residue among the packed ones.
inline int64_t diagonal_first(const ConvParams& p, const ResidueTaps& h, const ResidueTaps& w) {
  return h.begin * p.S + h.count * w.begin;
}

// The residues of a work item, a few side by side. `view` says how rows and columns of `x` and `out` lie, from where
// the item's channels begin.
template <class X>
void diagonal_residues(const ConvParams& view, const ConvParams* residues, const DiagonalPacked<Accumulate<X>>& packed,
                       int64_t first_weight, const X* x, X* out, int64_t p0, int64_t rows, int64_t blocks,
                       int64_t channels, const Vec<Accumulate<X>>* bias, const DiagonalFar<X>* far, DiagonalLine* lines,
                       const Finish<X>& finish) {
  constexpr int64_t L = kLanes<Accumulate<X>>;
  const int64_t all = view.up_h * view.up_w;
  DiagonalPart<X> parts[kDiagonalParts];
  for (int64_t first = 0, count; first < all; first += count) {
    count = min64(kDiagonalParts, all - first);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t e = all == 1 ? 0 : (first + j) / view.up_w, i = all == 1 ? 0 : (first + j) % view.up_w;
      parts[j].p = residues + first + j;
      parts[j].weights =
          packed.weights + first_weight + diagonal_first(view, packed.h.residues[e], packed.w.residues[i]) * L;
      parts[j].lines = lines + j * diagonal_most_lines(view);
      parts[j].out = out + e * view.output.h + i * view.output.w;
    }
    (count > 1 ? diagonal_rows<X, true> : diagonal_rows<X, false>)(parts, count, x, p0, rows, blocks, channels,
                                                                   view.R * view.S * L, bias,
                                                                   first == 0 ? far : nullptr, finish);
  }
}

template <class T>
void diagonal_forward(const ConvParams& p, const DiagonalPlan& plan, const void* packed_memory, void* scratch) {
  using A = Accumulate<T>;
  constexpr int64_t L = kLanes<A>;
  const DiagonalPacked<A> packed(p, plan, const_cast<void*>(packed_memory));
  const ConvParams base = spread_base(p);
  const bool is_far = diagonal_is_far<T>(p);
  const int64_t thread_bytes = diagonal_thread_bytes<A>(p, plan);
  Carver shared(static_cast<char*>(scratch) + thread_bytes * p.threads);
  Vec<A>* bias = shared.take<Vec<A>>(plan.blocks);
  ConvParams* residues = shared.take<ConvParams>(p.up_h * p.up_w);
  for (int64_t b = 0; b < plan.blocks; ++b)
    bias[b] = p.bias ? load_partial(static_cast<const T*>(p.bias) + b * L, static_cast<int>(min64(L, p.G - b * L)))
                     : Vec<A>{};
  const Finish<T> finish(p);
  ConvParams bare = p;
  bare.residual = nullptr;
  bare.activation = Activation::kNone;
  const Finish<A> nothing(bare);
  ConvParams view = p;
  if (!plan.in_place) {
    view.input = {nullptr, 0, 0, p.W * L, L};
    view.output = {nullptr, 0, 0, p.Q * L, L};
  }
  for (int64_t e = 0; e < p.up_h; ++e)
    for (int64_t i = 0; i < p.up_w; ++i) residues[e * p.up_w + i] = spread_residue(view, packed.h, packed.w, e, i);
  compute_for(p.threads, p.N * plan.groups * plan.strips, [&](int64_t item, int thread) {
    Carver carve(static_cast<char*>(scratch) + thread * thread_bytes);
    DiagonalLine* lines = carve.take<DiagonalLine>(diagonal_parts(p) * diagonal_most_lines(p));
    A* x = carve.take<A>(plan.x_elements);
    A* acc = carve.take<A>(plan.acc_elements);
    const int64_t n = item / plan.strips / plan.groups, b0 = item % plan.groups * plan.group;
    const int64_t p0 = item / plan.groups % plan.strips * plan.rows;
    const int64_t blocks = min64(plan.group, plan.blocks - b0), c0 = b0 * L, channels = min64(blocks * L, p.G - c0);
    const int64_t first_weight = b0 * p.R * p.S * L, base_rows = min64(plan.rows, base.P - p0);
    if (plan.in_place) {
      const T* from = at<const T>(p.input, n, c0, 0, 0);
      T* to = at<T>(p.output, n, c0, 0, 0);
      const DiagonalFar<T> far = {&p, &base, n, c0, channels};
      return diagonal_residues<T>(view, residues, packed, first_weight, from, to, p0, base_rows, blocks, channels,
                                  bias + b0, is_far ? &far : nullptr, lines, finish);
    }
    const int64_t from = p0 * base.stride_h - base.pad_h, h0 = max64(0, from);
    const int64_t span = max64(0, min64(p.H, from + diagonal_span(base, base_rows)) - h0);
    // Rows that follow each other without a gap are one.
    const bool joined_in = p.input.h == p.W * p.input.w, joined_out = p.output.h == p.Q * p.output.w;
    const int64_t first_row = p0 * p.up_h, rows = min64(plan.rows * p.up_h, p.P - first_row);
    if (channels < L) zero(x, plan.x_elements);
    for (int64_t i = 0; i < (joined_in ? min64(1, span) : span); ++i)
      transpose_block(x + i * p.W * L, L, 1, at<const T>(p.input, n, c0, h0 + i, 0), p.input.c, p.input.w, channels,
                      joined_in ? span * p.W : p.W);
    diagonal_residues<A>(view, residues, packed, first_weight, x - h0 * p.W * L, acc - first_row * p.Q * L, p0,
                         base_rows, 1, L, bias + b0, nullptr, lines, nothing);
    for (int64_t i = 0; i < (joined_out ? 1 : rows); ++i)
      transpose_block(at<T>(p.output, n, c0, first_row + i, 0), p.output.c, p.output.w, acc + i * p.Q * L, L, 1,
                      joined_out ? rows * p.Q : p.Q, channels, finish);
  });
}

// Those of an input gradient are read forwards, in squares, before they are put in order.
template <class T, class A>
void diagonal_pack(const ConvParams& p, const DiagonalPlan& plan, void* memory) {
  constexpr int64_t L = kLanes<A>, kMostSorted = 128;  // taps
  const int64_t taps = p.R * p.S;
  const View4& w = p.weight;
  DiagonalPacked<A> packed(p, plan, memory);
  packed.h.sort(p.R, p.up_h, p.dilation_h, p.pad_h);
  packed.w.sort(p.S, p.up_w, p.dilation_w, p.pad_w);
  const bool joined = w.h == p.S * w.w, backwards = joined && w.w < 0;
  const bool in_order = !spread(p) && !(backwards && taps <= kMostSorted);
  compute_for(p.G * taps > 65536 ? p.threads : 1, plan.blocks, [&](int64_t b, int) {
    const int64_t n = min64(L, p.G - b * L);
    const T* from = static_cast<const T*>(w.data) + b * L * p.weight_g;
    A* const block = packed.weights + b * taps * L;
    alignas(kVecBytes) A unsorted[kMostSorted * L];
    A* const rows = in_order ? block : unsorted;
    if (in_order || taps <= kMostSorted) {
      if (n < L) zero(rows, taps * L);
      for (int64_t r = 0; r < (joined ? 1 : p.R); ++r)
        transpose_block(rows + r * p.S * L, L, 1, backwards && !in_order ? from + (taps - 1) * w.w : from + r * w.h,
                        p.weight_g, backwards && !in_order ? -w.w : w.w, n, joined ? taps : p.S);
    }
    for (int64_t e = 0; !in_order && e < p.up_h; ++e)
      for (int64_t i = 0; i < p.up_w; ++i) {
        const ResidueTaps h = packed.h.residues[e], v = packed.w.residues[i];
        A* to = block + diagonal_first(p, h, v) * L;
        for (int64_t j = h.begin; j < h.begin + h.count; ++j)
          for (int64_t k = v.begin; k < v.begin + v.count; ++k, to += L) {
            const int64_t r = packed.h.order[j], s = packed.w.order[k], tap = r * p.S + s;
            store(to, taps <= kMostSorted ? load(unsorted + (backwards ? taps - 1 - tap : tap) * L)
                                          : load_strided(from + r * w.h + s * w.w, p.weight_g, static_cast<int>(n)));
          }
      }
  });
}

struct DiagonalForward {
  using Plan = DiagonalPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    if (p.G < 4) return false;
    if (is_channels_last(p.input) && is_channels_last(p.output)) return p.stride_w == 1 || p.S == 3 || p.R * p.S > 9;
    // What depthwise_rows can do, and does better where a row fills its vectors: the multiply-adds of lanes beyond the
    // row are what transposing costs where there are six for an output, eight of 3x3 (measured for 3x3, 5x5 and 7x7 of
    // 3 to 56 columns), or four for a column of an input spread out by two (7 to 56 columns).
    if (spread(p)) {
      const int64_t columns = spread_base(p).Q;
      return !weaves(p) || p.R * p.S * (round_up(columns, kLanes<A>) - columns) > 4 * columns;
    }
    const bool unit = p.input.w == 1 && p.output.w == 1 && p.stride_h == p.stride_w;
    const bool small =
        (p.R == 1 && p.S <= kRowTaps) || (p.R * p.S <= 49 && p.R % 2 == 1 && p.R <= 7 && p.dilation_h == 1);
    const int64_t most = p.R * p.S <= 9 && p.stride_w == 1 ? 8 : 6;
    return !unit || !small || p.R * p.S * (round_up(p.Q, kLanes<A>) - p.Q) > most * p.Q;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!diagonal_plan<A>(p, plan)) return false;
    memory.packed = DiagonalPacked<A>(p, plan, nullptr).total;
    Carver shared(nullptr);
    shared.take<Vec<float>>(plan.blocks);
    shared.take<ConvParams>(p.up_h * p.up_w);
    memory.scratch = diagonal_thread_bytes<A>(p, plan) * p.threads + shared.used();
    return true;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    diagonal_pack<T, Accumulate<T>>(p, plan, packed);
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    diagonal_forward<T>(p, plan, packed, scratch);
  }
};

}  // namespace
}  // namespace fastconv
