// The contract between the host operators and the kernels of the family of regions of interest: boxes on a map, each
// divided into bins, and one struct for all of its operators.
#pragma once
#include <cstdint>

#include "core/isa.h"
#include "core/view.h"

namespace fastconv {

// What a bin holds, as Mask R-CNN (align) or Fast R-CNN (pool) define it, and the position-sensitive twins of R-FCN
// (ps), whose bin (p, q) of channel c looks only at channel (c * P + p) * Q + q of the input.
//
//   kAlign    the mean of samples between the pixels, bilinear
//   kPool     the largest of whole pixels
//   kPsAlign  as kAlign, always with `aligned` coordinates, and narrow boxes as they are
//   kPsPool   the mean of whole pixels
enum class Roi : int32_t { kAlign, kPool, kPsAlign, kPsPool };

// Every operator of the family. Tensors are dense; input and output are both contiguous or both in channels_last
// memory. In a backward pass `output` holds the gradient that comes in and `input` the one that is written.
struct RoiParams {
  Dtype dtype;
  Roi kind;
  bool channels_last;
  int64_t N, C, H, W;  // of the input
  int64_t channels;    // of the output: C, or C / (P * Q) where kind is position-sensitive
  int64_t K;           // boxes
  int64_t P, Q;        // bins of a box
  double scale;        // from the boxes' coordinates to those of the map
  int64_t sampling;    // kAlign, kPsAlign: samples a bin in each direction; 0: as many as it spans pixels, rounded up
  bool aligned;        // kAlign: pixels have their centres at .5, and boxes may be narrower than a pixel
  const void* boxes;   // [K, 5]: index in the batch, x1, y1, x2, y2; float64 where the input is, else float32
  void* input;         // [N, C, H, W]
  void* output;        // [K, channels, P, Q]
  int32_t* ids;        // [K, channels, P, Q], kPool: where in its plane the largest is, -1 in empty bins; or null
  int threads;
};

// An operator: how much memory it wants for all threads together, and how it runs. All boxes are finite and their
// indices in the batch.
struct RoiKernel {
  int64_t (*scratch)(const RoiParams&);  // bytes
  void (*run)(const RoiParams&, void* scratch);
};

struct RoiKernels {
  RoiKernel forward;   // output, and ids where they are wanted, from input
  RoiKernel backward;  // input from output (kPool: and ids)
  RoiKernel pick;      // kPool: output, the input at the ids
};
FASTCONV_DECLARE_KERNELS(RoiKernels, roi_kernels)

}  // namespace fastconv
