// OpenMP, on the runtime that PyTorch has loaded; the only file with a pragma for it. `threads` is PyTorch's thread
// count, which the host operator passes down. Nothing may throw in here.
#pragma once
#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <atomic>
#include <cstdint>

#include "core/denormals.h"

namespace fastconv {
namespace {

// What went past the caches (`stream` in vec.h) is seen by other threads only after this.
inline void drain_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

struct AsItIs {};

// Calls body(item, thread) for every item in [0, count). Every thread has a run of neighbouring items of its own and
// takes them in order; one that is through with it helps with the others': some items are ragged, and a machine that is
// shared rarely gives every thread the same speed. The runs are the same in every call, so that a thread finds in its
// caches what it wrote there, and what is fetched ahead is its own. (16 channels a group, 512 at 14x14 in
// channels_last, took 184 us where items were handed out to whoever asked next, and takes 154.)
//
// Every thread makes a `Mode` first, which lives until it is through.
template <class Mode = AsItIs, class Body>
void parallel_for(int threads, int64_t count, const Body& body) {
  if (count < threads) threads = static_cast<int>(count);
  if (threads <= 1) {
    [[maybe_unused]] const Mode mode{};
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    drain_stores();
    return;
  }
  constexpr int kMostRuns = 64;
  struct alignas(64) Next {
    std::atomic<int64_t> item;
  } next[kMostRuns];
  const int runs = threads < kMostRuns ? threads : kMostRuns;
  for (int run = 0; run < runs; ++run) next[run].item.store(count * run / runs, std::memory_order_relaxed);
#pragma omp parallel num_threads(threads)
  {
    [[maybe_unused]] const Mode mode{};
    const int thread = omp_get_thread_num();
    for (int i = 0; i < runs; ++i) {
      const int run = (thread + i) % runs;
      const int64_t end = count * (run + 1) / runs;
      for (int64_t item; (item = next[run].item.fetch_add(1, std::memory_order_relaxed)) < end;) body(item, thread);
    }
    drain_stores();
  }
}

// For bodies that multiply and add. Those that move or compare must not lose a number, and use parallel_for as it is.
template <class Body>
void compute_for(int threads, int64_t count, const Body& body) {
  parallel_for<FlushDenormals>(threads, count, body);
}

}  // namespace
}  // namespace fastconv
