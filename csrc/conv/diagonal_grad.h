// Weight gradient of depthwise convolution with vectors of channels. The running sums of a few rows and columns of the
// kernel are held in registers, and the input columns that B columns of grad_output meet: a vector of grad_output is
// loaded once for all kernel columns, one of the input for all kernel rows. Channels_last tensors are read where they
// lie (3x3, 144 at 56x56, 8 images, two threads: 2.0 ms copied, 1.1 in place; 5x5, 128 channels: 2.3, 1.8; but 7x7, 768
// at 7x7, 0.30, 0.38). Contiguous ones are transposed into scratch memory on the way, 16-bit ones converted.
#pragma once
#include "conv/diagonal.h"

namespace fastconv {
namespace {

constexpr int64_t kGradStripRows = 7;
constexpr int kGradTaps = kVecRegisters == 32 ? 7 : 3;  // the most kernel columns of a register tile
constexpr int grad_rows(int taps) { return kVecRegisters == 32 && taps <= 3 ? 3 : 2; }
constexpr int grad_columns(int stride) { return kVecRegisters == 32 ? (stride == 1 ? 7 : 5) : (stride == 1 ? 4 : 3); }

// The part of an image that a work item looks at, and the part of the kernel.
struct GradTile {
  int64_t p0, rows;       // output rows
  int64_t x_row, x_step;  // elements between input rows, columns
  int64_t g_row, g_step;  // the same for grad_output
  int64_t r, s;           // the first row and column of the kernel
};

// What the next strip reads, a little with every input row.
struct GradAhead {
  Ahead x, grad;
  int64_t x_lines = 0, grad_lines = 0;  // at a time

  void fetch() {
    x.fetch<2>(x_lines);
    grad.fetch<2>(grad_lines);
  }
};

// x is row 0 of the image, grad output row 0; sums[r][s][L].
template <class A, int Stride, int TS>
void diagonal_grad_micro(const ConvParams& p, const GradTile& t, const A* x, const A* grad, A* sums, GradAhead& ahead) {
  constexpr int L = kLanes<A>, TR = grad_rows(TS), B = grad_columns(Stride), NX = (B - 1) * Stride + TS;
  Vec<A> sum[TR][TS] = {};
  const int64_t first = t.p0 * p.stride_h + t.r * p.dilation_h - p.pad_h;
  const int64_t last = first + (t.rows - 1) * p.stride_h + (min64(TR, p.R - t.r) - 1) * p.dilation_h;
  for (int64_t h = max64(0, first); h <= min64(p.H - 1, last); ++h) {
    const A* rows[TR];  // of grad_output, which kernel row r + k connects with this input row
    for (int k = 0; k < TR; ++k) {
      const int64_t distance = h - first - k * p.dilation_h;
      const bool meets = t.r + k < p.R && distance >= 0 && distance <= (t.rows - 1) * p.stride_h &&
                         (p.stride_h == 1 || distance % p.stride_h == 0);
      rows[k] = meets ? grad + (t.p0 + distance / p.stride_h) * t.g_row : nullptr;
    }
    const A* from = x + h * t.x_row;
    ahead.fetch();
    for (int64_t q = 0; q < p.Q; q += B) {
      const int64_t w = q * Stride + t.s - p.pad_w;
      Vec<A> v[NX];
      if (w >= 0 && w + NX <= p.W) {
#pragma GCC unroll 32
        for (int j = 0; j < NX; ++j) v[j] = load(from + (w + j) * t.x_step);
      } else {
#pragma GCC unroll 32
        for (int j = 0; j < NX; ++j) v[j] = w + j >= 0 && w + j < p.W ? load(from + (w + j) * t.x_step) : Vec<A>{};
      }
#pragma GCC unroll 4
      for (int k = 0; k < TR; ++k) {
        if (!rows[k]) continue;
        const A* g = rows[k] + q * t.g_step;
#pragma GCC unroll 8
        for (int i = 0; i < B; ++i) {
          if (q + i >= p.Q) break;
          const Vec<A> factor = load(g + i * t.g_step);
#pragma GCC unroll 8
          for (int s = 0; s < TS; ++s) sum[k][s] += factor * v[i * Stride + s];
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < TR; ++k) {
    if (t.r + k >= p.R) break;
#pragma GCC unroll 8
    for (int s = 0; s < TS; ++s) {
      A* to = sums + ((t.r + k) * p.S + t.s + s) * L;
      store(to, load(to) + sum[k][s]);
    }
  }
}

template <class A>
using DiagonalGradMicro = void (*)(const ConvParams&, const GradTile&, const A*, const A*, A*, GradAhead&);

template <class A, int Stride, int... I>
DiagonalGradMicro<A> diagonal_grad_micro_of(int64_t taps, std::integer_sequence<int, I...>) {
  static const DiagonalGradMicro<A> kTable[] = {diagonal_grad_micro<A, Stride, I + 1>...};
  return kTable[taps - 1];
}

template <class A>
DiagonalGradMicro<A> diagonal_grad_micro_of(int64_t stride, int64_t taps) {
  constexpr auto kAll = std::make_integer_sequence<int, kGradTaps>{};
  return stride == 1 ? diagonal_grad_micro_of<A, 1>(taps, kAll) : diagonal_grad_micro_of<A, 2>(taps, kAll);
}

// Rows [h, h + rows) of channels [c, c + count) as [block][h][w][L], `block` elements from one vector of channels to
// the next; channels beyond the last are zero.
template <class T, class A>
void pack_channels(const View4& v, int64_t n, int64_t c, int64_t count, int64_t h, int64_t rows, int64_t W,
                   int64_t block, A* to) {
  constexpr int64_t L = kLanes<A>;
  if (v.h == W * v.w) {  // rows that follow each other without a gap are one
    W *= rows;
    rows = 1;
  }
  for (int64_t i = 0; i < rows; ++i, to += W * L) {
    const T* from = at<const T>(v, n, c, h + i, 0);
    for (int64_t w = 0; v.c == 1 && w < W; ++w)
      for (int64_t b = 0; b * L < count; ++b) {
        const T* pixel = from + w * v.w + b * L;
        const int64_t left = count - b * L;
        store(to + b * block + w * L, left >= L ? load(pixel) : load_partial(pixel, static_cast<int>(left)));
      }
    for (int64_t b = 0; v.c != 1 && b * L < count; ++b) {
      const int64_t left = min64(L, count - b * L);
      if (left < L) zero(to + b * block, W * L);
      transpose_block(to + b * block, L, 1, from + b * L * v.c, v.c, v.w, left, W);
    }
  }
}

struct DiagonalGradPlan {
  int64_t blocks, splits, rows;    // vectors of channels, shares of the images, output rows of a strip
  int64_t group, groups;           // vectors of channels of a work item, and how many such items
  int64_t x_elements, g_elements;  // of a vector of channels
  bool in_place;                   // channels_last tensors are read where they lie
};

template <class A>
struct DiagonalGradScratch {
  A* sums;  // [split][block][tap][L]
  char* threads;
  int64_t thread_bytes, total;

  DiagonalGradScratch(const ConvParams& p, const DiagonalGradPlan& plan, void* scratch) {
    Carver carve(scratch);
    sums = carve.take<A>(plan.splits * plan.blocks * p.R * p.S * kLanes<A>);
    Carver thread(nullptr);
    thread.take<A>(plan.group * plan.x_elements);
    thread.take<A>(plan.group * plan.g_elements);
    thread_bytes = thread.used();
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

template <class A>
bool diagonal_grad_plan(const ConvParams& p, DiagonalGradPlan& plan) {
  constexpr int64_t L = kLanes<A>, kWanted = 512 << 10;
  if (p.C != 1 || p.K != 1 || p.stride_w > 2 || p.dilation_w != 1) return false;
  plan.blocks = ceil_div(p.G, L);
  // Vectors of channels that lie side by side in memory are packed together.
  const bool last = p.input.c == 1 || p.output.c == 1;
  // Pixels that lie near each other are read where they are, far ones where few taps return to them.
  const bool near = max64(p.input.w, p.output.w) * p.element_size() <= kInPlaceBytes || p.R * p.S <= 9;
  plan.in_place =
      near && p.input.c == 1 && p.output.c == 1 && p.G >= L && p.element_size() == static_cast<int64_t>(sizeof(A));
  const int64_t shares = max64(1, min64(plan.blocks, ceil_div(4 * p.threads, p.N)));  // so that no thread is idle
  plan.group = plan.in_place ? ceil_div(plan.blocks, shares)
               : last        ? max64(1, min64(4, plan.blocks / (2 * p.threads)))
                             : 1;
  const auto x = [&](int64_t rows) { return min64(p.H, diagonal_span(p, rows)) * p.W * L; };
  const auto bytes = [&](int64_t rows) { return (x(rows) + rows * p.Q * L) * kVecBytes / L * plan.group; };
  // A few rows of all channels that a work item has stay in the second level.
  while (plan.in_place && plan.group > 1 && bytes(min64(p.P, kGradStripRows)) > kWanted)
    plan.group = ceil_div(plan.group, 2);
  plan.groups = ceil_div(plan.blocks, plan.group);
  plan.splits = depthwise_splits(p, plan.groups);
  plan.rows = p.P;
  while (plan.rows > 1 && bytes(plan.rows) > kWanted) plan.rows = ceil_div(plan.rows, 2);
  plan.x_elements = plan.in_place ? 0 : x(plan.rows);
  plan.g_elements = plan.in_place ? 0 : plan.rows * p.Q * L;
  return plan.in_place || bytes(plan.rows) <= kDiagonalScratch;
}

// The first channel of a vector of them. In place the last vector is whole as well, and has some of the one before.
template <class A>
int64_t grad_channel(const ConvParams& p, const DiagonalGradPlan& plan, int64_t block) {
  return plan.in_place ? min64(block * kLanes<A>, p.G - kLanes<A>) : block * kLanes<A>;
}

// Adds what one strip of one image contributes to all taps of a vector of channels.
template <class A>
void diagonal_grad_strip(const ConvParams& p, GradTile t, const A* x, const A* grad, A* sums, GradAhead& ahead) {
  const int64_t chunks = ceil_div(p.S, kGradTaps);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    t.s = p.S * chunk / chunks;
    const int64_t taps = p.S * (chunk + 1) / chunks - t.s;
    const auto micro = diagonal_grad_micro_of<A>(p.stride_w, taps);
    for (t.r = 0; t.r < p.R; t.r += grad_rows(static_cast<int>(taps))) micro(p, t, x, grad, sums, ahead);
  }
}

// What the strip after that of row p0 is the first to read, of images up to `last`.
template <class A>
GradAhead grad_ahead(const ConvParams& p, const DiagonalGradPlan& plan, int64_t n, int64_t last, int64_t p0, int64_t c,
                     int64_t count) {
  const int64_t end = (p0 + plan.rows - 1) * p.stride_h - p.pad_h + (p.R - 1) * p.dilation_h + 1;
  p0 += plan.rows;
  if (p0 >= p.P) {
    p0 = 0;
    if (++n == last) return {};
  }
  const int64_t rows = min64(plan.rows, p.P - p0), first = p0 * p.stride_h - p.pad_h;
  GradAhead ahead;
  ahead.x = Ahead::of<A>(p.input, n, c, count,
                         {max64(0, p0 == 0 ? first : end), min64(p.H, first + diagonal_span(p, rows))}, {0, p.W});
  ahead.grad = Ahead::of<A>(p.output, n, c, count, {p0, p0 + rows}, {0, p.Q});
  const int64_t taps = ceil_div(p.S, ceil_div(p.S, kGradTaps)),
                tiles = ceil_div(p.S, taps) * ceil_div(p.R, grad_rows(taps));
  const int64_t times = ceil_div(count, kLanes<A>) * tiles * plan.rows * p.stride_h;
  ahead.x_lines = ceil_div(ahead.x.lines(), times);
  ahead.grad_lines = ceil_div(ahead.grad.lines(), times);
  return ahead;
}

template <class T>
void diagonal_grad_weight(const ConvParams& p, const DiagonalGradPlan& plan, void* scratch) {
  using A = Accumulate<T>;
  constexpr int64_t L = kLanes<A>;
  const DiagonalGradScratch<A> memory(p, plan, scratch);
  const int64_t taps = p.R * p.S;
  const bool far = diagonal_is_far<T>(p);
  compute_for(p.threads, plan.groups * plan.splits, [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    A* x = carve.take<A>(plan.group * plan.x_elements);
    A* g = carve.take<A>(plan.group * plan.g_elements);
    const int64_t b0 = item % plan.groups * plan.group, blocks = min64(plan.group, plan.blocks - b0);
    const int64_t split = item / plan.groups, c = b0 * L, count = min64(blocks * L, p.G - c);
    A* sums = memory.sums + (split * plan.blocks + b0) * taps * L;
    zero(sums, blocks * taps * L);
    GradAhead nothing;
    const int64_t last = p.N * (split + 1) / plan.splits;
    for (int64_t n = p.N * split / plan.splits; n < last; ++n)
      for (int64_t p0 = 0; p0 < p.P; p0 += plan.rows) {
        if (plan.in_place) {
          const GradTile t = {p0, min64(plan.rows, p.P - p0), p.input.h, p.input.w, p.output.h, p.output.w, 0, 0};
          GradAhead ahead = far ? grad_ahead<A>(p, plan, n, last, p0, c, count) : GradAhead();
          for (int64_t b = 0; b < blocks; ++b) {
            const int64_t from = grad_channel<A>(p, plan, b0 + b);
            diagonal_grad_strip<A>(p, t, at<const A>(p.input, n, from, 0, 0), at<const A>(p.output, n, from, 0, 0),
                                   sums + b * taps * L, ahead);
          }
          continue;
        }
        const GradTile t = {p0, min64(plan.rows, p.P - p0), p.W * L, L, p.Q * L, L, 0, 0};
        const int64_t first = p0 * p.stride_h - p.pad_h, h0 = max64(0, min64(first, p.H));
        const int64_t h1 = max64(h0, min64(p.H, first + diagonal_span(p, t.rows)));
        pack_channels<T>(p.input, n, c, count, h0, h1 - h0, p.W, plan.x_elements, x);
        pack_channels<T>(p.output, n, c, count, p0, t.rows, p.Q, plan.g_elements, g);
        for (int64_t b = 0; b < blocks; ++b)
          diagonal_grad_strip<A>(p, t, x + b * plan.x_elements - h0 * p.W * L, g + b * plan.g_elements - p0 * p.Q * L,
                                 sums + b * taps * L, nothing);
      }
  });
  compute_for(p.G * taps > 65536 ? p.threads : 1, plan.blocks, [&](int64_t block, int) {
    A* sums = memory.sums + block * taps * L;
    for (int64_t split = 1; split < plan.splits; ++split) {
      const A* more = sums + split * plan.blocks * taps * L;
      for (int64_t i = 0; i < taps * L; i += L) store(sums + i, load(sums + i) + load(more + i));
    }
    sums += block * L - grad_channel<A>(p, plan, block);
    const bool joined = p.weight.h == p.S * p.weight.w;
    for (int64_t r = 0; r < (joined ? 1 : p.R); ++r)
      transpose_block(at<T>(p.weight, 0, 0, r, 0) + block * L * p.weight_g, p.weight_g, p.weight.w, sums + r * p.S * L,
                      L, 1, joined ? taps : p.S, min64(L, p.G - block * L));
  });
}

struct DiagonalGradWeight {
  using Plan = DiagonalGradPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    return p.G >= 4;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!diagonal_grad_plan<A>(p, plan)) return false;
    memory.scratch = DiagonalGradScratch<A>(p, plan, nullptr).total;
    return true;
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, void* scratch) {
    diagonal_grad_weight<T>(p, plan, scratch);
  }
};

}  // namespace
}  // namespace fastconv
