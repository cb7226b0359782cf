// Bins that are the largest of whole pixels.
#pragma once
#include "roi/bins.h"
#include "roi/mean.h"

namespace fastconv {
namespace {

template <class A>
struct LargestOf {
  static constexpr bool kTracks = true;
  const Boxes<A>& boxes;

  template <int V, class Map, class Values>
  void run(const BoxCall<const Map, Values>& call) const {
    using C = Channels<A, V>;
    const RoiParams& p = call.p;
    const A* box = boxes.box(call.k);
    const BoxAxis<A> rows(p, box, 0), columns(p, box, 1);
    for (int64_t o = 0; o < p.P; ++o) {
      const Range h = rows.pixels(o);
      for (int64_t q = 0; q < p.Q; ++q) {
        const Range w = columns.pixels(q);
        Largest<A, V> largest = Largest<A, V>::none();
        if (h.begin < h.end && w.begin < w.end) {
          const int64_t first = h.begin * p.W + w.begin;
          largest = Largest<A, V>::of(C::load(call.map + first * call.pixel, call.n), static_cast<int32_t>(first));
          for (int64_t i = h.begin; i < h.end; ++i)
            for (int64_t j = w.begin; j < w.end; ++j) {
              const int64_t at = i * p.W + j;
              largest.take(C::load(call.map + at * call.pixel, call.n), static_cast<int32_t>(at));
            }
        }
        const int64_t to = (o * p.Q + q) * call.stride;
        largest.value.store(call.values + to, call.n);
        if (call.ids) largest.store_ids(call.ids + to, call.n);
      }
    }
  }

  // To where the largest was, channel by channel.
  template <int V, class Map, class Values>
  void spread(const BoxCall<Map, const Values>& call) const {
    for (int64_t bin = 0; bin < call.p.P * call.p.Q; ++bin)
      for (int c = 0; c < call.n; ++c) {
        const int64_t id = call.ids[bin * call.stride + c];
        if (id < 0 || id >= call.p.H * call.p.W) continue;
        Map* at = call.map + id * call.pixel + c;
        put(at, get(at) + get(call.values + bin * call.stride + c));
      }
  }
};

}  // namespace
}  // namespace fastconv
