// What the pairs kernel (pairs.h) moves before and after it multiplies: pairs of channels as words, weights into packs,
// input into scratch, results into the output.
#pragma once
#include "conv/pairs_plan.h"

namespace fastconv {
namespace {

// ---- moving bfloat16
// ------------------------------------------------------------------------------------------------

inline uint32_t first_words(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1; }
inline Words load_words(const void* p, uint32_t mask) { return bits_as<Words>(_mm512_maskz_loadu_epi16(mask, p)); }
inline void store_words(void* p, Words v, uint32_t mask) { _mm512_mask_storeu_epi16(p, mask, bits_as<__m512i>(v)); }
inline Words load_words(const void* p) { return bits_as<Words>(_mm512_loadu_si512(p)); }
inline void store_words(void* p, Words v) { _mm512_storeu_si512(p, bits_as<__m512i>(v)); }

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
  return zip_halves(bits_as<Words>(_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1)));
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
      const char* row = static_cast<const char*>(rows);
      if (count >= 16) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i, row += stride) v[i] = load_words(row, mask);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i, row += stride) v[i] = i < count ? load_words(row, mask) : Words{};
      }
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

}  // namespace
}  // namespace fastconv
