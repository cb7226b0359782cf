// Convolution on CUDA: the kernels behind the names of cuda_choice.h. Forward kernels also serve the input gradient and
// transposed convolutions, as convolutions of an input that is spread out. Nothing waits for the GPU, and each call
// gives the same bits again.
#pragma once
#include <iterator>

#include "conv/cuda_depthwise.cuh"
#include "conv/cuda_depthwise_weight.cuh"
#include "conv/cuda_general.cuh"
#include "conv/cuda_grouped.cuh"
#include "conv/cuda_products.cuh"
#include "conv/cuda_weight_tensor.cuh"

namespace fastconv {
namespace {

struct ConvCudaGradWeight {
  int64_t (*scratch)(const ConvParams&, const ConvLimits&);  // bytes of device memory that `run` needs
  void (*run)(const ConvLauncher&);
};

// In the order of their rules.
constexpr void (*kConvForward[])(const ConvLauncher&) = {
    conv_planes_forward, conv_pixels_forward, conv_products_forward, conv_grouped_forward, conv_general_forward};
constexpr ConvCudaGradWeight kConvGradWeight[] = {{conv_depthwise_scratch, conv_depthwise_grad_weight},
                                                  {conv_group_scratch, conv_group_grad_weight},
                                                  {conv_weight_products_scratch, conv_products_grad_weight},
                                                  {conv_pairs_scratch, conv_pairs_grad_weight}};
static_assert(std::size(kConvForward) == std::size(kConvCudaForward), "one kernel for each rule");
static_assert(std::size(kConvGradWeight) == std::size(kConvCudaGradWeight), "one kernel for each rule");

// The place in its table of the kernel that serves, or of the only one that may.
template <size_t Count>
size_t conv_place(const char* op, const ConvCudaRule (&table)[Count], const ConvParams& p, const char* only) {
  return static_cast<size_t>(&conv_served(op, conv_cuda_choose(table, p, only), only) - table);
}

// A convolution, and the bytes of device memory that it needs; `only`: the name of the kernel that has to serve it.
inline int64_t conv_scratch(const ConvParams& p, const char* op, const ConvLimits& limits = {},
                            const char* only = nullptr) {
  const ConvMemory memory = kConvCudaForward[conv_place(op, kConvCudaForward, p, only)].memory(p, limits);
  return conv_behind_packed(memory) + memory.scratch;
}
inline void conv_forward(const ConvParams& p, void* scratch, const Stream& stream, const ConvLimits& limits = {},
                         const char* only = nullptr) {
  kConvForward[conv_place(stream.op, kConvCudaForward, p, only)]({p, stream, limits, scratch});
}

// The same for the gradient of the weight, which is dense.
inline int64_t conv_grad_weight_scratch(const ConvParams& p, const char* op, const ConvLimits& limits = {},
                                        const char* only = nullptr) {
  return kConvGradWeight[conv_place(op, kConvCudaGradWeight, p, only)].scratch(p, limits);
}
inline void conv_grad_weight(const ConvParams& p, void* scratch, const Stream& stream, const ConvLimits& limits = {},
                             const char* only = nullptr) {
  kConvGradWeight[conv_place(stream.op, kConvCudaGradWeight, p, only)].run({p, stream, limits, scratch});
}

}  // namespace
}  // namespace fastconv
