// Rows of a Matrix to and from scratch, padded so that products need no masks.
#pragma once

#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "call.h"
#include "vectors.h"

namespace ptv2 {

// kLanes elements, or `count` of them and zeros, as floats.
template <typename scalar_t>
inline Vec load_floats(const scalar_t* src, int64_t count = kLanes) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    return count == kLanes ? Vec::loadu(src) : Vec::loadu(src, count);
  } else {
    float lanes[kLanes] = {};
    if (count == kLanes) {
      for (int64_t i = 0; i < kLanes; ++i) {
        lanes[i] = static_cast<float>(src[i]);
      }
    } else {
      std::copy(src, src + count, lanes);
    }
    return Vec::loadu(lanes);
  }
}

template <typename scalar_t>
inline void store_floats(scalar_t* dst, Vec values, int64_t count = kLanes) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    values.store(dst, static_cast<int>(count));
  } else if constexpr (std::is_same_v<scalar_t, at::BFloat16>) {
    store_bf16(reinterpret_cast<uint16_t*>(dst), values, count);
  } else {
    float lanes[kLanes];
    values.store(lanes);
    std::copy(lanes, lanes + count, dst);
  }
}

// A row of `count` elements as floats, with zeros up to whole vectors.
template <typename scalar_t>
inline void copy_row(float* dst, const scalar_t* src, int64_t count, int64_t) {
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t d = 0; d < whole; d += kLanes) {
    load_floats(src + d).store(dst + d);
  }
  if (whole < count) {
    load_floats(src + whole, count - whole).store(dst + whole);
  }
}

// The same as bf16, with zeros up to `width`; what is bf16 keeps its bits.
template <typename scalar_t>
inline void copy_row(uint16_t* dst, const scalar_t* src, int64_t count, int64_t width) {
  if constexpr (std::is_same_v<scalar_t, at::BFloat16>) {
    std::memcpy(dst, src, static_cast<size_t>(count) * sizeof(uint16_t));
  } else {
    for (int64_t d = 0; d < count; d += kLanes) {
      const int64_t lanes = std::min(kLanes, count - d);
      store_bf16(dst + d, load_floats(src + d, lanes), lanes);
    }
  }
  std::fill(dst + count, dst + width, uint16_t{0});
}

// Convert rows of `matrix` into dst (count, width), of floats or bf16: row i comes from base +
// columns[first + i], or base + first + i without columns. Columns beyond head_dim and rows up to
// `padded_count` get 0; width is head_dim up to a multiple of kLanes.
template <typename Number>
inline void load_rows(
    Number* dst, int64_t width, const Matrix& matrix, int64_t entry, int64_t head, int64_t base,
    const int32_t* columns, int64_t first, int64_t count, int64_t padded_count,
    int64_t head_dim) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, matrix.dtype, "load_rows", [&] {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = base + (columns == nullptr ? first + i : columns[first + i]);
          const auto* src = reinterpret_cast<const scalar_t*>(matrix.row(entry, head, row));
          // The next head's row lies behind this one, the next row too far for the hardware to guess.
          for (int64_t d = 0; d < head_dim; d += 64 / sizeof(scalar_t)) {
            __builtin_prefetch(src + matrix.head_stride + d, 0, 2);
          }
          copy_row(dst + i * width, src, head_dim, width);
        }
      });
  std::fill(dst + count * width, dst + padded_count * width, Number{0});
}

// Convert src (count, width) times `factor` into the rows that load_rows would read.
inline void store_rows(
    const Matrix& matrix, int64_t entry, int64_t head, int64_t base, const int32_t* columns,
    int64_t first, int64_t count, const float* src, int64_t width, int64_t head_dim,
    float factor) {
  const int64_t whole = head_dim / kLanes * kLanes;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, matrix.dtype, "store_rows", [&] {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = base + (columns == nullptr ? first + i : columns[first + i]);
          auto* dst = reinterpret_cast<scalar_t*>(matrix.row(entry, head, row));
          const float* values = src + i * width;
          for (int64_t d = 0; d < whole; d += kLanes) {
            store_floats(dst + d, Vec::loadu(values + d) * Vec(factor));
          }
          if (whole < width) {
            store_floats(dst + whole, Vec::loadu(values + whole) * Vec(factor), head_dim - whole);
          }
        }
      });
}

inline bool is_finite(float value) {
  return std::isfinite(value);
}

// Of the bits of a bf16.
inline bool is_finite(uint16_t bits) {
  return (bits & 0x7F80) != 0x7F80;
}

// Replace what is not finite by 0 in the rows whose position is masked.
template <typename Number>
inline void finite_where_masked(
    Number* rows, int64_t width, const Call& call, const Sequence& sequence, int64_t first,
    int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!call.attended(sequence, first + i)) {
      for (int64_t d = 0; d < width; ++d) {
        Number& value = rows[i * width + d];
        value = is_finite(value) ? value : Number{0};
      }
    }
  }
}

}  // namespace ptv2
