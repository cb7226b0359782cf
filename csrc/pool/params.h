// The contract between the host operators and the kernels of the pooling family: which positions of the input each
// window has, and one struct for all of its operators.
#pragma once
#include <cstdint>

#include "core/inline.h"
#include "core/isa.h"
#include "core/view.h"

namespace fastconv {

// One axis of the windows. Window `o` has taps 0, 1, ...; tap `t` is at position first(o) + t * dilation of the input,
// and in it for begin(o) <= t < end(o). Windows that adapt to the size of the input begin and end in it:
// [floor(o * size / outputs), ceil((o + 1) * size / outputs)). `Int` holds every product of these numbers: 64 bits, but
// 32 in kernels for GPUs wherever the sizes allow it.
template <class Int>
struct PoolAxisOf {
  Int size;     // of the input
  Int outputs;  // number of windows
  Int kernel;   // taps; of the largest window where they adapt
  Int stride, padding, dilation;
  bool adaptive;  // then stride and dilation are 1, padding is 0

  FASTCONV_INLINE Int first(Int o) const {
    return !adaptive ? o * stride - padding : outputs == 1 ? 0 : o * size / outputs;
  }
  FASTCONV_INLINE Int begin(Int o) const {
    const Int start = first(o);
    return start >= 0 ? 0 : dilation == 1 ? -start : (-start + dilation - 1) / dilation;
  }
  FASTCONV_INLINE Int end(Int o) const {
    if (adaptive) return outputs == 1 ? size : ((o + 1) * size + outputs - 1) / outputs - first(o);
    const Int left = size - first(o);  // positions from tap 0 on
    const Int taps = left <= 0 ? 0 : dilation == 1 ? left : (left + dilation - 1) / dilation;
    return taps < kernel ? taps : kernel;
  }
  // How many positions the mean of a window divides by; those in the padding count or do not, those beyond it, where
  // a window was kept because of ceil_mode, never do. Of dilation 1.
  FASTCONV_INLINE Int count(Int o, bool padding_counts) const {
    if (adaptive || !padding_counts) return end(o) - begin(o);
    const Int left = size + padding - first(o);
    return left < kernel ? left : kernel;
  }
  // The windows that have position `i` for a tap are among [covering_begin(i), covering_end(i)).
  FASTCONV_INLINE Int covering_begin(Int i) const {
    if (adaptive) return i * outputs / size;
    const Int beyond = i + padding - (kernel - 1) * dilation;  // first() of the first window, padding added
    return beyond <= 0 ? 0 : (beyond + stride - 1) / stride;
  }
  FASTCONV_INLINE Int covering_end(Int i) const {
    const Int last = adaptive ? ((i + 1) * outputs + size - 1) / size : (i + padding) / stride + 1;
    return last < outputs ? last : outputs;
  }
};
using PoolAxis = PoolAxisOf<int64_t>;

// Every operator of the family. Tensors are dense, all in contiguous or all in channels_last memory. In a backward pass
// `output` holds the gradient that comes in and `input` the one that is written.
struct PoolParams {
  Dtype dtype;
  bool channels_last;
  int64_t N, C;
  PoolAxis h, w;
  void* input;   // [N, C, H, W]
  void* output;  // [N, C, P, Q]

  // max: which tap won, r * w.kernel + s, in unsigned integers of id_bytes (1, 2 or 4); none are kept where it is 0.
  void* ids;  // [N, C, P, Q]
  int id_bytes;
  int64_t* indices;  // [N, C, P, Q], where the winner is in its plane, h * W + w

  // avg: the sum of a window is divided by `divisor`, or where it is 0 by its count.
  double divisor;
  bool padding_counts;

  // stochastic: of the draws, where the tensors are; and the smallest element of the input, NaN where there is one.
  const int64_t* seed;
  double* least;

  int threads;
};

// An operator: how much memory it wants for all threads together, and how it runs.
struct PoolKernel {
  int64_t (*scratch)(const PoolParams&);  // bytes
  void (*run)(const PoolParams&, void* scratch);
};

struct PoolKernels {
  PoolKernel max;           // output, and ids where they are kept, from input
  PoolKernel max_backward;  // input from output and ids
  PoolKernel max_pick;      // output: the input at the ids
  PoolKernel max_indices;   // indices from ids
  PoolKernel avg;           // output from input
  PoolKernel avg_backward;  // input from output
  PoolKernel l2;            // output from input: the roots of sums of squares
  PoolKernel stochastic;    // output and ids from input
  PoolKernel weighted;      // output from input: means weighted by the elements themselves
  PoolKernel least;         // least from input
};
FASTCONV_DECLARE_KERNELS(PoolKernels, pool_kernels)

// Unpooling: elements between `windows` of each plane and the `positions` that their indices say. Elements are moved as
// they are. Tensors are dense, all in contiguous or all in channels_last memory.
struct UnpoolParams {
  int element_bytes;  // 2, 4 or 8
  bool channels_last;
  int64_t N, C;
  int64_t windows;         // of a plane, P * Q
  int64_t positions;       // of a plane, H * W
  const int64_t* indices;  // [N, C, windows], each in [0, positions)
  void* values;            // [N, C, windows]
  void* planes;            // [N, C, positions]
  int64_t* first_wrong;    // in: N * C * windows; out: which index is the first in memory that is no position
  int threads;
};

// Where an index is wrong what is written is of no meaning, but nothing is read or written outside of the tensors.
struct UnpoolKernel {
  int64_t (*scratch)(const UnpoolParams&);  // bytes
  void (*run)(const UnpoolParams&, void* scratch);
};

struct UnpoolKernels {
  UnpoolKernel scatter;  // planes from values: zero where no index points, of equal indices the last
  UnpoolKernel gather;   // values from planes
};
FASTCONV_DECLARE_KERNELS(UnpoolKernels, unpool_kernels)

}  // namespace fastconv
