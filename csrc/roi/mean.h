// Bins that are means of the map, forward and backward, and their order of work.
//
// A box is done in two steps. For each row of bins the rows of the map that count are added up, in the columns that any
// bin knows ("the line"); then the columns of each bin. A line is used by all bins of a row, so that a pixel of the map
// is read once for each row of bins that it counts in, not for each bin.
#pragma once
#include "roi/bins.h"
#include "roi/channels.h"

namespace fastconv {
namespace {

// What the kernels for one box and a few channels get. `map`: pixel (0, 0); `pixel`: elements from one to the next.
// `values`, `ids`: bin (0, 0); `stride`: elements from one to the next. A kernel of a box that needs no ids ignores
// them.
template <class Map, class Values>
struct BoxCall {
  const RoiParams& p;
  int64_t k;
  Map* map;
  int64_t pixel;
  Values* values;
  int32_t* ids;
  int64_t stride;
  int n;  // channels
  int thread;
};

template <class A>
struct Mean {
  static constexpr bool kTracks = false;
  const Boxes<A>& boxes;
  A* lines;  // [threads, W, kPixelBytes]

  A* line(const RoiParams& p, int thread) const {
    return lines + thread * p.W * (kPixelBytes / static_cast<int64_t>(sizeof(A)));
  }

  template <int V, class Map, class Values>
  void run(const BoxCall<const Map, Values>& call) const {
    using C = Channels<A, V>;
    const RoiParams& p = call.p;
    const BoxBins<A> bins = boxes.bins(call.k, call.thread);
    A* line = this->line(p, call.thread);
    const auto &rows = bins.rows, &columns = bins.columns;
    for (int64_t o = 0; o < p.P; ++o) {
      for (int i = 0; i < columns.lines; ++i) {
        C sum = C::zeros();
        const Map* at = call.map + columns.pixels[i] * call.pixel;
        for (int r = rows.begin[o]; r < rows.begin[o + 1]; ++r) {
          const int64_t row = rows.pixels[rows.entries[r].line] * p.W * call.pixel;
          sum.add(C::load(at + row, call.n), rows.entries[r].weight);
        }
        sum.store(line + i * C::kCount, C::kCount);
      }
      for (int64_t q = 0; q < p.Q; ++q) {
        C sum = C::zeros();
        for (int s = columns.begin[q]; s < columns.begin[q + 1]; ++s)
          sum.add(C::load(line + columns.entries[s].line * C::kCount, C::kCount), columns.entries[s].weight);
        sum.store(call.values + (o * p.Q + q) * call.stride, call.n);
      }
    }
  }

  // The transpose of it: adds to the map.
  template <int V, class Map, class Values>
  void spread(const BoxCall<Map, const Values>& call) const {
    using C = Channels<A, V>;
    const RoiParams& p = call.p;
    const BoxBins<A> bins = boxes.bins(call.k, call.thread);
    A* line = this->line(p, call.thread);
    const auto &rows = bins.rows, &columns = bins.columns;
    for (int64_t o = 0; o < p.P; ++o) {
      if (rows.begin[o] == rows.begin[o + 1]) continue;
      zero(line, columns.lines * C::kCount);
      for (int64_t q = 0; q < p.Q; ++q) {
        const C grad = C::load(call.values + (o * p.Q + q) * call.stride, call.n);
        for (int s = columns.begin[q]; s < columns.begin[q + 1]; ++s) {
          A* at = line + columns.entries[s].line * C::kCount;
          C sum = C::load(at, C::kCount);
          sum.add(grad, columns.entries[s].weight);
          sum.store(at, C::kCount);
        }
      }
      for (int r = rows.begin[o]; r < rows.begin[o + 1]; ++r) {
        Map* row = call.map + rows.pixels[rows.entries[r].line] * p.W * call.pixel;
        for (int i = 0; i < columns.lines; ++i) {
          Map* at = row + columns.pixels[i] * call.pixel;
          C sum = C::load(at, call.n);
          sum.add(C::load(line + i * C::kCount, C::kCount), rows.entries[r].weight);
          sum.store(at, call.n);
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastconv
