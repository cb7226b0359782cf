// The contract between the host operators and the kernels of the rearranging family.
#pragma once
#include <cstdint>

#include "core/isa.h"

namespace fastconv {

// Transposes the two middle axes: input [outer, rows, columns, inner] to output [outer, columns, rows, inner].
// channel_shuffle is rows = groups, columns = C / groups, with inner = H * W in contiguous and inner = 1 in
// channels_last memory; channel_unshuffle is the same with rows and columns exchanged.
struct TransposeParams {
  const void* input;  // [outer, rows, columns, inner]
  void* output;       // [outer, columns, rows, inner]
  int64_t outer;      // N, or N * H * W in channels_last memory
  int64_t rows, columns;
  int64_t inner;         // elements that stay together
  int64_t element_size;  // 1, 2, 4, 8 or 16 bytes; the values are only moved
  int threads;
};

struct RearrangeKernels {
  void (*transpose)(const TransposeParams&);
};
FASTCONV_DECLARE_KERNELS(RearrangeKernels, rearrange_kernels)

}  // namespace fastconv
