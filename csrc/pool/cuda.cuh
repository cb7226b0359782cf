// Pooling on CUDA. The arithmetic is small and the elements are many, so what counts is that each is read about once,
// in wide accesses, with few instructions around them. From the input to the output:
//
// pool_pixels: a thread has one window of up to 16 bytes of neighbouring channels (channels_last memory), or one window
// of a plane (contiguous memory, which is channels_last of one channel).
//
// pool_strips: contiguous memory, and the windows that networks are made of. A thread reads 16 bytes of each row, at
// once where rows are aligned, and the few columns to their left and right, and has all windows that begin there:
// positions are registers, as the window's size, stride and padding are known to the compiler.
//
// pool_spans, pool_slices: large windows that overlap little, down to one that is the whole plane. Several threads, up
// to a block, share a window and join what they have found: neighbouring threads read neighbouring elements of the
// plane (spans, contiguous memory) or neighbouring channels (slices, channels_last memory).
//
// And back. The gradient of the input is gathered: an element is written once, by the thread that owns it, which asks
// the windows that cover it, always in the same order.
//
// pool_gather_pixels: a thread has 16 bytes of channels of one position, or one position of a plane.
//
// pool_gather_rows: contiguous memory; a thread has 16 bytes of a row. It goes through the windows that cover them,
// each of which is read once and adds to the one position that won (max) or to all that it has (avg).
#pragma once
#include <cmath>
#include <type_traits>

#include "core/divisor.h"
#include "core/launch.h"
#include "pool/params.h"

namespace fastconv {
namespace {

constexpr int kPoolThreads = 256;

template <class T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateOf<T>::type;
template <class T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));  // elements

// ---- what a window is reduced to: the rules of state.h ----

template <class A>
struct Sum {
  using Value = A;
  static constexpr bool kAdds = true, kTracks = false;

  A value;
  static __device__ __forceinline__ A outside() { return 0; }  // as good as no element
  static __device__ __forceinline__ Sum nothing(uint32_t) { return {0}; }
  __device__ __forceinline__ void take(A x, uint32_t) { value += x; }
  __device__ __forceinline__ void join(const Sum& other) { value += other.value; }
};

// NaN is larger than every number.
template <class A>
struct Max {
  using Value = A;
  static constexpr bool kAdds = false, kTracks = false;

  A value;
  static __device__ __forceinline__ A outside() { return -INFINITY; }
  static __device__ __forceinline__ Max nothing(uint32_t) { return {outside()}; }
  __device__ __forceinline__ void take(A x, uint32_t) { value = x > value || x != x ? x : value; }
  __device__ __forceinline__ void join(const Max& other) { take(other.value, 0); }
};

// Among equal values the first tap wins, among NaN the last.
template <class A>
struct MaxId {
  using Value = A;
  static constexpr bool kAdds = false, kTracks = true;

  A value;
  uint32_t id;
  static __device__ __forceinline__ A outside() { return -INFINITY; }
  // `first`: the tap that wins where all values are negative infinity.
  static __device__ __forceinline__ MaxId nothing(uint32_t first) { return {outside(), first}; }
  // Of taps in their order.
  __device__ __forceinline__ void take(A x, uint32_t tap) {
    const bool wins = x > value || x != x;
    value = wins ? x : value;
    id = wins ? tap : id;
  }
  // In any order.
  __device__ __forceinline__ void join(const MaxId& other) {
    const bool wins = other.value > value || (other.value == value && other.id < id) ||
                      (other.value != other.value && (value == value || other.id > id));
    value = wins ? other.value : value;
    id = wins ? other.id : id;
  }
};

// ---- memory ----

// At most 16 bytes at once; both addresses are multiples of as many.
template <int Bytes>
__device__ __forceinline__ void copy_wide(void* to, const void* from) {
  if constexpr (Bytes > 16) {
    copy_wide<16>(to, from);
    copy_wide<Bytes - 16>(static_cast<char*>(to) + 16, static_cast<const char*>(from) + 16);
  } else if constexpr (Bytes == 16) {
    store16(to, load16(from));
  } else if constexpr (Bytes == 8) {
    *static_cast<uint2*>(to) = *static_cast<const uint2*>(from);
  } else if constexpr (Bytes == 4) {
    *static_cast<uint32_t*>(to) = *static_cast<const uint32_t*>(from);
  } else if constexpr (Bytes == 2) {
    *static_cast<uint16_t*>(to) = *static_cast<const uint16_t*>(from);
  } else {
    *static_cast<uint8_t*>(to) = *static_cast<const uint8_t*>(from);
  }
}

template <int V, class T>
__device__ __forceinline__ void load_wide(const T* from, Accumulate<T> (&to)[V]) {
  alignas(16) T elements[V];
  copy_wide<V * sizeof(T)>(elements, from);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = widen(elements[v]);
}
template <int V, class T>
__device__ __forceinline__ void store_wide(T* to, const Accumulate<T> (&from)[V]) {
  alignas(16) T elements[V];
#pragma unroll
  for (int v = 0; v < V; ++v) narrow(from[v], elements[v]);
  copy_wide<V * sizeof(T)>(to, elements);
}

template <class Id, int V>
__device__ __forceinline__ void store_ids_as(void* ids, int64_t at, const uint32_t (&from)[V]) {
  alignas(16) Id elements[V];
#pragma unroll
  for (int v = 0; v < V; ++v) elements[v] = static_cast<Id>(from[v]);
  copy_wide<V * sizeof(Id)>(static_cast<Id*>(ids) + at, elements);
}
template <int V>
__device__ __forceinline__ void store_ids(void* ids, int bytes, int64_t at, const uint32_t (&from)[V]) {
  if (bytes == 1) return store_ids_as<uint8_t>(ids, at, from);
  if (bytes == 2) return store_ids_as<uint16_t>(ids, at, from);
  store_ids_as<uint32_t>(ids, at, from);
}
template <class Id, int V>
__device__ __forceinline__ void load_ids(const void* ids, int64_t at, uint32_t (&to)[V]) {
  alignas(16) Id elements[V];
  copy_wide<V * sizeof(Id)>(elements, static_cast<const Id*>(ids) + at);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = elements[v];
}
__device__ __forceinline__ uint32_t load_id(const void* ids, int bytes, int64_t at) {
  if (bytes == 1) return static_cast<const uint8_t*>(ids)[at];
  if (bytes == 2) return static_cast<const uint16_t*>(ids)[at];
  return static_cast<const uint32_t*>(ids)[at];
}

// ---- where a thread is ----

// Work is a tensor [outer, rows, columns, inner] of items. `Int` holds its number and every product of an axis.
template <class Int>
struct Place {
  int64_t outer;
  Int row, column, inner;
};

template <class Int>
struct PoolArgs {
  using Index = std::make_unsigned_t<Int>;
  void* input;   // [outer, H, W, pitch]
  void* output;  // [outer, P, Q, pitch]
  void* ids;     // [outer, P, Q, pitch]
  int64_t* indices;
  PoolAxisOf<Int> h, w;
  int64_t pitch;                        // C in channels_last memory, else 1
  int64_t items;                        // in all
  Divisor<Index> rows, columns, inner;  // items
  Divisor<uint32_t> kernel_columns;
  int id_bytes;
  int group;  // threads of a window (spans), or of the channels of a window (slices)
  int piece;  // elements of an access to the input (strips)
  bool wide;  // whether 16-byte accesses of what is written are aligned (strips, rows)
  bool padding_counts;
  double divisor;

  __device__ __forceinline__ Place<Int> locate(int64_t item) const {
    const Index i = static_cast<Index>(item), pixel = inner.divide(i), row = columns.divide(pixel);
    const Index outer = rows.divide(row);
    return {static_cast<int64_t>(outer), static_cast<Int>(row - outer * rows.value),
            static_cast<Int>(pixel - row * columns.value), static_cast<Int>(i - pixel * inner.value)};
  }
  __device__ __forceinline__ int64_t input_at(int64_t outer, Int row, Int column) const {
    return ((outer * h.size + row) * w.size + column) * pitch;
  }
  __device__ __forceinline__ int64_t output_at(int64_t outer, Int row, Int column) const {
    return ((outer * h.outputs + row) * w.outputs + column) * pitch;
  }
  // What the sum of a window is divided by.
  template <class A>
  __device__ __forceinline__ A divisor_of(Int o, Int q) const {
    if (divisor != 0) return static_cast<A>(divisor);
    return static_cast<A>(h.count(o, padding_counts) * w.count(q, padding_counts));
  }
};

__device__ __forceinline__ int64_t first_item() { return int64_t{blockIdx.x} * kPoolThreads + threadIdx.x; }
__device__ __forceinline__ int64_t next_item() { return int64_t{gridDim.x} * kPoolThreads; }

// The taps of a window along one axis that are in the input.
template <class Int>
struct Taps {
  Int begin, end, at;  // at: the position of tap `begin`
  __device__ __forceinline__ Taps(const PoolAxisOf<Int>& axis, Int o)
      : begin(axis.begin(o)), end(axis.end(o)), at(axis.first(o) + begin * axis.dilation) {}
};

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
      for (int v = 0; v < V; ++v) state[v].value /= divisor;
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
      for (int k = 0; k < K; ++k) state[k].value /= args.template divisor_of<A>(place.row, q + k);
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
    if constexpr (State::kAdds) state.value /= args.template divisor_of<A>(place.row, place.column);
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
      for (int v = 0; v < V; ++v) state[v].value /= divisor;
    }
    write_wide<T>(args, args.output_at(place.outer, place.row, place.column) + channel, state);
  }
}

// ---- backward ----

// The tap of window `o` that is at position `i`, or -1.
template <class Int>
__device__ __forceinline__ Int tap_at(const PoolAxisOf<Int>& axis, Int o, Int i) {
  const Int distance = i - axis.first(o);
  if (distance < 0 || (axis.dilation > 1 && distance % axis.dilation != 0)) return -1;
  const Int tap = axis.dilation > 1 ? distance / axis.dilation : distance;
  return tap < axis.end(o) ? tap : -1;
}

// Id: of the winners' ids; void where gradients are shared (avg).
template <class T, class Id, int V, class Int>
__global__ void __launch_bounds__(kPoolThreads) pool_gather_pixels(const PoolArgs<Int> args) {
  using A = Accumulate<T>;
  for (int64_t i = first_item(); i < args.items; i += next_item()) {
    const Place<Int> place = args.locate(i);
    const Int o_end = args.h.covering_end(place.row), q_begin = args.w.covering_begin(place.column),
              q_end = args.w.covering_end(place.column);
    A sum[V] = {};
    for (Int o = args.h.covering_begin(place.row); o < o_end; ++o) {
      const Int r = tap_at(args.h, o, place.row);
      if (r < 0) continue;
      const int64_t row = args.output_at(place.outer, o, 0) + place.inner * V;
      for (Int q = q_begin; q < q_end; ++q) {
        const Int s = tap_at(args.w, q, place.column);
        if (s < 0) continue;
        const int64_t at = row + q * args.pitch;
        const T* grad = static_cast<const T*>(args.output) + at;
        A given[V];
        load_wide<V>(grad, given);
        if constexpr (!std::is_void_v<Id>) {
          const uint32_t tap = static_cast<uint32_t>(r * args.w.kernel + s);
          uint32_t ids[V];
          load_ids<Id>(args.ids, at, ids);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] = ids[v] == tap ? sum[v] + given[v] : sum[v];
        } else {
          const A divisor = args.template divisor_of<A>(o, q);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += given[v] / divisor;
        }
      }
    }
    store_wide<V>(static_cast<T*>(args.input) + i * V, sum);
  }
}

template <class T, class Id>
__global__ void __launch_bounds__(kPoolThreads) pool_gather_rows(const PoolArgs<int32_t> args) {
  using A = Accumulate<T>;
  constexpr int V = kWide<T>, kTogether = 4;  // windows that are read before the first is looked at
  for (int64_t i = first_item(); i < args.items; i += next_item()) {
    const Place<int32_t> place = args.locate(i);
    const int32_t h = place.row, w = place.column * V, left = args.w.size - w;
    const int32_t o_end = args.h.covering_end(h), q_begin = args.w.covering_begin(w),
                  q_end = args.w.covering_end(w + (left < V ? left : V) - 1);
    A sum[V] = {};
    for (int32_t o = args.h.covering_begin(h); o < o_end; ++o) {
      const int32_t r = tap_at(args.h, o, h);
      if (r < 0) continue;
      const int64_t row = args.output_at(place.outer, o, 0);
      const T* grads = static_cast<const T*>(args.output) + row;
      for (int32_t q = q_begin; q < q_end; q += kTogether) {
        A given[kTogether];
        uint32_t ids[kTogether];
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
          if (q + u >= q_end) continue;
          given[u] = widen(grads[q + u]);
          if constexpr (!std::is_void_v<Id>) ids[u] = static_cast<const Id*>(args.ids)[row + q + u];
        }
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
          if (q + u >= q_end) continue;
          const int32_t first = args.w.first(q + u) - w;  // of the window, seen from this thread's first position
          if constexpr (!std::is_void_v<Id>) {
            // Taps of another row become numbers of S and more.
            const uint32_t s = ids[u] - static_cast<uint32_t>(r * args.w.kernel);
            if (s >= static_cast<uint32_t>(args.w.kernel)) continue;
            const int32_t won = first + static_cast<int32_t>(s) * args.w.dilation;
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] = v == won ? sum[v] + given[u] : sum[v];
          } else {
            const A share = given[u] / args.template divisor_of<A>(o, q + u);
            const int32_t end = first + args.w.end(q + u);
#pragma unroll
            for (int v = 0; v < V; ++v) sum[v] = v >= first && v < end ? sum[v] + share : sum[v];
          }
        }
      }
    }
    T* to = static_cast<T*>(args.input) + args.input_at(place.outer, h, w);
    if (args.wide) {
      store_wide<V>(to, sum);
      continue;
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      T element;
      narrow(sum[v], element);
      if (v < left) to[v] = element;
    }
  }
}

// ---- what is read off the ids ----

// Where in its plane a window's winner is, or -1.
template <class Int>
__device__ __forceinline__ int64_t winner_of(const PoolArgs<Int>& args, const Place<Int>& place, int64_t at) {
  const uint32_t id = load_id(args.ids, args.id_bytes, at), r = args.kernel_columns.divide(id);
  const Int h = args.h.first(place.row) + static_cast<Int>(r) * args.h.dilation;
  const Int w = args.w.first(place.column) + static_cast<Int>(id - r * args.kernel_columns.value) * args.w.dilation;
  const bool inside = h >= 0 && h < args.h.size && w >= 0 && w < args.w.size;
  return inside ? static_cast<int64_t>(h) * args.w.size + w : -1;
}

template <class Int>
__global__ void __launch_bounds__(kPoolThreads) pool_indices(const PoolArgs<Int> args) {
  for (int64_t i = first_item(); i < args.items; i += next_item()) args.indices[i] = winner_of(args, args.locate(i), i);
}

// T: as wide as an element.
template <class T, class Int>
__global__ void __launch_bounds__(kPoolThreads) pool_pick(const PoolArgs<Int> args) {
  for (int64_t i = first_item(); i < args.items; i += next_item()) {
    const Place<Int> place = args.locate(i);
    const int64_t index = winner_of(args, place, i);
    const int64_t plane = args.input_at(place.outer, 0, 0) + place.inner;
    static_cast<T*>(args.output)[i] = index < 0 ? T{0} : static_cast<const T*>(args.input)[plane + index * args.pitch];
  }
}

// ---- launchers ----

// What the tests may lower to reach at small sizes what only huge tensors do on a GPU.
struct PoolLimits {
  int64_t grid = kMaxGrid;     // blocks
  int64_t narrow = INT32_MAX;  // items, and products of an axis, that 32-bit arithmetic is used for
  int64_t threads = 0;         // that fill the device; 0: what it has
};

inline bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes < 16 ? bytes : 16) == 0;
}

// Whether no number that is made of an axis passes `most`.
inline bool fits(const PoolAxis& a, int64_t most) {
  const int64_t step = a.adaptive ? a.size + 1 : a.stride, reach = a.size + 2 * a.padding + a.stride;
  return a.kernel <= most / a.dilation && step <= most / (a.outputs + 1) &&
         reach + a.kernel * a.dilation + step * (a.outputs + 1) <= most;
}

// One window that is the whole plane is one of a plane of one row; taps are counted as before.
inline PoolParams joined_planes(PoolParams p) {
  if (!p.h.adaptive || !p.w.adaptive || p.h.outputs != 1 || p.w.outputs != 1) return p;
  p.w.size = p.w.kernel = p.h.size * p.w.size;
  p.h.size = p.h.kernel = 1;
  return p;
}

// The positions that all windows divide by, if they are as many for all and `divisor` says nothing else. Those of a
// window are fewest at the ends.
inline double common_divisor(const PoolParams& p) {
  if (p.divisor != 0) return p.divisor;
  for (const PoolAxis* axis : {&p.h, &p.w}) {
    if (axis->adaptive && axis->outputs > 1) return 0;
    for (int64_t o : {int64_t{0}, axis->outputs - 1})
      if (axis->count(o, p.padding_counts) != axis->kernel) return 0;
  }
  return static_cast<double>(p.h.kernel * p.w.kernel);
}

template <class Int>
PoolAxisOf<Int> axis_of(const PoolAxis& a) {
  return {static_cast<Int>(a.size),
          static_cast<Int>(a.outputs),
          static_cast<Int>(a.kernel),
          static_cast<Int>(a.stride),
          static_cast<Int>(a.padding),
          static_cast<Int>(a.dilation),
          a.adaptive};
}

// Items: rows * columns * inner for each image or plane.
template <class Int>
PoolArgs<Int> pool_args(const PoolParams& p, int64_t rows, int64_t columns, int64_t inner) {
  using Index = typename PoolArgs<Int>::Index;
  PoolArgs<Int> args = {};
  args.input = p.input;
  args.output = p.output;
  args.ids = p.ids;
  args.id_bytes = p.id_bytes;
  args.indices = p.indices;
  args.h = axis_of<Int>(p.h);
  args.w = axis_of<Int>(p.w);
  args.pitch = p.channels_last ? p.C : 1;
  args.items = (p.channels_last ? p.N : p.N * p.C) * rows * columns * inner;
  args.rows = Divisor<Index>(static_cast<Index>(rows));
  args.columns = Divisor<Index>(static_cast<Index>(columns));
  args.inner = Divisor<Index>(static_cast<Index>(inner));
  args.kernel_columns = Divisor<uint32_t>(static_cast<uint32_t>(p.w.kernel));
  args.divisor = p.divisor;
  args.padding_counts = p.padding_counts;
  return args;
}

// A call, and how it may be started.
struct PoolLauncher {
  PoolParams p;
  Stream stream;
  PoolLimits limits;

  int64_t inner() const { return p.channels_last ? p.C : 1; }
  int64_t outer() const { return p.channels_last ? p.N : p.N * p.C; }
  bool narrow(int64_t items) const {
    return items <= limits.narrow - kPoolThreads && fits(p.h, limits.narrow) && fits(p.w, limits.narrow);
  }
  int64_t threads() const {
    return limits.threads ? limits.threads : int64_t{2048} * device_limits(stream).multiprocessors;
  }
  // Whether `V` channels are accessed at once.
  bool wide_channels(int64_t element, int64_t V) const {
    return p.channels_last && p.C % V == 0 && aligned(p.input, V * element) && aligned(p.output, V * element) &&
           aligned(p.ids, V * p.id_bytes + (p.id_bytes == 0));
  }

  template <class Args>
  void run(void (*kernel)(Args), const Args& args, int64_t blocks, int64_t shared = 0) const {
    const int64_t grid = blocks < limits.grid ? blocks : limits.grid;
    launch(kernel, dim3(static_cast<unsigned>(grid)), dim3(kPoolThreads), static_cast<size_t>(shared), stream, args);
  }
  template <class Args>
  void run_items(void (*kernel)(Args), const Args& args) const {
    run(kernel, args, ceil_divide(args.items, kPoolThreads));
  }
};

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

template <class T, class Id>
void launch_backward(const PoolLauncher& call) {
  constexpr int V = kWide<T>;
  const PoolParams& p = call.p;
  if (!call.narrow(call.outer() * p.h.size * p.w.size * call.inner()))
    return call.run_items(pool_gather_pixels<T, Id, 1, int64_t>,
                          pool_args<int64_t>(p, p.h.size, p.w.size, call.inner()));
  if (p.channels_last) {
    if (call.wide_channels(sizeof(T), V))
      return call.run_items(pool_gather_pixels<T, Id, V, int32_t>, pool_args<int32_t>(p, p.h.size, p.w.size, p.C / V));
    return call.run_items(pool_gather_pixels<T, Id, 1, int32_t>, pool_args<int32_t>(p, p.h.size, p.w.size, p.C));
  }
  PoolArgs<int32_t> args = pool_args<int32_t>(p, p.h.size, ceil_divide(p.w.size, V), 1);
  args.wide = p.w.size % V == 0 && aligned(p.input, 16);
  call.run_items(pool_gather_rows<T, Id>, args);
}

template <class Body>
void with_element(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat32: return body(float{});
    case Dtype::kFloat64: return body(double{});
    case Dtype::kBFloat16: return body(bfloat16{});
    case Dtype::kFloat16: return body(float16{});
  }
}

// The operators of PoolKernels.

inline void pool_max(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  const PoolLauncher call = {joined_planes(p), stream, limits};
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.id_bytes) return launch_forward<T, MaxId<Accumulate<T>>>(call);
    launch_forward<T, Max<Accumulate<T>>>(call);
  });
}

inline void pool_max_backward(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  const PoolLauncher call = {joined_planes(p), stream, limits};
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.id_bytes == 1) return launch_backward<T, uint8_t>(call);
    if (p.id_bytes == 2) return launch_backward<T, uint16_t>(call);
    launch_backward<T, uint32_t>(call);
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

inline void pool_avg_backward(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  PoolLauncher call = {joined_planes(p), stream, limits};
  call.p.divisor = common_divisor(call.p);
  with_element(p.dtype, [&](auto element) { launch_backward<decltype(element), void>(call); });
}

template <class Int>
void launch_pick(const PoolLauncher& call, const PoolArgs<Int>& args) {
  switch (call.p.dtype) {
    case Dtype::kFloat32: return call.run_items(pool_pick<uint32_t, Int>, args);
    case Dtype::kFloat64: return call.run_items(pool_pick<uint64_t, Int>, args);
    case Dtype::kBFloat16:
    case Dtype::kFloat16: return call.run_items(pool_pick<uint16_t, Int>, args);
  }
}

// Calls body with the args of a walk over the windows, channel by channel.
template <class Body>
void each_window(const PoolLauncher& call, const Body& body) {
  const PoolParams& p = call.p;
  if (call.narrow(call.outer() * p.h.outputs * p.w.outputs * call.inner()))
    return body(pool_args<int32_t>(p, p.h.outputs, p.w.outputs, call.inner()));
  body(pool_args<int64_t>(p, p.h.outputs, p.w.outputs, call.inner()));
}

inline void pool_max_pick(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  const PoolLauncher call = {p, stream, limits};
  each_window(call, [&](const auto& args) { launch_pick(call, args); });
}

inline void pool_max_indices(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  const PoolLauncher call = {p, stream, limits};
  each_window(call, [&](const auto& args) {
    using Int = decltype(args.h.size + 0);
    call.run_items(pool_indices<std::remove_cv_t<Int>>, args);
  });
}

}  // namespace
}  // namespace fastconv
