// How many operations a second this machine's cores can do: what the benchmark holds every layer against.
#pragma once
#include <cstdint>

#include "core/isa.h"

namespace fastconv {

// Runs `rounds` of independent multiply-adds in registers on each of `threads` threads, and returns how many floating-
// point operations that was. The caller takes the time.
struct PeakKernels {
  double (*float32)(int64_t rounds, int threads);
  double (*float64)(int64_t rounds, int threads);
};
FASTCONV_DECLARE_KERNELS(PeakKernels, peak_kernels)

}  // namespace fastconv
