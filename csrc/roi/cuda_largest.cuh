// The gradient of maxima on CUDA: each goes to where its id says. Bins share pixels, so these are sums, in the order of
// boxes and bins (cuda_gather.cuh says why). Boxes cannot be asked which pixels they reach, since their scale is not
// known here; ids are.
//
// roi_scatter: a warp has a segment of the plane in one channel (contiguous memory) or in eight that lie side by side
// (channels_last memory: 32 bytes of float32), as sums in shared memory. It looks at all ids of these channels, 32 at a
// time, and adds what points to its segment: lanes that point to one place take turns.
#pragma once
#include "roi/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kRoiScatterThreads = 128;
constexpr int kRoiScatterWarps = kRoiScatterThreads / kWarpSize;
constexpr int kRoiScatterBytes = 8 << 10;  // of sums, for each warp

template <class A>
struct RoiScatterArgs {
  RoiMap<A> map;
  const A* boxes;
  void* input;         // gradients that are written
  const void* output;  // those that come in
  const int32_t* ids;
  RoiSteps in, out;
  int64_t C, K, bins;
  int lanes_log;    // channels of a warp
  int64_t segment;  // positions of a warp
  int64_t positions, segments, groups, items;
};

template <class T>
struct RoiSegment {
  using A = Accumulate<T>;
  const RoiScatterArgs<A>& args;
  A* sums;  // [segment, channels of the warp]
  int64_t n, channel, begin, size;
  int lane;

  __device__ __forceinline__ RoiSegment(const RoiScatterArgs<A>& a, A* sums, int64_t item) : args(a), sums(sums) {
    const int64_t rest = item / a.groups;
    lane = static_cast<int>(threadIdx.x) % kWarpSize;
    channel = (item % a.groups << a.lanes_log) + (lane & ((1 << a.lanes_log) - 1));
    n = rest / a.segments;
    begin = rest % a.segments * a.segment;
    size = a.positions - begin < a.segment ? a.positions - begin : a.segment;
  }
  __device__ __forceinline__ void clear() const {
    for (int i = lane; i < static_cast<int>(size) << args.lanes_log; i += kWarpSize) sums[i] = 0;
    sync_warp();
  }

  __device__ __forceinline__ void store() const {
    if (channel >= args.C) return;
    T* to = static_cast<T*>(args.input) + n * args.in.box + channel * args.in.channel + begin * args.in.pixel;
    const int lanes = 1 << args.lanes_log;
    for (int at = lane >> args.lanes_log; at < static_cast<int>(size); at += kWarpSize / lanes) {
      T element;
      fastconv::narrow(sums[at * lanes + (lane & (lanes - 1))], element);
      to[at * args.in.pixel] = element;
    }
  }

  // Adds in the order of lanes where several have the same place. -1: nothing to add.
  __device__ __forceinline__ void add(int place, A value) const {
    if (!vote_any(place >= 0)) return;
    const unsigned same = match_any(static_cast<uint32_t>(place)), before = same & ((1u << lane) - 1);
    const int turn = place < 0 ? 0 : __popc(before);
    for (int t = 0; vote_any(turn >= t); ++t) {
      if (place >= 0 && turn == t) sums[place] += value;
      sync_warp();
    }
  }
  // Ids and gradients of several steps are on their way before the first is looked at.
  __device__ __forceinline__ void add_box(int64_t k) const {
    constexpr int kSteps = 4;
    const int64_t own = lane >> args.lanes_log, step = kWarpSize >> args.lanes_log;
    const int64_t from = k * args.out.box + channel * args.out.channel;
    for (int64_t bin = own; bin - own < args.bins; bin += kSteps * step) {
      int64_t id[kSteps];
      A value[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const bool there = bin + s * step < args.bins && channel < args.C;
        const int64_t at = there ? from + (bin + s * step) * args.out.pixel : 0;
        id[s] = there ? args.ids[at] - begin : -1;
        value[s] = widen(static_cast<const T*>(args.output)[at]);
      }
#pragma unroll
      for (int s = 0; s < kSteps; ++s) add(place_of(id[s]), value[s]);
    }
  }
  __device__ __forceinline__ int place_of(int64_t at) const {
    if (at < 0 || at >= size) return -1;
    return static_cast<int>(at) << args.lanes_log | (lane & ((1 << args.lanes_log) - 1));
  }
  // The boxes of the image, in their order.
  __device__ __forceinline__ void add_boxes() const {
    for (int64_t base = 0; base < args.K; base += kWarpSize) {
      const int64_t k = base + lane;
      const bool here = k < args.K && RoiBox<A>(args.map, args.boxes + 5 * k).image == n;
      for (unsigned left = vote_ballot(here); left; left &= left - 1) add_box(base + __ffs(static_cast<int>(left)) - 1);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kRoiScatterThreads) roi_scatter(const RoiScatterArgs<Accumulate<T>> args) {
  using A = Accumulate<T>;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  A* sums = dynamic_shared<A>() + warp * (kRoiScatterBytes / static_cast<int>(sizeof(A)));
  for (int64_t i = int64_t{blockIdx.x} * kRoiScatterWarps + warp; i < args.items;
       i += int64_t{gridDim.x} * kRoiScatterWarps) {
    const RoiSegment<T> segment(args, sums, i);
    segment.clear();
    segment.add_boxes();
    segment.store();
    sync_warp();
  }
}

// ---- launchers ----

template <class T>
void roi_scatter_of(const RoiLauncher& call) {
  using A = Accumulate<T>;
  const RoiParams& p = call.p;
  RoiScatterArgs<A> args = {};
  args.map = roi_map<A>(p);
  args.boxes = static_cast<const A*>(p.boxes);
  args.input = p.input;
  args.output = p.output;
  args.ids = p.ids;
  args.in = roi_input_steps(p);
  args.out = roi_output_steps(p);
  args.C = p.C;
  args.K = p.K;
  args.bins = p.P * p.Q;
  args.lanes_log = p.channels_last ? 3 : 0;
  args.segment = kRoiScatterBytes / static_cast<int64_t>(sizeof(A)) >> args.lanes_log;
  args.positions = p.H * p.W;
  args.segments = ceil_divide(args.positions, args.segment);
  args.groups = ceil_divide(p.C, int64_t{1} << args.lanes_log);
  args.items = p.N * args.segments * args.groups;
  const int64_t blocks = ceil_divide(args.items, kRoiScatterWarps), grid = call.limits.grid;
  launch(roi_scatter<T>, dim3(static_cast<unsigned>(blocks < grid ? blocks : grid)), dim3(kRoiScatterThreads),
         kRoiScatterWarps * kRoiScatterBytes, call.stream, args);
}

inline void roi_largest_backward(const RoiLauncher& call) {
  with_element(call.p.dtype, [&](auto element) { roi_scatter_of<decltype(element)>(call); });
}

}  // namespace
}  // namespace fastconv
