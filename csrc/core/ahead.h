// A part of a tensor that will be read or written next, fetched while something else is computed.
//
// Kernels that hold a vector of channels in registers jump from pixel to pixel, and the processor does not see what
// comes next. Here lines are fetched in the order of memory, not in that of the tile which will want them: then the
// processor runs ahead by itself; and into the second level (2 of __builtin_prefetch), where lines under way do not
// take the place of the loads of the tile at work. Depthwise 3x3, 144@56 channels_last, 16 images, one thread: in the
// order of the next tile and into the first level 5.5 ms, in the order of memory 4.4, and into the second level 2.9.
#pragma once
#include "core/move.h"

namespace fastconv {
namespace {

constexpr int kCacheLine = 64;

class Ahead {
 public:
  Ahead() = default;
  // Rows and columns of `count` channels of image n.
  template <class T>
  static Ahead of(const View4& view, int64_t n, int64_t c0, int64_t count, Range h, Range w) {
    Ahead a;
    if (h.begin >= h.end || w.begin >= w.end) return a;
    const int64_t size = sizeof(T), columns = w.end - w.begin;
    const bool pixels = view.c == 1, whole = pixels && view.w == count;
    a.line_ = a.run_ = a.row_ = reinterpret_cast<const char*>(at<const T>(view, n, c0, h.begin, w.begin));
    a.rows_ = h.end - h.begin;
    a.runs_ = a.runs_left_ = whole ? 1 : pixels ? columns : count;
    a.row_step_ = view.h * size;
    a.run_step_ = (pixels ? view.w : view.c) * size;
    a.run_bytes_ = (whole ? columns * count : pixels ? count : columns * view.w) * size;
    return a;
  }
  bool empty() const { return rows_ <= 0; }
  int64_t lines() const { return rows_ * runs_ * ceil_div(run_bytes_, kCacheLine); }
  // Level: as of __builtin_prefetch.
  template <int Level, bool Writes = false>
  void fetch() {
    if (empty()) return;
    __builtin_prefetch(line_, Writes, Level);
    line_ += kCacheLine;
    if (line_ < run_ + run_bytes_) return;
    line_ = run_ += run_step_;
    if (--runs_left_ > 0) return;
    runs_left_ = runs_;
    line_ = run_ = row_ += row_step_;
    --rows_;
  }
  template <int Level, bool Writes = false>
  void fetch(int64_t lines) {
    for (; lines > 0 && !empty(); --lines) fetch<Level, Writes>();
  }

 private:
  const char *line_ = nullptr, *run_ = nullptr, *row_ = nullptr;
  int64_t rows_ = 0, runs_ = 0, runs_left_ = 0, row_step_ = 0, run_step_ = 0, run_bytes_ = 0;
};

}  // namespace
}  // namespace fastconv
