// The backward's workspace and what one tile of scores gives to each gradient.
//
//   P = exp(S - lse)   dV = (P M)^T dO   dS = P (M (dO V^T) - delta)   dQ = scale dS K
//   dK = scale dS^T Q, with dropout's factors M; dQ and dK get their scale when they are stored
//
// The gradient of a gate is the sum of its key's dS, with P as it would be if the gate were 1.
#pragma once

#include <numeric>

#include "formats.h"
#include "tiles.h"

namespace ptv2 {

// Where a tile's gradients are summed; nullptr: not asked for.
struct TileSums {
  float* d_key;
  float* d_value;
  float* d_gate;
};

// A tile of keys and values, or several one after another, as products take them.
template <typename Format>
struct KeyTile {
  using Element = typename Format::Element;

  KeyTile(Scratch& scratch, int64_t numbers)
      : key(scratch.take<Element>(numbers / Format::kDepth)),
        value(scratch.take<Element>(numbers / Format::kDepth)),
        key_over_rows(scratch.take<Element>(Format::scratch(numbers))) {}

  static int64_t size(int64_t numbers) {
    return 2 * Scratch::size(numbers / Format::kDepth) + Scratch::size(Format::scratch(numbers));
  }

  // The tile `numbers` further on.
  KeyTile at(int64_t numbers) const {
    KeyTile tile = *this;
    tile.key += numbers / Format::kDepth;
    tile.value += numbers / Format::kDepth;
    tile.key_over_rows += Format::scratch(numbers);
    return tile;
  }

  void load(
      const Keys& keys, int64_t head, int64_t first, int64_t count, int64_t width,
      int64_t head_dim) {
    const int64_t padded = round_up(count, kTileRows);
    if (keys.key.data != nullptr) {
      load_keys(Format::numbers(key), keys.key, keys, head, first, count, width, head_dim);
      Format::over_rows(key, key_over_rows, padded, width);
    }
    if (keys.value.data != nullptr) {
      load_keys(Format::numbers(value), keys.value, keys, head, first, count, width, head_dim);
    }
  }

  Element* key;  // (kBlockKeys, depth)
  Element* value;
  Element* key_over_rows;
};

template <typename Format>
struct BackwardWorkspace {
  using Element = typename Format::Element;

  BackwardWorkspace(int64_t head_dim, int64_t longest, int64_t longest_prompt)
      : width(round_up(head_dim, kLanes)),
        depth(width / Format::kDepth),
        rows(round_up(longest, kBlockRows)),
        scratch(
            4 * Scratch::size(rows * depth) + Scratch::size(rows * width) +
            2 * Scratch::size(rows) + 2 * Scratch::size(kBlockRows * width) +
            Scratch::size(Format::scratch(kBlockRows * width)) +
            KeyTile<Format>::size(round_up(longest_prompt, kBlockKeys) * width) +
            KeyTile<Format>::size(kBlockKeys * width) + 2 * Scratch::size(kBlockKeys * width) +
            3 * Scratch::size(kBlockKeys * kBlockRows) +
            3 * Scratch::size(Format::scratch(kBlockKeys * kBlockRows)) +
            Scratch::size(4 * kBlockRows)),
        query(scratch.take<Element>(rows * depth)),
        d_out(scratch.take<Element>(rows * depth)),
        query_t(scratch.take<Element>(rows * depth)),
        d_out_t(scratch.take<Element>(rows * depth)),
        d_query(scratch.take(rows * width)),
        lse(scratch.take(rows)),
        delta(scratch.take(rows)),
        out_rows(scratch.take(kBlockRows * width)),
        d_out_rows(scratch.take(kBlockRows * width)),
        columns(scratch.take<Element>(Format::scratch(kBlockRows * width))),
        prompt(scratch, round_up(longest_prompt, kBlockKeys) * width),
        own(scratch, kBlockKeys * width),
        d_key(scratch.take(kBlockKeys * width)),
        d_value(scratch.take(kBlockKeys * width)),
        scores(scratch.take(kBlockKeys * kBlockRows)),
        d_weights(scratch.take(kBlockKeys * kBlockRows)),
        factors(scratch.take(kBlockKeys * kBlockRows)),
        weights(scratch.take<Element>(Format::scratch(kBlockKeys * kBlockRows))),
        d_scores(scratch.take<Element>(Format::scratch(kBlockKeys * kBlockRows))),
        d_scores_over_keys(scratch.take<Element>(Format::scratch(kBlockKeys * kBlockRows))),
        words(scratch.take<uint32_t>(4 * kBlockRows)) {}

  typename Format::Session session;
  int64_t width;  // head_dim up to a multiple of kLanes
  int64_t depth;  // the same in elements
  int64_t rows;   // of the longest sequence, up to whole blocks
  Scratch scratch;
  // Of a sequence, in numbers: (rows, width).
  Element* query;  // over rows
  Element* d_out;
  Element* query_t;  // (depth, kBlockRows) for each block
  Element* d_out_t;
  float* d_query;
  float* lse;  // times log2 e; +inf where a row sees nothing
  float* delta;
  // Of a block of rows: (kBlockRows, width).
  float* out_rows;
  float* d_out_rows;
  Element* columns;
  // Of a tile of keys: (kBlockKeys, width).
  KeyTile<Format> prompt;  // all tiles of the prompt
  KeyTile<Format> own;
  float* d_key;
  float* d_value;
  // Of a tile of scores: (kBlockKeys, kBlockRows).
  float* scores;  // times scale and log2 e
  float* d_weights;
  float* factors;     // dropout's
  Element* weights;   // over queries
  Element* d_scores;  // over queries
  Element* d_scores_over_keys;
  uint32_t* words;
};

// Add to d_gate (count,) what `rows` rows give, from scores without the gates. What a weight would be
// if the gate were 1 counts as at most 2^100, so that the sum is finite.
template <typename Format>
void add_gate_gradients(
    BackwardWorkspace<Format>& w, bool dropout, int64_t first_row, int64_t count, int64_t rows,
    float* d_gate) {
  for (int64_t j = 0; j < count; ++j) {
    Vec sum(0.0f);
    for (int64_t i = 0; i < rows; i += kLanes) {
      const int64_t at = j * kBlockRows + i;
      const Vec lse = Vec::loadu(w.lse + first_row + i);
      const Vec delta = Vec::loadu(w.delta + first_row + i);
      const Vec score = at::vec::minimum(Vec::loadu(w.scores + at) - lse, Vec(100.0f));
      const Vec weight = Vec::blendv(exp2(score), Vec(0.0f), lse == Vec(kInfinity));
      const Vec factor = dropout ? Vec::loadu(w.factors + at) : Vec(1.0f);
      sum = at::vec::fmadd(weight, Vec::loadu(w.d_weights + at) * factor - delta, sum);
    }
    float lanes[kLanes];
    sum.store(lanes);
    d_gate[j] += std::accumulate(lanes, lanes + kLanes, 0.0f);
  }
}

// From scores and the gradients of weights: weights = P M and d_scores = P (M dP - delta).
template <typename Format>
void weigh(
    BackwardWorkspace<Format>& w, bool dropout, int64_t first_row, int64_t count, int64_t rows,
    bool needs_scores) {
  constexpr int64_t stride = kBlockRows / Format::kDepth;
  auto* weights = Format::pick(w.scores, w.weights);
  auto* d_scores = Format::pick(w.d_weights, w.d_scores);
  auto* d_scores_over_keys = Format::pick(w.d_weights, w.d_scores_over_keys);
  for (int64_t i = 0; i < rows; i += kLanes) {
    const Vec lse = Vec::loadu(w.lse + first_row + i), delta = Vec::loadu(w.delta + first_row + i);
    const Vec sees_nothing = lse == Vec(kInfinity);  // then its scores may be NaN
    for (int64_t j = 0; j < count; j += Format::kDepth) {
      Vec d_score[Format::kDepth];
      for (int64_t k = 0; k < Format::kDepth; ++k) {
        d_score[k] = Vec(0.0f);
        if (j + k < count) {
          const int64_t at = (j + k) * kBlockRows + i;
          const Vec score = Vec::loadu(w.scores + at);
          const Vec weight = Vec::blendv(exp2(score - lse), Vec(0.0f), sees_nothing);
          const Vec factor = dropout ? Vec::loadu(w.factors + at) : Vec(1.0f);
          d_score[k] = weight * (Vec::loadu(w.d_weights + at) * factor - delta);
          Format::store_over_queries(weights + (j + k) * stride, i, weight * factor);
          if (needs_scores) {
            Format::store_over_queries(d_scores + (j + k) * stride, i, d_score[k]);
          }
        }
      }
      if (needs_scores) {
        Format::store_over_keys(d_scores_over_keys + j / Format::kDepth * kBlockRows + i, d_score);
      }
    }
  }
}

// Add what rows [first_row, first_row + kBlockRows) give to the gradients of the keys in `range`,
// and these keys to the rows'.
template <typename Format>
void tile_gradients(
    const Call& call, const Needs& needs, BackwardWorkspace<Format>& w, const Keys& keys,
    const KeyTile<Format>& tile, const TileSums& sums, const Range& range,
    const Sequence& sequence, int64_t head, int64_t first_row) {
  const int64_t rows = round_up(std::min(kBlockRows, sequence.length - first_row), kLanes);
  const int64_t count = range.end - range.begin, place = first_row * w.depth;
  const int64_t row_depth = rows / Format::kDepth;
  const int64_t key_depth = (count + Format::kDepth - 1) / Format::kDepth;
  constexpr int64_t stride = kBlockRows / Format::kDepth;
  const bool needs_scores = sums.d_key != nullptr || sums.d_gate != nullptr || needs.query;
  Format::template multiply<false>(
      tile.key, w.depth, w.query_t + place, kBlockRows, w.scores, kBlockRows, count, rows, w.depth,
      false, call.options.scale * kLog2E);
  if (needs_scores) {
    Format::template multiply<false>(
        tile.value, w.depth, w.d_out_t + place, kBlockRows, w.d_weights, kBlockRows, count, rows,
        w.depth, false, 1.0f);
  }
  hide(w.scores, call.options, keys, range.begin, count, first_row, rows);
  if (call.options.dropout) {
    dropout_factors(
        w.factors, kBlockRows, call.options,
        [&](int64_t j) { return keys.dropout_column(range.begin + j); }, count, first_row, rows,
        head, sequence.index, w.words);
  }
  if (sums.d_gate != nullptr) {
    add_gate_gradients(w, call.options.dropout, first_row, count, rows, sums.d_gate);
  }
  add_gates(w.scores, keys.log_gate(head), range.begin, count, rows);
  weigh(w, call.options.dropout, first_row, count, rows, needs_scores);
  if (sums.d_value != nullptr) {
    Format::template multiply<false>(
        Format::pick(w.scores, w.weights), stride, w.d_out + place, w.width, sums.d_value, w.width,
        count, w.width, row_depth, true, 1.0f);
  }
  if (sums.d_key != nullptr) {
    Format::template multiply<false>(
        Format::pick(w.d_weights, w.d_scores), stride, w.query + place, w.width, sums.d_key,
        w.width, count, w.width, row_depth, true, 1.0f);
  }
  if (needs.query) {
    Format::template multiply<true>(
        Format::pick(w.d_weights, w.d_scores_over_keys), kBlockRows,
        Format::pick(tile.key, tile.key_over_rows), w.width, w.d_query + first_row * w.width,
        w.width, rows, w.width, key_depth, true, 1.0f);
  }
}

}  // namespace ptv2
