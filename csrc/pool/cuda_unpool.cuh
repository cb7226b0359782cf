// Unpooling on CUDA: every window's value to the position that its index says, and back. Elements are moved, whatever
// they are. Nothing waits for the GPU to hear that an index is wrong: such windows are left out, and their gradient is
// zero.
//
// Planes one after the other are one long plane, whose windows and positions are numbered through; channels that lie
// side by side, up to a warp of them, are lanes of it. In this order windows make steps and positions make tiles.
//
// unpool_reaches: a warp notes the smallest and the largest position that a step points to.
//
// unpool_tiles: a block makes a tile of the output. It looks through the steps that reach its tile and keeps in shared
// memory the last window that points to each position, by an atomic maximum: of windows that share a position the last
// one stays, whoever comes first. Then it writes the tile, zeros included, in order and once. (To clear the output and
// scatter into it would write most of it twice and leave to chance which window stays.) Indices from pooling point
// close to where their windows are, so a step is looked through by two or three blocks; indices that point anywhere
// come out right, but every tile looks at all of its plane's windows.
//
// unpool_gather: a thread takes a few windows in a row.
#pragma once
#include "pool/cuda_args.cuh"

namespace fastconv {
namespace {

constexpr int kStepEntries = 1024;    // windows times lanes
constexpr int kTileBytes = 32 << 10;  // of the winners of a tile
constexpr int kMostLanesLog = 5;      // a warp

template <class Int>
struct UnpoolReach {
  Int least, most;
};

template <class Int>
struct UnpoolArgs {
  using Index = std::make_unsigned_t<Int>;
  const int64_t* indices;     // [all_windows, channels]
  void* values;               // [all_windows, channels]
  void* planes;               // [all_positions, channels]
  UnpoolReach<Int>* reaches;  // [groups, steps]
  Divisor<Index> windows;     // of a plane
  Divisor<Index> positions;   // of a plane
  Divisor<Index> channels;    // that lie side by side: C in channels_last memory, else 1
  Int all_windows, all_positions, steps, tiles, groups;
  int lanes_log;
  bool wide;  // unpool_gather: whether accesses of several elements are aligned

  // Where a window that has this index points to, or -1.
  __device__ __forceinline__ Int position(int64_t index, Int window) const {
    if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(positions.value)) return -1;
    return static_cast<Int>(windows.divide(static_cast<Index>(window)) * positions.value + static_cast<Index>(index));
  }
  __device__ __forceinline__ int lane(int entry) const { return entry & ((1 << lanes_log) - 1); }
  __device__ __forceinline__ int64_t channel(Int group, int entry) const {
    return (static_cast<int64_t>(group) << lanes_log) + lane(entry);
  }
  __device__ __forceinline__ int64_t at(Int number, int64_t channel) const {
    return static_cast<int64_t>(number) * static_cast<int64_t>(channels.value) + channel;
  }
};

template <class Int>
struct Step {
  const UnpoolArgs<Int>& args;
  Int group, first;

  __device__ __forceinline__ Step(const UnpoolArgs<Int>& a, Int group, Int step)
      : args(a), group(group), first(step * (kStepEntries >> a.lanes_log)) {}
  __device__ __forceinline__ Int window(int entry) const { return first + (entry >> args.lanes_log); }
  __device__ __forceinline__ Int position(int entry) const {
    const int64_t channel = args.channel(group, entry);
    if (window(entry) >= args.all_windows || channel >= static_cast<int64_t>(args.channels.value)) return -1;
    return args.position(args.indices[args.at(window(entry), channel)], window(entry));
  }
};

template <class Int>
__global__ void __launch_bounds__(kPoolThreads) unpool_reaches(const UnpoolArgs<Int> args) {
  constexpr int kWarps = kPoolThreads / kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int64_t i = int64_t{blockIdx.x} * kWarps + warp; i < int64_t{args.groups} * args.steps;
       i += int64_t{gridDim.x} * kWarps) {
    const Step<Int> step(args, static_cast<Int>(i / args.steps), static_cast<Int>(i % args.steps));
    UnpoolReach<Int> reach = {args.all_positions, -1};
#pragma unroll 8
    for (int e = lane; e < kStepEntries; e += kWarpSize) {
      const Int position = step.position(e);
      if (position >= 0 && position < reach.least) reach.least = position;
      if (position > reach.most) reach.most = position;
    }
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
      const Int least = shuffle_xor(reach.least, lanes), most = shuffle_xor(reach.most, lanes);
      if (least < reach.least) reach.least = least;
      if (most > reach.most) reach.most = most;
    }
    if (lane == 0) args.reaches[i] = reach;
  }
}

// The number of a window and one, atomically the larger: CUDA knows 64 bits by this name only.
template <class Int>
using Winner = std::conditional_t<sizeof(Int) == 4, unsigned, unsigned long long>;
template <class Int>
constexpr int kTileEntries = kTileBytes / static_cast<int>(sizeof(Winner<Int>));

// What unpool_tiles has in shared memory: the winners, the steps that are near, and how many these are.
template <class Int>
constexpr int64_t kTileShared = kTileBytes + kPoolThreads * sizeof(Int) + sizeof(int);

// E: as wide as an element; V of them are written at once.
template <class E, int V, class Int>
__global__ void __launch_bounds__(kPoolThreads) unpool_tiles(const UnpoolArgs<Int> args) {
  using Index = typename UnpoolArgs<Int>::Index;
  Winner<Int>* winners = dynamic_shared<Winner<Int>>();             // [kTileEntries]
  Int* near = reinterpret_cast<Int*>(winners + kTileEntries<Int>);  // [kPoolThreads], steps
  int& count = *reinterpret_cast<int*>(near + kPoolThreads);
  const int thread = static_cast<int>(threadIdx.x);
  const Int size = kTileEntries<Int> >> args.lanes_log;
  for (int64_t i = blockIdx.x; i < int64_t{args.groups} * args.tiles; i += gridDim.x) {
    const Int group = static_cast<Int>(i / args.tiles), first = static_cast<Int>(i % args.tiles) * size;
    const Int positions = args.all_positions - first < size ? args.all_positions - first : size;
    const int entries = static_cast<int>(positions) << args.lanes_log;
    for (int e = thread; e < (entries + V - 1) / V * V; e += kPoolThreads) winners[e] = 0;

    const Int step = kStepEntries >> args.lanes_log, windows = static_cast<Int>(args.windows.value);
    const Int first_plane = static_cast<Int>(args.positions.divide(static_cast<Index>(first)));
    const Int last_plane = static_cast<Int>(args.positions.divide(static_cast<Index>(first + positions - 1)));
    const Int end = (last_plane * windows + windows - 1) / step + 1;
    for (Int from = first_plane * windows / step; from < end; from += kPoolThreads) {
      if (thread == 0) count = 0;
      sync_block();
      if (from + thread < end) {
        const UnpoolReach<Int> reach = args.reaches[int64_t{group} * args.steps + from + thread];
        if (reach.most >= first && reach.least < first + positions) near[atomic_add(&count, 1)] = from + thread;
      }
      sync_block();
      for (int n = 0; n < count; ++n) {
        const Step<Int> looked(args, group, near[n]);
#pragma unroll
        for (int e = thread; e < kStepEntries; e += kPoolThreads) {
          const Int at = looked.position(e) - first;
          if (at >= 0 && at < positions)
            atomic_max(&winners[(static_cast<int>(at) << args.lanes_log) + args.lane(e)],
                       static_cast<Winner<Int>>(looked.window(e) + 1));
        }
      }
      sync_block();
    }

    for (int e = thread * V; e < entries; e += kPoolThreads * V) {
      const int64_t channel = args.channel(group, e);
      if (channel >= static_cast<int64_t>(args.channels.value)) continue;
      E* to = static_cast<E*>(args.planes) + args.at(first + (e >> args.lanes_log), channel);
      alignas(16) Winner<Int> won[V];
      copy_wide<V * sizeof(Winner<Int>)>(won, winners + e);
      alignas(16) E elements[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        // Beyond the last position of all nobody has won.
        const bool holds = e + v < entries && won[v] != 0;
        const int64_t from = args.at(static_cast<Int>(won[v] - 1), args.channel(group, e + v));
        elements[v] = holds ? static_cast<const E*>(args.values)[from] : E{0};
      }
      if (e + V <= entries) {
        copy_wide<V * sizeof(E)>(to, elements);
        continue;
      }
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (e + v < entries) to[v] = elements[v];
    }
    sync_block();  // before the next tile clears the winners
  }
}

template <class E, class Int>
__global__ void __launch_bounds__(kPoolThreads) unpool_gather(const UnpoolArgs<Int> args) {
  using Index = typename UnpoolArgs<Int>::Index;
  constexpr int V = 4;
  const int64_t all = args.at(args.all_windows, 0);
  for (int64_t i = first_item() * V; i < all; i += next_item() * V) {
    const bool wide = args.wide && i + V <= all;
    alignas(16) int64_t indices[V];
    if (wide) {
      copy_wide<sizeof indices>(indices, args.indices + i);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v) indices[v] = i + v < all ? args.indices[i + v] : -1;
    }
    alignas(16) E elements[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Index window = args.channels.divide(static_cast<Index>(i + v));
      const Int position = args.position(indices[v], static_cast<Int>(window));
      const int64_t channel = static_cast<int64_t>(static_cast<Index>(i + v) - window * args.channels.value);
      elements[v] = position < 0 ? E{0} : static_cast<const E*>(args.planes)[args.at(position, channel)];
    }
    E* to = static_cast<E*>(args.values) + i;
    if (wide) {
      copy_wide<V * sizeof(E)>(to, elements);
      continue;
    }
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (i + v < all) to[v] = elements[v];
  }
}

// ---- launchers ----

template <class Int>
UnpoolArgs<Int> unpool_args(const UnpoolParams& p, void* reaches) {
  using Index = typename UnpoolArgs<Int>::Index;
  UnpoolArgs<Int> args = {};
  const int64_t channels = p.channels_last ? p.C : 1, outer = p.channels_last ? p.N : p.N * p.C;
  args.indices = p.indices;
  args.values = p.values;
  args.planes = p.planes;
  args.reaches = static_cast<UnpoolReach<Int>*>(reaches);
  args.windows = Divisor<Index>(static_cast<Index>(p.windows));
  args.positions = Divisor<Index>(static_cast<Index>(p.positions));
  args.channels = Divisor<Index>(static_cast<Index>(channels));
  while (args.lanes_log < kMostLanesLog && (int64_t{1} << args.lanes_log) < channels) ++args.lanes_log;
  args.all_windows = static_cast<Int>(outer * p.windows);
  args.all_positions = static_cast<Int>(outer * p.positions);
  args.groups = static_cast<Int>(ceil_divide(channels, int64_t{1} << args.lanes_log));
  args.steps = static_cast<Int>(ceil_divide(outer * p.windows, kStepEntries >> args.lanes_log));
  args.tiles = static_cast<Int>(ceil_divide(outer * p.positions, kTileEntries<Int> >> args.lanes_log));
  return args;
}

// Whether 32-bit arithmetic holds every number, those of a step, a tile and a grid's threads beyond the last as well.
inline bool narrow(const UnpoolParams& p, const PoolLimits& limits) {
  const int64_t most = p.N * p.C * (p.windows > p.positions ? p.windows : p.positions);
  return most <= limits.narrow - kTileBytes;
}

// Calls body with an integer for the arithmetic and an unsigned one as wide as an element.
template <class Body>
void with_bits(const UnpoolParams& p, const PoolLimits& limits, const Body& body) {
  const auto with_integer = [&](auto element) {
    if (narrow(p, limits)) return body(element, int32_t{});
    body(element, int64_t{});
  };
  if (p.element_bytes == 2) return with_integer(uint16_t{});
  if (p.element_bytes == 4) return with_integer(uint32_t{});
  with_integer(uint64_t{});
}

// What unpool_scatter's `reaches` must have room for.
inline int64_t unpool_scratch(const UnpoolParams& p, const PoolLimits& limits = {}) {
  const auto bytes = [](const auto& args) {
    return int64_t{args.groups} * args.steps * static_cast<int64_t>(sizeof(*args.reaches));
  };
  return narrow(p, limits) ? bytes(unpool_args<int32_t>(p, nullptr)) : bytes(unpool_args<int64_t>(p, nullptr));
}

inline void unpool_scatter(const UnpoolParams& p, void* reaches, const Stream& stream, const PoolLimits& limits = {}) {
  with_bits(p, limits, [&](auto element, auto integer) {
    using E = decltype(element);
    using Int = decltype(integer);
    constexpr int V = kWide<E>;
    const PoolLauncher call = {{}, stream, limits};
    const UnpoolArgs<Int> args = unpool_args<Int>(p, reaches);
    call.run(unpool_reaches<Int>, args, ceil_divide(int64_t{args.groups} * args.steps, kPoolThreads / kWarpSize));
    const bool wide = (!p.channels_last || p.C % V == 0) && aligned(p.planes, 16);
    call.run(wide ? unpool_tiles<E, V, Int> : unpool_tiles<E, 1, Int>, args, int64_t{args.groups} * args.tiles,
             kTileShared<Int>);
  });
}

inline void unpool_gather(const UnpoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  with_bits(p, limits, [&](auto element, auto integer) {
    using E = decltype(element);
    using Int = decltype(integer);
    const PoolLauncher call = {{}, stream, limits};
    UnpoolArgs<Int> args = unpool_args<Int>(p, nullptr);
    args.wide = aligned(p.indices, 16) && aligned(p.values, 4 * static_cast<int64_t>(sizeof(E)));
    call.run(unpool_gather<E, Int>, args, ceil_divide(p.N * p.C * p.windows, 4 * kPoolThreads));
  });
}

}  // namespace
}  // namespace fastconv
