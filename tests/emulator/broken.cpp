// Kernels with one fault each, of the kinds that are made in earnest. tests/test_emulator.py holds the emulator to
// finding every one, and to naming the kernel, the block and the thread.
#include "examples.h"

using namespace fastconv;

namespace {

__device__ int64_t index_of_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
const float* input_of(const ExampleParams& p) { return static_cast<const float*>(p.input); }
float* output_of(const ExampleParams& p) { return static_cast<float*>(p.output); }

// The neighbour on the right, which the last element does not have.
__global__ void reads_beyond(ExampleParams p) {
  const int64_t i = index_of_thread();
  if (i < p.n) output_of(p)[i] = input_of(p)[i] + input_of(p)[i + 1];
}

__global__ void reads_before(ExampleParams p) {
  const int64_t i = index_of_thread();
  if (i < p.n) output_of(p)[i] = input_of(p)[i - 1];
}

// No check against n in the last block.
__global__ void writes_beyond(ExampleParams p) { output_of(p)[index_of_thread()] = 1.f; }

// A vector access over the end.
__global__ void vector_beyond(ExampleParams p) {
  const int64_t i = 4 * index_of_thread();
  if (i < p.n) store16(output_of(p) + i, make_uint4(0, 0, 0, 0));
}

__global__ void vector_misaligned(ExampleParams p) {
  const uint4 words = load16(input_of(p) + threadIdx.x);
  output_of(p)[threadIdx.x] = static_cast<float>(words.x);
}

__global__ void shared_beyond(ExampleParams p) {
  float* tile = dynamic_shared<float>();
  tile[threadIdx.x + 1] = 1.f;
  __syncthreads();
  output_of(p)[threadIdx.x] = tile[threadIdx.x + 1];
}

__global__ void forgets_barrier(ExampleParams p) {
  __shared__ float tile[64];
  tile[threadIdx.x] = input_of(p)[threadIdx.x];
  output_of(p)[threadIdx.x] = tile[63 - threadIdx.x];
}

// As before, but each thread reads what the one before it wrote, which a machine that runs them in order forgives.
__global__ void races_in_order(ExampleParams p) {
  __shared__ float tile[64];
  tile[threadIdx.x] = input_of(p)[threadIdx.x];
  output_of(p)[threadIdx.x] = tile[threadIdx.x ? threadIdx.x - 1 : 0];
}

__global__ void writes_twice(ExampleParams p) {
  __shared__ float tile[64];
  tile[threadIdx.x / 2] = input_of(p)[threadIdx.x];
  __syncthreads();
  output_of(p)[threadIdx.x] = tile[threadIdx.x / 2];
}

// The barrier between reading a tile and writing the next one.
__global__ void overwrites_early(ExampleParams p) {
  __shared__ float tile[64];
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = input_of(p)[threadIdx.x];
    __syncthreads();
    sum += tile[(threadIdx.x + 1) % 64];
  }
  output_of(p)[threadIdx.x] = sum;
}

// Lanes of one warp, which old chips ran in step.
__global__ void forgets_sync_warp(ExampleParams p) {
  __shared__ float tile[32];
  tile[threadIdx.x] = input_of(p)[threadIdx.x];
  output_of(p)[threadIdx.x] = tile[31 - threadIdx.x];
}

__global__ void mixes_atomics(ExampleParams p) {
  int* counter = dynamic_shared<int>();
  if (threadIdx.x == 0) counter[0] = 0;
  __syncthreads();
  atomic_add(counter, 1);
  if (threadIdx.x == 9) output_of(p)[0] = static_cast<float>(counter[0]);
}

__global__ void exits_before_barrier(ExampleParams p) {
  const int64_t i = index_of_thread();
  if (i >= p.n) return;
  __syncthreads();
  output_of(p)[i] = 0.f;
}

__global__ void barriers_in_branches(ExampleParams p) {
  if (threadIdx.x % 2) {
    __syncthreads();
    output_of(p)[threadIdx.x] = 1.f;
  } else {
    __syncthreads();
    output_of(p)[threadIdx.x] = 2.f;
  }
}

__global__ void forgets_async_wait(ExampleParams p) {
  float* tile = dynamic_shared<float>();
  copy_async<16>(tile + 4 * threadIdx.x, input_of(p) + 4 * threadIdx.x);
  copy_async_commit();
  output_of(p)[threadIdx.x] = tile[4 * threadIdx.x];
}

// Waits for all groups but one where it needs them all.
__global__ void waits_for_too_few(ExampleParams p) {
  float* tile = dynamic_shared<float>();
  copy_async<4>(tile + threadIdx.x, input_of(p) + threadIdx.x);
  copy_async_commit();
  copy_async_wait<1>();
  output_of(p)[threadIdx.x] = tile[threadIdx.x];
}

// Each thread waits for its own copies only.
__global__ void forgets_barrier_after_async(ExampleParams p) {
  float* tile = dynamic_shared<float>();
  copy_async<4>(tile + threadIdx.x, input_of(p) + threadIdx.x);
  copy_async_commit();
  copy_async_wait<0>();
  output_of(p)[threadIdx.x] = tile[threadIdx.x ? threadIdx.x - 1 : 0];
}

__global__ void async_beyond(ExampleParams p) {
  float* tile = dynamic_shared<float>();
  copy_async<16>(tile + 4 * threadIdx.x, input_of(p) + 4 * threadIdx.x);
  copy_async_commit();
  copy_async_wait<0>();
}

__global__ void async_misaligned(ExampleParams p) {
  copy_async<16>(dynamic_shared<float>() + 4 * threadIdx.x, input_of(p) + 4 * threadIdx.x + 1);
}

__global__ void shuffles_from_exited(ExampleParams p) {
  if (threadIdx.x >= 20) return;
  output_of(p)[threadIdx.x] = shuffle_down(1.f, 16);
}

// The lanes that a mask names, but not all of them come by.
__global__ void shuffles_in_branch(ExampleParams p) {
  float value = 1.f;
  if (threadIdx.x < 16) value = shuffle(value, 3);
  __syncthreads();
  output_of(p)[threadIdx.x] = value;
}

__global__ void shuffles_outside_mask(ExampleParams p) {
  if (threadIdx.x < 16) output_of(p)[threadIdx.x] = shuffle(1.f, 16, 0xffffu);
}

__global__ void votes_without_itself(ExampleParams p) {
  output_of(p)[threadIdx.x] = vote_any(true, 0xffffu) ? 1.f : 0.f;
}

__global__ void reads_unwritten_shared(ExampleParams p) {
  output_of(p)[threadIdx.x] = dynamic_shared<float>()[threadIdx.x];
}

__global__ void reads_unwritten_output(ExampleParams p) { output_of(p)[threadIdx.x] += 1.f; }

// Two blocks that add to the same elements.
__global__ void blocks_collide(ExampleParams p) { output_of(p)[threadIdx.x] = static_cast<float>(blockIdx.x); }

__global__ void follows_host_pointer(ExampleParams p) {
  static float host_memory[4];
  output_of(p)[threadIdx.x] = host_memory[threadIdx.x % 4]++;
}

// Factors of a product of a warpgroup.
struct alignas(1024) Matrices {
  uint16_t a[64][64], b[128][64];
};
__device__ Matrices& zeros() {
  auto& m = *dynamic_shared_aligned<Matrices>();
  for (unsigned i = threadIdx.x; i < 64 * 64; i += blockDim.x) m.a[i / 64][i % 64] = 0;
  for (unsigned i = threadIdx.x; i < 128 * 64; i += blockDim.x) m.b[i / 64][i % 64] = 0;
  return m;
}
__device__ Matrices& fenced_zeros() {
  Matrices& m = zeros();
  fence_async_shared();
  __syncthreads();
  return m;
}
// Starts their product, on its own or, where `more`, on other terms.
__device__ void start_product(float (&d)[64], const Matrices& m, unsigned more = 0) {
  wgmma_m64n128k16(d, wgmma_matrix(m.a) + more, wgmma_matrix(m.b), bfloat16{});
  wgmma_commit();
}

__global__ void forgets_async_fence(ExampleParams p) {
  const Matrices& m = zeros();
  __syncthreads();
  float d[64] = {};
  wgmma_fence();
  start_product(d, m);
  wgmma_wait<0>();
  output_of(p)[threadIdx.x] = d[0];
}

__global__ void forgets_barrier_before_product(ExampleParams p) {
  const Matrices& m = zeros();
  fence_async_shared();
  float d[64] = {};
  wgmma_fence();
  start_product(d, m);
  wgmma_wait<0>();
  output_of(p)[threadIdx.x] = d[0];
}

__global__ void fences_after_barrier(ExampleParams p) {
  const Matrices& m = zeros();
  __syncthreads();
  fence_async_shared();
  float d[64] = {};
  wgmma_fence();
  start_product(d, m);
  wgmma_wait<0>();
  output_of(p)[threadIdx.x] = d[0];
}

// An asynchronous copy is a write of the thread that waits for it, and wants the fence behind that.
__global__ void fences_before_copies(ExampleParams p) {
  auto& m = *dynamic_shared_aligned<Matrices>();
  for (unsigned i = threadIdx.x; i < sizeof m / 16; i += blockDim.x)
    copy_async<16>(reinterpret_cast<char*>(&m) + 16 * i, input_of(p), 0);
  copy_async_commit();
  fence_async_shared();
  copy_async_wait<0>();
  __syncthreads();
  float d[64] = {};
  wgmma_fence();
  start_product(d, m);
  wgmma_wait<0>();
  output_of(p)[threadIdx.x] = d[0];
}

__global__ void forgets_wgmma_fence(ExampleParams p) {
  const Matrices& m = fenced_zeros();
  float d[64] = {};
  start_product(d, m);
  wgmma_wait<0>();
  output_of(p)[threadIdx.x] = d[0];
}

__global__ void multiplies_in_branch(ExampleParams p) {
  const Matrices& m = fenced_zeros();
  float d[64] = {};
  wgmma_fence();
  if (threadIdx.x < 96) start_product(d, m);
  wgmma_wait<0>();
  output_of(p)[threadIdx.x] = d[0];
}

__global__ void multiplies_other_terms(ExampleParams p) {
  const Matrices& m = fenced_zeros();
  float d[64] = {};
  wgmma_fence();
  start_product(d, m, threadIdx.x / 32 * 2);
  wgmma_wait<0>();
  output_of(p)[threadIdx.x] = d[0];
}

__global__ void forgets_wgmma_wait(ExampleParams p) {
  const Matrices& m = fenced_zeros();
  float d[64] = {};
  wgmma_fence();
  start_product(d, m);
  output_of(p)[threadIdx.x] = d[0];
}

__global__ void overwrites_sums(ExampleParams p) {
  const Matrices& m = fenced_zeros();
  float d[64] = {};
  wgmma_fence();
  start_product(d, m);
  for (float& sum : d) sum = 0;
  wgmma_wait<0>();
  output_of(p)[threadIdx.x] = d[0];
}

__global__ void overwrites_factors(ExampleParams p) {
  Matrices& m = fenced_zeros();
  float d[64] = {};
  wgmma_fence();
  start_product(d, m);
  __syncthreads();
  m.a[threadIdx.x / 2][0] = 1;
  wgmma_wait<0>();
  output_of(p)[threadIdx.x] = d[0];
}

// A thread's own sums are complete, but other warps may still read.
__global__ void overwrites_factors_of_others(ExampleParams p) {
  Matrices& m = fenced_zeros();
  float d[64] = {};
  wgmma_fence();
  start_product(d, m);
  wgmma_wait<0>();
  m.b[threadIdx.x][0] = 1;
  output_of(p)[threadIdx.x] = d[0];
}

constexpr Example kBroken[] = {
    {"reads_beyond", reads_beyond},
    {"reads_before", reads_before},
    {"writes_beyond", writes_beyond},
    {"vector_beyond", vector_beyond},
    {"vector_misaligned", vector_misaligned},
    {"shared_beyond", shared_beyond},
    {"forgets_barrier", forgets_barrier},
    {"races_in_order", races_in_order},
    {"writes_twice", writes_twice},
    {"overwrites_early", overwrites_early},
    {"forgets_sync_warp", forgets_sync_warp},
    {"mixes_atomics", mixes_atomics},
    {"exits_before_barrier", exits_before_barrier},
    {"barriers_in_branches", barriers_in_branches},
    {"forgets_async_wait", forgets_async_wait},
    {"waits_for_too_few", waits_for_too_few},
    {"forgets_barrier_after_async", forgets_barrier_after_async},
    {"async_beyond", async_beyond},
    {"async_misaligned", async_misaligned},
    {"shuffles_from_exited", shuffles_from_exited},
    {"shuffles_in_branch", shuffles_in_branch},
    {"shuffles_outside_mask", shuffles_outside_mask},
    {"votes_without_itself", votes_without_itself},
    {"reads_unwritten_shared", reads_unwritten_shared},
    {"reads_unwritten_output", reads_unwritten_output},
    {"blocks_collide", blocks_collide},
    {"follows_host_pointer", follows_host_pointer},
    {"forgets_async_fence", forgets_async_fence},
    {"forgets_barrier_before_product", forgets_barrier_before_product},
    {"fences_after_barrier", fences_after_barrier},
    {"fences_before_copies", fences_before_copies},
    {"forgets_wgmma_fence", forgets_wgmma_fence},
    {"multiplies_in_branch", multiplies_in_branch},
    {"multiplies_other_terms", multiplies_other_terms},
    {"forgets_wgmma_wait", forgets_wgmma_wait},
    {"overwrites_sums", overwrites_sums},
    {"overwrites_factors", overwrites_factors},
    {"overwrites_factors_of_others", overwrites_factors_of_others},
};

}  // namespace

const Example* find_broken(const char* name) {
  for (const Example& example : kBroken)
    if (std::strcmp(example.name, name) == 0) return &example;
  return nullptr;
}
