// In a file of its own, without vectors of ATen: only these functions may use the dot product.
#include "pairs.h"

#if defined(CPU_CAPABILITY_AVX512)
#include <immintrin.h>

#define PTV2_TARGET_PAIRS __attribute__((target("avx512f,avx512bf16")))

namespace ptv2 {
namespace {

constexpr int kTileRows = 8;  // 8 x 2 accumulators, 2 of B, 1 of A: 19 of 32 registers
constexpr int64_t kLanes = 16;

template <bool kTransposed, int kVectors>
PTV2_TARGET_PAIRS inline void multiply_tile(
    const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c,
    int64_t c_stride, int64_t depth, bool accumulate, float factor) {
  __m512 sums[kTileRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] = accumulate ? _mm512_loadu_ps(c + i * c_stride + j * kLanes) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    __m512i row[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      row[j] = _mm512_loadu_si512(b + k * b_stride + j * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const uint32_t element = kTransposed ? a[k * a_stride + i] : a[i * a_stride + k];
      const __m512i pair = _mm512_set1_epi32(static_cast<int>(element));
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) {
        sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)pair, (__m512bh)row[j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      const __m512 sum = _mm512_mul_ps(sums[i][j], _mm512_set1_ps(factor));
      _mm512_storeu_ps(c + i * c_stride + j * kLanes, sum);
    }
  }
}

template <bool kTransposed>
PTV2_TARGET_PAIRS void multiply_tiles(
    const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c,
    int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor) {
  const int64_t a_step = kTransposed ? 1 : a_stride;
  int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) {
    for (int64_t i = 0; i < rows; i += kTileRows) {
      multiply_tile<kTransposed, 2>(
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

}  // namespace

bool has_pairs() {
  return __builtin_cpu_supports("avx512bf16");
}

void multiply_pairs(
    bool transposed, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
    float* c, int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor) {
  const auto tiles = transposed ? multiply_tiles<true> : multiply_tiles<false>;
  tiles(a, a_stride, b, b_stride, c, c_stride, rows, columns, depth, accumulate, factor);
}

}  // namespace ptv2

#endif
