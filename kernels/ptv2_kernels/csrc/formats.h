// In which form products take their factors: fp32, or pairs of bf16.
//
// A format turns fp32 rows (count, width) into elements that hold kDepth numbers next to each other
// along the depth of a product: (count, width / kDepth) elements for a product over columns, (count /
// kDepth, width) for one over rows. Scratch for them is handed in; floats need none and stay as they
// are.
#pragma once

#include "pairs.h"
#include "product.h"
#include "rows.h"

namespace ptv2 {

struct Floats {
  using Element = float;
  static constexpr int64_t kDepth = 1;

  // Elements of scratch for so many floats.
  static int64_t scratch(int64_t) { return 0; }

  static float* over_columns(float* rows, float*, int64_t, int64_t) { return rows; }

  static float* over_rows(float* rows, float*, int64_t, int64_t) { return rows; }

  // The floats themselves, or what this format makes of them in scratch.
  static float* pick(float* floats, float*) { return floats; }

  // Weights of kDepth keys for kLanes query rows, for a product over keys.
  static void store_over_keys(float* dst, const Vec* weights) { weights[0].store(dst); }

  // Weights of one key for kLanes query rows from `row` on, for a product over query rows.
  static void store_over_queries(float* dst, int64_t row, Vec weights) { weights.store(dst + row); }

  template <bool kTransposed>
  static void multiply(
      const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
      int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor) {
    ptv2::multiply<kTransposed>(
        a, a_stride, b, b_stride, c, c_stride, rows, columns, depth, accumulate, factor);
  }
};

// kLanes pairs.
inline void store_pairs(uint32_t* dst, Vec low, Vec high) {
  const IntVec lower = (round_to_bf16(low) >> IntVec(16)) & IntVec(0xFFFF);
  const IntVec upper = round_to_bf16(high) & IntVec(static_cast<int32_t>(0xFFFF0000));
  (lower | upper).store(dst);
}

struct Pairs {
  using Element = uint32_t;
  static constexpr int64_t kDepth = 2;

  static int64_t scratch(int64_t floats) { return floats; }

  static uint32_t* over_columns(
      const float* rows, uint32_t* dst, int64_t count, int64_t width) {
    for (int64_t i = 0; i < count * width; i += kLanes) {
      store_over_queries(dst, i, Vec::loadu(rows + i));
    }
    return dst;
  }

  // `count` is even; rows beyond the last may follow as zeros.
  static uint32_t* over_rows(const float* rows, uint32_t* dst, int64_t count, int64_t width) {
    for (int64_t i = 0; i < count / 2; ++i) {
      const float* low = rows + 2 * i * width;
      const float* high = low + width;
      for (int64_t d = 0; d < width; d += kLanes) {
        store_pairs(dst + i * width + d, Vec::loadu(low + d), Vec::loadu(high + d));
      }
    }
    return dst;
  }

  static uint32_t* pick(float*, uint32_t* scratch) { return scratch; }

  static void store_over_keys(uint32_t* dst, const Vec* weights) {
    store_pairs(dst, weights[0], weights[1]);
  }

  static void store_over_queries(uint32_t* dst, int64_t row, Vec weights) {
    store_bf16(reinterpret_cast<uint16_t*>(dst) + row, weights);
  }

  template <bool kTransposed>
  static void multiply(
      const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c,
      int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor) {
    multiply_pairs(
        kTransposed, a, a_stride, b, b_stride, c, c_stride, rows, columns, depth, accumulate, factor);
  }
};

// dst (columns, stride) = elements (rows, columns)^T; `rows` is a multiple of kLanes.
template <typename Element>
inline void transpose(
    Element* dst, int64_t dst_stride, const Element* src, int64_t src_stride, int64_t rows,
    int64_t columns) {
  static_assert(sizeof(Element) == sizeof(float));  // bits are moved, whatever they mean
  for (int64_t d = 0; d < columns; d += kLanes) {
    const int64_t count = std::min(kLanes, columns - d);
    for (int64_t i = 0; i < rows; i += kLanes) {
      at::vec::transpose_mxn<float>(
          reinterpret_cast<const float*>(src + i * src_stride + d), src_stride,
          reinterpret_cast<float*>(dst + d * dst_stride + i), dst_stride, static_cast<int>(kLanes),
          static_cast<int>(count));
    }
  }
}

}  // namespace ptv2
