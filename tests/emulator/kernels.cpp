// The library's CUDA kernels as the emulator runs them: one entry per operator, called by the tests of its family.
#include "entry.h"
#include "rearrange/cuda.cuh"

extern "C" const char* emulated_transpose(const void* input, void* output, int64_t outer, int64_t rows, int64_t columns,
                                          int64_t inner, int64_t element_size, int64_t max_grid) {
  return error_of([&] {
    const fastconv::TransposeParams params{input, output, outer, rows, columns, inner, element_size, 1};
    fastconv::transpose(params, {"channel_shuffle", 0, nullptr}, max_grid);
  });
}

// The divisions that kernels do by multiplication: how many of `count` dividends come out wrong.
extern "C" int64_t emulated_divisor_errors(uint32_t divisor, const uint32_t* dividends, int64_t count) {
  const fastconv::Divisor<uint32_t> by(divisor);
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) wrong += by.divide(dividends[i]) != dividends[i] / divisor;
  return wrong;
}

// The planes kernel for tensors whose samples pass 2^31 elements, at a size that a test can afford.
extern "C" const char* emulated_transpose_64(const void* input, void* output, int64_t outer, int64_t rows,
                                             int64_t columns, int64_t inner) {
  return error_of([&] {
    const fastconv::TransposeParams params{input, output, outer, rows, columns, inner, 2, 1};
    fastconv::launch_planes<uint32_t, uint16_t, uint64_t>(params, 2 * inner, 2, {"channel_shuffle", 0, nullptr},
                                                          fastconv::kMaxGrid);
  });
}
