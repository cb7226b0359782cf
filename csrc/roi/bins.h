// Where the bins of a box lie.
//
// A mean of bilinear samples is separable: sample (y, x) weighs its four pixels by a product of what y gives to a row
// and x to a column, and a sample outside of the map is outside by one of the two. So a bin is a short list of rows
// with weights, times a short list of columns. Samples of a bin that share a row or a column share its entry: of 2x2
// samples in a bin of a pixel or less, 9 pixels are read instead of 16. Means of whole pixels are lists of equal
// weights.
#pragma once
#include "core/memory.h"
#include "core/move.h"
#include "core/parallel.h"
#include "roi/params.h"

namespace fastconv {
namespace {

// Rounded before anything is added to it. A multiply-add in its place would move some boxes to another number of
// samples than others, torchvision's among them, compute for them.
template <class A>
[[gnu::noinline]] A scaled(A coordinate, A scale) {
  return coordinate * scale;
}

inline float ceiling(float x) { return __builtin_ceilf(x); }
inline double ceiling(double x) { return __builtin_ceil(x); }
inline float floor(float x) { return __builtin_floorf(x); }
inline double floor(double x) { return __builtin_floor(x); }
inline float round(float x) { return __builtin_roundf(x); }
inline double round(double x) { return __builtin_round(x); }

// NaN, which boxes become whose coordinates overflow, is `least`.
template <class A>
inline A between(A value, A least, A most) {
  return !(value >= least) ? least : value > most ? most : value;
}

// One axis of a box: `bins` of a size each, from `start` on, in pixels.
template <class A>
struct BoxAxis {
  Roi kind;
  A start, bin;
  A samples;  // a bin, of kAlign and kPsAlign
  bool adapts;
  int64_t size, bins;

  // axis: 0 for rows, 1 for columns. box: [5].
  BoxAxis(const RoiParams& p, const A* box, int axis) : kind(p.kind), size(axis ? p.W : p.H), bins(axis ? p.Q : p.P) {
    const A first = scaled(box[axis ? 1 : 2], static_cast<A>(p.scale));
    const A last = scaled(box[axis ? 3 : 4], static_cast<A>(p.scale));
    A extent;
    if (kind == Roi::kPool || kind == Roi::kPsPool) {
      start = round(first);
      extent = round(last) - start + (kind == Roi::kPool ? 1 : 0);
      extent = extent < 1 ? 1 : extent;
    } else {
      const A shift = kind == Roi::kPsAlign || p.aligned ? static_cast<A>(0.5) : 0;
      start = first - shift;
      extent = last - shift - start;
      if (kind == Roi::kAlign && !p.aligned && extent < 1) extent = 1;
    }
    bin = extent / static_cast<A>(bins);
    adapts = p.sampling == 0;
    samples = adapts ? ceiling(bin) : static_cast<A>(p.sampling);
  }

  // Of whole pixels: those of bin `b`.
  Range pixels(int64_t b) const {
    // The map's last row and column are not in any bin of position-sensitive pooling, nobody knows why.
    const int64_t most = kind == Roi::kPsPool ? size - 1 : size;
    return {on_map(floor(static_cast<A>(b) * bin) + start, most),
            on_map(ceiling(static_cast<A>(b + 1) * bin) + start, most)};
  }
  // float32 has not all sizes; it may have rounded one up.
  static int64_t on_map(A at, int64_t most) {
    return min64(static_cast<int64_t>(between(at, A{0}, static_cast<A>(most))), most);
  }

  // Most entries of a bin: one for each pixel, at most two for each sample.
  int64_t most_entries() const {
    if (kind == Roi::kPsPool) return static_cast<int64_t>(between(ceiling(bin) + 1, A{1}, static_cast<A>(size)));
    return static_cast<int64_t>(between(2 * samples, A{1}, static_cast<A>(size)));
  }

  // Calls body(pixel, weight), of ascending pixels or of descending ones (boxes that end before they begin), several
  // times for a pixel that several samples share.
  template <class Body>
  void each(int64_t b, const Body& body) const {
    if (kind == Roi::kPsPool) {
      const Range range = pixels(b);
      const A weight = 1 / static_cast<A>(range.end - range.begin);
      for (int64_t i = range.begin; i < range.end; ++i) body(i, weight);
      return;
    }
    const A origin = start + static_cast<A>(b) * bin, step = bin / samples, weight = 1 / samples;
    // Of huge boxes only the samples that can be on the map: those from -1 to size, and a few for rounding. Samples
    // that adapt are half a pixel apart or more.
    A first = 0, end = samples;
    if (step > 0 && samples > 16) {
      first = between(floor((-1 - origin) / step) - 2, A{0}, samples);
      end = between(ceiling((static_cast<A>(size) - origin) / step) + 2, first, samples);
    }
    const A most = adapts ? static_cast<A>(2 * size + 16) : samples;
    const int64_t count = static_cast<int64_t>(between(end - first, A{0}, most));
    for (int64_t i = 0; i < count; ++i) {
      const A y = origin + (first + static_cast<A>(i) + static_cast<A>(0.5)) * bin / samples;
      if (!(y >= -1 && y <= static_cast<A>(size))) continue;
      const A inside = y > 0 ? y : 0;
      const int64_t low = static_cast<int64_t>(inside);
      if (low >= size - 1) {
        body(size - 1, weight);
        continue;
      }
      const A part = inside - static_cast<A>(low);
      body(low, (1 - part) * weight);
      if (part > 0) body(low + 1, part * weight);
    }
  }
};

template <class A>
struct Entry {
  int32_t line;  // of the lines of the axis that the bins know, its number
  A weight;
};

// The bins of a box along one axis: lists of entries, and the pixels that these are about, each of them once.
template <class A>
struct AxisBins {
  const int32_t* begin;  // [bins + 1]
  const Entry<A>* entries;
  const int32_t* pixels;  // [lines]
  int lines;

  static int64_t bytes(const BoxAxis<A>& axis) {
    const int64_t most = axis.bins * axis.most_entries();
    return round_up(most * static_cast<int64_t>(sizeof(Entry<A>) + sizeof(int32_t)) + (axis.bins + 1) * 4, 16);
  }

  // `numbers`: of every pixel of the axis, -1, now and afterwards; meanwhile its line. (To look among the last lines
  // alone would not do: where a box begins so far away that float32 rounds by several pixels, the next bin may begin
  // before the last one ended.) The samples of one bin are in order, so an entry that they share is among the last
  // three.
  AxisBins(const BoxAxis<A>& axis, char* memory, int32_t* numbers) {
    const int64_t most = axis.bins * axis.most_entries();
    Entry<A>* entry = reinterpret_cast<Entry<A>*>(memory);
    int32_t* pixel = reinterpret_cast<int32_t*>(entry + most);
    int32_t* first = pixel + most;
    begin = first;
    entries = entry;
    pixels = pixel;
    int32_t count = 0;
    lines = 0;
    for (int64_t b = 0; b < axis.bins; ++b) {
      first[b] = count;
      axis.each(b, [&](int64_t at, A weight) {
        int32_t& line = numbers[at];
        if (line < 0) {
          pixel[lines] = static_cast<int32_t>(at);
          line = lines++;
        }
        for (int32_t known = count - 1; known >= first[b] && known >= count - 3; --known)
          if (entry[known].line == line) {
            entry[known].weight += weight;
            return;
          }
        entry[count++] = {line, weight};
      });
    }
    first[axis.bins] = count;
    for (int i = 0; i < lines; ++i) numbers[pixel[i]] = -1;
  }
};

template <class A>
struct BoxAxes {
  BoxAxis<A> rows, columns;

  BoxAxes(const RoiParams& p, const A* box) : rows(p, box, 0), columns(p, box, 1) {}
  int64_t bytes() const { return AxisBins<A>::bytes(rows) + AxisBins<A>::bytes(columns); }
};

template <class A>
struct BoxBins {
  AxisBins<A> rows, columns;

  BoxBins(const BoxAxes<A>& axes, char* memory, int32_t* numbers)
      : rows(axes.rows, memory, numbers), columns(axes.columns, memory + AxisBins<A>::bytes(axes.rows), numbers) {}
};

// All boxes: those of each image in their order, and the bins of each, which are worked out once where they take little
// memory and each time that they are asked for where they take much.
template <class A>
struct Boxes {
  static constexpr int64_t kMostBytes = 32 << 20;

  const RoiParams& p;
  int64_t all = 0, largest = 0;  // bytes
  bool kept;
  int64_t* first;     // [N + 1], of the images in `order`
  int32_t* order;     // [K]
  int64_t* offsets;   // [K], in `memory`
  BoxBins<A>* known;  // [K]
  char* memory;       // of all bins, or of those of a box for each thread
  int64_t longest;    // axis
  int32_t* numbers;   // [threads, longest]: see AxisBins

  Boxes(const RoiParams& params, Memory& from) : p(params) {
    first = from.take<int64_t>(p.N + 1);
    order = from.take<int32_t>(p.K);
    offsets = from.take<int64_t>(p.K);
    if (p.kind != Roi::kPool)
      for (int64_t k = 0; k < p.K; ++k) {
        const int64_t bytes = BoxAxes<A>(p, box(k)).bytes();
        if (!from.counts) offsets[k] = all;
        all += bytes;
        largest = max64(largest, bytes);
      }
    kept = all <= kMostBytes;
    known = from.take<BoxBins<A>>(kept ? p.K : 0);
    memory = from.take<char>(kept ? all : p.threads * largest);
    longest = p.kind == Roi::kPool ? 0 : max64(p.H, p.W);
    numbers = from.take<int32_t>(p.threads * longest);
    if (!from.counts) prepare();
  }

  const A* box(int64_t k) const { return static_cast<const A*>(p.boxes) + 5 * k; }
  int64_t image(int64_t k) const { return static_cast<int64_t>(box(k)[0]); }
  BoxBins<A> bins(int64_t k, int thread) const {
    return kept ? known[k] : BoxBins<A>({p, box(k)}, memory + thread * largest, numbers + thread * longest);
  }
  // Calls body(k) for the boxes of an image.
  template <class Body>
  void each(int64_t n, const Body& body) const {
    for (int64_t i = first[n]; i < first[n + 1]; ++i) body(int64_t{order[i]});
  }

 private:
  void prepare() {
    for (int64_t n = 0; n <= p.N; ++n) first[n] = 0;
    for (int64_t k = 0; k < p.K; ++k) ++first[image(k) + 1];
    for (int64_t n = 0; n < p.N; ++n) first[n + 1] += first[n];
    for (int64_t k = 0; k < p.K; ++k) order[first[image(k)]++] = static_cast<int32_t>(k);
    for (int64_t n = p.N; n > 0; --n) first[n] = first[n - 1];
    first[0] = 0;
    if (p.kind == Roi::kPool) return;
    for (int64_t i = 0; i < p.threads * longest; ++i) numbers[i] = -1;
    if (!kept) return;
    constexpr int64_t kEach = 32;  // boxes of an item of work
    parallel_for(p.threads, ceil_div(p.K, kEach), [&](int64_t item, int thread) {
      const int64_t end = min64(p.K, (item + 1) * kEach);
      for (int64_t k = item * kEach; k < end; ++k) {
        known[k] = BoxBins<A>({p, box(k)}, memory + offsets[k], numbers + thread * longest);
      }
    });
  }
};

}  // namespace
}  // namespace fastconv
