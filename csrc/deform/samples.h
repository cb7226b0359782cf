// Where the taps look: a plan for a few neighbouring pixels of the output, made once and used for all channels.
#pragma once
#include "core/move.h"
#include "deform/params.h"

namespace fastconv {
namespace {

// A tap of a pixel: four pixels of the input around it. Those outside of the input count nothing, and are read at the
// nearest one inside.
template <class A>
struct Sample {
  int32_t at[4];  // upper left, upper right, lower left, lower right: row * W + column
  A weight[4];    // of each, times the mask
  A y, x, mask;   // how far down and to the right of the first; the mask
  uint8_t inside[4];
  bool counts;  // whether any is inside: a NaN where nothing is read is nobody's
};

inline float round_down(float x) { return __builtin_floorf(x); }
inline double round_down(double x) { return __builtin_floor(x); }

template <class A>
Sample<A> sample_at(const DeformParams& p, A y, A x, A mask) {
  Sample<A> s = {};
  s.mask = mask;
  s.counts = y > -1 && x > -1 && y < static_cast<A>(p.H) && x < static_cast<A>(p.W);  // NaN does not
  if (!s.counts) return s;
  const A top = round_down(y), left = round_down(x);
  s.y = y - top;
  s.x = x - left;
  const int64_t h = static_cast<int64_t>(top), w = static_cast<int64_t>(left);
  const bool up = h >= 0, down = h + 1 < p.H, before = w >= 0, after = w + 1 < p.W;
  const int64_t first = (up ? h : 0) * p.W, second = (down ? h + 1 : h) * p.W;
  const int64_t one = before ? w : 0, two = after ? w + 1 : w;
  s.at[0] = static_cast<int32_t>(first + one);
  s.at[1] = static_cast<int32_t>(first + two);
  s.at[2] = static_cast<int32_t>(second + one);
  s.at[3] = static_cast<int32_t>(second + two);
  s.inside[0] = up && before;
  s.inside[1] = up && after;
  s.inside[2] = down && before;
  s.inside[3] = down && after;
  const A above = (1 - s.y) * mask, below = s.y * mask;
  s.weight[0] = s.inside[0] ? above * (1 - s.x) : 0;
  s.weight[1] = s.inside[1] ? above * s.x : 0;
  s.weight[2] = s.inside[2] ? below * (1 - s.x) : 0;
  s.weight[3] = s.inside[3] ? below * s.x : 0;
  return s;
}

template <class T>
inline const T* element(const DeformMap& map, int64_t n, int64_t channel, int64_t pixel) {
  return static_cast<const T*>(map.data) + n * map.image + channel * map.channel + pixel * map.pixel;
}

// The samples of pixels [first, first + count) of image n in offset group g: samples[tap * count + i].
template <class T>
void plan_samples(const DeformParams& p, int64_t n, int64_t g, int64_t first, int64_t count,
                  Sample<Accumulate<T>>* samples) {
  using A = Accumulate<T>;
  for (int64_t r = 0; r < p.R; ++r)
    for (int64_t s = 0; s < p.S; ++s) {
      const int64_t tap = r * p.S + s, channel = g * p.R * p.S + tap;
      const T* dy = element<T>(p.offset, n, 2 * channel, first);
      const T* dx = element<T>(p.offset, n, 2 * channel + 1, first);
      const T* mask = p.mask.data ? element<T>(p.mask, n, channel, first) : nullptr;
      int64_t o = first / p.Q, q = first % p.Q;
      for (int64_t i = 0; i < count; ++i) {
        const A y = static_cast<A>(o * p.stride[0] - p.padding[0] + r * p.dilation[0]) + get(dy + i * p.offset.pixel);
        const A x = static_cast<A>(q * p.stride[1] - p.padding[1] + s * p.dilation[1]) + get(dx + i * p.offset.pixel);
        samples[tap * count + i] = sample_at<A>(p, y, x, mask ? get(mask + i * p.mask.pixel) : A{1});
        if (++q == p.Q) {
          q = 0;
          ++o;
        }
      }
    }
}

// What a sample sees in `channels` channels, which lie side by side in a map of `pixel` elements a pixel.
template <class A, class E>
inline void take_sample(const Sample<A>& s, const E* map, int64_t pixel, int64_t channels, A* to) {
  constexpr int L = kLanes<A>;
  if (!s.counts) return zero(to, channels);
  const E* corner[4];
  Vec<A> weight[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    corner[i] = map + s.at[i] * pixel;
    weight[i] = splat(s.weight[i]);
  }
  int64_t c = 0;
  for (; c + L <= channels; c += L)
    store(to + c, weight[0] * load(corner[0] + c) + weight[1] * load(corner[1] + c) + weight[2] * load(corner[2] + c) +
                      weight[3] * load(corner[3] + c));
  if (c == channels) return;
  const int n = static_cast<int>(channels - c);
  Vec<A> sum = weight[0] * load_partial(corner[0] + c, n);
#pragma GCC unroll 3
  for (int i = 1; i < 4; ++i) sum += weight[i] * load_partial(corner[i] + c, n);
  store_partial(to + c, sum, n);
}

}  // namespace
}  // namespace fastconv
