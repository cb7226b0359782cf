// The convolution kernels that only instruction sets beyond AVX-512 have, compiled for those alone.
#include <cstring>

#include "conv/pairs.h"
#include "conv/pixel_pairs.h"
#include "conv/winograd.h"

namespace fastconv::FASTCONV_ISA {
namespace {

template <class Kernel>
bool plan(const ConvParams& p, ConvPlan& out) {
  using Plan = typename Kernel::Plan;
  static_assert(sizeof(Plan) <= sizeof(out.detail), "make ConvPlan larger");
  Plan detail;
  out.memory = {0, 0};
  const bool can = Kernel::plan(p, detail, out.memory);
  if (can) __builtin_memcpy(out.detail, &detail, sizeof detail);
  return can;
}

template <class Kernel>
typename Kernel::Plan detail_of(const ConvPlan& plan) {
  typename Kernel::Plan detail;
  __builtin_memcpy(&detail, plan.detail, sizeof detail);
  return detail;
}

template <class Kernel>
void pack(const ConvParams& p, const ConvPlan& plan, void* packed) {
  Kernel::pack(p, detail_of<Kernel>(plan), packed);
}

template <class Kernel>
void run(const ConvParams& p, const ConvPlan& plan, const void* packed, void* scratch) {
  Kernel::run(p, detail_of<Kernel>(plan), packed, scratch);
}

template <class Kernel>
constexpr ConvKernel row(const char* name) {
  return {name, Kernel::preferred, plan<Kernel>, pack<Kernel>, run<Kernel>};
}

// ---- the Winograd kernel of the table for AVX-512, for bfloat16 and asked before the dot products: where those are
// vectors it saves more than they do, in float32. With tiles it never does.

const ConvKernel& winograd() {
  for (const ConvKernel& kernel : avx512::conv_kernels.forward)
    if (std::strcmp(kernel.name, "winograd") == 0) return kernel;
  __builtin_unreachable();
}

bool winograd_preferred(const ConvParams& p) {
  // A vector of dot products does two multiply-adds a lane. From dilation 4 on lattices cost more than they are counted
  // (rate 4, 512@65, two threads of a Zen 4: 55 ms, by `pairs` 45; rate 3, 512@38x57: 24 and 26).
  const double far = max64(p.dilation_h, p.dilation_w) >= 4 ? 0.8 : 1;
  const double dot_cycles = (p.halved ? 0.55 : 0.29) * far;
  return kPiecesAtOnce == 1 && p.dtype == Dtype::kBFloat16 && PairsForward::preferred(p) && p.C >= 32 && p.K >= 32 &&
         winograd_pays(p, dot_cycles);
}
bool winograd_plan(const ConvParams& p, ConvPlan& out) {
  return p.dtype == Dtype::kBFloat16 && winograd().plan(p, out);
}
void winograd_pack(const ConvParams& p, const ConvPlan& plan, void* packed) { winograd().pack(p, plan, packed); }
void winograd_run(const ConvParams& p, const ConvPlan& plan, const void* packed, void* scratch) {
  winograd().run(p, plan, packed, scratch);
}

}  // namespace

extern const ConvExtraKernels conv_extra_kernels = {{
    {"winograd_bfloat16", winograd_preferred, winograd_plan, winograd_pack, winograd_run},
    row<PixelPairsForward>("pixel_pairs"),
    row<PairsForward>("pairs"),
}};

}  // namespace fastconv::FASTCONV_ISA
