// Position-sensitive means: bin (p, q) of channel c of the output looks at channel (c * P + p) * Q + q of the input,
// and no other does.
//
// So the channels of one bin share its rows and columns, but lie P * Q apart, planes or elements of a pixel. They are
// brought side by side first (channels.h): an item of work is a bin, a block of channels and every box of an image. In
// channels_last a line of memory holds a channel of each of many bins, and an item has as many bins as a vector has
// lanes, so that lines are read once. (1029 channels at 38x50, 300 boxes of 7x7, two threads, AVX-512: channel by
// channel, as few boxes still are done, means of samples took 11.4 ms forward and 8.4 backward, 21.5 and 17.9 in
// channels_last; now 2.3 and 1.9, 3.0 and 5.1.)
#pragma once
#include "roi/bins.h"
#include "roi/channels.h"

namespace fastconv {
namespace {

template <class T>
struct PositionSensitive {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  static constexpr bool kDirect = std::is_same<T, A>::value;  // sums can be made where they belong

  const RoiParams& p;
  const Boxes<A>& boxes;
  int64_t positions, bins;
  int vectors;
  int64_t group;  // bins of an item of work
  int64_t map_count;
  A* maps;  // [threads, group, H * W, block of channels]

  PositionSensitive(const RoiParams& params, const Boxes<A>& all, bool backward, Memory& memory)
      : p(params), boxes(all), positions(p.H * p.W), bins(p.P * p.Q) {
    const int64_t width = round_up(min64(p.channels, kBlock * L), L), bytes = positions * width * sizeof(A);
    const double reads = static_cast<double>(p.K * p.channels) * kReadsOfBin;
    const bool turns = bytes <= kMostBlockBytes && reads >= kReadsToTurn * static_cast<double>(p.N * positions * width);
    vectors = turns ? kBlock : kOne;
    group = turns && p.channels_last ? max64(1, min64(L, kMostBlockBytes / max64(bytes, 1))) : 1;
    const bool needs_map = turns || (backward && !kDirect);
    map_count = needs_map ? round_up(group * positions * (turns ? width : 1), 64) : 0;
    maps = memory.take<A>(p.threads * map_count);
  }

  void forward() const {
    each_item([&](auto v, const Item& item) { forward_item<v()>(item); });
  }
  void backward() const {
    each_item([&](auto v, const Item& item) { backward_item<v()>(item); });
  }

 private:
  struct Item {
    int64_t n;
    Range bins;
    int64_t c;
    int channels, thread;
  };

  template <class Body>
  void each_item(const Body& body) const {
    const Blocks<A> blocks = {p.channels, vectors};
    const int64_t groups = ceil_div(bins, group), items = groups * blocks.count();
    compute_for(p.threads, p.N * items, [&](int64_t i, int thread) {
      const int64_t first = i % items / blocks.count() * group;
      blocks.with(i % blocks.count(), [&](auto v, int64_t c, int channels) {
        const Item item = {i / items, {first, min64(first + group, bins)}, c, channels, thread};
        body(Constant<v() == kPart ? 1 : v()>{}, item);
      });
    });
  }

  template <int V>
  void forward_item(const Item& item) const {
    if (boxes.first[item.n] == boxes.first[item.n + 1]) return;
    if constexpr (V == kOne) {
      each_bin(item, [&](const Bin& bin) { put(values(bin), bin.template sum<kOne>(input(item), pixel(), 1).v[0]); });
    } else {
      constexpr int kWidth = Channels<A, V>::kCount;
      A* turned = maps + item.thread * map_count;
      turn(turned, kWidth, item);
      each_bin(item, [&](const Bin& bin) {
        const A* map = turned + (bin.index - item.bins.begin) * positions * kWidth;
        const auto sum = bin.template sum<V>(map, kWidth, kWidth);
        for (int i = 0; i * L < item.channels; ++i)
          store_strided(values(bin) + i * L * step(), step(), sum.v[i], lanes(item, i));
      });
    }
  }

  template <int V>
  void backward_item(const Item& item) const {
    if constexpr (V == kOne) {
      T* to = input(item);
      const int64_t pixel = this->pixel();
      if constexpr (kDirect) {
        for (int64_t i = 0; i < positions; ++i) to[i * pixel] = 0;
        each_bin(item, [&](const Bin& bin) { bin.template add<kOne>(to, pixel, {{get(values(bin))}}); });
      } else {
        A* sums = maps + item.thread * map_count;
        zero(sums, positions);
        each_bin(item, [&](const Bin& bin) { bin.template add<kOne>(sums, 1, {{get(values(bin))}}); });
        for (int64_t i = 0; i < positions; ++i) put(to + i * pixel, sums[i]);
      }
    } else {
      constexpr int kWidth = Channels<A, V>::kCount;
      A* turned = maps + item.thread * map_count;
      zero(turned, (item.bins.end - item.bins.begin) * positions * kWidth);
      each_bin(item, [&](const Bin& bin) {
        auto grad = Channels<A, V>::zeros();
        for (int i = 0; i * L < item.channels; ++i)
          grad.v[i] = load_strided(values(bin) + i * L * step(), step(), lanes(item, i));
        bin.template add<V>(turned + (bin.index - item.bins.begin) * positions * kWidth, kWidth, grad);
      });
      turn_back(turned, kWidth, item);
    }
  }

  // Of the input: the first channel of an item at the first pixel.
  T* input(const Item& item) const {
    const int64_t channel = item.c * bins + item.bins.begin;
    return static_cast<T*>(p.input) +
           (p.channels_last ? item.n * positions * p.C + channel : (item.n * p.C + channel) * positions);
  }
  int64_t pixel() const { return p.channels_last ? p.C : 1; }

  void turn(A* to, int64_t width, const Item& item) const {
    const int64_t count = item.bins.end - item.bins.begin;
    const T* from = input(item);
    if (item.channels < width) zero(to, count * positions * width);
    if (!p.channels_last) return to_pixels(to, width, from, bins * positions, positions, item.channels);
    for (int64_t i = 0; i < positions; ++i)
      transpose_block(to + i * width, positions * width, 1, from + i * p.C, bins, 1, item.channels, count);
  }
  void turn_back(const A* from, int64_t width, const Item& item) const {
    const int64_t count = item.bins.end - item.bins.begin;
    T* to = input(item);
    if (!p.channels_last) return from_pixels(to, bins * positions, from, width, positions, item.channels);
    for (int64_t i = 0; i < positions; ++i)
      transpose_block(to + i * p.C, bins, 1, from + i * width, positions * width, 1, count, item.channels);
  }

  // One bin of one box, and the first channel of the output that counts.
  struct Bin {
    BoxBins<A> box;
    int64_t k, index, c;
    int64_t W, Q;

    // Calls body(position, weight).
    template <class Body>
    void each(const Body& body) const {
      const int64_t o = index / Q, q = index % Q;
      for (int r = box.rows.begin[o]; r < box.rows.begin[o + 1]; ++r) {
        const Entry<A> row = box.rows.entries[r];
        const int64_t at = box.rows.pixels[row.line] * W;
        for (int s = box.columns.begin[q]; s < box.columns.begin[q + 1]; ++s) {
          const Entry<A> column = box.columns.entries[s];
          body(at + box.columns.pixels[column.line], row.weight * column.weight);
        }
      }
    }
    template <int V, class Map>
    Channels<A, V> sum(const Map* map, int64_t pixel, int n) const {
      auto sum = Channels<A, V>::zeros();
      each([&](int64_t at, A weight) { sum.add(Channels<A, V>::load(map + at * pixel, n), weight); });
      return sum;
    }
    template <int V>
    void add(A* map, int64_t pixel, const Channels<A, V>& grad) const {
      each([&](int64_t at, A weight) {
        auto sum = Channels<A, V>::load(map + at * pixel, Channels<A, V>::kCount);
        sum.add(grad, weight);
        sum.store(map + at * pixel, Channels<A, V>::kCount);
      });
    }
  };
  template <class Body>
  void each_bin(const Item& item, const Body& body) const {
    boxes.each(item.n, [&](int64_t k) {
      const BoxBins<A> box = boxes.bins(k, item.thread);
      for (int64_t bin = item.bins.begin; bin < item.bins.end; ++bin) body(Bin{box, k, bin, item.c, p.W, p.Q});
    });
  }

  // Of the output: channels of a bin are `step` apart.
  int64_t step() const { return p.channels_last ? 1 : bins; }
  T* values(const Bin& bin) const {
    const int64_t place = p.channels_last ? bin.index * p.channels + bin.c : bin.c * bins + bin.index;
    return static_cast<T*>(p.output) + bin.k * bins * p.channels + place;
  }
  static int lanes(const Item& item, int vector) {
    return static_cast<int>(min64(L, item.channels - vector * int64_t{L}));
  }
};

}  // namespace
}  // namespace fastconv
