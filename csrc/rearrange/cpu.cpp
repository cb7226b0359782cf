// Channel shuffle moves bytes and computes nothing, so the kernel is a copy with an order. In contiguous memory whole
// planes move (memcpy); in channels_last memory the C elements of a pixel are a small matrix to transpose, where the
// loop over the shorter side is a compile-time constant so that the compiler turns it into register shuffles.
#include "rearrange/params.h"

#include <cstring>

#include "core/parallel.h"

namespace fastconv::FASTCONV_ISA {
namespace {

constexpr int64_t kBytesPerItem = 1 << 16;  // work is handed out in pieces of about this size

struct Bytes16 {
  uint64_t low, high;
};

void transpose_planes(const TransposeParams& p) {
  const int64_t bytes = p.inner * p.element_size;
  const char* input = static_cast<const char*>(p.input);
  char* output = static_cast<char*>(p.output);
  const int64_t planes = p.outer * p.rows * p.columns;
  const int64_t per_item = bytes >= kBytesPerItem ? 1 : kBytesPerItem / (bytes + 1) + 1;
  parallel_for(p.threads, (planes + per_item - 1) / per_item, [&](int64_t item, int) {
    const int64_t end = (item + 1) * per_item < planes ? (item + 1) * per_item : planes;
    for (int64_t plane = item * per_item; plane < end; ++plane) {
      const int64_t row = plane % p.rows, column = plane / p.rows % p.columns, n = plane / (p.rows * p.columns);
      std::memcpy(output + plane * bytes, input + ((n * p.rows + row) * p.columns + column) * bytes, bytes);
    }
  });
}

// Rows == 0 and Columns == 0 mean "known only at run time".
template <class T, int Rows, int Columns>
void transpose_matrices(const TransposeParams& p, int64_t begin, int64_t end) {
  const int64_t rows = Rows ? Rows : p.rows, columns = Columns ? Columns : p.columns;
  for (int64_t n = begin; n < end; ++n) {
    const T* __restrict input = static_cast<const T*>(p.input) + n * rows * columns;
    T* __restrict output = static_cast<T*>(p.output) + n * rows * columns;
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = 0; i < rows; ++i) output[j * rows + i] = input[i * columns + j];
  }
}

template <class T>
using MatrixKernel = void (*)(const TransposeParams&, int64_t, int64_t);

template <class T>
MatrixKernel<T> choose(int64_t rows, int64_t columns) {
  switch (rows) {
    case 2: return transpose_matrices<T, 2, 0>;
    case 3: return transpose_matrices<T, 3, 0>;
    case 4: return transpose_matrices<T, 4, 0>;
    case 8: return transpose_matrices<T, 8, 0>;
  }
  switch (columns) {
    case 2: return transpose_matrices<T, 0, 2>;
    case 3: return transpose_matrices<T, 0, 3>;
    case 4: return transpose_matrices<T, 0, 4>;
    case 8: return transpose_matrices<T, 0, 8>;
  }
  return transpose_matrices<T, 0, 0>;
}

template <class T>
void transpose_pixels(const TransposeParams& p) {
  const auto kernel = choose<T>(p.rows, p.columns);
  const int64_t bytes = p.rows * p.columns * p.element_size;
  const int64_t per_item = bytes >= kBytesPerItem ? 1 : kBytesPerItem / (bytes + 1) + 1;
  parallel_for(p.threads, (p.outer + per_item - 1) / per_item, [&](int64_t item, int) {
    kernel(p, item * per_item, (item + 1) * per_item < p.outer ? (item + 1) * per_item : p.outer);
  });
}

void transpose(const TransposeParams& p) {
  if (p.inner > 1) return transpose_planes(p);
  switch (p.element_size) {
    case 1: return transpose_pixels<uint8_t>(p);
    case 2: return transpose_pixels<uint16_t>(p);
    case 4: return transpose_pixels<uint32_t>(p);
    case 8: return transpose_pixels<uint64_t>(p);
    case 16: return transpose_pixels<Bytes16>(p);
  }
}

}  // namespace

extern const RearrangeKernels rearrange_kernels = {transpose};

}  // namespace fastconv::FASTCONV_ISA
