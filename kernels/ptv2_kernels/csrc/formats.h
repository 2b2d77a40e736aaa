// In which form products take their factors, fp32 or pairs of bf16, and what multiplies them.
//
// A format's elements hold kDepth numbers that are neighbours along the depth of a product. For a
// product over columns these are the rows as they are, (count, width / kDepth) elements; for one over
// rows, (count / kDepth, width), they are made in scratch, which is handed in; floats need none.
#pragma once

#include "amx.h"
#include "pairs.h"
#include "product.h"
#include "rows.h"

namespace ptv2 {

struct Floats {
  static constexpr const char* kName = "fp32";
  using Element = float;
  static constexpr int64_t kDepth = 1;

  // What a thread holds while it multiplies.
  struct Session {};

  // Elements of scratch for so many numbers, for what is made of others.
  static int64_t scratch(int64_t) { return 0; }

  // The numbers that elements hold.
  static float* numbers(float* elements) { return elements; }

  // From rows (count, width) for a product over columns to those for one over rows.
  static void over_rows(const float*, float*, int64_t, int64_t) {}

  // The first of two places here, the second for a format that makes what is at one of the other.
  static float* pick(float* first, float*) { return first; }

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

#if defined(CPU_CAPABILITY_AVX512)
// kLanes bf16, rounded to nearest even; of a number below 2^-126, 0. In assembly, so that the rest of
// this file is not compiled for processors that have the instruction: only has_pairs() ones get here.
inline __m256i round_by_instruction(Vec values) {
  __m256i rounded;
  asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(static_cast<__m512>(values)));
  return rounded;
}

struct Pairs {
  static constexpr const char* kName = "pairs";
  using Element = uint32_t;
  static constexpr int64_t kDepth = 2;

  struct Session {};

  static int64_t scratch(int64_t numbers) { return numbers / kDepth; }

  static uint16_t* numbers(uint32_t* elements) { return reinterpret_cast<uint16_t*>(elements); }

  // `count` is even.
  static void over_rows(uint32_t* rows, uint32_t* dst, int64_t count, int64_t width) {
    for (int64_t i = 0; i < count; i += 2) {
      const uint16_t* low = numbers(rows) + i * width;
      const uint16_t* high = low + width;
      uint32_t* pairs = dst + i / 2 * width;
      for (int64_t d = 0; d < width; ++d) {
        pairs[d] = low[d] | static_cast<uint32_t>(high[d]) << 16;
      }
    }
  }

  template <typename First>
  static uint32_t* pick(First*, uint32_t* second) {
    return second;
  }

  static void store_over_keys(uint32_t* dst, const Vec* weights) {
    const __m512i low = _mm512_cvtepu16_epi32(round_by_instruction(weights[0]));
    const __m512i high = _mm512_cvtepu16_epi32(round_by_instruction(weights[1]));
    _mm512_storeu_si512(dst, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }

  static void store_over_queries(uint32_t* dst, int64_t row, Vec weights) {
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(numbers(dst) + row), round_by_instruction(weights));
  }

  template <bool kTransposed>
  static void multiply(
      const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c,
      int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor) {
    multiply_pairs(
        kTransposed, a, a_stride, b, b_stride, c, c_stride, rows, columns, depth, accumulate, factor);
  }
};

#if defined(PTV2_HAS_AMX)
struct Amx : Pairs {
  static constexpr const char* kName = "amx";
  using Session = AmxSession;

  template <bool kTransposed>
  static void multiply(
      const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride, float* c,
      int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor) {
    multiply_amx(
        kTransposed, a, a_stride, b, b_stride, c, c_stride, rows, columns, depth, accumulate, factor);
  }
};

#endif
#endif

// Call run(Format()) with the fastest format that this machine has for a dtype.
template <typename Run>
void with_format([[maybe_unused]] at::ScalarType dtype, const Run& run) {
#if defined(CPU_CAPABILITY_AVX512)
  if (dtype == at::kBFloat16 && has_pairs()) {
#if defined(PTV2_HAS_AMX)
    if (has_amx()) {
      return run(Amx());
    }
#endif
    return run(Pairs());
  }
#endif
  run(Floats());
}

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
