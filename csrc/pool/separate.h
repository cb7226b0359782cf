// separate: the gradient of maxima over wide windows of stride 1, one axis after the other. All windows that have found
// their maximum in one row of the input and in the same columns have found the same element, so each row first adds up
// what the windows above and below each other have for it, R taps, and then each element what the sums beside each
// other have for it, S taps, in place of R * S. Where ids are not those of maxima (stochastic pooling draws them)
// windows may disagree about the element; that is seen, and then every element asks all of its windows. The sums are
// the same.
//
// Vectors run along the channels as in running.h, and contiguous planes are transposed as there.
#pragma once
#include "core/move.h"
#include "pool/running.h"

namespace fastconv {
namespace {

// Windows that a position is gathered from: of more they are scattered.
constexpr int64_t kMostCovering = 64;

// Windows that this serves, where it pays. In channels_last memory gathering from all windows has no transposition and
// no positions to work out; where there are too many to gather from, scattering takes the same time an element whatever
// the size of the window (as long as 32 steps of 16 lanes). A position is kept as row * 2^16 + column, and a tap's row
// is found by a multiplication, which is exact where the taps times the columns of a window are below 2^16.
template <class T>
inline bool separate_fits(const PoolParams& p) {
  constexpr int64_t L = kLanes<Accumulate<T>>;
  const int64_t taps = p.h.kernel * p.w.kernel, steps = p.h.kernel + p.w.kernel;
  if (!runs_in_groups<T>(p) || (taps > kMostCovering && steps > 2 * L)) return false;
  if (p.channels_last ? taps < 3 * steps : 2 * taps < 3 * steps || p.w.outputs > kRunningColumns) return false;
  return p.id_bytes <= 2 && taps * p.w.kernel < 1 << 16 && p.h.size < 1 << 15 && p.w.size < 1 << 15;
}

template <class T, class Id>
struct Separate {
  using A = Accumulate<T>;
  using Lane = typename LanesOf<A>::type;
  static constexpr int L = kLanes<A>, V = GroupCut::kVectors, kChannels = V * L;

  // To read windows again costs little next to adding them up.
  static GroupCut cut_of(const PoolParams& p) {
    const int64_t window = sizeof(A) + sizeof(Lane), pixel = p.channels_last ? 0 : sizeof(A);
    return {p, kChannels, p.h.size, (p.w.outputs * window + p.w.size * pixel) * kChannels, ceil_div(p.h.kernel, 4)};
  }

  // What a thread works in. Of each window its gradient and where its maximum is; of the columns of one row the same;
  // and of planes the sums.
  struct Memory {
    A* grads;
    Lane* codes;
    A* column_grads;
    Lane* column_codes;
    A* sums;
    int64_t bytes;
    Memory(const PoolParams& p, const GroupCut& cut, char* memory) {
      char* at = memory;
      const auto take = [&](auto*& made, int64_t groups) {
        made = reinterpret_cast<std::remove_reference_t<decltype(made)>>(at);
        at += groups * kChannels * static_cast<int64_t>(sizeof *made);
      };
      const int64_t windows = min64(p.h.outputs, cut.rows + p.h.kernel - 1) * p.w.outputs;
      take(grads, windows);
      take(codes, windows);
      take(column_grads, p.w.outputs);
      take(column_codes, p.w.outputs);
      take(sums, p.channels_last ? 0 : cut.rows * p.w.size);
      bytes = round_up(at - memory, 64);
    }
  };
  static int64_t scratch(const PoolParams& p) { return p.threads * Memory(p, cut_of(p), nullptr).bytes; }

  // A strip of a group of channels: rows of the input, and the rows of windows that cover them.
  struct Strip {
    int64_t channels, h0, h1, o0, o1;
  };

  static Lanes<A> lanes(int64_t value) { return Wide<A>::all_ids(value); }
  static Lanes<A> load_codes(const Lane* codes) {
    Lanes<A> v;
    __builtin_memcpy(&v, codes, sizeof v);
    return v;
  }
  static void store_codes(Lane* codes, Lanes<A> v) { __builtin_memcpy(codes, &v, sizeof v); }

  // Keeps where the maximum of window (o, q) is, of its ids. As windows go down, their maxima stay where they are or
  // move to a later row; `wrong` is where these do not. If there is none, windows agree in every row.
  static void keep_code(const PoolParams& p, const Memory& memory, const Strip& s, int64_t o, int64_t q, int v,
                        Lanes<A> id, Mask<A>& wrong) {
    const int64_t S = p.w.kernel;
    const Lanes<A> r = id * lanes(((1 << 16) + S - 1) / S) >> 16;
    const Lanes<A> code = lanes((o - p.h.padding) * (1 << 16) + q - p.w.padding) + id + r * lanes((1 << 16) - S);
    Lane* const to = memory.codes + ((o - s.o0) * p.w.outputs + q) * kChannels + v * L;
    store_codes(to, code);
    if (o == s.o0) return;
    const Lanes<A> above = load_codes(to - p.w.outputs * kChannels);
    wrong = wrong | (less(Lanes<A>{}, code ^ above) & less(code, (above | lanes(0xffff)) + lanes(1)));
  }

  // The columns of row h.
  static void add_rows(const PoolParams& p, const Memory& memory, const Strip& s, int64_t h) {
    const int64_t begin = p.h.covering_begin(h) - s.o0, end = p.h.covering_end(h) - s.o0;
    const int64_t pitch = p.w.outputs * kChannels;
    const Lanes<A> here = lanes(h << 16), columns = lanes(1 << 16);
    for (int64_t q = 0; q < p.w.outputs; ++q) {
      Vec<A> sum[V] = {};
      Lanes<A> column[V] = {};
      for (int64_t o = begin; o < end; ++o) {
        const int64_t at = o * pitch + q * kChannels;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const Lanes<A> place = load_codes(memory.codes + at + v * L) ^ here;
          const Mask<A> won = less(place, columns);
          sum[v] = add_where(won, load(memory.grads + at + v * L), sum[v]);
          column[v] = choose(won, place, column[v]);
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        store(memory.column_grads + q * kChannels + v * L, sum[v]);
        store_codes(memory.column_codes + q * kChannels + v * L, column[v]);
      }
    }
  }

  // The elements of a row from its columns, to `to`, `step` elements apart.
  template <class X>
  static void add_columns(const PoolParams& p, const Memory& memory, int64_t channels, X* to, int64_t step) {
    for (int64_t w = 0; w < p.w.size; ++w) {
      const int64_t begin = p.w.covering_begin(w), end = p.w.covering_end(w);
      const Lanes<A> here = lanes(w);
      Vec<A> sum[V] = {};
      for (int64_t q = begin; q < end; ++q)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const int64_t at = q * kChannels + v * L;
          sum[v] = add_where(equal(load_codes(memory.column_codes + at), here), load(memory.column_grads + at), sum[v]);
        }
      put_sums(sum, channels, to + w * step);
    }
  }
  template <class X>
  static void put_sums(const Vec<A> (&sum)[V], int64_t channels, X* to) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t left = channels - v * L;
      if (left >= L)
        store(to + v * L, sum[v]);
      else if (left > 0)
        store_partial(to + v * L, sum[v], static_cast<int>(left));
    }
  }

  // The elements of row h from all of their windows, in the same order.
  template <class X>
  static void add_windows(const PoolParams& p, const Memory& memory, const Strip& s, int64_t h, X* to, int64_t step) {
    const int64_t begin = p.h.covering_begin(h) - s.o0, end = p.h.covering_end(h) - s.o0;
    for (int64_t w = 0; w < p.w.size; ++w) {
      const Lanes<A> here = lanes(h << 16 | w);
      Vec<A> sum[V] = {};
      for (int64_t q = p.w.covering_begin(w), last = p.w.covering_end(w); q < last; ++q) {
        Vec<A> column[V] = {};
        for (int64_t o = begin; o < end; ++o)
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            const int64_t at = (o * p.w.outputs + q) * kChannels + v * L;
            column[v] = add_where(equal(load_codes(memory.codes + at), here), load(memory.grads + at), column[v]);
          }
        for (int v = 0; v < V; ++v) sum[v] += column[v];
      }
      put_sums(sum, s.channels, to + w * step);
    }
  }

  // X: what is written, the tensor or the sums of a strip.
  template <class X>
  static void run_strip(const PoolParams& p, const Memory& memory, const Strip& s, bool agree, X* to, int64_t row,
                        int64_t step) {
    for (int64_t h = s.h0; h < s.h1; ++h, to += row) {
      if (!agree) {
        add_windows(p, memory, s, h, to, step);
        continue;
      }
      add_rows(p, memory, s, h);
      add_columns(p, memory, s.channels, to, step);
    }
  }

  // Gradients and maxima of the windows, of channels_last memory. Returns whether windows agree.
  static bool read_pixels(const PoolParams& p, const Memory& memory, const Strip& s, const T* grads, const Id* ids) {
    Mask<A> wrong = {};
    A* to = memory.grads;
    for (int64_t o = s.o0; o < s.o1; ++o)
      for (int64_t q = 0; q < p.w.outputs; ++q, grads += p.C, ids += p.C)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v, to += L) {
          const int n = static_cast<int>(max64(0, min64(L, s.channels - v * L)));
          store(to, n == L ? load(grads + v * L) : n ? load_partial(grads + v * L, n) : Vec<A>{});
          keep_code(p, memory, s, o, q, v, n ? load_ids<A>(ids + v * L, n) : Lanes<A>{}, wrong);
        }
    return !any(wrong);
  }
  // The same of `planes` planes.
  static bool read_planes(const PoolParams& p, const Memory& memory, const Strip& s, const T* grads, const Id* ids,
                          int64_t planes) {
    const int64_t plane = p.h.outputs * p.w.outputs, count = (s.o1 - s.o0) * p.w.outputs;
    if (planes < kChannels) {
      zero(memory.grads, count * kChannels);
      for (int64_t i = 0; i < count * kChannels; ++i) memory.codes[i] = 0;
    }
    for (int64_t c = 0; c < planes; c += L) {
      const int64_t some = min64(L, planes - c);
      transpose_block(memory.grads + c, kChannels, 1, grads + c * plane, plane, 1, some, count);
      for (int64_t j = 0; j < count; j += L) {
        const int n = static_cast<int>(min64(L, count - j));
        Vec<A> v[L] = {};
        for (int64_t i = 0; i < some; ++i) v[i] = bits_as<Vec<A>>(load_ids<A>(ids + (c + i) * plane + j, n));
        transpose<A>(v);
        for (int i = 0; i < n; ++i) store_codes(memory.codes + (j + i) * kChannels + c, bits_as<Lanes<A>>(v[i]));
      }
    }
    Mask<A> wrong = {};
    const Lane* from = memory.codes;
    for (int64_t o = s.o0; o < s.o1; ++o)
      for (int64_t q = 0; q < p.w.outputs; ++q)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v, from += L) keep_code(p, memory, s, o, q, v, load_codes(from), wrong);
    return !any(wrong);
  }

  // Channels from `channel` on of an image in channels_last memory.
  static void run_pixels(const PoolParams& p, const Memory& memory, Strip& s, int64_t image, int64_t channel) {
    const int64_t row = p.w.size * p.C, windows = p.h.outputs * p.w.outputs;
    const int64_t from = (image * windows + s.o0 * p.w.outputs) * p.C + channel;
    T* to = static_cast<T*>(p.input) + (image * p.h.size + s.h0) * row + channel;
    s.channels = min64(kChannels, p.C - channel);
    const bool agree =
        read_pixels(p, memory, s, static_cast<const T*>(p.output) + from, static_cast<const Id*>(p.ids) + from);
    run_strip(p, memory, s, agree, to, row, p.C);
  }
  // Planes from `plane` on.
  static void run_planes(const PoolParams& p, const Memory& memory, Strip& s, int64_t plane) {
    const int64_t pixels = p.h.size * p.w.size, planes = min64(kChannels, p.N * p.C - plane);
    const int64_t from = (plane * p.h.outputs + s.o0) * p.w.outputs, written = (s.h1 - s.h0) * p.w.size;
    T* to = static_cast<T*>(p.input) + plane * pixels + s.h0 * p.w.size;
    s.channels = kChannels;
    const bool agree =
        read_planes(p, memory, s, static_cast<const T*>(p.output) + from, static_cast<const Id*>(p.ids) + from, planes);
    run_strip(p, memory, s, agree, memory.sums, p.w.size * kChannels, kChannels);
    for (int64_t c = 0; c < planes; c += L)
      transpose_block(to + c * pixels, pixels, 1, memory.sums + c, kChannels, 1, written, min64(L, planes - c));
  }

  static void run(const PoolParams& p, void* scratch) {
    const GroupCut cut = cut_of(p);
    const int64_t thread_bytes = Memory(p, cut, nullptr).bytes;
    parallel_for(p.threads, cut.items(), [&](int64_t i, int thread) {
      const Memory memory(p, cut, static_cast<char*>(scratch) + thread * thread_bytes);
      const GroupCut::Item item = cut.item(i);
      Strip s;
      s.h0 = item.rows.begin;
      s.h1 = item.rows.end;
      s.o0 = p.h.covering_begin(s.h0);
      s.o1 = p.h.covering_end(s.h1 - 1);
      if (p.channels_last)
        run_pixels(p, memory, s, item.image, item.first);
      else
        run_planes(p, memory, s, item.first);
    });
  }
};

}  // namespace
}  // namespace fastconv
