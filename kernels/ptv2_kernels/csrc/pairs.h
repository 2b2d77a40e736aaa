// Products of bf16 in pairs: AVX-512's dot product of two multiplies as often as fp32 per cycle.
// Only in the build for AVX-512. Its instructions, as AMX's, take numbers below 2^-126 as 0.
#pragma once

#include <cstdint>

namespace ptv2 {

// Whether this processor has it.
bool has_pairs();

// C (rows, columns) = factor (A B + C), where C counts only if `accumulate`, as in product.h.
//
// An element is a pair of bf16, neighbours along the depth: A is (rows, depth) pairs, or (depth,
// rows) if transposed; B is (depth, columns). Only where has_pairs().
void multiply_pairs(
    bool transposed, const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
    float* c, int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool accumulate, float factor);

}  // namespace ptv2
