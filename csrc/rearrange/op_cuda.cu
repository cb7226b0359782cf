// channel_shuffle and channel_unshuffle for CUDA tensors: the same paragraphs as op_cpu.cpp.
#include "core/torch_cuda.h"
#include "rearrange/check.h"
#include "rearrange/cuda.cuh"

namespace fastconv {
namespace {

Tensor run(const char* op, Tensor input, int64_t groups, bool inverse) {
  const CudaGuard guard(op, input);
  TransposeParams params;
  Tensor output = prepare_channel_shuffle(op, input, groups, inverse, params);
  if (output.numel() == 0) return output;
  transpose(params, guard.stream());
  return output;
}

Tensor channel_shuffle(Tensor input, int64_t groups) { return run("channel_shuffle", input, groups, false); }
Tensor channel_unshuffle(Tensor input, int64_t groups) { return run("channel_unshuffle", input, groups, true); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  implement(m, "channel_shuffle", TORCH_BOX(&channel_shuffle));
  implement(m, "channel_unshuffle", TORCH_BOX(&channel_unshuffle));
}

}  // namespace fastconv
