// Unpooling: every window's value to the position that its index says, and back. Elements are moved, whatever they are.
//
// Nothing is known of the indices but that they should lie in the plane, and that those of neighbouring windows are
// mostly close together. An item of work is a plane, or all of an image in channels_last memory, or a part of its
// positions where there are few of these; it takes the windows in order, a step of a few at a time. Before the values
// of a step are moved the positions are cleared as far as its largest index, if they are not yet. Where the indices
// come from pooling that is a moment before they are written, and the output goes through the caches once.
//
// Where planes have parts, a pass over the indices first notes the smallest and the largest of every step, so that a
// part looks only at the steps that reach it. (Blocks of channels would need no such pass: 128 channels, 90x120 to
// 180x240, took 6.4 ms so and take 1.6, probably because threads that write next to each other in every pixel disturb
// each other.)
#pragma once
#include "core/parallel.h"
#include "core/vec.h"
#include "pool/params.h"

namespace fastconv {
namespace {
namespace unpool {

constexpr int64_t kStepIndices = 1024;  // 8 KB: they are read twice

// The smallest and the largest index of a step. As unsigned numbers, so that negative ones are larger than any
// position.
struct Reach {
  uint64_t least, most;

  bool inside(int64_t begin, int64_t end) const {
    return least >= static_cast<uint64_t>(begin) && most < static_cast<uint64_t>(end);
  }
};

// How the windows are dealt out. Planes that lie side by side, `inner` of them, are one plane whose windows and
// positions have as many elements.
struct Unpool {
  int64_t inner, planes, windows, positions, step, steps;  // windows a step, steps a plane
  int64_t parts;                                           // of the positions of a plane

  explicit Unpool(const UnpoolParams& p)
      : inner(p.channels_last ? p.C : 1),
        planes(p.channels_last ? p.N : p.N * p.C),
        windows(p.windows),
        positions(p.positions),
        step(inner < kStepIndices ? kStepIndices / inner : 1),
        steps((windows + step - 1) / step),
        parts(planes >= 4 * p.threads ? 1 : p.threads) {}

  int64_t begin(int64_t s) const { return s * step; }
  int64_t end(int64_t s) const { return (s + 1) * step < windows ? (s + 1) * step : windows; }

  Reach reach(const int64_t* indices, int64_t s) const {
    Reach found = {~uint64_t{0}, 0};
    for (int64_t i = begin(s) * inner; i < end(s) * inner; ++i) {
      const uint64_t index = static_cast<uint64_t>(indices[i]);
      found.least = index < found.least ? index : found.least;
      found.most = index > found.most ? index : found.most;
    }
    return found;
  }

  // Calls body(at, index, lane) for the elements of a step: `at` counts from the plane's first window, `lane` is which
  // of the planes side by side.
  template <class Body>
  void each(const int64_t* indices, int64_t s, const Body& body) const {
    if (inner == 1) {
      for (int64_t w = begin(s); w < end(s); ++w) body(w, indices[w], int64_t{0});
      return;
    }
    for (int64_t w = begin(s); w < end(s); ++w)
      for (int64_t lane = 0; lane < inner; ++lane) body(w * inner + lane, indices[w * inner + lane], lane);
  }

  // Notes which index of a step is wrong, if it is the first in memory of all.
  void report(const UnpoolParams& p, const int64_t* indices, int64_t s) const {
    each(indices, s, [&](int64_t at, int64_t index, int64_t) {
      if (index >= 0 && index < positions) return;
      const int64_t wrong = indices + at - p.indices;
      int64_t first = __atomic_load_n(p.first_wrong, __ATOMIC_RELAXED);
      while (wrong < first &&
             !__atomic_compare_exchange_n(p.first_wrong, &first, wrong, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      }
    });
  }
};

// The positions [first, last) of a plane: cleared in order, written where indices point.
template <class E>
struct Part {
  const Unpool& u;
  E* plane;
  int64_t first, last;
  int64_t cleared = first;

  // Not with memset: 64 planes of 360x480 took 17.1 ms so and take 14.0, probably because memset goes past the caches
  // where it gets several KB.
  void clear(int64_t end) {
    if (end > last) end = last;
    if (end <= cleared) return;
    char* at = reinterpret_cast<char*>(plane + cleared * u.inner);
    char* const stop = reinterpret_cast<char*>(plane + end * u.inner);
    const Vec<float> zero = {};
    for (; stop - at >= kVecBytes; at += kVecBytes) __builtin_memcpy(at, &zero, kVecBytes);
    for (; at < stop; at += sizeof(E)) __builtin_memcpy(at, &zero, sizeof(E));
    cleared = end;
  }

  void take(const int64_t* indices, const E* values, int64_t s, const Reach& reach) {
    clear(static_cast<int64_t>(reach.most) + 1);
    if (reach.inside(first, last))
      u.each(indices, s, [&](int64_t at, int64_t index, int64_t lane) { plane[index * u.inner + lane] = values[at]; });
    else
      u.each(indices, s, [&](int64_t at, int64_t index, int64_t lane) {
        if (index >= first && index < last) plane[index * u.inner + lane] = values[at];
      });
  }
};

struct Scatter {
  static int64_t scratch(const UnpoolParams& p) {
    const Unpool u(p);
    return u.parts > 1 ? u.planes * u.steps * static_cast<int64_t>(sizeof(Reach)) : 0;
  }

  template <class E>
  static void run(const UnpoolParams& p, void* scratch) {
    const Unpool u(p);
    const int64_t many = u.windows * u.inner;  // elements
    Reach* reaches = static_cast<Reach*>(scratch);
    const auto look = [&](const int64_t* indices, int64_t s, Reach& reach) {
      reach = u.reach(indices, s);
      const bool holds = reach.inside(0, u.positions);
      if (!holds) u.report(p, indices, s);
      return holds;
    };
    if (u.parts > 1) {
      const int64_t count = p.N * p.C * u.windows;
      parallel_for(p.threads, u.planes * u.steps,
                   [&](int64_t i, int) { look(p.indices + i / u.steps * many, i % u.steps, reaches[i]); });
      if (*p.first_wrong < count) return;
    }
    parallel_for(p.threads, u.planes * u.parts, [&](int64_t item, int) {
      const int64_t n = item / u.parts, i = item % u.parts;
      const int64_t* indices = p.indices + n * many;
      const E* values = static_cast<const E*>(p.values) + n * many;
      Part<E> part = {u, static_cast<E*>(p.planes) + n * u.positions * u.inner, u.positions * i / u.parts,
                      u.positions * (i + 1) / u.parts};
      for (int64_t s = 0; s < u.steps; ++s) {
        Reach reach;
        if (u.parts == 1) {
          if (!look(indices, s, reach)) return;
        } else {
          reach = reaches[n * u.steps + s];
          if (static_cast<int64_t>(reach.most) < part.first || static_cast<int64_t>(reach.least) >= part.last) continue;
        }
        part.take(indices, values, s, reach);
      }
      part.clear(part.last);
    });
  }
};

struct Gather {
  static int64_t scratch(const UnpoolParams&) { return 0; }

  template <class E>
  static void run(const UnpoolParams& p, void*) {
    const Unpool u(p);
    const int64_t many = u.windows * u.inner;
    parallel_for(p.threads, u.planes * u.steps, [&](int64_t item, int) {
      const int64_t n = item / u.steps, s = item % u.steps;
      const int64_t* indices = p.indices + n * many;
      const E* plane = static_cast<const E*>(p.planes) + n * u.positions * u.inner;
      E* values = static_cast<E*>(p.values) + n * many;
      bool holds = true;
      u.each(indices, s, [&](int64_t at, int64_t index, int64_t lane) {
        const bool inside = static_cast<uint64_t>(index) < static_cast<uint64_t>(u.positions);
        holds &= inside;
        values[at] = inside ? plane[index * u.inner + lane] : E{};
      });
      if (!holds) u.report(p, indices, s);
    });
  }
};

template <class Kernel>
void run(const UnpoolParams& p, void* scratch) {
  if (p.element_bytes == 2) return Kernel::template run<uint16_t>(p, scratch);
  if (p.element_bytes == 4) return Kernel::template run<uint32_t>(p, scratch);
  Kernel::template run<uint64_t>(p, scratch);
}

}  // namespace unpool
}  // namespace
}  // namespace fastconv
