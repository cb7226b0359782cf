// Samples alone, added up over the taps: no weights but the mask. An item of work is a tile of neighbouring pixels of
// the output; an offset group at a time, whose plan stays in the first cache.
#pragma once
#include "deform/forward.h"

namespace fastconv {
namespace {

constexpr int64_t kSamplingPixels = 64;  // of a tile

template <class T>
struct DeformSampling {
  using A = Accumulate<T>;
  const DeformParams& p;
  const int64_t taps = p.R * p.S, pixels = p.P * p.Q, channels = p.C / p.offset_groups;
  const int64_t tile = min64(kSamplingPixels, pixels), row = round_up(channels, kLanes<A>);
  const int64_t plan_bytes = round_up(Plan<T>::bytes(p, Plan<T>::round(tile)), 64);
  A *copy, *sums;
  char* plans;

  DeformSampling(const DeformParams& params, Memory& memory) : p(params) {
    copy = memory.take<A>(p.channels_last ? 0 : p.H * p.W * p.C);
    sums = memory.take<A>(p.threads * tile * row);
    plans = memory.take<char>(p.threads * plan_bytes);
  }

  void run() const {
    const int64_t tiles = ceil_div(pixels, tile), images = p.channels_last ? p.N : 1;
    for (int64_t first = 0; first < p.N; first += images) {
      DeformImage<T> image = {p, copy, nullptr};
      if (!p.channels_last) image.take(first);
      compute_for(p.threads, images * tiles,
                  [&](int64_t item, int thread) { tile_of(image, first + item / tiles, item % tiles * tile, thread); });
    }
  }

 private:
  void tile_of(const DeformImage<T>& image, int64_t n, int64_t first, int thread) const {
    const int64_t count = min64(tile, pixels - first);
    const Plan<T> plan = {p, Plan<T>::round(tile), plans + thread * plan_bytes};
    plan.locate(first, count);
    T* output = static_cast<T*>(p.output) + n * p.C * pixels;
    A* sum = sums + thread * tile * row;
    for (int64_t g = 0; g < p.offset_groups; ++g) {
      plan.fill(n, g, first, count);
      if (p.channels_last)
        see_all(plan, static_cast<const T*>(p.input) + n * p.C * p.H * p.W + g * channels, p.C, channels, count, sum);
      else
        for (int64_t c = 0; c < channels;) {
          const int64_t channel = g * channels + c, some = min64(channels - c, image.end(channel) - channel);
          see_all(plan, image.channel(channel), image.pixel(channel), some, count, sum + c);
          c += some;
        }
      if (p.channels_last)
        for (int64_t i = 0; i < count; ++i)
          copy_row(output + (first + i) * p.C + g * channels, sum + i * row, channels);
      else
        transpose_block(output + g * channels * pixels + first, pixels, 1, sum, row, 1, count, channels);
    }
  }

  template <class E>
  void see_all(const Plan<T>& plan, const E* from, int64_t pixel, int64_t some, int64_t count, A* sum) const {
    each_vectors<A>(some, [&](auto v, int64_t c, int lanes) {
      for (int64_t i = 0; i < count; ++i) {
        Vec<A> seen[v()] = {};
        const Sample<A>* samples = plan.pixel(i);
        for (int64_t t = 0; t < taps; ++t) see<v()>(samples[t], from + c, pixel, lanes, seen);
        put_seen<v()>(sum + i * row + c, seen, lanes);
      }
    });
  }
};

}  // namespace
}  // namespace fastconv
