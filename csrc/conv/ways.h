// The ways of a convolution turned round on the CPU (turn.h says what that is): as a product of matrices, as patches,
// as one run over the spread-out input or one for each residue. Which kernel serves each run is not known here.
#pragma once
#include <cstring>

#include "conv/turn.h"
#include "core/torch.h"

namespace fastconv {

// Memory for a kernel, as long as this lives.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
    if (bytes > 0) tensor_ = cpu_scratch(bytes);
  }
  char* get() const { return tensor_.defined() ? static_cast<char*>(tensor_.mutable_data_ptr()) : nullptr; }

 private:
  Tensor tensor_;
};

// Whether `p`, of spread_params(), is a product of matrices: of images of one pixel every output has one tap, and the
// weights of an input channel lie as the outputs of an image do.
inline bool is_product(const ConvParams& p) {
  const View4 &w = p.weight, &y = p.output;
  return p.H == 1 && p.W == 1 && p.G == 1 && p.C > 1 && p.input.c == 1 && p.R * p.S > 1 && p.P == p.R && p.Q == p.S &&
         p.dilation_h == 1 && p.dilation_w == 1 && p.pad_h == p.R - 1 && p.pad_w == p.S - 1 &&
         (p.K == 1 || w.n == y.c) && (p.R == 1 || w.h == -y.h) && (p.S == 1 || w.w == -y.w);
}

// As a 1x1 convolution whose pixels are the images and whose output channels are all the outputs of one; without a
// bias.
inline ConvParams product_params(const ConvParams& p) {
  ConvParams q = p;
  q.N = q.H = q.P = q.R = q.S = q.up_h = q.up_w = q.dilation_h = q.dilation_w = 1;
  q.W = q.Q = p.N;
  q.K = p.K * p.R * p.S;
  q.pad_h = q.pad_w = 0;
  q.input = {p.input.data, p.N * p.input.n, 1, p.N * p.input.n, p.input.n};
  q.output = {p.output.data, p.N * q.K, 1, p.N * q.K, q.K};
  q.weight = {static_cast<char*>(p.weight.data) + ((p.R - 1) * p.weight.h + (p.S - 1) * p.weight.w) * p.element_size(),
              1, p.weight.c, 1, 1};
  q.bias = nullptr;
  return q;
}

// The bias of that convolution: the one of `p` once for every pixel of as many outputs.
inline Memory product_bias(const ConvParams& p, int64_t rows, int64_t columns) {
  const int64_t size = p.element_size();
  Memory bias(p.bias ? p.K * rows * columns * size : 0);
  for (int64_t k = 0; p.bias && k < p.K; ++k)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t s = 0; s < columns; ++s)
        std::memcpy(bias.get() + (k * p.output.c + r * p.output.h + s * p.output.w) * size,
                    static_cast<const char*>(p.bias) + k * size, static_cast<size_t>(size));
  return bias;
}

// Whether all residues of an axis of spread_params() have as many taps, and every output has one that reads the input.
inline bool is_blocks(int64_t size, int64_t outputs, int64_t taps, int64_t up, int64_t dilation, int64_t pad) {
  const int64_t crop = taps - 1 - pad;  // outputs on the near side
  return taps % up == 0 && dilation == 1 && crop >= 0 && outputs + crop <= (size - 1) * up + taps;
}

// Whether the residues of a row fill vectors that the channels of `p`, of spread_params(), do not.
inline bool patches_fill(const ConvParams& p) {
  constexpr int64_t kLanes = 16;
  return p.up_w > 1 && p.K % kLanes != 0 && p.up_w * p.K >= kLanes;
}

// Whether `p`, of spread_params(), makes patches: what a pixel gives to a row of outputs, up_w columns of K channels,
// lies in channels_last side by side as its weights do, so that the columns' residues are so many more channels of a
// convolution whose pixels do not overlap, 1x1 where kernel and stride are the same. Vectors that K channels do not
// fill are filled by those of a row: 16x16 to 21 channels at 64x64, stride 8, float32, two threads of a Xeon 10.5
// -> 7.4 ms. The input is read once for each residue of the rows, which pays where caches keep it: 2x2, 1024 to 512 at
// 28x28 in bfloat16 5.5 -> 4.8 ms, 128 to 64 at 196x196 (9.8 MB) 6.1 -> 8.2.
inline bool is_patches(const ConvParams& p) {
  constexpr int64_t kMostInput = 4 << 20;  // bytes
  const View4 &w = p.weight, &y = p.output;
  const bool one_tap = p.R == p.up_h && p.S == p.up_w;
  return p.G == 1 && p.up_h * p.up_w > 1 && (one_tap || patches_fill(p)) &&
         (p.up_h == 1 || p.N * p.C * p.H * p.W * p.element_size() <= kMostInput) &&
         is_blocks(p.H, p.P, p.R, p.up_h, p.dilation_h, p.pad_h) &&
         is_blocks(p.W, p.Q, p.S, p.up_w, p.dilation_w, p.pad_w) && y.c == 1 && y.w == p.K && w.n == 1 &&
         (p.S == 1 || w.w == -p.K);
}

// Columns that one of those convolutions makes: from `first` on, the `width` neighbours of as many blocks of a stride.
struct Columns {
  int64_t first, width, blocks;
};

// From `first` on, of which there are `left`: whole blocks, or what there is of one that is cropped.
inline Columns columns_from(int64_t first, int64_t left, int64_t stride, int64_t pad) {
  const int64_t residue = (first + pad) % stride;
  if (residue == 0 && left >= stride) return {first, stride, left / stride};
  return {first, std::min(stride - residue, left), 1};
}

// The convolution of the first of these columns, with the channels of its neighbours as so many more; `p` as in
// transposed(). Without a bias.
inline ConvParams patches_params(const ConvParams& p, const Residue& h, const Columns& columns) {
  const Residue w = residue_of((columns.first + p.pad_w) % p.stride_w, p.W, p.S, p.stride_w, p.dilation_w, p.pad_w);
  ConvParams q = residue_params(p, h, w);
  q.K *= columns.width;
  q.Q = columns.blocks;
  q.pad_w -= (columns.first - w.begin) / p.stride_w;
  q.output.data = static_cast<char*>(q.output.data) + (columns.first - w.begin) * p.input.w * p.element_size();
  q.bias = nullptr;
  return q;
}

// Makes the rows of one residue; `p` as in transposed(). `rows` is where they go, if not into its input.
template <class Runs>
void run_patches(const ConvParams& p, const Residue& h, const Memory& bias, Runs& runs, const View4* rows = nullptr) {
  for (int64_t next = 0; h.positions > 0 && next < p.W;) {
    const Columns columns = columns_from(next, p.W - next, p.stride_w, p.pad_w);
    ConvParams patches = patches_params(p, h, columns);
    patches.bias = bias.get();
    if (rows) {
      patches.output.data = static_cast<char*>(rows->data) + columns.first * rows->w * p.element_size();
      patches.output.h = rows->h;
    }
    runs.run(patches);
    next += columns.width * columns.blocks;
  }
}

// A contiguous `p`, as in transposed(), that would make patches were it channels_last: an image at a time, its input
// turned, and its rows turned back a residue at a time, while caches have them. (The layer above, in multiples of
// PyTorch's time in channels_last: 1.22 -> 1.05 to 1.11.)
class TurnedPatches {
 public:
  explicit TurnedPatches(const ConvParams& p) : given_(p), p_(p) {
    p_.N = 1;
    p_.output = channels_last_view(nullptr, p.K, p.P, p.Q);
    p_.input = channels_last_view(nullptr, p.C, p.H, p.W);
    weight_turns_ = p.weight.c != 1;
    if (weight_turns_) p_.weight = channels_last_view(nullptr, p.C, p.R, p.S);
    rows_ = channels_last_view(nullptr, p.C, (p.H - 1) / p.stride_h + 1, p.W);
  }

  bool serves() const {
    const bool contiguous = given_.input.w == 1 && given_.output.w == 1 && (!weight_turns_ || given_.weight.w == 1);
    const ConvParams whole = spread_params(p_);
    return contiguous && whole.G == 1 && patches_fill(whole) && is_patches(whole) &&
           input_bytes() + weight_bytes() + rows_bytes() <= kMostBytes * given_.threads;
  }

  template <class Runs>
  void run(Runs& runs) {
    const Memory input(input_bytes()), weight(weight_bytes()), rows(rows_bytes());
    const ConvParams& g = given_;
    p_.output.data = input.get();
    rows_.data = rows.get();
    if (weight_turns_) {
      p_.weight.data = weight.get();
      runs.turn({p_.weight, g.weight, g.K, g.C, g.R, g.S, g.dtype, g.threads});
    }
    const Memory bias = product_bias(spread_params(p_), 1, p_.stride_w);
    for (int64_t n = 0; n < g.N; ++n) {
      runs.turn({p_.output, moved(g.output, n * g.output.n), 1, g.K, g.P, g.Q, g.dtype, g.threads});
      for (int64_t r = 0; r < g.stride_h; ++r) {
        const Residue h = residue_of(r, g.H, g.R, g.stride_h, g.dilation_h, g.pad_h);
        run_patches(p_, h, bias, runs, &rows_);
        View4 to = moved(g.input, n * g.input.n + h.begin * g.input.h);
        to.h *= g.stride_h;
        if (h.positions > 0) runs.turn({to, rows_, 1, g.C, h.positions, g.W, g.dtype, g.threads});
      }
    }
  }

 private:
  static constexpr int64_t kMostBytes = 16 << 20;  // a thread

  View4 moved(View4 view, int64_t elements) const {
    view.data = static_cast<char*>(view.data) + elements * given_.element_size();
    return view;
  }
  int64_t input_bytes() const { return p_.output.n * p_.element_size(); }
  int64_t weight_bytes() const { return weight_turns_ ? p_.K * p_.weight.n * p_.element_size() : 0; }
  int64_t rows_bytes() const { return rows_.n * p_.element_size(); }

  const ConvParams& given_;
  ConvParams p_;
  bool weight_turns_;
  View4 rows_;
};

// The outputs that no tap reaches are the bias alone; `p` as in transposed().
inline ConvParams nothing_params(const ConvParams& p) {
  ConvParams q = p;
  q.K = p.C;
  q.P = p.H;
  q.Q = p.W;
  q.R = q.S = 0;
  q.output = p.input;
  return q;
}

// The forward convolutions that `p` turned round comes down to, as in ConvOperators::transposed(), in order:
// `runs.run(params)` is told of each, `runs.turn(copy)` of copies between layouts, and `runs.try_run(params)` of one
// that need not be served; that is false where no kernel does. `runs.clear()` fills the output with zeros. Returns the
// name of the way.
template <class Runs>
const char* turn_round(const ConvParams& p, Runs& runs) {
  const ConvParams whole = spread_params(p);
  if (is_product(whole)) {
    Memory bias = product_bias(whole, whole.R, whole.S);
    ConvParams product = product_params(whole);
    product.bias = bias.get();
    runs.run(product);
    return "product";
  }
  if (is_patches(whole)) {
    const Memory bias = product_bias(whole, 1, whole.up_w);
    for (int64_t r = 0; r < p.stride_h; ++r)
      run_patches(p, residue_of(r, p.H, p.R, p.stride_h, p.dilation_h, p.pad_h), bias, runs);
    return "patches";
  }
  if (TurnedPatches turned(p); turned.serves()) {
    turned.run(runs);
    return "turned";
  }
  if (p.stride_h == 1 && p.stride_w == 1) {
    runs.run(whole);
    return "backwards";
  }
  if (runs.try_run(whole)) return "spread";
  // One convolution for each residue of the position modulo the strides.
  const int64_t rows = residues(p.R, p.stride_h, p.dilation_h), columns = residues(p.S, p.stride_w, p.dilation_w);
  if (rows < p.stride_h || columns < p.stride_w) {  // there are positions that no tap reaches
    if (p.bias)
      runs.run(nothing_params(p));
    else
      runs.clear();
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; ++s) {
      const Residue h = residue_of(r, p.H, p.R, p.stride_h, p.dilation_h, p.pad_h);
      const Residue w = residue_of(s, p.W, p.S, p.stride_w, p.dilation_w, p.pad_w);
      if (h.positions * w.positions > 0) runs.run(residue_params(p, h, w));
    }
  return "residues";
}

}  // namespace fastconv
