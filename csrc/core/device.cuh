// Every hardware instruction that a kernel uses by name: warp shuffles and votes, atomics, asynchronous copies into
// shared memory, tensor-core products, 16-byte accesses. Each has a plain C++ twin in tests/emulator/emulator.h, which
// takes this file's place where kernels are compiled for the host, so a kernel that keeps to these names can be checked
// on any machine. Instructions that a chip is too old for are absent there: the launcher chooses another kernel.
#pragma once
#include <cstdint>

#ifdef FASTCONV_EMULATOR
#include "emulator.h"
#else
#include "core/view.h"

namespace fastconv {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

// The block's dynamic shared memory, aligned for 16-byte accesses.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char fastconv_dynamic_shared[];
  return reinterpret_cast<T*>(fastconv_dynamic_shared);
}
// From the next multiple of T's alignment on, where that is more: as many bytes more have to be asked for.
template <class T>
__device__ __forceinline__ T* dynamic_shared_aligned() {
  unsigned char* memory = dynamic_shared<unsigned char>();
  const unsigned before = static_cast<unsigned>(__cvta_generic_to_shared(memory)) % alignof(T);
  return reinterpret_cast<T*>(memory + (before ? alignof(T) - before : 0));
}

__host__ __device__ __forceinline__ uint32_t multiply_high(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
#endif
}

// ---- the block, and the lanes of a warp; `mask` names the lanes that take part, the caller among them ----

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp(unsigned mask = kFullWarp) { __syncwarp(mask); }

template <class T>
__device__ __forceinline__ T shuffle(T value, int lane, unsigned mask = kFullWarp) {
  return __shfl_sync(mask, value, lane);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lanes, unsigned mask = kFullWarp) {
  return __shfl_xor_sync(mask, value, lanes);
}
// From `delta` lanes further up or down; a lane that would read beyond the warp keeps its own value.
template <class T>
__device__ __forceinline__ T shuffle_down(T value, unsigned delta, unsigned mask = kFullWarp) {
  return __shfl_down_sync(mask, value, delta);
}
template <class T>
__device__ __forceinline__ T shuffle_up(T value, unsigned delta, unsigned mask = kFullWarp) {
  return __shfl_up_sync(mask, value, delta);
}
__device__ __forceinline__ unsigned vote_ballot(bool holds, unsigned mask = kFullWarp) {
  return __ballot_sync(mask, holds);
}
__device__ __forceinline__ bool vote_any(bool holds, unsigned mask = kFullWarp) { return __any_sync(mask, holds); }
__device__ __forceinline__ bool vote_all(bool holds, unsigned mask = kFullWarp) { return __all_sync(mask, holds); }
// The lanes that bring the same value, the caller among them.
__device__ __forceinline__ unsigned match_any(uint32_t value, unsigned mask = kFullWarp) {
  return __match_any_sync(mask, value);
}

// ---- atomics, on device or shared memory; each returns what was there before ----

template <class T>
__device__ __forceinline__ T atomic_add(T* address, T value) {
  return atomicAdd(address, value);
}
template <class T>
__device__ __forceinline__ T atomic_max(T* address, T value) {
  return atomicMax(address, value);
}
template <class T>
__device__ __forceinline__ T atomic_compare_exchange(T* address, T expected, T desired) {
  return atomicCAS(address, expected, desired);
}

// ---- products that are rounded before anything is added to them, whatever the compiler would rather do ----

__device__ __forceinline__ float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply_rounded(double a, double b) { return __dmul_rn(a, b); }

// ---- 16-bit types: float32 and back, rounded to nearest, ties to even; arithmetic happens in float32 ----

__device__ __forceinline__ float widen(bfloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float widen(float16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
__device__ __forceinline__ void narrow(float value, float16& out) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
}
__device__ __forceinline__ void narrow(float value, bfloat16& out) {
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#else
  const uint32_t bits = __float_as_uint(value);
  out.bits = static_cast<uint16_t>(value != value ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}
// Types that are computed in as they are stored, so that a kernel may be written once for all.
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ void narrow(float value, float& out) { out = value; }
__device__ __forceinline__ void narrow(double value, double& out) { out = value; }

// ---- accesses of 16 bytes; the address must be a multiple of 16 ----

__device__ __forceinline__ uint4 load16(const void* address) { return *static_cast<const uint4*>(address); }
__device__ __forceinline__ void store16(void* address, uint4 value) { *static_cast<uint4*>(address) = value; }

// ---- cp.async: device memory to shared memory without a register in between ----

// Copies Bytes (4, 8 or 16; both addresses multiples of it), of which the first `valid` are read and the rest become
// zero. The data is there for this thread after copy_async_wait, for others after a barrier behind that.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)  // .cg: past the L1 cache, which only 16 bytes may do
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(Bytes), "r"(valid)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most Groups of this thread's committed groups are still in flight.
template <int Groups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

// ---- tensor cores: D += A B over a warp, fragments laid out as in the PTX manual ----

// Whether the chip that is compiled for has those of 16-bit types and of TF32 in these shapes; kernels that use them do
// nothing elsewhere, and their launchers choose others.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kTensorCores = false;
#else
constexpr bool kTensorCores = true;
#endif
// Whether it is one on which kernels have to do without; those that multiply 16-bit types as float32 do nothing
// elsewhere.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr bool kNoTensorCores = false;
#else
constexpr bool kNoTensorCores = true;
#endif

// A [16, 16] (4 registers of two 16-bit values a lane), B [16, 8] (2), D [16, 8] in float32 (4).
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// A [16, 8] (4 registers of one tf32 value), B [8, 8] (2), D [16, 8] in float32 (4).
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// float32 rounded to the 19 bits that a tf32 product reads.
__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// Loads four 8x8 matrices of 16-bit values from shared memory into mma fragments: lane l gives the address of row
// l % 8 of matrix l / 8 (16 bytes, a multiple of 16). `Transposed` exchanges rows and columns on the way.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
}

// ---- wgmma: D += A B over the four warps of a warpgroup, of operands in shared memory, while the warps go on ----

// Whether the chip that is compiled for has them: 9.0 alone, and only where its own features are asked for (90a).
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kWarpgroups = false;
#else
constexpr bool kWarpgroups = true;
#endif

// Makes what this thread wrote to shared memory, by asynchronous copies that it has waited for too, visible to wgmma;
// other threads' writes are after a barrier behind that.
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A matrix in shared memory as wgmma is told of it: rows of 128 bytes of terms, one behind the other, in which piece x
// of 16 bytes of row r stands at place x ^ r % 8. It begins at a multiple of 1024 bytes; 32 bytes further into a row
// are 2 more.
__device__ __forceinline__ uint64_t wgmma_matrix(const void* shared) {
  const uint64_t from = static_cast<uint64_t>(__cvta_generic_to_shared(shared)) & 0x3ffff;
  constexpr uint64_t kEightRows = 1024, kSwizzle128 = 1;
  return from >> 4 | uint64_t{1} << 16 | kEightRows >> 4 << 32 | kSwizzle128 << 62;
}

// Before the first product of a row of them, and after the sums were touched by anything else.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most Groups of the committed groups are still in flight. Until then nothing may touch their sums, nor
// write where they read.
template <int Groups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Groups) : "memory");
}

// A [64, 16], B [128, 16] of rows of terms, D [64, 128] in float32: warp w has rows 16 w to 16 w + 15, of 8 columns
// after the other, each as the D of mma_m16n8k16.
#define FASTCONV_EIGHT(d, i)                                                                                  \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define FASTCONV_WGMMA(type)                                                                                          \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                           \
               " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
               "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
               "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, 1, 1, 1, 0, 0;"                           \
               : FASTCONV_EIGHT(d, 0), FASTCONV_EIGHT(d, 8), FASTCONV_EIGHT(d, 16), FASTCONV_EIGHT(d, 24),            \
                 FASTCONV_EIGHT(d, 32), FASTCONV_EIGHT(d, 40), FASTCONV_EIGHT(d, 48), FASTCONV_EIGHT(d, 56)           \
               : "l"(a), "l"(b))
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, bfloat16) {
  FASTCONV_WGMMA("bf16");
}
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, float16) {
  FASTCONV_WGMMA("f16");
}
#undef FASTCONV_WGMMA
#undef FASTCONV_EIGHT

}  // namespace fastconv
#endif
