// Moving rows and blocks of a tensor, with conversion between what is stored and what is computed in.
#pragma once
#include "core/vec.h"

namespace fastconv {
namespace {

constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
// [begin, end).
struct Range {
  int64_t begin, end;
};

constexpr int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }

template <class T>
inline T* at(const View4& v, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(v.data) + n * v.n + c * v.c + h * v.h + w * v.w;
}

inline bool is_channels_last(const View4& v) { return v.c == 1 && v.w != 1; }

// n <= lanes elements that lie `step` apart.
template <class T>
inline Vec<Accumulate<T>> load_strided(const T* p, int64_t step, int n) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  if (step == 1) return n == L ? load(p) : load_partial(p, n);
  if (step == 2) {
    const Vec<A> a = n * 2 > L ? load(p) : load_partial(p, n * 2 - 1);
    const Vec<A> b = n * 2 > L + 1 ? load_partial(p + L, n * 2 - 1 - L) : Vec<A>{};
    return even_lanes<A>(a, b);
  }
  A lanes[L] = {};
  for (int i = 0; i < n; ++i) lanes[i] = get(p + i * step);
  return load(lanes);
}

template <class T>
inline void store_strided(T* p, int64_t step, Vec<Accumulate<T>> v, int n) {
  using A = Accumulate<T>;
  constexpr int L = kLanes<A>;
  if (step == 1) return n == L ? store(p, v) : store_partial(p, v, n);
  T lanes[L];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i * step] = lanes[i];
}

// How vectors are written: as they are. Finish (finish.h) is the other way.
struct Plain {
  template <class T>
  static void store(T* to, Vec<Accumulate<T>> v) {
    fastconv::store(to, v);
  }
  template <class T>
  static void store_partial(T* to, Vec<Accumulate<T>> v, int n) {
    fastconv::store_partial(to, v, n);
  }
  template <class T>
  static void store_strided(T* to, int64_t step, Vec<Accumulate<T>> v, int n) {
    fastconv::store_strided(to, step, v, n);
  }
};

template <class A>
inline void zero(A* p, int64_t count) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(p + i, Vec<A>{});
  if (i < count) store_partial(p + i, Vec<A>{}, static_cast<int>(count - i));
}

template <class To, class From, class Put = Plain>
inline void copy_row(To* to, const From* from, int64_t count, const Put& put = {}) {
  constexpr int L = kLanes<Accumulate<From>>;
  int64_t i = 0;
  for (; i + L <= count; i += L) put.store(to + i, load(from + i));
  if (i < count) put.store_partial(to + i, load_partial(from + i, count - i), count - i);
}

template <class A, class T>
inline void copy_strided(A* to, const T* from, int64_t step, int64_t count) {
  if (step == 1) return copy_row(to, from, count);
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  // The vector after the last element that counts may not exist, so the last vector is left to load_strided.
  for (; step == 2 && i + L < count; i += L) store(to + i, even_lanes<A>(load(from + 2 * i), load(from + 2 * i + L)));
  for (; i < count; i += L) {
    const int n = static_cast<int>(min64(L, count - i));
    store_partial(to + i, load_strided(from + i * step, step, n), n);
  }
}

// A square of which `rows` by `columns` exist, where both lie side by side. The registers that are loaded and stored
// are known one by one, else they would be kept in memory. (Depthwise 3x3, 960@7, contiguous, one thread: 378 -> 336
// us.)
template <class To, class From, class Put>
[[gnu::noinline]] void transpose_part(To* to, int64_t to_stride, const From* from, int64_t from_stride, int rows,
                                      int columns, const Put& put) {
  using A = Accumulate<From>;
  constexpr int L = kLanes<A>;
  Vec<A> v[L];
#pragma GCC unroll 16
  for (int k = 0; k < L; ++k) v[k] = k < rows ? load_partial(from + k * from_stride, columns) : Vec<A>{};
  transpose<A>(v);
#pragma GCC unroll 16
  for (int k = 0; k < L; ++k)
    if (k < columns) put.store_partial(to + k * to_stride, v[k], rows);
}

// to[j * to_stride + i * to_step] = from[i * from_stride + j * from_step], i < rows, j < columns; squares of registers
// are transposed in registers.
template <class To, class From, class Put = Plain>
void transpose_block(To* to, int64_t to_stride, int64_t to_step, const From* from, int64_t from_stride,
                     int64_t from_step, int64_t rows, int64_t columns, const Put& put = {}) {
  using A = Accumulate<From>;
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < columns; j += L) {
    const int nj = static_cast<int>(min64(L, columns - j));
    for (int64_t i = 0; i < rows; i += L) {
      const int ni = static_cast<int>(min64(L, rows - i));
      const From* source = from + i * from_stride + j * from_step;
      To* target = to + j * to_stride + i * to_step;
      Vec<A> v[L];
      if (ni == L && nj == L && from_step == 1 && to_step == 1) {  // counts that are known keep v in registers
#pragma GCC unroll 16
        for (int k = 0; k < L; ++k) v[k] = load(source + k * from_stride);
        transpose<A>(v);
#pragma GCC unroll 16
        for (int k = 0; k < L; ++k) put.store(target + k * to_stride, v[k]);
        continue;
      }
      if (from_step == 1 && to_step == 1) {
        transpose_part(target, to_stride, source, from_stride, ni, nj, put);
        continue;
      }
      for (int k = 0; k < ni; ++k) v[k] = load_strided(source + k * from_stride, from_step, nj);
      for (int k = ni; k < L; ++k) v[k] = Vec<A>{};
      transpose<A>(v);
      for (int k = 0; k < nj; ++k) put.store_strided(target + k * to_stride, to_step, v[k], ni);
    }
  }
}

}  // namespace
}  // namespace fastconv
