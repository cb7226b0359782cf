// The table of kernels for regions of interest of one instruction set.
#include "roi/largest.h"
#include "roi/mean.h"
#include "roi/params.h"
#include "roi/passes.h"
#include "roi/position_sensitive.h"

namespace fastconv::FASTCONV_ISA {
namespace {

// Each runs, or where there is no memory yet counts how much it takes.

template <class T>
void forward(const RoiParams& p, Memory& memory) {
  using A = Accumulate<T>;
  const Boxes<A> boxes(p, memory);
  if (p.kind == Roi::kPsAlign || p.kind == Roi::kPsPool) {
    const PositionSensitive<T> means(p, boxes, false, memory);
    if (!memory.counts) means.forward();
    return;
  }
  const int vectors = p.channels_last ? kBlock : block_vectors<A>(p);
  const OwnOf<A> own(p, vectors, !p.channels_last && vectors != kOne, p.kind == Roi::kPool, memory);
  const auto run = [&](const auto& kernel) {
    const ForwardPass<T, std::decay_t<decltype(kernel)>> pass = {p, boxes, kernel, own, vectors};
    if (memory.counts) return;
    if (p.channels_last)
      pass.by_box();
    else
      pass.by_block();
  };
  if (p.kind == Roi::kPool) return run(LargestOf<A>{boxes});
  A* lines = memory.take<A>(p.threads * p.W * kPixelBytes / static_cast<int64_t>(sizeof(A)));
  run(Mean<A>{boxes, lines});
}

template <class T>
void backward(const RoiParams& p, Memory& memory) {
  using A = Accumulate<T>;
  const Boxes<A> boxes(p, memory);
  if (p.kind == Roi::kPsAlign || p.kind == Roi::kPsPool) {
    const PositionSensitive<T> means(p, boxes, true, memory);
    if (!memory.counts) means.backward();
    return;
  }
  if (p.kind == Roi::kPool) {
    const LargestGrad<T> grad(p, boxes, memory);
    if (!memory.counts) grad.run();
    return;
  }
  const int vectors = block_vectors<A>(p);
  using Pass = BackwardPass<T>;
  const OwnOf<A> own(p, vectors, Pass::needs_map(p, vectors), false, memory);
  A* lines = memory.take<A>(p.threads * p.W * kPixelBytes / static_cast<int64_t>(sizeof(A)));
  if (!memory.counts) Pass{p, boxes, Mean<A>{boxes, lines}, own, vectors}.run();
}

template <class T>
void pick(const RoiParams& p, Memory&) {
  using A = Accumulate<T>;
  const int64_t bins = p.P * p.Q, positions = p.H * p.W;
  parallel_for(p.threads, p.K, [&](int64_t k, int) {
    const int64_t image = static_cast<int64_t>(static_cast<const A*>(p.boxes)[5 * k]);
    const T* from = static_cast<const T*>(p.input) + image * p.C * positions;
    T* to = static_cast<T*>(p.output) + k * p.C * bins;
    const int32_t* ids = p.ids + k * p.C * bins;
    for (int64_t i = 0; i < p.C * bins; ++i) {
      const int64_t id = ids[i], c = p.channels_last ? i % p.C : i / bins;
      const bool inside = id >= 0 && id < positions;
      to[i] = inside ? from[p.channels_last ? id * p.C + c : c * positions + id] : T{};
    }
  });
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

struct Forward {
  template <class T>
  static void run(T, const RoiParams& p, Memory& memory) {
    forward<T>(p, memory);
  }
};
struct Backward {
  template <class T>
  static void run(T, const RoiParams& p, Memory& memory) {
    backward<T>(p, memory);
  }
};
struct Pick {
  template <class T>
  static void run(T, const RoiParams& p, Memory& memory) {
    if (!memory.counts) pick<T>(p, memory);
  }
};

template <class Kernel>
int64_t scratch(const RoiParams& p) {
  Memory memory;
  with_element(p.dtype, [&](auto element) { Kernel::run(element, p, memory); });
  return memory.used;
}
template <class Kernel>
void run(const RoiParams& p, void* scratch) {
  Memory memory(scratch);
  with_element(p.dtype, [&](auto element) { Kernel::run(element, p, memory); });
}

}  // namespace

extern const RoiKernels roi_kernels = {
    {scratch<Forward>, run<Forward>},
    {scratch<Backward>, run<Backward>},
    {scratch<Pick>, run<Pick>},
};

}  // namespace fastconv::FASTCONV_ISA
