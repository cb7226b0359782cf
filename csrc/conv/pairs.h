// Convolution of bfloat16 by dot products of channel pairs, for CPUs that have them: AMX tiles (16 pixels by 16 output
// channels by 16 pairs in one instruction) or AVX512-BF16 vectors. Input and weights stay bfloat16, sums are float32,
// in registers over all taps and channels of a pass.
//
// A sum is a sequence of small matrix products, one step for each tap and block of up to 32 input channels, of
//   x        [pixels][channels]: a pixel's channels adjoin, pixels are any constant distance apart;
//   weights  [channel pairs][16 output channels][2].
// Scratch holds x as [block][position][channels] (tile.h tells what a position is); a 1x1 kernel without padding reads
// a channels_last input where it lies. With few input channels a step takes several columns of the kernel at once
// ("thin"): scratch is then [row][column][channels], and pixels overlap, each reading from its first column on.
//
// AMX multiplies either way round. A 1x1 kernel on a contiguous input ("planar") has output channels in the rows of a
// tile, by weights as they are, and pixels in its columns: two channels of a pixel are paired by one shuffle where the
// other way takes a transposition, and results are in the order of the output. (With more taps the pixels of a tile
// would straddle cache lines, which costs more than the transpositions.)
//
// Pixels are computed in pieces, as many as a register tile has rows. Pieces of a row, or of a segment of it (see
// Trim), are of one size and may overlap, so nothing beyond the row is read; where rows are short a piece may go on
// over the gap into the next row of scratch.
#pragma once
#include "conv/tile.h"
#include "core/parallel.h"

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

// ---- moving bfloat16
// ------------------------------------------------------------------------------------------------

inline uint32_t first_words(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1; }
inline Words load_words(const void* p, uint32_t mask) { return bits_as<Words>(_mm512_maskz_loadu_epi16(mask, p)); }
inline void store_words(void* p, Words v, uint32_t mask) { _mm512_mask_storeu_epi16(p, mask, bits_as<__m512i>(v)); }
inline Words load_words(const void* p) { return bits_as<Words>(_mm512_loadu_si512(p)); }
inline void store_words(void* p, Words v) { _mm512_storeu_si512(p, bits_as<__m512i>(v)); }

using HalfWords = VecOf<uint32_t, 32>::type;
inline __m256i low_half(Words v) { return bits_as<__m256i>(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)); }
inline __m256i high_half(Words v) {
  return bits_as<__m256i>(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}

// Up to 16 elements, `step` apart; the others are zero, and nothing of theirs is touched.
inline __m256i load_row(const bfloat16* p, int64_t step, int64_t n) {
  if (step == 1) return _mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_words(n)), p);
  if (step == 2)
    return _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_maskz_loadu_epi16(first_words(2 * n) & 0x55555555, p));
  uint16_t lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i * step].bits;
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
}

// Sixteen elements of each of two rows as [element][row].
inline Words zip_halves(Words both) {
  alignas(64) static constexpr uint16_t kZip[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return bits_as<Words>(_mm512_maskz_permutexvar_epi16(~0u, _mm512_load_si512(kZip), bits_as<__m512i>(both)));
}
inline Words pair_rows(__m256i first, __m256i second) {
  return zip_halves(__builtin_shufflevector(bits_as<HalfWords>(first), bits_as<HalfWords>(second), 0, 1, 2, 3, 4, 5, 6,
                                            7, 8, 9, 10, 11, 12, 13, 14, 15));
}

// v[pair][16 columns] -> [column][pair], in the order of memory. All 16 pairs: a transposition.
template <int Pairs>
inline void interleave(Words* v) {
#pragma GCC unroll 4
  for (int round = 1; round < Pairs; round *= 2) {
    Words t[Pairs];
#pragma GCC unroll 8
    for (int i = 0; i < Pairs / 2; ++i)
      zip(v[i], v[i + Pairs / 2], t[2 * i], t[2 * i + 1], std::make_integer_sequence<int, 16>{});
#pragma GCC unroll 16
    for (int i = 0; i < Pairs; ++i) v[i] = t[i];
  }
}

// to[column][2 * Pairs], columns adjoining, from `rows` <= 2 * Pairs rows that lie `stride` apart; rows that are not
// there are zero. Sixteen columns are written whatever `columns` <= 16.
template <int Pairs>
inline void columns_of(const bfloat16* from, int64_t stride, int64_t step, int64_t rows, int64_t columns, void* to) {
  Words v[Pairs];
#pragma GCC unroll 16
  for (int i = 0; i < Pairs; ++i) {
    const __m256i none = _mm256_setzero_si256();
    v[i] = pair_rows(2 * i < rows ? load_row(from + 2 * i * stride, step, columns) : none,
                     2 * i + 1 < rows ? load_row(from + (2 * i + 1) * stride, step, columns) : none);
  }
  interleave<Pairs>(v);
#pragma GCC unroll 16
  for (int i = 0; i < Pairs; ++i) store_words(static_cast<char*>(to) + i * 64, v[i]);
}

// `count` pixels of n <= pixel / 2 adjoining channels, `step` elements apart, into slots of `pixel` bytes, padded with
// zeros. No register is wider than the slot: masked ones that straddle cache lines are slow.
inline void copy_pixels(const bfloat16* from, int64_t step, int64_t count, int64_t n, int64_t pixel, char* to) {
  const uint32_t mask = first_words(n);
  const auto narrow = static_cast<__mmask8>(mask);
  if (pixel == 8)
    for (int64_t i = 0; i < count; ++i, from += step, to += 8)
      _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_maskz_loadu_epi16(narrow, from));
  else if (pixel == 16)
    for (int64_t i = 0; i < count; ++i, from += step, to += 16)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_maskz_loadu_epi16(narrow, from));
  else if (pixel == 32)
    for (int64_t i = 0; i < count; ++i, from += step, to += 32)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), from));
  else
    for (int64_t i = 0; i < count; ++i, from += step, to += 64) store_words(to, load_words(from, mask));
}

// ---- planning
// -------------------------------------------------------------------------------------------------------

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

// ---- packing weights
// ------------------------------------------------------------------------------------------------

// Weights of output channels [k0, k0 + 32) and blocks [b0, b0 + blocks) of input channels of group g as
// to[block][tap][half of the output channels][pair][16 output channels][2], zero beyond K and C.
inline void pairs_pack(const ConvParams& p, const PairsPlan& plan, int64_t g, int64_t k0, int64_t b0, int64_t blocks,
                       char* to) {
  const int64_t taps = p.R * p.S, tile = plan.width * 32, kn = min64(kBlockK, p.K - k0);
  const int64_t halves = kn > 16 ? 2 : 1;  // of the output channels; the second may be left out
  const View4& w = p.weight;
  const bfloat16* group = at<const bfloat16>(w, k0, 0, 0, 0) + g * p.weight_g;
  const bool adjoin = taps > 1 && taps <= kMostTaps && (w.w == 1 || w.w == -1) && w.h == p.S * w.w && !plan.thin;
  const int64_t first = w.w < 0 ? taps - 1 : 0, sign = w.w < 0 ? -1 : 1;  // of taps in memory
  alignas(64) char buffer[kPacked16 * kMostTaps + 16][64];
  for (int64_t b = 0; b < blocks; ++b, to += plan.taps * 2 * tile) {
    const int64_t c0 = (b0 + b) * plan.width, cn = plan.thin ? plan.width : max64(0, min64(plan.width, p.C - c0));
    const bfloat16* from = group + c0 * w.c;
    // Sixteen rows of channel pairs, one for each output channel, that lie `stride` bytes apart.
    const auto put_rows = [&](const void* rows, int64_t stride, int64_t count, char* out) {
      Words v[16];
      const uint32_t mask = first_words(cn);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        v[i] = i < count ? load_words(static_cast<const char*>(rows) + i * stride, mask) : Words{};
      interleave<16>(v);
      for (int64_t i = 0; i < plan.width / 2; ++i) store_words(out + i * 64, v[i]);
    };
    if (plan.planar) {
      // [output channel][input channel]
      for (int64_t k = 0; k < 16 * halves; k += 16) {
        if (w.c == 1)
          for (int64_t i = 0; i < 16; ++i)
            store_words(buffer[i], k + i < kn ? load_words(from + (k + i) * w.n, first_words(cn)) : Words{});
        else
          columns_of<16>(from + k * w.n, w.c, w.n, cn, max64(0, min64(16, kn - k)), buffer);
        for (int64_t i = 0; i < 16; ++i)
          store_words(to + (k + i) * plan.width * 2, load_words(buffer[i]), first_words(plan.width));
      }
    } else if (plan.thin && pairs_row_adjoins(p, plan.pixel / 2)) {
      for (int64_t tap = 0; tap < plan.taps; ++tap)
        for (int64_t half = 0; half < halves; ++half)
          put_rows(from + tap / plan.columns * w.h + tap % plan.columns * plan.width + half * 16 * w.n, w.n * 2,
                   kn - half * 16, to + (tap * 2 + half) * tile);
    } else if (plan.thin) {
      const int64_t channels = plan.pixel / 2;
      for (int64_t tap = 0; tap < plan.taps; ++tap)
        for (int64_t half = 0; half < halves; ++half)
          for (int64_t i = 0; i < plan.width; ++i) {
            const int64_t value = tap % plan.columns * plan.width + i, s = value / channels, c = value % channels;
            uint16_t* out = reinterpret_cast<uint16_t*>(to + (tap * 2 + half) * tile + i / 2 * 64) + i % 2;
            const bfloat16* source = from + half * 16 * w.n + c * w.c + tap / plan.columns * w.h + s * w.w;
            for (int64_t k = 0; k < 16; ++k)
              out[k * 2] = c < p.C && half * 16 + k < kn ? source[k * w.n].bits : uint16_t(0);
          }
    } else if (w.c == 1) {
      for (int64_t r = 0; r < p.R; ++r)
        for (int64_t s = 0; s < p.S; ++s)
          for (int64_t half = 0; half < halves; ++half)
            put_rows(from + r * w.h + s * w.w + half * 16 * w.n, w.n * 2, kn - half * 16,
                     to + ((r * p.S + s) * 2 + half) * tile);
    } else if (adjoin && w.n == taps) {
      // Rows of memory are input channels; (k, tap) runs along them.
      for (int64_t half = 0; half < halves; ++half) {
        const int64_t count = max64(0, min64(16, kn - half * 16)) * taps;
        const bfloat16* run = from + half * 16 * taps - (w.w < 0 ? taps - 1 : 0);
        for (int64_t j = 0; j < count; j += 16) columns_of<16>(run + j, w.c, 1, cn, min64(16, count - j), buffer[j]);
        for (int64_t tap = 0; tap < taps; ++tap)
          put_rows(buffer[first + sign * tap], taps * 64, count / taps, to + (tap * 2 + half) * tile);
      }
    } else if (w.n == 1) {
      // Rows of memory are output channels of one input channel and tap.
      const uint32_t mask = first_words(kn);
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < plan.width; c += 2) {
          const bfloat16* source = from + c * w.c + tap / p.S * w.h + tap % p.S * w.w;
          const Words first = c < cn ? load_words(source, mask) : Words{};
          const Words second = c + 1 < cn ? load_words(source + w.c, mask) : Words{};
          char* out = to + tap * 2 * tile + c * 32;
          store_words(out, pair_rows(low_half(first), low_half(second)));
          if (halves == 2) store_words(out + tile, pair_rows(high_half(first), high_half(second)));
        }
    } else {
      // Rows of memory are output channels, (c, tap) runs along them; or they are gathered that way.
      for (int64_t c = 0; c < plan.width; c += kPacked16) {
        const int64_t channels = max64(0, min64(kPacked16, cn - c)), pairs = min64(kPacked16, plan.width - c) / 2;
        const bool rows = adjoin && w.c == taps;
        const bfloat16* run = from + c * w.c - (w.w < 0 ? taps - 1 : 0);
        for (int64_t j = 0; rows && j < channels * taps; j += 16)
          columns_of<16>(run + j, w.n, 1, kn, min64(16, channels * taps - j), buffer[j]);
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t pair = 0; pair < pairs; ++pair) {
            alignas(64) uint16_t gathered[2][32] = {};
            const void* two[2] = {gathered[0], gathered[1]};
            for (int64_t i = 0; i < 2 && 2 * pair + i < channels; ++i) {
              const bfloat16* source = from + (c + 2 * pair + i) * w.c + tap / p.S * w.h + tap % p.S * w.w;
              if (rows)
                two[i] = buffer[(2 * pair + i) * taps + first + sign * tap];
              else
                for (int64_t k = 0; k < kn; ++k) gathered[i][k] = source[k * w.n].bits;
            }
            for (int64_t half = 0; half < halves; ++half)
              store_words(to + (tap * 2 + half) * tile + (c / 2 + pair) * 64,
                          pair_rows(_mm256_loadu_si256(static_cast<const __m256i*>(two[0]) + half),
                                    _mm256_loadu_si256(static_cast<const __m256i*>(two[1]) + half)));
          }
      }
    }
  }
}

// ---- filling scratch
// -------------------------------------------------------------------------------------------------

// `count` channels from c0 on into x, blocks of plan.width channels.
inline void pairs_fill(const ConvParams& p, const PairsPlan& plan, const Geometry& g, const Tile& t, int64_t c0,
                       int64_t count, char* x) {
  const int64_t step = p.stride_w * p.input.w, pixel = plan.pixel;
  const int64_t width = plan.thin ? count : plan.width, blocks = ceil_div(count, width);
  const uint32_t whole = first_words(pixel / 2);
  for_each_row(p, g, t, [&](int64_t position, int64_t h, int64_t w, int64_t begin, int64_t end) {
    if (plan.planar) {
      for (int64_t c = 0; c < round_up(count, width); c += 2) {
        char* row = x + c / width * plan.block_bytes + c % width / 2 * plan.pair_bytes + position * 4;
        const bfloat16* first = c < count && begin < end ? at<const bfloat16>(p.input, t.n, c0 + c, h, w) : nullptr;
        zero(reinterpret_cast<float*>(row), begin);
        const bfloat16* second = c + 1 < count ? first + p.input.c : nullptr;
        int64_t i = begin;
        for (; step == 1 && second && i + 16 <= end; i += 16, first += 16, second += 16)
          store_words(row + i * 4, pair_rows(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)),
                                             _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second))));
        for (; i < end; i += 16) {
          const int64_t n = min64(16, end - i);
          const __m256i none = _mm256_setzero_si256();
          store_words(row + i * 4,
                      pair_rows(first ? load_row(first, step, n) : none, second ? load_row(second, step, n) : none));
          if (first) first += 16 * step;
          if (second) second += 16 * step;
        }
        zero(reinterpret_cast<float*>(row) + end, g.pitch - end);
      }
      return;
    }
    char* row = x + position * pixel;
    const bfloat16* from = begin < end ? at<const bfloat16>(p.input, t.n, c0, h, w) : nullptr;
    if (p.input.c == 1) {
      // All channels of a pixel at a time, as they lie in memory.
      char* to = row + begin * pixel;
      if (blocks == 1) copy_pixels(from, step, end - begin, count, pixel, to);
      for (int64_t i = begin; blocks > 1 && i < end; ++i, to += pixel, from += step) {
        if (width == 32 && count % 32 == 0)
          for (int64_t b = 0; b < blocks; ++b) store_words(to + b * plan.block_bytes, load_words(from + b * 32));
        else
          for (int64_t b = 0; b < blocks; ++b)
            store_words(to + b * plan.block_bytes,
                        load_words(from + b * width, first_words(min64(width, count - b * width))), whole);
      }
    }
    for (int64_t b = 0; b < blocks; ++b, row += plan.block_bytes) {
      zero(reinterpret_cast<float*>(row), begin * pixel / 4);
      const int64_t n = min64(width, count - b * width);
      for (int64_t i = begin; p.input.c != 1 && i < end; i += 16) {
        const bfloat16* source = from + b * width * p.input.c + (i - begin) * step;
        char* to = row + i * pixel;
        const int64_t columns = min64(16, end - i);
        if (pixel == 64)
          columns_of<16>(source, p.input.c, step, n, columns, to);
        else if (pixel == 32)
          columns_of<8>(source, p.input.c, step, n, columns, to);
        else if (pixel == 16)
          columns_of<4>(source, p.input.c, step, n, columns, to);
        else
          columns_of<2>(source, p.input.c, step, n, columns, to);
      }
      zero(reinterpret_cast<float*>(row + end * pixel), (g.pitch - end) * pixel / 4);
    }
  });
}

// ---- register tiles
// ------------------------------------------------------------------------------------------------------

struct Step {
  int32_t a, b;  // bytes
};

// What a register tile sums up: products of matrices a, `rows` rows of pairs, and b, pairs of 16 columns, over the
// steps of a block and the blocks. Distances in bytes.
struct PairsBlock {
  int64_t rows;   // of one tile of a
  int64_t pairs;  // of a step
  int64_t a_row, a_block, b_row, b_block;
  int64_t sum_row;  // floats
  const Step* steps;
  int64_t step_count, blocks;
};

#ifdef __AMX_BF16__

struct TileConfig {
  uint8_t palette = 1, start_row = 0, unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 are sums, 4 and 5 of matrix a, 6 and 7 of b. Configured for a work item, released at its end.
struct Tiles {
  explicit Tiles(const PairsBlock& block) {
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = static_cast<uint8_t>(i < 6 ? block.rows : block.pairs);
      config.row_bytes[i] = static_cast<uint16_t>(i < 4 || i > 5 ? 64 : block.pairs * 4);
    }
    asm volatile("" ::"r"(&config) : "memory");  // g++ 12 believes that only the first 8 bytes are read
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

// sum[tile of a][row][32 columns]; `to_a1` and `to_b1` lead to the second tiles.
template <int TilesA, int TilesB>
void pairs_micro(const PairsBlock& block, const char* a, int64_t to_a1, const char* b, int64_t to_b1, bool add,
                 float* sum) {
  const int64_t row = block.sum_row * 4;
  float* below = sum + block.rows * block.sum_row;
  asm volatile("" ::: "memory");  // tile loads say nothing of what they read
  if (add) {
    _tile_loadd(0, sum, row);
    if constexpr (TilesB == 2) _tile_loadd(1, sum + 16, row);
    if constexpr (TilesA == 2) _tile_loadd(2, below, row);
    if constexpr (TilesA == 2 && TilesB == 2) _tile_loadd(3, below + 16, row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  int64_t blocks = block.blocks;
  do {
    const Step* step = block.steps;
    const Step* end = step + block.step_count;
    do {
      const char* a0 = a + step->a;
      const char* b0 = b + step->b;
      _tile_loadd(6, b0, block.b_row);
      _tile_loadd(4, a0, block.a_row);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (TilesB == 2) {
        _tile_loadd(7, b0 + to_b1, block.b_row);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (TilesA == 2) {
        _tile_loadd(5, a0 + to_a1, block.a_row);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (TilesB == 2) _tile_dpbf16ps(3, 5, 7);
      }
    } while (++step != end);
    a += block.a_block;
    b += block.b_block;
  } while (--blocks);
  _tile_stored(0, sum, row);
  if constexpr (TilesB == 2) _tile_stored(1, sum + 16, row);
  if constexpr (TilesA == 2) _tile_stored(2, below, row);
  if constexpr (TilesA == 2 && TilesB == 2) _tile_stored(3, below + 16, row);
  asm volatile("" ::: "memory");
}

inline void pairs_multiply(const PairsBlock& block, int tiles_a, const char* a, int64_t to_a1, int tiles_b,
                           const char* b, int64_t to_b1, bool add, float* sum) {
  if (tiles_a == 2 && tiles_b == 2)
    pairs_micro<2, 2>(block, a, to_a1, b, to_b1, add, sum);
  else if (tiles_a == 2)
    pairs_micro<2, 1>(block, a, to_a1, b, to_b1, add, sum);
  else if (tiles_b == 2)
    pairs_micro<1, 2>(block, a, to_a1, b, to_b1, add, sum);
  else
    pairs_micro<1, 1>(block, a, to_a1, b, to_b1, add, sum);
}

#else

struct Tiles {
  explicit Tiles(const PairsBlock&) {}
};

template <int TilesB, int Rows>
void pairs_micro(const PairsBlock& block, const char* a, const char* b, int64_t to_b1, bool add, float* sum) {
  Vec<float> v[Rows][TilesB];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < TilesB; ++j) v[i][j] = add ? load(sum + i * block.sum_row + j * 16) : Vec<float>{};
  const int64_t a_row = block.a_row;
  int64_t blocks = block.blocks;
  do {
    const Step* step = block.steps;
    const Step* end = step + block.step_count;
    do {
      const char* from = a + step->a;
      const char* weight = b + step->b;
      const char* weight_end = weight + block.pairs * 64;
      do {
        __m512bh w[TilesB];
#pragma GCC unroll 2
        for (int j = 0; j < TilesB; ++j) w[j] = (__m512bh)_mm512_loadu_si512(weight + j * to_b1);
        const char* row = from;
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i, row += a_row) {
          int pair;
          __builtin_memcpy(&pair, row, sizeof pair);
          const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
          for (int j = 0; j < TilesB; ++j) v[i][j] = _mm512_dpbf16_ps(v[i][j], value, w[j]);
        }
        from += 4;
        weight += 64;
      } while (weight != weight_end);
    } while (++step != end);
    a += block.a_block;
    b += block.b_block;
  } while (--blocks);
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < TilesB; ++j) store(sum + i * block.sum_row + j * 16, v[i][j]);
}

using PairsMicro = void (*)(const PairsBlock&, const char*, const char*, int64_t, bool, float*);

template <int TilesB, int... I>
PairsMicro pairs_micro_of(int64_t rows, std::integer_sequence<int, I...>) {
  static const PairsMicro kTable[] = {pairs_micro<TilesB, I + 1>...};
  return kTable[rows - 1];
}

inline void pairs_multiply(const PairsBlock& block, int, const char* a, int64_t, int tiles_b, const char* b,
                           int64_t to_b1, bool add, float* sum) {
  using All = std::make_integer_sequence<int, kPieceRows>;
  const PairsMicro micro = tiles_b == 2 ? pairs_micro_of<2>(block.rows, All{}) : pairs_micro_of<1>(block.rows, All{});
  micro(block, a, b, to_b1, add, sum);
}

#endif

// ---- writing results
// ----------------------------------------------------------------------------------------------------

inline Words narrow_two(Vec<float> low, Vec<float> high) { return bits_as<Words>(_mm512_cvtne2ps_pbh(high, low)); }

// `count` <= 32 output channels of n <= 16 adjoining pixels, sum[pixel][32].
inline void pairs_store(const ConvParams& p, const Finish<bfloat16>& finish, const float* sum, const float* bias,
                        int64_t count, int64_t n, bfloat16* to) {
  const Vec<float> bias0 = load(bias), bias1 = load(bias + 16);
  if (p.output.c == 1) {
    for (int64_t i = 0; i < n; ++i, sum += kBlockK, to += p.output.w) {
      const Vec<float> low = load(sum) + bias0, high = load(sum + 16) + bias1;
      if (finish.plain) {
        store_words(to, narrow_two(low, high), first_words(count));
      } else {
        finish.store_partial(to, low, static_cast<int>(min64(16, count)));
        if (count > 16) finish.store_partial(to + 16, high, static_cast<int>(count - 16));
      }
    }
    return;
  }
  const auto mask = static_cast<__mmask16>(first_words(n));
  if (finish.plain && p.output.w == 1) {
    // Pairs of pixels as one word, then a transposition serves both halves of the channels.
    Words v[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const float* two = sum + 2 * i * kBlockK;
      v[i] = zip_halves(narrow_two(load(two) + bias0, load(two + kBlockK) + bias0));
      v[i + 8] = zip_halves(narrow_two(load(two + 16) + bias1, load(two + kBlockK + 16) + bias1));
    }
    interleave<16>(v);
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) {
      if (k < count) _mm256_mask_storeu_epi16(to + k * p.output.c, mask, low_half(v[k]));
      if (k + 16 < count) _mm256_mask_storeu_epi16(to + (k + 16) * p.output.c, mask, high_half(v[k]));
    }
    return;
  }
  for (int64_t half = 0; half * 16 < count; ++half) {
    Vec<float> v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = load(sum + i * kBlockK + half * 16) + (half ? bias1 : bias0);
    transpose<float>(v);
    for (int64_t k = 0; k < min64(16, count - half * 16); ++k)
      finish.store_strided(to + (half * 16 + k) * p.output.c, p.output.w, v[k], static_cast<int>(n));
  }
}

// The same where columns of a tile are pixels: `count` <= 32 output channels of n <= 32 pixels, sum[channel][32].
inline void pairs_store_planar(const ConvParams& p, const Finish<bfloat16>& finish, const float* sum, const float* bias,
                               int64_t count, int64_t n, bfloat16* to) {
  for (int64_t k = 0; k < count; ++k, sum += kBlockK, to += p.output.c) {
    const Vec<float> low = load(sum) + bias[k], high = load(sum + 16) + bias[k];
    if (finish.plain) {
      store_words(to, narrow_two(low, high), first_words(n));
    } else {
      finish.store_partial(to, low, static_cast<int>(min64(16, n)));
      if (n > 16) finish.store_partial(to + 16, high, static_cast<int>(n - 16));
    }
  }
}

// ---- the kernel
// -------------------------------------------------------------------------------------------------------

struct Piece {
  int64_t x;       // bytes from the input of the tile's first pixel
  int64_t row, q;  // of the piece's first pixel
  int64_t skip;    // pixels that the piece before has written; planar: where the row of pixels ends
  int64_t rows;    // pixels
  Range steps;     // of its own, where the plan is trimmed
};

inline int64_t pairs_step_room(const ConvParams& p, const PairsPlan& plan) {
  return max64(plan.taps, p.R * p.S) * (plan.trimmed ? plan.pieces : 1);
}

struct PairsScratch {
  float* bias;
  SortedTaps h, w;
  char* threads;
  int64_t thread_bytes, total;

  PairsScratch(const ConvParams& p, const PairsPlan& plan, void* scratch) {
    Carver carve(scratch);
    bias = carve.take<float>(p.G * plan.k_blocks * kBlockK);
    h.place(carve, p.R, p.up_h);
    w.place(carve, p.S, p.up_w);
    thread_bytes = round_up(plan.x_bytes, 64) + round_up(plan.sum_bytes, 64) + round_up(plan.weight_bytes, 64) +
                   round_up(plan.pieces * static_cast<int64_t>(sizeof(Piece)), 64) +
                   round_up(p.R * p.S * static_cast<int64_t>(sizeof(Tap)), 64) +
                   round_up(pairs_step_room(p, plan) * static_cast<int64_t>(sizeof(Step)), 64) +
                   round_up(p.up_h * p.up_w * static_cast<int64_t>(sizeof(Range)), 64);
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

// The steps of one block of channels whose every read is not padding; at least one.
inline int64_t pairs_steps(const ConvParams& p, const PairsPlan& plan, const Tile& t, Tap* taps, Step* steps) {
  const int64_t tile = plan.width * 64;  // both halves
  int64_t count = 0;
  if (!plan.thin) {
    count = live_taps(p, plan.g, t, taps);
    for (int64_t i = 0; i < count; ++i)
      steps[i] = {plan.in_place ? 0 : static_cast<int32_t>(taps[i].offset * plan.pixel),
                  static_cast<int32_t>(taps[i].index * tile)};
    return count;
  }
  for (int64_t r = 0; r < p.R; ++r) {
    if (!reads_input(t.p0 * p.stride_h + r * p.dilation_h - p.pad_h, t.rows, p.stride_h, p.H) &&
        (r < p.R - 1 || count > 0))
      continue;
    const int64_t row = r % plan.g.h.period * plan.g.h.span + r / plan.g.h.period * plan.g.h.step;
    for (int64_t j = 0; j < plan.columns; ++j)
      steps[count++] = {static_cast<int32_t>(row * plan.g.pitch * plan.pixel + j * plan.width * 2),
                        static_cast<int32_t>((r * plan.columns + j) * tile)};
  }
  return count;
}

// The same for `columns` pixels of a row from column q of the tile on, which needs these rows of the kernel.
inline int64_t pairs_trimmed_steps(const ConvParams& p, const PairsPlan& plan, const Tile& t, Range rows, int64_t q,
                                   int64_t columns, Step* steps) {
  const Range taps = live_columns(p, t.q0 + q, t.q0 + q + columns);
  int64_t count = 0;
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t s = taps.begin; s < taps.end; ++s) {
      const Tap tap = tap_of(p, plan.g, r, s);
      steps[count++] = {static_cast<int32_t>(tap.offset * plan.pixel),
                        static_cast<int32_t>(tap.index * plan.width * 64)};
    }
  return count;
}

// The same where the input is spread out: for each residue its steps, none where no tap reaches it.
inline void pairs_spread_steps(const ConvParams& p, const PairsPlan& plan, const SortedTaps& h, const SortedTaps& w,
                               const Tile& t, Step* steps, Range* residues) {
  const ConvParams base = spread_base(p);
  int64_t count = 0;
  for (int64_t e = 0; e < p.up_h * p.up_w; ++e) {
    const ResidueTaps rows = h.residues[e / p.up_w], columns = w.residues[e % p.up_w];
    residues[e].begin = count;
    for (int64_t i = 0; i < rows.count; ++i)
      for (int64_t j = 0; j < columns.count; ++j) {
        const bool live = reads_input(t.p0 + rows.row + i * h.step, t.rows, 1, p.H) &&
                          reads_input(t.q0 + columns.row + j * w.step, t.columns, 1, p.W);
        const bool last = i == rows.count - 1 && j == columns.count - 1 && count == residues[e].begin;
        if (!live && !last) continue;
        const Tap tap = spread_tap(p, base, plan.g, h.order[rows.begin + i], w.order[columns.begin + j]);
        steps[count++] = {plan.in_place ? 0 : static_cast<int32_t>(tap.offset * plan.pixel),
                          static_cast<int32_t>(tap.index * plan.width * 64)};
      }
    residues[e].end = count;
  }
}

inline void pairs_forward(const ConvParams& p, const PairsPlan& plan, const char* packed, void* scratch) {
  PairsScratch memory(p, plan, scratch);
  const ConvParams base = spread_base(p);
  const Finish<bfloat16> finish(p);
  memory.h.sort(p.R, p.up_h, p.dilation_h, p.pad_h);
  memory.w.sort(p.S, p.up_w, p.dilation_w, p.pad_w);
  padded_bias<bfloat16>(p, plan.k_blocks * kBlockK, memory.bias);
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles;
  Segment segments[kMostSegments];
  const int64_t segment_count = plan.cut ? tap_segments(p, segments) : 1;
  parallel_for(p.threads, pairs_items(p, plan), [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    char* x = carve.take<char>(plan.x_bytes);
    float* sums = carve.take<float>(plan.sum_bytes / 4);
    char* own_weights = carve.take<char>(plan.weight_bytes);
    Piece* pieces = carve.take<Piece>(plan.pieces);
    Tap* taps = carve.take<Tap>(p.R * p.S);
    Step* steps = carve.take<Step>(pairs_step_room(p, plan));
    Range* residues = carve.take<Range>(p.up_h * p.up_w);  // the steps of each
    const int64_t first_block = item % plan.k_splits * plan.k_range;
    const int64_t k_blocks = min64(plan.k_range, plan.k_blocks - first_block);
    const Tile t = make_tile(base, plan.g, item / plan.k_splits / tiles / p.G, item / plan.k_splits % tiles);
    const Tile out = spread_tile(p, t);
    const int64_t g = item / plan.k_splits / tiles % p.G;

    // Bytes from a pixel, a row and a block of channels to the next.
    const int64_t step = plan.in_place ? p.stride_w * p.input.w * 2 : plan.thin ? p.stride_w * plan.pixel : plan.pixel;
    const int64_t row_step = plan.in_place ? p.stride_h * p.input.h * 2 : plan.g.pitch * plan.pixel;
    const bool joined = joins_rows(plan, t.rows, t.columns);
    const int64_t length = joined ? (t.rows - 1) * plan.g.pitch + t.columns : t.columns;
    const Pieces of_row(length);
    int64_t count = 0;
    if (plan.planar) {
      // Thirty-two pixels, of all rows in one where they adjoin in the output.
      const bool one = t.columns == plan.g.pitch && p.output.h == t.columns;
      for (int64_t row = 0; row < (one ? 1 : t.rows); ++row)
        for (int64_t q = 0; q < (one ? t.rows * t.columns : t.columns); q += 32)
          pieces[count++] = {(row * plan.g.pitch + q) * 4,         row,         q,
                             one ? t.rows * t.columns : t.columns, of_row.rows, {}};
    }
    int64_t step_count = 0, row_pieces = 0;
    Range before = {0, 0};
    for (int64_t row = 0; !plan.planar && row < (joined ? 1 : t.rows); ++row) {
      const Range taps_h = live_axis(t.p0 + row, 1, p.R, p.stride_h, p.dilation_h, p.pad_h, p.H);
      const bool again = row > 0 && taps_h.begin == before.begin && taps_h.end == before.end;
      before = taps_h;
      for (int64_t j = 0; j < segment_count; ++j) {
        const Range columns = plan.cut ? segments[j].columns : Range{0, length};
        const Pieces of_segment(columns.end - columns.begin);
        for (int64_t i = 0; i < of_segment.count; ++i, ++count) {
          const int64_t q = min64(columns.begin + i * of_segment.rows, columns.end - of_segment.rows);
          Piece& piece = pieces[count];
          piece.x = row * row_step + q * step;
          piece.row = joined ? q / plan.g.pitch : row;
          piece.q = joined ? q % plan.g.pitch : q;
          piece.skip = columns.begin + i * of_segment.rows - q;
          piece.rows = of_segment.rows;
          piece.steps = {step_count, step_count};
          if (!plan.trimmed) continue;
          if (again) {
            piece.steps = pieces[count - row_pieces].steps;
          } else {
            step_count += pairs_trimmed_steps(p, plan, t, taps_h, q, piece.rows, steps + step_count);
            piece.steps.end = step_count;
          }
        }
      }
      if (row == 0) row_pieces = count;
    }

    PairsBlock block;
    block.rows = plan.planar ? 16 : of_row.rows;
    block.pairs = plan.width / 2;
    block.a_row = plan.planar ? plan.width * 2 : step;
    block.a_block = plan.planar ? plan.width * 64 : plan.in_place ? plan.width * 2 : plan.block_bytes;
    block.b_row = plan.planar ? plan.pair_bytes : 64;
    block.b_block = plan.planar ? plan.block_bytes : plan.taps * plan.width * 64;
    block.sum_row = p.up_w * kBlockK;
    if (spread(p))
      pairs_spread_steps(p, plan, memory.h, memory.w, t, steps, residues);
    else if (!plan.trimmed)
      residues[0] = {0, pairs_steps(p, plan, t, taps, steps)};
    block.steps = steps;
    block.step_count = plan.trimmed ? 0 : residues[0].end;
    const Tiles configured(block);

    for (int64_t pass = 0; pass < plan.passes; ++pass) {
      const int64_t b0 = pass * plan.pass_blocks;
      block.blocks = min64(plan.pass_blocks, plan.c_blocks - b0);
      const int64_t c0 = g * p.C + (plan.thin ? 0 : b0 * plan.width);
      const int64_t channels = plan.thin ? p.C : min64(block.blocks * plan.width, p.C - b0 * plan.width);
      const char* source = x;
      if (plan.in_place)
        source =
            reinterpret_cast<const char*>(at<const bfloat16>(p.input, t.n, c0, t.p0 * p.stride_h, t.q0 * p.stride_w));
      else if (plan.thin)
        pairs_fill(thin_params(p), plan, thin_geometry(plan, p.stride_w), thin_tile(t, p.stride_w), c0, channels, x);
      else
        pairs_fill(base, plan, plan.g, t, c0, channels, x);
      const bool last = pass == plan.passes - 1;
      for (int64_t b = 0; b < k_blocks; ++b) {
        const int64_t k = (first_block + b) * kBlockK, k_count = min64(kBlockK, p.K - k);
        const char* weights = packed + ((g * plan.k_blocks + first_block + b) * plan.passes + pass) * plan.pass_weights;
        if (!plan.prepack) {
          pairs_pack(p, plan, g, k, b0, block.blocks, own_weights);
          weights = own_weights;
        }
        const int halves = k_count > 16 ? 2 : 1;
        const float* bias = memory.bias + g * plan.k_blocks * kBlockK + k;
        // Residue e of the rows, all of the columns.
        const auto write = [&](int64_t i, int64_t e, const float* sum) {
          for (int64_t j = i; j < min64(i + kPiecesAtOnce, count); ++j, sum += block.rows * block.sum_row) {
            const int64_t rows = pieces[j].rows;
            int64_t done = pieces[j].skip, row = pieces[j].row, q = pieces[j].q + done;
            while (done < rows) {
              const int64_t left = rows - done, end = row * p.up_h + e < out.rows ? out.columns : 0;
              for (int64_t s = q * p.up_w; s < min64((q + left) * p.up_w, end); s += 16)
                pairs_store(p, finish, sum + done * block.sum_row + (s - q * p.up_w) * kBlockK, bias, k_count,
                            min64(16, min64((q + left) * p.up_w, end) - s),
                            at<bfloat16>(p.output, t.n, g * p.K + k, out.p0 + row * p.up_h + e, out.q0 + s));
              const int64_t on = joined ? min64(left, plan.g.pitch - q) : left;
              done += on;
              q = 0;
              ++row;
            }
          }
        };
        for (int64_t i = 0; plan.planar && i < count; ++i) {
          float* sum = plan.passes > 1 ? sums + (b * plan.pieces + i) * 2 * kPieceRows * kBlockK : sums;
          const int64_t n = min64(32, pieces[i].skip - pieces[i].q);
          pairs_multiply(block, halves, weights, plan.width * 32, n > 16 ? 2 : 1, source + pieces[i].x, 64, pass > 0,
                         sum);
          if (last)
            pairs_store_planar(p, finish, sum, bias, k_count, n,
                               at<bfloat16>(p.output, t.n, g * p.K + k, t.p0 + pieces[i].row, t.q0 + pieces[i].q));
        }
        for (int64_t e = 0; e < p.up_h; ++e)
          for (int64_t i = 0; !plan.planar && i < count; i += kPiecesAtOnce) {
            float* sum = plan.passes > 1 ? sums + ((b * p.up_h + e) * plan.pieces + i) * plan.piece_sums : sums;
            const bool two = kPiecesAtOnce == 2 && i + 1 < count;
            block.rows = pieces[i].rows;
            for (int64_t s = 0; s < p.up_w; ++s) {
              const Range of_residue = plan.trimmed ? pieces[i].steps : residues[e * p.up_w + s];
              block.steps = steps + of_residue.begin;
              block.step_count = of_residue.end - of_residue.begin;
              if (block.step_count > 0)
                pairs_multiply(block, 1 + two, source + pieces[i].x, two ? pieces[i + 1].x - pieces[i].x : 0, halves,
                               weights, plan.width * 32, pass > 0, sum + s * kBlockK);
              else
                for (int64_t row = 0; row < (1 + two) * block.rows; ++row)
                  zero(sum + row * block.sum_row + s * kBlockK, kBlockK);
            }
            if (last) write(i, e, sum);
          }
      }
    }
  });
}

// Eight channels a group, contiguous: in float32 it takes two thirds of the time that vectors of dot products do.
inline bool winograd_1d_is_faster(const ConvParams& p) {
  const bool serves = p.R == 3 && p.S == 3 && p.stride_h * p.stride_w == 1 && p.dilation_h * p.dilation_w == 1 &&
                      min64(p.pad_h, p.pad_w) >= 0 && max64(p.pad_h, p.pad_w) <= 2 && !spread(p);
  return kPiecesAtOnce == 1 && serves && p.C == 8 && p.K >= 4 && p.K <= 32;
}

struct PairsForward {
  using Plan = PairsPlan;
  // Of few channels a group most of a tile would be zeros.
  static bool preferred(const ConvParams& p) {
    if (spread(p) && p.C <= 8) return false;  // a step of several kernel columns serves the residues better
    const bool wide_groups = p.G == 1 || p.C >= 16 || (p.C >= 8 && p.input.c != 1 && !winograd_1d_is_faster(p));
    return p.K >= (kPiecesAtOnce == 2 ? 4 : 8) && p.C >= 2 && wide_groups;
  }
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (p.dtype != Dtype::kBFloat16 || !pairs_plan(p, plan)) return false;
    memory.packed = plan.prepack ? p.G * plan.k_blocks * plan.passes * plan.pass_weights : 0;
    memory.scratch = PairsScratch(p, plan, nullptr).total;
    return true;
  }
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    if (!plan.prepack) return;
    parallel_for(p.threads, p.G * plan.k_blocks * plan.passes, [&](int64_t item, int) {
      const int64_t pass = item % plan.passes, block = item / plan.passes, b0 = pass * plan.pass_blocks;
      pairs_pack(p, plan, block / plan.k_blocks, block % plan.k_blocks * kBlockK, b0,
                 min64(plan.pass_blocks, plan.c_blocks - b0), static_cast<char*>(packed) + item * plan.pass_weights);
    });
  }
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    pairs_forward(p, plan, static_cast<const char*>(packed), scratch);
  }
};

}  // namespace
}  // namespace fastconv
