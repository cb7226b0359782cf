// Depthwise convolution without a copy of the input, for small kernels. Their few multiply-adds are soon done; what
// takes the time is moving data, so here it is moved once: input is read where it lies, output is written where it
// belongs, and padding is clipped away instead of being filled in. Two kernels, one for each layout:
//
// depthwise_rows, contiguous: vectors along a row. A register tile is RB output rows by NV vectors, and a loaded vector
// of an input row serves every output row that it reaches. Vectors are loaded through masks, for those that stick out
// over the edge of the image. Wide kernels of one row have register tiles of their own (line_micro). Strides 1 and 2;
// kernels of 1, 3, 5 or 7 rows. Of an input that is spread out by two columns, even and odd outputs are summed up side
// by side and woven together as they are stored (woven_micro).
//
// depthwise_pixels, channels_last: vectors along the channels. A register tile is PX pixels; a strip of rows shares
// what it reads through the first-level cache.
#pragma once
#include "conv/spread.h"
#include "core/parallel.h"

namespace fastconv {
namespace {

// ---- contiguous
// ------------------------------------------------------------------------------------------------------

constexpr int kRowVectors = 8;    // the most of a register tile
constexpr int64_t kRowTaps = 64;  // the widest kernel
constexpr bool kRowsFetch = kVecRegisters < 32;
constexpr int64_t kShiftTaps = 8;  // from which on kernels of one row have register tiles of their own
constexpr int row_vectors(int taps) { return taps == 1 ? 8 : kVecRegisters == 32 ? 4 : 2; }
// Enough running sums that none waits for its own last addition.
constexpr int row_block(int taps, int vectors) { return taps == 1 ? 1 : vectors == 1 ? 7 : 4; }

// The lanes of a vector of row elements from `start` on that lie inside [0, W).
template <class T>
inline Window<T> inside_row(int64_t start, int64_t W) {
  constexpr int L = kLanes<Accumulate<T>>;
  const int begin = static_cast<int>(max64(0, min64(-start, L))), end = static_cast<int>(max64(0, min64(W - start, L)));
  return begin < end ? Window<T>(begin, end) : Window<T>(0, 0);
}

// What a call of a register tile gets beside its operands: from where and how much to fetch ahead, and the taps of an
// input that is spread out.
struct RowsAside {
  const char* ahead;
  int64_t fetch;
  const Woven* woven;
};

// All output rows of NV vectors of columns, RB rows at a time. x is input row 0, and `column` that which the first
// output reads through tap 0; windows[s][vector] are the lanes inside the image; w[r][s]; out is output row 0. Square:
// S = R and dilation = 1 are known to the compiler, which gives 8 %.
//
// The loop over rows is in here, since preparing a call took as long as a quarter of a tile: 3x3 of 112 columns 128 µs
// -> 95, of 14 columns (with 7 rows instead of 4 besides) 70 -> 39. Fetching ahead no longer pays, and neither does
// loading without masks where the image allows it (95 -> 103).
//
// Where register tiles are narrower than a row of stride 2, what is read first are scattered pieces of rows, which
// processors do not foresee. So `fetch` lines of the next plane are fetched from `ahead` on for every RB rows. (3x3, 96
// channels at 112x112, one thread of an EPYC with AVX2: ratio to PyTorch 0.46 -> 0.82; at a stride of 1 no difference.)
template <class T, int R, int Stride, int NV, bool Square>
void rows_micro(const ConvParams& p, const T* x, int64_t column, const Window<T>* windows, const Accumulate<T>* w,
                Accumulate<T> bias, T* out, int64_t columns, const Finish<T>& finish, const RowsAside& aside) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>, RB = row_block(R, NV);
  const int64_t S = Square ? R : p.S, dilation = Square ? 1 : p.dilation_w;
  const int64_t x_row = p.input.h, out_row = p.output.h, H = p.H, P = p.P, rest = columns - (NV - 1) * L;
  const char* ahead = aside.ahead;
  int64_t h = -p.pad_h;
  x += h * x_row + column;
  for (int64_t row = 0; row < P; row += RB) {
    if constexpr (kRowsFetch)
      for (int64_t i = 0; i < aside.fetch; ++i, ahead += kCacheLine) __builtin_prefetch(ahead, 0, 2);
    Vec<A> sum[RB][NV];
#pragma GCC unroll 8
    for (int i = 0; i < RB; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) sum[i][j] = splat(bias);
    int64_t start = 0;
#pragma GCC unroll 8
    for (int64_t s = 0; s < (Square ? R : S); ++s, start += dilation) {
      Window<T> window[NV * Stride];
#pragma GCC unroll 16
      for (int j = 0; j < NV * Stride; ++j) window[j] = windows[s * (kRowVectors * Stride) + j];
#pragma GCC unroll 32
      for (int i = 0; i < (RB - 1) * Stride + R; ++i) {
        if (static_cast<uint64_t>(h + i) >= static_cast<uint64_t>(H)) continue;
        Vec<A> v[NV];
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) {
          const T* from = x + i * x_row + start + j * L * Stride;
          if constexpr (Stride == 2)
            v[j] = load_even(from, window[j * 2], window[j * 2 + 1]);
          else
            v[j] = load(from, window[j]);
        }
#pragma GCC unroll 8
        for (int o = 0; o < RB; ++o) {
          const int r = i - o * Stride;
          if (r < 0 || r >= R) continue;
          const Vec<A> weight = splat(w[r * S + s]);
#pragma GCC unroll 8
          for (int j = 0; j < NV; ++j) sum[o][j] += weight * v[j];
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < RB; ++i, out += out_row) {
      if (row + i >= P) continue;
      if constexpr (Stride == 2) {
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) sum[i][j] = in_order<A>(sum[i][j]);
      }
#pragma GCC unroll 8
      for (int j = 0; j < NV - 1; ++j) finish.store(out + j * L, sum[i][j]);
      if (rest >= L)
        finish.store(out + (NV - 1) * L, sum[i][NV - 1]);
      else
        finish.store_partial(out + (NV - 1) * L, sum[i][NV - 1], static_cast<int>(rest));
    }
    h += RB * Stride;
    x += RB * Stride * x_row;
  }
}

inline bool is_line(const ConvParams& p) {
  return kVecRegisters == 32 && !spread(p) && p.R == 1 && p.S >= kShiftTaps && p.stride_w == 1 && p.dilation_w == 1;
}

// Wide kernels of one row: half of the taps shift, in registers, what has been loaded for all; the others load it
// again. A load across cache lines keeps its port for nearly two multiply-adds and a shift competes with them, so that
// either alone takes longer: 1x31, 512 channels of 1000, one thread 670 us by loads, 530 by shifts, 460 by both. (1x4
// is 10 % faster by loads.)
template <class T, int NV, bool Inside, int... I>
[[gnu::always_inline]] inline void line_taps(const T* x, const Vec<Accumulate<T>>* v, const Accumulate<T>* w,
                                             int64_t taps, Vec<Accumulate<T>>* sum, std::integer_sequence<int, I...>) {
  using A = Accumulate<T>;
  const auto tap = [&](auto shift) {
    constexpr int kShift = decltype(shift)::value;
    if (kShift >= taps) return false;
    const Vec<A> weight = splat(w[kShift]);
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j)
      sum[j] += weight *
                (Inside && kShift % 2 == 1 ? load(x + kShift + j * kLanes<A>) : lanes_from<kShift, A>(v[j], v[j + 1]));
    return true;
  };
  static_cast<void>((tap(std::integral_constant<int, I>{}) && ...));
}

template <class T, int NV>
void line_micro(const ConvParams& p, const T* x, int64_t w, const Window<T>*, const Accumulate<T>* weights,
                Accumulate<T> bias, T* out, int64_t columns, const Finish<T>& finish, const RowsAside&) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  for (int64_t row = 0; row < p.P; ++row, out += p.output.h) {
    const int64_t h = row - p.pad_h;
    Vec<A> sum[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[j] = splat(bias);
    for (int64_t s = 0; s < p.S && h >= 0 && h < p.H; s += L) {
      Vec<A> v[NV + 1];
#pragma GCC unroll 16
      for (int j = 0; j <= NV; ++j) {
        const int64_t start = w + s + j * L;
        v[j] = load(x + h * p.input.h + start, inside_row<T>(start, p.W));
      }
      const auto all = std::make_integer_sequence<int, L>{};
      if (w + s >= 0 && w + s + (NV + 1) * L <= p.W)
        line_taps<T, NV, true>(x + h * p.input.h + w + s, v, weights + s, p.S - s, sum, all);
      else
        line_taps<T, NV, false>(x, v, weights + s, p.S - s, sum, all);
    }
#pragma GCC unroll 8
    for (int j = 0; j < NV - 1; ++j) finish.store(out + j * L, sum[j]);
    finish.store_partial(out + (NV - 1) * L, sum[NV - 1], static_cast<int>(min64(L, columns - (NV - 1) * L)));
  }
}

// Even outputs and odd ones beside them, NV vectors of each.
template <class T, int NV>
void woven_micro(const ConvParams& p, const T* x, int64_t column, const Window<T>* windows, const Accumulate<T>* w,
                 Accumulate<T> bias, T* out, int64_t columns, const Finish<T>& finish, const RowsAside& aside) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const Woven& woven = *aside.woven;
  x += column;
  for (int64_t u = 0, row = 0; row < p.P; ++u)
    for (int64_t e = 0; e < p.up_h && row < p.P; ++e, ++row, out += p.output.h) {
      Vec<A> even[NV], odd[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) even[j] = odd[j] = splat(bias);
      const ResidueTaps taps = woven.h.residues[e];
      for (int64_t i = 0, h = u + taps.row; i < taps.count; ++i, h += woven.h.step) {
        if (static_cast<uint64_t>(h) >= static_cast<uint64_t>(p.H)) continue;
        const A* weights = w + woven.h.order[taps.begin + i] * p.S;
        const T* from = x + h * p.input.h;
        for (int64_t c = 0; c < woven.columns; ++c, ++from) {
          Vec<A> v[NV];
#pragma GCC unroll 8
          for (int j = 0; j < NV; ++j) v[j] = load(from + j * L, windows[c * kRowVectors + j]);
          if (const int32_t s = woven.taps[c][0]; s >= 0) {
            const Vec<A> weight = splat(weights[s]);
#pragma GCC unroll 8
            for (int j = 0; j < NV; ++j) even[j] += weight * v[j];
          }
          if (const int32_t s = woven.taps[c][1]; s >= 0) {
            const Vec<A> weight = splat(weights[s]);
#pragma GCC unroll 8
            for (int j = 0; j < NV; ++j) odd[j] += weight * v[j];
          }
        }
      }
      store_woven<T, NV>(even, odd, out, columns, finish);
    }
}

template <class T>
using RowsMicro = void (*)(const ConvParams&, const T*, int64_t, const Window<T>*, const Accumulate<T>*, Accumulate<T>,
                           T*, int64_t, const Finish<T>&, const RowsAside&);

template <class T, int R, int Stride, bool Square, int... I>
RowsMicro<T> rows_micro_of(int64_t vectors, std::integer_sequence<int, I...>) {
  static const RowsMicro<T> kTable[] = {rows_micro<T, R, Stride, I + 1, Square>...};
  return kTable[vectors - 1];
}

template <class T, int R>
RowsMicro<T> rows_micro_of(int64_t stride, bool square, int64_t vectors) {
  constexpr auto kAll = std::make_integer_sequence<int, row_vectors(R)>{};
  if (stride == 2) return rows_micro_of<T, R, 2, false>(vectors, kAll);
  if constexpr (R == 3)  // larger kernels would be megabytes of code
    if (square) return rows_micro_of<T, R, 1, true>(vectors, kAll);
  return rows_micro_of<T, R, 1, false>(vectors, kAll);
}

template <class T, int... I>
RowsMicro<T> line_micro_of(int64_t vectors, std::integer_sequence<int, I...>) {
  static const RowsMicro<T> kTable[] = {line_micro<T, I + 1>...};
  return kTable[vectors - 1];
}

template <class T, int... I>
RowsMicro<T> woven_micro_of(int64_t vectors, std::integer_sequence<int, I...>) {
  static const RowsMicro<T> kTable[] = {woven_micro<T, I + 1>...};
  return kTable[vectors - 1];
}

// Vectors of even outputs, and as many of odd ones.
constexpr int kWovenVectors = kVecRegisters == 32 ? 4 : 2;

template <class T>
RowsMicro<T> rows_micro_of(const ConvParams& p, int64_t vectors) {
  if (spread(p)) return woven_micro_of<T>(vectors, std::make_integer_sequence<int, kWovenVectors>{});
  if constexpr (kVecRegisters == 32)
    if (is_line(p)) return line_micro_of<T>(vectors, std::make_integer_sequence<int, row_vectors(1)>{});
  const bool square = p.S == p.R && p.dilation_w == 1;
  switch (p.R) {
    case 1: return rows_micro_of<T, 1>(p.stride_w, false, vectors);
    case 3: return rows_micro_of<T, 3>(p.stride_w, square, vectors);
    case 5: return rows_micro_of<T, 5>(p.stride_w, square, vectors);
    default: return rows_micro_of<T, 7>(p.stride_w, square, vectors);
  }
}

// Where the input is spread out, vectors, chunks and windows are those of the base.
template <class T>
void depthwise_rows(const ConvParams& p, const void* packed) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const A* weights = static_cast<const A*>(packed);
  const Finish<T> finish(p);
  const ConvParams base = spread_base(p);
  const int64_t most = spread(p) ? kWovenVectors : row_vectors(static_cast<int>(p.R));
  const int64_t stride = base.stride_w, vectors = ceil_div(base.Q, L), chunks = ceil_div(vectors, most);
  // The lanes inside the image: of the first chunk, of the last, and of those between, which mostly are all.
  using Windows = Window<T>[kRowTaps * kRowVectors * 2];
  const auto chunk_vectors = [&](int64_t chunk) { return vectors * chunk / chunks; };
  const auto look = [&](int64_t chunk, Windows& windows) {
    const int64_t w = chunk_vectors(chunk) * L * stride - base.pad_w;
    const int64_t count = (chunk_vectors(chunk + 1) - chunk_vectors(chunk)) * stride;
    for (int64_t s = 0; s < base.S; ++s)
      for (int64_t j = 0; j < count; ++j)
        windows[s * kRowVectors * stride + j] = inside_row<T>(w + s * base.dilation_w + j * L, p.W);
  };
  Windows of_first, of_last, whole;
  if (!is_line(p)) {  // which makes its own
    look(0, of_first);
    look(chunks - 1, of_last);
    for (int64_t i = 0; i < base.S * kRowVectors * stride; ++i) whole[i] = Window<T>(0, L);
  }
  const Woven woven(p, base);
  // A share of the next plane for every few rows of each chunk, where planes are all that lies there.
  const int64_t row_blocks = ceil_div(p.P, row_block(static_cast<int>(p.R), row_vectors(static_cast<int>(p.R))));
  const int64_t plane = p.H * p.input.h * static_cast<int64_t>(sizeof(T));
  const int64_t fetch =
      stride == 2 && chunks > 1 && p.input.h == p.W ? ceil_div(plane, kCacheLine * chunks * row_blocks) : 0;
  compute_for(p.threads, p.N * p.G, [&](int64_t item, int) {
    const int64_t n = item / p.G, g = item % p.G;
    const A bias = p.bias ? get(static_cast<const T*>(p.bias) + g) : A(0);
    const char* const next = reinterpret_cast<const char*>(at<const T>(p.input, n, g, 0, 0) + p.input.c);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = chunk_vectors(chunk), count = chunk_vectors(chunk + 1) - first;
      const int64_t q = first * L, w = q * stride - base.pad_w;
      const bool inside = w >= 0 && w + (base.S - 1) * base.dilation_w + count * stride * L <= p.W;
      Windows rare;
      if (!inside && chunk > 0 && chunk < chunks - 1 && !is_line(p)) look(chunk, rare);
      const Window<T>* windows = inside ? whole : chunk == 0 ? of_first : chunk == chunks - 1 ? of_last : rare;
      rows_micro_of<T>(p, count)(p, at<const T>(p.input, n, g, 0, 0), w, windows, weights + g * p.R * p.S, bias,
                                 at<T>(p.output, n, g, 0, q * p.up_w), p.Q - q * p.up_w, finish,
                                 {next + chunk * row_blocks * fetch * kCacheLine, fetch, &woven});
    }
  });
}

struct DepthwiseRows {
  struct Plan {};
  template <class A>
  static bool preferred(const ConvParams&) {
    return true;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan&, ConvMemory& memory) {
    memory.packed = p.G * p.R * p.S * static_cast<int64_t>(sizeof(A));
    if (spread(p)) return p.C == 1 && p.K == 1 && weaves(p);
    return p.C == 1 && p.K == 1 && p.input.w == 1 && p.output.w == 1 && p.stride_h == p.stride_w && p.stride_w <= 2 &&
           p.S <= kRowTaps && (p.dilation_h == 1 || p.R == 1) && (p.R == 1 || p.R == 3 || p.R == 5 || p.R == 7);
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan&, void* packed) {
    auto* to = static_cast<Accumulate<T>*>(packed);
    const View4& w = p.weight;
    if (w.w == 1 && w.h == p.S && p.weight_g == p.R * p.S)
      return copy_row(to, static_cast<const T*>(w.data), p.G * p.R * p.S);
    for (int64_t g = 0; g < p.G; ++g)
      for (int64_t r = 0; r < p.R; ++r)
        for (int64_t s = 0; s < p.S; ++s) *to++ = get(at<const T>(w, 0, 0, r, s) + g * p.weight_g);
  }
  template <class T>
  static void run(const ConvParams& p, const Plan&, const void* packed, void*) {
    depthwise_rows<T>(p, packed);
  }
};

// ---- channels_last
// ---------------------------------------------------------------------------------------------------

constexpr int kDirectPixels = 8;
constexpr int64_t kDirectTaps = 49;  // a larger kernel reads so much that packing its input pays
constexpr int64_t kDirectRows = 4;   // output rows that are computed side by side

struct DirectTap {
  int64_t offset;  // elements from what the tap would read without padding for output column 0
  int64_t index;
};

// The taps of output row `row` that read the image, of those that do so for columns [q, q + count).
inline int64_t direct_taps(const ConvParams& p, int64_t row, int64_t q, int64_t count, DirectTap* taps) {
  int64_t found = 0;
  for (int64_t r = 0; r < p.R; ++r) {
    const int64_t h = row * p.stride_h + r * p.dilation_h - p.pad_h;
    if (h < 0 || h >= p.H) continue;
    for (int64_t s = 0; s < p.S; ++s) {
      const int64_t shift = s * p.dilation_w - p.pad_w, w = q * p.stride_w + shift;
      if (w < 0 || w + (count - 1) * p.stride_w >= p.W) continue;
      taps[found++] = {h * p.input.h + shift * p.input.w, r * p.S + s};
    }
  }
  return found;
}

// PX pixels of up to L channels.
template <class T, int PX>
void pixels_micro(const T* x, int64_t step, const DirectTap* taps, int64_t tap_count, const Accumulate<T>* w,
                  int64_t w_step, Vec<Accumulate<T>> bias, T* out, int64_t out_step, int channels,
                  const Finish<T>& finish) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  Vec<A> sum[PX];
#pragma GCC unroll 8
  for (int i = 0; i < PX; ++i) sum[i] = bias;
  if (channels == L) {
    for (int64_t t = 0; t < tap_count; ++t) {
      const T* from = x + taps[t].offset;
      const Vec<A> weight = load(w + taps[t].index * w_step);
#pragma GCC unroll 8
      for (int i = 0; i < PX; ++i) sum[i] += load(from + i * step) * weight;
    }
#pragma GCC unroll 8
    for (int i = 0; i < PX; ++i) finish.store(out + i * out_step, sum[i]);
  } else {
    for (int64_t t = 0; t < tap_count; ++t) {
      const T* from = x + taps[t].offset;
      const Vec<A> weight = load_partial(w + taps[t].index * w_step, channels);
#pragma GCC unroll 8
      for (int i = 0; i < PX; ++i) sum[i] += load_partial(from + i * step, channels) * weight;
    }
#pragma GCC unroll 8
    for (int i = 0; i < PX; ++i) finish.store_partial(out + i * out_step, sum[i], channels);
  }
}

template <class T>
void depthwise_pixels(const ConvParams& p, const void* packed) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  const A* weights = static_cast<const A*>(packed);
  const Finish<T> finish(p);
  const int64_t strips = ceil_div(p.P, kDirectRows);
  compute_for(p.threads, p.N * strips, [&](int64_t item, int) {
    const int64_t n = item / strips, p0 = item % strips * kDirectRows, rows = min64(kDirectRows, p.P - p0);
    // Columns of which every tap reads the image; the others are computed one at a time.
    const int64_t inside = min64(p.Q, ceil_div(max64(p.pad_w, 0), p.stride_w));
    const int64_t room = p.W - 1 + p.pad_w - (p.S - 1) * p.dilation_w;
    const int64_t outside = max64(inside, room < 0 ? 0 : min64(p.Q, room / p.stride_w + 1));
    DirectTap whole_taps[kDirectRows][kDirectTaps];
    int64_t whole_count[kDirectRows];
    for (int64_t i = 0; i < rows; ++i)
      whole_count[i] = direct_taps(p, p0 + i, inside, max64(1, outside - inside), whole_taps[i]);
    const int64_t step = p.stride_w * p.input.w;
    for (int64_t q = 0; q < p.Q;) {
      const bool whole = q >= inside && q + kDirectPixels <= outside;
      for (int64_t i = 0; i < rows; ++i) {
        DirectTap edge_taps[kDirectTaps];
        const DirectTap* taps = whole ? whole_taps[i] : edge_taps;
        const int64_t count = whole ? whole_count[i] : direct_taps(p, p0 + i, q, 1, edge_taps);
        const auto micro = whole ? pixels_micro<T, kDirectPixels> : pixels_micro<T, 1>;
        const T* x = at<const T>(p.input, n, 0, 0, 0) + q * step;
        T* out = at<T>(p.output, n, 0, p0 + i, q);
        for (int64_t g = 0; g < p.G; g += L) {
          const int channels = static_cast<int>(min64(L, p.G - g));
          const Vec<A> bias = p.bias ? load_partial(static_cast<const T*>(p.bias) + g, channels) : Vec<A>{};
          micro(x + g, step, taps, count, weights + g, p.G, bias, out + g, p.output.w, channels, finish);
        }
      }
      q += whole ? kDirectPixels : 1;
    }
  });
}

struct DepthwisePixels {
  struct Plan {};
  template <class A>
  static bool preferred(const ConvParams& p) {
    return p.G >= 4;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan&, ConvMemory& memory) {
    memory.packed = p.G * p.R * p.S * static_cast<int64_t>(sizeof(A));
    return p.C == 1 && p.K == 1 && is_channels_last(p.input) && is_channels_last(p.output) && p.R * p.S <= kDirectTaps;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan&, void* packed) {
    // As [tap][G].
    auto* to = static_cast<Accumulate<T>*>(packed);
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t s = 0; s < p.S; ++s) {
        const T* from = at<const T>(p.weight, 0, 0, r, s);
        for (int64_t g = 0; g < p.G; ++g) *to++ = get(from + g * p.weight_g);
      }
  }
  template <class T>
  static void run(const ConvParams& p, const Plan&, const void* packed, void*) {
    depthwise_pixels<T>(p, packed);
  }
};

}  // namespace
}  // namespace fastconv
