// How a layer is cut for Winograd's algorithm (winograd.h), and whether that is faster than the definition.
#pragma once
#include "conv/channel.h"

namespace fastconv {
namespace {

constexpr int64_t kPatch = 6, kTileSize = 4, kProducts = kPatch * kPatch;
constexpr int64_t kWinogradBytes = 1 << 20;      // of transformed input and products of a block of tiles
constexpr int64_t kOwnRoundBytes = 256 << 10;    // of weights that are transformed just before they are used
constexpr int64_t kRoundBytes = 12 << 20;        // of weights that are transformed at a time, where they are not kept
constexpr int64_t kTurnedBytes = 4 << 20;        // of images that are turned to channels_last together
constexpr int64_t kStagedWeightBytes = 4 << 20;  // of transformed weights: those of 128 by 128 channels are fewer
constexpr int64_t kThreadBytes = 16 << 20;       // of all buffers of a thread
constexpr int64_t kPartTiles = 32;               // of a part, at most, where there are stages

struct WinogradPlan {
  Geometry g;
  int kv;
  int64_t k_block, k_blocks;  // as in channel.h
  int64_t k_splits, k_range;
  int64_t rounds, round_blocks;  // weights are transformed and used so many k_blocks (or c_pass channels) at a time
  bool own_weights;              // each work item transforms those that it needs, just before it uses them
  int64_t c_padded, c_pass;      // input channels, and those of them whose weights are transformed at a time
  bool staged;                   // threads share each step of a block
  bool by_channels;              // rounds are of input channels, not of output channels; only where staged
  int64_t part_tiles;            // of one part: a rectangle of tiles of one lattice
  int64_t parts, tiles;          // of a block
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
WinogradPlan winograd_plan_for(const ConvParams& p, int64_t parts, int64_t rows, int64_t columns, int64_t k_splits,
                               bool own_weights, bool staged = false, bool by_channels = false) {
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
  plan.staged = staged;
  plan.by_channels = by_channels;
  if (by_channels) {
    const int64_t most = kRoundBytes / (kProducts * plan.k_blocks * plan.k_block * static_cast<int64_t>(sizeof(A)));
    plan.c_pass = min64(plan.c_padded, max64(L, most / L * L));
  }
  // Odd numbers of cache lines, so that the 36 values of a patch or a kernel do not fall into the same cache set.
  plan.weight = (plan.c_pass * plan.kv | 1) * L;
  const int64_t block_bytes = kProducts * plan.weight * static_cast<int64_t>(sizeof(A));
  plan.rounds = p.prepacked || plan.own_weights || by_channels
                    ? 1
                    : min64(plan.k_blocks, ceil_div(p.G * plan.k_blocks * block_bytes, kRoundBytes));
  plan.round_blocks = ceil_div(plan.k_blocks, plan.rounds);
  plan.rounds = ceil_div(plan.k_blocks, plan.round_blocks);
  if (by_channels) plan.rounds = ceil_div(plan.c_padded, plan.c_pass);
  plan.k_range = ceil_div(plan.round_blocks, k_splits);
  plan.k_splits = ceil_div(plan.round_blocks, plan.k_range);
  plan.part_tiles = rows * columns;
  plan.parts = parts;
  plan.tiles = parts * plan.part_tiles;
  plan.plane = (plan.tiles * (by_channels ? plan.c_pass : plan.c_padded) / L | 1) * L;
  plan.product = (plan.tiles * plan.kv | 1) * L;
  plan.out_place = p.output.c == 1 && p.K % plan.k_block == 0;
  plan.acc_elements = plan.out_place ? 0 : plan.part_tiles * kTileSize * kTileSize * plan.k_block;
  plan.weight_elements = plan.own_weights ? kProducts * plan.weight : 0;
  return plan;
}

inline int64_t winograd_parts(const ConvParams& p, const WinogradPlan& plan) {
  return p.N * plan.phases_h * plan.phases_w * plan.g.h.tiles * plan.g.w.tiles;
}

inline int64_t winograd_blocks(const ConvParams& p, const WinogradPlan& plan) {
  return ceil_div(winograd_parts(p, plan), plan.parts);
}

// Cycles of a tile and a vector of channels, of a value of a lattice that is moved alone, of a transformed weight and
// of waking the threads; bytes a cycle from the last cache and from the second level.
constexpr double kTransformCycles = 160, kMoveCycles = 2, kPackCycles = 0.5, kRegionCycles = 10000, kLastCacheRate = 8,
                 kSecondLevelRate = 16;

// Lattices of a contiguous image are read and written one value at a time.
inline double winograd_moves(const ConvParams& p, double channels) {
  return p.input.c != 1 && p.dilation_w > 1 ? kMoveCycles * static_cast<double>(kTileSize * kTileSize) * channels : 0;
}

// Cycles of multiplying a block's tiles, for one input channel, one of the 36 products and one k_block; `each` for a
// vector.
inline double winograd_tile_cycles(const WinogradPlan& plan, double each) {
  const int64_t chunks = ceil_div(plan.tiles, channel_pixels(plan.kv));
  return static_cast<double>(chunks * max64(ceil_div(plan.tiles, chunks) * plan.kv, 6)) * each;
}

// Of a layer whose blocks go through all steps each.
template <class A>
double winograd_blocks_total(const ConvParams& p, const WinogradPlan& plan) {
  constexpr int L = kLanes<A>;
  // Few tiles are bound by loads of weights, one vector of output channels by those of input values.
  const double each = p.halved ? 1.1 : plan.kv == 1 ? 1 : 0.6;
  const double products =
      static_cast<double>(kProducts * plan.c_padded * plan.k_range) * winograd_tile_cycles(plan, each);
  const double weights = static_cast<double>(kProducts * plan.c_padded * plan.k_range * plan.k_block);
  const double all = static_cast<double>(kProducts * plan.c_padded * p.G * plan.k_blocks * plan.k_block);
  const bool far = !plan.own_weights && weights * sizeof(A) > kWinogradBytes / 2;  // a split's are one thread's
  const double reads = weights * sizeof(A) / (far ? kLastCacheRate : kSecondLevelRate);
  const double tiles = static_cast<double>(plan.tiles), c = static_cast<double>(plan.c_padded);
  const double k = static_cast<double>(plan.k_range * plan.k_block);
  const double moves = winograd_moves(p, static_cast<double>(p.C) + (k < p.K ? k : p.K));
  const double transforms = tiles * (kTransformCycles * (c + k) / L + moves);
  // What comes from afar is waited for.
  const bool farthest = far && weights * sizeof(A) > kStagedWeightBytes;
  const double multiply = farthest ? products + reads : products > reads ? products : reads;
  const double item = multiply + transforms + (plan.own_weights ? kPackCycles * weights : 0) + 3000;
  const double pack =
      p.prepacked || plan.own_weights ? 0 : all * (kPackCycles + (far ? sizeof(A) / kLastCacheRate : 0));
  const int64_t items = winograd_blocks(p, plan) * p.G * plan.k_splits;
  return static_cast<double>(plan.rounds) *
             (static_cast<double>(ceil_div(items, p.threads)) * item + (pack > 0 ? kRegionCycles : 0)) +
         pack / p.threads;
}

// Of one in stages.
template <class A>
double winograd_staged_total(const ConvParams& p, const WinogradPlan& plan) {
  constexpr int L = kLanes<A>;
  constexpr double kBetweenRate = 12;
  const double tiles = static_cast<double>(plan.tiles), blocks = static_cast<double>(winograd_blocks(p, plan));
  const double c = static_cast<double>(plan.c_padded), k = static_cast<double>(plan.k_blocks * plan.k_block);
  const double rounds = static_cast<double>(plan.rounds);
  const double products =
      kProducts * c * static_cast<double>(plan.k_blocks) * winograd_tile_cycles(plan, p.halved ? 1.1 : 0.6);
  const double reads = kProducts * c * k * sizeof(A) / kLastCacheRate;
  // How often patches are made and weights are transformed, and how often sums are read or written.
  const double fills = plan.by_channels || blocks == 1 ? 1 : rounds;
  const double packs = p.prepacked ? 0 : plan.by_channels && rounds > 1 ? blocks : 1;
  const double visits = plan.by_channels ? 2 * rounds : 2;
  const double patches = fills * (kTransformCycles * c / L + winograd_moves(p, static_cast<double>(p.C)));
  const double outputs = kTransformCycles * k / L + winograd_moves(p, static_cast<double>(p.K));
  // What lies between the steps goes to the last cache and comes back.
  const double between = kProducts * (2 * fills * c + visits * k) * sizeof(A) / kBetweenRate;
  const double block = products + reads + tiles * (patches + outputs + between);
  const double pack = packs * kProducts * c * k * (kPackCycles + sizeof(A) / kLastCacheRate);
  return (blocks * block + pack) / p.threads + 3 * blocks * rounds * kRegionCycles;
}

// Estimated cycles, after measurements on a few layers.
template <class A>
double winograd_total(const ConvParams& p, const WinogradPlan& plan) {
  return plan.staged ? winograd_staged_total<A>(p, plan) : winograd_blocks_total<A>(p, plan);
}

// Elements of an image and of its outputs.
inline int64_t winograd_image(const ConvParams& p) { return p.G * (p.C * p.H * p.W + p.K * p.P * p.Q); }

// How many images are turned to channels_last together; 0 where none is. What has been packed without a residual is
// used with one. Every second column is read by registers, so that it costs more to turn.
inline int64_t winograd_turns(const ConvParams& p) {
  const bool turns = p.dilation_w > 2 && p.input.w == 1 && p.output.w == 1;
  return turns ? min64(p.N, kTurnedBytes / (winograd_image(p) * p.element_size())) : 0;
}

// The images turned round in scratch, and the layer that reads and writes them. A residual lies where the output will,
// of which every element is written once, after its own residual has been read.
template <class T>
struct WinogradTurned {
  ConvParams params;
  int64_t total;

  WinogradTurned(const ConvParams& p, void* scratch) : params(p) {
    params.N = winograd_turns(p);
    Carver carve(scratch);
    T* input = carve.take<T>(params.N * p.G * p.C * p.H * p.W);
    T* output = carve.take<T>(params.N * p.G * p.K * p.P * p.Q);
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
  const int64_t lattices = p.N * min64(p.P, p.dilation_h) * min64(p.Q, p.dilation_w);
  const int64_t most = channel_pixels(channel_vectors<A>(p));
  double best_total = 0;
  const auto take = [&](const WinogradPlan& plan) {
    const double total = winograd_total<A>(p, plan);
    if (best_total != 0 && total >= best_total) return;
    best = plan;
    best_total = total;
  };
  const auto consider = [&](int64_t parts, int64_t rows, int64_t columns, int64_t limit) {
    for (int64_t splits = 1; splits <= p.threads; splits *= 2)
      for (bool own_weights : {false, true}) {
        if (own_weights && p.prepacked) continue;
        const WinogradPlan plan = winograd_plan_for<A>(p, parts, rows, columns, splits, own_weights);
        if (kProducts * (plan.plane + plan.product) * kSize <= limit) take(plan);
      }
  };
  for (int64_t limit : {kWinogradBytes, 8 * kWinogradBytes}) {
    // Blocks as wide as the image if some number of rows fits.
    for (int64_t columns = tiles_w; columns > 0 && best_total == 0; columns = columns > 1 ? ceil_div(columns, 2) : 0)
      for (int64_t rows = tiles_h; rows > 0; rows = rows > 1 ? ceil_div(tiles_h, ceil_div(tiles_h, rows - 1)) : 0)
        consider(1, rows, columns, limit);
    // Lattices for one, two or four register tiles, so that few numbers are looked at.
    int64_t last = 1;
    for (int64_t tiles : {most, 2 * most, 4 * most}) {
      const int64_t parts = min64(lattices, tiles / (tiles_h * tiles_w));
      if (parts > last) consider(parts, tiles_h, tiles_w, limit);
      last = max64(last, parts);
    }
    if (best_total != 0) break;
  }
  if (p.G == 1 && p.C * p.K * kProducts * kSize >= kStagedWeightBytes) {
    const int64_t columns = tile_columns(tiles_w, kPartTiles), rows = tile_columns(tiles_h, kPartTiles / columns);
    for (bool by_channels : {false, true}) {
      if (by_channels && p.prepacked) continue;
      const auto plan_of = [&](int64_t parts) {
        return winograd_plan_for<A>(p, parts, rows, columns, 1, false, true, by_channels);
      };
      // As many parts as fit, evenly.
      const WinogradPlan one = plan_of(1);
      const int64_t weight_bytes = p.prepacked ? 0 : one.round_blocks * kProducts * one.weight * kSize;
      if (weight_bytes > kThreadBytes) continue;
      const int64_t part_bytes = kProducts * (one.plane + one.round_blocks * one.product) * kSize;
      const int64_t fit = (p.threads * kThreadBytes - max64(weight_bytes, kRoundBytes)) / part_bytes,
                    all = winograd_parts(p, one);
      if (fit > 0) take(plan_of(ceil_div(all, ceil_div(all, fit))));
    }
  }
  return best_total != 0;
}

// Cycles that a vector of multiply-adds takes in `channel`. (With one vector of output channels each loads an input
// value of its own: 0.6 all the same, where groups of 16 channels at 14x14 took 0.21 ms and here 0.46.)
inline double direct_cycles(const ConvParams& p) { return p.halved ? 1.1 : 0.58; }

// The share of a kernel axis' taps that read the image, of all outputs together: the others are left out.
inline double live_share(int64_t outputs, int64_t taps, int64_t dilation, int64_t pad, int64_t size) {
  int64_t live = 0;
  for (int64_t r = 0; r < taps; ++r) {
    const Range served = served_outputs(0, outputs, 1, r * dilation - pad, size);
    live += served.end - served.begin;
  }
  return static_cast<double>(live) / static_cast<double>(outputs * taps);
}

// Whether the transforms, and weights that are four times as large, cost less than the multiplications they save, of
// which a vector takes `direct` cycles.
inline bool winograd_pays(const ConvParams& p, double direct) {
  WinogradPlan plan;
  if (p.C < 16 || p.K < 16 || !winograd_plan<float>(p, plan)) return false;
  const int64_t vectors = ceil_div(p.K, kLanes<float>);
  direct *= static_cast<double>(p.N * p.G * p.P * p.Q) * 9 * static_cast<double>(p.C * vectors);
  if (can_segment(p))  // in short runs of columns
    direct *= 1.2 * live_share(p.P, 3, p.dilation_h, p.pad_h, p.H) * live_share(p.Q, 3, p.dilation_w, p.pad_w, p.W);
  // Weights are packed for either.
  if (!p.prepacked) direct += static_cast<double>(p.G * p.K * p.C * 9);
  // An element takes a cycle to be turned.
  const int64_t turned = winograd_turns(p);
  const double each = winograd_total<float>(winograd_seen(p), plan);
  const double total = turned ? each * static_cast<double>(p.N) / static_cast<double>(turned) +
                                    static_cast<double>(p.N * winograd_image(p) / p.threads)
                              : each;
  return total < 0.95 * direct / p.threads;
}

}  // namespace
}  // namespace fastconv
