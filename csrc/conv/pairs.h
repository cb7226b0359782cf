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
// They may be gathered from all of the kernel instead ("folded", pairs_fold.h).
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
#include "conv/pairs_fold.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

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

// ---- the kernel
// -------------------------------------------------------------------------------------------------------

struct Piece {
  int64_t x;                       // bytes from the input of the tile's first pixel
  int64_t row, q;                  // of the piece's first pixel
  int64_t skip;                    // pixels that the piece before has written; planar: where the row of pixels ends
  int64_t rows;                    // pixels
  Range steps = {};                // of its own, where the plan is trimmed
  Range taps_h = {}, taps_w = {};  // that these are of
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

inline Step pairs_step(const PairsPlan& plan, const Tap& tap) {
  return {plan.in_place ? 0 : static_cast<int32_t>(tap.offset * plan.pixel),
          static_cast<int32_t>(tap.index * plan.width * 64)};
}

// The steps of one block of channels whose every read is not padding; at least one.
inline int64_t pairs_steps(const ConvParams& p, const PairsPlan& plan, const Tile& t, Tap* taps, Step* steps) {
  const int64_t tile = plan.width * 64;  // both halves
  int64_t count = 0;
  if (!plan.thin) {
    count = live_taps(p, plan.g, t, taps);
    for (int64_t i = 0; i < count; ++i) steps[i] = pairs_step(plan, taps[i]);
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

// The same for each piece where the plan is trimmed, or all those that are multiplied at once.
inline void pairs_trimmed_steps(const ConvParams& p, const PairsPlan& plan, const Tile& t, Piece* pieces, int64_t count,
                                int64_t row_pieces, Step* steps) {
  int64_t step_count = 0;
  for (int64_t i = 0; i < count; i += kPiecesAtOnce) {
    Piece& piece = pieces[i];
    const Piece& last = pieces[min64(i + kPiecesAtOnce, count) - 1];
    const int64_t end = last.q + last.rows, rows = last.row + (end - 1) / plan.g.pitch - piece.row + 1;
    piece.taps_h = live_axis(t.p0 + piece.row, rows, p.R, p.stride_h, p.dilation_h, p.pad_h, p.H);
    piece.taps_w = live_columns(p, t.q0 + (rows == 1 ? piece.q : 0), t.q0 + (rows == 1 ? end : t.columns));
    const auto same = [&](int64_t other) {
      const Range &h = pieces[other].taps_h, &w = pieces[other].taps_w;
      return h.begin == piece.taps_h.begin && h.end == piece.taps_h.end && w.begin == piece.taps_w.begin &&
             w.end == piece.taps_w.end;
    };
    const int64_t above = row_pieces % kPiecesAtOnce == 0 ? i - row_pieces : -1;
    if (i > 0 && same(i - kPiecesAtOnce)) {
      piece.steps = pieces[i - kPiecesAtOnce].steps;
    } else if (above >= 0 && same(above)) {
      piece.steps = pieces[above].steps;
    } else {
      piece.steps.begin = step_count;
      for (int64_t r = piece.taps_h.begin; r < piece.taps_h.end; ++r)
        for (int64_t s = piece.taps_w.begin; s < piece.taps_w.end; ++s)
          steps[step_count++] = pairs_step(plan, tap_of(p, plan.g, r, s));
      piece.steps.end = step_count;
    }
  }
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
        steps[count++] =
            pairs_step(plan, spread_tap(p, base, plan.g, h.order[rows.begin + i], w.order[columns.begin + j]));
      }
    residues[e].end = count;
  }
}

inline void pairs_forward(const ConvParams& given, const PairsPlan& plan, const char* packed, void* scratch) {
  const ConvParams p = plan.folded ? folded_params(given) : given;
  PairsScratch memory(p, plan, scratch);
  const ConvParams base = spread_base(p);
  const Finish<bfloat16> finish(p);
  memory.h.sort(p.R, p.up_h, p.dilation_h, p.pad_h);
  memory.w.sort(p.S, p.up_w, p.dilation_w, p.pad_w);
  padded_bias<bfloat16>(p, plan.k_blocks * kBlockK, memory.bias);
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles;
  Segment segments[kMostSegments];
  const int64_t segment_count = plan.cut ? tap_segments(p, segments) : 1;
  compute_for(p.threads, pairs_items(p, plan), [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    char* x = carve.take<char>(plan.x_bytes);
    float* sums = carve.take<float>(plan.sum_bytes / 4);
    char* own_weights = carve.take<char>(plan.weight_bytes);
    Piece* pieces = carve.take<Piece>(plan.pieces);
    Tap* taps = carve.take<Tap>(p.R * p.S);
    Step* steps = carve.take<Step>(pairs_step_room(p, plan));
    Range* residues = carve.take<Range>(p.up_h * p.up_w);  // the steps of each
    const WorkItem work = work_item(item, tiles, p.G, p.N);
    const int64_t first_block = work.split * plan.k_range;
    const int64_t k_blocks = min64(plan.k_range, plan.k_blocks - first_block);
    const Tile t = make_tile(base, plan.g, work.n, work.tile);
    const Tile out = spread_tile(p, t);
    const int64_t g = work.g;

    const int64_t pitch = plan.folded ? t.columns : plan.g.pitch;
    // Bytes from a pixel, a row and a block of channels to the next.
    const int64_t step = plan.in_place ? p.stride_w * p.input.w * 2 : plan.thin ? p.stride_w * plan.pixel : plan.pixel;
    const int64_t row_step = plan.in_place ? p.stride_h * p.input.h * 2 : pitch * plan.pixel;
    const bool joined = joins_rows(plan, t.rows, t.columns);
    const int64_t length = joined ? (t.rows - 1) * pitch + t.columns : t.columns;
    const Pieces of_row(length);
    int64_t count = 0;
    if (plan.planar) {
      // Thirty-two pixels, of all rows in one where they adjoin in the output.
      const bool one = t.columns == pitch && p.output.h == t.columns;
      for (int64_t row = 0; row < (one ? 1 : t.rows); ++row)
        for (int64_t q = 0; q < (one ? t.rows * t.columns : t.columns); q += 32)
          pieces[count++] = {(row * pitch + q) * 4, row, q, one ? t.rows * t.columns : t.columns, of_row.rows};
    }
    int64_t row_pieces = 0;
    for (int64_t row = 0; !plan.planar && row < (joined ? 1 : t.rows); ++row) {
      for (int64_t j = 0; j < segment_count; ++j) {
        const Range columns = plan.cut ? segments[j].columns : Range{0, length};
        const Pieces of_segment(columns.end - columns.begin);
        for (int64_t i = 0; i < of_segment.count; ++i, ++count) {
          const int64_t q = min64(columns.begin + i * of_segment.rows, columns.end - of_segment.rows);
          Piece& piece = pieces[count];
          piece.x = row * row_step + q * step;
          piece.row = joined ? q / pitch : row;
          piece.q = joined ? q % pitch : q;
          piece.skip = columns.begin + i * of_segment.rows - q;
          piece.rows = of_segment.rows;
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
    else if (plan.trimmed)
      pairs_trimmed_steps(p, plan, t, pieces, count, row_pieces, steps);
    else
      residues[0] = {0, pairs_steps(p, plan, t, taps, steps)};
    block.steps = steps;
    block.step_count = plan.trimmed ? 0 : residues[0].end;
    const Tiles configured(block);
    FoldedTile folded(given, plan, x);

    for (int64_t pass = 0; pass < plan.passes; ++pass) {
      const int64_t b0 = pass * plan.pass_blocks;
      block.blocks = min64(plan.pass_blocks, plan.c_blocks - b0);
      const int64_t c0 = g * p.C + (plan.thin ? 0 : b0 * plan.width);
      const int64_t channels = plan.thin ? p.C : min64(block.blocks * plan.width, p.C - b0 * plan.width);
      const char* source = x;
      if (plan.folded)
        folded.fill(t, g);
      else if (plan.in_place)
        source =
            reinterpret_cast<const char*>(at<const bfloat16>(p.input, t.n, c0, t.p0 * p.stride_h, t.q0 * p.stride_w));
      else if (plan.thin)
        pairs_fill(thin_params(p), plan, thin_geometry(plan.g, p.stride_w), thin_tile(t, p.stride_w), c0, channels, x);
      else
        pairs_fill(base, plan, plan.g, t, c0, channels, x);
      const bool last = pass == plan.passes - 1;
      for (Range strip = {0, count}; strip.begin < count; strip = {strip.end, count}) {
        if (plan.folded) {
          strip.end = min64(count, strip.begin + plan.strip);
          const int64_t bytes = plan.planar ? 4 : plan.pixel, first = pieces[strip.begin].x / bytes;
          const int64_t last = pieces[strip.end - 1].x / bytes + (plan.planar ? 32 : of_row.rows);
          source = folded.strip(first, min64(last, t.rows * t.columns));
        }
        for (int64_t b = 0; b < k_blocks; ++b) {
          const int64_t k = (first_block + b) * kBlockK, k_count = min64(kBlockK, p.K - k);
          const char* weights =
              packed + ((g * plan.k_blocks + first_block + b) * plan.passes + pass) * plan.pass_weights;
          if (!plan.prepack) {
            pairs_pack_any(given, plan, g, k, b0, block.blocks, own_weights);
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
                const int64_t on = joined ? min64(left, pitch - q) : left;
                done += on;
                q = 0;
                ++row;
              }
            }
          };
          for (int64_t i = strip.begin; plan.planar && i < strip.end; ++i) {
            float* sum = plan.passes > 1 ? sums + (b * plan.pieces + i) * 2 * kPieceRows * kBlockK : sums;
            const int64_t n = min64(32, pieces[i].skip - pieces[i].q);
            pairs_multiply(block, halves, weights, plan.width * 32, n > 16 ? 2 : 1, source + pieces[i].x, 64, pass > 0,
                           sum);
            if (last)
              pairs_store_planar(p, finish, sum, bias, k_count, n,
                                 at<bfloat16>(p.output, t.n, g * p.K + k, t.p0 + pieces[i].row, t.q0 + pieces[i].q));
          }
          for (int64_t e = 0; e < p.up_h; ++e)
            for (int64_t i = strip.begin; !plan.planar && i < strip.end; i += kPiecesAtOnce) {
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
    }
  });
}

struct PairsForward {
  using Plan = PairsPlan;
  // Of few channels a group most of a tile would be zeros.
  static bool preferred(const ConvParams& p) {
    if (spread(p) && p.C <= 8) return false;  // a step of several kernel columns serves the residues better
    // Of 8 channels a group, channels_last, AMX's tiles are half empty and still ahead: 256 at 28x28, two threads, 0.30
    // ms by `winograd_1d`, 0.23 by this; of stride 2 at 56x56 0.42 and 0.34.
    const bool layout = kPiecesAtOnce == 2 || p.input.c != 1;
    const bool wide_groups = p.G == 1 || p.C >= 16 || (p.C >= 8 && layout);
    // AMX multiplies so fast that even tiles of which a few columns are used are ahead, unless a contiguous input would
    // have to be transposed for few multiplications. (64 to 3 channels, two threads, against `pixel`: 4x4 of stride 2
    // at 32x32, transposed, 0.25 -> 0.08 ms; 3x3 at 56x56 0.30 -> 0.16, contiguous 0.24 -> 0.17, but of 16 channels
    // 0.07 -> 0.10.)
    const bool few =
        kPiecesAtOnce == 2 && p.G == 1 && p.C >= 8 && (p.input.c == 1 || spread(p) || (p.R * p.S > 1 && p.C >= 32));
    return (p.K >= (kPiecesAtOnce == 2 ? 4 : 8) || few) && p.C >= 2 && wide_groups;
  }
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (p.dtype != Dtype::kBFloat16 || !pairs_plan(p, plan)) return false;
    memory.packed = plan.prepack ? p.G * plan.k_blocks * plan.passes * plan.pass_weights : 0;
    memory.scratch = PairsScratch(plan.folded ? folded_params(p) : p, plan, nullptr).total;
    return true;
  }
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    if (!plan.prepack) return;
    compute_for(p.threads, p.G * plan.k_blocks * plan.passes, [&](int64_t item, int) {
      const int64_t pass = item % plan.passes, block = item / plan.passes, b0 = pass * plan.pass_blocks;
      pairs_pack_any(p, plan, block / plan.k_blocks, block % plan.k_blocks * kBlockK, b0,
                     min64(plan.pass_blocks, plan.c_blocks - b0),
                     static_cast<char*>(packed) + item * plan.pass_weights);
    });
  }
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    pairs_forward(p, plan, static_cast<const char*>(packed), scratch);
  }
};

}  // namespace
}  // namespace fastconv
