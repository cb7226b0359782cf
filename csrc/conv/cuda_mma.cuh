// Products on tensor cores, of 16-bit types or of float32 in TF32: which part of a tile in shared memory a lane of a
// warp has in its registers, whatever the type. A float32 number is rounded on its way there, so that asynchronous
// copies can bring it into shared memory as it is.
#pragma once
#include "conv/cuda_args.cuh"

namespace fastconv {
namespace {

// Terms of the sum that one instruction adds up; 16 rows by 8 columns of the result.
template <class T>
constexpr int kTensorDepth = 32 / static_cast<int>(sizeof(T));

// [16, depth] of four matrices of 16 bytes by 8 rows, those of the first rows first: `row` is the lane's row of them.
template <class T>
__device__ __forceinline__ void conv_load_pieces(uint32_t (&a)[4], const void* row) {
  load_matrices<false>(a, row);
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (uint32_t& bits : a) {
      float value;
      copy_wide<4>(&value, &bits);
      bits = to_tf32(value);
    }
  }
}
// Of a tile whose rows are those of the result; `tile` is the first of them, `line` elements before the next.
template <class T>
__device__ __forceinline__ void conv_load_rows(uint32_t (&a)[4], const T* tile, int line, int lane) {
  conv_load_pieces<T>(a, tile + lane % 16 * line + lane / 16 * kWide<T>);
}
// The same, of a tile whose rows are terms: the result's rows are its columns.
template <class T>
__device__ __forceinline__ void conv_load_rows_turned(uint32_t (&a)[4], const T* tile, int line, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_matrices<true>(a, tile + (lane / 16 * 8 + lane % 8) * line + lane / 8 % 2 * 8);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = to_tf32(tile[(lane % 4 + i / 2 * 4) * line + lane / 4 + i % 2 * 8]);
  }
}
// [depth, 8] twice, the second of the next eight columns, of a tile whose rows are terms.
template <class T>
__device__ __forceinline__ void conv_load_columns(uint32_t (&b)[2][2], const T* tile, int line, int lane) {
  if constexpr (sizeof(T) == 2) {
    uint32_t both[4];
    load_matrices<true>(both, tile + lane % 16 * line + lane / 16 * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = both[i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = to_tf32(tile[(lane % 4 + i % 2 * 4) * line + lane / 4 + i / 2 * 8]);
  }
}
template <class T>
__device__ __forceinline__ void conv_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 2)
    mma_m16n8k16(d, a, b, T{});
  else
    mma_m16n8k8_tf32(d, a, b);
}

}  // namespace
}  // namespace fastconv
