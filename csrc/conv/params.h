// The contract between the host operators and the kernels of the convolution family.
#pragma once
#include <cstdint>

#include "core/isa.h"
#include "core/view.h"

namespace fastconv {

enum class Activation : int32_t { kNone, kRelu, kRelu6, kSilu, kHardswish };

// One grouped convolution,
//   output[n, g*K + k, p, q] = activation(residual[n, g*K + k, p, q] + bias[g*K + k] +
//     sum over c, r, s of weight[g][k, c, r, s] *
//       input[n, g*C + c, p * stride_h + r * dilation_h - pad_h, q * stride_w + s * dilation_w - pad_w]),
// where input is zero outside [0, H) x [0, W). Where it is spread out (up_h, up_w > 1, and strides of 1 then), up_h - 1
// rows of zeros lie between any two rows of it: row h of the formula is row h / up_h of the tensor, or zero.
//
// Every direction comes down to it: the input gradient is such a convolution of grad_output, spread out by the stride,
// with weights read backwards and C and K exchanged. Where no kernel serves that, it is an ordinary convolution for
// each residue of the position modulo the stride (strides may be negative, padding may be negative, output may be a
// lattice of a larger tensor). For the weight gradient, `output` holds grad_output and is read, and `weight` is
// written.
struct ConvParams {
  Dtype dtype;               // of input, weight, bias and output
  int64_t N, G;              // images, groups
  int64_t C, K;              // input and output channels of one group
  int64_t H, W, P, Q, R, S;  // sizes of input, output and kernel
  int64_t stride_h, stride_w, dilation_h, dilation_w;
  int64_t pad_h, pad_w;  // rows above and columns to the left, of the input spread out; negative crops
  int64_t up_h, up_w;    // by how much the input is spread out
  View4 input;           // [N, G*C, H, W], w or c of stride 1
  View4 weight;          // [K, C, R, S] of group 0
  int64_t weight_g;      // elements from one group's weights to the next
  const void* bias;      // [G*K] or null
  View4 output;          // [N, G*K, P, Q]
  const void* residual;  // like output, with the same strides, or null
  Activation activation;
  bool tf32;       // float32 may be rounded to TF32 before it is multiplied; false for other types
  bool prepacked;  // the weights were packed by an earlier call, so the plan may not pack them anew where they are used
  bool halved;     // see isa_halves_vectors: arithmetic costs more beside all else
  int threads;

  int64_t element_size() const { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }
};

// What a kernel decided for some params: how much memory it needs beside its arguments (bytes, 64-byte aligned), and
// whatever else it wants to find again.
struct ConvMemory {
  int64_t packed;   // for the weights in the order in which the kernel reads them
  int64_t scratch;  // for all threads together
};
struct ConvPlan {
  ConvMemory memory;
  alignas(16) unsigned char detail[496];
};

// One implementation. The first of the table that is preferred and can plan is run. `preferred` says whether it should
// serve these params; `plan` whether it can. What `pack` wrote serves every `run` with the same plan.
struct ConvKernel {
  const char* name;
  bool (*preferred)(const ConvParams&);
  bool (*plan)(const ConvParams&, ConvPlan&);
  void (*pack)(const ConvParams&, const ConvPlan&, void* packed);
  void (*run)(const ConvParams&, const ConvPlan&, const void* packed, void* scratch);
};

struct ConvGradKernel {
  const char* name;
  bool (*preferred)(const ConvParams&);
  bool (*plan)(const ConvParams&, ConvPlan&);
  void (*run)(const ConvParams&, const ConvPlan&, void* scratch);
};

// A copy in the other layout: to[n, c, h, w] = from[n, c, h, w], where one has its columns and the other its channels
// side by side.
struct ConvTurn {
  View4 to, from;
  int64_t N, C, H, W;
  Dtype dtype;
  int threads;
};

struct ConvKernels {
  ConvKernel forward[13];  // also the input gradient
  ConvGradKernel grad_weight[7];
  void (*turn)(const ConvTurn&);
};
FASTCONV_DECLARE_KERNELS(ConvKernels, conv_kernels)

// What instruction sets beyond AVX-512 add; asked first.
struct ConvExtraKernels {
  ConvKernel forward[3];
};
FASTCONV_DECLARE_EXTRA_KERNELS(ConvExtraKernels, conv_extra_kernels)

}  // namespace fastconv
