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
};

}  // namespace

const Example* find_broken(const char* name) {
  for (const Example& example : kBroken)
    if (std::strcmp(example.name, name) == 0) return &example;
  return nullptr;
}
