"""Gates of a prompt's rows: what they multiply, their gradient, and what is refused."""

import pytest
import torch

from ptv2_kernels import prefix_attention, prefix_attention_varlen
from ptv2_kernels.testing import (
    GRADIENTS,
    LIMITS,
    make_inputs,
    pack,
    relative_l2,
    textbook_attention,
)
from tests.kernels.numerics import closed_gate_inputs, exact, with_gradients

MIXED = dict(prompts=(5, 0, 3), mixed=True, masked=True, batch=6)


def assert_close(actual, expected, limit):
    for name, x in actual.items():
        assert relative_l2(x, expected[name]) <= limit, name


@pytest.mark.parametrize("case", [{}, MIXED, {"length": 70, "heads": 1}], ids=str)
@pytest.mark.parametrize("options", [{}, {"causal": True}], ids=str)
def test_equals_textbook(case, options):
    inputs = make_inputs(**case, gated=True, dtype=torch.float64)
    actual = with_gradients(prefix_attention, inputs, impl="reference", **options)
    assert_close(actual, with_gradients(textbook_attention, inputs, **options), 1e-12)


def test_open_gates_change_nothing(impl, device):
    inputs = make_inputs(**MIXED, device=device)
    gate = torch.ones(8, 2, device=device)
    expected = prefix_attention(**inputs, impl=impl)
    assert torch.equal(prefix_attention(**inputs, prefix_gate=gate, impl=impl), expected)


def test_closed_gates_leave_the_bare_backbone_and_a_gradient_to_open_them(impl, device):
    inputs = make_inputs(masked=True, device=device)
    bare = make_inputs(masked=True, prompts=(0,), device=device)
    inputs["prefix_gate"] = torch.zeros(5, 2, device=device)
    actual = with_gradients(prefix_attention, inputs, impl=impl)
    assert torch.equal(actual["out"], prefix_attention(**bare | own(inputs), impl=impl))
    for name in ("prefix_key", "prefix_value"):
        assert actual[name].count_nonzero() == 0
    gate = actual["prefix_gate"]
    assert gate.count_nonzero() == gate.numel()
    double = {name: exact(x) for name, x in inputs.items()}
    expected = with_gradients(prefix_attention, double, impl="reference")
    assert relative_l2(gate, expected["prefix_gate"]) < 1e-5


def own(inputs):
    return {name: inputs[name] for name in ("query", "key", "value", "key_mask")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_closed_gate_hides_any_score(impl, dtype, device):
    """The gradient that opens it is as large as float32 can hold."""
    inputs = closed_gate_inputs(dtype, device)
    actual = with_gradients(prefix_attention, inputs, impl=impl)
    double = {name: exact(x) for name, x in inputs.items()}
    expected = with_gradients(prefix_attention, double, impl="reference")
    assert_close(actual, expected, LIMITS[dtype])
    assert actual["prefix_gate"].abs().max() > 1e29


def test_row_that_sees_nothing_is_zero(impl, device):
    """Every key of its own is masked and every gate closed."""
    inputs = make_inputs(masked=True, poisoned=True, device=device)
    inputs["prefix_gate"] = torch.zeros(5, 2, device=device)
    actual = with_gradients(prefix_attention, inputs, impl=impl)
    assert actual["out"][-1].count_nonzero() == 0
    assert all(x.isfinite().all() for x in actual.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_packed(impl, dtype, device):
    lengths = [3, 7, 1, 5]
    inputs = make_inputs(
        batch=4, length=7, prompts=(5, 3), mixed=True, gated=True, dtype=dtype, device=device
    )
    inputs["prefix_gate"] = inputs["prefix_gate"].float()
    inputs["key_mask"] = (torch.arange(7) < torch.tensor(lengths)[:, None]).to(device)
    expected = prefix_attention(**inputs, impl=impl)
    packed = {name: x for name, x in inputs.items() if name != "key_mask"}
    packed |= {name: pack(inputs[name], lengths) for name in GRADIENTS[:3]}
    ends = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    out = prefix_attention_varlen(**packed, cu_seqlens=ends, max_seqlen=7, impl=impl)
    torch.testing.assert_close(out, pack(expected, lengths))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (torch.ones(5), r"prefix_gate: expected \(prefix_tokens, heads\) \(5, 2\), got \(5,\)"),
        (torch.ones(4, 2), r"prefix_gate: expected .* got \(4, 2\)"),
        (torch.ones(5, 2).half(), "prefix_gate: expected prefix_key's dtype torch.float32"),
        (torch.full((5, 2), -0.5), "prefix_gate: expected finite values >= 0, got -0.5 to -0.5"),
        (torch.full((5, 2), float("nan")), "prefix_gate: expected finite values >= 0, got nan"),
        (torch.full((5, 2), float("inf")), "prefix_gate: expected finite values >= 0, got inf"),
        (torch.ones(5, 2, device="meta"), "prefix_gate: expected query's device cpu, got meta"),
    ],
)
def test_refused(gate, message):
    with pytest.raises(ValueError, match=message):
        prefix_attention(**make_inputs(), prefix_gate=gate)
