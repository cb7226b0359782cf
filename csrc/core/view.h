// What a kernel sees of a tensor: a pointer, and what the elements are. Kernels know no PyTorch.
#pragma once
#include <cstdint>

namespace fastconv {

enum class Dtype : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// 16-bit storage; arithmetic on them happens in float32 (see vec.h).
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// A [N, C, H, W] tensor; strides in elements, of any sign.
struct View4 {
  void* data;
  int64_t n, c, h, w;
};

// A dense tensor in channels_last.
inline View4 channels_last_view(void* data, int64_t C, int64_t H, int64_t W) { return {data, H * W * C, 1, W * C, C}; }

}  // namespace fastconv
