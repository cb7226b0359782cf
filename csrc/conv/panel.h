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
#include "conv/panel_plan.h"

namespace fastconv {
namespace {

constexpr int64_t kPanelAhead = 4;  // channels that input is fetched ahead

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
// vector. At least one run, of at least one row; of L rows each where they are `Whole`, which are then written out as
// channel_written_out() does.
template <class A, int KB, int NV, bool Whole>
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
    const auto multiply = [&](const A* weights) __attribute__((always_inline)) {
      Vec<A> v[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) v[j] = load(x + j * L);
#pragma GCC unroll 8
      for (int k = 0; k < KB; ++k) {
        const Vec<A> b = splat(weights[k]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) add_product(sum[k][j], b, v[j]);
      }
      x += pitch;
    };
    if constexpr (Whole) {
#pragma GCC unroll 8
      for (int c = 0; c < L; ++c) {
        multiply(weight + c * L);
        settle_pointer(x);
      }
    } else {
      const A* const weight_end = weight + static_cast<int64_t>(runs->rows) * L;
      do {
        multiply(weight);
        weight += L;
      } while (weight != weight_end);
    }
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

template <class A, int KB, bool Whole>
PanelMicro<A> panel_micro_of(int64_t vectors) {
  return vectors == 1   ? panel_micro<A, KB, 1, Whole>
         : vectors == 2 ? panel_micro<A, KB, 2, Whole>
                        : panel_micro<A, KB, kPanelVectors, Whole>;
}

template <class A, bool Whole>
PanelMicro<A> panel_micro_of(int64_t channels, int64_t vectors) {
  if (channels <= 2) return panel_micro_of<A, 2, Whole>(vectors);
  if (channels <= 4 || kPanelChannels == 4) return panel_micro_of<A, 4, Whole>(vectors);
  return panel_micro_of<A, kPanelChannels, Whole>(vectors);
}

// For up to kPanelChannels channels.
template <class A>
PanelMicro<A> panel_micro_of(int64_t channels, int64_t vectors, bool whole) {
  if constexpr (kWritesOut)
    if (whole) return panel_micro_of<A, true>(channels, vectors);
  return panel_micro_of<A, false>(channels, vectors);
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
            const auto micro = panel_micro_of<A>(left, vectors, channels % L == 0);
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
    // Reading every channel's plane where it lies is dearer than copying it: 1x1, 256 to 64 at 56x56, two threads, took
    // 1.04 ms in `channel` and 0.66 here on a Xeon, 0.60 and 0.52 on a Zen 4. With AVX2 a transposed output costs most:
    // 512 to 2048 at 7x7 4.6 and 2.8 ms, 60 to 240 at 28x28 in 3 groups 0.45 and 0.33.
    const double empty_pixels = static_cast<double>(ceil_div(p.P * p.Q, kLanes<A>)) * L / pixels;
    if (kVecRegisters == 16 && p.R * p.S == 1 && empty_pixels < 1.5) return true;
    const double empty_channels = static_cast<double>(ceil_div(p.K, kLanes<A>)) * L / K;
    const double panel = (kPanelStep + 4 * stride / K) * empty_pixels;
    // On a Zen 4 transposing the output costs more than its instructions: 1x1, 256 to 1024 at 14x14, two threads, took
    // 0.75 ms in `channel`, 0.55 here and in channels_last.
    const double channel =
        (1 + (p.halved ? 40 : 8) / depth + 8 * stride / (K * static_cast<double>(p.R * p.S))) * empty_channels;
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
