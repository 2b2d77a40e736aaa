// Forward: one softmax over the prompt's keys, then the sequence's own.
//
// A task owns a block of query rows of one (head, sequence) and walks tiles of keys with a running
// maximum and sum (Milakov and Gimelshein 2018). Tasks go sequence by sequence, whose rows lie close
// together in memory, and a prompt's rows stay in cache for the sequences that share them.
#include "tasks.h"
#include "tiles.h"

namespace ptv2 {
namespace {

struct Workspace {
  explicit Workspace(int64_t head_dim)
      : width(round_up(head_dim, kLanes)),
        scratch(
            3 * Scratch::size(kBlockRows * width) + 2 * Scratch::size(kBlockKeys * width) +
            2 * Scratch::size(kBlockKeys * kBlockRows) + 7 * Scratch::size(kBlockRows)),
        query(scratch.take(kBlockRows * width)),
        query_t(scratch.take(kBlockRows * width)),
        out(scratch.take(kBlockRows * width)),
        tile{scratch.take(kBlockKeys * width), scratch.take(kBlockKeys * width)},
        scores(scratch.take(kBlockKeys * kBlockRows)),
        factors(scratch.take(kBlockKeys * kBlockRows)),
        row_max(scratch.take(kBlockRows)),
        row_sum(scratch.take(kBlockRows)),
        correction(scratch.take(kBlockRows)),
        words(reinterpret_cast<uint32_t*>(scratch.take(4 * kBlockRows))) {}

  int64_t width;  // head_dim up to a multiple of kLanes
  Scratch scratch;
  float* query;    // (kBlockRows, width)
  float* query_t;  // (head_dim, kBlockRows), times scale and log2 e
  float* out;      // (kBlockRows, width), not yet divided by row_sum
  KeyTile tile;
  float* scores;   // (kBlockKeys, kBlockRows)
  float* factors;  // dropout's, as scores
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
void softmax_tile(Workspace& w, int64_t count, int64_t rows, bool dropout) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    const Vec old_max = Vec::loadu(w.row_max + i);
    Vec new_max = old_max;
    for (int64_t j = 0; j < count; ++j) {
      new_max = at::vec::maximum(new_max, Vec::loadu(w.scores + j * kBlockRows + i));
    }
    // A row that has seen nothing yet measures from 0: -inf less -inf would be NaN.
    const Vec base = Vec::blendv(new_max, Vec(0.0f), new_max == Vec(-kInfinity));
    Vec sum(0.0f);
    for (int64_t j = 0; j < count; ++j) {
      float* score = w.scores + j * kBlockRows + i;
      Vec weight = exp2(Vec::loadu(score) - base);
      sum = sum + weight;
      if (dropout) {
        weight = weight * Vec::loadu(w.factors + j * kBlockRows + i);
      }
      weight.store(score);
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

void attend(const Call& call, Workspace& w, const Keys& keys, const Block& block) {
  const int64_t rows = round_up(block.rows, kLanes);
  const Range range = visible_keys(call.options, keys, block.first_row, block.rows);
  for (int64_t first = range.begin; first < range.end; first += kBlockKeys) {
    const int64_t count = std::min(kBlockKeys, range.end - first);
    w.tile.load(keys, block.head, first, count, w.width, call.head_dim);
    multiply<false>(
        w.tile.key, w.width, w.query_t, kBlockRows, w.scores, kBlockRows, count, rows,
        call.head_dim, false);
    hide(w.scores, call.options, keys, first, count, block.first_row, rows);
    if (call.options.dropout) {
      dropout_factors(
          w.factors, kBlockRows, call.options,
          [&](int64_t j) { return keys.dropout_column(first + j); }, count, block.first_row, rows,
          block.head, block.sequence->index, w.words);
    }
    softmax_tile(w, count, rows, call.options.dropout);
    scale_rows(w.out, w.width, w.correction, rows);
    multiply<true>(
        w.scores, kBlockRows, w.tile.value, w.width, w.out, w.width, rows, w.width, count, true);
  }
}

void forward_block(
    const Call& call, const Matrix& out, const RowValues& lse, Workspace& w, const Block& block) {
  const Sequence& sequence = *block.sequence;
  const int64_t rows = round_up(block.rows, kLanes);
  load_rows(
      w.query, w.width, call.query, sequence.entry, block.head, sequence.start, nullptr,
      block.first_row, block.rows, rows, call.head_dim);
  finite_where_masked(w.query, w.width, call, sequence, block.first_row, block.rows);
  transpose(
      w.query_t, kBlockRows, w.query, w.width, rows, call.head_dim, call.options.scale * kLog2E);
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

}  // namespace

void forward(const Call& call, const Matrix& out, const RowValues& lse) {
  std::vector<Block> blocks;
  for (const Sequence& sequence : call.sequences) {
    for (int64_t head = 0; head < call.heads; ++head) {
      for (int64_t first = 0; first < sequence.length; first += kBlockRows) {
        blocks.push_back({&sequence, head, first, std::min(kBlockRows, sequence.length - first)});
      }
    }
  }
  for_each_task<Workspace>(
      static_cast<int64_t>(blocks.size()), [&] { return Workspace(call.head_dim); },
      [&](Workspace& workspace, int64_t i) {
        forward_block(call, out, lse, workspace, blocks[i]);
      });
}

}  // namespace ptv2
