// What is read off the winners' ids, window by window: where they are in their planes, and an input's elements there.
#pragma once
#include "pool/cuda_args.cuh"

namespace fastconv {
namespace {

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
