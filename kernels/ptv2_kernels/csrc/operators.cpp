// The operators that native.py calls: tensors in, tensors out.
#include <ATen/Functions.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "call.h"

namespace ptv2 {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// (entries, heads, rows, head_dim), or a pool, (rows, heads, head_dim).
Matrix matrix(const OptionalTensor& x) {
  if (!x.has_value() || !x->defined()) {
    return {};
  }
  char* data = static_cast<char*>(x->data_ptr());
  if (x->dim() == 3) {
    return {data, x->scalar_type(), 0, x->stride(1), x->stride(0)};
  }
  return {data, x->scalar_type(), x->stride(0), x->stride(1), x->stride(2)};
}

RowValues row_values(const OptionalTensor& x) {
  if (!x.has_value()) {
    return {nullptr, 0, 0};
  }
  return {x->mutable_data_ptr<float>(), x->stride(0), x->stride(1)};
}

OptionalTensor rows_contiguous(const OptionalTensor& x) {
  return x.has_value() && x->stride(-1) != 1 ? x->contiguous() : x;
}

std::vector<int64_t> integers(const OptionalTensor& x) {
  std::vector<int64_t> values;
  if (x.has_value()) {
    const Tensor flat = x->to(at::kLong).contiguous();
    values.assign(flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel());
  }
  return values;
}

struct Prompts {
  std::vector<int64_t> ids, bounds;
  int64_t pool_rows;

  // Values are checked here too: a compiled graph comes without the checks in Python.
  void assign(Sequence& sequence) const {
    const int64_t id = ids.empty() ? 0 : ids[sequence.index];
    const int64_t count = bounds.empty() ? 1 : static_cast<int64_t>(bounds.size()) / 2;
    TORCH_CHECK_INDEX(
        id >= -1 && id < count, "prompt_ids: expected values from -1 to ", count - 1, ", got ", id);
    if (id >= 0) {
      const int64_t start = bounds.empty() ? 0 : bounds[2 * id];
      const int64_t end = bounds.empty() ? pool_rows : bounds[2 * id + 1];
      TORCH_CHECK_INDEX(
          0 <= start && start <= end && end <= pool_rows,
          "prompt_bounds: expected 0 <= start <= end <= ", pool_rows, ", got ", start, " and ", end);
      sequence.prompt_start = start;
      sequence.prompt_length = end - start;
    }
  }
};

void list_sequences(
    Call& call, const Tensor& query, const OptionalTensor& cu_seqlens, const Prompts& prompts) {
  const std::vector<int64_t> ends = integers(cu_seqlens);
  const bool packed = cu_seqlens.has_value();
  const int64_t count = packed ? static_cast<int64_t>(ends.size()) - 1 : query.size(0);
  if (packed) {
    TORCH_CHECK_INDEX(
        ends.front() == 0 && ends.back() == query.size(2) &&
            std::is_sorted(ends.begin(), ends.end()),
        "cu_seqlens: expected values that rise from 0 to ", query.size(2), ", got ", ends);
  }
  for (int64_t i = 0; i < count; ++i) {
    Sequence sequence{i, packed ? 0 : i, packed ? ends[i] : 0, 0, 0, 0, nullptr, 0};
    sequence.length = packed ? ends[i + 1] - ends[i] : query.size(2);
    sequence.column_count = sequence.length;
    // Without a pool the backward needs nothing of the prompts.
    if (call.prefix_key.data != nullptr || prompts.pool_rows > 0) {
      prompts.assign(sequence);
    }
    call.sequences.push_back(sequence);
  }
}

// List the keys that each sequence attends to.
void list_columns(Call& call) {
  if (call.key_mask == nullptr) {
    return;
  }
  std::vector<size_t> starts;
  for (const Sequence& sequence : call.sequences) {
    starts.push_back(call.columns.size());
    for (int64_t column = 0; column < sequence.length; ++column) {
      if (call.attended(sequence, column)) {
        call.columns.push_back(static_cast<int32_t>(column));
      }
    }
  }
  starts.push_back(call.columns.size());
  for (size_t i = 0; i < call.sequences.size(); ++i) {
    call.sequences[i].columns = call.columns.data() + starts[i];
    call.sequences[i].column_count = static_cast<int64_t>(starts[i + 1] - starts[i]);
  }
}

constexpr int64_t kFar = int64_t{1} << 40;  // a window is no longer, so that sums do not overflow

Options make_options(
    const OptionalTensor& seed, double dropout_p, double scale, bool causal,
    std::optional<int64_t> window) {
  const auto threshold = static_cast<uint32_t>(std::nearbyint(dropout_p * 65536));
  const bool dropout = seed.has_value();
  return {
      dropout,
      dropout ? static_cast<uint64_t>(seed->item<int64_t>()) : 0,
      threshold,
      65536.0f / static_cast<float>(std::max<int64_t>(65536 - int64_t{threshold}, 1)),
      static_cast<float>(scale),
      causal,
      window ? std::optional<int64_t>(std::min(*window, kFar)) : std::nullopt};
}

// As arguments.py orders them.
enum Input {
  kQuery,
  kKey,
  kValue,
  kPrefixKey,
  kPrefixValue,
  kPrefixGate,
  kPromptIds,
  kPromptBounds,
  kKeyMask,
  kCuSeqlens,
  kSeed
};

using Inputs = c10::List<OptionalTensor>;

// (heads, pool_rows), times log2 e, from gates (pool_rows, heads).
std::vector<float> log_gates(const OptionalTensor& gate) {
  if (!gate.has_value()) {
    return {};
  }
  const Tensor flat = gate->to(at::kFloat).t().contiguous();
  std::vector<float> values(flat.data_ptr<float>(), flat.data_ptr<float>() + flat.numel());
  for (float& value : values) {
    value = std::log2(value);
  }
  return values;
}

Call make_call(const Inputs& inputs, const Options& options) {
  const Tensor query = *inputs.get(kQuery);
  const OptionalTensor prefix_key = inputs.get(kPrefixKey);
  const OptionalTensor key_mask = inputs.get(kKeyMask);
  Call call;
  call.query = matrix(query);
  call.key = matrix(inputs.get(kKey));
  call.value = matrix(inputs.get(kValue));
  call.prefix_key = matrix(prefix_key);
  call.prefix_value = matrix(inputs.get(kPrefixValue));
  call.heads = query.size(1);
  call.head_dim = query.size(3);
  call.pool_rows = prefix_key.has_value() ? prefix_key->size(0) : 0;
  call.log_gates = log_gates(inputs.get(kPrefixGate));
  call.key_mask = key_mask.has_value() ? key_mask->const_data_ptr<bool>() : nullptr;
  call.mask_stride = key_mask.has_value() ? key_mask->stride(0) : 0;
  call.options = options;
  const Prompts prompts{
      integers(inputs.get(kPromptIds)), integers(inputs.get(kPromptBounds)), call.pool_rows};
  list_sequences(call, query, inputs.get(kCuSeqlens), prompts);
  list_columns(call);
  return call;
}

std::tuple<Tensor, Tensor> forward_operator(
    const Inputs& inputs, double dropout_p, double scale, bool causal,
    std::optional<int64_t> window) {
  const Tensor query = *inputs.get(kQuery);
  const int64_t batch = query.size(0), heads = query.size(1), length = query.size(2);
  const int64_t row = query.size(3);
  Tensor out = at::empty_strided(
      query.sizes(), {length * heads * row, row, heads * row, 1}, query.options());
  Tensor lse = at::empty({batch, heads, length}, query.options().dtype(at::kFloat));
  const Options options = make_options(inputs.get(kSeed), dropout_p, scale, causal, window);
  forward(make_call(inputs, options), matrix(out), row_values(lse));
  return {out, lse};
}

std::vector<Tensor> backward_operator(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Inputs& inputs,
    const OptionalTensor& out, const Tensor& lse, const c10::List<bool>& needs, double dropout_p,
    double scale, bool causal, std::optional<int64_t> window) {
  const Tensor query = *inputs.get(kQuery);
  // A masked key is never visited: its gradient has to be there.
  const bool masked = inputs.get(kKeyMask).has_value();
  std::vector<Tensor> grads;
  for (int i = 0; i < 5; ++i) {
    if (!needs[i]) {
      grads.push_back(at::empty({0}, query.options()));
    } else if (i < kPrefixKey) {
      grads.push_back(*rows_contiguous(masked ? at::zeros_like(query) : at::empty_like(query)));
    } else {
      const Tensor pool = *inputs.get(kPrefixKey);
      grads.push_back(at::empty(pool.sizes(), pool.options()));
    }
  }
  const OptionalTensor gate = inputs.get(kPrefixGate);
  const auto gate_shape = needs[5] ? gate->sizes().vec() : std::vector<int64_t>{0};
  const Tensor gates = at::empty(gate_shape, query.options().dtype(at::kFloat));
  const auto target = [&](int i) { return needs[i] ? matrix(grads[i]) : Matrix{}; };
  const OptionalTensor rows = rows_contiguous(grad_out), row_grads = rows_contiguous(grad_lse);
  const OptionalTensor outs = rows_contiguous(out);
  const Gradients gradients{
      matrix(rows),
      matrix(outs),
      row_values(lse),
      row_values(row_grads),
      {needs[0], needs[1], needs[2], needs[3], needs[4], needs[5]},
      target(kQuery),
      target(kKey),
      target(kValue),
      target(kPrefixKey),
      target(kPrefixValue),
      gates.mutable_data_ptr<float>()};
  const Options options = make_options(inputs.get(kSeed), dropout_p, scale, causal, window);
  backward(make_call(inputs, options), gradients);
  grads.push_back(needs[5] ? gates.to(gate->scalar_type()) : gates);
  return grads;
}

}  // namespace
}  // namespace ptv2

TORCH_LIBRARY(ptv2_native, library) {
  library.def(
      "forward(Tensor?[] inputs, float dropout_p, float scale, bool causal, int? window) "
      "-> (Tensor, Tensor)",
      &ptv2::forward_operator);
  library.def(
      "backward(Tensor grad_out, Tensor? grad_lse, Tensor?[] inputs, Tensor? out, Tensor lse, "
      "bool[] needs, float dropout_p, float scale, bool causal, int? window) -> Tensor[]",
      &ptv2::backward_operator);
  library.def("product_format(ScalarType dtype) -> str", &ptv2::product_format);
}
