// Folding, for the pairs kernel (pairs.h). An AMX step takes 32 values of a pixel however many there are, and
// where there are few input channels a row of the kernel has fewer: 9 of a 3x3 kernel on an image of three channels. So
// all values that a pixel reads, (channel, row, column) of the kernel, are gathered in scratch, and the rest is a 1x1
// convolution of that many channels: 27 in one step instead of three. They are gathered a strip of pixels at a time,
// which is multiplied while the first-level cache has it. (3x3, 3 to 64 at 224x224, two threads: contiguous 1.3 -> 0.65
// ms, channels_last 0.97 -> 0.72.) Dot products take any number of pairs, but a row of three channels has four, of
// which one is zeros: 14 pairs instead of 18. (The same layer on a Zen 4, channels_last, one thread 1.39 -> 1.24 ms.)
//
// Input goes through two copies. The first takes the rows of a tile with their padding, as they lie in memory, so that
// the second knows no edges. That one has two ways:
//   planes  of a contiguous input, multiplied the planar way: values are (c, r, s), and a pair of them is two rows of
//           the first copy, shifted against each other and zipped;
//   lines   of a channels_last input: values are (r, s, c), what a pixel reads of one row adjoins, and a pixel's values
//           are as many runs as the kernel has rows.
#pragma once
#include "conv/pairs_move.h"

namespace fastconv {
namespace {

// Values [begin, end) of a row and zeros around them, `length` in all. More may be written: what comes after is written
// later.
inline void fold_row(const bfloat16* from, int64_t step, int64_t begin, int64_t end, int64_t length, uint16_t* to) {
  for (int64_t i = 0; i < begin; i += 32) store_words(to + i, Words{});
  int64_t i = begin;
  for (; step == 1 && i + 32 <= end; i += 32, from += 32) store_words(to + i, load_words(from));
  for (; i < end; i += 16, from += 16 * step)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), load_row(from, step, min64(16, end - i)));
  for (i = end; i < length; i += 32) store_words(to + i, Words{});
}

// A tile of the input with its padding, and strips of pixels made of it.
class FoldedTile {
 public:
  FoldedTile(const ConvParams& p, const PairsPlan& plan, char* scratch)
      : p_(p),
        plan_(plan),
        g_(plan.folded ? fold_geometry(p, plan) : plan.g),
        rows_(reinterpret_cast<uint16_t*>(scratch) + 32),
        x_(scratch + fold_bytes(p, plan)) {
    if (!plan.folded) return;
    int64_t count = 0;
    for (int64_t c = 0; plan.planar && c < p.C; ++c)
      for (int64_t r = 0; r < p.R; ++r)
        for (int64_t s = 0; s < p.S; ++s) offsets_[count++] = c * g_.channel + tap_of(p, g_, r, s).offset;
    for (; plan.planar && count < plan.c_blocks * plan.width; ++count) offsets_[count] = 0;
    const int64_t run = p.S * p.C, values = p.R * run;
    first_part_[0] = 0;
    for (int64_t line = 0; !plan.planar && line < plan.c_blocks; ++line) {
      const int64_t begin = line * 32, end = min64(begin + 32, values);
      for (int64_t r = begin / run; r * run < end; ++r) {
        const uint32_t words =
            first_words(min64(end, (r + 1) * run) - begin) & ~first_words(max64(begin, r * run) - begin);
        parts_[count++] = {tap_of(p, g_, r, 0).offset * p.C + begin - r * run, words};
      }
      first_part_[line + 1] = count;
    }
  }

  // The first copy, of group g: [channel][position] or [position][channel].
  void fill(const Tile& t, int64_t g) {
    columns_ = t.columns;
    if (plan_.planar) {
      for (int64_t c = 0; c < p_.C; ++c)
        for_each_row(p_, g_, t, [&](int64_t position, int64_t h, int64_t w, int64_t begin, int64_t end) {
          const bfloat16* from = begin < end ? at<const bfloat16>(p_.input, t.n, g * p_.C + c, h, w) : nullptr;
          fold_row(from, p_.stride_w * p_.input.w, begin, end, g_.pitch, rows_ + c * g_.channel + position);
        });
      return;
    }
    for_each_row(thin_params(p_), thin_geometry(g_, p_.stride_w), thin_tile(t, p_.stride_w),
                 [&](int64_t position, int64_t h, int64_t w, int64_t begin, int64_t end) {
                   const int64_t n = p_.C;
                   uint16_t* to = rows_ + position * n;
                   const bfloat16* from = begin < end ? at<const bfloat16>(p_.input, t.n, g * n, h, w) : nullptr;
                   if (p_.input.w == n) return fold_row(from, 1, begin * n, end * n, g_.pitch * n, to);
                   fold_row(nullptr, 1, begin * n, begin * n, g_.pitch * n, to);
                   for (int64_t i = begin; i < end; ++i, from += p_.input.w)
                     for (int64_t c = 0; c < n; ++c) to[i * n + c] = from[c].bits;
                 });
  }

  // The second, of pixels [begin, end) of the tile, whose rows adjoin. Where pixel 0 would then lie.
  const char* strip(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / columns_, q = i % columns_, count = min64(columns_ - q, end - i);
      const uint16_t* from = rows_ + row * g_.pitch * (plan_.planar ? 1 : p_.C);
      if (plan_.planar)
        planes(from + q, count, x_ + (i - begin) * 4);
      else
        lines(from + q * p_.stride_w * p_.C, count, x_ + (i - begin) * plan_.pixel);
      i += count;
    }
    return x_ - begin * (plan_.planar ? 4 : plan_.pixel);
  }

 private:
  struct Part {
    int64_t offset;  // of what comes, or would come, into the first word
    uint32_t words;
  };

  void planes(const uint16_t* from, int64_t count, char* x) const {
    const int64_t values = p_.C * p_.R * p_.S;
    const int64_t* value = offsets_;
    const auto load = [](const uint16_t* row) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)); };
    for (int64_t block = 0; block < plan_.c_blocks; ++block) {
      char* to = x + block * plan_.block_bytes;
      for (int64_t i = 0; i < plan_.width; i += 2, value += 2, to += plan_.pair_bytes) {
        const uint16_t *first = from + value[0], *second = from + value[1];
        if (value + 1 < offsets_ + values)
          for (int64_t q = 0; q < count; q += 16) store_words(to + q * 4, pair_rows(load(first + q), load(second + q)));
        else
          for (int64_t q = 0; q < count; q += 16)
            store_words(to + q * 4, pair_rows(value < offsets_ + values ? load(first + q) : __m256i{}, __m256i{}));
      }
    }
  }

  // Each cache line is blended from the runs that it has a part of, so that it is written once and whole.
  void lines(const uint16_t* from, int64_t count, char* to) const {
    for (int64_t line = 0; line < plan_.c_blocks; ++line, to += 64) {
      const Part* parts = parts_ + first_part_[line];
      switch (first_part_[line + 1] - first_part_[line]) {
        case 1: line_of<1>(from, count, parts, to); break;
        case 2: line_of<2>(from, count, parts, to); break;
        case 3: line_of<3>(from, count, parts, to); break;
        default:
          for (int64_t q = 0; q < count; ++q) {
            __m512i v = _mm512_setzero_si512();
            for (int64_t i = first_part_[line]; i < first_part_[line + 1]; ++i)
              v = _mm512_mask_loadu_epi16(v, parts_[i].words, from + q * p_.stride_w * p_.C + parts_[i].offset);
            _mm512_store_si512(to + q * plan_.pixel, v);
          }
      }
    }
  }

  template <int Parts>
  void line_of(const uint16_t* from, int64_t count, const Part* parts, char* to) const {
    const int64_t step = p_.stride_w * p_.C, pixel = plan_.pixel;
    Part own[Parts];  // in registers
    for (int i = 0; i < Parts; ++i) own[i] = parts[i];
    for (int64_t q = 0; q < count; ++q, from += step, to += pixel) {
      __m512i v = _mm512_setzero_si512();
#pragma GCC unroll 3
      for (int i = 0; i < Parts; ++i) v = _mm512_mask_loadu_epi16(v, own[i].words, from + own[i].offset);
      _mm512_store_si512(to, v);
    }
  }

  const ConvParams& p_;
  const PairsPlan& plan_;
  const Geometry g_;
  uint16_t* rows_;
  char* x_;
  int64_t columns_;
  int64_t offsets_[kMostFolded + 32];  // planes: of the values of a pixel
  // Lines: parts of each.
  Part parts_[kMostFolded + kMostFolded / 32];
  int64_t first_part_[kMostFolded / 32 + 1];
};

// ---- packing weights
// ------------------------------------------------------------------------------------------------

// As pairs_pack, but for folded weights as well, which are first gathered where they do not lie in that order.
inline void pairs_pack_any(const ConvParams& p, const PairsPlan& plan, int64_t g, int64_t k0, int64_t b0,
                           int64_t blocks, char* to) {
  if (!plan.folded) return pairs_pack(p, plan, g, k0, b0, blocks, to);
  const View4& w = p.weight;
  const int64_t taps = p.R * p.S, kn = min64(kBlockK, p.K - k0);
  bfloat16* from = at<bfloat16>(w, k0, 0, 0, 0) + g * p.weight_g;
  ConvParams q = folded_params(p);
  q.K = kn;
  q.weight = {from, w.n, 1, 0, 0};
  alignas(64) bfloat16 gathered[kBlockK][kMostFolded];
  const bool adjoin =
      plan.planar ? w.w == 1 && w.h == p.S && w.c == taps : pairs_row_adjoins(p, p.C) && w.h == p.S * p.C;
  if (!adjoin) {
    for (int64_t k = 0; k < kn; ++k)
      for (int64_t r = 0; r < p.R; ++r)
        for (int64_t s = 0; s < p.S; ++s)
          for (int64_t c = 0; c < p.C; ++c)
            gathered[k][plan.planar ? c * taps + r * p.S + s : (r * p.S + s) * p.C + c] =
                from[k * w.n + c * w.c + r * w.h + s * w.w];
    q.weight = {gathered, kMostFolded, 1, 0, 0};
  }
  pairs_pack(q, plan, 0, 0, b0, blocks, to);
}

}  // namespace
}  // namespace fastconv
