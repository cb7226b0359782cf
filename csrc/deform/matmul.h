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

template <class A, int Rows>
void multiply_tile(const Matrices<A>& m) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[Rows][kTileVectors];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) sum[r][v] = m.adds ? load(m.c + r * m.c_row + v * L) : Vec<A>{};
  const A *a = m.a, *b = m.b;
  for (int64_t i = 0; i < m.steps; ++i, a += m.a_step, b += m.b_step) {
    const Vec<A> b0 = load(b), b1 = load(b + L);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const Vec<A> x = splat(a[r * m.a_row]);
      sum[r][0] += x * b0;
      sum[r][1] += x * b1;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) store(m.c + r * m.c_row + v * L, sum[r][v]);
}

template <class A, int Rows>
inline void multiply_rows(Matrices<A>& m, int64_t& rows) {
  for (; rows >= Rows; rows -= Rows) {
    multiply_tile<A, Rows>(m);
    m.a += Rows * m.a_row;
    m.c += Rows * m.c_row;
  }
}

// kTileColumns columns of any number of rows.
template <class A>
void multiply_column(Matrices<A> m, int64_t rows) {
  multiply_rows<A, kTileRows>(m, rows);
  multiply_rows<A, kTileRows / 2>(m, rows);
  multiply_rows<A, 1>(m, rows);
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
