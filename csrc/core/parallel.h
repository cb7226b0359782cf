// OpenMP, on the runtime that PyTorch has loaded; the only file with a pragma for it. `threads` is PyTorch's thread
// count, which the host operator passes down. Nothing may throw in here.
#pragma once
#include <omp.h>

#include <cstdint>

namespace fastconv {
namespace {

// Calls body(item, thread) for every item in [0, count). Items are handed out dynamically, in order: some are ragged,
// and a machine that is shared rarely gives every thread the same speed.
template <class Body>
void parallel_for(int threads, int64_t count, const Body& body) {
  if (count < threads) threads = static_cast<int>(count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) body(i, thread);
  }
}

// The same for items that lie one after the other in memory: a thread takes a few runs of them, so that what is fetched
// ahead is its own.
template <class Body>
void parallel_ranges(int threads, int64_t count, const Body& body) {
  const int64_t runs = count < 8 * threads ? (count < threads ? count : threads) : 4 * static_cast<int64_t>(threads);
  parallel_for(threads, runs, [&](int64_t run, int thread) {
    for (int64_t i = count * run / runs; i < count * (run + 1) / runs; ++i) body(i, thread);
  });
}

}  // namespace
}  // namespace fastconv
