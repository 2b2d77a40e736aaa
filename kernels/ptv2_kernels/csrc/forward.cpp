// Forward: one softmax over the prompt's keys, then the sequence's own.
//
// A task owns a block of query rows of one (head, sequence) and walks tiles of keys with a running
// maximum and sum (Milakov and Gimelshein 2018). Tasks go sequence by sequence, whose rows lie close
// together in memory, and a prompt's rows stay in cache for the sequences that share them.
#include "formats.h"
#include "tasks.h"
#include "tiles.h"

namespace ptv2 {
namespace {

template <typename Format>
struct Workspace {
  using Element = typename Format::Element;

  explicit Workspace(int64_t head_dim)
      : width(round_up(head_dim, kLanes)),
        depth(width / Format::kDepth),
        scratch(
            2 * Scratch::size(kBlockRows * depth) + Scratch::size(kBlockRows * width) +
            2 * Scratch::size(kBlockKeys * depth) + 2 * Scratch::size(kBlockKeys * kBlockRows) +
            7 * Scratch::size(kBlockRows) +
            Format::scratch(kBlockKeys * width + kBlockKeys * kBlockRows)),
        query(scratch.take<Element>(kBlockRows * depth)),
        query_t(scratch.take<Element>(kBlockRows * depth)),
        out(scratch.take(kBlockRows * width)),
        key(scratch.take<Element>(kBlockKeys * depth)),
        value(scratch.take<Element>(kBlockKeys * depth)),
        value_over_rows(scratch.take<Element>(Format::scratch(kBlockKeys * width))),
        scores(scratch.take(kBlockKeys * kBlockRows)),
        weights(scratch.take<Element>(Format::scratch(kBlockKeys * kBlockRows))),
        factors(scratch.take(kBlockKeys * kBlockRows)),
        row_max(scratch.take(kBlockRows)),
        row_sum(scratch.take(kBlockRows)),
        correction(scratch.take(kBlockRows)),
        words(scratch.take<uint32_t>(4 * kBlockRows)) {}

  typename Format::Session session;
  int64_t width;  // head_dim up to a multiple of kLanes
  int64_t depth;  // the same in elements
  Scratch scratch;
  Element* query;    // (kBlockRows, depth)
  Element* query_t;  // (depth, kBlockRows)
  float* out;        // (kBlockRows, width), not yet divided by row_sum
  Element* key;      // (kBlockKeys, depth)
  Element* value;
  Element* value_over_rows;
  float* scores;     // (kBlockKeys, kBlockRows), times scale and log2 e
  Element* weights;  // over keys
  float* factors;    // dropout's, as scores
  float* row_max;
  float* row_sum;
  float* correction;
  uint32_t* words;  // (4, kBlockRows)
};

// A task's rows.
struct Block {
  const Sequence* sequence;
  int64_t head;
  int64_t first_row;
  int64_t rows;
};

// Turn scores (count, rows) into weights under the new maximum; leave how the old ones shrink in
// `correction`.
template <typename Format>
void softmax_tile(Workspace<Format>& w, int64_t count, int64_t rows, bool dropout) {
  auto* weights = Format::pick(w.scores, w.weights);
  for (int64_t i = 0; i < rows; i += kLanes) {
    const Vec old_max = Vec::loadu(w.row_max + i);
    Vec new_max = old_max;
    for (int64_t j = 0; j < count; ++j) {
      new_max = at::vec::maximum(new_max, Vec::loadu(w.scores + j * kBlockRows + i));
    }
    // A row that has seen nothing yet measures from 0: -inf less -inf would be NaN.
    const Vec base = Vec::blendv(new_max, Vec(0.0f), new_max == Vec(-kInfinity));
    Vec sum(0.0f);
    for (int64_t j = 0; j < count; j += Format::kDepth) {
      Vec weight[Format::kDepth];
      for (int64_t k = 0; k < Format::kDepth; ++k) {
        const int64_t at = (j + k) * kBlockRows + i;
        weight[k] = j + k < count ? exp2(Vec::loadu(w.scores + at) - base) : Vec(0.0f);
        sum = sum + weight[k];
        if (dropout) {
          weight[k] = weight[k] * Vec::loadu(w.factors + at);
        }
      }
      Format::store_over_keys(weights + j / Format::kDepth * kBlockRows + i, weight);
    }
    const Vec correction = exp2(old_max - base);
    correction.store(w.correction + i);
    at::vec::fmadd(Vec::loadu(w.row_sum + i), correction, sum).store(w.row_sum + i);
    new_max.store(w.row_max + i);
  }
}

void scale_rows(float* matrix, int64_t width, const float* factors, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < width; d += kLanes) {
      float* values = matrix + i * width + d;
      (Vec::loadu(values) * Vec(factors[i])).store(values);
    }
  }
}

template <typename Format>
void attend(const Call& call, Workspace<Format>& w, const Keys& keys, const Block& block) {
  using Element = typename Format::Element;
  const int64_t rows = round_up(block.rows, kLanes);
  const Range range = visible_keys(call.options, keys, block.first_row, block.rows);
  for (int64_t first = range.begin; first < range.end; first += kBlockKeys) {
    const int64_t count = std::min(kBlockKeys, range.end - first);
    const int64_t padded = round_up(count, kTileRows);
    const auto load = [&](Element* dst, const Matrix& matrix) {
      load_keys(
          Format::numbers(dst), matrix, keys, block.head, first, count, w.width, call.head_dim);
    };
    load(w.key, keys.key);
    load(w.value, keys.value);
    Format::over_rows(w.value, w.value_over_rows, padded, w.width);
    Format::template multiply<false>(
        w.key, w.depth, w.query_t, kBlockRows, w.scores, kBlockRows, count, rows, w.depth, false,
        call.options.scale * kLog2E);
    add_gates(w.scores, keys.log_gate(block.head), first, count, rows);
    hide(w.scores, call.options, keys, first, count, block.first_row, rows);
    if (call.options.dropout) {
      dropout_factors(
          w.factors, kBlockRows, call.options,
          [&](int64_t j) { return keys.dropout_column(first + j); }, count, block.first_row, rows,
          block.head, block.sequence->index, w.words);
    }
    softmax_tile(w, count, rows, call.options.dropout);
    scale_rows(w.out, w.width, w.correction, rows);
    Format::template multiply<true>(
        Format::pick(w.scores, w.weights), kBlockRows,
        Format::pick(w.value, w.value_over_rows), w.width, w.out, w.width, rows, w.width,
        (count + Format::kDepth - 1) / Format::kDepth, true, 1.0f);
  }
}

template <typename Format>
void forward_block(
    const Call& call, const Matrix& out, const RowValues& lse, Workspace<Format>& w,
    const Block& block) {
  const Sequence& sequence = *block.sequence;
  const int64_t rows = round_up(block.rows, kLanes);
  auto* query = Format::numbers(w.query);
  load_rows(
      query, w.width, call.query, sequence.entry, block.head, sequence.start, nullptr,
      block.first_row, block.rows, rows, call.head_dim);
  finite_where_masked(query, w.width, call, sequence, block.first_row, block.rows);
  transpose(w.query_t, kBlockRows, w.query, w.depth, rows, w.depth);
  std::fill_n(w.row_max, rows, -kInfinity);
  std::fill_n(w.row_sum, rows, 0.0f);
  std::fill_n(w.out, rows * w.width, 0.0f);
  attend(call, w, prompt_keys(call, sequence), block);
  attend(call, w, own_keys(call, sequence), block);

  float* row_lse = lse.row(sequence.entry, block.head, sequence.start + block.first_row);
  for (int64_t i = 0; i < block.rows; ++i) {
    const bool saw_nothing = w.row_sum[i] == 0.0f;
    row_lse[i] = saw_nothing ? -kInfinity : (w.row_max[i] + std::log2(w.row_sum[i])) * kLn2;
    w.correction[i] = saw_nothing ? 0.0f : 1.0f / w.row_sum[i];
  }
  scale_rows(w.out, w.width, w.correction, block.rows);
  store_rows(
      out, sequence.entry, block.head, sequence.start, nullptr, block.first_row, block.rows, w.out,
      w.width, call.head_dim, 1.0f);
}

template <typename Format>
void forward_blocks(
    const Call& call, const Matrix& out, const RowValues& lse, const std::vector<Block>& blocks) {
  for_each_task<Workspace<Format>>(
      static_cast<int64_t>(blocks.size()), [&] { return Workspace<Format>(call.head_dim); },
      [&](Workspace<Format>& workspace, int64_t i) {
        forward_block(call, out, lse, workspace, blocks[i]);
      });
}

}  // namespace

std::string product_format(at::ScalarType dtype) {
  std::string name;
  with_format(dtype, [&](auto format) { name = decltype(format)::kName; });
  return name;
}

void forward(const Call& call, const Matrix& out, const RowValues& lse) {
  std::vector<Block> blocks;
  for (const Sequence& sequence : call.sequences) {
    for (int64_t head = 0; head < call.heads; ++head) {
      for (int64_t first = 0; first < sequence.length; first += kBlockRows) {
        blocks.push_back({&sequence, head, first, std::min(kBlockRows, sequence.length - first)});
      }
    }
  }
  with_format(call.query.dtype, [&](auto format) {
    forward_blocks<decltype(format)>(call, out, lse, blocks);
  });
}

}  // namespace ptv2
