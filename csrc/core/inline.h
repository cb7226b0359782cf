// FASTCONV_INLINE: for functions that the CPU's kernels and the GPU's both call. Always inlined, so that no symbol is
// left that the linker could keep for another instruction set (tests/test_binary.py).
#pragma once

#ifdef __CUDACC__
#define FASTCONV_INLINE __host__ __device__ __forceinline__
#else
#define FASTCONV_INLINE [[gnu::always_inline]] constexpr
#endif
