// Multiply-adds and nothing else, compiled once for each instruction set.
#include "core/peak.h"

#include "core/parallel.h"
#include "core/vec.h"

namespace fastconv::FASTCONV_ISA {
namespace {

// Two units with a latency of four or five cycles need ten at a time; sixteen registers have room for few more.
constexpr int kChains = 12;

template <class T>
double multiply_add(int64_t rounds, int threads) {
  parallel_for(threads, threads, [&](int64_t, int) {
    const Vec<T> factor = splat(T(0.5)), term = splat(T(1));
    Vec<T> sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = splat(T(i));  // every one goes to 2, and never overflows
    int64_t left = rounds;
    do {
      for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
    } while (--left > 0);
    for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
    const volatile T result = sums[0][0];  // without a result there would be no work
    static_cast<void>(result);
  });
  return 2.0 * kLanes<T> * kChains * static_cast<double>(rounds) * threads;
}

}  // namespace

extern const PeakKernels peak_kernels = {multiply_add<float>, multiply_add<double>};

}  // namespace fastconv::FASTCONV_ISA
