// The convolution kernels that only instruction sets beyond AVX-512 have, compiled for those alone.
#include "conv/pairs.h"

namespace fastconv::FASTCONV_ISA {
namespace {

bool plan(const ConvParams& p, ConvPlan& out) {
  static_assert(sizeof(PairsPlan) <= sizeof(out.detail), "make ConvPlan larger");
  PairsPlan detail;
  out.memory = {0, 0};
  const bool can = PairsForward::plan(p, detail, out.memory);
  if (can) __builtin_memcpy(out.detail, &detail, sizeof detail);
  return can;
}

PairsPlan detail_of(const ConvPlan& plan) {
  PairsPlan detail;
  __builtin_memcpy(&detail, plan.detail, sizeof detail);
  return detail;
}

void pack(const ConvParams& p, const ConvPlan& plan, void* packed) { PairsForward::pack(p, detail_of(plan), packed); }

void run(const ConvParams& p, const ConvPlan& plan, const void* packed, void* scratch) {
  PairsForward::run(p, detail_of(plan), packed, scratch);
}

}  // namespace

extern const ConvExtraKernels conv_extra_kernels = {{{"pairs", PairsForward::preferred, plan, pack, run}}};

}  // namespace fastconv::FASTCONV_ISA
