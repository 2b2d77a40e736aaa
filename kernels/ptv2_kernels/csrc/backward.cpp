// Backward: all gradients in one walk over the tiles, five products each.
//
// A task owns one head of a few sequences that share a prompt. For each sequence it holds queries
// and output gradients in scratch, then takes the keys tile by tile, so that a tile's key and value
// gradients are sums in scratch and the query's gradient grows over the tiles. The prompt's are
// summed over the task's sequences, and over the tasks in a second step of fixed order: the same
// bits whatever the number of threads.
//
//   P = exp(S - lse)   dV = (P M)^T dO   dS = P (M (dO V^T) - delta)   dQ = scale dS K   dK = scale dS^T Q
#include <numeric>

#include "tasks.h"
#include "tiles.h"

namespace ptv2 {
namespace {

constexpr int64_t kTasks = 64;  // about how many the batch is cut into, if it has so many sequences

// Sequences of one prompt; `members` are indices into Call::sequences.
struct Chunk {
  std::vector<int64_t> members;
  int64_t prompt_start;
  int64_t prompt_length;
  int64_t partial;  // where its share of the prompt's gradients lies, in rows
};

// The prompt's gradients of every (head, chunk): rows of `width` floats.
struct Partials {
  std::vector<float> key, value;
  int64_t rows;  // of a head
  int64_t width;

  float* at(std::vector<float>& sums, int64_t head, int64_t row) const {
    return sums.data() + (head * rows + row) * width;
  }
};

struct Workspace {
  Workspace(int64_t head_dim, int64_t longest, int64_t longest_prompt)
      : width(round_up(head_dim, kLanes)),
        blocks((longest + kBlockRows - 1) / kBlockRows),
        prompt_rows(round_up(longest_prompt, kBlockKeys)),
        scratch(
            5 * Scratch::size(blocks * kBlockRows * width) +
            2 * Scratch::size(blocks * kBlockRows) + 4 * Scratch::size(kBlockKeys * width) +
            2 * Scratch::size(prompt_rows * width) +
            3 * Scratch::size(kBlockKeys * kBlockRows) + Scratch::size(4 * kBlockRows)),
        query(scratch.take(blocks * kBlockRows * width)),
        query_t(scratch.take(blocks * kBlockRows * width)),
        d_out(scratch.take(blocks * kBlockRows * width)),
        d_out_t(scratch.take(blocks * kBlockRows * width)),
        d_query(scratch.take(blocks * kBlockRows * width)),
        lse(scratch.take(blocks * kBlockRows)),
        delta(scratch.take(blocks * kBlockRows)),
        own{scratch.take(kBlockKeys * width), scratch.take(kBlockKeys * width)},
        d_key(scratch.take(kBlockKeys * width)),
        d_value(scratch.take(kBlockKeys * width)),
        prompt{scratch.take(prompt_rows * width), scratch.take(prompt_rows * width)},
        weights(scratch.take(kBlockKeys * kBlockRows)),
        d_scores(scratch.take(kBlockKeys * kBlockRows)),
        factors(scratch.take(kBlockKeys * kBlockRows)),
        words(reinterpret_cast<uint32_t*>(scratch.take(4 * kBlockRows))) {}

  int64_t width;
  int64_t blocks;
  int64_t prompt_rows;
  Scratch scratch;
  // Of one sequence: (blocks, kBlockRows, width), and transposed (blocks, head_dim, kBlockRows).
  float* query;
  float* query_t;  // times scale and log2 e
  float* d_out;
  float* d_out_t;
  float* d_query;
  float* lse;  // times log2 e; +inf where a row sees nothing
  float* delta;
  // Of a tile of keys.
  KeyTile own;
  float* d_key;
  float* d_value;
  KeyTile prompt;  // (prompt_rows, width)
  // Of a tile of scores, (kBlockKeys, kBlockRows).
  float* weights;
  float* d_scores;
  float* factors;
  uint32_t* words;
};

// Where a tile's keys, values and gradients are in scratch.
struct TileSums {
  const float* key;
  const float* value;
  float* d_key;    // nullptr: not asked for
  float* d_value;  // nullptr: not asked for
};

float dot(const float* a, const float* b, int64_t count) {
  Vec sum(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    sum = at::vec::fmadd(Vec::loadu(a + i), Vec::loadu(b + i), sum);
  }
  float lanes[kLanes];
  sum.store(lanes);
  return std::accumulate(lanes, lanes + kLanes, 0.0f);
}

void load_sequence(
    const Call& call, const Gradients& g, Workspace& w, const Sequence& sequence, int64_t head) {
  const int64_t d = call.head_dim;
  for (int64_t first = 0; first < sequence.length; first += kBlockRows) {
    const int64_t count = std::min(kBlockRows, sequence.length - first);
    const int64_t rows = round_up(count, kLanes);
    const int64_t place = first * w.width;
    float *query = w.query + place, *d_out = w.d_out + place, *out = w.d_query + place;
    float *lse = w.lse + first, *delta = w.delta + first;
    const auto load = [&](float* dst, const Matrix& matrix) {
      load_rows(
          dst, w.width, matrix, sequence.entry, head, sequence.start, nullptr, first, count, rows,
          d);
    };
    load(query, call.query);
    load(d_out, g.grad_out);
    finite_where_masked(query, w.width, call, sequence, first, count);
    finite_where_masked(d_out, w.width, call, sequence, first, count);
    transpose(w.query_t + place, kBlockRows, query, w.width, rows, d, call.options.scale * kLog2E);
    transpose(w.d_out_t + place, kBlockRows, d_out, w.width, rows, d, 1.0f);

    std::fill_n(lse, rows, kInfinity);
    std::fill_n(delta, rows, 0.0f);
    if (g.out.data != nullptr) {
      load(out, g.out);
    }
    const float* row_lse = g.lse.row(sequence.entry, head, sequence.start + first);
    for (int64_t i = 0; i < count; ++i) {
      lse[i] = row_lse[i] == -kInfinity ? kInfinity : row_lse[i] * kLog2E;
      delta[i] = g.out.data == nullptr ? 0.0f : dot(d_out + i * w.width, out + i * w.width, w.width);
      if (g.grad_lse.data != nullptr) {
        delta[i] -= g.grad_lse.row(sequence.entry, head, sequence.start + first)[i];
      }
    }
  }
  std::fill_n(w.d_query, round_up(sequence.length, kBlockRows) * w.width, 0.0f);
}

// weights = P M and d_scores = P (M dP - delta), from scores and dP in the same places.
void weigh(
    Workspace& w, const Options& options, int64_t first_row, int64_t count, int64_t rows,
    bool needs_scores) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    const Vec lse = Vec::loadu(w.lse + first_row + i), delta = Vec::loadu(w.delta + first_row + i);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = j * kBlockRows + i;
      const Vec weight = exp2(Vec::loadu(w.weights + at) - lse);
      const Vec factor = options.dropout ? Vec::loadu(w.factors + at) : Vec(1.0f);
      (weight * factor).store(w.weights + at);
      if (needs_scores) {
        const Vec d_weight = Vec::loadu(w.d_scores + at) * factor;
        (weight * (d_weight - delta)).store(w.d_scores + at);
      }
    }
  }
}

// Add what rows [first_row, first_row + count) give to the gradients of keys [first, first + keys).
void tile_gradients(
    const Call& call, const Gradients& g, Workspace& w, const Keys& keys, const TileSums& tile,
    int64_t first, int64_t count, const Sequence& sequence, int64_t head, int64_t first_row) {
  const int64_t rows = round_up(std::min(kBlockRows, sequence.length - first_row), kLanes);
  const int64_t place = first_row * w.width, d = call.head_dim;
  const bool needs_scores = tile.d_key != nullptr || g.needs.query;
  multiply<false>(
      tile.key, w.width, w.query_t + place, kBlockRows, w.weights, kBlockRows, count, rows, d,
      false);
  if (needs_scores) {
    multiply<false>(
        tile.value, w.width, w.d_out_t + place, kBlockRows, w.d_scores, kBlockRows, count, rows, d,
        false);
  }
  hide(w.weights, call.options, keys, first, count, first_row, rows);
  if (call.options.dropout) {
    dropout_factors(
        w.factors, kBlockRows, call.options,
        [&](int64_t j) { return keys.dropout_column(first + j); }, count, first_row, rows, head,
        sequence.index, w.words);
  }
  weigh(w, call.options, first_row, count, rows, needs_scores);
  if (tile.d_value != nullptr) {
    multiply<false>(
        w.weights, kBlockRows, w.d_out + place, w.width, tile.d_value, w.width, count, w.width,
        rows, true);
  }
  if (tile.d_key != nullptr) {
    multiply<false>(
        w.d_scores, kBlockRows, w.query + place, w.width, tile.d_key, w.width, count, w.width,
        rows, true);
  }
  if (g.needs.query) {
    multiply<true>(
        w.d_scores, kBlockRows, tile.key, w.width, w.d_query + place, w.width, rows, w.width,
        count, true);
  }
}

// All query blocks that see some of the keys [first, first + count).
void walk_rows(
    const Call& call, const Gradients& g, Workspace& w, const Keys& keys, const TileSums& tile,
    int64_t first, int64_t count, const Sequence& sequence, int64_t head) {
  for (int64_t row = 0; row < sequence.length; row += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, sequence.length - row);
    const Range seen = visible_keys(call.options, keys, row, rows);
    if (seen.begin < first + count && first < seen.end) {
      tile_gradients(call, g, w, keys, tile, first, count, sequence, head, row);
    }
  }
}

void own_gradients(
    const Call& call, const Gradients& g, Workspace& w, const Sequence& sequence, int64_t head) {
  const Keys keys = own_keys(call, sequence);
  for (int64_t first = 0; first < keys.count; first += kBlockKeys) {
    const int64_t count = std::min(kBlockKeys, keys.count - first);
    w.own.load(keys, head, first, count, w.width, call.head_dim);
    std::fill_n(w.d_key, kBlockKeys * w.width, 0.0f);
    std::fill_n(w.d_value, kBlockKeys * w.width, 0.0f);
    const TileSums tile{
        w.own.key, w.own.value, g.needs.key ? w.d_key : nullptr,
        g.needs.value ? w.d_value : nullptr};
    walk_rows(call, g, w, keys, tile, first, count, sequence, head);
    const auto store = [&](const Matrix& to, float* sums, float factor) {
      store_rows(
          to, sequence.entry, head, keys.base, keys.columns, first, count, sums, w.width,
          call.head_dim, factor);
    };
    if (g.needs.key) {
      store(g.key, w.d_key, call.options.scale);
    }
    if (g.needs.value) {
      store(g.value, w.d_value, 1.0f);
    }
  }
}

void store_query_gradient(
    const Call& call, const Gradients& g, Workspace& w, const Sequence& sequence, int64_t head) {
  for (int64_t i = 0; i < sequence.length; ++i) {
    float* row = w.d_query + i * w.width;
    if (!call.attended(sequence, i)) {
      // What is not finite at a masked place counted as the constant 0.
      load_rows(
          w.query, w.width, call.query, sequence.entry, head, sequence.start, nullptr, i, 1, 1,
          call.head_dim);
      for (int64_t d = 0; d < call.head_dim; ++d) {
        row[d] = std::isfinite(w.query[d]) ? row[d] : 0.0f;
      }
    }
  }
  store_rows(
      g.query, sequence.entry, head, sequence.start, nullptr, 0, sequence.length, w.d_query,
      w.width, call.head_dim, call.options.scale);
}

void chunk_gradients(
    const Call& call, const Gradients& g, Workspace& w, const Chunk& chunk, Partials& partials,
    int64_t head) {
  const Sequence& any = call.sequences[chunk.members.front()];
  const Keys prompt = prompt_keys(call, any);
  const bool walk_prompt = prompt.count > 0 && (g.needs.query || g.needs.prefix());
  for (int64_t first = 0; walk_prompt && first < prompt.count; first += kBlockKeys) {
    KeyTile tile{w.prompt.key + first * w.width, w.prompt.value + first * w.width};
    tile.load(
        prompt, head, first, std::min(kBlockKeys, prompt.count - first), w.width, call.head_dim);
  }
  for (const int64_t member : chunk.members) {
    const Sequence& sequence = call.sequences[member];
    load_sequence(call, g, w, sequence, head);
    for (int64_t first = 0; walk_prompt && first < prompt.count; first += kBlockKeys) {
      const int64_t row = chunk.partial + first;
      const TileSums tile{
          w.prompt.key + first * w.width, w.prompt.value + first * w.width,
          g.needs.prefix_key ? partials.at(partials.key, head, row) : nullptr,
          g.needs.prefix_value ? partials.at(partials.value, head, row) : nullptr};
      const int64_t count = std::min(kBlockKeys, prompt.count - first);
      walk_rows(call, g, w, prompt, tile, first, count, sequence, head);
    }
    if (g.needs.own()) {
      own_gradients(call, g, w, sequence, head);
    }
    if (g.needs.query) {
      store_query_gradient(call, g, w, sequence, head);
    }
  }
}

// Cut the sequences of each prompt, in ascending order of it, into chunks of about equal size.
std::vector<Chunk> chunks_by_prompt(const Call& call) {
  std::vector<int64_t> order;
  for (size_t i = 0; i < call.sequences.size(); ++i) {
    if (call.sequences[i].length > 0) {
      order.push_back(static_cast<int64_t>(i));
    }
  }
  const auto prompt_of = [&](int64_t i) {
    const Sequence& sequence = call.sequences[i];
    return std::make_pair(sequence.prompt_start, sequence.prompt_length);
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return prompt_of(a) < prompt_of(b);
  });
  const int64_t parts = kTasks / std::clamp<int64_t>(call.heads, 1, kTasks);
  const int64_t size = std::max<int64_t>(1, (static_cast<int64_t>(order.size()) + parts - 1) / parts);
  std::vector<Chunk> chunks;
  int64_t partial = 0;
  for (const int64_t i : order) {
    const auto [start, length] = prompt_of(i);
    const bool fits = !chunks.empty() && chunks.back().prompt_start == start &&
        chunks.back().prompt_length == length &&
        static_cast<int64_t>(chunks.back().members.size()) < size;
    if (!fits) {
      chunks.push_back({{}, start, length, partial});
      partial += round_up(length, kTileRows);
    }
    chunks.back().members.push_back(i);
  }
  return chunks;
}

void sum_partials(
    const Call& call, const std::vector<Chunk>& chunks, Partials& partials,
    std::vector<float>& sums, const Matrix& grad, float factor) {
  const int64_t size = call.pool_rows * partials.width;
  for_each_task<Scratch>(call.heads, [&] { return Scratch(size); }, [&](Scratch& w, int64_t head) {
    float* total = w.begin();
    std::fill_n(total, size, 0.0f);
    for (const Chunk& chunk : chunks) {
      const float* part = partials.at(sums, head, chunk.partial);
      float* rows = total + chunk.prompt_start * partials.width;
      for (int64_t i = 0; i < chunk.prompt_length * partials.width; i += kLanes) {
        (Vec::loadu(rows + i) + Vec::loadu(part + i)).store(rows + i);
      }
    }
    store_rows(
        grad, 0, head, 0, nullptr, 0, call.pool_rows, total, partials.width, call.head_dim,
        factor);
  });
}

}  // namespace

void backward(const Call& call, const Gradients& g) {
  const std::vector<Chunk> chunks = chunks_by_prompt(call);
  int64_t longest = 0, longest_prompt = 0;
  for (const Sequence& sequence : call.sequences) {
    longest = std::max(longest, sequence.length);
    longest_prompt = std::max(longest_prompt, sequence.prompt_length);
  }
  Partials partials{{}, {}, 0, round_up(call.head_dim, kLanes)};
  for (const Chunk& chunk : chunks) {
    partials.rows += round_up(chunk.prompt_length, kTileRows);
  }
  const int64_t size = call.heads * partials.rows * partials.width;
  partials.key.resize(g.needs.prefix_key ? size : 0);
  partials.value.resize(g.needs.prefix_value ? size : 0);

  const int64_t count = static_cast<int64_t>(chunks.size());
  for_each_task<Workspace>(
      call.heads * count, [&] { return Workspace(call.head_dim, longest, longest_prompt); },
      [&](Workspace& workspace, int64_t task) {
        const Chunk& chunk = chunks[task / call.heads];
        chunk_gradients(call, g, workspace, chunk, partials, task % call.heads);
      });
  if (g.needs.prefix_key) {
    sum_partials(call, chunks, partials, partials.key, g.prefix_key, call.options.scale);
  }
  if (g.needs.prefix_value) {
    sum_partials(call, chunks, partials, partials.value, g.prefix_value, 1.0f);
  }
}

}  // namespace ptv2
