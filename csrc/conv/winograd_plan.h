// How a layer is cut for Winograd's algorithm (winograd.h), and whether that is faster than the definition.
#pragma once
#include "conv/channel.h"

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

}  // namespace
}  // namespace fastconv
