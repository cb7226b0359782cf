// The table of pooling kernels of one instruction set.
#include <type_traits>

#include "pool/backward.h"
#include "pool/forward.h"
#include "pool/lp.h"
#include "pool/params.h"
#include "pool/stochastic.h"
#include "pool/unpool.h"

namespace fastconv::FASTCONV_ISA {
namespace {

// Walks the windows one by one: for what is seldom asked for.
template <class Body>
void for_each_window(const PoolParams& p, const Body& body) {
  const int64_t planes = p.channels_last ? 1 : p.C, inner = p.channels_last ? p.C : 1;
  parallel_for(p.threads, p.N * planes * p.h.outputs, [&](int64_t row, int) {
    const int64_t o = row % p.h.outputs, plane = row / p.h.outputs;
    for (int64_t q = 0; q < p.w.outputs; ++q)
      for (int64_t c = 0; c < inner; ++c) {
        const int64_t at = (row * p.w.outputs + q) * inner + c;
        const int64_t id = load_id(p.ids, p.id_bytes, at);
        const int64_t h = p.h.first(o) + id / p.w.kernel * p.h.dilation;
        const int64_t w = p.w.first(q) + id % p.w.kernel * p.w.dilation;
        const bool inside = h >= 0 && h < p.h.size && w >= 0 && w < p.w.size;
        body(at, inside ? h * p.w.size + w : -1, plane, inner, c);
      }
  });
}

int64_t no_scratch(const PoolParams&) { return 0; }

// `count` indices of neighbouring windows, or of neighbouring channels of one, of which the first has tap 0 at
// `origin`. Int: 32 bits where they are enough, because 64-bit products take three times as long in vectors. The row of
// a tap is a product with the inverse of the number of columns, in Bits bits: exact for taps below 2^(Bits / 2).
template <class Int, int Bits, class Id>
void fill_indices(const PoolParams& p, const Id* ids, int64_t* indices, int64_t count, int64_t origin, int64_t step) {
  using Unsigned = std::make_unsigned_t<Int>;
  const Unsigned S = static_cast<Unsigned>(p.w.kernel), inverse = ((Unsigned{1} << Bits) + S - 1) / S;
  const Unsigned next_row = static_cast<Unsigned>(p.w.size - p.w.kernel);  // from past the end of a row to the next
  const auto some = [&](int64_t from, auto many) {
    Unsigned at = static_cast<Unsigned>(origin + from * step);  // may be before the plane, and wraps around
    for (int i = 0; i < many; ++i, at += static_cast<Unsigned>(step)) {
      const Unsigned tap = ids[from + i];
      indices[from + i] = static_cast<Int>(at + tap + (tap * inverse >> Bits) * next_row);
    }
  };
  constexpr int kMany = 16;
  if (count < kMany) return some(0, static_cast<int>(count));
  for (int64_t i = 0; i + kMany <= count; i += kMany) some(i, std::integral_constant<int, kMany>{});
  if (count % kMany) some(count - kMany, std::integral_constant<int, kMany>{});  // some twice, not one by one
}

// Windows that hold nothing have no index; without dilation there are none of these.
void max_indices(const PoolParams& p, void*) {
  if (p.h.dilation > 1 || p.w.dilation > 1 || p.id_bytes > 2)
    return for_each_window(p, [&](int64_t at, int64_t index, int64_t, int64_t, int64_t) { p.indices[at] = index; });
  const int64_t planes = p.channels_last ? p.N : p.N * p.C, inner = p.channels_last ? p.C : 1;
  const int64_t rows = planes * p.h.outputs, per_item = rows_of_item(p, rows, p.w.outputs * inner);
  // Half of what 32 bits hold leaves room for the padding.
  const bool small = p.h.size * p.w.size < int64_t{1} << 30 && p.id_bytes == 1;
  parallel_for(p.threads, (rows + per_item - 1) / per_item, [&](int64_t item, int) {
    const int64_t end = (item + 1) * per_item < rows ? (item + 1) * per_item : rows;
    for (int64_t row = item * per_item; row < end; ++row) {
      const int64_t top = p.h.first(row % p.h.outputs) * p.w.size, begin = row * p.w.outputs * inner;
      const auto fill = [&](int64_t from, int64_t count, int64_t origin, int64_t step) {
        const auto* bytes = static_cast<const uint8_t*>(p.ids) + begin + from;
        const auto* halves = static_cast<const uint16_t*>(p.ids) + begin + from;
        int64_t* to = p.indices + begin + from;
        if (small) return fill_indices<int32_t, 16>(p, bytes, to, count, origin, step);
        if (p.id_bytes == 1) return fill_indices<int64_t, 32>(p, bytes, to, count, origin, step);
        fill_indices<int64_t, 32>(p, halves, to, count, origin, step);
      };
      if (inner == 1 && !p.w.adaptive) {
        fill(0, p.w.outputs, top - p.w.padding, p.w.stride);
        continue;
      }
      for (int64_t q = 0; q < p.w.outputs; ++q) fill(q * inner, inner, top + p.w.first(q), 0);
    }
  });
}

template <class T>
struct MaxPick {
  static int64_t scratch(const PoolParams&) { return 0; }
  static void run(const PoolParams& p, void*) {
    const T* input = static_cast<const T*>(p.input);
    T* output = static_cast<T*>(p.output);
    const int64_t pixels = p.h.size * p.w.size;
    for_each_window(p, [&](int64_t at, int64_t index, int64_t plane, int64_t inner, int64_t c) {
      output[at] = index < 0 ? T{} : input[(plane * pixels + index) * inner + c];
    });
  }
};

template <class T>
struct MaxForward {
  static int64_t scratch(const PoolParams& p) {
    return p.id_bytes ? Forward<T, MaxId>::scratch(p) : Forward<T, Max>::scratch(p);
  }
  static void run(const PoolParams& p, void* memory) {
    return p.id_bytes ? Forward<T, MaxId>::run(p, memory) : Forward<T, Max>::run(p, memory);
  }
};

template <class T>
using AvgForward = Forward<T, Sum>;

template <template <class> class Kernel>
int64_t scratch(const PoolParams& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return Kernel<float>::scratch(p);
    case Dtype::kFloat64: return Kernel<double>::scratch(p);
    case Dtype::kBFloat16: return Kernel<bfloat16>::scratch(p);
    case Dtype::kFloat16: return Kernel<float16>::scratch(p);
  }
  return 0;
}

template <template <class> class Kernel>
void run(const PoolParams& p, void* memory) {
  switch (p.dtype) {
    case Dtype::kFloat32: return Kernel<float>::run(p, memory);
    case Dtype::kFloat64: return Kernel<double>::run(p, memory);
    case Dtype::kBFloat16: return Kernel<bfloat16>::run(p, memory);
    case Dtype::kFloat16: return Kernel<float16>::run(p, memory);
  }
}

}  // namespace

extern const PoolKernels pool_kernels = {
    {scratch<MaxForward>, run<MaxForward>},
    {scratch<MaxBackward>, run<MaxBackward>},
    {scratch<MaxPick>, run<MaxPick>},
    {no_scratch, max_indices},
    {scratch<AvgForward>, run<AvgForward>},
    {scratch<AvgBackward>, run<AvgBackward>},
    {scratch<L2Forward>, run<L2Forward>},
    {scratch<StochasticDraw>, run<StochasticDraw>},
    {scratch<StochasticMean>, run<StochasticMean>},
    {scratch<Least>, run<Least>},
};

extern const UnpoolKernels unpool_kernels = {
    {unpool::Scatter::scratch, unpool::run<unpool::Scatter>},
    {unpool::Gather::scratch, unpool::run<unpool::Gather>},
};

}  // namespace fastconv::FASTCONV_ISA
