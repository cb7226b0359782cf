// Every operator that fastconv registers with PyTorch. Names with an underscore are private: their arguments may
// change from release to release.
#include "core/torch.h"

namespace fastconv {
namespace {

constexpr const char* kSchemas[] = {
    "channel_shuffle(Tensor input, int groups) -> Tensor",
    "channel_unshuffle(Tensor input, int groups) -> Tensor",
};

}  // namespace

STABLE_TORCH_LIBRARY(fastconv, m) {
  for (const char* schema : kSchemas) m.def(schema);
}

}  // namespace fastconv
