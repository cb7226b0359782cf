// Deformable convolution: samples times weights. No column buffer: an item of work is a tile of neighbouring pixels of
// the output, whose samples are taken a block of channels and taps at a time, a few dozen KB, and multiplied from
// there.
//
// Blocks of channels. An image is copied first, so that the pixels of 32 channels lie side by side, and a block is all
// taps of so many. What the taps of neighbouring pixels look at, 36 times a pixel, is then a small square of 128 bytes
// a pixel, which the first cache keeps; where pixels lie C elements apart it does not, because they share a few of its
// sets. (Two threads of AVX-512, kernels alone, contiguous, against blocks of two taps of 128 channels: 64 channels at
// 180x320 in 8 offset groups 73 ms and 49, 128 at 100x168 32 and 28, 512 at 25x42 32 and 27.)
#pragma once
#include "core/memory.h"
#include "core/parallel.h"
#include "deform/matmul.h"
#include "deform/samples.h"

namespace fastconv {
namespace {

constexpr int64_t kBlockSteps = 288;       // taps times channels: a column of weights stays in the first cache
constexpr int64_t kMapChannels = 32;       // of the copy of an image; of a block, if there are enough taps
constexpr int64_t kMostPixels = 108;       // of a tile: all weights are read once for each
constexpr int64_t kPlanBytes = 256 << 10;  // of a tile

// An image as samples read it: [C / kMapChannels][H * W][kMapChannels], the last of them narrower where C is no
// multiple; or, not copied, [H * W][C].
template <class T>
struct DeformImage {
  using A = Accumulate<T>;
  const DeformParams& p;
  A* copy;  // or null
  const A* data;

  // Whether it pays. A pixel that few samples look at does not: 128 channels at 200x336 in channels_last take as long
  // either way with a stride of 2. Images of 16 bits are widened by it.
  static bool copies(const DeformParams& p) {
    return !p.channels_last || !std::is_same<T, A>::value ||
           (p.C > kMapChannels && p.R * p.S * p.P * p.Q >= 4 * p.H * p.W);
  }
  static int64_t elements(const DeformParams& p) { return copies(p) ? p.H * p.W * p.C : 0; }

  // Channel c at the first pixel, elements from one pixel to the next, and the first channel that lies elsewhere.
  const A* channel(int64_t c) const { return data + (copy ? first(c) * p.H * p.W + c - first(c) : c); }
  int64_t pixel(int64_t c) const { return copy ? min64(kMapChannels, p.C - first(c)) : p.C; }
  int64_t end(int64_t c) const { return copy ? first(c) + kMapChannels : p.C; }

  void take(int64_t n) {
    const int64_t positions = p.H * p.W;
    const T* image = static_cast<const T*>(p.input) + n * p.C * positions;
    data = copy;
    if constexpr (std::is_same<T, A>::value)
      if (!copy) data = image;
    if (!copy) return;
    constexpr int64_t kEach = 64;  // pixels
    parallel_for(p.threads, ceil_div(positions, kEach), [&](int64_t item, int) {
      const int64_t from = item * kEach, count = min64(kEach, positions - from);
      for (int64_t c = 0; c < p.C; c += kMapChannels) {
        const int64_t width = pixel(c);
        A* to = copy + c * positions + from * width;
        if (p.channels_last)
          for (int64_t i = 0; i < count; ++i) copy_row(to + i * width, image + (from + i) * p.C + c, width);
        else
          transpose_block(to, width, 1, image + c * positions + from, positions, 1, width, count);
      }
    });
  }

 private:
  static int64_t first(int64_t c) { return c / kMapChannels * kMapChannels; }
};

// Taps [tap, tap + taps) of channels [channel, channel + channels) of a group.
struct Block {
  int64_t tap, taps, channel, channels;
  int64_t steps() const { return taps * channels; }
};

// The sums of a group are over channels, then taps, in these blocks: few channels, and all of their taps if there are
// not too many.
struct Blocked {
  int64_t taps, channels;
  int64_t most = min64(channels, max64(kMapChannels, kBlockSteps / taps / 16 * 16));  // channels of a block
  int64_t per_block = max64(1, min64(taps, kBlockSteps / most));                      // taps

  int64_t parts() const { return ceil_div(channels, most); }
  int64_t tap_parts() const { return ceil_div(taps, per_block); }
  int64_t count() const { return parts() * tap_parts(); }
  Block at(int64_t i) const {
    const int64_t channel = i / tap_parts() * most, tap = i % tap_parts() * per_block;
    return {tap, min64(per_block, taps - tap), channel, min64(most, channels - channel)};
  }
  int64_t first_step(const Block& b) const { return b.channel * taps + b.tap * b.channels; }
};

template <class T>
struct DeformForward {
  using A = Accumulate<T>;
  const DeformParams& p;
  const int64_t taps = p.R * p.S, C = p.C / p.groups, K = p.K / p.groups;  // of a group
  const int64_t per_offset = p.C / p.offset_groups;
  const int64_t padded = round_up(K, kTileColumns<A>);
  const int64_t pixels = p.P * p.Q, tile = tile_pixels();
  const Blocked blocked = {taps, C};
  const int64_t row = round_up(blocked.at(0).steps(), 16) + 16;  // of a block of samples
  A *weights, *blocks, *sums;
  A* copy;          // of an image
  int64_t* places;  // [threads, taps], of packed weights
  char* plans;

  DeformForward(const DeformParams& params, Memory& memory) : p(params) {
    weights = memory.take<A>(p.groups * taps * C * padded);
    places = memory.take<int64_t>(p.threads * taps);
    copy = memory.take<A>(DeformImage<T>::elements(p));
    blocks = memory.take<A>(p.threads * tile * row);
    sums = memory.take<A>(p.threads * tile * padded);
    plans = memory.take<char>(p.threads * plan_bytes());
  }

  int64_t tile_pixels() const {
    const int64_t plan = kPlanBytes / (p.R * p.S * static_cast<int64_t>(sizeof(Sample<A>)));
    const int64_t share = ceil_div(p.P * p.Q, p.threads), most = max64(1, min64(plan, kMostPixels));
    return min64(round_up(ceil_div(share, ceil_div(share, most)), kTileRows), p.P * p.Q);
  }

  void run() const {
    pack();
    for (int64_t n = 0; n < p.N; ++n) {
      DeformImage<T> image = {p, DeformImage<T>::copies(p) ? copy : nullptr, nullptr};
      image.take(n);
      compute_for(p.threads, ceil_div(pixels, tile), [&](int64_t item, int thread) {
        const int64_t first = item * tile;
        tile_of(image, n, first, min64(tile, pixels - first), thread);
      });
    }
  }

  int64_t plan_bytes() const { return round_up(Plan<T>::bytes(p, Plan<T>::round(tile)), 64); }

 private:
  // weights: [group][block][column of tiles][step][kTileColumns], zeros beyond K. Rows of output channels are read as
  // they lie, and turned over in registers.
  void pack() const {
    constexpr int L = kLanes<A>;
    const int64_t columns = padded / kTileColumns<A>, parts = blocked.parts();
    parallel_for(p.threads, p.groups * parts * columns, [&](int64_t item, int thread) {
      const int64_t column = item % columns, part = item / columns % parts, g = item / columns / parts;
      const Block b = blocked.at(part * blocked.tap_parts());
      A* group = weights + g * taps * C * padded;
      int64_t* place = places + thread * taps;
      for (int64_t i = 0; i < blocked.tap_parts(); ++i) {
        const Block of_taps = blocked.at(part * blocked.tap_parts() + i);
        const int64_t of_column = blocked.first_step(of_taps) * padded + column * of_taps.steps() * kTileColumns<A>;
        for (int64_t t = 0; t < of_taps.taps; ++t)
          place[of_taps.tap + t] = of_column + t * b.channels * kTileColumns<A>;
      }
      for (int64_t k = column * kTileColumns<A>; k < (column + 1) * kTileColumns<A>; k += L) {
        const int rows = static_cast<int>(between(K - k, L));
        const T* from = static_cast<const T*>(p.weight) + ((g * K + k) * C + b.channel) * taps;
        int64_t c = 0, t = 0;
        for (int64_t e = 0; e < b.channels * taps; e += L) {
          const int count = static_cast<int>(between(b.channels * taps - e, L));
          Vec<A> v[L];
          for (int i = 0; i < L; ++i)
            v[i] = i >= rows    ? Vec<A>{}
                   : count == L ? load(from + i * C * taps + e)
                                : load_partial(from + i * C * taps + e, count);
          transpose<A>(v);
          for (int i = 0; i < count; ++i) {
            store(group + place[t] + c * kTileColumns<A> + k % kTileColumns<A>, v[i]);
            if (++t == taps) {
              t = 0;
              ++c;
            }
          }
        }
      }
    });
  }
  static int64_t between(int64_t value, int64_t most) { return value < 0 ? 0 : min64(value, most); }

  void tile_of(const DeformImage<T>& image, int64_t n, int64_t first, int64_t count, int thread) const {
    const Plan<T> plan = {p, Plan<T>::round(tile), plans + thread * plan_bytes()};
    plan.locate(first, count);
    int64_t planned = -1;  // offset group
    A *block = blocks + thread * tile * row, *sum = sums + thread * tile * padded;
    for (int64_t g = 0; g < p.groups; ++g) {
      begin_sums(sum, g, count);
      for (int64_t i = 0; i < blocked.count(); ++i) {
        const Block b = blocked.at(i);
        for (int64_t c = 0; c < b.channels;) {
          const int64_t channel = g * C + b.channel + c, of_offset = channel / per_offset;
          const int64_t end = min64((of_offset + 1) * per_offset, image.end(channel));
          const int64_t some = min64(b.channels - c, end - channel);
          if (of_offset != planned) plan.fill(n, planned = of_offset, first, count);
          take_block(plan, image.channel(channel), image.pixel(channel), some, b, count, block + c);
          c += some;
        }
        Matrices<A> m = {block,
                         row,
                         1,
                         weights + g * taps * C * padded + blocked.first_step(b) * padded,
                         kTileColumns<A>,
                         sum,
                         padded,
                         b.steps(),
                         true};
        for (int64_t k = 0; k < padded; k += kTileColumns<A>) {
          multiply_column(m, count);
          m.b += b.steps() * kTileColumns<A>;
          m.c += kTileColumns<A>;
        }
      }
      finish(sum, n, g, first, count);
    }
  }

  // The samples of some of a block's channels, which belong to the plan's offset group and lie side by side at `from`:
  // a part of a row for each pixel.
  void take_block(const Plan<T>& plan, const A* from, int64_t pixel, int64_t channels, const Block& b, int64_t count,
                  A* block) const {
    if (kVecBytes == 64 && channels == kLanes<A> / 2) {
      for (int64_t i = 0; i < count; ++i) {
        const Sample<A>* samples = plan.pixel(i) + b.tap;
        A* to = block + i * row;
        for (int64_t t = 0; t < b.taps; ++t) put_half_seen(samples[t], from, pixel, to + t * b.channels);
      }
      return;
    }
    each_vectors<A>(channels, [&](auto v, int64_t c, int lanes) {
      for (int64_t i = 0; i < count; ++i) {
        const Sample<A>* samples = plan.pixel(i) + b.tap;
        A* to = block + i * row + c;
        for (int64_t t = 0; t < b.taps; ++t, to += b.channels) {
          Vec<A> seen[v()] = {};
          see<v()>(samples[t], from + c, pixel, lanes, seen);
          put_seen<v()>(to, seen, lanes);
        }
      }
    });
  }

  void begin_sums(A* sum, int64_t g, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      zero(sum + i * padded, padded);
      if (p.bias) copy_row(sum + i * padded, static_cast<const T*>(p.bias) + g * K, K);
    }
  }

  void finish(const A* sum, int64_t n, int64_t g, int64_t first, int64_t count) const {
    T* output = static_cast<T*>(p.output) + n * p.K * pixels;
    if (!p.channels_last) return transpose_block(output + g * K * pixels + first, pixels, 1, sum, padded, 1, count, K);
    for (int64_t i = 0; i < count; ++i) copy_row(output + (first + i) * p.K + g * K, sum + i * padded, K);
  }
};

}  // namespace
}  // namespace fastconv
