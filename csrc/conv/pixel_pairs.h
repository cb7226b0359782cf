// Convolution of bfloat16 by AVX512_BF16's dot products with vectors along the pixels: the register tiles of pixel.h,
// of which an element is a pair of input channels. The kernel beside it, pairs.h, has its vectors along the output
// channels, so contiguous tensors are transposed on their way in and out, and groups of few channels leave lanes empty.
// Here two planes are zipped on the way in, and a group needs a few output channels to share what is loaded, not a
// vector of them. All of a sum is in registers at once, and every tile reads all weights, so these must be few.
#pragma once
#include "conv/pairs_move.h"
#include "conv/pixel.h"

namespace fastconv {
namespace {

constexpr int64_t kPixelPairsWeights = 512 << 10;  // bytes of a group's: they stay in the second-level cache
constexpr int64_t kPixelPairsTaps = 1024;

struct Pairs {
  using A = float;
  using X = uint32_t;
  static void add(Vec<float>& sum, Words weight, Words x) {
    sum = _mm512_dpbf16_ps(sum, bits_as<__m512bh>(weight), bits_as<__m512bh>(x));
  }
};

// The same layer with a pair of channels for a channel, as plans and register tiles see it.
inline ConvParams pairs_params(const ConvParams& p) {
  ConvParams q = p;
  q.C = ceil_div(p.C, 2);
  return q;
}

// Sixteen elements each of two rows, `step` apart, as [element][row]; of those that are not in `lanes` nothing is
// touched. The second row may be null: zeros.
inline Words load_pairs(const bfloat16* first, const bfloat16* second, int64_t step, uint32_t lanes) {
  if (step == 1) {
    const auto row = [&](const bfloat16* p) { return _mm256_maskz_loadu_epi16(static_cast<__mmask16>(lanes), p); };
    return pair_rows(row(first), second ? row(second) : _mm256_setzero_si256());
  }
  const auto low_halves = [&](const bfloat16* p) {
    if (step == 2) return load_words(p, _pdep_u32(lanes, 0x55555555));
    Words v = {};
    for (int i = 0; i < 16; ++i)
      if (lanes >> i & 1) v[i] = p[i * step].bits;
    return v;
  };
  return low_halves(first) | (second ? low_halves(second) << 16 : Words{});
}

// Channels of `groups` groups from channel c0 on into x[pair][position], `channel` words each; where C is odd the last
// pair of a group has a zero. Whole vectors are written: what is too much is overwritten, or lies behind the planes.
inline void fill_pairs(const ConvParams& p, const Geometry& g, const Tile& t, int64_t c0, int64_t groups,
                       int64_t channel, uint32_t* x) {
  const int64_t step = p.stride_w * p.input.w, pairs = ceil_div(p.C, 2) * groups, channels = p.C * groups;
  for_each_row(p, g, t, [&](int64_t position, int64_t h, int64_t w, int64_t begin, int64_t end) {
    const bfloat16* from = begin < end ? at<const bfloat16>(p.input, t.n, c0, h, w) - begin * step : nullptr;
    for (int64_t i = 0; i < g.pitch; i += 16, from += from ? 16 * step : 0) {
      const int64_t first = max64(0, min64(begin - i, 16)), last = max64(first, min64(end - i, 16));
      const uint32_t lanes = ((1u << last) - 1) & ~((1u << first) - 1);
      uint32_t* to = x + position + i;
      if (lanes == 0) {
        for (int64_t pair = 0; pair < pairs; ++pair) store_words(to + pair * channel, Words{});
      } else if (p.input.c == 1) {
        for (int64_t c = 0; c < channels; c += 32) {
          Words v[16];
#pragma GCC unroll 16
          for (int j = 0; j < 16; ++j)
            v[j] = lanes >> j & 1 ? load_words(from + j * step + c, first_words(channels - c)) : Words{};
          interleave<16>(v);
          for (int64_t j = 0; j < min64(16, pairs - c / 2); ++j) store_words(to + (c / 2 + j) * channel, v[j]);
        }
      } else {
        const bfloat16* source = from;
        for (int64_t group = 0; group < groups; ++group, source += p.C * p.input.c)
          for (int64_t c = 0; c < p.C; c += 2, to += channel) {
            const bfloat16* pair = source + c * p.input.c;
            store_words(to, load_pairs(pair, c + 1 < p.C ? pair + p.input.c : nullptr, step, lanes));
          }
      }
    }
  });
}

// What output channel `from` points to has of `channels` input channels, as row[pair][tap]; up to a vector more is
// written.
inline void zip_weights(const ConvParams& p, const bfloat16* from, int64_t channels, uint32_t* row) {
  const int64_t taps = p.R * p.S;
  const View4& w = p.weight;
  if (taps == 1 && w.c == 1) {
    for (int64_t c = 0; c < channels; c += 32)
      store_words(row + c / 2, load_words(from + c, first_words(channels - c)));
  } else if (taps > 1 && taps <= 16 && w.w == 1 && (p.R == 1 || w.h == p.S)) {
    const auto mask = static_cast<__mmask16>(first_words(taps));
    for (int64_t c = 0; c < channels; c += 2, row += taps) {
      const bfloat16* one = from + c * w.c;
      store_words(row,
                  pair_rows(_mm256_maskz_loadu_epi16(mask, one),
                            c + 1 < channels ? _mm256_maskz_loadu_epi16(mask, one + w.c) : _mm256_setzero_si256()));
    }
  } else {
    for (int64_t c = 0; c < channels; c += 2)
      for (int64_t r = 0; r < p.R; ++r)
        for (int64_t s = 0; s < p.S; ++s, ++row) {
          const bfloat16* one = from + c * w.c + r * w.h + s * w.w;
          *row = one->bits | (c + 1 < channels ? static_cast<uint32_t>(one[w.c].bits) << 16 : 0);
        }
  }
}

// rows[k][i] as to[i][k], KB rows of `count` words, `pitch` words apart.
template <int KB>
void interleave_rows(const uint32_t* rows, int64_t pitch, int64_t count, uint32_t* to) {
  for (int64_t i = 0; i < count; i += 16, to += 16 * KB) {
    Words v[KB];
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k) v[k] = load(rows + k * pitch + i);
    interleave<KB>(v);
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k) {
      const int64_t left = max64(0, min64(16, (count - i) * KB - k * 16));
      _mm512_mask_storeu_epi32(to + k * 16, static_cast<__mmask16>(first_words(left)), bits_as<__m512i>(v[k]));
    }
  }
}

// weights[g][k / KB][pair][tap][k % KB], padded with zeros.
inline void pixel_pairs_pack(const ConvParams& p, const PixelPlan& plan, uint32_t* weights) {
  constexpr int64_t kMost = 2 * kPixelPairsTaps, kPitch = kMost + 16;  // words of a row at a time
  const int64_t taps = p.R * p.S, all = ceil_div(p.C, 2), blocks = plan.k_padded / plan.kb;
  compute_for(p.threads, p.G * blocks, [&](int64_t item, int) {
    alignas(64) uint32_t rows[8 * kPitch];
    const int64_t g = item / blocks, k0 = item % blocks * plan.kb;
    uint32_t* to = weights + item * plan.kb * all * taps;
    for (int64_t pair = 0, pairs; pair < all; pair += pairs, to += pairs * taps * plan.kb) {
      pairs = min64(kMost / taps, all - pair);
      for (int64_t k = 0; k < plan.kb; ++k)
        if (k0 + k < p.K)
          zip_weights(p, at<const bfloat16>(p.weight, k0 + k, 2 * pair, 0, 0) + g * p.weight_g,
                      min64(2 * pairs, p.C - 2 * pair), rows + k * kPitch);
        else
          __builtin_memset(rows + k * kPitch, 0, static_cast<size_t>(pairs * taps) * sizeof *rows);
      switch (plan.kb) {
        case 1: interleave_rows<1>(rows, kPitch, pairs * taps, to); break;
        case 2: interleave_rows<2>(rows, kPitch, pairs * taps, to); break;
        case 4: interleave_rows<4>(rows, kPitch, pairs * taps, to); break;
        default: interleave_rows<8>(rows, kPitch, pairs * taps, to);
      }
    }
  });
}

struct PixelPairsForward {
  using Plan = PixelPlan;
  // Against `pairs`, one thread of a Zen 4, us by it and by this: groups of few channels (4 a group, 128@56 in
  // channels_last 441 and 272; 8 a group of stride 2, 256@56 457 and 289), vectors of output channels that would be
  // partly empty (3x3, 64 to 8@56 300 and 170; 24@56 in 2 groups 128 and 110; less so for 1x1 in channels_last, 72 to
  // 24@56 82 and 89), contiguous 1x1 layers whose weights stay in the first level (96 to 24@56 128 and 104; but 512 to
  // 128@28 509 and 523) and contiguous pictures (3x3, 3 to 64@224 1714 and 1505; but of stride 2 218 and 234).
  static bool preferred(const ConvParams& p) {
    if (kPiecesAtOnce > 1 || p.C < 2 || p.K < 4) return false;
    if (p.G > 1 && p.C <= 8) return true;
    const bool planar = p.input.c != 1 && p.output.c != 1, pixel = p.R * p.S == 1;
    const double filled = static_cast<double>(round_up(p.K, 16)) / static_cast<double>(round_up(p.K, pixel_block(p.K)));
    if (filled >= (planar || !pixel ? 1.2 : 1.4)) return true;
    return planar && p.stride_h == 1 && p.stride_w == 1 && (pixel ? p.C * p.K <= 32768 : p.C <= 4);
  }
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (p.dtype != Dtype::kBFloat16 || spread(p)) return false;
    // Adjoining pairs of channels must not reach from one group into the next.
    if ((p.input.c == 1 && p.G > 1 && p.C % 2 != 0) || p.R * p.S > kPixelPairsTaps) return false;
    const ConvParams q = pairs_params(p);
    if (q.C * p.R * p.S * p.K * 4 > kPixelPairsWeights || !pixel_plan<float>(q, plan)) return false;
    memory.packed = pixel_packed_bytes<float>(q, plan);
    memory.scratch = PixelScratch<float>(q, plan, nullptr).total;
    return true;
  }
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    pixel_pairs_pack(p, plan, static_cast<uint32_t*>(packed));
  }
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    pixel_forward<bfloat16, Pairs>(pairs_params(p), plan, packed, scratch,
                                   [&](const Tile& t, int64_t g, int64_t groups, uint32_t* x) {
                                     fill_pairs(p, plan.g, t, g * p.C, groups, plan.x_channel, x);
                                   });
  }
};

}  // namespace
}  // namespace fastconv
