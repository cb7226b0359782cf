// The register tile of `channel` (channel.h), whose products Winograd's are as well (winograd.h): pixels by vectors of
// output channels, over taps and input channels.
#pragma once
#include "conv/channel_plan.h"

namespace fastconv {
namespace {

// The taps of one register tile: `rows` kernel rows of `columns` taps each, the first at `first`; `pitch` taps from one
// kernel row to the next.
struct TapGrid {
  const Tap* first;
  int64_t rows, columns, pitch;
};

// Whether the L channels of a tap are written out, one after the other. A loop over them ends after 8 turns of AVX2, of
// six cycles each, and what it costs to end and begin again is then a fifth of it; so is what fetches ahead, which
// takes turns with loads. Where the core has another thread to serve, which one does not see in a virtual machine,
// every instruction that is not a product counts twice. (One thread, float32, in turn, on an EPYC with AVX2: Winograd's
// products of 3x3, 64 at 56x56, channels_last, 2.2 -> 1.8 ms; 512 to 1024 at 19x19, rate 6, contiguous, 51 -> 45; 5x5,
// 96 to 256 at 27x27 in 2 groups, channels_last, 10.1 -> 7.0; 2x2 of stride 2, 1024 to 512 at 28x28, 94 -> 72.)
constexpr bool kWritesOut = kVecBytes < kCacheLine;

// Adds the products of one tap's L channels: pixels[i / kNear][i % kNear * pixel] is where the i-th pixel is.
template <class A, int KV, int PX, Source From>
inline __attribute__((always_inline)) void channel_written_out(const A* from, int64_t pixel, const A* weight,
                                                               Vec<A> (&sum)[PX][KV]) {
  constexpr int L = kLanes<A>, kNear = From == Source::kPacked ? PX : 3, kFar = (PX + kNear - 1) / kNear;
  const A* pixels[kFar];
#pragma GCC unroll 8
  for (int i = 0; i < kFar; ++i) pixels[i] = from + i * kNear * pixel;
#pragma GCC unroll 8
  for (int c = 0; c < L; ++c) {
    Vec<A> b[KV];
#pragma GCC unroll 4
    for (int v = 0; v < KV; ++v) b[v] = load(weight + (c * KV + v) * L);
#pragma GCC unroll 16
    for (int i = 0; i < PX; ++i) {
      const Vec<A> value = splat(pixels[i / kNear][i % kNear * pixel]);
#pragma GCC unroll 4
      for (int v = 0; v < KV; ++v) add_product(sum[i][v], value, b[v]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kFar; ++i) {
      ++pixels[i];
      if (From != Source::kPacked) settle_pointer(pixels[i]);
    }
  }
}

// One register tile: PX consecutive pixels by KV vectors of output channels, over `channels` input channels. Starts
// from bias where it is given; else what acc holds is added at the end, when it has had time to come. (It comes from
// afar where there are many passes: rate 12, 2048 to 256 channels at 33x33, channels_last, AVX2, 133 -> 113 ms.)
// w[c / L][tap][c % L][KV * L]; at least one channel and one tap. Where `finish` is given, acc is the output.
template <class A, int KV, int PX, Source From>
void channel_micro(const A* x, int64_t x_channel, int64_t x_pixel, int64_t channels, TapGrid taps, const A* w,
                   int64_t w_block, const A* bias, A* acc, int64_t acc_stride, const Finish<A>* finish) {
  constexpr int L = kLanes<A>;
  constexpr bool kOut = kWritesOut && From != Source::kPlanes;
  const int64_t pixel = From == Source::kPacked ? L : From == Source::kPlanes ? 1 : x_pixel;
  const int64_t channel = From == Source::kPlanes ? x_channel : 1;
  Vec<A> sum[PX][KV];
#pragma GCC unroll 16
  for (int i = 0; i < PX; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < KV; ++v) sum[i][v] = bias ? load(bias + v * L) : Vec<A>{};
  // The lines of the output that are about to be read or written are fetched, those of a pixel with each channel. (On
  // an EPYC, 2 threads, channels_last: 1x1, 64 to 256 at 56x56 0.57 -> 0.50 ms; 16 to 96 at 112x112 0.43 -> 0.28; 3x3,
  // 3 to 64 at 224x224 1.6 -> 0.96, where all of them before the first channel gave 1.15. Where channels are written
  // out there are few, fetched at once.)
  const A* line = acc;
  int lines = finish || !bias ? PX : 0;
  const auto fetch_line = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int v = 0; v < KV; ++v)
      if (v * kVecBytes % kCacheLine == 0) __builtin_prefetch(line + v * L, 1);
    line += acc_stride;
    --lines;
  };
  // Loops that run at least once: with a way around them the compiler keeps the sums in memory at their end. (Those
  // that are written out may have one: add_product() holds the sums where they are.)
  int64_t c0 = 0;
  if constexpr (kOut) {
    while (lines > 0) fetch_line();
    for (; c0 + L <= channels; c0 += L) {
      const Tap* tap = taps.first;
      const Tap* const end = tap + taps.rows * taps.pitch;
      do {
        const Tap* const row_end = tap + taps.columns;
        int64_t beside = -1;  // where a tap that reads the pixels beside those of the last one reads
        do {
          const A* from = x + tap->offset * pixel;
          if (From == Source::kPacked && tap->offset != beside) {  // the next channels of those pixels
            const char* ahead = reinterpret_cast<const char*>(from + L * x_channel);
#pragma GCC unroll 16
            for (int i = 0; i < (PX + 1) * kVecBytes; i += kCacheLine) __builtin_prefetch(ahead + i);
          }
          beside = tap->offset + int64_t{1};
          channel_written_out<A, KV, PX, From>(from, pixel, w + tap->index * int64_t{L * KV * L}, sum);
        } while (++tap != row_end);
        tap += taps.pitch - taps.columns;
      } while (tap != end);
      x += L * x_channel;
      w += w_block;
    }
  }
  if (!kOut || c0 < channels) {
    do {
      const int64_t n = min64(L, channels - c0);
      const Tap* tap = taps.first;
      const Tap* const end = tap + taps.rows * taps.pitch;
      do {
        const Tap* const row_end = tap + taps.columns;
        do {
          const A* from = x + static_cast<int64_t>(tap->offset) * pixel;
          const A* ahead = From == Source::kPacked ? from + L * x_channel : from + L;
          const A* weight = w + static_cast<int64_t>(tap->index) * (L * KV * L);
          const A* weight_end = weight + n * KV * L;
          do {
            Vec<A> b[KV];
#pragma GCC unroll 4
            for (int v = 0; v < KV; ++v) {
              b[v] = load(weight + v * L);
              if (v * kVecBytes % kCacheLine == 0)
                __builtin_prefetch(reinterpret_cast<const char*>(weight + v * L) + kWeightsAhead);
            }
#pragma GCC unroll 16
            for (int i = 0; i < PX; ++i) {
              const Vec<A> value = splat(from[i * pixel]);
#pragma GCC unroll 4
              for (int v = 0; v < KV; ++v) add_product(sum[i][v], value, b[v]);
            }
            if (From != Source::kPlanes) {  // the next channels of one pixel after the other
              __builtin_prefetch(ahead);
              ahead += pixel;
            }
            if (lines > 0) fetch_line();
            from += channel;
            weight += KV * L;
          } while (weight != weight_end);
        } while (++tap != row_end);
        tap += taps.pitch - taps.columns;
      } while (tap != end);
      x += L * x_channel;
      w += w_block;
      c0 += L;
    } while (c0 < channels);
  }
  if (!bias) {
#pragma GCC unroll 16
    for (int i = 0; i < PX; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < KV; ++v) sum[i][v] += load(acc + i * acc_stride + v * L);
  }
  if (finish) {
#pragma GCC unroll 16
    for (int i = 0; i < PX; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < KV; ++v) finish->store(acc + i * acc_stride + v * L, sum[i][v]);
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < PX; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < KV; ++v) store(acc + i * acc_stride + v * L, sum[i][v]);
}

template <class A>
using ChannelMicro = void (*)(const A*, int64_t, int64_t, int64_t, TapGrid, const A*, int64_t, const A*, A*, int64_t,
                              const Finish<A>*);

template <class A, int KV, Source From, int... I>
ChannelMicro<A> channel_micro_of(int pixels, std::integer_sequence<int, I...>) {
  static const ChannelMicro<A> kTable[] = {channel_micro<A, KV, I + 1, From>...};
  return kTable[pixels - 1];
}

template <class A, int KV>
ChannelMicro<A> channel_micro_of(Source from, int pixels) {
  using Pixels = std::make_integer_sequence<int, channel_pixels(KV)>;
  return from == Source::kPacked   ? channel_micro_of<A, KV, Source::kPacked>(pixels, Pixels{})
         : from == Source::kPlanes ? channel_micro_of<A, KV, Source::kPlanes>(pixels, Pixels{})
                                   : channel_micro_of<A, KV, Source::kPixels>(pixels, Pixels{});
}

template <class A>
ChannelMicro<A> channel_micro_of(int kv, Source from, int pixels) {
  return kv == 1   ? channel_micro_of<A, 1>(from, pixels)
         : kv == 2 ? channel_micro_of<A, 2>(from, pixels)
                   : channel_micro_of<A, 3>(from, pixels);
}

}  // namespace
}  // namespace fastconv
