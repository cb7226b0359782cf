// What the gradients of deformable convolution on CUDA start from: what each sample should have been more, which is the
// gradient of the output times the weights, or where there are none that gradient itself.
//
// It is worked out for 64 pixels, of one tap and up to 64 channels, in shared memory, and nowhere stored: it would be
// as large as a column buffer. Each kernel that needs it multiplies anew.
#pragma once
#include "deform/cuda_args.cuh"

namespace fastconv {
namespace {

template <class A>
struct DeformWanted {
  static constexpr int kStep = sizeof(A) == 8 ? 8 : 16;  // output channels
  static constexpr int kLine = kDeformTile + kDeformPad;

  alignas(16) A grads[kStep][kLine];         // [output channel][pixel]
  alignas(16) A weights[kStep][kLine];       // [output channel][channel]
  alignas(16) A wanted[kDeformTile][kLine];  // [pixel][channel]
};

// `pixel_of`: the pixel of each row, or -1. Nobody reads `shared` any more; afterwards everybody may.
template <class T, class PixelOf>
__device__ __forceinline__ void deform_want(const DeformArgs& args, int64_t n, int64_t tap, int64_t channel,
                                            int channels, const PixelOf& pixel_of,
                                            DeformWanted<Accumulate<T>>& shared) {
  using A = Accumulate<T>;
  constexpr int kStep = DeformWanted<A>::kStep, kLine = DeformWanted<A>::kLine;
  const DeformParams& p = args.p;
  const int thread = static_cast<int>(threadIdx.x);
  if (!p.weight) {
#pragma unroll 4
    for (int e = thread; e < kDeformTile * kDeformTile; e += kDeformThreads) {
      const auto at = DeformPlace<kDeformTile, kDeformTile>::of(e, p.channels_last);
      const int64_t pixel = pixel_of(at.row);
      if (pixel < 0 || at.column >= channels) continue;
      shared.wanted[at.row][at.column] = widen(*deform_at<T>(args.output, n, channel + at.column, pixel));
    }
    sync_block();
    return;
  }
  const int64_t C = p.C / p.groups, K = p.K / p.groups, g = quotient(channel, C);
  const T* packed = static_cast<const T*>(args.packed) + ((g * p.R * p.S + tap) * C + channel - g * C) * K;
  const auto own = DeformPlace<kDeformTile / 4, kDeformTile / 4>::of(thread, true);
  A sum[4][4] = {};
  for (int64_t k = 0; k < K; k += kStep) {
    const int steps = K - k < kStep ? static_cast<int>(K - k) : kStep;
    for (int e = thread; e < kDeformTile * kStep; e += kDeformThreads) {
      const auto at = DeformPlace<kDeformTile, kStep>::of(e, p.channels_last);
      const int64_t pixel = pixel_of(at.row);
      if (at.column < steps)
        shared.grads[at.column][at.row] =
            pixel < 0 ? A{0} : widen(*deform_at<T>(args.output, n, g * K + k + at.column, pixel));
      const int line = e % kStep, c = e / kStep;
      if (line < steps) shared.weights[line][c] = c < channels ? widen(packed[c * K + k + line]) : A{0};
    }
    sync_block();
    deform_multiply(shared.grads[0] + 4 * own.row, kLine, shared.weights[0] + 4 * own.column, kLine, steps, sum);
    sync_block();
  }
#pragma unroll
  for (int y = 0; y < 4; ++y) {
    alignas(16) A row[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) row[x] = sum[y][x];
    copy_wide<sizeof row>(&shared.wanted[4 * own.row + y][4 * own.column], row);
  }
  sync_block();
}

}  // namespace
}  // namespace fastconv
