// Where the taps look: a plan for a few neighbouring pixels of the output, made once and used for all channels. Plans
// are made a vector of pixels at a time: with few channels to an offset group they would otherwise take as long as the
// rest.
//
// All taps of a pixel lie side by side in it, and are looked at one after the other: they see the same few pixels of
// the input, which the first cache keeps if the channels are few enough at a time.
#pragma once
#include <type_traits>

#include "core/move.h"
#include "deform/params.h"

namespace fastconv {
namespace {

// A tap of a pixel: four pixels of the input around it. Those outside of the input count nothing, and are read at the
// nearest one inside. Sixteen numbers, four of them unused: vectors of pixels are turned over into whole lines of
// memory. (Kept field by field and gathered into a struct for each sample, which a compiler copies by vectors before
// its numbers have left the store buffer, 64 channels at 180x320 in 8 offset groups took 131 ms on two threads of
// AVX-512, and took 75 so.)
template <class A>
struct Sample {
  using Int = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  static constexpr int kNumbers = 16, kUsed = 12;

  Int at[4];     // upper left, upper right, lower left, lower right: row * W + column
  A weight[4];   // of each, times the mask
  Int inside;    // which of these are: bits. None: nothing is read, so that a NaN there is nobody's
  A y, x, mask;  // how far down and to the right of the first; the mask
  A unused[kNumbers - kUsed];
};
static_assert(sizeof(Sample<float>) == Sample<float>::kNumbers * sizeof(float));

// The plan of an offset group for the pixels of a tile, of which there are at most `stride`.
template <class T>
struct Plan {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  using Int = typename Sample<A>::Int;

  const DeformParams& p;
  int64_t stride;
  char* memory;

  static int64_t round(int64_t pixels) { return round_up(pixels, 16); }
  static int64_t bytes(const DeformParams& p, int64_t stride) {
    return stride * (p.R * p.S * static_cast<int64_t>(sizeof(Sample<A>)) + 2 * static_cast<int64_t>(sizeof(A)));
  }

  // Every tap of pixel i.
  Sample<A>* pixel(int64_t i) const { return reinterpret_cast<Sample<A>*>(memory) + i * p.R * p.S; }
  // Row and column that tap (0, 0) of each pixel looks at without its offset.
  A* rows() const { return reinterpret_cast<A*>(pixel(stride)); }
  A* columns() const { return rows() + stride; }

  // Pixels [first, first + count).
  void locate(int64_t first, int64_t count) const {
    int64_t o = first / p.Q, q = first % p.Q;
    for (int64_t i = 0; i < stride; ++i) {
      rows()[i] = static_cast<A>(o * p.stride[0] - p.padding[0]);
      columns()[i] = static_cast<A>(q * p.stride[1] - p.padding[1]);
      if (i < count && ++q == p.Q) {
        q = 0;
        ++o;
      }
    }
  }

  // All taps of image n in offset group g. The pixels have been located.
  void fill(int64_t n, int64_t g, int64_t first, int64_t count) const {
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t s = 0; s < p.S; ++s) {
        const int64_t t = r * p.S + s, channel = g * p.R * p.S + t;
        const T* dy = element(p.offset, n, 2 * channel, first);
        const T* dx = element(p.offset, n, 2 * channel + 1, first);
        const T* mask = p.mask.data ? element(p.mask, n, channel, first) : nullptr;
        const A down = static_cast<A>(r * p.dilation[0]), right = static_cast<A>(s * p.dilation[1]);
        for (int64_t i = 0; i < count; i += L) {
          const int some = static_cast<int>(min64(L, count - i));
          const Vec<A> y = load(rows() + i) + down + load_strided(dy + i * p.offset.pixel, p.offset.pixel, some);
          const Vec<A> x = load(columns() + i) + right + load_strided(dx + i * p.offset.pixel, p.offset.pixel, some);
          const Vec<A> m = mask ? load_strided(mask + i * p.mask.pixel, p.mask.pixel, some) : splat(A{1});
          look_at(y, x, m, pixel(i) + t);
          // The next tile's: of hundreds of planes processors do not see them coming.
          __builtin_prefetch(dy + (count + i) * p.offset.pixel);
          __builtin_prefetch(dx + (count + i) * p.offset.pixel);
          if (mask) __builtin_prefetch(mask + (count + i) * p.mask.pixel);
        }
      }
  }

 private:
  static const T* element(const DeformMap& map, int64_t n, int64_t channel, int64_t pixel) {
    return static_cast<const T*>(map.data) + n * map.image + channel * map.channel + pixel * map.pixel;
  }

  static Vec<A> where(Vec<Int> holds, Vec<A> value) { return bits_as<Vec<A>>(bits_as<Vec<Int>>(value) & holds); }
  static Vec<Int> floor(Vec<A> v) {
    const Vec<Int> cut = __builtin_convertvector(v, Vec<Int>);
    return cut + bits_as<Vec<Int>>(__builtin_convertvector(cut, Vec<A>) > v);  // one less: a mask is -1
  }
  void look_at(Vec<A> y, Vec<A> x, Vec<A> mask, Sample<A>* to) const {
    const int64_t taps = p.R * p.S;
    const A H = static_cast<A>(p.H), W = static_cast<A>(p.W);
    const Vec<Int> counts = bits_as<Vec<Int>>(y >= -1) & bits_as<Vec<Int>>(y < H) & bits_as<Vec<Int>>(x >= -1) &
                            bits_as<Vec<Int>>(x < W);  // of NaN no comparison holds
    y = where(counts, y);
    x = where(counts, x);
    const Vec<Int> h = floor(y), w = floor(x);
    const Vec<A> below = y - __builtin_convertvector(h, Vec<A>), after = x - __builtin_convertvector(w, Vec<A>);
    const Int rows = static_cast<Int>(p.H), columns = static_cast<Int>(p.W);
    const Vec<Int> up = bits_as<Vec<Int>>(h >= 0), left = bits_as<Vec<Int>>(w >= 0);
    const Vec<Int> down = bits_as<Vec<Int>>(h + 1 < rows), right = bits_as<Vec<Int>>(w + 1 < columns);
    const Vec<Int> top = (h & up) * columns, bottom = (h - down) * columns;  // - down: one more where there is one
    const Vec<Int> first = w & left, last = w - right;
    const Vec<Int> inside[4] = {counts & up & left, counts & up & right, counts & down & left, counts & down & right};
    const Vec<A> share[4] = {(1 - below) * (1 - after), (1 - below) * after, below * (1 - after), below * after};
    const Vec<Int> at[4] = {top + first, top + last, bottom + first, bottom + last};
    Vec<A> numbers[Sample<A>::kNumbers] = {};  // in the order of Sample
    Vec<Int> bits = {};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      numbers[j] = bits_as<Vec<A>>(at[j]);
      numbers[4 + j] = where(inside[j], share[j] * mask);
      bits |= inside[j] & (1 << j);
    }
    numbers[8] = bits_as<Vec<A>>(bits);
    numbers[9] = below;
    numbers[10] = after;
    numbers[11] = mask;
#pragma GCC unroll 8
    for (int first = 0; first < Sample<A>::kUsed; first += L) {
      transpose<A>(numbers + first);
#pragma GCC unroll 16
      for (int o = 0; o < L; ++o) store(reinterpret_cast<A*>(to + o * taps) + first, numbers[first + o]);
    }
  }
};

// What a sample sees in V vectors of channels, which lie side by side in a map of `pixel` elements a pixel, is added to
// `sum`; of the last vector n lanes count.
template <int V, class A, class E>
inline void see(const Sample<A>& s, const E* map, int64_t pixel, int n, Vec<A>* sum) {
  constexpr int L = kLanes<A>;
  if (!s.inside) return;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const E* corner = map + s.at[j] * pixel;
    const Vec<A> weight = splat(s.weight[j]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      sum[v] += weight * (v + 1 == V && n < L ? load_partial(corner + v * L, n) : load(corner + v * L));
  }
}
template <int V, class A>
inline void put_seen(A* to, const Vec<A>* sum, int n) {
  constexpr int L = kLanes<A>;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    if (v + 1 == V && n < L)
      store_partial(to + v * L, sum[v], n);
    else
      store(to + v * L, sum[v]);
  }
}

// The same in half a vector of channels, which groups of 8 are with AVX-512: a masked vector of them, that begins in
// the middle of a line, would read two lines.
template <class A>
inline void put_half_seen(const Sample<A>& s, const A* map, int64_t pixel, A* to) {
  using Half = typename VecOf<A, kVecBytes / 2>::type;
  Half sum = {};
  if (s.inside) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Half corner;
      __builtin_memcpy(&corner, map + s.at[j] * pixel, sizeof corner);
      sum += s.weight[j] * corner;
    }
  }
  __builtin_memcpy(to, &sum, sizeof sum);
}

// Calls body(Constant<V>, first channel, lanes of the last vector) for all channels, up to four vectors at a time.
template <class A, class Body>
inline void each_vectors(int64_t channels, const Body& body) {
  constexpr int L = kLanes<A>;
  int64_t c = 0;
  for (; c + 4 * L <= channels; c += 4 * L) body(std::integral_constant<int, 4>{}, c, L);
  for (; c + 2 * L <= channels; c += 2 * L) body(std::integral_constant<int, 2>{}, c, L);
  for (; c + L <= channels; c += L) body(std::integral_constant<int, 1>{}, c, L);
  if (c < channels) body(std::integral_constant<int, 1>{}, c, static_cast<int>(channels - c));
}

}  // namespace
}  // namespace fastconv
