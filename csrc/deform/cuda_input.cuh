// The gradient of the input on CUDA. Samples of many pixels fall on one position of the input, wherever their offsets
// say. Atomics would add in whatever order blocks come, and each call would give other bits; so a block has a tile of
// the input in up to 64 channels, and looks for the samples that touch it, in the order of taps and pixels.
//
// deform_reaches notes for each tap of a square of 16 by 16 pixels which part of the input its samples touch, so that a
// block looks into a few squares only. The samples that do touch its tile are gathered 64 at a time, and for these it
// works out what they should have been more (cuda_wanted.cuh). Along the edges of tiles that is done by two blocks or
// four: a fifth more products where offsets are smooth. Beyond that it costs a look at the samples of those squares:
// some five times as many as touch the tile where offsets are small, all samples of the image where they point
// anywhere. Then it is slow, but right.
//
// The four corners of a sample have a row and a column of each parity. So four threads share a channel, each with the
// positions of one parity: no two of them write to one place, and the order of sums is that of samples.
#pragma once
#include <climits>

#include "deform/cuda_wanted.cuh"

namespace fastconv {
namespace {

constexpr int kDeformSquare = 16;  // pixels

// A sample that touches the tile.
template <class A>
struct DeformFound {
  int64_t pixel;
  DeformSample<A> sample;
};

template <class A>
struct DeformSums {
  static constexpr int kRows = 8, kColumns = sizeof(A) == 8 ? 8 : 16;  // of the tile

  DeformWanted<A> products;
  A sums[kRows * kColumns][kDeformTile];  // [position][channel]
  DeformFound<A> found[kDeformTile + kDeformThreads];
  int near[kDeformThreads];  // squares that reach the tile, counted from the first that was looked at
  int counts[kDeformThreads / kWarpSize];
};

// The pixels of a square: which one a thread or a lane has, or -1.
__device__ __forceinline__ DeformPixel deform_of_square(const DeformParams& p, int64_t square, int number) {
  int64_t down = square;
  const int64_t right = take_last(down, (p.Q + kDeformSquare - 1) / kDeformSquare);
  const int64_t o = down * kDeformSquare + number / kDeformSquare, q = right * kDeformSquare + number % kDeformSquare;
  return {o < p.P && q < p.Q ? o * p.Q + q : -1, o, q};
}
__host__ __device__ inline int64_t deform_squares(const DeformParams& p) {
  return ((p.P + kDeformSquare - 1) / kDeformSquare) * ((p.Q + kDeformSquare - 1) / kDeformSquare);
}

template <class T>
__global__ void __launch_bounds__(kDeformThreads) deform_reaches(const DeformArgs args) {
  constexpr int kWarps = kDeformThreads / kWarpSize;
  const DeformParams& p = args.p;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int64_t i = int64_t{blockIdx.x} * kWarps + warp; i < args.items; i += int64_t{gridDim.x} * kWarps) {
    int64_t n = i;
    const int64_t square = take_last(n, deform_squares(p)), t = take_last(n, p.R * p.S);
    const DeformTap tap = DeformTap::of(p, take_last(n, p.offset_groups), t);
    DeformReach reach = {INT_MAX, INT_MAX, -1, -1};
    const auto widen_to = [&](const DeformReach& other) {
      reach.top = other.top < reach.top ? other.top : reach.top;
      reach.left = other.left < reach.left ? other.left : reach.left;
      reach.bottom = other.bottom > reach.bottom ? other.bottom : reach.bottom;
      reach.right = other.right > reach.right ? other.right : reach.right;
    };
    for (int e = lane; e < kDeformSquare * kDeformSquare; e += kWarpSize) {
      const DeformPixel at = deform_of_square(p, square, e);
      if (at.pixel < 0) continue;
      const auto s = deform_look<T>(p, n, tap, at);
      if (s.inside) widen_to({s.row, s.column, s.row + 1, s.column + 1});
    }
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2)
      widen_to({shuffle_xor(reach.top, lanes), shuffle_xor(reach.left, lanes), shuffle_xor(reach.bottom, lanes),
                shuffle_xor(reach.right, lanes)});
    if (lane == 0) args.reaches[i] = reach;
  }
}

// Of the threads that it holds for, how many come before the caller; and how many they are.
__device__ __forceinline__ int deform_rank(bool holds, int* counts, int& all) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize;
  const unsigned ballot = vote_ballot(holds);
  if (thread % kWarpSize == 0) counts[warp] = __popc(ballot);
  sync_block();
  int before = __popc(ballot & ((1u << (thread % kWarpSize)) - 1));
  all = 0;
  for (int w = 0; w < kDeformThreads / kWarpSize; ++w) {
    if (w < warp) before += counts[w];
    all += counts[w];
  }
  sync_block();
  return before;
}

// A tile of the input in some channels.
template <class T>
struct DeformTarget {
  using A = Accumulate<T>;
  using Shared = DeformSums<A>;
  const DeformArgs& args;
  Shared& shared;
  int64_t n, channel;
  int channels, top, left;

  __device__ __forceinline__ DeformTarget(const DeformArgs& a, Shared& shared, int64_t item) : args(a), shared(shared) {
    n = item;
    const int64_t piece = take_last(n, a.pieces.in(a.p.C));
    channel = a.pieces.first(piece);
    channels = a.pieces.count(piece);
    const int64_t columns = (a.p.W + Shared::kColumns - 1) / Shared::kColumns;
    left = static_cast<int>(take_last(n, columns)) * Shared::kColumns;
    top = static_cast<int>(take_last(n, (a.p.H + Shared::kRows - 1) / Shared::kRows)) * Shared::kRows;
  }
  __device__ __forceinline__ bool touched(const DeformReach& reach) const {
    return reach.bottom >= top && reach.top - top < Shared::kRows && reach.right >= left &&
           reach.left - left < Shared::kColumns;
  }

  // Samples found[first] and after of a tap, at most 64.
  __device__ __forceinline__ void add(int64_t tap, int first, int count) const {
    deform_want<T>(
        args, n, tap, channel, channels,
        [&](int row) { return row < count ? shared.found[first + row].pixel : int64_t{-1}; }, shared.products);
    const int c = static_cast<int>(threadIdx.x) % kDeformTile, parity = static_cast<int>(threadIdx.x) / kDeformTile;
    if (c < channels)
      for (int i = 0; i < count; ++i) {
        const DeformSample<A>& s = shared.found[first + i].sample;
        const int down = (s.row ^ parity >> 1) & 1, right = (s.column ^ parity) & 1;
        const int y = s.row + down - top, x = s.column + right - left;
        if (y >= 0 && y < Shared::kRows && x >= 0 && x < Shared::kColumns)
          shared.sums[y * Shared::kColumns + x][c] += s.weight(2 * down + right) * shared.products.wanted[i][c];
      }
    sync_block();
  }

  // Of a square's samples, lists those that touch the tile, behind `count` others.
  __device__ __forceinline__ void find(int64_t square, const DeformTap& tap, int& count) const {
    const DeformPixel at = deform_of_square(args.p, square, static_cast<int>(threadIdx.x));
    DeformSample<A> s = {};
    if (at.pixel >= 0) s = deform_look<T>(args.p, n, tap, at);
    const bool touches = s.inside != 0 && touched({s.row, s.column, s.row + 1, s.column + 1});
    int more;
    const int rank = deform_rank(touches, shared.counts, more);
    if (touches) shared.found[count + rank] = {at.pixel, s};
    count += more;
    sync_block();
  }

  // Adds what is listed, 64 at a time while there are at least so many as `least`; the others become the first.
  __device__ __forceinline__ void drain(int64_t tap, int least, int& count) const {
    const int thread = static_cast<int>(threadIdx.x);
    int done = 0;
    while (count - done >= least) {
      const int some = count - done < kDeformTile ? count - done : kDeformTile;
      add(tap, done, some);
      done += some;
    }
    if (done == 0) return;
    count -= done;
    DeformFound<A> moved = {};
    if (thread < count) moved = shared.found[done + thread];
    sync_block();
    if (thread < count) shared.found[thread] = moved;
    sync_block();
  }

  __device__ __forceinline__ void add_tap(const DeformTap& tap) const {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t squares = deform_squares(args.p);
    const DeformReach* reaches =
        args.reaches + ((n * args.p.offset_groups + tap.group) * (args.p.R * args.p.S) + tap.tap) * squares;
    int count = 0;
    for (int64_t base = 0; base < squares; base += kDeformThreads) {
      const bool reached = base + thread < squares && touched(reaches[base + thread]);
      int all;
      const int rank = deform_rank(reached, shared.counts, all);
      if (reached) shared.near[rank] = thread;
      sync_block();
      const bool last = base + kDeformThreads >= squares;
      for (int i = 0; i <= all; ++i) {
        if (i < all) find(base + shared.near[i], tap, count);
        drain(tap.tap, last && i == all ? 1 : kDeformTile, count);
      }
    }
  }

  __device__ __forceinline__ void run() const {
    constexpr int kPositions = Shared::kRows * Shared::kColumns;
#pragma unroll 4
    for (int e = static_cast<int>(threadIdx.x); e < kPositions * kDeformTile; e += kDeformThreads)
      shared.sums[0][e] = 0;
    sync_block();
    const DeformParams& p = args.p;
    const int64_t group = quotient(channel, p.C / p.offset_groups);
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t s = 0; s < p.S; ++s) add_tap({group, r * p.S + s, r, s});
#pragma unroll 4
    for (int e = static_cast<int>(threadIdx.x); e < kPositions * kDeformTile; e += kDeformThreads) {
      const auto at = DeformPlace<kPositions, kDeformTile>::of(e, p.channels_last);
      const int64_t y = top + at.row / Shared::kColumns, x = left + at.row % Shared::kColumns;
      if (y >= p.H || x >= p.W || at.column >= channels) continue;
      T element;
      narrow(shared.sums[at.row][at.column], element);
      *deform_to<T>(args.grad_input, n, channel + at.column, y * p.W + x) = element;
    }
    sync_block();
  }
};

template <class T>
__global__ void __launch_bounds__(kDeformThreads) deform_input_grads(const DeformArgs args) {
  using Shared = DeformSums<Accumulate<T>>;
  Shared& shared = *dynamic_shared<Shared>();
  for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) DeformTarget<T>(args, shared, item).run();
}

// ---- launchers ----

inline int64_t deform_reaches_bytes(const DeformParams& p) {
  if (!p.grad_input) return 0;
  return p.N * p.offset_groups * p.R * p.S * deform_squares(p) * static_cast<int64_t>(sizeof(DeformReach));
}

template <class T>
void deform_input_backward(const DeformLauncher& call, DeformArgs args, void* reaches) {
  using Shared = DeformSums<Accumulate<T>>;
  const DeformParams& p = call.p;
  args.reaches = static_cast<DeformReach*>(reaches);
  args.items = p.N * p.offset_groups * p.R * p.S * deform_squares(p);
  call.run(deform_reaches<T>, args, ceil_divide(args.items, kDeformThreads / kWarpSize));
  const int64_t pieces = p.C / args.pieces.unit * args.pieces.parts;
  args.items = p.N * ceil_divide(p.H, Shared::kRows) * ceil_divide(p.W, Shared::kColumns) * pieces;
  call.run(deform_input_grads<T>, args, args.items, sizeof(Shared));
}

}  // namespace
}  // namespace fastconv
