// Products of small matrices that lie in cache: C = factor A B, or C = factor (A B + C).
//
// A register tile of kTileRows x kTileVectors accumulators walks the depth: it loads kTileVectors
// vectors of a row of B and multiplies each by kTileRows elements of A, broadcast. Registers:
//
//   AVX-512   8 x 2 accumulators + 2 of B + 1 of A = 19 of 32
//   AVX2      4 x 2 accumulators + 2 of B + 1 of A = 11 of 16
//
// 8 accumulators in flight hide a multiply-add's latency of 4 cycles on two units.
#pragma once

#include "vectors.h"

namespace ptv2 {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;

// One register tile. A is (kTileRows, depth), or (depth, kTileRows) if transposed.
template <bool kTransposed, int kVectors>
inline void multiply_tile(
    const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
    int64_t c_stride, int64_t depth, bool accumulate, float factor) {
  Vec sums[kTileRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] = accumulate ? Vec::loadu(c + i * c_stride + j * kLanes) : Vec(0.0f);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      row[j] = Vec::loadu(b + k * b_stride + j * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const Vec element(kTransposed ? a[k * a_stride + i] : a[i * a_stride + k]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        sums[i][j] = at::vec::fmadd(element, row[j], sums[i][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      (sums[i][j] * Vec(factor)).store(c + i * c_stride + j * kLanes);
    }
  }
}

// C (rows, columns) = factor (A B + C), where C counts only if `accumulate`.
//
// A is (rows, depth), or (depth, rows) if transposed; B is (depth, columns). `columns` is a
// multiple of kLanes. A and C must have room for rows up to a multiple of kTileRows; what C gets there
// has no meaning.
template <bool kTransposed>
inline void multiply(
    const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
    int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor) {
  const int64_t a_step = kTransposed ? 1 : a_stride;
  int64_t j = 0;
  for (; j + kTileVectors * kLanes <= columns; j += kTileVectors * kLanes) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      multiply_tile<kTransposed, kTileVectors>(
          a + i * a_step, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride, depth,
          accumulate, factor);
    }
  }
  for (; j < columns; j += kLanes) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      multiply_tile<kTransposed, 1>(
          a + i * a_step, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride, depth,
          accumulate, factor);
    }
  }
}

}  // namespace ptv2
