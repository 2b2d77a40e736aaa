// Dropout's masks: Philox4x32-7 (Salmon et al. 2011) under the call's seed.
//
// The counter (column // 8, row, head, sequence) gives eight 16-bit numbers, one for each column of
// a group of 8. The prompt's columns count from 0, a sequence's own from kOwnColumnOffset.
#pragma once

#include "call.h"

namespace ptv2 {

constexpr int64_t kOwnColumnOffset = int64_t{1} << 20;
constexpr int kPhiloxRounds = 7;

// words (4, count): the random numbers of rows first_row, first_row + 1, ...
//
// Plain loops over lanes: the compiler turns them into vectors.
inline void random_words(
    uint32_t* words, int64_t count, uint64_t seed, uint32_t group, uint32_t first_row,
    uint32_t head, uint32_t sequence) {
  uint32_t* w0 = words;
  uint32_t* w1 = words + count;
  uint32_t* w2 = words + 2 * count;
  uint32_t* w3 = words + 3 * count;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t c0 = group, c1 = first_row + static_cast<uint32_t>(i), c2 = head, c3 = sequence;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 7
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const uint64_t even = uint64_t{0xD2511F53} * c0;
      const uint64_t odd = uint64_t{0xCD9E8D57} * c2;
      c0 = static_cast<uint32_t>(odd >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(odd);
      c2 = static_cast<uint32_t>(even >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(even);
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    w0[i] = c0;
    w1[i] = c1;
    w2[i] = c2;
    w3[i] = c3;
  }
}

// factors (columns, stride): keep_scale where the weight of (column, row) is kept, else 0, for
// `rows` rows from first_row. `columns` are a tile's dropout columns in ascending order.
template <typename ColumnOf>
inline void dropout_factors(
    float* factors, int64_t stride, const Options& options, ColumnOf column_of, int64_t columns,
    int64_t first_row, int64_t rows, int64_t head, int64_t sequence, uint32_t* words) {
  int64_t group = -1;
  for (int64_t j = 0; j < columns; ++j) {
    const int64_t column = column_of(j);
    if (column / 8 != group) {
      group = column / 8;
      random_words(
          words, rows, options.seed, static_cast<uint32_t>(group),
          static_cast<uint32_t>(first_row), static_cast<uint32_t>(head),
          static_cast<uint32_t>(sequence));
    }
    const uint32_t* word = words + column % 8 / 2 * rows;
    const int shift = static_cast<int>(column % 2) * 16;
    for (int64_t i = 0; i < rows; ++i) {
      const bool kept = (word[i] >> shift & 0xFFFF) >= options.threshold;
      factors[j * stride + i] = kept ? options.keep_scale : 0.0f;
    }
  }
}

}  // namespace ptv2
