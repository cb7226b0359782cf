// Convolution of contiguous tensors as a product of matrices, for dense layers and groups of many channels: a register
// tile is KB output channels by NV vectors of output pixels, one weight is a broadcast that serves NV multiply-adds,
// and nothing is transposed on the way in or out. (Where vectors run along the output channels, channel.h, a contiguous
// tensor is transposed twice.)
//
// Panels. The pixels of an output plane are one run, whatever its rows; a panel is NV vectors of it. What a panel reads
// through every (channel, tap) of a pass is copied into scratch side by side, so strides, dilation, padding and narrow
// maps cost nothing in the inner loop: a panel of a 14x14 map has no more empty lanes than one of a row of 196. The
// copy takes some three instructions for what then serves K multiply-adds. Panels of a work item stay in the
// second-level cache, weights of 16 output channels in the first.
//
// Of an input that is spread out by as much as the kernel is large (the way back through 2x2 of stride 2), every output
// has one tap and every pixel makes R rows of two outputs: a 1x1 layer of K * R * 2 channels, whose sums for even and
// odd columns are woven together as they are written. Panels then begin with each row.
#pragma once
#include "conv/channel.h"

namespace fastconv {
namespace {

// A register tile: sums, loaded pixels and one broadcast must fit.
constexpr int kPanelChannels = kVecRegisters == 32 ? 8 : 4;
constexpr int kPanelVectors = kVecBytes == 16 && kVecRegisters == 16 ? 2 : 3;
constexpr int64_t kPanelDepth = 600;  // (channel, tap) pairs of a pass
// Of the panels of a work item; processors without AVX-512 have half the second-level cache of those with it (256 to
// 512 KB). There 200 KB instead of 400 took 5 to 11 % off strided 3x3 and 1x1 layers.
constexpr int64_t kPanelBytes = (kVecRegisters == 32 ? 400 : 200) << 10;
constexpr int64_t kPanelLargest = 4 << 20;  // of a thread's memory; beyond this another kernel must serve
// For preferred(): products of a sum for which the copy pays, and instructions for a multiply-add of a vector. With 16
// registers the other kernels' tiles are so small that panels gain everywhere (an EPYC with AVX2, one thread, 1x1, 16
// to 96 at 112x112 29 GFLOP/s against 16 of `rows`; 64 to 256 at 56x56 67 and 41; strided 3x3, 128 at 56x56 68 and 58
// of `channel`).
constexpr int64_t kPanelLeast = kVecRegisters == 32 ? 96 : 16;
constexpr double kPanelStep = kVecRegisters == 32 ? 1.03 : 0.95;
constexpr int64_t kPanelAhead = 4;   // channels that input is fetched ahead
constexpr int64_t kPanelTaps = 256;  // of the largest kernel

struct PanelPlan {
  int64_t vectors, spans;     // of pixels of an output plane; work items that share them
  int64_t panels, pitch;      // of a work item; elements of a row of a panel
  int64_t k_block, k_blocks;  // L output channels, and how many such
  int64_t k_range, k_splits;  // of a work item; work items that share their panels
  int64_t c_pass, passes;     // input channels that are in scratch at a time
  int64_t pieces;             // the most that the pixels of a work item are copied in
  int64_t block_elements;     // packed weights of L output channels and one pass
  int64_t panel_elements, acc_elements;
};

// Where rows of the input follow each other as those of the output do, a tap reads a run of pixels from one run, and a
// piece goes on from row to row.
inline bool panel_joins(const ConvParams& p) {
  return p.stride_h == 1 && p.stride_w == 1 && p.input.h == p.W && p.W == p.Q;
}

// Whether pixels of a spread-out input make pairs of outputs, by weights that lie side by side: the way back through a
// layer without padding or dilation whose kernel is its stride.
inline bool panel_weaves(const ConvParams& p) {
  return weaves(p) && p.S == 2 && p.R == p.up_h && p.pad_w == 1 && p.pad_h == p.R - 1 && p.dilation_w == 1 &&
         (p.R == 1 || p.dilation_h == 1) && p.weight.n == p.R * p.S && p.weight.w == -1 &&
         (p.R == 1 || p.weight.h == -p.S);
}

// The layer whose pixels are copied into panels: `p` itself, or the one that makes all residues of a spread-out input,
// with rows of whole vectors. Without a bias then.
template <class A>
ConvParams panel_base(const ConvParams& p) {
  if (!spread(p)) return p;
  ConvParams base = spread_base(p);
  base.K = p.K * p.R * p.S;
  base.Q = round_up(base.Q, kLanes<A>);
  base.weight = {
      static_cast<char*>(p.weight.data) + ((p.R - 1) * p.weight.h + (p.S - 1) * p.weight.w) * p.element_size(), 1,
      p.weight.c, 1, 1};
  base.bias = nullptr;
  return base;
}

template <class A>
PanelPlan panel_plan_for(const ConvParams& p, int64_t spans, int64_t k_splits) {
  constexpr int64_t L = kLanes<A>;
  PanelPlan plan;
  const int64_t taps = p.R * p.S;
  plan.vectors = ceil_div(p.P * p.Q, L);
  plan.spans = spans;
  const int64_t most = ceil_div(plan.vectors, spans);
  plan.panels = ceil_div(most, kPanelVectors);
  plan.pitch = ceil_div(most, plan.panels) * L;
  plan.k_block = L;
  plan.k_blocks = ceil_div(p.K, L);
  plan.k_range = ceil_div(plan.k_blocks, k_splits);
  plan.k_splits = ceil_div(plan.k_blocks, plan.k_range);
  plan.passes = ceil_div(p.C * taps, kPanelDepth);
  plan.c_pass = min64(round_up(ceil_div(p.C, plan.passes), L), round_up(p.C, L));
  plan.passes = ceil_div(p.C, plan.c_pass);
  plan.pieces = plan.panels * (plan.pitch / L + (panel_joins(p) ? 0 : plan.pitch / p.Q + 2));
  plan.block_elements = plan.c_pass * taps * L;
  plan.panel_elements = min64(plan.c_pass, p.C) * taps * plan.pitch + L;
  // Sums wait for the next pass, or for being narrowed to the type of the output.
  const int64_t waiting = plan.passes > 1 ? plan.panels * plan.k_range * L : kPanelChannels;
  plan.acc_elements = waiting * plan.pitch;
  return plan;
}

template <class A>
int64_t panel_items(const ConvParams& p, const PanelPlan& plan) {
  return p.N * p.G * plan.spans * plan.k_splits;
}

// Estimated cycles of one item.
template <class A>
double panel_cost(const ConvParams& p, const PanelPlan& plan) {
  constexpr double L = kLanes<A>;
  const double depth = static_cast<double>(p.C * p.R * p.S);
  const double vectors = static_cast<double>(ceil_div(plan.vectors, plan.spans));
  const double macs = depth * static_cast<double>(min64(p.K, plan.k_range * plan.k_block)) * vectors;
  const double fill = depth * static_cast<double>(plan.pieces) * 4;
  const double out = static_cast<double>(plan.k_range * plan.passes) * L * vectors * 2;
  const double weights = depth * static_cast<double>(plan.k_range) * L * sizeof(A) / 8;
  return macs * 0.6 + fill + out + weights + 2000;
}

// Up to a vector of output pixels, whose input is read by one load for each tap (two where columns are strided).
template <class A>
struct PanelPiece {
  Lanes<A> h, w[2];  // row and column of the input that a lane of the load holds for tap (0, 0)
  int64_t from;      // elements from the first of the channel
  int64_t to;        // its place in a row of the panels
};

// Where the pieces are read from for one tap: the lanes that are inside the image, and elements from where tap (0, 0)
// reads.
template <class T>
struct PanelSource {
  Chosen<T> inside[2];
  int64_t from;
};

// Rows of a panel that one tap and up to L input channels make, and where their weights begin.
struct PanelRun {
  int32_t weight, rows;
};

template <class T>
struct PanelScratch {
  using A = Accumulate<T>;
  A* bias;
  char* threads;
  int64_t thread_bytes, total;

  PanelScratch(const ConvParams& p, const PanelPlan& plan, void* scratch) {
    Carver carve(scratch);
    bias = carve.take<A>(p.G * plan.k_blocks * kLanes<A>);
    Carver thread(nullptr);
    take(p, plan, thread);
    thread_bytes = thread.used();
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
  struct Thread {
    A *x, *acc;
    PanelPiece<A>* pieces;
    PanelSource<T>* sources;
    PanelRun* runs;
    Tap* taps;
  };
  static Thread take(const ConvParams& p, const PanelPlan& plan, Carver& carve) {
    Thread t;
    t.x = carve.take<A>(plan.panels * plan.panel_elements);
    t.acc = carve.take<A>(plan.acc_elements);
    t.pieces = carve.take<PanelPiece<A>>(plan.pieces);
    t.sources = carve.take<PanelSource<T>>(plan.pieces);
    t.runs = carve.take<PanelRun>(ceil_div(plan.c_pass, kLanes<A>) * p.R * p.S);
    t.taps = carve.take<Tap>(p.R * p.S);
    return t;
  }
};

template <class A>
bool panel_plan(const ConvParams& p, PanelPlan& best) {
  double best_total = 0;
  const int64_t vectors = ceil_div(p.P * p.Q, kLanes<A>);
  for (int64_t panels : {1, 2, 3, 4, 6, 8})
    for (int64_t k_splits = 1; k_splits <= 2 * p.threads; k_splits *= 2) {
      // As many work items as every thread gets the same number of.
      int64_t spans = ceil_div(vectors, panels * kPanelVectors);
      if (p.N * p.G * k_splits % p.threads != 0) spans = min64(round_up(spans, p.threads), vectors);
      const PanelPlan plan = panel_plan_for<A>(p, spans, k_splits);
      if (plan.k_splits < k_splits) break;
      const int64_t bytes = plan.panels * plan.panel_elements * static_cast<int64_t>(sizeof(A));
      if (best_total != 0 && bytes > kPanelBytes) continue;
      const double total = finish_time(panel_items<A>(p, plan), p.threads, panel_cost<A>(p, plan), 0.5);
      if (best_total != 0 && total >= best_total) continue;
      best = plan;
      best_total = total;
    }
  return PanelScratch<A>(p, best, nullptr).thread_bytes <= kPanelLargest;
}

// The vectors of one panel of a work item that has `vectors` of them.
inline Range panel_vectors(const PanelPlan& plan, int64_t vectors, int64_t panel) {
  const int64_t panels = min64(plan.panels, vectors);
  return {vectors * panel / panels, vectors * (panel + 1) / panels};
}

// Cuts `count` pixels of an output plane into pieces, from the first on. Their order is that of memory, and a piece is
// written as a whole vector: what is too much is overwritten by the next.
template <class A>
int64_t panel_pieces(const ConvParams& p, const PanelPlan& plan, int64_t first, int64_t count, PanelPiece<A>* pieces) {
  constexpr int64_t L = kLanes<A>;
  const bool joins = panel_joins(p);
  const int64_t vectors = ceil_div(count, L);
  int64_t found = 0;
  for (int64_t panel = 0, i = 0; i < count; ++panel) {
    const Range own = panel_vectors(plan, vectors, panel);
    for (const int64_t end = min64(count, own.end * L); i < end;) {
      int64_t row = (first + i) / p.Q, q = (first + i) % p.Q;
      PanelPiece<A>& piece = pieces[found++];
      const int64_t h = row * p.stride_h - p.pad_h, w = q * p.stride_w - p.pad_w;
      piece.from = h * p.input.h + w;
      piece.to = panel * plan.panel_elements + i - own.begin * L;
      i += joins ? L : min64(min64(L, p.Q - q), end - i);
      for (int64_t lane = 0; lane < L; ++lane) {
        piece.h[lane] = row * p.stride_h - p.pad_h;
        piece.w[0][lane] = joins ? q - p.pad_w : w + lane;
        piece.w[1][lane] = w + L + lane;
        if (joins && ++q == p.Q) {
          q = 0;
          ++row;
        }
      }
    }
  }
  return found;
}

// Copies what the pieces read of `channels` input channels from c0 on; says which runs of rows that makes.
template <class T, class A>
int64_t panel_fill(const ConvParams& p, const PanelPlan& plan, int64_t n, int64_t c0, int64_t channels,
                   const PanelPiece<A>* pieces, int64_t piece_count, const Tap* taps, int64_t tap_count,
                   PanelSource<T>* sources, PanelRun* runs, A* x) {
  using Lane = typename LanesOf<A>::type;
  constexpr int64_t L = kLanes<A>;
  int64_t run_count = 0;
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t rows = min64(L, channels - c);
    for (int64_t t = 0; t < tap_count; ++t) {
      const int64_t tap = taps[t].index, r = tap / p.S, s = tap % p.S;
      runs[run_count++] = {static_cast<int32_t>((c * p.R * p.S + tap * L) * L), static_cast<int32_t>(rows)};
      const int64_t down = r * p.dilation_h, right = s * p.dilation_w;
      for (int64_t i = 0; i < piece_count; ++i) {
        const auto row = pieces[i].h + static_cast<Lane>(down) < static_cast<Lane>(p.H);
        const auto inside = [&](const Lanes<A>& w) {
          return Chosen<T>(Lanes<A>(row & (w + static_cast<Lane>(right) < static_cast<Lane>(p.W))));
        };
        sources[i] = {{inside(pieces[i].w[0]), p.stride_w == 2 ? inside(pieces[i].w[1]) : Chosen<T>(Lanes<A>{})},
                      pieces[i].from + down * p.input.h + right};
      }
      const T* from = at<const T>(p.input, n, c0 + c, 0, 0);
      for (int64_t j = 0; j < rows; ++j, from += p.input.c, x += plan.pitch) {
        if (p.stride_w == 1) {
          const T* const ahead = from + kPanelAhead * p.input.c;
          for (int64_t i = 0; i < piece_count; ++i) {
            __builtin_prefetch(ahead + sources[i].from);
            store(x + pieces[i].to, load(from + sources[i].from, sources[i].inside[0]));
          }
        } else {
          for (int64_t i = 0; i < piece_count; ++i) {
            const T* piece = from + sources[i].from;
            store(x + pieces[i].to,
                  even_lanes<A>(load(piece, sources[i].inside[0]), load(piece + L, sources[i].inside[1])));
          }
        }
      }
    }
  }
  return run_count;
}

// Sums of KB output channels by NV vectors of pixels. Starts from `bias` where it is given, else from what acc holds;
// where `finish` is given acc is the output, of which there are `channels` channels and `last` lanes of the last
// vector. At least one run, of at least one row.
template <class A, int KB, int NV>
void panel_micro(const A* x, int64_t pitch, const PanelRun* runs, int64_t run_count, const A* w, const A* bias, A* acc,
                 int64_t acc_channel, int channels, int last, const Finish<A>* finish) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[KB][NV];
  if (bias) {
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sum[k][j] = splat(bias[k]);
  } else {
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sum[k][j] = load(acc + k * acc_channel + j * L);
  }
  const PanelRun* const end = runs + run_count;
  do {
    const A* weight = w + runs->weight;
    const A* const weight_end = weight + static_cast<int64_t>(runs->rows) * L;
    do {
      Vec<A> v[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) v[j] = load(x + j * L);
#pragma GCC unroll 8
      for (int k = 0; k < KB; ++k) {
        const Vec<A> b = splat(weight[k]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) sum[k][j] += b * v[j];
      }
      x += pitch;
      weight += L;
    } while (weight != weight_end);
  } while (++runs != end);
  if (finish) {
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k) {
      if (k >= channels) break;
      A* to = acc + k * acc_channel;
#pragma GCC unroll 4
      for (int j = 0; j < NV - 1; ++j) finish->store(to + j * L, sum[k][j]);
      if (last == L)
        finish->store(to + (NV - 1) * L, sum[k][NV - 1]);
      else
        finish->store_partial(to + (NV - 1) * L, sum[k][NV - 1], last);
    }
    return;
  }
#pragma GCC unroll 8
  for (int k = 0; k < KB; ++k)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(acc + k * acc_channel + j * L, sum[k][j]);
}

template <class A>
using PanelMicro = void (*)(const A*, int64_t, const PanelRun*, int64_t, const A*, const A*, A*, int64_t, int, int,
                            const Finish<A>*);

template <class A, int KB>
PanelMicro<A> panel_micro_of(int64_t vectors) {
  return vectors == 1   ? panel_micro<A, KB, 1>
         : vectors == 2 ? panel_micro<A, KB, 2>
                        : panel_micro<A, KB, kPanelVectors>;
}

// For up to kPanelChannels channels.
template <class A>
PanelMicro<A> panel_micro_of(int64_t channels, int64_t vectors) {
  if (channels <= 2) return panel_micro_of<A, 2>(vectors);
  if (channels <= 4 || kPanelChannels == 4) return panel_micro_of<A, 4>(vectors);
  return panel_micro_of<A, kPanelChannels>(vectors);
}

// Writes what `count` channels of the base `p`, from k on, sum up for `vectors` vectors of its pixels, from `pixel` on.
template <class T, class A>
void store_residues(const ConvParams& given, const ConvParams& p, int64_t n, int64_t g, int64_t k, int64_t count,
                    int64_t pixel, int64_t vectors, const A* sums, int64_t pitch, const Finish<T>& finish) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t v = 0; v < vectors; ++v, pixel += L, sums += L) {
    const int64_t row = pixel / p.Q * given.up_h, column = pixel % p.Q * 2;
    int64_t channel = g * given.K + k / (given.R * 2), r = k / 2 % given.R;
    for (int64_t j = 0; j < count; j += 2) {
      if (row + r < given.P) {
        const Vec<A> even[] = {load(sums + j * pitch)}, odd[] = {load(sums + (j + 1) * pitch)};
        store_woven<T, 1>(even, odd, at<T>(given.output, n, channel, row + r, column), given.Q - column, finish);
      }
      if (++r == given.R) {
        r = 0;
        ++channel;
      }
    }
  }
}

template <class T>
void panel_forward(const ConvParams& given, const PanelPlan& plan, const void* packed, void* scratch) {
  using A = Accumulate<T>;
  constexpr int64_t L = kLanes<A>;
  constexpr bool kSameType = sizeof(T) == sizeof(A);
  const ConvParams p = panel_base<A>(given);
  const PanelScratch<T> memory(p, plan, scratch);
  const Geometry geometry = make_geometry(p, 1);
  const Finish<T> finish(given);
  padded_bias<T>(given, plan.k_blocks * L, memory.bias, p.K / given.K);
  compute_for(p.threads, panel_items<A>(p, plan), [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    const auto own = PanelScratch<T>::take(p, plan, carve);
    const WorkItem work = work_item(item, plan.spans, p.G, p.N);
    const int64_t first_block = work.split * plan.k_range;
    const int64_t blocks = min64(plan.k_range, plan.k_blocks - first_block);
    const int64_t span = work.tile, g = work.g, n = work.n;
    const int64_t first_vector = plan.vectors * span / plan.spans, first = first_vector * L;
    const int64_t item_vectors = plan.vectors * (span + 1) / plan.spans - first_vector;
    const int64_t count = min64(p.P * p.Q - first, item_vectors * L);
    const int64_t piece_count = panel_pieces<A>(p, plan, first, count, own.pieces);
    const int64_t row = first / p.Q, rows = (first + count - 1) / p.Q + 1 - row;
    const int64_t tap_count = live_taps(p, geometry, {n, row, 0, rows, p.Q}, own.taps);
    for (int64_t pass = 0; pass < plan.passes; ++pass) {
      const int64_t c0 = pass * plan.c_pass, channels = min64(plan.c_pass, p.C - c0);
      const int64_t run_count = panel_fill<T>(p, plan, n, g * p.C + c0, channels, own.pieces, piece_count, own.taps,
                                              tap_count, own.sources, own.runs, own.x);
      const bool ends = pass == plan.passes - 1;
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t block = first_block + b;
        const A* weights =
            static_cast<const A*>(packed) + ((g * plan.k_blocks + block) * plan.passes + pass) * plan.block_elements;
        for (int64_t k = 0; k < min64(L, p.K - block * L); k += kPanelChannels) {
          const int64_t left = min64(kPanelChannels, min64(L, p.K - block * L) - k);
          const A* bias = pass == 0 ? memory.bias + (g * plan.k_blocks + block) * L + k : nullptr;
          for (int64_t i = 0; i < min64(plan.panels, item_vectors); ++i) {
            const Range part = panel_vectors(plan, item_vectors, i);
            const int64_t vectors = part.end - part.begin, columns = min64(vectors * L, count - part.begin * L);
            const int last = static_cast<int>(columns - (vectors - 1) * L);
            const auto micro = panel_micro_of<A>(left, vectors);
            const auto multiply = [&](A* to, int64_t to_channel, const Finish<A>* put) {
              micro(own.x + i * plan.panel_elements, plan.pitch, own.runs, run_count, weights + k, bias, to, to_channel,
                    static_cast<int>(left), last, put);
            };
            A* sums = plan.passes > 1 ? own.acc + ((i * plan.k_range + b) * L + k) * plan.pitch : own.acc;
            const int64_t pixel = first + part.begin * L;
            if (spread(given)) {
              multiply(sums, plan.pitch, nullptr);
              if (ends)
                store_residues<T>(given, p, n, g, block * L + k, left, pixel, vectors, sums, plan.pitch, finish);
              continue;
            }
            T* out = at<T>(p.output, n, g * p.K + block * L + k, 0, 0) + pixel;
            if constexpr (kSameType) {
              if (ends && plan.passes == 1) {
                multiply(out, p.output.c, &finish);
                continue;
              }
            }
            multiply(sums, plan.pitch, nullptr);
            for (int64_t j = 0; ends && j < left; ++j)
              copy_row(out + j * p.output.c, sums + j * plan.pitch, columns, finish);
          }
        }
      }
    }
  });
}

struct PanelForward {
  using Plan = PanelPlan;
  // Against the channel kernel, in instructions for one multiply-add of a vector (measured on AVX-512): the copy into
  // panels is paid once for all output channels, transposing the input and the output once for all that is summed up.
  // Of sums of few products most of the time goes into writing planes, which other kernels do with less beside it: 3x3
  // stems and 1x1 layers of 20 to 64 channels were up to twice as slow here where memory was slow.
  template <class A>
  static bool preferred(const ConvParams& p) {
    constexpr double L = kLanes<A>;
    if (spread(p)) {
      // Rows of vectors that are partly empty, against transposing what is written. 2x2 of stride 2, 128 to 64 at
      // 196x196, two threads of a Xeon 19.6 ms in `channel`, 13.9 here; 1024 to 512 at 28x28 15.3 and 18.0.
      const double columns = static_cast<double>(ceil_div(p.Q, p.up_w));
      const double filled = static_cast<double>(ceil_div(p.Q, p.up_w * kLanes<A>)) * L;
      return panel_weaves(p) && p.C >= 64 && kPanelStep * filled / columns < 1 + 45 / static_cast<double>(p.C);
    }
    if (p.input.c == 1 || p.output.c == 1 || p.K * 2 <= kLanes<A> || (kVecRegisters == 32 && p.C <= 4)) return false;
    if (p.C * p.R * p.S < kPanelLeast) return false;
    const double K = static_cast<double>(p.K), depth = static_cast<double>(p.C * p.R * p.S);
    const double pixels = static_cast<double>(p.P * p.Q), stride = static_cast<double>(p.stride_w);
    // With a vector of multiply-adds in half a cycle, reading every channel's plane where it lies is no cheaper than
    // copying it: 1x1, 256 to 64 at 56x56 took 1.04 ms in `channel` and 0.66 here (Xeon, two threads).
    const bool cheap_reads = p.halved || kVecRegisters == 16;
    const bool in_place = cheap_reads && p.R * p.S == 1 && p.stride_h == 1 && p.stride_w == 1;
    const double empty_pixels = static_cast<double>(ceil_div(p.P * p.Q, kLanes<A>)) * L / pixels;
    const double empty_channels = static_cast<double>(ceil_div(p.K, kLanes<A>)) * L / K;
    const double panel = (kPanelStep + 4 * stride / K) * empty_pixels;
    const double channel =
        (1 + 8 / depth + (in_place ? 0 : 8 * stride / (K * static_cast<double>(p.R * p.S)))) * empty_channels;
    return panel < channel;
  }
  template <class A>
  static bool plan(const ConvParams& given, Plan& plan, ConvMemory& memory) {
    if (spread(given) && !panel_weaves(given)) return false;
    const ConvParams p = panel_base<A>(given);
    if (p.input.w != 1 || p.stride_w > 2 || p.output.w != 1) return false;
    if (!spread(given) && p.P > 1 && p.output.h != p.Q) return false;
    // Rows and columns are compared in lanes of 32 bits.
    if (p.R * p.S > kPanelTaps || p.H > INT32_MAX || p.W > INT32_MAX) return false;
    if (!panel_plan<A>(p, plan)) return false;
    memory.packed = p.G * plan.k_blocks * plan.passes * plan.block_elements * static_cast<int64_t>(sizeof(A));
    memory.scratch = PanelScratch<A>(p, plan, nullptr).total;
    return memory.packed <= kPrepackBytes * p.threads || p.prepacked;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    using A = Accumulate<T>;
    channel_pack_all<T>(panel_base<A>(p), plan, static_cast<A*>(packed));
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    panel_forward<T>(p, plan, packed, scratch);
  }
};

}  // namespace
}  // namespace fastconv
