// The contract between the host operators and the kernels of deformable convolution, with weights (deform_conv2d) and
// without (deform_sample2d).
#pragma once
#include <cstdint>

#include "core/isa.h"
#include "core/view.h"

namespace fastconv {

// [N, channels, P, Q], in contiguous or in channels_last memory; elements from one to the next.
struct DeformMap {
  void* data;
  int64_t image, channel, pixel;
};

// Tap (r, s) of output (p, q) looks at the input at
//   y = p * stride_h - padding_h + r * dilation_h + offset[2 * t][p, q],
//   x = q * stride_w - padding_w + s * dilation_w + offset[2 * t + 1][p, q],   t = (g * R + r) * S + s,
// between its pixels, bilinear, and outside of it at zeros; g is the channel's offset group. What it sees there is
// multiplied by mask[t][p, q], where there is a mask, and by the weight.
//
// Input and output are both dense in contiguous or both in channels_last memory.
struct DeformParams {
  Dtype dtype;
  bool channels_last;
  int64_t N, C, H, W;  // of the input; H * W has 31 bits
  int64_t K, R, S;     // of the weight
  int64_t P, Q;        // of the output
  int64_t stride[2], padding[2], dilation[2];
  int64_t groups, offset_groups;

  const void* input;   // [N, C, H, W]
  DeformMap offset;    // [N, 2 * offset_groups * R * S, P, Q]
  DeformMap mask;      // [N, offset_groups * R * S, P, Q], or null
  const void* weight;  // [K, C / groups, R, S], contiguous; or null: then K is C, groups 1, and samples are added up
  const void* bias;    // [K], or null
  void* output;        // [N, K, P, Q]; the gradient that comes in, in a backward pass

  // What is not wanted is null. grad_offset and grad_mask lie in memory as offset and mask do.
  void* grad_input;   // [N, C, H, W]
  void* grad_offset;  // [N, 2 * offset_groups * R * S, P, Q]
  void* grad_mask;    // [N, offset_groups * R * S, P, Q]
  void* grad_weight;  // [K, C / groups, R, S], contiguous

  int threads;
};

struct DeformKernel {
  int64_t (*scratch)(const DeformParams&);  // bytes, for all threads together
  void (*run)(const DeformParams&, void* scratch);
};

struct DeformKernels {
  DeformKernel forward;   // output from input, with weights
  DeformKernel sampling;  // the same without
  DeformKernel backward;  // of either
};
FASTCONV_DECLARE_KERNELS(DeformKernels, deform_kernels)

}  // namespace fastconv
