// Kernels without a fault, one for each thing that a GPU offers and the emulator imitates. Compiled by nvcc as well,
// where there is a GPU: what the emulator says of them must be what the hardware does (tests/cuda/test_examples.py).
#include "examples.h"

#include <cstring>

#include "entry.h"

using namespace fastconv;

namespace {

// A sum over each block: shuffles within warps, shared memory between them.
__global__ void block_sum(ExampleParams p) {
  __shared__ float partial[32];
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  float sum = i < p.n ? static_cast<const float*>(p.input)[i] : 0.f;
  for (int delta = 16; delta > 0; delta /= 2) sum += shuffle_down(sum, static_cast<unsigned>(delta));
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.f;
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
  if (threadIdx.x == 0) static_cast<float*>(p.output)[blockIdx.x] = sum;
}

// Lane i reads lane i + 1 and lane i - 1, then lane 5, in a half warp at a time.
__global__ void neighbours(ExampleParams p) {
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  int* output = static_cast<int*>(p.output) + 3 * lane;
  output[0] = shuffle_down(lane, 1);
  output[1] = shuffle_up(lane, 1);
  output[2] = shuffle(lane, lane < 16 ? 5 : 21, half);
}

__global__ void votes(ExampleParams p) {
  const bool holds = static_cast<const int*>(p.input)[threadIdx.x] != 0;
  unsigned* output = static_cast<unsigned*>(p.output) + 3 * threadIdx.x;
  output[0] = vote_ballot(holds);
  output[1] = vote_any(holds);
  output[2] = vote_all(holds);
}

// Who brings the same value, in a half warp at a time.
__global__ void matches(ExampleParams p) {
  const uint32_t value = static_cast<const uint32_t*>(p.input)[threadIdx.x];
  static_cast<unsigned*>(p.output)[threadIdx.x] = match_any(value, threadIdx.x < 16 ? 0xffffu : 0xffff0000u);
}

// What a * b loses when it is rounded, which a multiply-add would not lose.
template <class A>
__global__ void rounded_products(ExampleParams p) {
  const A a = static_cast<const A*>(p.input)[threadIdx.x], b = static_cast<const A*>(p.other)[threadIdx.x];
  static_cast<A*>(p.output)[threadIdx.x] = multiply_rounded(a, b) - a;
}

// Counts values below 8, first within the block, then over all of them.
__global__ void histogram(ExampleParams p) {
  int* bins = dynamic_shared<int>();
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;
  __syncthreads();
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.n; i += int64_t{gridDim.x} * blockDim.x)
    atomic_add(&bins[static_cast<const int*>(p.input)[i]], 1);
  __syncthreads();
  if (threadIdx.x < 8) atomic_add(&static_cast<int*>(p.output)[threadIdx.x], bins[threadIdx.x]);
}

__global__ void largest(ExampleParams p) {
  atomic_max(static_cast<int*>(p.output), static_cast<const int*>(p.input)[threadIdx.x]);
  int* lock = static_cast<int*>(p.output) + 1;
  atomic_compare_exchange(lock, static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.x) + 1);
}

// Adds up tiles of 4 * threads floats that arrive while the one before is used; the last is filled with zeros.
__global__ void pipeline(ExampleParams p) {
  float* stages = dynamic_shared<float>();  // [2, 4 * threads]
  const int64_t tile = 4 * blockDim.x, tiles = (p.n + tile - 1) / tile;
  const auto fetch = [&](int64_t t) {
    const int64_t begin = t * tile + 4 * threadIdx.x, left = 4 * (p.n - begin);
    const int valid = t >= tiles || left <= 0 ? 0 : left < 16 ? static_cast<int>(left) : 16;
    copy_async<16>(stages + t % 2 * tile + 4 * threadIdx.x, static_cast<const float*>(p.input) + (valid ? begin : 0),
                   valid);
    copy_async_commit();
  };
  float sum = 0;
  fetch(0);
  for (int64_t t = 0; t < tiles; ++t) {
    fetch(t + 1);
    copy_async_wait<1>();
    __syncthreads();
    // Another thread's part, so that the barrier is needed.
    const float* other = stages + t % 2 * tile + 4 * ((threadIdx.x + 1) % blockDim.x);
    sum += other[0] + other[1] + other[2] + other[3];
    __syncthreads();
  }
  static_cast<float*>(p.output)[threadIdx.x] = sum;
}

// D = A B with A [16, 16], B [16, 8] in 16 bits: fragments straight from memory, as the PTX manual draws them.
template <class T>
__global__ void product_16bit(ExampleParams p) {
  const uint16_t* A = static_cast<const uint16_t*>(p.input);
  const uint16_t* B = static_cast<const uint16_t*>(p.other);
  const int group = static_cast<int>(threadIdx.x) / 4, pair = static_cast<int>(threadIdx.x) % 4 * 2;
  const auto at_a = [&](int r, int c) { return A[r * 16 + c] | static_cast<uint32_t>(A[r * 16 + c + 1]) << 16; };
  const auto at_b = [&](int r) { return B[r * 8 + group] | static_cast<uint32_t>(B[(r + 1) * 8 + group]) << 16; };
  const uint32_t a[4] = {at_a(group, pair), at_a(group + 8, pair), at_a(group, pair + 8), at_a(group + 8, pair + 8)};
  const uint32_t b[2] = {at_b(pair), at_b(pair + 8)};
  float d[4] = {};
  mma_m16n8k16(d, a, b, T{});
  float* D = static_cast<float*>(p.output);
  for (int i = 0; i < 4; ++i) D[(group + i / 2 * 8) * 8 + pair + i % 2] = d[i];
}

// The same with A and B brought by load_matrices: A as it lies, B transposed.
__global__ void product_loaded(ExampleParams p) {
  __shared__ __align__(16) uint16_t tile[32][16];  // rows 0 to 15: A; 16 to 31: B, of whose rows half is used
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) tile[i / 16][i % 16] = static_cast<const uint16_t*>(p.input)[i];
  for (int i = lane; i < 256; i += 32)
    tile[16 + i / 16][i % 16] = i % 16 < 8 ? static_cast<const uint16_t*>(p.other)[i / 16 * 8 + i % 16] : 0;
  __syncthreads();
  uint32_t a[4], b[4];
  load_matrices<false>(a, &tile[lane % 16][lane / 16 * 8]);
  load_matrices<true>(b, &tile[16 + lane % 16][lane / 16 * 8]);
  const uint32_t first[2] = {b[0], b[1]};
  float d[4] = {};
  mma_m16n8k16(d, a, first, bfloat16{});
  float* D = static_cast<float*>(p.output);
  for (int i = 0; i < 4; ++i) D[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// D = A B with A [16, 8], B [8, 8] in tf32.
__global__ void product_tf32(ExampleParams p) {
  const float* A = static_cast<const float*>(p.input);
  const float* B = static_cast<const float*>(p.other);
  const int group = static_cast<int>(threadIdx.x) / 4, k = static_cast<int>(threadIdx.x) % 4;
  const uint32_t a[4] = {to_tf32(A[group * 8 + k]), to_tf32(A[(group + 8) * 8 + k]), to_tf32(A[group * 8 + k + 4]),
                         to_tf32(A[(group + 8) * 8 + k + 4])};
  const uint32_t b[2] = {to_tf32(B[k * 8 + group]), to_tf32(B[(k + 4) * 8 + group])};
  float d[4] = {};
  mma_m16n8k8_tf32(d, a, b);
  float* D = static_cast<float*>(p.output);
  for (int i = 0; i < 4; ++i) D[(group + i / 2 * 8) * 8 + 2 * k + i % 2] = d[i];
}

// D [rows, 128] = A [rows, 64] B [128, 64], both of rows of terms, in 16 bits: each warpgroup of the block has 64 rows.
// A step of 16 terms is waited for while the next is in flight. Does nothing on chips without the instructions.
struct alignas(1024) WarpgroupTiles {
  uint16_t b[128][64], a[128][64];
};
template <class T>
__global__ void product_of_warpgroups(ExampleParams p) {
  if constexpr (kWarpgroups) {
    auto& shared = *dynamic_shared_aligned<WarpgroupTiles>();
    const int thread = static_cast<int>(threadIdx.x), rows = static_cast<int>(blockDim.x) / 2;
    const auto bring = [&](uint16_t (*to)[64], const void* from, int rows) {
      for (int i = thread; i < rows * 64; i += static_cast<int>(blockDim.x))
        to[i / 64][(i % 64 / 8 ^ i / 64 % 8) * 8 + i % 8] = static_cast<const uint16_t*>(from)[i];
    };
    bring(shared.a, p.input, rows);
    bring(shared.b, p.other, 128);
    fence_async_shared();
    sync_block();
    const uint64_t a = wgmma_matrix(shared.a[thread / 128 * 64]), b = wgmma_matrix(shared.b);
    float d[64] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      wgmma_fence();
      wgmma_m64n128k16(d, a + 2 * k, b + 2 * k, T{});
      wgmma_commit();
      wgmma_wait<1>();
    }
    wgmma_wait<0>();
    const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    float* D = static_cast<float*>(p.output);
#pragma unroll
    for (int i = 0; i < 64; ++i) D[(row + i / 2 % 2 * 8) * 128 + i / 4 * 8 + column + i % 2] = d[i];
  }
}

// float32 from 16 bits, and back.
template <class T>
__global__ void conversions(ExampleParams p) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.n; i += int64_t{gridDim.x} * blockDim.x) {
    static_cast<float*>(p.output)[i] = widen(static_cast<const T*>(p.input)[i]);
    T narrowed;
    narrow(static_cast<const float*>(p.other)[i], narrowed);
    static_cast<float*>(p.output)[p.n + i] = widen(narrowed);
  }
}

// Lanes of one warp exchange values through shared memory, with sync_warp and no block barrier.
__global__ void warp_exchange(ExampleParams p) {
  __shared__ int values[64];
  const unsigned t = threadIdx.x, other = t ^ 1;
  for (int round = 0; round < 3; ++round) {
    values[t] = static_cast<int>(t) + round;
    sync_warp();
    static_cast<int*>(p.output)[t] = values[other];
    sync_warp();
  }
}

// Ten barriers, for a sense of the emulator's own speed, in all three dimensions of a grid and of a block.
__global__ void barriers(ExampleParams p) {
  int passed = 0;
  for (int i = 0; i < 10; ++i) {
    __syncthreads();
    ++passed;
  }
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  static_cast<int*>(p.output)[block * blockDim.x * blockDim.y * blockDim.z + thread] = passed;
}

constexpr Example kExamples[] = {
    {"block_sum", block_sum},
    {"neighbours", neighbours},
    {"votes", votes},
    {"matches", matches},
    {"rounded_product_float32", rounded_products<float>},
    {"rounded_product_float64", rounded_products<double>},
    {"histogram", histogram},
    {"largest", largest},
    {"pipeline", pipeline},
    {"product_bfloat16", product_16bit<bfloat16>},
    {"product_float16", product_16bit<float16>},
    {"product_loaded", product_loaded},
    {"product_tf32", product_tf32},
    {"product_of_warpgroups_bfloat16", product_of_warpgroups<bfloat16>},
    {"product_of_warpgroups_float16", product_of_warpgroups<float16>},
    {"bfloat16", conversions<bfloat16>},
    {"float16", conversions<float16>},
    {"warp_exchange", warp_exchange},
    {"barriers", barriers},
};

}  // namespace

extern "C" const char* emulated_example(const char* name, const void* input, const void* other, void* output, int64_t n,
                                        const unsigned* grid, const unsigned* block, int64_t shared) {
  return error_of([&] {
#ifdef FASTCONV_EMULATOR
    const Example* found = find_broken(name);
#else
    const Example* found = nullptr;
#endif
    for (const Example& example : kExamples)
      if (std::strcmp(example.name, name) == 0) found = &example;
    if (!found) throw std::invalid_argument(std::string("no example ") + name);
    launch(found->kernel, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]),
           static_cast<size_t>(shared), Stream{"example", 0, nullptr}, ExampleParams{input, other, output, n});
  });
}
