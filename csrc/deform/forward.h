// Deformable convolution: samples times weights. No column buffer: an item of work is a tile of neighbouring pixels of
// the output, whose samples are taken a block of taps and channels at a time, a few dozen KB, and multiplied from
// there. Contiguous input is turned over first, an image at a time, because a sample reads the same pixel of all
// channels.
#pragma once
#include "core/memory.h"
#include "core/parallel.h"
#include "deform/matmul.h"
#include "deform/samples.h"

namespace fastconv {
namespace {

constexpr int64_t kBlockSteps = 256;       // taps times channels: a column of weights stays in the first cache
constexpr int64_t kMostPixels = 108;       // of a tile: all weights are read once for each
constexpr int64_t kPlanBytes = 256 << 10;  // of a tile

// An image [C, H, W] to [H, W, C].
template <class T, class A>
inline void turn(const DeformParams& p, const T* image, A* map) {
  constexpr int64_t kEach = 64;  // pixels
  const int64_t positions = p.H * p.W;
  parallel_for(p.threads, ceil_div(positions, kEach), [&](int64_t item, int) {
    const int64_t first = item * kEach, count = min64(kEach, positions - first);
    transpose_block(map + first * p.C, p.C, 1, image + first, positions, 1, p.C, count);
  });
}

// Taps [tap, tap + taps) of channels [channel, channel + channels) of a group: all channels, or a part of one tap.
struct Block {
  int64_t tap, taps, channel, channels;
  int64_t steps() const { return taps * channels; }
};

// The sums of a group are over taps, then channels; in these blocks.
struct Blocked {
  int64_t taps, channels;

  int64_t per_block() const { return channels <= kBlockSteps ? min64(taps, kBlockSteps / channels) : 1; }
  int64_t parts() const { return ceil_div(channels, kBlockSteps); }
  int64_t count() const { return ceil_div(taps, per_block()) * parts(); }
  Block at(int64_t i) const {
    const int64_t tap = i / parts() * per_block(), channel = i % parts() * kBlockSteps;
    return {tap, min64(per_block(), taps - tap), channel, min64(kBlockSteps, channels - channel)};
  }
  int64_t first_step(int64_t i) const { return at(i).tap * channels + at(i).channel * at(i).taps; }
};

template <class T>
struct DeformForward {
  using A = Accumulate<T>;
  const DeformParams& p;
  const int64_t taps = p.R * p.S, C = p.C / p.groups, K = p.K / p.groups;  // of a group
  const int64_t padded = round_up(K, kTileColumns<A>);
  const int64_t pixels = p.P * p.Q, tile = tile_pixels();
  const int64_t row = round_up(min64(kBlockSteps, taps* C), 16) + 16;  // of a block of samples
  const Blocked blocked = {taps, C};
  A *weights, *map, *blocks, *sums;
  int64_t* places;  // [threads, taps], of packed weights
  char* plans;

  DeformForward(const DeformParams& params, Memory& memory) : p(params) {
    weights = memory.take<A>(p.groups * taps * C * padded);
    places = memory.take<int64_t>(p.threads * taps);
    map = memory.take<A>(p.channels_last ? 0 : p.H * p.W * p.C);
    blocks = memory.take<A>(p.threads * tile * row);
    sums = memory.take<A>(p.threads * tile * padded);
    plans = memory.take<char>(p.threads * p.offset_groups * plan_bytes());
  }

  int64_t tile_pixels() const {
    const int64_t plan = kPlanBytes / (p.R * p.S * p.offset_groups * static_cast<int64_t>(sizeof(Sample<A>)));
    const int64_t share = ceil_div(p.P * p.Q, p.threads), most = max64(1, min64(plan, kMostPixels));
    return min64(round_up(ceil_div(share, ceil_div(share, most)), kTileRows), p.P * p.Q);
  }

  void run() const {
    pack();
    for (int64_t n = 0; n < p.N; ++n) {
      const T* image = static_cast<const T*>(p.input) + n * p.C * p.H * p.W;
      if (!p.channels_last) turn(p, image, map);
      compute_for(p.threads, ceil_div(pixels, tile), [&](int64_t item, int thread) {
        const int64_t first = item * tile, count = min64(tile, pixels - first);
        if (p.channels_last)
          tile_of(image, n, first, count, thread);
        else
          tile_of(map, n, first, count, thread);
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
      const Block b = blocked.at(part);
      A* group = weights + g * taps * C * padded;
      int64_t* place = places + thread * taps;
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t block = t / blocked.per_block() * parts + part, steps = blocked.at(block).steps();
        const int64_t of_column = blocked.first_step(block) * padded + column * steps * kTileColumns<A>;
        place[t] = of_column + t % blocked.per_block() * b.channels * kTileColumns<A>;
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

  template <class E>
  void tile_of(const E* image, int64_t n, int64_t first, int64_t count, int thread) const {
    char* memory = plans + thread * p.offset_groups * plan_bytes();
    for (int64_t g = 0; g < p.offset_groups; ++g) {
      const Plan<T> plan = plan_of(memory, g);
      plan.locate(first, count);
      plan.fill(n, g, first, count);
    }
    A *block = blocks + thread * tile * row, *sum = sums + thread * tile * padded;
    for (int64_t g = 0; g < p.groups; ++g) {
      begin_sums(sum, g, count);
      for (int64_t i = 0; i < blocked.count(); ++i) {
        const Block b = blocked.at(i);
        take_block(memory, image, g * C, b, count, block);
        Matrices<A> m = {block,
                         row,
                         1,
                         weights + g * taps * C * padded + blocked.first_step(i) * padded,
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

  Plan<T> plan_of(char* memory, int64_t g) const { return {p, Plan<T>::round(tile), memory + g * plan_bytes()}; }

  // The samples of a block, a row for each pixel.
  template <class E>
  void take_block(char* memory, const E* image, int64_t from, const Block& b, int64_t count, A* block) const {
    const int64_t of_group = p.C / p.offset_groups;
    for (int64_t c = 0; c < b.channels;) {  // taps of the same channels look at the same lines of memory
      const int64_t channel = from + b.channel + c, g = channel / of_group;
      const int64_t some = min64(b.channels - c, (g + 1) * of_group - channel);
      for (int64_t t = 0; t < b.taps; ++t) {
        const Sample<A>* samples = plan_of(memory, g).tap(b.tap + t);
        for (int64_t i = 0; i < count; ++i)
          see_channels(
              1, [&](int64_t) -> const Sample<A>& { return samples[i]; }, image + channel, p.C, some,
              block + i * row + t * b.channels + c);
      }
      c += some;
    }
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
