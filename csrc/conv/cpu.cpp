// The table of convolution kernels of one instruction set, in the order in which they are asked. Each row is a type
// with `preferred<A>`, `plan<A>` (A: what is computed in), `pack<T>` and `run<T>` (T: what is stored), at the end of
// its header.
#include "conv/channel.h"
#include "conv/channel_grad.h"
#include "conv/depthwise.h"
#include "conv/diagonal.h"
#include "conv/diagonal_grad.h"
#include "conv/direct.h"
#include "conv/flat.h"
#include "conv/general.h"
#include "conv/grouped.h"
#include "conv/grouped_grad.h"
#include "conv/layout.h"
#include "conv/panel.h"
#include "conv/params.h"
#include "conv/pixel.h"
#include "conv/rows.h"
#include "conv/winograd.h"
#include "conv/winograd_1d.h"

namespace fastconv::FASTCONV_ISA {
namespace {

template <class Kernel>
bool preferred(const ConvParams& p) {
  return p.dtype == Dtype::kFloat64 ? Kernel::template preferred<double>(p) : Kernel::template preferred<float>(p);
}

// Whether a kernel knows inputs that are spread out.
template <class Kernel>
constexpr bool kSpreads = false;
template <>
constexpr bool kSpreads<ChannelForward> = true;
template <>
constexpr bool kSpreads<RowsForward> = true;
template <>
constexpr bool kSpreads<PanelForward> = true;
template <>
constexpr bool kSpreads<GroupedForward> = true;
template <>
constexpr bool kSpreads<DiagonalForward> = true;
template <>
constexpr bool kSpreads<DepthwiseRows> = true;

template <class Kernel>
bool plan(const ConvParams& p, ConvPlan& out) {
  if (spread(p) && !kSpreads<Kernel>) return false;
  static_assert(sizeof(typename Kernel::Plan) <= sizeof(out.detail), "make ConvPlan larger");
  typename Kernel::Plan detail;
  out.memory = {0, 0};
  const bool can = p.dtype == Dtype::kFloat64 ? Kernel::template plan<double>(p, detail, out.memory)
                                              : Kernel::template plan<float>(p, detail, out.memory);
  if (can) __builtin_memcpy(out.detail, &detail, sizeof detail);
  return can;
}

template <class Kernel, class... Memory>
void run(const ConvParams& p, const ConvPlan& in, Memory... memory) {
  typename Kernel::Plan detail;
  __builtin_memcpy(&detail, in.detail, sizeof detail);
  switch (p.dtype) {
    case Dtype::kFloat32: return Kernel::template run<float>(p, detail, memory...);
    case Dtype::kFloat64: return Kernel::template run<double>(p, detail, memory...);
    case Dtype::kBFloat16: return Kernel::template run<bfloat16>(p, detail, memory...);
    case Dtype::kFloat16: return Kernel::template run<float16>(p, detail, memory...);
  }
}

template <class Kernel>
void pack(const ConvParams& p, const ConvPlan& in, void* packed) {
  typename Kernel::Plan detail;
  __builtin_memcpy(&detail, in.detail, sizeof detail);
  switch (p.dtype) {
    case Dtype::kFloat32: return Kernel::template pack<float>(p, detail, packed);
    case Dtype::kFloat64: return Kernel::template pack<double>(p, detail, packed);
    case Dtype::kBFloat16: return Kernel::template pack<bfloat16>(p, detail, packed);
    case Dtype::kFloat16: return Kernel::template pack<float16>(p, detail, packed);
  }
}

template <class Kernel>
constexpr ConvKernel row(const char* name) {
  return {name, preferred<Kernel>, plan<Kernel>, pack<Kernel>, run<Kernel, const void*, void*>};
}

template <class Kernel>
constexpr ConvGradKernel grad_row(const char* name) {
  return {name, preferred<Kernel>, plan<Kernel>, run<Kernel, void*>};
}

void turn(const ConvTurn& t) {
  switch (t.dtype) {
    case Dtype::kFloat32: return turn_layout<float>(t.to, t.from, t.N, t.C, t.H, t.W, t.threads);
    case Dtype::kFloat64: return turn_layout<double>(t.to, t.from, t.N, t.C, t.H, t.W, t.threads);
    case Dtype::kBFloat16: return turn_layout<bfloat16>(t.to, t.from, t.N, t.C, t.H, t.W, t.threads);
    case Dtype::kFloat16: return turn_layout<float16>(t.to, t.from, t.N, t.C, t.H, t.W, t.threads);
  }
}

}  // namespace

extern const ConvKernels conv_kernels = {
    {row<DepthwiseFlat>("depthwise_flat"), row<DiagonalForward>("depthwise_diagonals"),
     row<DepthwiseRows>("depthwise_rows"), row<DepthwisePixels>("depthwise_pixels"), row<DepthwiseForward>("depthwise"),
     row<Winograd1dForward>("winograd_1d"), row<RowsForward>("rows"), row<WinogradForward>("winograd"),
     row<GroupedForward>("grouped"), row<PanelForward>("panel"), row<ChannelForward>("channel"),
     row<PixelForward>("pixel"), row<GeneralForward>("general")},
    {grad_row<DepthwiseFlatGradWeight>("depthwise_flat"), grad_row<DiagonalGradWeight>("depthwise_diagonals"),
     grad_row<DepthwiseGradWeight>("depthwise"), grad_row<GroupedGradWeight>("grouped"),
     grad_row<ChannelGradWeight>("channel"), grad_row<PixelGradWeight>("pixel"),
     grad_row<GeneralGradWeight>("general")},
    turn,
};

}  // namespace fastconv::FASTCONV_ISA
