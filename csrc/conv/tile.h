// What every fast convolution kernel stands on: a tile of output positions, the input it needs copied once into
// scratch memory that stays in cache, and the way back.
//
// Phase planes. Let T = stride / gcd(stride, dilation). Tap r of the kernel reads input row p * stride + r * dilation;
// taps r, r + T, r + 2T, ... differ by multiples of the stride. So input rows are copied into T planes, plane j holding
// rows i * stride + j * dilation, and in plane j = r % T the tap reads row p + (r / T) * (T * dilation / stride):
// whatever the stride and the dilation, output position i of the tile reads scratch position offset[r, s] + i. Columns
// likewise. Strides cost nothing in the inner loop, padding is zeros that were written once, and a convolution is
//   out[i] = sum over taps of weight[tap] * x[offset[tap] + i].
// Where dilation is so large that most of a plane would never be read, every tap gets a plane of its own (T = R).
//
// Two layouts of scratch: planar, a channel's planes one after the other, for kernels whose vectors run along the
// pixels; packed, blocks of as many channels as a vector has lanes with the channels innermost.
#pragma once
#include "conv/finish.h"
#include "core/ahead.h"

namespace fastconv {
namespace {

constexpr int64_t kMaxTileColumns = 512;
// Between pixels of a channels_last input that is read in place. Those farther apart fall into too few sets of the
// first level: of pixels that are 4 KB apart, all of a register tile into one.
constexpr int64_t kInPlaceBytes = 1 << 10;

// One axis of the tiling.
struct Axis {
  int64_t tile, tiles;   // outputs of a tile, number of tiles
  int64_t period, step;  // T, and how far tap r + T is from tap r within a plane
  int64_t planes, span;  // number of planes, positions of one plane
};

inline Axis make_axis(int64_t outputs, int64_t tile, int64_t taps, int64_t stride, int64_t dilation) {
  Axis a;
  a.tile = tile;
  a.tiles = ceil_div(outputs, tile);
  a.period = stride / gcd(stride, dilation);
  a.step = a.period * dilation / stride;
  a.planes = min64(taps, a.period);
  a.span = tile + (taps - 1) / a.period * a.step;
  if (a.planes * a.span > taps * tile) {
    a.period = a.planes = taps;
    a.step = 0;
    a.span = tile;
  }
  return a;
}

struct Geometry {
  Axis h, w;
  int64_t pitch;    // elements from one row of a plane to the next
  int64_t channel;  // positions of one channel: all its planes
};

// Balanced column tiles: a row of 600 is two of 300, not 512 and 88.
inline int64_t tile_columns(int64_t Q, int64_t most) { return ceil_div(Q, ceil_div(Q, most)); }

// Where there are several column tiles, all but the last are a multiple of `whole` columns wide, which may be more than
// `most_columns`.
inline Geometry make_geometry(const ConvParams& p, int64_t rows, int64_t most_columns = kMaxTileColumns,
                              int64_t whole = 1) {
  Geometry g;
  g.h = make_axis(p.P, rows, p.R, p.stride_h, p.dilation_h);
  const int64_t columns = min64(p.Q, round_up(tile_columns(p.Q, most_columns), whole));
  g.w = make_axis(p.Q, columns, p.S, p.stride_w, p.dilation_w);
  g.pitch = g.w.span;
  g.channel = g.h.planes * g.w.planes * g.h.span * g.pitch;
  return g;
}

// One tile: output rows [p0, p0 + rows), columns [q0, q0 + columns) of image n.
struct Tile {
  int64_t n, p0, q0, rows, columns;
};

inline Tile make_tile(const ConvParams& p, const Geometry& g, int64_t n, int64_t tile) {
  Tile t;
  t.n = n;
  t.p0 = tile / g.w.tiles * g.h.tile;
  t.q0 = tile % g.w.tiles * g.w.tile;
  t.rows = min64(g.h.tile, p.P - t.p0);
  t.columns = min64(g.w.tile, p.Q - t.q0);
  return t;
}

// One share of the work: a tile of group g of image n, for one split of its output channels.
struct WorkItem {
  int64_t split, n, g, tile;
};

// All tiles come with one split before the next, so that a thread, whose items are neighbours, has few weights to keep
// in its cache. (Two splits of 64 channels by 64 to two threads: Winograd at 56x56 478 -> 454 us.)
inline WorkItem work_item(int64_t item, int64_t tiles, int64_t groups, int64_t images) {
  const int64_t image = item / tiles / groups;
  return {image / images, image % images, item / tiles % groups, item % tiles};
}

// A tap of the kernel that reads something other than padding in this tile.
struct Tap {
  int32_t offset;  // position in a channel's planes that output 0 of the tile reads
  int32_t index;   // r * S + s
};

inline Tap tap_of(const ConvParams& p, const Geometry& g, int64_t r, int64_t s) {
  const int64_t plane = r % g.h.period * g.w.planes + s % g.w.period;
  const int64_t row = plane * g.h.span + r / g.h.period * g.h.step;
  return {static_cast<int32_t>(row * g.pitch + s / g.w.period * g.w.step), static_cast<int32_t>(r * p.S + s)};
}

inline bool reads_input(int64_t first, int64_t count, int64_t stride, int64_t size) {
  return first < size && first + (count - 1) * stride >= 0;
}

// Taps whose every read is padding are left out. At least one stays, so that kernels need no way around their loops:
// where all is padding it reads zeros.
inline int live_taps(const ConvParams& p, const Geometry& g, const Tile& t, Tap* taps) {
  int count = 0;
  for (int64_t r = 0; r < p.R; ++r) {
    const bool last_row = r == p.R - 1 && count == 0;
    if (!reads_input(t.p0 * p.stride_h + r * p.dilation_h - p.pad_h, t.rows, p.stride_h, p.H) && !last_row) continue;
    for (int64_t s = 0; s < p.S; ++s) {
      const bool last = last_row && s == p.S - 1 && count == 0;
      if (!reads_input(t.q0 * p.stride_w + s * p.dilation_w - p.pad_w, t.columns, p.stride_w, p.W) && !last) continue;
      taps[count++] = tap_of(p, g, r, s);
    }
  }
  return count;
}

// ---- rows of outputs, cut where the set of taps that read the image changes ----------------------------------------

constexpr int64_t kSegmentDilation = 4;  // the smallest for which it pays
constexpr int64_t kMostSegments = 16;

// The taps of one axis that reach the image from outputs [first, first + count); at least one, which then reads zeros.
inline Range live_axis(int64_t first, int64_t count, int64_t taps, int64_t stride, int64_t dilation, int64_t pad,
                       int64_t size) {
  const int64_t low = first * stride - pad, high = (first + count - 1) * stride - pad;
  const int64_t begin = max64(0, min64(ceil_div(max64(-high, 0), dilation), taps - 1));
  const int64_t end = low >= size ? 0 : min64(taps, (size - 1 - low) / dilation + 1);
  return {begin, max64(begin + 1, end)};
}

// The outputs of [first, first + count), counted from `first`, that read the image through one tap: output i reads
// position i * stride + shift.
inline Range served_outputs(int64_t first, int64_t count, int64_t stride, int64_t shift, int64_t size) {
  const int64_t begin = max64(first, ceil_div(max64(-shift, 0), stride));
  const int64_t end = shift >= size ? first : min64(first + count, (size - 1 - shift) / stride + 1);
  return {begin - first, max64(begin, end) - first};
}

// Columns of a tile with the kernel columns that they need.
struct Segment {
  Range columns, taps;
};

inline Range live_columns(const ConvParams& p, int64_t begin, int64_t end) {
  return live_axis(begin, end - begin, p.S, p.stride_w, p.dilation_w, p.pad_w, p.W);
}

inline int64_t tap_segments(const ConvParams& p, Segment* segments) {
  int64_t count = 0, begin = 0;
  for (int64_t end = 1; end <= p.Q; ++end) {
    const Range here = live_columns(p, begin, begin + 1);
    if (end < p.Q) {
      const Range next = live_columns(p, end, end + 1);
      if (here.begin == next.begin && here.end == next.end) continue;
    }
    if (count == kMostSegments) return 0;
    segments[count++] = {{begin, end}, here};
    begin = end;
  }
  return count;
}

// ---- filling scratch with the input of a tile
// ------------------------------------------------------------------------

// Calls row(position, source_h, source_w, begin, end) for every row of every plane that the tile reads: `position` of
// its first element; elements [begin, end) are input columns source_w, source_w + stride_w, ... of input row source_h,
// the others are padding.
template <class Row>
inline void for_each_row(const ConvParams& p, const Geometry& g, const Tile& t, const Row& row) {
  const int64_t rows = g.h.span - g.h.tile + t.rows, columns = g.w.span - g.w.tile + t.columns;
  for (int64_t jh = 0; jh < g.h.planes; ++jh)
    for (int64_t jw = 0; jw < g.w.planes; ++jw)
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t h = (t.p0 + i) * p.stride_h + jh * p.dilation_h - p.pad_h;
        const int64_t w = t.q0 * p.stride_w + jw * p.dilation_w - p.pad_w;
        int64_t begin = w < 0 ? min64(ceil_div(-w, p.stride_w), columns) : 0;
        int64_t end = w < p.W ? min64((p.W - 1 - w) / p.stride_w + 1, columns) : 0;
        if (h < 0 || h >= p.H) begin = end = 0;
        if (end < begin) end = begin;
        row(((jh * g.w.planes + jw) * g.h.span + i) * g.pitch, h, w + begin * p.stride_w, begin, end);
      }
}

// Channels [c0, c0 + count) of the whole tensor into x, channel by channel, `channel` elements each.
template <class T, class A>
void fill_planar(const ConvParams& p, const Geometry& g, const Tile& t, int64_t c0, int64_t count, int64_t channel,
                 A* x) {
  constexpr int L = kLanes<A>;
  const int64_t step = p.stride_w * p.input.w;
  for_each_row(p, g, t, [&](int64_t position, int64_t h, int64_t w, int64_t begin, int64_t end) {
    A* to = x + position;
    if (step == 1 && begin < end) {
      // Padding and pixels in one pass: vectors that reach into the padding are loaded through a window.
      const T* from = at<const T>(p.input, t.n, c0, h, w) - begin;
      for (int64_t i = 0; i < g.pitch; i += L) {
        const Window<T> window(static_cast<int>(max64(0, min64(begin - i, L))),
                               static_cast<int>(max64(0, min64(end - i, L))));
        const bool whole = begin <= i && i + L <= end;
        const int n = static_cast<int>(min64(L, g.pitch - i));
        for (int64_t c = 0; c < count; ++c) {
          const Vec<A> v = whole ? load(from + c * p.input.c + i) : load(from + c * p.input.c + i, window);
          if (n == L)
            store(to + c * channel + i, v);
          else
            store_partial(to + c * channel + i, v, n);
        }
      }
      return;
    }
    for (int64_t c = 0; c < count; ++c) {
      zero(to + c * channel, begin);
      zero(to + c * channel + end, g.pitch - end);
    }
    if (begin == end) return;
    const T* from = at<const T>(p.input, t.n, c0, h, w);
    if (is_channels_last(p.input)) return transpose_block(to + begin, channel, 1, from, step, 1, end - begin, count);
    for (int64_t c = 0; c < count; ++c) copy_strided(to + c * channel + begin, from + c * p.input.c, step, end - begin);
  });
}

// The same into blocks of L channels, [block][position][L]; channels beyond `count` are zero.
template <class T, class A>
void fill_packed(const ConvParams& p, const Geometry& g, const Tile& t, int64_t c0, int64_t count, A* x) {
  constexpr int L = kLanes<A>;
  const int64_t step = p.stride_w * p.input.w;
  for (int64_t c = 0; c < count; c += L) {
    A* block = x + c * g.channel;
    const int n = static_cast<int>(min64(L, count - c));
    for_each_row(p, g, t, [&](int64_t position, int64_t h, int64_t w, int64_t begin, int64_t end) {
      A* to = block + position * L;
      zero(to, begin * L);
      zero(to + end * L, (g.pitch - end) * L);
      if (begin == end) return;
      const T* from = at<const T>(p.input, t.n, c0 + c, h, w);
      if (p.input.c == 1 && n == L) {
        for (int64_t i = begin; i < end; ++i) store(to + i * L, load(from + (i - begin) * step));
      } else if (p.input.c == 1) {
        for (int64_t i = begin; i < end; ++i) store(to + i * L, load_partial(from + (i - begin) * step, n));
      } else {
        for (int64_t i = begin; n < L && i < end; ++i) store(to + i * L, Vec<A>{});
        transpose_block(to + begin * L, L, 1, from, p.input.c, step, n, end - begin);
      }
    });
  }
}

// The same of a channels_last input, pixel by pixel; `count` is a multiple of L.
template <class T, class A>
void fill_pixels(const ConvParams& p, const Geometry& g, const Tile& t, int64_t count, A* x) {
  constexpr int L = kLanes<A>;
  const int64_t step = p.stride_w * p.input.w;
  for_each_row(p, g, t, [&](int64_t position, int64_t h, int64_t w, int64_t begin, int64_t end) {
    for (int64_t c = 0; c < count; c += L) {
      zero(x + c * g.channel + position * L, begin * L);
      zero(x + c * g.channel + (position + end) * L, (g.pitch - end) * L);
    }
    if (begin == end) return;
    const T* from = at<const T>(p.input, t.n, 0, h, w);
    for (int64_t i = begin; i < end; ++i, from += step)
      for (int64_t c = 0; c < count; c += L) store(x + c * g.channel + (position + i) * L, load(from + c));
  });
}

// ---- the same for grad_output, which the weight gradient reads ------------------------------------------------------

// grad_output of a tile, `count` channels from k0, with the pitch of the planes and zeros in the gaps.
template <class T, class A>
void fill_grad(const ConvParams& p, const Tile& t, int64_t k0, int64_t count, int64_t channel, int64_t pitch, A* grad) {
  for (int64_t k = 0; k < count; ++k) zero(grad + k * channel, channel);
  for (int64_t i = 0; i < t.rows; ++i) {
    const T* from = at<const T>(p.output, t.n, k0, t.p0 + i, t.q0);
    if (is_channels_last(p.output))
      transpose_block(grad + i * pitch, channel, 1, from, p.output.w, 1, t.columns, count);
    else
      for (int64_t k = 0; k < count; ++k)
        copy_strided(grad + k * channel + i * pitch, from + k * p.output.c, p.output.w, t.columns);
  }
}

// grad_output of a tile as [block][pixel][L], zero beyond `count` channels.
template <class T, class A>
void fill_grad_packed(const ConvParams& p, const Tile& t, int64_t k0, int64_t count, int64_t block, A* grad) {
  constexpr int L = kLanes<A>;
  for (int64_t k = 0; k < count; k += L) {
    const int64_t n = min64(L, count - k);
    for (int64_t row = 0; row < t.rows; ++row) {
      A* to = grad + k / L * block + row * t.columns * L;
      const T* from = at<const T>(p.output, t.n, k0 + k, t.p0 + row, t.q0);
      if (n < L) zero(to, t.columns * L);
      if (p.output.c == 1)
        for (int64_t q = 0; q < t.columns; ++q) copy_row(to + q * L, from + q * p.output.w, n);
      else
        transpose_block(to, L, 1, from, p.output.c, p.output.w, n, t.columns);
    }
  }
}

// ---- writing the results of a tile
// -----------------------------------------------------------------------------------

// acc[k * channel + row * pitch + q] to output channels [k0, k0 + count) of the whole tensor.
template <class T, class A>
void store_planar(const ConvParams& p, const Tile& t, int64_t k0, int64_t count, const A* acc, int64_t channel,
                  int64_t pitch) {
  const Finish<T> finish(p);
  for (int64_t i = 0; i < t.rows; ++i) {
    T* to = at<T>(p.output, t.n, k0, t.p0 + i, t.q0);
    const A* from = acc + i * pitch;
    if (is_channels_last(p.output)) {
      transpose_block(to, p.output.w, 1, from, channel, 1, count, t.columns, finish);
    } else if (p.output.w == 1) {
      for (int64_t k = 0; k < count; ++k) copy_row(to + k * p.output.c, from + k * channel, t.columns, finish);
    } else {
      constexpr int L = kLanes<A>;
      for (int64_t k = 0; k < count; ++k)
        for (int64_t q = 0; q < t.columns; q += L) {
          const int n = static_cast<int>(min64(L, t.columns - q));
          finish.store_strided(to + k * p.output.c + q * p.output.w, p.output.w,
                               load_partial(from + k * channel + q, n), n);
        }
    }
  }
}

// acc[(row * columns + q) * stride + k], likewise.
template <class T, class A>
void store_packed(const ConvParams& p, const Tile& t, int64_t k0, int64_t count, const A* acc, int64_t stride) {
  const Finish<T> finish(p);
  for (int64_t i = 0; i < t.rows; ++i) {
    T* to = at<T>(p.output, t.n, k0, t.p0 + i, t.q0);
    const A* from = acc + i * t.columns * stride;
    if (p.output.c == 1) {
      for (int64_t q = 0; q < t.columns; ++q) copy_row(to + q * p.output.w, from + q * stride, count, finish);
    } else {
      transpose_block(to, p.output.c, p.output.w, from, stride, 1, t.columns, count, finish);
    }
  }
}

// bias[g][k], each `times` times, padded with zeros.
template <class T, class A>
void padded_bias(const ConvParams& p, int64_t k_padded, A* bias, int64_t times = 1) {
  for (int64_t i = 0; i < p.G * k_padded; ++i) {
    const int64_t g = i / k_padded, k = i % k_padded / times;
    bias[i] = p.bias && k < p.K ? get(static_cast<const T*>(p.bias) + g * p.K + k) : A(0);
  }
}

// ---- choosing tiles
// --------------------------------------------------------------------------------------------------

constexpr int64_t kPassWeightBytes = 640 << 10;  // of weights that stay in the second-level cache while pixels pass

// When all of `items` that cost as much are done. Threads rarely finish together: `waited` is how much of an item is
// waited for, on average.
inline double finish_time(int64_t items, int threads, double cost, double waited = 0) {
  return (static_cast<double>(ceil_div(items, threads)) + (threads > 1 ? waited : 0)) * cost;
}

// The number of output rows of a tile that makes the slowest thread finish first: `cost(rows)` estimates one item,
// `items(rows)` counts them, and `fits(rows)` says whether scratch memory suffices. 0 if nothing fits.
template <class Fits, class Items, class Cost>
int64_t choose_rows(int64_t P, int threads, const Fits& fits, const Items& items, const Cost& cost, double waited = 0) {
  int64_t best = 0;
  double best_cost = 0;
  for (int64_t rows = P; rows > 0; rows = rows > 1 ? ceil_div(P, ceil_div(P, rows - 1)) : 0) {
    if (!fits(rows)) continue;
    const double total = finish_time(items(rows), threads, cost(rows), waited);
    if (best == 0 || total < best_cost) {
      best = rows;
      best_cost = total;
    }
  }
  return best;
}

// Hands out 64-byte aligned pieces of the scratch memory; with a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <class X>
  X* take(int64_t count) {
    X* piece = reinterpret_cast<X*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(X)), 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace fastconv
