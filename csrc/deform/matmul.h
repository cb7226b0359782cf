// The matrix kernel: a register tile of a few rows by two vectors, C (+)= A B. A row of A gives one number for each
// step of the sum, which is multiplied by two vectors of B. A may be read across (a step is `a_step` elements further,
// a row `a_row`), so the same kernel does A B and A^T B.
#pragma once
#include "core/move.h"

namespace fastconv {
namespace {

constexpr int kTileVectors = 2;
constexpr int kTileRows = kVecRegisters == 32 ? 12 : 6;  // times two vectors, and three more registers
template <class A>
constexpr int kTileColumns = kTileVectors * kLanes<A>;

template <class A>
struct Matrices {
  const A* a;
  int64_t a_row, a_step;
  const A* b;  // [steps, at least kTileColumns]
  int64_t b_step;
  A* c;  // [rows, at least kTileColumns]
  int64_t c_row;
  int64_t steps;
  bool adds;  // to what is there
};

// Fetching the next column ahead. Of 512 channels the weights are 9 MB, which every tile of pixels reads from the third
// cache, and its first rows waited for each line of a column. Now every step of every tile fetches a line of the next
// column, in shares that are as large for all tiles. (12 by 2 vectors, 108 rows, 256 steps, weights of 9 MB: 0.7 of the
// core's multiply-adds on a Xeon with AVX-512, and 0.9 so.)
template <class A>
struct Ahead {
  const A* at;
  int64_t step, tile;  // elements from the line of a step, or of the first step of a tile, to that of the next

  // Columns of `m` follow each other in memory, as packed ones do, or lie side by side.
  Ahead(const Matrices<A>& m, int64_t rows) {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(A));
    const bool packed = m.b_step == kTileColumns<A>;
    at = m.b + (packed ? m.steps : 1) * kTileColumns<A>;
    step = packed ? ceil_div(kTileColumns<A>, ceil_div(rows, kTileRows)) : m.b_step;
    tile = packed ? step * m.steps : kLine;
  }
};

// Rows are read from one pointer for each three of them: the distances of twelve rows are more than there are registers
// for, and were loaded in every step.
template <class A, int Rows>
void multiply_tile(const Matrices<A>& m, const A* ahead, int64_t ahead_step) {
  constexpr int L = kLanes<A>, kPointers = (Rows + 2) / 3;
  Vec<A> sum[Rows][kTileVectors];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) sum[r][v] = m.adds ? load(m.c + r * m.c_row + v * L) : Vec<A>{};
  const int64_t a_row = m.a_row, a_step = m.a_step, b_step = m.b_step;
  const A *a[kPointers], *b = m.b;
#pragma GCC unroll 4
  for (int j = 0; j < kPointers; ++j) a[j] = m.a + 3 * j * a_row;
  for (int64_t i = 0; i < m.steps; ++i) {
    const Vec<A> b0 = load(b), b1 = load(b + L);
    __builtin_prefetch(ahead);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const Vec<A> x = splat(a[r / 3][r % 3 * a_row]);
      sum[r][0] += x * b0;
      sum[r][1] += x * b1;
    }
#pragma GCC unroll 4
    for (int j = 0; j < kPointers; ++j) a[j] += a_step;
    b += b_step;
    ahead += ahead_step;
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) store(m.c + r * m.c_row + v * L, sum[r][v]);
}

template <class A, int Rows>
inline void multiply_rows(Matrices<A>& m, Ahead<A>& ahead, int64_t& rows) {
  for (; rows >= Rows; rows -= Rows) {
    multiply_tile<A, Rows>(m, ahead.at, ahead.step);
    ahead.at += ahead.tile;
    m.a += Rows * m.a_row;
    m.c += Rows * m.c_row;
  }
}

// kTileColumns columns of any number of rows.
template <class A>
void multiply_column(Matrices<A> m, int64_t rows) {
  Ahead<A> ahead(m, rows);
  multiply_rows<A, kTileRows>(m, ahead, rows);
  multiply_rows<A, kTileRows / 2>(m, ahead, rows);
  multiply_rows<A, 1>(m, ahead, rows);
}

// `columns`: a multiple of kTileColumns, side by side in B and C.
template <class A>
inline void multiply(Matrices<A> m, int64_t rows, int64_t columns) {
  for (int64_t j = 0; j < columns; j += kTileColumns<A>) {
    multiply_column(m, rows);
    m.b += kTileColumns<A>;
    m.c += kTileColumns<A>;
  }
}

}  // namespace
}  // namespace fastconv
