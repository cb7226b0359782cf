// The kernel that takes everything: any size, stride, dilation and layout, with no scratch memory. A row of outputs is
// a sum of rows of input, each clipped to where it is not padding and multiplied by one weight. It serves what the
// others cannot tile (dilations and strides of thousands), and the tests hold the others against it.
#pragma once
#include "conv/tile.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

// The outputs of [q0, q1) for which input column q * stride + shift lies inside [0, W).
inline Range clip(int64_t q0, int64_t q1, int64_t stride, int64_t shift, int64_t W) {
  const int64_t begin = shift < 0 ? max64(q0, ceil_div(-shift, stride)) : q0;
  const int64_t end = shift < W ? min64(q1, (W - 1 - shift) / stride + 1) : q0;
  return {begin, max64(begin, end)};
}

template <class T>
void general_forward(const ConvParams& p) {
  using A = Accumulate<T>;
  const Finish<T> finish(p);
  constexpr int L = kLanes<A>;
  constexpr int64_t kRow = 512;
  compute_for(p.threads, p.N * p.G * p.K * p.P, [&](int64_t item, int) {
    const int64_t row = item % p.P, k = item / p.P % p.K, g = item / p.P / p.K % p.G, n = item / p.P / p.K / p.G;
    const T* weights = static_cast<const T*>(p.weight.data) + g * p.weight_g;
    const int64_t step = p.stride_w * p.input.w;
    for (int64_t q0 = 0; q0 < p.Q; q0 += kRow) {
      const int64_t q1 = min64(p.Q, q0 + kRow);
      A acc[kRow];
      const A bias = p.bias ? get(static_cast<const T*>(p.bias) + g * p.K + k) : A(0);
      for (int64_t i = 0; i < q1 - q0; ++i) acc[i] = bias;
      for (int64_t r = 0; r < p.R; ++r) {
        const int64_t h = row * p.stride_h + r * p.dilation_h - p.pad_h;
        if (h < 0 || h >= p.H) continue;
        for (int64_t s = 0; s < p.S; ++s) {
          const int64_t shift = s * p.dilation_w - p.pad_w;
          const Range range = clip(q0, q1, p.stride_w, shift, p.W);
          for (int64_t c = 0; c < p.C; ++c) {
            const Vec<A> weight =
                splat(get(weights + k * p.weight.n + c * p.weight.c + r * p.weight.h + s * p.weight.w));
            const T* from = at<const T>(p.input, n, g * p.C + c, h, 0) + shift * p.input.w;
            for (int64_t q = range.begin; q < range.end; q += L) {
              const int count = static_cast<int>(min64(L, range.end - q));
              A* to = acc + (q - q0);
              store_partial(to, load_partial(to, count) + weight * load_strided(from + q * step, step, count), count);
            }
          }
        }
      }
      T* to = at<T>(p.output, n, g * p.K + k, row, q0);
      for (int64_t i = 0; i < q1 - q0; i += L) {
        const int count = static_cast<int>(min64(L, q1 - q0 - i));
        finish.store_strided(to + i * p.output.w, p.output.w, load_partial(acc + i, count), count);
      }
    }
  });
}

template <class T>
void general_grad_weight(const ConvParams& p) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const int64_t step = p.stride_w * p.input.w;
  compute_for(p.threads, p.G * p.K * p.C, [&](int64_t item, int) {
    const int64_t c = item % p.C, k = item / p.C % p.K, g = item / p.C / p.K;
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t s = 0; s < p.S; ++s) {
        const int64_t shift = s * p.dilation_w - p.pad_w;
        const Range range = clip(0, p.Q, p.stride_w, shift, p.W);
        Vec<A> sum = {};
        for (int64_t n = 0; n < p.N; ++n)
          for (int64_t row = 0; row < p.P; ++row) {
            const int64_t h = row * p.stride_h + r * p.dilation_h - p.pad_h;
            if (h < 0 || h >= p.H) continue;
            const T* x = at<const T>(p.input, n, g * p.C + c, h, 0) + shift * p.input.w;
            const T* grad = at<const T>(p.output, n, g * p.K + k, row, 0);
            for (int64_t q = range.begin; q < range.end; q += L) {
              const int count = static_cast<int>(min64(L, range.end - q));
              sum += load_strided(x + q * step, step, count) * load_strided(grad + q * p.output.w, p.output.w, count);
            }
          }
        put(at<T>(p.weight, k, c, r, s) + g * p.weight_g, sum_lanes<A>(sum));
      }
  });
}

struct GeneralForward {
  struct Plan {};
  template <class A>
  static bool preferred(const ConvParams&) {
    return true;
  }
  template <class A>
  static bool plan(const ConvParams&, Plan&, ConvMemory&) {
    return true;
  }
  template <class T>
  static void pack(const ConvParams&, const Plan&, void*) {}
  template <class T>
  static void run(const ConvParams& p, const Plan&, const void*, void*) {
    general_forward<T>(p);
  }
};

struct GeneralGradWeight {
  struct Plan {};
  template <class A>
  static bool preferred(const ConvParams&) {
    return true;
  }
  template <class A>
  static bool plan(const ConvParams&, Plan&, ConvMemory&) {
    return true;
  }
  template <class T>
  static void run(const ConvParams& p, const Plan&, void*) {
    general_grad_weight<T>(p);
  }
};

}  // namespace
}  // namespace fastconv
