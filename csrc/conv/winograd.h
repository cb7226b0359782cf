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
#include "conv/layout.h"
#include "conv/winograd_transform.h"

namespace fastconv {
namespace {

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
