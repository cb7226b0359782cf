// The order of work of regions of interest: which thread does which boxes and channels, and in what layout it sees the
// map. A `Kernel` does one box for a few channels (mean.h, largest.h).
//
// Forward, channels_last: an item is a box. Forward, contiguous: an item is a block of channels of an image, whose map
// is turned over first (channels.h), and every box of that image. Backward, both (of means; for maxima see largest.h):
// an item is a block of channels of an image and every box of it in their order, so that no two threads write to one
// place, and sums do not depend on how many there are.
#pragma once
#include "roi/mean.h"

namespace fastconv {
namespace {

template <class A>
inline int block_vectors(const RoiParams& p) {
  const int64_t positions = p.H * p.W, width = kPixelBytes / static_cast<int64_t>(sizeof(A));
  if (!p.channels_last) {
    const double reads = static_cast<double>(p.K * p.P * p.Q) * kReadsOfBin;
    if (reads < kReadsToTurn * static_cast<double>(p.N * positions) || positions * kVecBytes > kMostBlockBytes)
      return kOne;
  }
  if (positions * kPixelBytes > kMostBlockBytes) return 1;
  return p.N * ceil_div(p.C, width) < p.threads ? 1 : kBlock;
}

// Sums may lose denormal numbers, what is moved or compared may not.
template <class Kernel>
using ModeOf = std::conditional_t<Kernel::kTracks, AsItIs, FlushDenormals>;

// What a thread has to itself: the turned map of a block, and the bins of a box.
template <class A>
struct Own {
  A* map;
  A* values;
  int32_t* ids;
};
template <class A>
struct OwnOf {
  int64_t map_count, value_count;
  A* maps;
  A* values;
  int32_t* ids;

  OwnOf(const RoiParams& p, int vectors, bool needs_map, bool tracks, Memory& memory) {
    const int64_t width = vectors == kOne ? 1 : vectors * kLanes<A>;
    map_count = needs_map ? round_up(p.H * p.W * width, 64) : 0;
    value_count = vectors == kOne || p.channels_last ? 0 : round_up(p.P * p.Q * width, 64);
    maps = memory.take<A>(p.threads * map_count);
    values = memory.take<A>(p.threads * value_count);
    ids = memory.take<int32_t>(tracks ? p.threads * value_count : 0);
  }
  Own<A> of(int thread) const {
    return {maps + thread * map_count, values + thread * value_count, ids + thread * value_count};
  }
};

template <class T, class Kernel>
struct ForwardPass {
  using A = Accumulate<T>;
  const RoiParams& p;
  const Boxes<A>& boxes;
  const Kernel& kernel;
  const OwnOf<A>& own;
  int vectors;

  const T* input() const { return static_cast<const T*>(p.input); }
  T* output() const { return static_cast<T*>(p.output); }
  int64_t bins() const { return p.P * p.Q; }

  void by_box() const {
    const Blocks<A> blocks = {p.C, kBlock};
    parallel_for<ModeOf<Kernel>>(p.threads, p.K, [&](int64_t k, int thread) {
      for (int64_t i = 0; i < blocks.count(); ++i)
        blocks.with(i, [&](auto v, int64_t c, int n) {
          const int64_t to = k * bins() * p.C + c;
          kernel.template run<v()>(BoxCall<const T, T>{p, k, input() + boxes.image(k) * p.H * p.W * p.C + c, p.C,
                                                       output() + to, p.ids ? p.ids + to : nullptr, p.C, n, thread});
        });
    });
  }

  void by_block() const {
    const Blocks<A> blocks = {p.C, vectors};
    const int64_t positions = p.H * p.W;
    parallel_for<ModeOf<Kernel>>(p.threads, p.N * blocks.count(), [&](int64_t item, int thread) {
      const int64_t n = item / blocks.count();
      if (boxes.first[n] == boxes.first[n + 1]) return;
      blocks.with(item % blocks.count(), [&](auto v, int64_t c, int channels) {
        const T* planes = input() + (n * p.C + c) * positions;
        if constexpr (v() == kOne) {
          boxes.each(n, [&](int64_t k) {
            const int64_t to = (k * p.C + c) * bins();
            kernel.template run<kOne>(
                BoxCall<const T, T>{p, k, planes, 1, output() + to, p.ids ? p.ids + to : nullptr, 1, 1, thread});
          });
        } else {
          constexpr int V = v() == kPart ? 1 : v(), kWidth = Channels<A, V>::kCount;
          const Own<A> mine = own.of(thread);
          if (channels < kWidth) zero(mine.map, positions * kWidth);
          to_pixels(mine.map, kWidth, planes, positions, positions, channels);
          boxes.each(n, [&](int64_t k) {
            const int64_t to = (k * p.C + c) * bins();
            kernel.template run<V>(BoxCall<const A, A>{p, k, mine.map, kWidth, mine.values, p.ids ? mine.ids : nullptr,
                                                       kWidth, kWidth, thread});
            from_pixels(output() + to, bins(), mine.values, kWidth, bins(), channels);
            if (p.ids)  // moved as if they were numbers
              from_pixels(reinterpret_cast<float*>(p.ids + to), bins(), reinterpret_cast<const float*>(mine.ids),
                          kWidth, bins(), channels);
          });
        }
      });
    });
  }
};

template <class T>
struct BackwardPass {
  using A = Accumulate<T>;
  const RoiParams& p;
  const Boxes<A>& boxes;
  const Mean<A>& kernel;
  const OwnOf<A>& own;
  int vectors;

  static constexpr bool kDirect = std::is_same<T, A>::value;  // sums can be made where they belong
  static bool needs_map(const RoiParams& p, int vectors) { return !kDirect || !(p.channels_last || vectors == kOne); }
  int64_t bins() const { return p.P * p.Q; }

  void run() const {
    const Blocks<A> blocks = {p.C, vectors};
    compute_for(p.threads, p.N * blocks.count(), [&](int64_t item, int thread) {
      const int64_t n = item / blocks.count();
      blocks.with(item % blocks.count(), [&](auto v, int64_t c, int channels) {
        if (p.channels_last)
          pixels<v()>(n, c, channels, thread);
        else
          planes<v()>(n, c, channels, thread);
      });
    });
  }

  template <int V>
  void pixels(int64_t n, int64_t c, int channels, int thread) const {
    T* map = static_cast<T*>(p.input) + n * p.H * p.W * p.C + c;
    const int64_t positions = p.H * p.W, width = Channels<A, V>::kCount;
    A* sums = nullptr;
    if constexpr (kDirect) {
      sums = map;
      for (int64_t i = 0; i < positions; ++i) zero(map + i * p.C, channels);
    } else {
      sums = own.of(thread).map;
      zero(sums, positions * width);
    }
    const int64_t pixel = kDirect ? p.C : width;
    boxes.each(n, [&](int64_t k) {
      const int64_t from = k * bins() * p.C + c;
      kernel.template spread<V>(BoxCall<A, const T>{p, k, sums, pixel, static_cast<const T*>(p.output) + from, nullptr,
                                                    p.C, channels, thread});
    });
    if constexpr (!kDirect)
      for (int64_t i = 0; i < positions; ++i) copy_row(map + i * p.C, sums + i * width, channels);
  }

  template <int V>
  void planes(int64_t n, int64_t c, int channels, int thread) const {
    const int64_t positions = p.H * p.W;
    T* map = static_cast<T*>(p.input) + (n * p.C + c) * positions;
    const T* grads = static_cast<const T*>(p.output);
    const Own<A> mine = own.of(thread);
    if constexpr (V == kOne) {
      A* sums = nullptr;
      if constexpr (kDirect)
        sums = map;
      else
        sums = mine.map;
      zero(sums, positions);
      boxes.each(n, [&](int64_t k) {
        const int64_t from = (k * p.C + c) * bins();
        kernel.template spread<kOne>(BoxCall<A, const T>{p, k, sums, 1, grads + from, nullptr, 1, 1, thread});
      });
      if constexpr (!kDirect) copy_row(map, sums, positions);
    } else {
      constexpr int kVectors = V == kPart ? 1 : V, kWidth = Channels<A, kVectors>::kCount;
      zero(mine.map, positions * kWidth);
      if (channels < kWidth) zero(mine.values, bins() * kWidth);
      boxes.each(n, [&](int64_t k) {
        to_pixels(mine.values, kWidth, grads + (k * p.C + c) * bins(), bins(), bins(), channels);
        kernel.template spread<kVectors>(
            BoxCall<A, const A>{p, k, mine.map, kWidth, mine.values, nullptr, kWidth, kWidth, thread});
      });
      from_pixels(map, positions, mine.map, kWidth, positions, channels);
    }
  }
};

}  // namespace
}  // namespace fastconv
