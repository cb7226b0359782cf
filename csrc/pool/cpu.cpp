// The table of pooling kernels of one instruction set.
#include "pool/backward.h"
#include "pool/forward.h"
#include "pool/indices.h"
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

// Windows that hold nothing have no index; without dilation there are none of these.
void max_indices(const PoolParams& p, void* memory) {
  if (p.h.dilation > 1 || p.w.dilation > 1 || p.id_bytes > 2)
    return for_each_window(p, [&](int64_t at, int64_t index, int64_t, int64_t, int64_t) { p.indices[at] = index; });
  MaxIndices::run(p, memory);
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
    {MaxIndices::scratch, max_indices},
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
