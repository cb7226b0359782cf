// Deformable convolution on CUDA: the output (cuda_forward.cuh) and the gradients of offsets and masks
// (cuda_offset.cuh), weights (cuda_weight.cuh) and the input (cuda_input.cuh), each only where it is wanted. Nothing
// waits for the GPU, and each call gives the same bits again.
#pragma once
#include "deform/cuda_forward.cuh"
#include "deform/cuda_input.cuh"
#include "deform/cuda_offset.cuh"
#include "deform/cuda_weight.cuh"

namespace fastconv {
namespace {

// Where what is in a call's scratch begins.
struct DeformScratch {
  int64_t reaches, sums, bytes;

  DeformScratch(const DeformParams& p, const DeformLimits& limits) {
    reaches = aligned_up(deform_packed_bytes(p));
    sums = reaches + aligned_up(deform_reaches_bytes(p));
    bytes = sums + deform_sums_bytes(p, limits);
  }

 private:
  static int64_t aligned_up(int64_t bytes) { return ceil_divide(bytes, 256) * 256; }
};

// Bytes of device memory that a call needs.
inline int64_t deform_scratch(const DeformParams& p, const DeformLimits& limits = {}) {
  return DeformScratch(p, limits).bytes;
}

inline void deform_backward(const DeformParams& p, void* scratch, const Stream& stream,
                            const DeformLimits& limits = {}) {
  const DeformLauncher call = {p, stream, limits};
  const DeformScratch at(p, limits);
  char* memory = static_cast<char*>(scratch);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    DeformArgs args = call.args();
    args.packed = memory;
    if (p.weight && (p.grad_input || p.grad_offset || p.grad_mask)) deform_packed<T>(call, args);
    if (p.grad_offset || p.grad_mask) deform_offset_backward<T>(call, args);
    if (p.grad_weight) deform_weight_backward<T>(call, args, memory + at.sums);
    if (p.grad_input) deform_input_backward<T>(call, args, memory + at.reaches);
  });
}

}  // namespace
}  // namespace fastconv
