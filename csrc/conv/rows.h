// Convolution of contiguous tensors without a copy of the input, for groups of few channels and for 1x1 layers on large
// maps, and for layers of up to 4 input channels (a picture's). As in depthwise_rows (direct.h), input is read where it
// lies, through masks where a vector sticks out over the edge, and output is written where it belongs: copying a tile
// into scratch and its results out again took 40 % of the time of the pixel kernel on ResNeXt's first stage.
//
// A register tile is KB output channels by NV vectors of pixels of one row; where a row is a single vector, NV rows.
// Where the input is spread out by two columns, it is the even and the odd outputs of half as many vectors, which are
// woven together as they are stored.
#pragma once
#include "conv/direct.h"
#include "conv/pixel.h"

namespace fastconv {
namespace {

// Which vectors of a register tile are loaded through masks. Moving a mask into its register competes with the
// multiply-adds, so as few are moved as will do: 2 instead of 4 on 16 multiply-adds gave 6 %.
enum class Masks {
  kEach,   // every vector its own
  kEnds,   // the first and the last; those between lie inside the image
  kShared  // one for all: the vectors are rows
};

struct RowTerm {
  int64_t offset;  // elements from the first tap of channel 0 for column 0
  int32_t window;  // of the tap's column
  int32_t weight;  // place in the packed weights
};

// out[k][j] = bias[k] + sum over terms of w[term.weight + k] * (vector j of x + term.offset), for up to KB channels and
// NV vectors, `step` apart in the input and `out_step` in the output. The last vector has `last` lanes. There is at
// least one term.
template <class T, int KB, int NV, int Stride, Masks M>
void row_tile_micro(const T* x, int64_t step, const RowTerm* terms, int64_t count, const Window<T>* windows,
                    const Accumulate<T>* w, const Accumulate<T>* bias, T* out, int64_t out_channel, int64_t out_step,
                    int channels, int last, const Finish<T>& finish) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  Vec<A> sum[KB][NV];
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[k][j] = splat(bias[k]);
  // The lines of the output that are about to be written, those of a channel with each term. Planes lie so far apart
  // that nothing else fetches them. (1x1, 64 to 256 at 56x56: 0.60 -> 0.54 ms; 3x3, 3 to 64 at 224x224: 0.98 -> 0.90.
  // All of them before the first term: 0.95.)
  const T* line = out;
  int lines = channels;
  const RowTerm* const end = terms + count;
  do {
    if (lines > 0) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) __builtin_prefetch(line + j * out_step, 1);
      line += out_channel;
      --lines;
    }
    const T* from = x + terms->offset;
    const Window<T>* window = windows + terms->window;
    const A* weight = w + terms->weight;
    Vec<A> v[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const int at = M == Masks::kShared ? 0 : j * Stride;
      if (M == Masks::kEnds && j > 0 && j < NV - 1)
        v[j] = load(from + j * step);
      else
        v[j] = load(from + j * step, window[at]);
      if constexpr (Stride == 2) v[j] = even_lanes<A>(v[j], load(from + j * step + L, window[at + 1]));
    }
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k) {
      const Vec<A> b = splat(weight[k]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) sum[k][j] += b * v[j];
    }
  } while (++terms != end);
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k) {
    if (k >= channels) break;
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      // Rows are all as wide as the last vector; of one row only the last is narrow.
      T* to = out + k * out_channel + j * out_step;
      if (last == L || (M != Masks::kShared && j < NV - 1))
        finish.store(to, sum[k][j]);
      else
        finish.store_partial(to, sum[k][j], last);
    }
  }
}

template <class T>
using RowTileMicro = void (*)(const T*, int64_t, const RowTerm*, int64_t, const Window<T>*, const Accumulate<T>*,
                              const Accumulate<T>*, T*, int64_t, int64_t, int, int, const Finish<T>&);

constexpr int64_t kRowsMostChunks = 16;    // of a row in one work item
constexpr int64_t kRowsMostChannels = 96;  // of a 1x1 layer, with any number of output channels

// At most 5 vectors: a row of 80 pixels. More would serve only the few groups of one or two channels.
constexpr int kRowTileVectors = 5;
constexpr int row_tile_vectors(int kb) { return min64(kRowTileVectors, pixel_vectors(kb)); }

template <class T, int KB, int Stride, Masks M>
RowTileMicro<T> row_tile_micro_of(int64_t vectors) {
  constexpr int kMax = row_tile_vectors(KB);
  static const RowTileMicro<T> kTable[] = {
      row_tile_micro<T, KB, 1, Stride, M>,
      row_tile_micro<T, KB, min64(2, kMax), Stride, M>,
      row_tile_micro<T, KB, min64(3, kMax), Stride, M>,
      row_tile_micro<T, KB, min64(4, kMax), Stride, M>,
      row_tile_micro<T, KB, min64(5, kMax), Stride, M>,
  };
  return kTable[vectors - 1];
}

template <class T, int Stride, Masks M>
RowTileMicro<T> row_tile_micro_of(int64_t kb, int64_t vectors) {
  switch (kb) {
    case 1: return row_tile_micro_of<T, 1, Stride, M>(vectors);
    case 2: return row_tile_micro_of<T, 2, Stride, M>(vectors);
    case 4: return row_tile_micro_of<T, 4, Stride, M>(vectors);
    default: return row_tile_micro_of<T, 8, Stride, M>(vectors);
  }
}

template <class T>
RowTileMicro<T> row_tile_micro_of(int64_t kb, int64_t vectors, int64_t stride, Masks masks) {
  if (stride == 2)
    return masks == Masks::kShared ? row_tile_micro_of<T, 2, Masks::kShared>(kb, vectors)
                                   : row_tile_micro_of<T, 2, Masks::kEach>(kb, vectors);
  return masks == Masks::kShared ? row_tile_micro_of<T, 1, Masks::kShared>(kb, vectors)
         : masks == Masks::kEnds ? row_tile_micro_of<T, 1, Masks::kEnds>(kb, vectors)
                                 : row_tile_micro_of<T, 1, Masks::kEach>(kb, vectors);
}

// A term of an input that is spread out: what it reads, and its places in the packed weights, those of even and of odd
// outputs, -1 for none.
struct WovenTerm {
  int64_t offset;
  int32_t window, even, odd;
};

// As row_tile_micro, NV vectors of even outputs and NV of odd ones, of which there may be no term.
template <class T, int KB, int NV>
void woven_tile_micro(const T* x, const WovenTerm* terms, int64_t count, const Window<T>* windows,
                      const Accumulate<T>* w, const Accumulate<T>* bias, T* out, int64_t out_channel, int channels,
                      int64_t columns, const Finish<T>& finish) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  Vec<A> even[KB][NV], odd[KB][NV];
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) even[k][j] = odd[k][j] = splat(bias[k]);
  for (const WovenTerm* term = terms; term != terms + count; ++term) {
    Vec<A> v[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) v[j] = load(x + term->offset + j * L, windows[term->window + j]);
    if (term->even >= 0) {
#pragma GCC unroll 8
      for (int k = 0; k < KB; ++k) {
        const Vec<A> weight = splat(w[term->even + k]);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) even[k][j] += weight * v[j];
      }
    }
    if (term->odd >= 0) {
#pragma GCC unroll 8
      for (int k = 0; k < KB; ++k) {
        const Vec<A> weight = splat(w[term->odd + k]);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) odd[k][j] += weight * v[j];
      }
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k)
    if (k < channels) store_woven<T, NV>(even[k], odd[k], out + k * out_channel, columns, finish);
}

template <class T>
using WovenTileMicro = void (*)(const T*, const WovenTerm*, int64_t, const Window<T>*, const Accumulate<T>*,
                                const Accumulate<T>*, T*, int64_t, int, int64_t, const Finish<T>&);

// Vectors of even outputs, and as many of odd ones.
constexpr int woven_tile_vectors(int kb) { return max64(1, (kVecRegisters - 6) / (2 * kb + 1)); }

template <class T, int KB, int... I>
WovenTileMicro<T> woven_tile_micro_of(int64_t vectors, std::integer_sequence<int, I...>) {
  static const WovenTileMicro<T> kTable[] = {woven_tile_micro<T, KB, I + 1>...};
  return kTable[vectors - 1];
}

template <class T, int KB>
WovenTileMicro<T> woven_tile_micro_of(int64_t vectors) {
  return woven_tile_micro_of<T, KB>(vectors, std::make_integer_sequence<int, woven_tile_vectors(KB)>{});
}

template <class T>
WovenTileMicro<T> woven_tile_micro_of(int64_t kb, int64_t vectors) {
  switch (kb) {
    case 1: return woven_tile_micro_of<T, 1>(vectors);
    case 2: return woven_tile_micro_of<T, 2>(vectors);
    case 4: return woven_tile_micro_of<T, 4>(vectors);
    default: return woven_tile_micro_of<T, 8>(vectors);
  }
}

struct RowsPlan {
  PixelPlan pack;           // as the pixel kernel packs its weights
  int64_t vectors, chunks;  // of a row; chunks are what register tiles cover
  int64_t rows;             // of a register tile: more than one only where a row is one vector
  int64_t bands, spans;     // work items that share a plane: rows of it, and chunks of these
  int64_t terms, thread_bytes;
};

// Vectors of a row that one register tile covers.
struct RowChunk {
  int64_t q, vectors, columns;
  int last;  // lanes of the last vector
  Masks masks;
};

// The share of one work item: rows of group g of image n, and chunks of each.
struct RowsItem {
  int64_t n, g;
  Range rows;
  int64_t first_chunk, chunks;
};

inline RowsItem rows_item(const ConvParams& p, const RowsPlan& plan, int64_t item) {
  const int64_t span = item % plan.spans, band = item / plan.spans % plan.bands;
  const int64_t plane = item / plan.spans / plan.bands, first = plan.chunks * span / plan.spans;
  return {plane / p.G,
          plane % p.G,
          {p.P * band / plan.bands, p.P * (band + 1) / plan.bands},
          first,
          plan.chunks * (span + 1) / plan.spans - first};
}

template <class T, class A>
struct RowsScratch {
  A* bias;
  char* threads;
  int64_t total;

  RowsScratch(const ConvParams& p, const RowsPlan& plan, void* scratch) {
    Carver carve(scratch);
    bias = carve.take<A>(p.G * plan.pack.k_padded);
    threads = carve.take<char>(plan.thread_bytes * p.threads);
    total = carve.used();
  }
};

// The taps of output row `row` that read the image, for every channel of a group; offsets count from where tap 0 of
// output row 0 lies.
inline int64_t row_tile_terms(const ConvParams& p, int64_t kb, int64_t window_step, int64_t row, RowTerm* terms) {
  int64_t count = 0;
  for (int64_t c = 0; c < p.C; ++c)
    for (int64_t r = 0; r < p.R; ++r) {
      const int64_t h = row * p.stride_h + r * p.dilation_h - p.pad_h;
      if (h < 0 || h >= p.H) continue;
      for (int64_t s = 0; s < p.S; ++s)
        terms[count++] = {c * p.input.c + r * p.dilation_h * p.input.h + s * p.dilation_w,
                          static_cast<int32_t>(s * window_step), static_cast<int32_t>(((c * p.R + r) * p.S + s) * kb)};
    }
  return count;
}

template <class T>
void rows_forward(const ConvParams& p, const RowsPlan& plan, const void* packed, void* scratch) {
  using A = Accumulate<T>;
  constexpr int64_t L = kLanes<A>;
  const RowsScratch<T, A> memory(p, plan, scratch);
  const A* weights = static_cast<const A*>(packed);
  const Finish<T> finish(p);
  padded_bias<T>(p, plan.pack.k_padded, memory.bias);
  const int64_t kb = plan.pack.kb, stride = p.stride_w, window_step = kRowTileVectors * stride;
  // The rows of which no tap reads padding.
  const int64_t inside = min64(p.P, ceil_div(max64(p.pad_h, 0), p.stride_h));
  const int64_t room = p.H - 1 + p.pad_h - (p.R - 1) * p.dilation_h;
  const int64_t outside = max64(inside, room < 0 ? 0 : min64(p.P, room / p.stride_h + 1));
  const int64_t most_chunks = ceil_div(plan.chunks, plan.spans), chunk_windows = p.S * window_step;
  compute_for(p.threads, p.N * p.G * plan.bands * plan.spans, [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * plan.thread_bytes);
    RowTerm* edge_terms = carve.take<RowTerm>(plan.terms);
    RowTerm* inner_terms = carve.take<RowTerm>(plan.terms);
    RowChunk* chunks = carve.take<RowChunk>(most_chunks);
    Window<T>* windows = carve.take<Window<T>>(most_chunks * chunk_windows);
    const auto [n, g, rows, first_chunk, count_chunks] = rows_item(p, plan, item);
    for (int64_t i = 0; i < count_chunks; ++i) {
      const int64_t chunk = first_chunk + i, first = plan.vectors * chunk / plan.chunks;
      const int64_t vectors = plan.vectors * (chunk + 1) / plan.chunks - first, q = first * L;
      const int64_t w = q * stride - p.pad_w, columns = min64(p.Q - q, vectors * L);
      for (int64_t s = 0; s < p.S; ++s)
        for (int64_t j = 0; j < window_step; ++j)
          windows[i * chunk_windows + s * window_step + j] =
              inside_row<T>(w + s * p.dilation_w + (plan.rows > 1 ? j % stride : j) * L, p.W);
      // Vector 1 through the first tap and the last but one through the last tap are the outermost of those between.
      const int64_t reach = w + (p.S - 1) * p.dilation_w + (vectors - 1) * L;
      const Masks masks = plan.rows > 1 ? Masks::kShared : w + L >= 0 && reach <= p.W ? Masks::kEnds : Masks::kEach;
      chunks[i] = {q, vectors, columns, static_cast<int>(columns - (vectors - 1) * L), masks};
    }
    int64_t inner_count = 0;
    for (int64_t row = rows.begin; row < rows.end;) {
      const bool inner = row >= inside && row < outside;
      const int64_t height = inner ? min64(plan.rows, min64(outside, rows.end) - row) : 1;
      if (inner && inner_count == 0) inner_count = row_tile_terms(p, kb, window_step, row, inner_terms);
      const RowTerm* terms = inner ? inner_terms : edge_terms;
      const int64_t count = inner ? inner_count : row_tile_terms(p, kb, window_step, row, edge_terms);
      const T* x = static_cast<const T*>(p.input.data) + n * p.input.n + g * p.C * p.input.c +
                   (row * p.stride_h - p.pad_h) * p.input.h - p.pad_w;
      for (int64_t k = 0; k < p.K; k += kb) {
        const int channels = static_cast<int>(min64(kb, p.K - k));
        const A* bias = memory.bias + g * plan.pack.k_padded + k;
        for (int64_t i = 0; i < count_chunks; ++i) {
          const RowChunk& chunk = chunks[i];
          T* out = at<T>(p.output, n, g * p.K + k, row, chunk.q);
          if (count == 0)
            for (int c = 0; c < channels; ++c)
              for (int64_t j = 0; j < chunk.columns; j += L)
                finish.store_partial(out + c * p.output.c + j, splat(bias[c]),
                                     static_cast<int>(min64(L, chunk.columns - j)));
          else
            row_tile_micro_of<T>(kb, plan.rows > 1 ? height : chunk.vectors, stride, chunk.masks)(
                x + chunk.q * stride, plan.rows > 1 ? p.stride_h * p.input.h : stride * L, terms, count,
                windows + i * chunk_windows, weights + (g * plan.pack.k_padded + k) * plan.terms, bias, out, p.output.c,
                plan.rows > 1 ? p.output.h : L, channels, chunk.last, finish);
        }
      }
      row += height;
    }
  });
}

// The terms of output row `row` that read the image.
inline int64_t woven_tile_terms(const ConvParams& p, const Woven& woven, int64_t kb, int64_t window_step, int64_t row,
                                WovenTerm* terms) {
  const ResidueTaps taps = woven.h.residues[row % p.up_h];
  int64_t count = 0;
  for (int64_t c = 0; c < p.C; ++c)
    for (int64_t i = 0, h = row / p.up_h + taps.row; i < taps.count; ++i, h += woven.h.step) {
      if (h < 0 || h >= p.H) continue;
      const int64_t first = (c * p.R + woven.h.order[taps.begin + i]) * p.S;
      for (int64_t column = 0; column < woven.columns; ++column) {
        const int32_t even = woven.taps[column][0], odd = woven.taps[column][1];
        terms[count++] = {c * p.input.c + h * p.input.h + column, static_cast<int32_t>(column * window_step),
                          even < 0 ? -1 : static_cast<int32_t>((first + even) * kb),
                          odd < 0 ? -1 : static_cast<int32_t>((first + odd) * kb)};
      }
    }
  return count;
}

template <class T>
void woven_rows_forward(const ConvParams& p, const RowsPlan& plan, const void* packed, void* scratch) {
  using A = Accumulate<T>;
  constexpr int64_t L = kLanes<A>;
  const RowsScratch<T, A> memory(p, plan, scratch);
  const A* weights = static_cast<const A*>(packed);
  const Finish<T> finish(p);
  padded_bias<T>(p, plan.pack.k_padded, memory.bias);
  const ConvParams base = spread_base(p);
  const Woven woven(p, base);
  const int64_t kb = plan.pack.kb, window_step = woven_tile_vectors(static_cast<int>(kb));
  const int64_t most_chunks = ceil_div(plan.chunks, plan.spans), chunk_windows = base.S * window_step;
  compute_for(p.threads, p.N * p.G * plan.bands * plan.spans, [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * plan.thread_bytes);
    WovenTerm* terms = carve.take<WovenTerm>(plan.terms);
    RowChunk* chunks = carve.take<RowChunk>(most_chunks);
    Window<T>* windows = carve.take<Window<T>>(most_chunks * chunk_windows);
    const auto [n, g, rows, first_chunk, count_chunks] = rows_item(p, plan, item);
    for (int64_t i = 0; i < count_chunks; ++i) {
      const int64_t chunk = first_chunk + i, first = plan.vectors * chunk / plan.chunks;
      chunks[i].q = first * L;
      chunks[i].vectors = plan.vectors * (chunk + 1) / plan.chunks - first;
      for (int64_t s = 0; s < base.S; ++s)
        for (int64_t j = 0; j < window_step; ++j)
          windows[i * chunk_windows + s * window_step + j] = inside_row<T>((first + j) * L - base.pad_w + s, p.W);
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t count = woven_tile_terms(p, woven, kb, window_step, row, terms);
      const T* x = at<const T>(p.input, n, g * p.C, 0, 0) - base.pad_w;
      for (int64_t k = 0; k < p.K; k += kb)
        for (int64_t i = 0; i < count_chunks; ++i)
          woven_tile_micro_of<T>(kb, chunks[i].vectors)(
              x + chunks[i].q, terms, count, windows + i * chunk_windows,
              weights + (g * plan.pack.k_padded + k) * p.C * p.R * p.S, memory.bias + g * plan.pack.k_padded + k,
              at<T>(p.output, n, g * p.K + k, row, chunks[i].q * 2), p.output.c, static_cast<int>(min64(kb, p.K - k)),
              p.Q - chunks[i].q * 2, finish);
    }
  });
}

struct RowsForward {
  using Plan = RowsPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    const bool small_groups = p.G > 1 && p.C <= 8 && p.K <= 8 && p.Q * 2 > kLanes<A> * p.up_w;
    if (spread(p)) return small_groups;
    // Rows have been joined. In layers of more channels a copy, or sums along the output channels, costs less; with 16
    // registers a copy always does, see kPanelLeast.
    const bool few_channels = p.C < kRowsMostChannels || (p.C <= 512 && p.K <= 2 * kLanes<A>);
    const bool large_pointwise = kVecRegisters == 32 && p.R * p.S == 1 && p.Q >= 512 && few_channels;
    const bool picture =
        kVecRegisters == 32 && p.G == 1 && p.C <= 4 && p.K * 2 > kLanes<A> && p.Q * 2 > kLanes<A> && p.stride_w == 1;
    return small_groups || large_pointwise || picture;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    constexpr int64_t L = kLanes<A>;
    plan.pack = PixelPlan();
    plan.pack.kb = pixel_block(p.K);
    plan.pack.k_padded = round_up(p.K, plan.pack.kb);
    const ConvParams base = spread_base(p);
    const int kb = static_cast<int>(plan.pack.kb);
    const int64_t most = spread(p) ? woven_tile_vectors(kb) : row_tile_vectors(kb);
    plan.vectors = ceil_div(base.Q, L);
    plan.chunks = ceil_div(plan.vectors, most);
    plan.rows = plan.vectors == 1 && !spread(p) ? most : 1;
    plan.terms = p.C * p.R * base.S;
    // Whole rows, one after the other, write longer runs of a plane; a few long rows are shared by their chunks.
    const int64_t planes = p.N * p.G, enough = 4 * p.threads;
    plan.spans = planes * p.P >= enough ? ceil_div(plan.chunks, kRowsMostChunks) : plan.chunks;
    plan.bands = plan.rows > 1 || plan.spans == plan.chunks ? 1 : min64(p.P, ceil_div(enough, planes));
    const int64_t chunks = ceil_div(plan.chunks, plan.spans);
    const int64_t windows = chunks * base.S * (spread(p) ? woven_tile_vectors(kb) : kRowTileVectors * p.stride_w);
    const int64_t term_bytes = static_cast<int64_t>(spread(p) ? sizeof(WovenTerm) : 2 * sizeof(RowTerm));
    plan.thread_bytes = round_up(plan.terms * term_bytes, 64) +
                        round_up(chunks * static_cast<int64_t>(sizeof(RowChunk)), 64) +
                        round_up(windows * static_cast<int64_t>(sizeof(Window<A>)), 64) + 256;
    memory.packed = pixel_packed_bytes<A>(p, plan.pack);
    memory.scratch = RowsScratch<A, A>(p, plan, nullptr).total;
    if (plan.thread_bytes > (1 << 20)) return false;
    if (spread(p)) return weaves(p) && !spread_too_far(p, base);
    return p.input.w == 1 && p.output.w == 1 && p.stride_w <= 2;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    pixel_pack<T>(p, plan.pack, static_cast<Accumulate<T>*>(packed));
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    (spread(p) ? woven_rows_forward<T> : rows_forward<T>)(p, plan, packed, scratch);
  }
};

}  // namespace
}  // namespace fastconv
