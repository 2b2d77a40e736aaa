// What one call of the operation gets, in plain pointers and numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ptv2 {

// Rows of head_dim elements, one for each (entry, head, row); strides in elements.
struct Matrix {
  char* data = nullptr;  // nullptr: not given
  at::ScalarType dtype = at::kFloat;
  int64_t entry_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;

  char* row(int64_t entry, int64_t head, int64_t row) const {
    const int64_t offset = entry * entry_stride + head * head_stride + row * row_stride;
    return data + offset * static_cast<int64_t>(c10::elementSize(dtype));
  }
};

struct Sequence {
  int64_t index;  // in the call; dropout counts by it
  int64_t entry;  // of the batch; 0 in the packed layout
  int64_t start;  // its first row in the entry
  int64_t length;
  int64_t prompt_start;  // its prompt's rows in the pool
  int64_t prompt_length;
  const int32_t* columns;  // its attended keys in ascending order; nullptr: all
  int64_t column_count;
};

struct Options {
  bool dropout;
  uint64_t seed;
  uint32_t threshold;  // 16 random bits below it drop a weight
  float keep_scale;
  float scale;
  bool causal;
  std::optional<int64_t> window;
};

struct Needs {
  bool query, key, value, prefix_key, prefix_value, prefix_gate;

  bool own() const { return query || key || value; }
  bool prefix() const { return prefix_key || prefix_value || prefix_gate; }
};

struct Call {
  Matrix query, key, value, prefix_key, prefix_value;
  int64_t heads;
  int64_t head_dim;
  int64_t pool_rows;
  std::vector<float> log_gates;  // (heads, pool_rows), times log2 e; empty: no gates
  const bool* key_mask;  // (entries, length); nullptr: everything is attended
  int64_t mask_stride;   // of an entry
  std::vector<Sequence> sequences;
  std::vector<int32_t> columns;  // what Sequence::columns points into
  Options options;

  bool attended(const Sequence& sequence, int64_t row) const {
    return key_mask == nullptr || key_mask[sequence.entry * mask_stride + sequence.start + row];
  }
};

// One float for each (entry, head, row).
struct RowValues {
  float* data;
  int64_t entry_stride;
  int64_t head_stride;

  float* row(int64_t entry, int64_t head, int64_t row) const {
    return data + entry * entry_stride + head * head_stride + row;
  }
};

struct Gradients {
  Matrix grad_out, out;
  RowValues lse;
  RowValues grad_lse;  // data nullptr: none
  Needs needs;
  Matrix query, key, value, prefix_key, prefix_value;  // where they go
  float* prefix_gate;                                  // (pool_rows, heads)
};

// What products of a dtype run on here: "fp32", "pairs" or "amx".
std::string product_format(at::ScalarType dtype);

void forward(const Call& call, const Matrix& out, const RowValues& lse);
void backward(const Call& call, const Gradients& gradients);

}  // namespace ptv2
