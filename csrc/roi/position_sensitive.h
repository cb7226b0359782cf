// Position-sensitive means: bin (p, q) of channel c of the output looks at channel (c * P + p) * Q + q of the input,
// and no other does. An item of work is such a channel of an image, and that bin of every box there.
#pragma once
#include "roi/bins.h"

namespace fastconv {
namespace {

template <class T>
struct PositionSensitive {
  using A = Accumulate<T>;
  const RoiParams& p;
  const Boxes<A>& boxes;
  A* sums;  // [threads, H * W], of 16-bit types

  int64_t pixel() const { return p.channels_last ? p.C : 1; }
  T* map(int64_t n, int64_t channel) const {
    T* input = static_cast<T*>(p.input);
    return p.channels_last ? input + n * p.H * p.W * p.C + channel : input + (n * p.C + channel) * p.H * p.W;
  }

  void forward() const {
    const int64_t pixel = this->pixel(), bins = p.P * p.Q;
    compute_for(p.threads, p.N * p.C, [&](int64_t item, int thread) {
      const int64_t n = item / p.C, channel = item % p.C;
      const T* from = map(n, channel);
      boxes.each(n, [&](int64_t k) {
        const Bin bin(*this, k, channel, bins, thread);
        A sum = 0;
        bin.each([&](int64_t at, A row, A column) { sum += row * column * get(from + at * pixel); });
        put(static_cast<T*>(p.output) + bin.to, sum);
      });
    });
  }

  void backward() const {
    const int64_t positions = p.H * p.W, bins = p.P * p.Q;
    constexpr bool kDirect = std::is_same<T, A>::value;
    const int64_t pixel = kDirect ? this->pixel() : 1;
    compute_for(p.threads, p.N * p.C, [&](int64_t item, int thread) {
      const int64_t n = item / p.C, channel = item % p.C;
      T* to = map(n, channel);
      A* sum = nullptr;
      if constexpr (kDirect)
        sum = to;
      else
        sum = sums + thread * positions;
      for (int64_t i = 0; i < positions; ++i) sum[i * pixel] = 0;
      boxes.each(n, [&](int64_t k) {
        const Bin bin(*this, k, channel, bins, thread);
        const A grad = get(static_cast<const T*>(p.output) + bin.to);
        bin.each([&](int64_t at, A row, A column) { sum[at * pixel] += row * column * grad; });
      });
      if constexpr (!kDirect)
        for (int64_t i = 0; i < positions; ++i) put(to + i * this->pixel(), sum[i]);
    });
  }

 private:
  struct Bin {
    BoxBins<A> box;
    int64_t W, o, q, to;

    Bin(const PositionSensitive& all, int64_t k, int64_t channel, int64_t bins, int thread)
        : box(all.boxes.bins(k, thread)), W(all.p.W) {
      const int64_t c = channel / bins, bin = channel % bins;
      o = bin / all.p.Q;
      q = bin % all.p.Q;
      to = all.p.channels_last ? (k * bins + bin) * all.p.channels + c : (k * all.p.channels + c) * bins + bin;
    }
    // Calls body(position, weight of its row, weight of its column).
    template <class Body>
    void each(const Body& body) const {
      for (int r = box.rows.begin[o]; r < box.rows.begin[o + 1]; ++r) {
        const Entry<A> row = box.rows.entries[r];
        const int64_t at = box.rows.pixels[row.line] * W;
        for (int s = box.columns.begin[q]; s < box.columns.begin[q + 1]; ++s) {
          const Entry<A> column = box.columns.entries[s];
          body(at + box.columns.pixels[column.line], row.weight, column.weight);
        }
      }
    }
  };
};

}  // namespace
}  // namespace fastconv
