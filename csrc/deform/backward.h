// The gradients of deformable convolution, all of them in one pass over the samples.
//
// An item of work is a block of channels of some images, with a map of its own for what goes back to the input: no two
// threads write to one place, sums do not depend on how many threads there are, and nothing is atomic. For each tile of
// pixels of the output it multiplies the gradient by the weights of its channels, which is what each sample should have
// been more; adds that to the four pixels of the input around the sample; multiplies it with what these pixels hold,
// which says how the sample changes with its offset and its mask; and multiplies the samples themselves by the gradient
// of the output, which is the gradient of the weights.
//
// Where there are no weights (deform_sample2d) the gradient of the output is that of every sample.
//
// Offsets and masks belong to all channels of an offset group, weights to all images: blocks and some of the images
// have sums of their own, which are added up at the end.
#pragma once
#include "deform/forward.h"

namespace fastconv {
namespace {

constexpr int64_t kMapBytes = 8 << 20;          // of a block of channels of an image
constexpr int64_t kGradPixels = 48;             // of a tile
constexpr int64_t kPartBytes = 32 << 20;        // of all sums of offsets and masks
constexpr int64_t kWeightPartBytes = 16 << 20;  // of all sums of weights

// The sums of the lanes of four vectors.
template <class A>
inline void sum_four(const Vec<A>* v, A* sums) {
  constexpr int L = kLanes<A>;
  if constexpr (L < 4) {
    for (int i = 0; i < 4; ++i) sums[i] = sum_lanes<A>(v[i]);
  } else {
    constexpr auto all = std::make_integer_sequence<int, L>{};
    const Vec<A> first = even_lanes(v[0], v[1], all) + odd_lanes(v[0], v[1], all);
    const Vec<A> second = even_lanes(v[2], v[3], all) + odd_lanes(v[2], v[3], all);
    Vec<A> sum = even_lanes(first, second, all) + odd_lanes(first, second, all);
    for (int left = L; left > 4; left /= 2) sum = even_lanes(sum, sum, all) + odd_lanes(sum, sum, all);
    for (int i = 0; i < 4; ++i) sums[i] = sum[i];
  }
}

template <class T>
struct DeformBackward {
  using A = Accumulate<T>;
  static constexpr int L = kLanes<A>;
  const DeformParams& p;
  const int64_t taps = p.R * p.S, C = p.C / p.groups, of_offset = p.C / p.offset_groups;
  const int64_t positions = p.H * p.W, pixels = p.P * p.Q;
  const int64_t width = block_channels();  // most channels of a block, in memory always so many
  const int64_t K = p.weight ? p.K / p.groups : width;
  const int64_t row = round_up(taps * width, kTileColumns<A>);
  const int64_t grad_row = round_up(K, 16) + 16;
  const int64_t tile =
      min64(pixels, max64(1, min64(kGradPixels, kPlanBytes / (taps * static_cast<int64_t>(sizeof(Sample<A>))))));
  const bool samples_wanted = p.grad_input || p.grad_offset || p.grad_mask;
  const int64_t blocks = count_blocks();
  const int64_t batch = max64(1, min64(p.N, kPartBytes / (blocks * part_size() * int64_t{sizeof(A)})));  // images
  const int64_t shares = max64(1, min64(batch, kWeightPartBytes / (blocks * K * row * int64_t{sizeof(A)})));
  int64_t* first;  // [blocks + 1], channels
  A *weights, *grad_weights, *parts;
  A *maps, *grad_maps, *grads, *grad_samples, *seen;
  char* plans;

  DeformBackward(const DeformParams& params, Memory& memory) : p(params) {
    first = memory.take<int64_t>(blocks + 1);
    weights = memory.take<A>(p.weight && samples_wanted ? blocks * K * row : 0);
    grad_weights = memory.take<A>(p.grad_weight ? shares * blocks * K * row : 0);
    parts = memory.take<A>(p.grad_offset || p.grad_mask ? batch * blocks * part_size() : 0);
    maps = memory.take<A>(p.threads * positions * width);
    grad_maps = memory.take<A>(p.grad_input ? p.threads * positions * width : 0);
    grads = memory.take<A>(p.threads * tile * grad_row);
    grad_samples = memory.take<A>(p.weight ? p.threads * tile * row : 0);
    seen = memory.take<A>(p.grad_weight ? p.threads * tile * row : 0);
    plans = memory.take<char>(p.threads * plan_bytes());
  }

  void run() const {
    first[0] = 0;
    for (int64_t i = 0; i < blocks; ++i) first[i + 1] = next_channel(first[i]);
    if (p.weight && samples_wanted) pack();
    if (p.grad_weight)
      parallel_for(p.threads, shares * blocks * K, [&](int64_t i, int) { zero(grad_weights + i * row, row); });
    for (int64_t n = 0; n < p.N; n += batch) {
      const int64_t images = min64(batch, p.N - n);
      compute_for(p.threads, shares * blocks, [&](int64_t item, int thread) {
        const int64_t share = item / blocks, block = item % blocks;
        for (int64_t i = images * share / shares; i < images * (share + 1) / shares; ++i)
          image(n + i, i, share, block, thread);
      });
      if (p.grad_offset || p.grad_mask) add_offsets(n, images);
    }
    if (p.grad_weight) add_weights();
  }

 private:
  int64_t block_channels() const {
    const int64_t one = round_up(min64(min64(p.C / p.groups, p.C / p.offset_groups), kMapChannels), L);
    int64_t most = one;
    while (most > L && p.H * p.W * most * static_cast<int64_t>(sizeof(A)) > kMapBytes) most = round_up(most / 2, L);
    return most;
  }
  // Blocks end where a group does.
  int64_t next_channel(int64_t c) const {
    return min64(c + width, min64((c / C + 1) * C, (c / of_offset + 1) * of_offset));
  }
  int64_t count_blocks() const {
    int64_t count = 0;
    for (int64_t c = 0; c < p.C; c = next_channel(c)) ++count;
    return count;
  }
  int64_t plan_bytes() const { return round_up(Plan<T>::bytes(p, Plan<T>::round(tile)), 64); }
  int64_t part_size() const { return 3 * p.R * p.S * p.P * p.Q; }
  A* part(int64_t i, int64_t block, int64_t tap) const {
    return parts + (i * blocks + block) * part_size() + tap * 3 * pixels;  // [3, pixels]: y, x, mask
  }

  // weights: [block][k][tap][width], the other channels zero.
  void pack() const {
    parallel_for(p.threads, blocks * K, [&](int64_t item, int) {
      const int64_t block = item / K, g = first[block] / C, channels = first[block + 1] - first[block];
      const T* from = static_cast<const T*>(p.weight) + ((g * K + item % K) * C + first[block] - g * C) * taps;
      A* to = weights + item * row;
      zero(to, row);
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t c = 0; c < channels; ++c) to[t * width + c] = get(from + c * taps + t);
    });
  }

  // One image, `i` of its batch, for a block of channels.
  void image(int64_t n, int64_t i, int64_t share, int64_t block, int thread) const {
    const int64_t c = first[block], channels = first[block + 1] - c, g = c / C;
    A *map = maps + thread * positions * width, *grad_map = nullptr;
    const T* input = static_cast<const T*>(p.input) + n * p.C * positions;
    if (channels < width) zero(map, positions * width);
    if (p.channels_last)
      for (int64_t at = 0; at < positions; ++at) copy_row(map + at * width, input + at * p.C + c, channels);
    else
      transpose_block(map, width, 1, input + c * positions, positions, 1, channels, positions);
    if (p.grad_input) zero(grad_map = grad_maps + thread * positions * width, positions * width);
    for (int64_t from = 0; from < pixels; from += tile) {
      const int64_t count = min64(tile, pixels - from);
      const A* grad =
          p.weight ? take_grads(n, g * K, K, from, count, thread) : take_grads(n, c, channels, from, count, thread);
      const Plan<T> plan = {p, Plan<T>::round(tile), plans + thread * plan_bytes()};
      plan.locate(from, count);
      plan.fill(n, c / of_offset, from, count);
      A *wanted = grad_samples + thread * tile * row, *here = seen + thread * tile * row;
      if (p.weight && samples_wanted)
        multiply<A>({grad, grad_row, 1, weights + block * K * row, row, wanted, row, K, false}, count, row);
      A* to = p.grad_offset || p.grad_mask ? part(i, block, 0) + from : nullptr;
      for (int64_t o = 0; o < count; ++o) {
        const Sample<A>* tap = plan.pixel(o);
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t at = o * row + t * width;
          look(tap[t], channels, map, grad_map, p.weight ? wanted + at : grad + o * grad_row,
               p.grad_weight ? here + at : nullptr, to ? to + t * 3 * pixels + o : nullptr);
        }
      }
      if (p.grad_weight) {
        if (taps * width < row)
          for (int64_t o = 0; o < count; ++o) zero(here + o * row + taps * width, row - taps * width);
        A* to = grad_weights + (share * blocks + block) * K * row;
        multiply<A>({grad, 1, grad_row, here, row, to, row, count, true}, K, row);
      }
    }
    if (p.grad_input) {
      T* to = static_cast<T*>(p.grad_input) + n * p.C * positions;
      if (p.channels_last)
        for (int64_t at = 0; at < positions; ++at) copy_row(to + at * p.C + c, grad_map + at * width, channels);
      else
        transpose_block(to + c * positions, positions, 1, grad_map, width, 1, positions, channels);
    }
  }

  // The gradient of the output in some channels at the pixels of a tile, a row for each of them.
  const A* take_grads(int64_t n, int64_t k, int64_t channels, int64_t from, int64_t count, int thread) const {
    A* to = grads + thread * tile * grad_row;
    const T* output = static_cast<const T*>(p.output) + n * p.K * pixels;
    if (channels < K) zero(to, count * grad_row);
    if (!p.channels_last)
      transpose_block(to, grad_row, 1, output + k * pixels + from, pixels, 1, channels, count);
    else
      for (int64_t i = 0; i < count; ++i) copy_row(to + i * grad_row, output + (from + i) * p.K + k, channels);
    return to;
  }

  static int lanes(int64_t left) { return left < 0 ? 0 : static_cast<int>(left); }

  // One sample in a block of channels. `wanted`: the gradient of it. What is seen goes to `here`, the gradients of its
  // offset and mask to `part`, `pixels` elements apart, what belongs to the input to `grad_map`: each, or nullptr.
  void look(const Sample<A>& s, int64_t channels, const A* map, A* grad_map, const A* wanted, A* here, A* part) const {
    if (!s.inside) {
      if (here) zero(here, width);
      if (part) part[0] = part[pixels] = part[2 * pixels] = 0;
      return;
    }
    const A* corner[4];
    Vec<A> weight[4], dot[4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      corner[i] = map + s.at[i] * width;
      weight[i] = splat(s.weight[i]);
    }
    for (int64_t c = 0; c < width; c += L) {
      const Vec<A> v[4] = {load(corner[0] + c), load(corner[1] + c), load(corner[2] + c), load(corner[3] + c)};
      if (here) store(here + c, weight[0] * v[0] + weight[1] * v[1] + weight[2] * v[2] + weight[3] * v[3]);
      if (!part) continue;
      // Beyond the channels may be the product of an infinite gradient and a weight of zero.
      const Vec<A> d = c + L <= channels ? load(wanted + c) : load_partial(wanted + c, lanes(channels - c));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) dot[i] += d * v[i];
    }
    if (grad_map)
      for (int i = 0; i < 4; ++i) {
        if (!(s.inside & 1 << i)) continue;
        A* to = grad_map + s.at[i] * width;
        for (int64_t c = 0; c < width; c += L) store(to + c, load(to + c) + weight[i] * load(wanted + c));
      }
    if (!part) return;
    A d[4];
    sum_four<A>(dot, d);
    for (int i = 0; i < 4; ++i) d[i] = s.inside & 1 << i ? d[i] : 0;
    part[0] = s.mask * ((d[2] - d[0]) * (1 - s.x) + (d[3] - d[1]) * s.x);
    part[pixels] = s.mask * ((d[1] - d[0]) * (1 - s.y) + (d[3] - d[2]) * s.y);
    part[2 * pixels] = (d[0] * (1 - s.x) + d[1] * s.x) * (1 - s.y) + (d[2] * (1 - s.x) + d[3] * s.x) * s.y;
  }

  void add_offsets(int64_t n, int64_t images) const {
    parallel_for(p.threads, images * p.offset_groups * taps, [&](int64_t item, int) {
      const int64_t t = item % taps, g = item / taps % p.offset_groups, i = item / taps / p.offset_groups;
      int64_t begin = 0;
      while (first[begin] < g * of_offset) ++begin;
      A* sum = part(i, begin, t);
      for (int64_t block = begin + 1; block < blocks && first[block] < (g + 1) * of_offset; ++block) {
        const A* other = part(i, block, t);
        for (int64_t at = 0; at < 3 * pixels; ++at) sum[at] += other[at];
      }
      const int64_t channel = g * taps + t;
      if (p.grad_offset) {
        put_row(p.grad_offset, p.offset, n + i, 2 * channel, sum);
        put_row(p.grad_offset, p.offset, n + i, 2 * channel + 1, sum + pixels);
      }
      if (p.grad_mask) put_row(p.grad_mask, p.mask, n + i, channel, sum + 2 * pixels);
    });
  }
  void put_row(void* data, const DeformMap& map, int64_t n, int64_t channel, const A* from) const {
    T* to = static_cast<T*>(data) + n * map.image + channel * map.channel;
    for (int64_t i = 0; i < pixels; ++i) put(to + i * map.pixel, from[i]);
  }

  void add_weights() const {
    parallel_for(p.threads, blocks * K, [&](int64_t item, int) {
      const int64_t block = item / K, g = first[block] / C, channels = first[block + 1] - first[block];
      A* sum = grad_weights + item * row;
      for (int64_t share = 1; share < shares; ++share) {
        const A* other = grad_weights + (share * blocks * K + item) * row;
        for (int64_t i = 0; i < row; ++i) sum[i] += other[i];
      }
      T* to = static_cast<T*>(p.grad_weight) + ((g * K + item % K) * C + first[block] - g * C) * taps;
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t t = 0; t < taps; ++t) put(to + c * taps + t, sum[t * width + c]);
    });
  }
};

}  // namespace
}  // namespace fastconv
