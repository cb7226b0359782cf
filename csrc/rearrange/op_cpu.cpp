#include "rearrange/check.h"

namespace fastconv {
namespace {

constexpr int64_t kSmallBytes = 1 << 16;  // below this a second thread costs more than it moves

Tensor run(const char* op, Tensor input, int64_t groups, bool inverse) {
  TransposeParams params;
  Tensor output = prepare_channel_shuffle(op, input, groups, inverse, params);
  if (output.numel() == 0) return output;
  const bool small = output.numel() * params.element_size < kSmallBytes;
  params.threads = small ? 1 : static_cast<int>(torch::stable::get_num_threads());
  FASTCONV_KERNELS(rearrange_kernels).transpose(params);
  return output;
}

Tensor channel_shuffle(Tensor input, int64_t groups) { return run("channel_shuffle", input, groups, false); }
Tensor channel_unshuffle(Tensor input, int64_t groups) { return run("channel_unshuffle", input, groups, true); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  implement(m, "channel_shuffle", TORCH_BOX(&channel_shuffle));
  implement(m, "channel_unshuffle", TORCH_BOX(&channel_unshuffle));
}

}  // namespace fastconv
