// Winograd's minimal filtering F(4, 3) along the columns of an image, for 3x3 layers of stride 1 whose groups have few
// channels: four output rows from six input rows by 6 x 3 multiplications, where the definition takes 4 x 9. F(4x4,
// 3x3) (winograd.h) halves them once more, but its transforms are per channel, and with few channels there is little to
// spread them over; these are a dozen additions of whole rows, and vectors run along the pixels, however few channels
// a group has.
//
// A strip is some bands of four output rows. Its transformed input is six lines a channel, each the strip's bands one
// after the other with the zeros of the padding between them, so that vectors are full whatever the width of the image,
// and a product of lines is `pixel_micro` (pixel.h) over one run. Lines of products are transformed back into rows.
//
// A contiguous input is transformed from where it lies, and results are written where they belong. A channels_last one
// is transposed before and after, a square of registers at a time, for as many groups as fill a vector.
#pragma once
#include "conv/grouped.h"
#include "conv/pixel.h"
#include "conv/winograd.h"

namespace fastconv {
namespace {

constexpr int kBandRows = 4, kBandLines = 6;
constexpr int64_t kLineTaps = 3 * kBandLines;  // transformed weights of a pair of channels
constexpr int64_t kLineBytes = 384 << 10;      // scratch that stays in a second-level cache
constexpr int64_t kLineLargestBytes = 4 << 20;
constexpr int64_t kLinePackBytes = 12 << 20;  // of weights; more are packed block by block where they are used
constexpr int64_t kPixelsAhead = 64;          // of a channels_last input, fetched before they are transposed

struct Winograd1dPlan : GroupedLanes {
  int64_t bands, strips;         // of a strip, of an image
  int64_t pitch;                 // from one band to the next in a line
  int64_t x_line, product_line;  // elements
  int64_t share, sets;           // blocks of lanes of a work item, and how many such
  bool prepack;
  int64_t block_weights;                                // elements of the weights of a block
  int64_t x_elements, line_elements, product_elements;  // of one thread

  int64_t weight_elements() const { return prepack ? 0 : block_weights; }  // likewise
  int64_t packed_elements() const { return prepack ? blocks * block_weights : 0; }
};

template <class A>
Winograd1dPlan winograd_1d_plan_for(const ConvParams& p, int64_t bands) {
  constexpr int64_t L = kLanes<A>;
  Winograd1dPlan plan;
  static_cast<GroupedLanes&>(plan) = GroupedLanes::of<A>(p, max64(1, min64(p.G, L / p.K)));
  plan.bands = bands;
  plan.strips = ceil_div(ceil_div(p.P, kBandRows), bands);
  const int64_t right = max64(0, p.Q + 2 - p.pad_w - p.W);
  plan.pitch = p.W + max64(p.pad_w, right);
  // Beside what is computed, what vectors write and read beyond it; odd multiples of a vector, or lines would compete
  // for the same places in the cache.
  plan.x_line = ((round_up(bands * plan.pitch + p.pad_w, L) / L + 2) | 1) * L;
  plan.product_line = ((round_up(bands * plan.pitch, L) / L + 1) | 1) * L;
  // Of channels_last tensors of 16-bit types two blocks share a cache line.
  plan.share = p.input.c == 1 && p.element_size() == 2 ? min64(2, plan.blocks) : 1;
  plan.sets = ceil_div(plan.blocks, plan.share);
  plan.block_weights = plan.k_blocks * p.C * kLineTaps * L;
  plan.prepack = (p.prepacked || p.N * plan.strips > 1) &&
                 plan.blocks * plan.block_weights * static_cast<int64_t>(sizeof(A)) <= kLinePackBytes;
  const bool last = p.input.c == 1;
  plan.x_elements = (last ? plan.groups * p.C * round_up((kBandRows * bands + 2) * p.W, L) : 0) + round_up(p.W, L);
  plan.line_elements = p.C * kBandLines * plan.x_line;
  const int64_t lanes = plan.k_blocks * L;
  plan.product_elements = (p.output.c == 1 ? lanes : p.K) * kBandLines * plan.product_line;
  return plan;
}

// Vectors that cover a strip of `bands` bands.
template <class A>
int64_t winograd_1d_vectors(const ConvParams& p, const Winograd1dPlan& plan, int64_t bands) {
  return ceil_div((bands - 1) * plan.pitch + p.Q, kLanes<A>);
}

// Estimated cycles of one item.
template <class A>
double winograd_1d_cost(const ConvParams& p, const Winograd1dPlan& plan) {
  constexpr int64_t L = kLanes<A>;
  const int64_t vectors = winograd_1d_vectors<A>(p, plan, plan.bands), lanes = plan.groups > 1 ? plan.lanes : p.K;
  double cost = static_cast<double>(vectors * lanes * p.C * kLineTaps);
  cost += 20.0 * static_cast<double>(plan.bands * plan.groups * (p.C * ceil_div(p.W, L) + p.K * ceil_div(p.Q, L)));
  if (p.input.c == 1) cost += 6.0 * static_cast<double>((kBandRows * plan.bands + 2) * p.W * plan.groups * p.C / L);
  if (p.output.c == 1) cost += 24.0 * static_cast<double>(vectors * lanes);
  return static_cast<double>(plan.share) * cost + 1000;
}

template <class A>
bool winograd_1d_plan(const ConvParams& p, Winograd1dPlan& plan) {
  const auto view_serves = [](const View4& v) { return v.w == 1 || v.c == 1; };
  if (p.R != 3 || p.S != 3 || p.stride_h != 1 || p.stride_w != 1 || p.dilation_h != 1 || p.dilation_w != 1)
    return false;
  if (p.pad_w < 0 || p.pad_w > 2 || p.Q + 2 - p.pad_w - p.W > 2) return false;
  if (!view_serves(p.input) || !view_serves(p.output)) return false;
  for (int64_t limit : {kLineBytes, kLineLargestBytes}) {
    const auto plan_of = [&](int64_t bands) { return winograd_1d_plan_for<A>(p, bands); };
    const int64_t bands = choose_rows(
        ceil_div(p.P, kBandRows), p.threads,
        [&](int64_t bands) {
          const Winograd1dPlan plan = plan_of(bands);
          return (plan.x_elements + plan.line_elements + plan.product_elements + plan.block_weights) *
                     static_cast<int64_t>(sizeof(A)) <=
                 limit;
        },
        [&](int64_t bands) {
          const Winograd1dPlan plan = plan_of(bands);
          return p.N * plan.sets * plan.strips;
        },
        [&](int64_t bands) { return winograd_1d_cost<A>(p, plan_of(bands)); });
    if (!bands) continue;
    plan = plan_of(bands);
    return true;
  }
  return false;
}

// ---- weights --------------------------------------------------------------------------------------------------------

// Weights of vector `item` of output channels as to[channel][line][column of the kernel][lane].
template <class T, class A>
void winograd_1d_pack_vector(const ConvParams& p, const Winograd1dPlan& plan, int64_t item, A* to) {
  constexpr int64_t L = kLanes<A>;
  // As they are they fill the second half, from which each channel is taken before the place is needed.
  const A* from = to + p.C * 9 * L;
  TapPlace places[9];
  for (int tap = 0; tap < 9; ++tap) places[tap] = {tap, 9};
  grouped_pack_vector<T>(p, plan, places, item, to + p.C * 9 * L);
  for (int64_t c = 0; c < p.C; ++c, from += 9 * L, to += kLineTaps * L) {
    Vec<A> w[9];
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) w[tap] = load(from + tap * L);
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) {
      const Vec<A> ends = (w[s] + w[6 + s]) * A(-1. / 6), middle = w[3 + s] * A(-1. / 6);
      const Vec<A> far = w[s] * A(1. / 24) + w[6 + s] * A(1. / 6), between = w[3 + s] * A(1. / 12);
      store(to + s * L, w[s] * A(0.25));
      store(to + (3 + s) * L, ends + middle);
      store(to + (6 + s) * L, ends - middle);
      store(to + (9 + s) * L, far + between);
      store(to + (12 + s) * L, far - between);
      store(to + (15 + s) * L, w[6 + s]);
    }
  }
}

// ---- transforms -----------------------------------------------------------------------------------------------------

// Six input rows of `columns` pixels to six lines.
template <class T, class A>
void winograd_1d_forwards(const T* const* rows, int64_t columns, A* to, int64_t line) {
  constexpr int64_t L = kLanes<A>;
  const T *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3], *r4 = rows[4], *r5 = rows[5];
  const auto transform = [&](int64_t i, Vec<A> x0, Vec<A> x1, Vec<A> x2, Vec<A> x3, Vec<A> x4, Vec<A> x5) {
    const Vec<A> even = x4 - A(4) * x2, odd = x3 - A(4) * x1, even2 = x4 - x2, odd2 = x3 - x1;
    store(to + i, A(4) * x0 + (x4 - A(5) * x2));
    store(to + line + i, even + odd);
    store(to + 2 * line + i, even - odd);
    store(to + 3 * line + i, even2 + A(2) * odd2);
    store(to + 4 * line + i, even2 - A(2) * odd2);
    store(to + 5 * line + i, A(4) * x1 + (x5 - A(5) * x3));
  };
  int64_t i = 0;
  for (; i + L <= columns; i += L)
    transform(i, load(r0 + i), load(r1 + i), load(r2 + i), load(r3 + i), load(r4 + i), load(r5 + i));
  // Zeros to the right of the row, at least as many as there are of padding.
  const int n = static_cast<int>(columns - i);
  const auto part = [&](const T* row) { return load_partial(row + i, n); };
  transform(i, part(r0), part(r1), part(r2), part(r3), part(r4), part(r5));
  if (n + 2 > L)
    for (int64_t t = 0; t < kBandLines; ++t) store(to + t * line + i + L, Vec<A>{});
}

// A vector of each of six lines of products to one of each of four output rows.
template <class A>
inline void winograd_1d_backwards(const A* from, int64_t line, A bias, Vec<A>* rows) {
  const Vec<A> m0 = load(from), m1 = load(from + line), m2 = load(from + 2 * line), m3 = load(from + 3 * line);
  const Vec<A> m4 = load(from + 4 * line), m5 = load(from + 5 * line);
  const Vec<A> sum = m1 + m2, difference = m1 - m2, sum2 = m3 + m4, difference2 = m3 - m4;
  rows[0] = (m0 + bias) + sum + sum2;
  rows[1] = (difference + bias) + A(2) * difference2;
  rows[2] = (sum + bias) + A(4) * sum2;
  rows[3] = (m5 + bias) + difference + A(8) * difference2;
}

// ---- a strip --------------------------------------------------------------------------------------------------------

struct Strip {
  int64_t n, p0, rows, bands;  // image, output rows
};

// Products of one channel to a contiguous output.
template <class T, class A>
void winograd_1d_store(const ConvParams& p, const Winograd1dPlan& plan, const Strip& strip, int64_t k, A bias,
                       const A* products, const Finish<T>& finish) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t band = 0; band < strip.bands; ++band) {
    T* to = at<T>(p.output, strip.n, k, strip.p0 + band * kBandRows, 0);
    const A* from = products + band * plan.pitch;
    const int64_t rows = min64(kBandRows, strip.rows - band * kBandRows);
    for (int64_t q = 0; q < p.Q; q += L) {
      Vec<A> y[kBandRows];
      winograd_1d_backwards(from + q, plan.product_line, bias, y);
      const int n = static_cast<int>(min64(L, p.Q - q));
#pragma GCC unroll 4
      for (int i = 0; i < kBandRows; ++i) {
        if (i >= rows) break;
        if (n == L)
          finish.store(to + i * p.output.h + q, y[i]);
        else
          finish.store_partial(to + i * p.output.h + q, y[i], n);
      }
    }
  }
}

// Products of `count` channels from k on, at most a vector, to a channels_last output.
template <class T, class A>
void winograd_1d_store_last(const ConvParams& p, const Winograd1dPlan& plan, const Strip& strip, int64_t k, int count,
                            const A* bias, const A* products, const Finish<T>& finish) {
  constexpr int64_t L = kLanes<A>;
  const int64_t vectors = winograd_1d_vectors<A>(p, plan, strip.bands);
  alignas(kVecBytes) A y[kBandRows * L * L];
  int64_t band = 0, q = 0;
  for (int64_t i = 0; i < vectors; ++i) {
    for (int64_t lane = 0; lane < count; ++lane) {
      Vec<A> rows[kBandRows];
      winograd_1d_backwards(products + lane * kBandLines * plan.product_line + i * L, plan.product_line, bias[lane],
                            rows);
#pragma GCC unroll 4
      for (int row = 0; row < kBandRows; ++row) store(y + (row * L + lane) * L, rows[row]);
    }
    // Where the pixels of this vector go, those in the gap between bands nowhere.
    T* pixels[L];
    int64_t rows[L];
    for (int j = 0; j < L; ++j) {
      pixels[j] = at<T>(p.output, strip.n, k, strip.p0 + band * kBandRows, q);
      rows[j] = q < p.Q ? strip.rows - band * kBandRows : 0;
      if (++q == plan.pitch) {
        q = 0;
        ++band;
      }
    }
    for (int64_t row = 0; row < kBandRows; ++row) {
      Vec<A> v[L];
#pragma GCC unroll 16
      for (int lane = 0; lane < L; ++lane) v[lane] = load(y + (row * L + lane) * L);
      transpose<A>(v);
      if (count == L) {
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j)
          if (row < rows[j]) finish.store(pixels[j] + row * p.output.h, v[j]);
      } else {
        for (int j = 0; j < L; ++j)
          if (row < rows[j]) finish.store_partial(pixels[j] + row * p.output.h, v[j], count);
      }
    }
  }
}

// Output channels of a register tile over `vectors` vectors of positions: the fewer of these, the more of those, so
// that sums do not wait for each other. A power of two, no more than there are in a vector of packed weights.
template <class A>
inline int64_t winograd_1d_channels(int64_t channels, int64_t vectors) {
  int64_t kb = vectors == 1 ? 16 : vectors == 2 ? 8 : 4;
  while (kb > channels || kb > kLanes<A> || pixel_vectors(static_cast<int>(kb)) < 1) kb /= 2;
  return kb;
}

template <class A>
struct Winograd1dScratch {
  A* bias;  // [blocks][k_blocks][lane]
  Tap* terms;
  char* threads;
  int64_t thread_bytes, total;

  Winograd1dScratch(const ConvParams& p, const Winograd1dPlan& plan, void* scratch) {
    Carver carve(scratch);
    bias = carve.take<A>(plan.blocks * plan.k_blocks * kLanes<A>);
    terms = carve.take<Tap>(3 * p.C);
    Carver thread(nullptr);
    take(plan, thread);
    thread_bytes = thread.used();
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
  struct Thread {
    A *x, *lines, *products, *weights;
  };
  static Thread take(const Winograd1dPlan& plan, Carver& carve) {
    Thread t;
    t.x = carve.take<A>(plan.x_elements);
    t.lines = carve.take<A>(plan.line_elements);
    t.products = carve.take<A>(plan.product_elements);
    t.weights = carve.take<A>(plan.weight_elements());
    return t;
  }
};

// Channels of `pixels` pixels of a channels_last input to planes of their own. A pixel is a cache line or two of a row
// that only starts there, so what comes next is fetched ahead.
template <class T, class A>
void winograd_1d_planes(const ConvParams& p, const T* from, int64_t pixels, int64_t channels, A* to, int64_t channel) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t i = 0; i < pixels; i += L) {
    const T* ahead = from + min64(i + kPixelsAhead, pixels - 1) * p.input.w;
    for (int64_t j = 0; j < min64(L, pixels - i - kPixelsAhead); ++j, ahead += p.input.w)
      for (int64_t byte = 0; byte < channels * static_cast<int64_t>(sizeof(T)); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(ahead) + byte);
    transpose_block(to + i, channel, 1, from + i * p.input.w, p.input.w, 1, min64(L, pixels - i), channels);
  }
}

// The transformed input of one channel. `plane`: its first row; `row_step` elements from one to the next.
template <class T, class A>
void winograd_1d_lines(const ConvParams& p, const Winograd1dPlan& plan, const Strip& strip, const T* plane,
                       int64_t row_step, const T* zeros, A* to) {
  for (int64_t t = 0; t < kBandLines; ++t) store_partial(to + t * plan.x_line, Vec<A>{}, static_cast<int>(p.pad_w));
  for (int64_t band = 0; band < strip.bands; ++band) {
    const T* rows[kBandLines];
    for (int64_t i = 0; i < kBandLines; ++i) {
      const int64_t h = strip.p0 + band * kBandRows + i - p.pad_h;
      rows[i] = h >= 0 && h < p.H ? plane + h * row_step : zeros;
    }
    winograd_1d_forwards(rows, p.W, to + band * plan.pitch + p.pad_w, plan.x_line);
  }
}

// Products of the lines of one group: out[k][line][position] for its output channels.
template <class A>
void winograd_1d_multiply(const ConvParams& p, const Winograd1dPlan& plan, int64_t vectors, const A* lines,
                          const Tap* terms, const A* weights, int64_t lane, A* out) {
  constexpr int64_t L = kLanes<A>;
  constexpr A kNone[16] = {};
  const int64_t most = pixel_vectors(static_cast<int>(winograd_1d_channels<A>(p.K, vectors)));
  const int64_t chunks = ceil_div(vectors, most);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = vectors * chunk / chunks, count = vectors * (chunk + 1) / chunks - first;
    for (int64_t t = 0; t < kBandLines; ++t)
      for (int64_t k = 0, kb; k < p.K; k += kb) {
        kb = winograd_1d_channels<A>(p.K - k, vectors);
        const A* w = weights + k / L * p.C * kLineTaps * L + t * 3 * L + (lane + k) % L;
        pixel_micro_of<Singles<A>>(kb, static_cast<int>(count))(
            lines + t * plan.x_line + first * L, terms, 3 * p.C, w, kNone,
            out + (k * kBandLines + t) * plan.product_line + first * L, kBandLines * plan.product_line, L);
      }
  }
}

template <class T>
void winograd_1d_forward(const ConvParams& p, const Winograd1dPlan& plan, const void* packed, void* scratch) {
  using A = Accumulate<T>;
  constexpr int64_t L = kLanes<A>;
  const Winograd1dScratch<A> memory(p, plan, scratch);
  const Finish<T> finish(p);
  grouped_bias<T>(p, plan, memory.bias);
  for (int64_t c = 0; c < p.C; ++c)
    for (int64_t s = 0; s < 3; ++s)
      memory.terms[c * 3 + s] = {static_cast<int32_t>(c * kBandLines * plan.x_line + s),
                                 static_cast<int32_t>((c * kLineTaps + s) * L)};
  const bool input_last = p.input.c == 1, output_last = p.output.c == 1;
  compute_for(p.threads, p.N * plan.strips * plan.sets, [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    const auto own = Winograd1dScratch<A>::take(plan, carve);
    const int64_t set = item % plan.sets, index = item / plan.sets % plan.strips;
    Strip strip;
    strip.n = item / plan.sets / plan.strips;
    strip.p0 = index * plan.bands * kBandRows;
    strip.rows = min64(plan.bands * kBandRows, p.P - strip.p0);
    strip.bands = ceil_div(strip.rows, kBandRows);
    const int64_t vectors = winograd_1d_vectors<A>(p, plan, strip.bands);
    const int64_t h0 = max64(0, strip.p0 - p.pad_h);
    const int64_t h1 = max64(h0, min64(p.H, strip.p0 + strip.rows + 2 - p.pad_h));
    const int64_t x_channel = round_up((kBandRows * plan.bands + 2) * p.W, L);
    A* x = own.x + round_up(p.W, L);
    zero(own.x, p.W);
    for (int64_t block = set * plan.share; block < min64(plan.blocks, (set + 1) * plan.share); ++block) {
      const int64_t g0 = block * plan.groups, groups = min64(plan.groups, p.G - g0);
      const A* weights = static_cast<const A*>(packed) + block * plan.block_weights;
      if (!plan.prepack) {
        for (int64_t v = 0; v < plan.k_blocks; ++v)
          winograd_1d_pack_vector<T>(p, plan, block * plan.k_blocks + v, own.weights + v * p.C * kLineTaps * L);
        weights = own.weights;
      }
      if (input_last) {
        const T* from = at<const T>(p.input, strip.n, g0 * p.C, h0, 0);
        if (p.input.h == p.W * p.input.w)  // rows follow each other
          winograd_1d_planes(p, from, (h1 - h0) * p.W, groups * p.C, x, x_channel);
        else
          for (int64_t h = h0; h < h1; ++h)
            winograd_1d_planes(p, from + (h - h0) * p.input.h, p.W, groups * p.C, x + (h - h0) * p.W, x_channel);
      }
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t c = 0; c < p.C; ++c) {
          A* lines = own.lines + c * kBandLines * plan.x_line;
          if (input_last)
            winograd_1d_lines<A>(p, plan, strip, x + (g * p.C + c) * x_channel - h0 * p.W, p.W, own.x, lines);
          else
            winograd_1d_lines<T>(p, plan, strip, at<const T>(p.input, strip.n, (g0 + g) * p.C + c, 0, 0), p.input.h,
                                 reinterpret_cast<const T*>(own.x), lines);
        }
        A* products = own.products + (output_last ? g * p.K * kBandLines * plan.product_line : 0);
        winograd_1d_multiply(p, plan, vectors, own.lines, memory.terms, weights, g * p.K, products);
        if (output_last) continue;
        const A* bias = memory.bias + block * plan.k_blocks * L + g * p.K;
        for (int64_t k = 0; k < p.K; ++k)
          winograd_1d_store<T>(p, plan, strip, (g0 + g) * p.K + k, bias[k],
                               products + k * kBandLines * plan.product_line, finish);
      }
      if (output_last)
        for (int64_t k = 0; k < groups * p.K; k += L)
          winograd_1d_store_last<T>(p, plan, strip, g0 * p.K + k, static_cast<int>(min64(L, groups * p.K - k)),
                                    memory.bias + block * plan.k_blocks * L + k,
                                    own.products + k * kBandLines * plan.product_line, finish);
    }
  });
}

struct Winograd1dForward {
  using Plan = Winograd1dPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    constexpr int64_t L = kLanes<A>;
    const bool last = p.input.c == 1;
    // Transposing in and out costs what it saves where a channels_last group has four channels.
    const int64_t fewest = min64(p.C, p.K), most = max64(p.C, p.K);
    if (p.dtype == Dtype::kFloat64 || p.R != 3 || p.S != 3 || p.G == 1 || fewest < (last ? 8 : 4) || most > 32)
      return false;
    // Of whole vectors of channels the other Winograd kernel makes more, and small channels_last maps do not pay for
    // the larger weights.
    if (p.C % L == 0 && p.K % L == 0 && (last || most > L) && WinogradForward::preferred<A>(p)) return false;
    if (!last || fewest < L) return true;
    // Transposing whole vectors of channels costs more than the products it saves where those take half a cycle: 16 a
    // group, 512 at 14x14 0.30 ms, and 0.24 in `channel` (a Xeon, two threads).
    if (kVecRegisters == 32 && !p.halved) return false;
    return p.prepacked || p.N * p.P * p.Q > 64;
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (p.dtype == Dtype::kFloat64 || !winograd_1d_plan<float>(p, plan)) return false;
    memory.packed = plan.packed_elements() * static_cast<int64_t>(sizeof(float));
    memory.scratch = Winograd1dScratch<float>(p, plan, nullptr).total;
    return true;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    if constexpr (sizeof(Accumulate<T>) == sizeof(float)) {
      if (!plan.prepack) return;
      const int64_t vectors = plan.blocks * plan.k_blocks, elements = plan.block_weights / plan.k_blocks;
      compute_for(vectors * elements > 65536 ? p.threads : 1, vectors, [&](int64_t item, int) {
        winograd_1d_pack_vector<T>(p, plan, item, static_cast<float*>(packed) + item * elements);
      });
    }
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    if constexpr (sizeof(Accumulate<T>) == sizeof(float)) winograd_1d_forward<T>(p, plan, packed, scratch);
  }
};

}  // namespace
}  // namespace fastconv
