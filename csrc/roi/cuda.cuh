// Regions of interest on CUDA: from the map to the bins (cuda_forward.cuh), and back for means (cuda_gather.cuh) and
// for maxima (cuda_largest.cuh). Nothing waits for the GPU, and each call gives the same bits again.
#pragma once
#include "roi/cuda_forward.cuh"
#include "roi/cuda_gather.cuh"
#include "roi/cuda_largest.cuh"

namespace fastconv {
namespace {

inline void roi_backward(const RoiParams& p, const Stream& stream, const RoiLimits& limits = {}) {
  const RoiLauncher call = {p, stream, limits};
  if (p.kind == Roi::kPool) return roi_largest_backward(call);
  roi_mean_backward(call);
}

}  // namespace
}  // namespace fastconv
