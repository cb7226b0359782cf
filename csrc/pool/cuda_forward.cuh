// The walks of pooling on CUDA, from the input to the output, each written once for all that a window is reduced to.
// cuda.cuh says which serves what.
#pragma once
#include "pool/cuda_state.cuh"

namespace fastconv {
namespace {

// Writes V neighbouring windows, or V channels of one; `at` in elements.
template <class T, int V, class State, class Int>
__device__ __forceinline__ void write_wide(const PoolArgs<Int>& args, int64_t at, const State (&state)[V]) {
  Accumulate<T> values[V];
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = state[v].value;
  store_wide<V>(static_cast<T*>(args.output) + at, values);
  if constexpr (State::kTracks) {
    uint32_t ids[V];
#pragma unroll
    for (int v = 0; v < V; ++v) ids[v] = state[v].id;
    store_ids(args.ids, args.id_bytes, at, ids);
  }
}

// ---- forward ----

// Takes Count elements of a row of a window, all of which are on their way before the first is looked at.
template <int Count, class T, class State, int V>
__device__ __forceinline__ void take_columns(const T*& x, int64_t step, uint32_t& id, State (&state)[V]) {
  Accumulate<T> values[Count][V];
#pragma unroll
  for (int c = 0; c < Count; ++c, x += step) load_wide<V>(x, values[c]);
#pragma unroll
  for (int c = 0; c < Count; ++c, ++id)
#pragma unroll
    for (int v = 0; v < V; ++v) state[v].take(values[c][v], id);
}

template <class T, class State, int V, class Int>
__global__ void __launch_bounds__(kPoolThreads) pool_pixels(const PoolArgs<Int> args) {
  using A = Accumulate<T>;
  const int64_t column_step = args.pitch * args.w.dilation, row_step = args.pitch * args.w.size * args.h.dilation;
  for (int64_t i = first_item(); i < args.items; i += next_item()) {
    const Place<Int> place = args.locate(i);
    const Taps<Int> rows(args.h, place.row), columns(args.w, place.column);
    const uint32_t tap = static_cast<uint32_t>(rows.begin * args.w.kernel + columns.begin);
    State state[V];
#pragma unroll
    for (int v = 0; v < V; ++v) state[v] = State::nothing(tap);
    const T* row =
        static_cast<const T*>(args.input) + args.input_at(place.outer, rows.at, columns.at) + place.inner * V;
    for (Int r = rows.begin; r < rows.end; ++r, row += row_step) {
      const T* x = row;
      uint32_t id = static_cast<uint32_t>(r * args.w.kernel + columns.begin);
      Int left = columns.end - columns.begin;
      for (; left >= 4; left -= 4) take_columns<4>(x, column_step, id, state);
      switch (left) {
        case 3: take_columns<3>(x, column_step, id, state); break;
        case 2: take_columns<2>(x, column_step, id, state); break;
        case 1: take_columns<1>(x, column_step, id, state);
      }
    }
    if constexpr (State::kAdds) {
      const A divisor = args.template divisor_of<A>(place.row, place.column);
#pragma unroll
      for (int v = 0; v < V; ++v) state[v].finish(divisor, args.template whole<A>());
    }
    write_wide<T>(args, i * V, state);
  }
}

// The 16 bytes of a row from column w on, in accesses of `Piece` elements; outside of it what is in `to` stays.
template <int Piece, class T, int V>
__device__ __forceinline__ void load_pieces(const T* row, int32_t w, int32_t size, Accumulate<T> (&to)[V]) {
#pragma unroll
  for (int v = 0; v < V; v += Piece) {
    if (w + v >= size) continue;
    Accumulate<T> piece[Piece];
    load_wide<Piece>(row + v, piece);
#pragma unroll
    for (int j = 0; j < Piece; ++j) to[v + j] = piece[j];
  }
}

// Windows of S columns, `Stride` apart, after `Pad` columns of padding. Rows are whole pieces of args.piece elements.
template <class T, class State, int S, int Stride, int Pad>
__global__ void __launch_bounds__(kPoolThreads) pool_strips(const PoolArgs<int32_t> args) {
  using A = Accumulate<T>;
  constexpr int V = kWide<T>, K = V / Stride;  // K windows begin in V columns
  constexpr int kRight = S > Stride + Pad ? S - Stride - Pad : 0;
  static_assert(V % Stride == 0 && Pad <= Stride, "windows begin in the padding once a row");
  const int64_t row_step = int64_t{args.w.size} * args.h.dilation;
  for (int64_t i = first_item(); i < args.items; i += next_item()) {
    const Place<int32_t> place = args.locate(i);
    const Taps<int32_t> rows(args.h, place.row);
    const int32_t q = place.column * K, w = q * Stride;
    State state[K];
#pragma unroll
    for (int k = 0; k < K; ++k)
      state[k] = State::nothing(static_cast<uint32_t>(rows.begin * S + (k == 0 && q == 0 ? Pad : 0)));
    const T* row = static_cast<const T*>(args.input) + args.input_at(place.outer, rows.at, w);
    for (int32_t r = rows.begin; r < rows.end; ++r, row += row_step) {
      A x[Pad + V + kRight];  // column w - Pad first
#pragma unroll
      for (int j = 0; j < Pad; ++j) x[j] = w - Pad + j >= 0 ? widen(row[j - Pad]) : State::outside();
      A wide[V];
#pragma unroll
      for (int v = 0; v < V; ++v) wide[v] = State::outside();
      if (args.piece == V)
        load_pieces<V>(row, w, args.w.size, wide);
      else if (args.piece == V / 2)
        load_pieces<V / 2>(row, w, args.w.size, wide);
      else
        load_pieces<1>(row, w, args.w.size, wide);
#pragma unroll
      for (int v = 0; v < V; ++v) x[Pad + v] = wide[v];
#pragma unroll
      for (int j = 0; j < kRight; ++j) x[Pad + V + j] = w + V + j < args.w.size ? widen(row[V + j]) : State::outside();
#pragma unroll
      for (int k = 0; k < K; ++k)
#pragma unroll
        for (int s = 0; s < S; ++s) state[k].take(x[k * Stride + s], static_cast<uint32_t>(r * S + s));
    }
    if constexpr (State::kAdds) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        state[k].finish(args.template divisor_of<A>(place.row, q + k), args.template whole<A>());
    }
    const int64_t at = args.output_at(place.outer, place.row, q);
    if (args.wide) {  // then there are whole strips only
      write_wide<T>(args, at, state);
      continue;
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const State one[1] = {state[k]};
      if (q + k < args.w.outputs) write_wide<T>(args, at + k, one);
    }
  }
}

// Elements begin, begin + step, ... of a window of `height` rows of `width`. One division at the start, then carries.
struct WindowWalk {
  int32_t r, s, height, width, next_row, next;

  __device__ __forceinline__ WindowWalk(int32_t height, int32_t width, int32_t begin, int32_t step)
      : height(width > 0 ? height : 0), width(width) {
    r = width <= 0 || begin < width ? 0 : begin / width;
    s = begin - r * width;
    next_row = width <= 0 || step < width ? 0 : step / width;
    next = step - next_row * width;
  }
  __device__ __forceinline__ bool inside() const { return r < height; }
  __device__ __forceinline__ void advance() {
    r += next_row;
    s += next;
    if (s < width) return;
    s -= width;
    ++r;
  }
};
// Steps of a walk whose elements are on their way together.
template <int V>
constexpr int kSteps = V == 1 ? 8 : 2;

// `group` threads share a window: a power of two, up to a warp, or the whole block. Each takes V elements at once.
template <class T, class State, int V>
__global__ void __launch_bounds__(kPoolThreads) pool_spans(const PoolArgs<int32_t> args) {
  using A = Accumulate<T>;
  constexpr int kWarps = kPoolThreads / kWarpSize;
  const int group = args.group, lane = static_cast<int>(threadIdx.x) & (group - 1);
  A* values = dynamic_shared<A>();  // [kWarps], where a block shares a window
  uint32_t* ids = reinterpret_cast<uint32_t*>(values + kWarps);
  for (int64_t first = int64_t{blockIdx.x} * (kPoolThreads / group); first < args.items;
       first += int64_t{gridDim.x} * (kPoolThreads / group)) {
    const int64_t i = first + static_cast<int>(threadIdx.x) / group;
    Place<int32_t> place = {};
    State state = State::nothing(0);
    if (i < args.items) {
      place = args.locate(i);
      const Taps<int32_t> rows(args.h, place.row), columns(args.w, place.column);
      const uint32_t tap = static_cast<uint32_t>(rows.begin * args.w.kernel + columns.begin);
      state = State::nothing(tap);
      const T* x = static_cast<const T*>(args.input) + args.input_at(place.outer, rows.at, columns.at);
      const int64_t row_step = int64_t{args.w.size} * args.h.dilation;
      WindowWalk walk(rows.end - rows.begin, (columns.end - columns.begin) / V, lane, group);
      while (walk.inside()) {
        A elements[kSteps<V>][V];
        uint32_t id[kSteps<V>];
#pragma unroll
        for (int u = 0; u < kSteps<V>; ++u, walk.advance()) {
          id[u] = tap + static_cast<uint32_t>(walk.r * args.w.kernel + walk.s * V);
#pragma unroll
          for (int v = 0; v < V; ++v) elements[u][v] = State::outside();
          if (walk.inside()) load_wide<V>(x + walk.r * row_step + walk.s * V * args.w.dilation, elements[u]);
        }
#pragma unroll
        for (int u = 0; u < kSteps<V>; ++u)
#pragma unroll
          for (int v = 0; v < V; ++v) state.take(elements[u][v], id[u] + static_cast<uint32_t>(v));
      }
    }
    for (int lanes = (group < kWarpSize ? group : kWarpSize) / 2; lanes > 0; lanes /= 2) {
      State other = state;
      other.value = shuffle_xor(state.value, lanes);
      if constexpr (State::kTracks) other.id = shuffle_xor(state.id, lanes);
      state.join(other);
    }
    if (group > kWarpSize) {
      if (lane % kWarpSize == 0) {
        values[lane / kWarpSize] = state.value;
        if constexpr (State::kTracks) ids[lane / kWarpSize] = state.id;
      }
      sync_block();
      for (int warp = 1; warp < kWarps && lane == 0; ++warp) {
        State other = state;
        other.value = values[warp];
        if constexpr (State::kTracks) other.id = ids[warp];
        state.join(other);
      }
      sync_block();  // before the next window overwrites this one
    }
    if (lane != 0 || i >= args.items) continue;
    if constexpr (State::kAdds)
      state.finish(args.template divisor_of<A>(place.row, place.column), args.template whole<A>());
    const State one[1] = {state};
    write_wide<T>(args, i, one);
  }
}

// A block has one window of `group` times V channels; the threads of a channel take every so many elements of it.
template <class T, class State, int V>
__global__ void __launch_bounds__(kPoolThreads) pool_slices(const PoolArgs<int32_t> args) {
  using A = Accumulate<T>;
  const int thread = static_cast<int>(threadIdx.x), group = args.group, slices = kPoolThreads / group;
  const int slice = thread / group;
  A* values = dynamic_shared<A>();  // [V, kPoolThreads]
  uint32_t* ids = reinterpret_cast<uint32_t*>(values + V * kPoolThreads);
  for (int64_t i = blockIdx.x; i < args.items; i += gridDim.x) {
    const Place<int32_t> place = args.locate(i);
    const int64_t channel = (int64_t{place.inner} * group + (thread & (group - 1))) * V;
    const Taps<int32_t> rows(args.h, place.row), columns(args.w, place.column);
    const uint32_t tap = static_cast<uint32_t>(rows.begin * args.w.kernel + columns.begin);
    State state[V];
#pragma unroll
    for (int v = 0; v < V; ++v) state[v] = State::nothing(tap);
    if (channel < args.pitch) {
      const T* x = static_cast<const T*>(args.input) + args.input_at(place.outer, rows.at, columns.at) + channel;
      const int64_t column_step = args.pitch * args.w.dilation, row_step = args.pitch * args.w.size * args.h.dilation;
      WindowWalk walk(rows.end - rows.begin, columns.end - columns.begin, slice, slices);
      while (walk.inside()) {
        A elements[kSteps<V>][V];
        uint32_t id[kSteps<V>];
#pragma unroll
        for (int u = 0; u < kSteps<V>; ++u, walk.advance()) {
          id[u] = tap + static_cast<uint32_t>(walk.r * args.w.kernel + walk.s);
#pragma unroll
          for (int v = 0; v < V; ++v) elements[u][v] = State::outside();
          if (walk.inside()) load_wide<V>(x + walk.r * row_step + walk.s * column_step, elements[u]);
        }
#pragma unroll
        for (int u = 0; u < kSteps<V>; ++u)
#pragma unroll
          for (int v = 0; v < V; ++v) state[v].take(elements[u][v], id[u]);
      }
    }
    const auto keep = [&] {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v * kPoolThreads + thread] = state[v].value;
        if constexpr (State::kTracks) ids[v * kPoolThreads + thread] = state[v].id;
      }
    };
    keep();
    for (int half = slices / 2; half > 0; half /= 2) {
      sync_block();
      if (slice >= half) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        State other = state[v];
        const int from = v * kPoolThreads + thread + half * group;
        other.value = values[from];
        if constexpr (State::kTracks) other.id = ids[from];
        state[v].join(other);
      }
      keep();
    }
    sync_block();  // before the next window overwrites this one
    if (slice != 0 || channel >= args.pitch) continue;
    if constexpr (State::kAdds) {
      const A divisor = args.template divisor_of<A>(place.row, place.column);
#pragma unroll
      for (int v = 0; v < V; ++v) state[v].finish(divisor, args.template whole<A>());
    }
    write_wide<T>(args, args.output_at(place.outer, place.row, place.column) + channel, state);
  }
}

// ---- launchers ----

// Whether the windows begin as the strips of S, Stride, Pad do.
template <class T, class State, int S, int Stride, int Pad>
bool launch_strips(const PoolLauncher& call) {
  const PoolParams& p = call.p;
  if constexpr (kWide<T> % Stride == 0) {
    if (p.w.kernel != S || p.w.stride != Stride || p.w.padding != Pad) return false;
    constexpr int K = kWide<T> / Stride;
    PoolArgs<int32_t> args = pool_args<int32_t>(p, p.h.outputs, ceil_divide(p.w.outputs, K), 1);
    for (args.piece = kWide<T>; args.piece > 1; args.piece /= 2)
      if (p.w.size % args.piece == 0 && aligned(p.input, args.piece * sizeof(T))) break;
    args.wide = p.w.outputs % K == 0 && aligned(p.output, K * sizeof(T)) && aligned(p.ids, K);
    call.run_items(pool_strips<T, State, S, Stride, Pad>, args);
    return true;
  }
  return false;
}

constexpr int64_t kSharedTaps = 32;    // windows of as many are shared by threads
constexpr int64_t kTapsPerThread = 8;  // that joining what threads have found should be worth

template <class T, class State>
void launch_forward(const PoolLauncher& call) {
  using A = Accumulate<T>;
  constexpr int V = kWide<T>;
  constexpr int64_t kStateBytes = sizeof(A) + (State::kTracks ? sizeof(uint32_t) : 0);
  const PoolParams& p = call.p;
  const int64_t windows = p.h.outputs * p.w.outputs, taps = p.h.kernel * p.w.kernel;
  if (!call.narrow(call.outer() * windows * call.inner()))
    return call.run_items(pool_pixels<T, State, 1, int64_t>,
                          pool_args<int64_t>(p, p.h.outputs, p.w.outputs, call.inner()));
  const bool wide = call.wide_channels(sizeof(T), V);
  const int64_t vectors = wide ? p.C / V : call.inner();
  const int64_t h_step = p.h.adaptive ? p.h.kernel : p.h.stride, w_step = p.w.adaptive ? p.w.kernel : p.w.stride;
  const bool apart = taps <= 2 * h_step * w_step;  // an element is in two windows at most, on the whole
  if (p.channels_last) {
    if (taps >= kSharedTaps && apart && call.outer() * windows * vectors < call.threads()) {
      int group = 1;
      while (group < kWarpSize && group < vectors) group *= 2;
      PoolArgs<int32_t> args = pool_args<int32_t>(p, p.h.outputs, p.w.outputs, ceil_divide(vectors, group));
      args.group = group;
      if (wide) return call.run(pool_slices<T, State, V>, args, args.items, V * kPoolThreads * kStateBytes);
      return call.run(pool_slices<T, State, 1>, args, args.items, kPoolThreads * kStateBytes);
    }
    const PoolArgs<int32_t> args = pool_args<int32_t>(p, p.h.outputs, p.w.outputs, vectors);
    if (wide) return call.run_items(pool_pixels<T, State, V, int32_t>, args);
    return call.run_items(pool_pixels<T, State, 1, int32_t>, args);
  }
  PoolArgs<int32_t> args = pool_args<int32_t>(p, p.h.outputs, p.w.outputs, 1);
  if (taps >= kSharedTaps && (apart || args.items < call.threads())) {
    // Windows of whole rows, which begin at 16 bytes: those that adapt, one to a row.
    const bool whole = p.w.adaptive && p.w.outputs == 1 && p.w.size % V == 0 && aligned(p.input, 16);
    const int64_t pieces = whole ? taps / V : taps;
    int group = 4;
    while (group < kWarpSize && group * kTapsPerThread < pieces) group *= 2;
    if (args.items * kWarpSize < call.threads() && pieces >= kPoolThreads * kTapsPerThread / 2) group = kPoolThreads;
    args.group = group;
    const int64_t blocks = ceil_divide(args.items, kPoolThreads / group);
    const int64_t shared = group > kWarpSize ? kPoolThreads / kWarpSize * kStateBytes : 0;
    if (whole) return call.run(pool_spans<T, State, V>, args, blocks, shared);
    return call.run(pool_spans<T, State, 1>, args, blocks, shared);
  }
  const bool strips = !p.w.adaptive && p.w.dilation == 1 && p.id_bytes < 2;
  if (strips) {
    if (launch_strips<T, State, 2, 2, 0>(call)) return;
    if (launch_strips<T, State, 3, 2, 1>(call)) return;
    if (launch_strips<T, State, 3, 2, 0>(call)) return;
    if (launch_strips<T, State, 3, 1, 1>(call)) return;
  }
  call.run_items(pool_pixels<T, State, 1, int32_t>, args);
}

inline void pool_max(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  const PoolLauncher call = {joined_planes(p), stream, limits};
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.id_bytes) return launch_forward<T, MaxId<Accumulate<T>>>(call);
    launch_forward<T, Max<Accumulate<T>>>(call);
  });
}

inline void pool_avg(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  PoolLauncher call = {joined_planes(p), stream, limits};
  call.p.divisor = common_divisor(call.p);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    launch_forward<T, Sum<Accumulate<T>>>(call);
  });
}

// Where the divisor is 1 sums are what they are, and where it is 0 windows count as whole ones.
inline void pool_l2(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  PoolLauncher call = {p, stream, limits};
  if (common_divisor(p) == static_cast<double>(p.h.kernel * p.w.kernel)) call.p.divisor = 1;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    launch_forward<T, Squares<Accumulate<T>>>(call);
  });
}

}  // namespace
}  // namespace fastconv
