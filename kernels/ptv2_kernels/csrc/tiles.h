// Tiles: a block of query rows against a block of keys, with the keys along a tile's rows.
//
// Scores are held transposed, (keys, query rows), so that the softmax of a query row runs down a
// vector's lane and no sum crosses lanes.
#pragma once

#include <algorithm>

#include "amx.h"
#include "call.h"
#include "dropout.h"
#include "product.h"
#include "rows.h"
#include "vectors.h"

namespace ptv2 {

constexpr int64_t kBlockRows = 64;   // query rows of a tile
constexpr int64_t kBlockKeys = 128;  // keys of a tile
static_assert(kBlockKeys <= 2 * kAmxDepth);

// Keys of one block, the prompt's or the sequence's own.
struct Keys {
  const Matrix& key;
  const Matrix& value;
  int64_t entry;
  int64_t base;            // row of column 0 in the matrices
  const int32_t* columns;  // the block's columns; nullptr: 0, 1, ...
  int64_t count;
  bool own;
  const float* log_gates;  // of the first head; nullptr: no gates
  int64_t gate_stride;     // of a head

  // Of each key, to be added to its scores; nullptr: none.
  const float* log_gate(int64_t head) const {
    return log_gates == nullptr ? nullptr : log_gates + head * gate_stride;
  }

  int64_t column(int64_t j) const { return columns == nullptr ? j : columns[j]; }

  int64_t dropout_column(int64_t j) const { return column(j) + (own ? kOwnColumnOffset : 0); }

  // How many keys lie before a column.
  int64_t before(int64_t column) const {
    if (columns == nullptr) {
      return std::clamp<int64_t>(column, 0, count);
    }
    return std::lower_bound(columns, columns + count, column) - columns;
  }
};

inline Keys prompt_keys(const Call& call, const Sequence& sequence) {
  const int64_t start = sequence.prompt_start;
  const float* log_gates = call.log_gates.empty() ? nullptr : call.log_gates.data() + start;
  return {call.prefix_key, call.prefix_value, 0, start, nullptr, sequence.prompt_length, false,
          log_gates, call.pool_rows};
}

inline Keys own_keys(const Call& call, const Sequence& sequence) {
  return {call.key, call.value, sequence.entry, sequence.start, sequence.columns,
          sequence.column_count, true, nullptr, 0};
}

// Keys [first, first + count), or their values, as load_rows leaves them.
template <typename Number>
inline void load_keys(
    Number* dst, const Matrix& matrix, const Keys& keys, int64_t head, int64_t first, int64_t count,
    int64_t width, int64_t head_dim) {
  load_rows(
      dst, width, matrix, keys.entry, head, keys.base, keys.columns, first, count,
      round_up(count, kTileRows), head_dim);
}

// The own keys [begin, end) that some row of [first_row, first_row + rows) sees.
struct Range {
  int64_t begin, end;
};

inline Range visible_keys(const Options& options, const Keys& keys, int64_t first_row, int64_t rows) {
  Range range{0, keys.count};
  if (keys.own && options.window) {
    range.begin = keys.before(first_row - *options.window);
    range.end = keys.before(first_row + rows + *options.window);
  }
  if (keys.own && options.causal) {
    range.end = std::min(range.end, keys.before(first_row + rows));
  }
  return {range.begin, std::max(range.begin, range.end)};
}

// scores (count, kBlockRows) += the log of the gate of each key from `first` on.
inline void add_gates(
    float* scores, const float* log_gate, int64_t first, int64_t count, int64_t width) {
  if (log_gate == nullptr) {
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    const Vec gate(log_gate[first + j]);
    for (int64_t i = 0; i < width; i += kLanes) {
      float* values = scores + j * kBlockRows + i;
      (Vec::loadu(values) + gate).store(values);
    }
  }
}

// scores (count, kBlockRows) = -inf where a row does not see a key of [first, first + count).
inline void hide(
    float* scores, const Options& options, const Keys& keys, int64_t first, int64_t count,
    int64_t first_row, int64_t width) {
  if (!keys.own || (!options.causal && !options.window)) {
    return;
  }
  const float reach = options.window ? static_cast<float>(*options.window) : kInfinity;
  const Vec ahead(options.causal ? 0.0f : -reach), behind(reach);
  for (int64_t j = 0; j < count; ++j) {
    const float distance = static_cast<float>(first_row - keys.column(first + j));
    float* row = scores + j * kBlockRows;
    for (int64_t i = 0; i < width; i += kLanes) {
      const Vec d = Vec::arange(distance + static_cast<float>(i), 1.0f);  // row - column
      const Vec seen = (d >= ahead) & (d <= behind);
      Vec::blendv(Vec(-kInfinity), Vec::loadu(row + i), seen).store(row + i);
    }
  }
}

}  // namespace ptv2
