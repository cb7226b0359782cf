// Copies in the other layout, contiguous to channels_last and back, for kernels that read or write one of the two much
// faster. Worth it where the copies are small beside the work, and stay in caches.
#pragma once
#include "conv/params.h"
#include "core/move.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

// to[n, c, h, w] = from[n, c, h, w], where one has its columns and the other its channels side by side.
template <class T>
void turn_layout(const View4& to, const View4& from, int64_t N, int64_t C, int64_t H, int64_t W, int threads) {
  constexpr int64_t kPixels = 512;  // of an item
  if (from.h == W * from.w && to.h == W * to.w) {
    W *= H;
    H = 1;
  }
  const int64_t parts = ceil_div(W, kPixels);
  parallel_for(threads, N * H * parts, [&](int64_t item, int) {
    const int64_t n = item / parts / H, h = item / parts % H, w = item % parts * kPixels, count = min64(kPixels, W - w);
    T* target = at<T>(to, n, 0, h, w);
    const T* source = at<const T>(from, n, 0, h, w);
    if (from.c == 1)
      transpose_block(target, to.c, 1, source, from.w, 1, count, C);
    else
      transpose_block(target, to.w, 1, source, from.c, 1, C, count);
  });
}

}  // namespace
}  // namespace fastconv
