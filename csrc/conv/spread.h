// Inputs that are spread out (params.h), as the input gradients of strided layers read them.
//
// Of the outputs p = u * up + e, those of one residue e are an ordinary convolution over u, and no two residues share a
// tap: tap r serves one, and reads row u + spread_row(r) for it. What all residues read together is the input of one
// ordinary convolution of stride 1 with outputs u, spread_base(); tiles and scratch are that one's.
//
// Woven outputs. Where every second column is zero, even and odd outputs of a row are two sums over the same vectors of
// the input, and lie side by side in memory: kernels of contiguous tensors keep both in registers and weave them
// together as they store.
#pragma once
#include "conv/tile.h"

namespace fastconv {
namespace {

inline bool spread(const ConvParams& p) { return p.up_h > 1 || p.up_w > 1; }

inline int64_t spread_row(int64_t tap, int64_t up, int64_t dilation, int64_t pad) {
  const int64_t row = tap * dilation - pad;
  return row > 0 ? ceil_div(row, up) : row / up;
}

inline ConvParams spread_base(const ConvParams& p) {
  if (!spread(p)) return p;
  ConvParams base = p;
  base.up_h = base.up_w = base.dilation_h = base.dilation_w = 1;
  base.P = ceil_div(p.P, p.up_h);
  base.Q = ceil_div(p.Q, p.up_w);
  base.pad_h = -spread_row(0, p.up_h, p.dilation_h, p.pad_h);
  base.pad_w = -spread_row(0, p.up_w, p.dilation_w, p.pad_w);
  base.R = base.pad_h + spread_row(p.R - 1, p.up_h, p.dilation_h, p.pad_h) + 1;
  base.S = base.pad_w + spread_row(p.S - 1, p.up_w, p.dilation_w, p.pad_w) + 1;
  return base;
}

// The taps of one residue: `count` from `begin` on, where taps are sorted by residue; the first reads input row `row`
// for the first output.
struct ResidueTaps {
  int64_t begin, count, row;
};

// Tap (r, s) of the kernel in the scratch of the base.
inline Tap spread_tap(const ConvParams& p, const ConvParams& base, const Geometry& g, int64_t r, int64_t s) {
  if (!spread(p)) return tap_of(p, g, r, s);
  const Tap tap = tap_of(base, g, base.pad_h + spread_row(r, p.up_h, p.dilation_h, p.pad_h),
                         base.pad_w + spread_row(s, p.up_w, p.dilation_w, p.pad_w));
  return {tap.offset, static_cast<int32_t>(r * p.S + s)};
}

// Whether residues are so many, or read what is so far apart, that no tile serves them together.
inline bool spread_too_far(const ConvParams& p, const ConvParams& base) {
  constexpr int64_t kMost = 64;
  return spread(p) && (p.up_h > kMost || p.up_w > kMost || base.R > kMost || base.S > kMost);
}

constexpr int64_t kLeastSpreadColumns = 14;

// Columns of the base in a tile of at most kMaxTileColumns outputs, both axes taken together.
inline int64_t spread_columns(const ConvParams& p) {
  return max64(kLeastSpreadColumns, kMaxTileColumns / (p.up_h * p.up_w));
}

// Input rows from one tap of a residue to the next.
inline int64_t spread_step(int64_t up, int64_t dilation) { return dilation / gcd(up, dilation); }

// The taps of one axis, sorted by the residue that they serve.
struct SortedTaps {
  int64_t* order;
  ResidueTaps* residues;
  int64_t step;  // see spread_step()

  void place(Carver& carve, int64_t taps, int64_t up) {
    order = carve.take<int64_t>(taps);
    residues = carve.take<ResidueTaps>(up);
  }

  void sort(int64_t taps, int64_t up, int64_t dilation, int64_t pad) {
    const int64_t period = up / gcd(up, dilation);
    step = spread_step(up, dilation);
    for (int64_t e = 0; e < up; ++e) residues[e] = {0, 0, 0};
    int64_t count = 0;
    for (int64_t first = 0; first < min64(taps, period); ++first) {
      const int64_t row = spread_row(first, up, dilation, pad);
      residues[row * up - (first * dilation - pad)] = {count, ceil_div(taps - first, period), row};
      for (int64_t tap = first; tap < taps; tap += period) order[count++] = tap;
    }
  }
};

// Where `tap` of one axis comes in that order: the first of its residue, how many that has, which of them it is.
struct ResidueTap {
  int64_t begin, count, index;
};

inline ResidueTap residue_tap(int64_t tap, int64_t taps, int64_t up, int64_t dilation) {
  const int64_t period = up / gcd(up, dilation), first = tap % period;
  return {first * (taps / period) + min64(first, taps % period), ceil_div(taps - first, period), tap / period};
}

// The outputs of residue (e, i) of rows and columns, as an ordinary convolution of the input as it lies. Its taps are a
// rectangle of the sorted ones.
inline ConvParams spread_residue(const ConvParams& p, const SortedTaps& h, const SortedTaps& w, int64_t e, int64_t i) {
  ConvParams q = p;
  q.up_h = q.up_w = 1;
  q.P = ceil_div(p.P - e, p.up_h);
  q.Q = ceil_div(p.Q - i, p.up_w);
  q.R = h.residues[e].count;
  q.S = w.residues[i].count;
  q.dilation_h = max64(1, h.step);
  q.dilation_w = max64(1, w.step);
  q.pad_h = -h.residues[e].row;
  q.pad_w = -w.residues[i].row;
  q.output.h *= p.up_h;
  q.output.w *= p.up_w;
  return q;
}

// The output positions of a tile of the base.
inline Tile spread_tile(const ConvParams& p, const Tile& t) {
  const int64_t p0 = t.p0 * p.up_h, q0 = t.q0 * p.up_w;
  return {t.n, p0, q0, min64(t.rows * p.up_h, p.P - p0), min64(t.columns * p.up_w, p.Q - q0)};
}

// ---- woven outputs -------------------------------------------------------------------------------------------------

constexpr int64_t kWovenTaps = 64;  // of an axis

// Whether the taps of `p`, of an input that is spread out by two columns, are few enough for tables of this size.
inline bool weaves(const ConvParams& p) {
  return p.input.w == 1 && p.output.w == 1 && p.up_w == 2 && p.R <= kWovenTaps && p.S <= kWovenTaps &&
         spread_base(p).S <= kWovenTaps && p.up_h <= kWovenTaps;
}

// The taps of such an input: those of each residue of the rows, and which of a row read a column, by the base's column:
// that of the even and that of the odd outputs, -1 for none.
struct Woven {
  SortedTaps h;
  int64_t columns;
  int32_t taps[kWovenTaps][2];

  Woven(const ConvParams& p, const ConvParams& base) {
    if (!spread(p)) return;
    h.order = order_;
    h.residues = residues_;
    h.sort(p.R, p.up_h, p.dilation_h, p.pad_h);
    columns = base.S;
    for (int64_t c = 0; c < base.S; ++c) taps[c][0] = taps[c][1] = -1;
    for (int64_t s = 0; s < p.S; ++s) {
      const int64_t column = spread_row(s, p.up_w, p.dilation_w, p.pad_w), place = s * p.dilation_w - p.pad_w;
      taps[base.pad_w + column][column * p.up_w - place] = static_cast<int32_t>(s);
    }
  }
  Woven(const Woven&) = delete;

 private:
  int64_t order_[kWovenTaps];
  ResidueTaps residues_[kWovenTaps];
};

// Stores NV vectors of even outputs and of odd ones as the `columns` that they are side by side; those of which none is
// left are not looked at.
template <class T, int NV>
inline void store_woven(const Vec<Accumulate<T>> (&even)[NV], const Vec<Accumulate<T>> (&odd)[NV], T* out,
                        int64_t columns, const Finish<T>& finish) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) {
    Vec<A> both[2];
    zip(even[j], odd[j], both[0], both[1], std::make_integer_sequence<int, L>{});
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int64_t done = (2 * j + half) * L;
      if (columns - done >= L)
        finish.store(out + done, both[half]);
      else if (columns > done)
        finish.store_partial(out + done, both[half], static_cast<int>(columns - done));
    }
  }
}

}  // namespace
}  // namespace fastconv
