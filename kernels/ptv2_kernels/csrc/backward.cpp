// Backward: all gradients in one walk over the tiles, five products each.
//
// A task owns one head of a few sequences that share a prompt. For each sequence it holds queries
// and output gradients in scratch, then takes the keys tile by tile, so that a tile's key and value
// gradients are sums in scratch and the query's gradient grows over the tiles. The prompt's are
// summed over the task's sequences, and over the tasks in a second step of fixed order: the same
// bits whatever the number of threads.
#include <numeric>

#include "backward_tiles.h"
#include "tasks.h"

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

// The prompt's gradients of every (head, chunk): rows of `width` floats, or of one for the gates.
struct Partials {
  std::vector<float> key, value, gate;
  int64_t rows;  // of a head
  int64_t width;

  float* at(std::vector<float>& sums, int64_t head, int64_t row) const {
    return sums.data() + (head * rows + row) * width;
  }
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

// Fill the workspace's pieces of a sequence.
template <typename Format>
void load_sequence(
    const Call& call, const Gradients& g, BackwardWorkspace<Format>& w, const Sequence& sequence,
    int64_t head) {
  using Element = typename Format::Element;
  for (int64_t first = 0; first < sequence.length; first += kBlockRows) {
    const int64_t count = std::min(kBlockRows, sequence.length - first);
    const int64_t rows = round_up(count, kLanes), place = first * w.depth;
    const auto load = [&](auto* dst, const Matrix& matrix) {
      load_rows(
          dst, w.width, matrix, sequence.entry, head, sequence.start, nullptr, first, count, rows,
          call.head_dim);
    };
    const auto prepare = [&](const Matrix& matrix, Element* over_rows, Element* transposed) {
      Element* columns = Format::pick(over_rows, w.columns);
      load(Format::numbers(columns), matrix);
      finite_where_masked(Format::numbers(columns), w.width, call, sequence, first, count);
      Format::over_rows(columns, over_rows, rows, w.width);
      transpose(transposed, kBlockRows, columns, w.depth, rows, w.depth);
    };
    prepare(call.query, w.query + place, w.query_t + place);
    prepare(g.grad_out, w.d_out + place, w.d_out_t + place);

    float *lse = w.lse + first, *delta = w.delta + first;
    std::fill_n(lse, rows, kInfinity);
    std::fill_n(delta, rows, 0.0f);
    if (g.out.data != nullptr) {
      load(w.out_rows, g.out);
      load(w.d_out_rows, g.grad_out);
      finite_where_masked(w.d_out_rows, w.width, call, sequence, first, count);
    }
    const float* row_lse = g.lse.row(sequence.entry, head, sequence.start + first);
    for (int64_t i = 0; i < count; ++i) {
      const bool saw_nothing = row_lse[i] == -kInfinity;
      lse[i] = saw_nothing ? kInfinity : row_lse[i] * kLog2E;
      if (g.out.data != nullptr) {
        delta[i] = dot(w.d_out_rows + i * w.width, w.out_rows + i * w.width, w.width);
      }
      if (g.grad_lse.data != nullptr) {
        const float d_lse = g.grad_lse.row(sequence.entry, head, sequence.start + first)[i];
        const bool counts = !saw_nothing && call.attended(sequence, first + i);
        delta[i] -= counts || is_finite(d_lse) ? d_lse : 0.0f;
      }
    }
  }
  std::fill_n(w.d_query, round_up(sequence.length, kBlockRows) * w.width, 0.0f);
}

// All blocks of rows that see some of a tile's keys, which are `range` of `keys`.
template <typename Format>
void walk_rows(
    const Call& call, const Needs& needs, BackwardWorkspace<Format>& w, const Keys& keys,
    const KeyTile<Format>& tile, const TileSums& sums, const Range& range,
    const Sequence& sequence, int64_t head) {
  for (int64_t row = 0; row < sequence.length; row += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, sequence.length - row);
    const Range seen = visible_keys(call.options, keys, row, rows);
    if (seen.begin < range.end && range.begin < seen.end) {
      tile_gradients(call, needs, w, keys, tile, sums, range, sequence, head, row);
    }
  }
}

template <typename Format>
void own_gradients(
    const Call& call, const Gradients& g, BackwardWorkspace<Format>& w, const Sequence& sequence,
    int64_t head) {
  const Keys keys = own_keys(call, sequence);
  const TileSums sums{
      g.needs.key ? w.d_key : nullptr, g.needs.value ? w.d_value : nullptr, nullptr};
  for (int64_t first = 0; first < keys.count; first += kBlockKeys) {
    const Range range{first, std::min(first + kBlockKeys, keys.count)};
    const int64_t count = range.end - range.begin;
    w.own.load(keys, head, first, count, w.width, call.head_dim);
    std::fill_n(w.d_key, kBlockKeys * w.width, 0.0f);
    std::fill_n(w.d_value, kBlockKeys * w.width, 0.0f);
    walk_rows(call, g.needs, w, keys, w.own, sums, range, sequence, head);
    const auto store = [&](const Matrix& to, const float* from, float factor) {
      store_rows(
          to, sequence.entry, head, keys.base, keys.columns, first, count, from, w.width,
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

template <typename Format>
void store_query_gradient(
    const Call& call, const Gradients& g, BackwardWorkspace<Format>& w, const Sequence& sequence,
    int64_t head) {
  for (int64_t i = 0; i < sequence.length; ++i) {
    if (!call.attended(sequence, i)) {
      // What is not finite at a masked place counted as the constant 0.
      load_rows(
          w.out_rows, w.width, call.query, sequence.entry, head, sequence.start, nullptr, i, 1, 1,
          call.head_dim);
      for (int64_t d = 0; d < call.head_dim; ++d) {
        float& value = w.d_query[i * w.width + d];
        value = std::isfinite(w.out_rows[d]) ? value : 0.0f;
      }
    }
  }
  store_rows(
      g.query, sequence.entry, head, sequence.start, nullptr, 0, sequence.length, w.d_query,
      w.width, call.head_dim, call.options.scale);
}

template <typename Format>
void chunk_gradients(
    const Call& call, const Gradients& g, BackwardWorkspace<Format>& w, const Chunk& chunk,
    Partials& partials, int64_t head) {
  const Keys prompt = prompt_keys(call, call.sequences[chunk.members.front()]);
  const int64_t prompt_count = g.needs.query || g.needs.prefix() ? prompt.count : 0;
  for (int64_t first = 0; first < prompt_count; first += kBlockKeys) {
    const int64_t count = std::min(kBlockKeys, prompt_count - first);
    w.prompt.at(first * w.width).load(prompt, head, first, count, w.width, call.head_dim);
  }
  for (const int64_t member : chunk.members) {
    const Sequence& sequence = call.sequences[member];
    load_sequence(call, g, w, sequence, head);
    for (int64_t first = 0; first < prompt_count; first += kBlockKeys) {
      const Range range{first, std::min(first + kBlockKeys, prompt_count)};
      const int64_t row = chunk.partial + first;
      const TileSums sums{
          g.needs.prefix_key ? partials.at(partials.key, head, row) : nullptr,
          g.needs.prefix_value ? partials.at(partials.value, head, row) : nullptr,
          g.needs.prefix_gate ? partials.gate.data() + head * partials.rows + row : nullptr};
      walk_rows(
          call, g.needs, w, prompt, w.prompt.at(first * w.width), sums, range, sequence, head);
    }
    if (g.needs.own()) {
      own_gradients(call, g, w, sequence, head);
    }
    if (g.needs.query) {
      store_query_gradient(call, g, w, sequence, head);
    }
  }
}

// Cut the sequences of each prompt, in ascending order of it, into chunks of about equal size. Empty
// ones count too: padded, they would be there, and their gradients are to be summed in one order.
std::vector<Chunk> chunks_by_prompt(const Call& call) {
  std::vector<int64_t> order(call.sequences.size());
  std::iota(order.begin(), order.end(), 0);
  const auto prompt_of = [&](int64_t i) {
    const Sequence& sequence = call.sequences[i];
    return std::make_pair(sequence.prompt_start, sequence.prompt_length);
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return prompt_of(a) < prompt_of(b);
  });
  const int64_t parts = kTasks / std::clamp<int64_t>(call.heads, 1, kTasks);
  const int64_t count = static_cast<int64_t>(order.size());
  const int64_t size = std::max<int64_t>(1, (count + parts - 1) / parts);
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

template <typename Format>
void run_chunks(
    const Call& call, const Gradients& g, const std::vector<Chunk>& chunks, Partials& partials) {
  using Workspace = BackwardWorkspace<Format>;
  int64_t longest = 0, longest_prompt = 0;
  for (const Sequence& sequence : call.sequences) {
    longest = std::max(longest, sequence.length);
    longest_prompt = std::max(longest_prompt, sequence.prompt_length);
  }
  for_each_task<Workspace>(
      call.heads * static_cast<int64_t>(chunks.size()),
      [&] { return Workspace(call.head_dim, longest, longest_prompt); },
      [&](Workspace& workspace, int64_t task) {
        const Chunk& chunk = chunks[task / call.heads];
        chunk_gradients(call, g, workspace, chunk, partials, task % call.heads);
      });
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

void sum_gate_partials(
    const Call& call, const std::vector<Chunk>& chunks, const Partials& partials, float* grad) {
  std::fill_n(grad, call.pool_rows * call.heads, 0.0f);
  for (int64_t head = 0; head < call.heads; ++head) {
    for (const Chunk& chunk : chunks) {
      const float* part = partials.gate.data() + head * partials.rows + chunk.partial;
      for (int64_t i = 0; i < chunk.prompt_length; ++i) {
        grad[(chunk.prompt_start + i) * call.heads + head] += part[i];
      }
    }
  }
}

}  // namespace

void backward(const Call& call, const Gradients& g) {
  const std::vector<Chunk> chunks = chunks_by_prompt(call);
  Partials partials{{}, {}, {}, 0, round_up(call.head_dim, kLanes)};
  for (const Chunk& chunk : chunks) {
    partials.rows += round_up(chunk.prompt_length, kTileRows);
  }
  const int64_t size = call.heads * partials.rows * partials.width;
  partials.key.resize(g.needs.prefix_key ? size : 0);
  partials.value.resize(g.needs.prefix_value ? size : 0);
  partials.gate.resize(g.needs.prefix_gate ? call.heads * partials.rows : 0);
  with_format(call.query.dtype, [&](auto format) {
    run_chunks<decltype(format)>(call, g, chunks, partials);
  });
  if (g.needs.prefix_key) {
    sum_partials(call, chunks, partials, partials.key, g.prefix_key, call.options.scale);
  }
  if (g.needs.prefix_value) {
    sum_partials(call, chunks, partials, partials.value, g.prefix_value, 1.0f);
  }
  if (g.needs.prefix_gate) {
    sum_gate_partials(call, chunks, partials, g.prefix_gate);
  }
}

}  // namespace ptv2
