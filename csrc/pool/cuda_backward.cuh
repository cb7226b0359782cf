// The gradients of pooling on CUDA, gathered: every element of the input asks the windows that cover it. cuda.cuh says
// which kernel serves what.
#pragma once
#include "pool/cuda_args.cuh"

namespace fastconv {
namespace {

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

// ---- launchers ----

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

inline void pool_max_backward(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  const PoolLauncher call = {joined_planes(p), stream, limits};
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.id_bytes == 1) return launch_backward<T, uint8_t>(call);
    if (p.id_bytes == 2) return launch_backward<T, uint16_t>(call);
    launch_backward<T, uint32_t>(call);
  });
}

inline void pool_avg_backward(const PoolParams& p, const Stream& stream, const PoolLimits& limits = {}) {
  PoolLauncher call = {joined_planes(p), stream, limits};
  call.p.divisor = common_divisor(call.p);
  with_element(p.dtype, [&](auto element) { launch_backward<decltype(element), void>(call); });
}

}  // namespace
}  // namespace fastconv
