// The gradients of means on CUDA. Boxes overlap, so what they give to a pixel has to be added up, and added up in their
// order if the same call is to give the same sum each time; atomics would add in whatever order blocks come. So the
// gradient is gathered: a block has a tile of the map in a few channels, whose sums are registers, and goes through the
// boxes of the image that reach it. A pixel is written once, zeros included.
//
// What a bin gives to a pixel is a product of what it gives to the row and to the column (bins.h). These weights are
// worked out by the whole block, once for a few boxes and for all channels of the tile; then each thread adds what the
// bins give that its row and its column know. In most boxes these are one or two along each axis.
//
// Position-sensitive means differ in that each channel has a bin of its own. There a slot of the table of weights is a
// channel, elsewhere it is a row or a column of bins, of which as many as there are slots are looked at in one pass.
#pragma once
#include "roi/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kRoiBatch = 4;       // boxes that weights are worked out for at once
constexpr int kRoiWeights = 256;   // along an axis: slots times lines of a tile
constexpr int kRoiMostSide = 16;   // lines of a tile
constexpr int kRoiMostSlots = 32;  // of the tiles of 8 lines
constexpr int kRoiTilePlanes = 8;  // channels of a thread, where they are not 16 bytes

template <class A>
struct RoiGatherArgs {
  RoiMap<A> map;
  const A* boxes;
  void* input;         // gradients that are written
  const void* output;  // those that come in
  RoiSteps in, out;
  int64_t C, K;
  int side_log, lanes_log;             // a tile has side * side pixels, and channels for so many threads
  int64_t tile_columns, tiles, items;  // tiles: of a channel; items: tiles of all images and channels
  int64_t groups;                      // of channels
};

// Which part of the bins a pass looks at.
struct RoiPass {
  int64_t row, column;
  int rows, columns;  // slots
};

// What the threads of a block share.
template <class A>
struct RoiTable {
  int counts[kRoiThreads / kWarpSize];
  int found[kRoiThreads];  // boxes that reach the tile, counted from the first that was looked at
  A weights[kRoiBatch][2][kRoiWeights];
  int begin[kRoiBatch][2][kRoiMostSide], end[kRoiBatch][2][kRoiMostSide];  // slots that a line has a weight in
  int64_t bins[2][kRoiMostSlots];                                          // position-sensitive: of a slot, its bin
  int64_t from[kRoiMostSlots];                                             // and where in a box its gradient is
};

template <class T, int V, bool Wide, bool Sensitive>
struct RoiTile {
  using A = Accumulate<T>;
  const RoiGatherArgs<A>& args;
  RoiTable<A>& table;
  int64_t n, channel;  // channel: the first of the block
  int top, left;
  int y, x, lane;  // of the thread

  __device__ __forceinline__ RoiTile(const RoiGatherArgs<A>& a, RoiTable<A>& table, int64_t item)
      : args(a), table(table) {
    const int64_t rest = item / a.groups, tile = rest % a.tiles;
    n = rest / a.tiles;
    channel = item % a.groups * (int64_t{V} << a.lanes_log);
    top = static_cast<int>(tile / a.tile_columns) << a.side_log;
    left = static_cast<int>(tile % a.tile_columns) << a.side_log;
    const int thread = static_cast<int>(threadIdx.x), pixel = thread >> a.lanes_log;
    lane = thread & ((1 << a.lanes_log) - 1);
    y = pixel >> a.side_log;
    x = pixel & (side() - 1);
  }
  __device__ __forceinline__ int side() const { return 1 << args.side_log; }
  __device__ __forceinline__ int64_t first() const { return channel + lane * V; }
  __device__ __forceinline__ int count() const {
    const int64_t left = args.C - first();
    return left < 0 ? 0 : left < V ? static_cast<int>(left) : V;
  }

  __device__ __forceinline__ bool reached(int64_t k) const {
    if (k >= args.K) return false;
    const RoiBox<A> box(args.map, args.boxes + 5 * k);
    return box.image == n && box.rows(args.map).reaches(top, top + side() - 1) &&
           box.columns(args.map).reaches(left, left + side() - 1);
  }
  // Lists which boxes from `base` on reach the tile, in their order, of as many as there are threads. How many they
  // are.
  __device__ __forceinline__ int find(int64_t base) const {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize;
    const bool reaches = reached(base + thread);
    const unsigned ballot = vote_ballot(reaches);
    if (thread % kWarpSize == 0) table.counts[warp] = __popc(ballot);
    sync_block();
    int before = __popc(ballot & ((1u << (thread % kWarpSize)) - 1)), all = 0;
    for (int w = 0; w < kRoiThreads / kWarpSize; ++w) {
      if (w < warp) before += table.counts[w];
      all += table.counts[w];
    }
    if (reaches) table.found[before] = thread;
    sync_block();
    return all;
  }

  // Position-sensitive: which bins the channels of the block have.
  __device__ __forceinline__ void name_slots() const {
    const int slot = static_cast<int>(threadIdx.x);
    if (slot >= V << args.lanes_log) return;
    const int64_t bins = args.map.P * args.map.Q, c = (channel + slot) / bins, bin = (channel + slot) % bins;
    table.bins[0][slot] = bin / args.map.Q;
    table.bins[1][slot] = bin % args.map.Q;
    table.from[slot] = c * args.out.channel + bin * args.out.pixel;
  }
  __device__ __forceinline__ int64_t bin_of(const RoiPass& pass, int axis, int slot) const {
    if constexpr (Sensitive) return table.bins[axis][slot];
    return (axis ? pass.column : pass.row) + slot;
  }

  // Fills the table for boxes found[first] and after.
  __device__ __forceinline__ void weigh(int64_t base, int first, int boxes, const RoiPass& pass) const {
    const int slots = pass.rows + pass.columns;
    for (int e = static_cast<int>(threadIdx.x); e < boxes * slots << args.side_log; e += kRoiThreads) {
      const int line = e & (side() - 1), number = e >> args.side_log, j = number / slots, rest = number - j * slots;
      const int axis = rest < pass.rows ? 0 : 1, slot = axis ? rest - pass.rows : rest;
      const RoiBox<A> box(args.map, args.boxes + 5 * (base + table.found[first + j]));
      const RoiAxis<A> of = axis ? box.columns(args.map) : box.rows(args.map);
      table.weights[j][axis][slot << args.side_log | line] =
          roi_weight(of, bin_of(pass, axis, slot), (axis ? left : top) + line);
    }
  }
  // Of each line, between which slots it has weights.
  __device__ __forceinline__ void bound(int boxes, const RoiPass& pass) const {
    const int e = static_cast<int>(threadIdx.x), line = e & (side() - 1), axis = e >> args.side_log & 1;
    const int j = e >> (args.side_log + 1), slots = axis ? pass.columns : pass.rows;
    if (j >= boxes) return;
    int begin = slots, end = 0;
    for (int slot = 0; slot < slots; ++slot)
      if (table.weights[j][axis][slot << args.side_log | line] != 0) {
        begin = begin < slot ? begin : slot;
        end = slot + 1;
      }
    table.begin[j][axis][line] = begin;
    table.end[j][axis][line] = end;
  }

  // Adds what the bins of the pass give, of box `k` in row j of the table.
  __device__ __forceinline__ void add(int64_t k, int j, const RoiPass& pass, A (&sum)[V]) const {
    const RoiChannels<T, V, Wide> own = {count()};
    if (own.n == 0) return;
    const T* grads = static_cast<const T*>(args.output) + k * args.out.box + first() * args.out.channel;
    for (int p = table.begin[j][0][y]; p < table.end[j][0][y]; ++p) {
      const A row = table.weights[j][0][p << args.side_log | y];
      if (row == 0) continue;
      for (int q = table.begin[j][1][x]; q < table.end[j][1][x]; ++q) {
        const A weight = row * table.weights[j][1][q << args.side_log | x];
        if (weight == 0) continue;
        A grad[V];
        own.load(grads + ((pass.row + p) * args.map.Q + pass.column + q) * args.out.pixel, args.out.channel, grad);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += weight * grad[v];
      }
    }
  }
  __device__ __forceinline__ void add_sensitive(int64_t k, int j, A (&sum)[V]) const {
    const T* grads = static_cast<const T*>(args.output) + k * args.out.box;
    const int n = count();
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int slot = lane * V + v;
      if (v >= n) continue;
      const A weight = table.weights[j][0][slot << args.side_log | y] * table.weights[j][1][slot << args.side_log | x];
      if (weight != 0) sum[v] += weight * widen(grads[table.from[slot]]);
    }
  }

  __device__ __forceinline__ void pass(int64_t base, int found, const RoiPass& pass, A (&sum)[V]) const {
    for (int i = 0; i < found; i += kRoiBatch) {
      const int boxes = found - i < kRoiBatch ? found - i : kRoiBatch;
      weigh(base, i, boxes, pass);
      sync_block();
      if constexpr (!Sensitive) {
        bound(boxes, pass);
        sync_block();
      }
      for (int j = 0; j < boxes; ++j) {
        const int64_t k = base + table.found[i + j];
        if constexpr (Sensitive)
          add_sensitive(k, j, sum);
        else
          add(k, j, pass, sum);
      }
      sync_block();
    }
  }
  // All bins, of boxes found from `base` on.
  __device__ __forceinline__ void passes(int64_t base, int found, A (&sum)[V]) const {
    if constexpr (Sensitive) {
      const int64_t rest = args.C - channel;
      const int most = V << args.lanes_log, slots = rest < most ? static_cast<int>(rest) : most;
      return pass(base, found, {0, 0, slots, slots}, sum);
    }
    const int most = kRoiWeights >> args.side_log;
    const auto slots = [&](int64_t bins) { return bins < most ? static_cast<int>(bins) : most; };
    for (int64_t p = 0; p < args.map.P; p += most)
      for (int64_t q = 0; q < args.map.Q; q += most)
        pass(base, found, {p, q, slots(args.map.P - p), slots(args.map.Q - q)}, sum);
  }
  __device__ __forceinline__ void store(const A (&sum)[V]) const {
    const RoiChannels<T, V, Wide> own = {count()};
    if (top + y >= args.map.H || left + x >= args.map.W || own.n == 0) return;
    const int64_t position = int64_t{top + y} * args.map.W + left + x;
    own.store(static_cast<T*>(args.input) + n * args.in.box + first() * args.in.channel + position * args.in.pixel,
              args.in.channel, sum);
  }
};

template <class T, int V, bool Wide, bool Sensitive>
__global__ void __launch_bounds__(kRoiThreads) roi_gather(const RoiGatherArgs<Accumulate<T>> args) {
  using A = Accumulate<T>;
  RoiTable<A>& table = *dynamic_shared<RoiTable<A>>();
  for (int64_t item = blockIdx.x; item < args.items; item += gridDim.x) {
    const RoiTile<T, V, Wide, Sensitive> tile(args, table, item);
    A sum[V] = {};
    if constexpr (Sensitive) tile.name_slots();
    for (int64_t base = 0; base < args.K; base += kRoiThreads) tile.passes(base, tile.find(base), sum);
    tile.store(sum);
    sync_block();
  }
}

// ---- launchers ----

template <class T, int V, bool Wide>
void roi_gather_of(const RoiLauncher& call) {
  using A = Accumulate<T>;
  const RoiParams& p = call.p;
  RoiGatherArgs<A> args = {};
  args.map = roi_map<A>(p);
  args.boxes = static_cast<const A*>(p.boxes);
  args.input = p.input;
  args.output = p.output;
  args.in = roi_input_steps(p);
  args.out = roi_output_steps(p);
  args.C = p.C;
  args.K = p.K;
  args.side_log = p.channels_last ? 3 : 4;
  args.lanes_log = p.channels_last ? 2 : 0;
  const int64_t side = int64_t{1} << args.side_log;
  args.tile_columns = ceil_divide(p.W, side);
  args.tiles = ceil_divide(p.H, side) * args.tile_columns;
  args.groups = ceil_divide(p.C, int64_t{V} << args.lanes_log);
  args.items = p.N * args.tiles * args.groups;
  const bool sensitive = p.kind == Roi::kPsAlign || p.kind == Roi::kPsPool;
  call.run(sensitive ? roi_gather<T, V, Wide, true> : roi_gather<T, V, Wide, false>, args, args.items,
           sizeof(RoiTable<A>));
}

inline void roi_mean_backward(const RoiLauncher& call) {
  with_element(call.p.dtype, [&](auto element) {
    using T = decltype(element);
    if (call.wide(sizeof(T))) return roi_gather_of<T, kWide<T>, true>(call);
    roi_gather_of<T, kRoiTilePlanes, false>(call);
  });
}

}  // namespace
}  // namespace fastconv
