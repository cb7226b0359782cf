// Winograd's minimal filtering F(4x4, 3x3) for dense 3x3 layers of stride 1, computed in float32: 4x4 outputs from 6x6
// inputs by 36 multiplications for each pair of channels, where the definition takes 144. (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", 2016, with the interpolation points 0, 1, -1, 2, -2.)
//
// A block of tiles at a time: the input, packed with 16 channels of a pixel side by side, is transformed into 36
// matrices of [tile, channel]; each is multiplied with the transformed weights by the register tile of channel.h; and
// the products of a few output channels are transformed back. What lies between the steps stays in the second-level
// cache.
//
// Dilation. Outputs whose positions are equal modulo the dilation read inputs whose positions are, so a convolution of
// dilation d is d * d ordinary ones between lattices of the tensors, and views describe lattices. Those of contiguous
// tensors are read and written one value at a time, so that small ones are turned to channels_last first, and back: 25
// channels at 64x128 of dilation 4, two threads, 0.57 -> 0.44 ms.
#pragma once
#include "conv/channel.h"
#include "conv/layout.h"

namespace fastconv {
namespace {

constexpr int64_t kPatch = 6, kTileSize = 4, kProducts = kPatch * kPatch;
constexpr int64_t kWinogradBytes = 1 << 20;    // of transformed input and products of a block of tiles
constexpr int64_t kOwnRoundBytes = 256 << 10;  // of weights that are transformed just before they are used
constexpr int64_t kRoundBytes = 12 << 20;      // of weights that are transformed at a time, where they are not kept
constexpr int64_t kTurnedBytes = 4 << 20;      // of tensors that are turned to channels_last

struct WinogradPlan {
  Geometry g;
  int kv;
  int64_t k_block, k_blocks;  // as in channel.h
  int64_t k_splits, k_range;
  int64_t rounds, round_blocks;  // weights are transformed and used so many k_blocks at a time
  bool own_weights;              // each work item transforms those that it needs, just before it uses them
  int64_t c_padded, c_pass;      // input channels, and those of them whose weights are transformed at a time
  int64_t tiles;                 // of a block
  int64_t plane;                 // elements of one of the 36 matrices of transformed input
  int64_t product;               // and of products
  int64_t weight;                // and of transformed weights of a k_block
  bool out_place;                // outputs are written where they belong, without scratch
  int64_t phases_h, phases_w;
  int64_t acc_elements, weight_elements;  // of one thread
};

// The lattice of outputs (a + i * dilation, b + j * dilation), as an ordinary convolution.
inline ConvParams winograd_phase(const ConvParams& p, int64_t a, int64_t b) {
  ConvParams q = p;
  const int64_t shift_h = a - p.pad_h, shift_w = b - p.pad_w;
  // The first input row is shift_h = from_h + dilation * skipped, 0 <= from_h < dilation.
  const int64_t from_h = (shift_h % p.dilation_h + p.dilation_h) % p.dilation_h;
  const int64_t from_w = (shift_w % p.dilation_w + p.dilation_w) % p.dilation_w;
  q.pad_h = (from_h - shift_h) / p.dilation_h;
  q.pad_w = (from_w - shift_w) / p.dilation_w;
  q.H = p.H > from_h ? ceil_div(p.H - from_h, p.dilation_h) : 0;
  q.W = p.W > from_w ? ceil_div(p.W - from_w, p.dilation_w) : 0;
  q.P = p.P > a ? ceil_div(p.P - a, p.dilation_h) : 0;
  q.Q = p.Q > b ? ceil_div(p.Q - b, p.dilation_w) : 0;
  const int64_t size = p.element_size();
  q.input.data = static_cast<char*>(p.input.data) + (from_h * p.input.h + from_w * p.input.w) * size;
  q.output.data = static_cast<char*>(p.output.data) + (a * p.output.h + b * p.output.w) * size;
  if (p.residual) q.residual = static_cast<const char*>(p.residual) + (a * p.output.h + b * p.output.w) * size;
  q.input.h *= p.dilation_h;
  q.input.w *= p.dilation_w;
  q.output.h *= p.dilation_h;
  q.output.w *= p.dilation_w;
  q.dilation_h = q.dilation_w = 1;
  return q;
}

template <class A>
WinogradPlan winograd_plan_for(const ConvParams& p, int64_t rows, int64_t columns, int64_t k_splits, bool own_weights) {
  constexpr int L = kLanes<A>;
  WinogradPlan plan;
  const int64_t P = ceil_div(p.P, p.dilation_h), Q = ceil_div(p.Q, p.dilation_w);
  plan.phases_h = min64(p.P, p.dilation_h);
  plan.phases_w = min64(p.Q, p.dilation_w);
  plan.g.h = make_axis(P, rows * kTileSize, 3, 1, 1);
  plan.g.w = make_axis(Q, columns * kTileSize, 3, 1, 1);
  plan.g.pitch = plan.g.w.span;
  plan.g.channel = plan.g.h.span * plan.g.pitch;
  plan.kv = channel_vectors<A>(p);
  plan.k_block = plan.kv * L;
  plan.k_blocks = ceil_div(p.K, plan.k_block);
  plan.c_padded = round_up(p.C, L);
  plan.own_weights = own_weights;
  const int64_t few = kOwnRoundBytes / (kProducts * plan.k_block * static_cast<int64_t>(sizeof(A)));
  plan.c_pass = plan.own_weights ? min64(plan.c_padded, few / L * L) : plan.c_padded;
  // Odd numbers of cache lines, so that the 36 values of a patch or a kernel do not fall into the same cache set.
  plan.weight = (plan.c_pass * plan.kv | 1) * L;
  const int64_t block_bytes = kProducts * plan.weight * static_cast<int64_t>(sizeof(A));
  plan.rounds = p.prepacked || plan.own_weights
                    ? 1
                    : min64(plan.k_blocks, ceil_div(p.G * plan.k_blocks * block_bytes, kRoundBytes));
  plan.round_blocks = ceil_div(plan.k_blocks, plan.rounds);
  plan.rounds = ceil_div(plan.k_blocks, plan.round_blocks);
  plan.k_range = ceil_div(plan.round_blocks, k_splits);
  plan.k_splits = ceil_div(plan.round_blocks, plan.k_range);
  plan.tiles = rows * columns;
  plan.plane = (plan.tiles * plan.c_padded / L | 1) * L;
  plan.product = (plan.tiles * plan.kv | 1) * L;
  plan.out_place = p.output.c == 1 && p.K % plan.k_block == 0;
  plan.acc_elements = plan.out_place ? 0 : plan.tiles * kTileSize * kTileSize * plan.k_block;
  plan.weight_elements = plan.own_weights ? kProducts * plan.weight : 0;
  return plan;
}

template <class A>
int64_t winograd_items(const ConvParams& p, const WinogradPlan& plan) {
  return p.N * p.G * plan.phases_h * plan.phases_w * plan.g.h.tiles * plan.g.w.tiles * plan.k_splits;
}

// Estimated cycles, after measurements on a few layers.
template <class A>
double winograd_total(const ConvParams& p, const WinogradPlan& plan) {
  constexpr int L = kLanes<A>;
  constexpr double kTransform = 160, kMove = 2, kPack = 0.4, kFarBytes = 8, kNearBytes = 16;
  const double chunks = static_cast<double>(ceil_div(plan.tiles, channel_pixels(plan.kv)));
  // Few tiles are bound by loads of weights, one vector of output channels by those of input values.
  const double each = p.halved ? 1.1 : plan.kv == 1 ? 1 : 0.6;
  const double step = max64(ceil_div(plan.tiles, static_cast<int64_t>(chunks)) * plan.kv, 6) * each;
  const double products = static_cast<double>(kProducts * plan.c_padded * plan.k_range) * chunks * step;
  const double weights = static_cast<double>(kProducts * plan.c_padded * plan.k_range * plan.k_block);
  const double all = static_cast<double>(kProducts * plan.c_padded * p.G * plan.k_blocks * plan.k_block);
  const bool far = !plan.own_weights && weights * sizeof(A) > kWinogradBytes / 2;  // a split's are one thread's
  const double reads = weights * sizeof(A) / (far ? kFarBytes : kNearBytes);
  const double tiles = static_cast<double>(plan.tiles), c = static_cast<double>(plan.c_padded);
  const double k = static_cast<double>(plan.k_range * plan.k_block);
  // Lattices of a contiguous image are read and written one value at a time.
  const double moved = static_cast<double>(kTileSize * kTileSize) * (static_cast<double>(p.C) + (k < p.K ? k : p.K));
  const double moves = p.input.c != 1 && p.dilation_w > 1 ? kMove * moved : 0;
  const double item = (products > reads ? products : reads) + tiles * (kTransform * (c + k) / L + moves) +
                      (plan.own_weights ? kPack * weights : 0) + 3000;
  const double pack = p.prepacked || plan.own_weights ? 0 : all * (kPack + (far ? sizeof(A) / kFarBytes : 0));
  return static_cast<double>(plan.rounds * ceil_div(winograd_items<A>(p, plan), p.threads)) * item + pack / p.threads;
}

// Whether its tensors are turned to channels_last. What has been packed without a residual is used with one.
inline bool winograd_turns(const ConvParams& p) {
  const int64_t pixels = p.N * p.G * (p.C * p.H * p.W + p.K * p.P * p.Q);
  return p.dilation_w > 1 && p.input.w == 1 && p.output.w == 1 && pixels * p.element_size() <= kTurnedBytes;
}

// The tensors turned round in scratch, and the layer that reads and writes them. A residual lies where the output will,
// of which every element is written once, after its own residual has been read.
template <class T>
struct WinogradTurned {
  ConvParams params;
  int64_t total;

  WinogradTurned(const ConvParams& p, void* scratch) : params(p) {
    Carver carve(scratch);
    T* input = carve.take<T>(p.N * p.G * p.C * p.H * p.W);
    T* output = carve.take<T>(p.N * p.G * p.K * p.P * p.Q);
    params.input = channels_last_view(input, p.G * p.C, p.H, p.W);
    params.output = channels_last_view(output, p.G * p.K, p.P, p.Q);
    if (p.residual) params.residual = output;
    total = carve.used();
  }
};

// The layer as the kernel sees it; only strides count.
inline ConvParams winograd_seen(const ConvParams& p) {
  return winograd_turns(p) ? WinogradTurned<float>(p, nullptr).params : p;
}

template <class A>
bool winograd_plan(const ConvParams& given, WinogradPlan& best) {
  const ConvParams p = winograd_seen(given);
  constexpr int64_t kSize = sizeof(A);
  if (p.dtype == Dtype::kFloat64 || p.R != 3 || p.S != 3 || p.stride_h != 1 || p.stride_w != 1) return false;
  const int64_t tiles_h = ceil_div(ceil_div(p.P, p.dilation_h), kTileSize);
  const int64_t tiles_w = ceil_div(ceil_div(p.Q, p.dilation_w), kTileSize);
  double best_total = 0;
  for (int64_t limit : {kWinogradBytes, 8 * kWinogradBytes}) {
    // Blocks as wide as the image if some number of rows fits.
    for (int64_t columns = tiles_w; columns > 0 && best_total == 0; columns = columns > 1 ? ceil_div(columns, 2) : 0)
      for (int64_t rows = tiles_h; rows > 0; rows = rows > 1 ? ceil_div(tiles_h, ceil_div(tiles_h, rows - 1)) : 0)
        for (int64_t splits = 1; splits <= p.threads; splits *= 2)
          for (bool own_weights : {false, true}) {
            if (own_weights && p.prepacked) continue;
            const WinogradPlan plan = winograd_plan_for<A>(p, rows, columns, splits, own_weights);
            if (kProducts * (plan.plane + plan.product) * kSize > limit) continue;
            const double total = winograd_total<A>(p, plan);
            if (best_total != 0 && total >= best_total) continue;
            best = plan;
            best_total = total;
          }
    if (best_total != 0) return true;
  }
  return false;
}

// ---- transforms

template <class V>
inline void winograd_input(const V* d, V* t) {
  const V a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
  t[0] = 4 * d[0] - 5 * d[2] + d[4];
  t[1] = a + b;
  t[2] = a - b;
  t[3] = c + e;
  t[4] = c - e;
  t[5] = 4 * d[1] - 5 * d[3] + d[5];
}

template <class V>
inline void winograd_weight(const V* g, V* t) {
  const V a = (g[0] + g[2]) * (-1.f / 6), b = g[1] * (-1.f / 6), c = g[0] * (1.f / 24) + g[2] * (1.f / 6);
  const V e = g[1] * (1.f / 12);
  t[0] = g[0] * 0.25f;
  t[1] = a + b;
  t[2] = a - b;
  t[3] = c + e;
  t[4] = c - e;
  t[5] = g[2];
}

template <class V>
inline void winograd_output(const V* m, V* y) {
  const V a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  y[0] = m[0] + a + c;
  y[1] = b + 2 * e;
  y[2] = a + 4 * c;
  y[3] = b + 8 * e + m[5];
}

// Patches of 16 channels at once: x is packed, one block; to[product * plane + tile * L].
inline void winograd_patches(const WinogradPlan& plan, const float* x, float* to) {
  constexpr int L = kLanes<float>;
  using V = Vec<float>;
  const int64_t rows = plan.g.h.tile / kTileSize, columns = plan.g.w.tile / kTileSize;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j, to += L) {
      const float* from = x + (i * plan.g.pitch + j) * kTileSize * L;
      V t[kPatch][kPatch];
#pragma GCC unroll 6
      for (int64_t s = 0; s < kPatch; ++s) {
        V d[kPatch], column[kPatch];
#pragma GCC unroll 6
        for (int64_t r = 0; r < kPatch; ++r) d[r] = load(from + (r * plan.g.pitch + s) * L);
        winograd_input(d, column);
#pragma GCC unroll 6
        for (int64_t r = 0; r < kPatch; ++r) t[r][s] = column[r];
      }
#pragma GCC unroll 6
      for (int64_t r = 0; r < kPatch; ++r) {
        V row[kPatch];
        winograd_input(t[r], row);
#pragma GCC unroll 6
        for (int64_t s = 0; s < kPatch; ++s) store(to + (r * kPatch + s) * plan.plane, row[s]);
      }
    }
}

// 16 input channels by k_block output channels of weights, [tap][c][k_block], to [product][c][k_block].
inline void winograd_weights(const WinogradPlan& plan, const float* weights, float* to) {
  constexpr int L = kLanes<float>;
  using V = Vec<float>;
  for (int64_t i = 0; i < L * plan.k_block; i += L) {
    V t[kPatch][3];
#pragma GCC unroll 3
    for (int64_t s = 0; s < 3; ++s) {
      V taps[3], column[kPatch];
#pragma GCC unroll 3
      for (int64_t r = 0; r < 3; ++r) taps[r] = load(weights + (r * 3 + s) * L * plan.k_block + i);
      winograd_weight(taps, column);
#pragma GCC unroll 6
      for (int64_t r = 0; r < kPatch; ++r) t[r][s] = column[r];
    }
#pragma GCC unroll 6
    for (int64_t r = 0; r < kPatch; ++r) {
      V row[kPatch];
      winograd_weight(t[r], row);
#pragma GCC unroll 6
      for (int64_t s = 0; s < kPatch; ++s) store(to + (r * kPatch + s) * plan.weight + i, row[s]);
    }
  }
}

// Weights of L input channels from c0 and one block of output channels, as to[product][c][k_block].
template <class T>
void winograd_pack_channels(const ConvParams& p, const WinogradPlan& plan, int64_t g, int64_t block, int64_t c0,
                            float* to) {
  constexpr int L = kLanes<float>;
  alignas(64) float weights[9 * L * 3 * L];
  channel_pack<T>(p, plan.k_block, g, block * plan.k_block, c0, L, weights);
  winograd_weights(plan, weights, to);
}

// Weights of a round as to[group][k block][product][c][k_block].
template <class T>
void winograd_pack(const ConvParams& p, const WinogradPlan& plan, int64_t round, float* packed) {
  constexpr int L = kLanes<float>;
  compute_for(p.threads, p.G * plan.round_blocks * (plan.c_padded / L), [&](int64_t item, int) {
    const int64_t blocks_c = plan.c_padded / L, block = item / blocks_c, c0 = item % blocks_c * L;
    const int64_t g = block / plan.round_blocks, k = round * plan.round_blocks + block % plan.round_blocks;
    if (k < plan.k_blocks)
      winograd_pack_channels<T>(p, plan, g, k, c0, packed + block * kProducts * plan.weight + c0 * plan.k_block);
  });
}

// Products of one vector of output channels back to outputs, `store(row, column, vector)` for those of the tile that
// exist.
template <class Store>
inline void winograd_outputs(const WinogradPlan& plan, const Tile& t, const float* products, Vec<float> bias,
                             const Store& store_output) {
  using V = Vec<float>;
  const int64_t columns = plan.g.w.tile / kTileSize;
  for (int64_t i = 0; i * kTileSize < t.rows; ++i)
    for (int64_t j = 0; j * kTileSize < t.columns; ++j) {
      const float* from = products + (i * columns + j) * plan.k_block;
      V t6[kTileSize][kPatch];
#pragma GCC unroll 6
      for (int64_t s = 0; s < kPatch; ++s) {
        V m[kPatch], column[kTileSize];
#pragma GCC unroll 6
        for (int64_t r = 0; r < kPatch; ++r) m[r] = load(from + (r * kPatch + s) * plan.product);
        winograd_output(m, column);
#pragma GCC unroll 4
        for (int64_t r = 0; r < kTileSize; ++r) t6[r][s] = column[r];
      }
#pragma GCC unroll 4
      for (int64_t r = 0; r < kTileSize; ++r) {
        V row[kTileSize];
        winograd_output(t6[r], row);
        if (i * kTileSize + r >= t.rows) break;
#pragma GCC unroll 4
        for (int64_t s = 0; s < kTileSize; ++s)
          if (j * kTileSize + s < t.columns) store_output(i * kTileSize + r, j * kTileSize + s, row[s] + bias);
      }
    }
}

inline int64_t winograd_weight_elements(const ConvParams& p, const WinogradPlan& plan) {
  return p.G * plan.round_blocks * plan.weight * kProducts;
}

struct WinogradScratch {
  float* bias;
  float* zeros;
  float* weights;  // of a round
  char* threads;
  int64_t thread_bytes, total;

  WinogradScratch(const ConvParams& p, const WinogradPlan& plan, void* scratch) {
    constexpr int L = kLanes<float>;
    Carver carve(scratch);
    bias = carve.take<float>(p.G * plan.k_blocks * plan.k_block);
    zeros = carve.take<float>(plan.k_block);
    weights = carve.take<float>(plan.rounds > 1 ? winograd_weight_elements(p, plan) : 0);
    const int64_t elements = plan.g.channel * L + kProducts * (plan.plane + plan.product) + plan.acc_elements +
                             plan.weight_elements + 16 * L;
    thread_bytes = round_up(elements * static_cast<int64_t>(sizeof(float)), 64) + 256;
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

// The output channels of one round, `weights` being theirs.
template <class T>
void winograd_round(const ConvParams& p, const WinogradPlan& plan, int64_t round, const float* weights,
                    const WinogradScratch& memory) {
  constexpr int L = kLanes<float>;
  const int64_t group_k = plan.k_blocks * plan.k_block, first_of_round = round * plan.round_blocks;
  const int64_t round_end = min64(plan.k_blocks, first_of_round + plan.round_blocks);
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles, phases = plan.phases_h * plan.phases_w;
  const int most = channel_pixels(plan.kv);
  compute_for(p.threads, winograd_items<float>(p, plan), [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    float* patches = carve.take<float>(kProducts * plan.plane);
    float* products = carve.take<float>(kProducts * plan.product);
    float* acc = carve.take<float>(plan.acc_elements);
    float* own_weights = carve.take<float>(plan.weight_elements);
    float* x = carve.take<float>(plan.g.channel * L);
    const WorkItem work = work_item(item, tiles, p.G, p.N * phases);
    const int64_t first_block = first_of_round + work.split * plan.k_range;
    const int64_t end_block = min64(first_block + plan.k_range, round_end);
    const int64_t g = work.g, phase = work.n % phases;
    const ConvParams q = winograd_phase(p, phase / plan.phases_w, phase % plan.phases_w);
    const Finish<T> finish(q);
    const Tile t = make_tile(q, plan.g, work.n / phases, work.tile);
    if (t.rows <= 0 || t.columns <= 0) return;  // the last lattices may be a tile smaller
    const Tile whole = {t.n, t.p0, t.q0, plan.g.h.tile, plan.g.w.tile};
    for (int64_t c = 0; c < p.C; c += L) {
      fill_packed<T>(q, plan.g, whole, g * p.C + c, min64(L, p.C - c), x);
      winograd_patches(plan, x, patches + c * plan.tiles);
    }
    const Tap tap = {0, 0};
    const int64_t chunks = ceil_div(plan.tiles, most);
    for (int64_t b = first_block; b < end_block; ++b) {
      const int64_t of_round = (g * plan.round_blocks + b - first_of_round) * kProducts * plan.weight;
      const float* of_block = plan.own_weights ? own_weights : weights + of_round;
      for (int64_t c0 = 0; c0 < p.C; c0 += plan.c_pass) {
        const int64_t channels = min64(plan.c_pass, p.C - c0);
        for (int64_t c = 0; plan.own_weights && c < channels; c += L)
          winograd_pack_channels<T>(p, plan, g, b, c0 + c, own_weights + c * plan.k_block);
        for (int64_t i = 0; i < kProducts; ++i)
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t from = plan.tiles * chunk / chunks, end = plan.tiles * (chunk + 1) / chunks;
            channel_micro_of<float>(plan.kv, Source::kPacked, static_cast<int>(end - from))(
                patches + i * plan.plane + (c0 * plan.tiles + from * L), plan.tiles, L, channels, {&tap, 1, 1, 1},
                of_block + i * plan.weight, L * plan.k_block, c0 == 0 ? memory.zeros : nullptr,
                products + i * plan.product + from * plan.k_block, plan.k_block, nullptr);
          }
      }
      const int64_t k0 = g * p.K + b * plan.k_block;
      for (int v = 0; v < plan.kv; ++v) {
        const Vec<float> bias = load(memory.bias + g * group_k + b * plan.k_block + v * L);
        if (plan.out_place) {
          T* to = at<T>(q.output, t.n, k0 + v * L, t.p0, t.q0);
          winograd_outputs(plan, t, products + v * L, bias, [&](int64_t row, int64_t column, Vec<float> y) {
            finish.store(to + row * q.output.h + column * q.output.w, y);
          });
        } else {
          winograd_outputs(plan, t, products + v * L, bias, [&](int64_t row, int64_t column, Vec<float> y) {
            store(acc + (row * t.columns + column) * plan.k_block + v * L, y);
          });
        }
      }
      if (!plan.out_place) store_packed<T>(q, t, k0, min64(plan.k_block, p.K - b * plan.k_block), acc, plan.k_block);
    }
  });
}

template <class T>
void winograd_forward(const ConvParams& p, const WinogradPlan& plan, const void* packed, void* scratch) {
  const WinogradScratch memory(p, plan, scratch);
  const int64_t group_k = plan.k_blocks * plan.k_block;
  padded_bias<T>(p, group_k, memory.bias);
  zero(memory.zeros, plan.k_block);
  for (int64_t round = 0; round < plan.rounds; ++round) {
    if (plan.rounds > 1) winograd_pack<T>(p, plan, round, memory.weights);
    winograd_round<T>(p, plan, round, plan.rounds > 1 ? memory.weights : static_cast<const float*>(packed), memory);
  }
}

// Cycles that a vector of multiply-adds takes in `channel`. (With one vector of output channels each loads an input
// value of its own: 0.6 all the same, where groups of 16 channels at 14x14 took 0.21 ms and here 0.46.)
inline double direct_cycles(const ConvParams& p) { return p.halved ? 1.1 : 0.58; }

// Whether the transforms, and weights that are four times as large, cost less than the multiplications they save, of
// which a vector takes `direct` cycles.
inline bool winograd_pays(const ConvParams& p, double direct) {
  WinogradPlan plan;
  if (p.C < 16 || p.K < 16 || !winograd_plan<float>(p, plan)) return false;
  direct *= static_cast<double>(p.N * p.G * p.P * p.Q) * 9 * static_cast<double>(p.C * p.K) / kLanes<float>;
  // An element takes a cycle; but what serves these layers otherwise is slower than `direct` where channels do not fill
  // vectors.
  const int64_t turned = winograd_turns(p) ? p.N * p.G * (p.C * p.H * p.W + p.K * p.P * p.Q) : 0;
  return winograd_total<float>(winograd_seen(p), plan) + 0.4 * static_cast<double>(turned / p.threads) <
         0.9 * direct / p.threads;
}

struct WinogradForward {
  using Plan = WinogradPlan;
  template <class A>
  static bool preferred(const ConvParams& p) {
    return p.dtype != Dtype::kFloat64 && winograd_pays(p, direct_cycles(p));
  }
  template <class A>
  static bool plan(const ConvParams& p, Plan& plan, ConvMemory& memory) {
    if (!winograd_plan<float>(p, plan)) return false;
    if (plan.rounds == 1 && !plan.own_weights)
      memory.packed = winograd_weight_elements(p, plan) * static_cast<int64_t>(sizeof(float));
    memory.scratch = WinogradScratch(winograd_seen(p), plan, nullptr).total;
    if (winograd_turns(p)) memory.scratch += WinogradTurned<float>(p, nullptr).total;
    return true;
  }
  template <class T>
  static void pack(const ConvParams& p, const Plan& plan, void* packed) {
    if constexpr (sizeof(Accumulate<T>) == sizeof(float))
      if (plan.rounds == 1 && !plan.own_weights) winograd_pack<T>(p, plan, 0, static_cast<float*>(packed));
  }
  template <class T>
  static void run(const ConvParams& p, const Plan& plan, const void* packed, void* scratch) {
    if constexpr (sizeof(Accumulate<T>) == sizeof(float)) {
      if (!winograd_turns(p)) return winograd_forward<T>(p, plan, packed, scratch);
      const WinogradTurned<T> turned(p, scratch);
      const ConvParams& q = turned.params;
      turn_layout<T>(q.input, p.input, p.N, p.G * p.C, p.H, p.W, p.threads);
      if (p.residual) {
        View4 residual = p.output;
        residual.data = const_cast<void*>(p.residual);
        turn_layout<T>(q.output, residual, p.N, p.G * p.K, p.P, p.Q, p.threads);
      }
      winograd_forward<T>(q, plan, packed, static_cast<char*>(scratch) + turned.total);
      turn_layout<T>(p.output, q.output, p.N, p.G * p.K, p.P, p.Q, p.threads);
    }
  }
};

}  // namespace
}  // namespace fastconv
