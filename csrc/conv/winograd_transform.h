// The three transforms of Winograd's F(4x4, 3x3), each with the copies before or after it: input into matrices, weights
// into matrices, products into outputs.
#pragma once
#include "conv/winograd_plan.h"

namespace fastconv {
namespace {

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

// Input channels whose weights are packed together: a cache line of them where these lie side by side. (A line is two
// vectors of AVX2. Read one by one, the second found the line gone: 3x3, 512 to 1024 channels at 19x19, channels_last.)
constexpr int64_t kWinogradPack = max64(kLanes<float>, kCacheLine / static_cast<int64_t>(sizeof(float)));

// Weights of up to so many input channels from c0, whole vectors, and one block of output channels, as
// to[product][c][k_block].
template <class T>
void winograd_pack_channels(const ConvParams& p, const WinogradPlan& plan, int64_t g, int64_t block, int64_t c0,
                            int64_t channels, float* to) {
  constexpr int64_t L = kLanes<float>;
  alignas(64) float weights[9 * kWinogradPack * 3 * L];
  const int64_t count = min64(kWinogradPack, round_up(channels, L));
  channel_pack<T>(p, plan.k_block, g, block * plan.k_block, c0, count, weights);
  for (int64_t c = 0; c < count; c += L) winograd_weights(plan, weights + c * 9 * plan.k_block, to + c * plan.k_block);
}

// Weights of a round as to[group][k block][product][c][k_block].
template <class T>
void winograd_pack(const ConvParams& p, const WinogradPlan& plan, int64_t round, float* packed) {
  const int64_t first_k = plan.by_channels ? 0 : round * plan.round_blocks;
  const int64_t first_c = plan.by_channels ? round * plan.c_pass : 0;
  const int64_t channels = min64(plan.c_pass, p.C - first_c), blocks_c = ceil_div(channels, kWinogradPack);
  compute_for(p.threads, p.G * plan.round_blocks * blocks_c, [&](int64_t item, int) {
    const int64_t block = item / blocks_c, c = item % blocks_c * kWinogradPack;
    const int64_t g = block / plan.round_blocks, k = first_k + block % plan.round_blocks;
    if (k < plan.k_blocks)
      winograd_pack_channels<T>(p, plan, g, k, first_c + c, channels - c,
                                packed + block * kProducts * plan.weight + c * plan.k_block);
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

// A part of a block.
struct WinogradPart {
  ConvParams params;  // of its lattice
  Tile tile;
};

// Those of block `block` that have outputs, and how many they are.
inline int64_t winograd_parts_of(const ConvParams& p, const WinogradPlan& plan, int64_t block, WinogradPart* parts) {
  const int64_t tiles = plan.g.h.tiles * plan.g.w.tiles, phases = plan.phases_h * plan.phases_w;
  const int64_t first = block * plan.parts, end = min64(first + plan.parts, winograd_parts(p, plan));
  int64_t count = 0;
  for (int64_t i = first; i < end; ++i) {
    const int64_t phase = i / tiles % phases;
    WinogradPart& part = parts[count];
    part.params = winograd_phase(p, phase / plan.phases_w, phase % plan.phases_w);
    part.tile = make_tile(part.params, plan.g, i / tiles / phases, i % tiles);
    count += part.tile.rows > 0 && part.tile.columns > 0;  // the last lattices may be a tile smaller
  }
  return count;
}

// L channels from c of a part to patches[product * plane + tile * L]; x is scratch.
template <class T>
void winograd_fill(const WinogradPlan& plan, const WinogradPart& part, int64_t g, int64_t c, float* x, float* patches) {
  constexpr int L = kLanes<float>;
  const ConvParams& p = part.params;
  const Tile whole = {part.tile.n, part.tile.p0, part.tile.q0, plan.g.h.tile, plan.g.w.tile};
  fill_packed<T>(p, plan.g, whole, g * p.C + c, min64(L, p.C - c), x);
  winograd_patches(plan, x, patches);
}

// Products of one part and a block of output channels to where its outputs belong; acc is scratch.
template <class T>
void winograd_store(const WinogradPlan& plan, const WinogradPart& part, const float* products, int64_t g, int64_t block,
                    const float* bias, float* acc) {
  constexpr int L = kLanes<float>;
  const ConvParams& p = part.params;
  const Tile& t = part.tile;
  const Finish<T> finish(p);
  const int64_t k0 = g * p.K + block * plan.k_block;
  for (int v = 0; v < plan.kv; ++v) {
    const Vec<float> of_vector = load(bias + v * L);
    if (plan.out_place) {
      T* to = at<T>(p.output, t.n, k0 + v * L, t.p0, t.q0);
      winograd_outputs(plan, t, products + v * L, of_vector, [&](int64_t row, int64_t column, Vec<float> y) {
        finish.store(to + row * p.output.h + column * p.output.w, y);
      });
    } else {
      winograd_outputs(plan, t, products + v * L, of_vector, [&](int64_t row, int64_t column, Vec<float> y) {
        store(acc + (row * t.columns + column) * plan.k_block + v * L, y);
      });
    }
  }
  if (!plan.out_place) store_packed<T>(p, t, k0, min64(plan.k_block, p.K - block * plan.k_block), acc, plan.k_block);
}

}  // namespace
}  // namespace fastconv
