// A GPU for the tests, on any machine: CUDA kernels compiled by the host compiler, with this header in the place of
// CUDA's own and of the hardware instructions of core/device.cuh. It exists because a kernel's usual faults (an index
// one too far, a tail left out, a barrier forgotten) do not need a GPU to be found, only somebody who looks at every
// access, and because most machines that build this library have no GPU.
//
// What it does. The threads of a block are fibers that run until they meet a barrier or a warp instruction; blocks run
// one after the other. The compiler is asked for a call before every load and store (-fsanitize=kernel-address, whose
// run-time functions emulator.cpp defines itself), so each access of a kernel is checked: inside a buffer, to the byte;
// aligned; of memory that somebody has written; in shared memory, not in a race with another thread of the block; in
// device memory, not of bytes that another block writes in the same launch. Asynchronous copies happen when they are
// waited for and not before, and so do the products of warpgroups. Whatever is wrong ends the launch with the kernel,
// the block, the thread and the address of the instruction.
//
// What it cannot do: tell one static shared array from its neighbour (dynamic shared memory is exact), say how fast a
// kernel is, find races between warps of one block in device memory, or judge what is written in assembly. Instructions
// that core/device.cuh does not name do not exist here, and so do not compile.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/view.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Blocks run one after the other, so a block's static shared memory may be a static variable; the section is how the
// emulator finds all of it. (Give kernels internal linkage: GCC cannot put inline functions' variables in a section.)
#define __shared__ static __attribute__((section("emulated_shared")))
// For the emulator's own code that is inlined into kernels.
#define EMULATOR_UNCHECKED __attribute__((no_sanitize("kernel-address"), noinline, unused))

struct uint2 {
  alignas(8) uint32_t x;
  uint32_t y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

// What the hardware keeps in special registers; set before a thread runs.
struct Registers {
  dim3 thread, block, threads, blocks;
};
extern Registers registers;

// Where in the source a barrier or warp instruction stands: threads that wait for each other must agree on it.
struct Site {
  const char* what;
  const char* file;
  int line;
};

void barrier(const Site& site);
// Every lane named by `mask` brings its own struct; the last to arrive calls finish(lanes), which sees all of them
// (nullptr for lanes outside the mask) and fills in their results. Only then do they go on.
void collective(const Site& site, unsigned mask, void* own, void (*finish)(void** lanes));
// The same, of the 128 threads of a warpgroup.
void warpgroup(const Site& site, void* own, void (*finish)(void** threads));
void sync_warp(const Site& site, unsigned mask);
void copy_async(void* shared, const void* global, int bytes, int valid);
void copy_async_commit();
void copy_async_wait(int groups);
void fence_async_shared();
enum class Access { kRead, kWrite, kAtomic };
// Checks `bytes` at `address` as if the kernel had accessed them.
void check(const void* address, size_t bytes, Access access);
// Ends the launch on behalf of the thread that is running, or of another lane of its warp.
[[noreturn]] void fail(const std::string& what, int lane = -1);
void* shared_memory();  // the dynamic one
void run(const void* kernel, dim3 grid, dim3 block, size_t shared,
         void (*thread)(const void* kernel, const void* params), const void* params);

template <class Params>
EMULATOR_UNCHECKED void thread(const void* kernel, const void* params) {
  reinterpret_cast<void (*)(Params)>(const_cast<void*>(kernel))(*static_cast<const Params*>(params));
}
// Throws std::runtime_error where the kernel does something wrong.
template <class Params>
void launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared, const Params& params) {
  run(reinterpret_cast<const void*>(kernel), grid, block, shared, thread<Params>, &params);
}

}  // namespace emulator

#define threadIdx ::emulator::registers.thread
#define blockIdx ::emulator::registers.block
#define blockDim ::emulator::registers.threads
#define gridDim ::emulator::registers.blocks
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATOR_SITE) { ::emulator::barrier({"__syncthreads", file, line}); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }

namespace fastconv {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

template <class T>
inline T* dynamic_shared() {
  return static_cast<T*>(emulator::shared_memory());
}
template <class T>
inline T* dynamic_shared_aligned() {
  const auto address = reinterpret_cast<uintptr_t>(emulator::shared_memory());
  return reinterpret_cast<T*>((address + alignof(T) - 1) / alignof(T) * alignof(T));
}

inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

inline void sync_block(EMULATOR_SITE) { emulator::barrier({"sync_block", file, line}); }
inline void sync_warp(unsigned mask = kFullWarp, EMULATOR_SITE) {
  emulator::sync_warp({"sync_warp", file, line}, mask);
}

// ---- shuffles and votes ----

template <class T>
struct ShuffleLane {
  T value, result;
  int source;
};
template <class T>
EMULATOR_UNCHECKED void finish_shuffle(void** lanes) {
  for (int i = 0; i < kWarpSize; ++i)
    if (auto* lane = static_cast<ShuffleLane<T>*>(lanes[i])) {
      auto* source = static_cast<ShuffleLane<T>*>(lanes[lane->source]);
      if (!source)
        emulator::fail("shuffles from lane " + std::to_string(lane->source) + ", which the mask leaves out", i);
      lane->result = source->value;
    }
}
template <class T>
EMULATOR_UNCHECKED T shuffle_from(T value, int source, unsigned mask, const emulator::Site& site) {
  ShuffleLane<T> lane{value, value, source & (kWarpSize - 1)};
  emulator::collective(site, mask, &lane, finish_shuffle<T>);
  return lane.result;
}
inline int lane_index() {
  const auto& r = emulator::registers;
  return static_cast<int>((r.thread.z * r.threads.y + r.thread.y) * r.threads.x + r.thread.x) % kWarpSize;
}
template <class T>
inline T shuffle(T value, int lane, unsigned mask = kFullWarp, EMULATOR_SITE) {
  return shuffle_from(value, lane, mask, {"shuffle", file, line});
}
template <class T>
inline T shuffle_xor(T value, int lanes, unsigned mask = kFullWarp, EMULATOR_SITE) {
  return shuffle_from(value, lane_index() ^ lanes, mask, {"shuffle_xor", file, line});
}
template <class T>
inline T shuffle_down(T value, unsigned delta, unsigned mask = kFullWarp, EMULATOR_SITE) {
  const int from = lane_index() + static_cast<int>(delta);
  return shuffle_from(value, from < kWarpSize ? from : lane_index(), mask, {"shuffle_down", file, line});
}
template <class T>
inline T shuffle_up(T value, unsigned delta, unsigned mask = kFullWarp, EMULATOR_SITE) {
  const int from = lane_index() - static_cast<int>(delta);
  return shuffle_from(value, from >= 0 ? from : lane_index(), mask, {"shuffle_up", file, line});
}

struct VoteLane {
  bool holds;
  unsigned result;
};
unsigned emulated_vote(bool holds, unsigned mask, const emulator::Site& site);
inline unsigned vote_ballot(bool holds, unsigned mask = kFullWarp, EMULATOR_SITE) {
  return emulated_vote(holds, mask, {"vote_ballot", file, line});
}
inline bool vote_any(bool holds, unsigned mask = kFullWarp, EMULATOR_SITE) {
  return emulated_vote(holds, mask, {"vote_any", file, line}) != 0;
}
inline bool vote_all(bool holds, unsigned mask = kFullWarp, EMULATOR_SITE) {
  return emulated_vote(holds, mask, {"vote_all", file, line}) == mask;
}

struct MatchLane {
  uint32_t value;
  unsigned result;
};
unsigned emulated_match(uint32_t value, unsigned mask, const emulator::Site& site);
inline unsigned match_any(uint32_t value, unsigned mask = kFullWarp, EMULATOR_SITE) {
  return emulated_match(value, mask, {"match_any", file, line});
}

// ---- rounded products: defined elsewhere, so that no compiler makes a multiply-add of them ----

float multiply_rounded(float a, float b);
double multiply_rounded(double a, double b);

// ---- atomics: nothing can come in between, since only one fiber runs ----

template <class T>
EMULATOR_UNCHECKED T atomic_add(T* address, T value) {
  emulator::check(address, sizeof(T), emulator::Access::kAtomic);
  const T before = *address;
  *address = before + value;
  return before;
}
template <class T>
EMULATOR_UNCHECKED T atomic_max(T* address, T value) {
  emulator::check(address, sizeof(T), emulator::Access::kAtomic);
  const T before = *address;
  *address = std::max(before, value);
  return before;
}
template <class T>
EMULATOR_UNCHECKED T atomic_compare_exchange(T* address, T expected, T desired) {
  emulator::check(address, sizeof(T), emulator::Access::kAtomic);
  const T before = *address;
  if (before == expected) *address = desired;
  return before;
}

// ---- 16-bit types ----

float widen(bfloat16 value);
float widen(float16 value);
void narrow(float value, bfloat16& out);
void narrow(float value, float16& out);
inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline void narrow(float value, float& out) { out = value; }
inline void narrow(double value, double& out) { out = value; }

inline uint4 load16(const void* address) { return *static_cast<const uint4*>(address); }
inline void store16(void* address, uint4 value) { *static_cast<uint4*>(address) = value; }

template <int Bytes>
inline void copy_async(void* shared, const void* global, int valid = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  emulator::copy_async(shared, global, Bytes, valid);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int Groups>
inline void copy_async_wait() {
  emulator::copy_async_wait(Groups);
}

// ---- tensor cores; sums in float32, which the hardware rounds a little differently ----

constexpr bool kTensorCores = true, kNoTensorCores = true;  // tests run both kinds of kernels

void emulated_mma_16bit(float* d, const uint32_t* a, const uint32_t* b, float (*widen_bits)(uint16_t),
                        const emulator::Site& site);
void emulated_mma_tf32(float* d, const uint32_t* a, const uint32_t* b, const emulator::Site& site);
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bfloat16, EMULATOR_SITE) {
  emulated_mma_16bit(d, a, b, [](uint16_t bits) { return widen(bfloat16{bits}); }, {"mma_m16n8k16", file, line});
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16, EMULATOR_SITE) {
  emulated_mma_16bit(d, a, b, [](uint16_t bits) { return widen(float16{bits}); }, {"mma_m16n8k16", file, line});
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_SITE) {
  emulated_mma_tf32(d, a, b, {"mma_m16n8k8_tf32", file, line});
}
uint32_t to_tf32(float value);

void emulated_load_matrices(uint32_t* out, const void* row, bool transposed, const emulator::Site& site);
template <bool Transposed>
inline void load_matrices(uint32_t (&out)[4], const void* row, EMULATOR_SITE) {
  emulated_load_matrices(out, row, Transposed, {"load_matrices", file, line});
}

// ---- products of warpgroups, see warpgroups.cpp ----

constexpr bool kWarpgroups = true;

inline void fence_async_shared() { emulator::fence_async_shared(); }
uint64_t wgmma_matrix(const void* shared);
void emulated_wgmma(float* d, uint64_t a, uint64_t b, float (*widen_bits)(uint16_t), const emulator::Site& site);
void emulated_wgmma_fence(const emulator::Site& site);
void emulated_wgmma_commit(const emulator::Site& site);
void emulated_wgmma_wait(int groups, const emulator::Site& site);
inline void wgmma_fence(EMULATOR_SITE) { emulated_wgmma_fence({"wgmma_fence", file, line}); }
inline void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, bfloat16, EMULATOR_SITE) {
  emulated_wgmma(d, a, b, [](uint16_t bits) { return widen(bfloat16{bits}); }, {"wgmma_m64n128k16", file, line});
}
inline void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, float16, EMULATOR_SITE) {
  emulated_wgmma(d, a, b, [](uint16_t bits) { return widen(float16{bits}); }, {"wgmma_m64n128k16", file, line});
}
inline void wgmma_commit(EMULATOR_SITE) { emulated_wgmma_commit({"wgmma_commit", file, line}); }
template <int Groups>
inline void wgmma_wait(EMULATOR_SITE) {
  emulated_wgmma_wait(Groups, {"wgmma_wait", file, line});
}

}  // namespace fastconv
