// Winograd's minimal filtering F(4x4, 3x3) for dense 3x3 layers of stride 1, computed in float32: 4x4 outputs from 6x6
// inputs by 36 multiplications for each pair of channels, where the definition takes 144. (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", 2016, with the interpolation points 0, 1, -1, 2, -2.)
//
// A block of tiles at a time: the input, packed with 16 channels of a pixel side by side, is transformed into 36
// matrices of [tile, channel]; each is multiplied with the transformed weights by the register tile of channel_tile.h;
// and the products of a few output channels are transformed back. What lies between the steps stays in the second-level
// cache.
//
// Parts. A block is a rectangle of tiles of one image, or several whole images where those have few tiles: the weights,
// four times as large as the layer's, are read for each block. (64 a group, 2048 channels at 7x7, 8 images, contiguous,
// two threads: 6.9 ms an image at a time, 3.0 together.)
//
// Stages. The weights of many channels do not stay in the second level, and every block would read them from afar: 38
// MB for 512 by 512. There a block is as large as memory allows, and the threads do each step of it together: they
// share out the channels to be transformed, then the 36 matrices to be multiplied, so that each weight is read once,
// then the outputs. What lies between the steps goes to the last cache. Rounds, where the weights do not fit either,
// are of output channels, or of input channels where the patches would be transformed anew for each. (512 channels,
// contiguous, two threads: at 28x28 10.2 -> 5.8 ms, at 14x14, 8 images, 22.6 -> 12.9, at 65x65 of dilation 4 59 -> 38.)
//
// Dilation. Outputs whose positions are equal modulo the dilation read inputs whose positions are, so a convolution of
// dilation d is d * d ordinary ones between lattices of the tensors, which are images as well. Those of contiguous
// tensors are read and written one value at a time, so that small images are turned to channels_last first, and back:
// 25 channels at 64x128 of dilation 4, two threads, 0.57 -> 0.44 ms.
#pragma once
#include "conv/layout.h"
#include "conv/winograd_transform.h"

namespace fastconv {
namespace {

struct WinogradScratch {
  float* bias;
  float* zeros;
  float* weights;             // of a round
  float *patches, *products;  // of all threads, where there are stages
  WinogradPart* parts;        // likewise
  char* threads;
  int64_t thread_bytes, total;

  WinogradScratch(const ConvParams& p, const WinogradPlan& plan, void* scratch) {
    constexpr int L = kLanes<float>;
    Carver carve(scratch);
    bias = carve.take<float>(p.G * plan.k_blocks * plan.k_block);
    zeros = carve.take<float>(plan.k_block);
    weights = carve.take<float>(plan.rounds > 1 ? winograd_weight_elements(p, plan) : 0);
    patches = carve.take<float>(plan.staged ? kProducts * plan.plane : 0);
    products = carve.take<float>(plan.staged ? plan.round_blocks * kProducts * plan.product : 0);
    parts = carve.take<WinogradPart>(plan.staged ? plan.parts : 0);
    const int64_t of_block = kProducts * (plan.plane + plan.product) + plan.weight_elements;
    const int64_t elements = plan.g.channel * L + plan.acc_elements + (plan.staged ? 0 : of_block) + 16 * L;
    thread_bytes = round_up(elements * static_cast<int64_t>(sizeof(float)), 64) + 256 +
                   round_up(plan.staged ? 0 : plan.parts * static_cast<int64_t>(sizeof(WinogradPart)), 64);
    threads = carve.take<char>(thread_bytes * p.threads);
    total = carve.used();
  }
};

// products[tile][k_block] (+)= patches[tile][channel] * weights[channel][k_block], one of the 36; from zeros where they
// are given.
inline void winograd_multiply(const WinogradPlan& plan, const float* patches, int64_t tiles, int64_t channels,
                              const float* weights, const float* zeros, float* products) {
  constexpr int L = kLanes<float>;
  const Tap tap = {0, 0};
  const int64_t chunks = ceil_div(tiles, channel_pixels(plan.kv));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t from = tiles * chunk / chunks, end = tiles * (chunk + 1) / chunks;
    channel_micro_of<float>(plan.kv, Source::kPacked, static_cast<int>(end - from))(
        patches + from * L, plan.tiles, L, channels, {&tap, 1, 1, 1}, weights, L * plan.k_block, zeros,
        products + from * plan.k_block, plan.k_block, nullptr);
  }
}

// The output channels of one round, `weights` being theirs, a block of tiles at a time.
template <class T>
void winograd_round(const ConvParams& p, const WinogradPlan& plan, int64_t round, const float* weights,
                    const WinogradScratch& memory) {
  constexpr int L = kLanes<float>;
  const int64_t group_k = plan.k_blocks * plan.k_block, first_of_round = round * plan.round_blocks;
  const int64_t round_end = min64(plan.k_blocks, first_of_round + plan.round_blocks);
  const int64_t blocks = winograd_blocks(p, plan);
  compute_for(p.threads, blocks * p.G * plan.k_splits, [&](int64_t item, int thread) {
    Carver carve(memory.threads + thread * memory.thread_bytes);
    float* patches = carve.take<float>(kProducts * plan.plane);
    float* products = carve.take<float>(kProducts * plan.product);
    float* acc = carve.take<float>(plan.acc_elements);
    float* own_weights = carve.take<float>(plan.weight_elements);
    float* x = carve.take<float>(plan.g.channel * L);
    WinogradPart* parts = carve.take<WinogradPart>(plan.parts);
    // All blocks come with the same weights, one split of a group's, before the next.
    const int64_t split = item / (blocks * p.G), g = item / blocks % p.G;
    const int64_t first_block = first_of_round + split * plan.k_range;
    const int64_t end_block = min64(first_block + plan.k_range, round_end);
    const int64_t count = winograd_parts_of(p, plan, item % blocks, parts);
    if (count == 0) return;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < p.C; c += L)
        winograd_fill<T>(plan, parts[i], g, c, x, patches + c * plan.tiles + i * plan.part_tiles * L);
    for (int64_t b = first_block; b < end_block; ++b) {
      const int64_t of_round = (g * plan.round_blocks + b - first_of_round) * kProducts * plan.weight;
      const float* of_block = plan.own_weights ? own_weights : weights + of_round;
      for (int64_t c0 = 0; c0 < p.C; c0 += plan.c_pass) {
        const int64_t channels = min64(plan.c_pass, p.C - c0);
        for (int64_t c = 0; plan.own_weights && c < channels; c += kWinogradPack)
          winograd_pack_channels<T>(p, plan, g, b, c0 + c, channels - c, own_weights + c * plan.k_block);
        for (int64_t i = 0; i < kProducts; ++i)
          winograd_multiply(plan, patches + i * plan.plane + c0 * plan.tiles, count * plan.part_tiles, channels,
                            of_block + i * plan.weight, c0 == 0 ? memory.zeros : nullptr, products + i * plan.product);
      }
      for (int64_t i = 0; i < count; ++i)
        winograd_store<T>(plan, parts[i], products + i * plan.part_tiles * plan.k_block, g, b,
                          memory.bias + g * group_k + b * plan.k_block, acc);
    }
  });
}

// The input channels from c0 of a block of `count` parts, by k_blocks of output channels from first_block, in stages:
// threads share out the channels to be transformed, then the 36 products, then the outputs.
template <class T>
void winograd_stages(const ConvParams& p, const WinogradPlan& plan, int64_t count, int64_t c0, int64_t channels,
                     int64_t first_block, int64_t k_blocks, bool filled, const float* weights,
                     const WinogradScratch& memory) {
  constexpr int L = kLanes<float>;
  const int64_t c_blocks = ceil_div(channels, L);
  const auto own = [&](int thread) { return reinterpret_cast<float*>(memory.threads + thread * memory.thread_bytes); };
  compute_for(p.threads, filled ? 0 : count * c_blocks, [&](int64_t item, int thread) {
    const int64_t i = item / c_blocks, c = item % c_blocks * L;
    winograd_fill<T>(plan, memory.parts[i], 0, c0 + c, own(thread),
                     memory.patches + c * plan.tiles + i * plan.part_tiles * L);
  });
  compute_for(p.threads, kProducts * k_blocks, [&](int64_t item, int) {
    const int64_t i = item / k_blocks, b = item % k_blocks;
    winograd_multiply(plan, memory.patches + i * plan.plane, count * plan.part_tiles, channels,
                      weights + (b * kProducts + i) * plan.weight, c0 == 0 ? memory.zeros : nullptr,
                      memory.products + (b * kProducts + i) * plan.product);
  });
  compute_for(p.threads, c0 + channels < p.C ? 0 : count * k_blocks, [&](int64_t item, int thread) {
    const int64_t i = item / k_blocks, b = item % k_blocks;
    winograd_store<T>(plan, memory.parts[i],
                      memory.products + b * kProducts * plan.product + i * plan.part_tiles * plan.k_block, 0,
                      first_block + b, memory.bias + (first_block + b) * plan.k_block, own(thread));
  });
}

template <class T>
void winograd_staged(const ConvParams& p, const WinogradPlan& plan, const void* packed, const WinogradScratch& memory) {
  const int64_t blocks = winograd_blocks(p, plan);
  const float* weights = plan.rounds > 1 ? memory.weights : static_cast<const float*>(packed);
  const int64_t k_rounds = plan.by_channels ? 1 : plan.rounds, c_rounds = plan.by_channels ? plan.rounds : 1;
  for (int64_t k = 0; k < k_rounds; ++k) {
    if (k_rounds > 1) winograd_pack<T>(p, plan, k, memory.weights);
    const int64_t first_block = k * plan.round_blocks;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t count = winograd_parts_of(p, plan, block, memory.parts);
      for (int64_t c = 0; c < c_rounds; ++c) {
        if (c_rounds > 1) winograd_pack<T>(p, plan, c, memory.weights);
        const int64_t c0 = c * plan.c_pass;
        // The patches of an only block serve all rounds of output channels.
        winograd_stages<T>(p, plan, count, c0, min64(plan.c_pass, p.C - c0), first_block,
                           min64(plan.k_blocks - first_block, plan.round_blocks), k > 0 && blocks == 1, weights,
                           memory);
      }
    }
  }
}

template <class T>
void winograd_forward(const ConvParams& p, const WinogradPlan& plan, const void* packed, void* scratch) {
  const WinogradScratch memory(p, plan, scratch);
  const int64_t group_k = plan.k_blocks * plan.k_block;
  padded_bias<T>(p, group_k, memory.bias);
  zero(memory.zeros, plan.k_block);
  if (plan.staged) return winograd_staged<T>(p, plan, packed, memory);
  for (int64_t round = 0; round < plan.rounds; ++round) {
    if (plan.rounds > 1) winograd_pack<T>(p, plan, round, memory.weights);
    winograd_round<T>(p, plan, round, plan.rounds > 1 ? memory.weights : static_cast<const float*>(packed), memory);
  }
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
      for (int64_t n = 0; n < p.N; n += turned.params.N) {
        ConvParams q = turned.params;
        q.N = min64(q.N, p.N - n);
        const auto from = [&](const View4& view, const void* data) {
          View4 moved = view;
          moved.data = static_cast<T*>(const_cast<void*>(data)) + n * view.n;
          return moved;
        };
        turn_layout<T>(q.input, from(p.input, p.input.data), q.N, p.G * p.C, p.H, p.W, p.threads);
        if (p.residual) turn_layout<T>(q.output, from(p.output, p.residual), q.N, p.G * p.K, p.P, p.Q, p.threads);
        winograd_forward<T>(q, plan, packed, static_cast<char*>(scratch) + turned.total);
        turn_layout<T>(from(p.output, p.output.data), q.output, q.N, p.G * p.K, p.P, p.Q, p.threads);
      }
    }
  }
};

}  // namespace
}  // namespace fastconv
