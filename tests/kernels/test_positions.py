"""Scores of relative positions against the textbook form."""

import pytest
import torch

from ptv2_kernels import (
    RelativePositions,
    prefix_attention,
    prefix_attention_varlen,
    validation,
)
from ptv2_kernels.testing import (
    GRADIENTS,
    LIMITS,
    make_inputs,
    make_positions,
    pack,
    relative_l2,
    textbook_attention,
)
from tests.kernels.numerics import exact, with_gradients

MIXED = dict(prompts=(5, 0, 3), mixed=True, masked=True, batch=6)
CASES = {
    "plain": ({"length": 13}, {}),
    "mixed": (MIXED, {}),
    "gated": (MIXED | {"gated": True}, {}),
    "tiles": ({"length": 70, "heads": 1, "batch": 2, "masked": True}, {}),
    "causal": ({"length": 40, "heads": 1}, {"causal": True}),
    "window": ({"length": 40, "heads": 1, "head_dim": 24}, {"window": 3}),
    "one-token": ({"length": 1}, {}),
}


@pytest.fixture(params=["reference", "triton"])
def impl(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


@pytest.mark.parametrize(
    ("case", "kinds"),
    [(case, "both") for case in CASES]
    + [(case, kind) for case in ("mixed", "tiles") for kind in ("key", "query")],
)
def test_equals_textbook(impl, case, kinds, device):
    kwargs, options = CASES[case]
    inputs = make_inputs(**kwargs, device=device)
    positions = make_positions(inputs, kwargs.get("length", 7) + 2)
    if kinds != "both":
        positions = positions._replace(**{"query" if kinds == "key" else "key": None})
    actual = with_gradients(prefix_attention, inputs, positions=positions, impl=impl, **options)
    double = {name: exact(x) for name, x in inputs.items()}
    tables = RelativePositions(*map(exact, positions))
    expected = with_gradients(textbook_attention, double, positions=tables, **options)
    for name, x in actual.items():
        assert relative_l2(x, expected[name]) <= LIMITS[torch.float32], name


def test_half_precision(impl, device):
    inputs = make_inputs(length=37, prompts=(20,), masked=True, dtype=torch.float16, device=device)
    positions = make_positions(inputs, 36)
    actual = with_gradients(prefix_attention, inputs, positions=positions, impl=impl)
    double = {name: exact(x) for name, x in inputs.items()}
    tables = RelativePositions(*map(exact, positions))
    expected = with_gradients(textbook_attention, double, positions=tables)
    for name, x in actual.items():
        assert x.dtype == torch.float16
        assert relative_l2(x, expected[name]) <= LIMITS[torch.float16], name


def test_masked_positions_reach_nothing(impl, device):
    clean = make_inputs(masked=True, length=11, device=device)
    poisoned = make_inputs(masked=True, poisoned=True, length=11, device=device)
    mask = clean["key_mask"][:, None, :, None]
    clean["query"] = torch.where(mask, clean["query"], 0)  # what a poisoned query counts as
    positions = make_positions(clean, 10)
    actual = with_gradients(prefix_attention, poisoned, positions=positions, impl=impl)
    expected = with_gradients(prefix_attention, clean, positions=positions, impl=impl)
    expected["query"] = torch.where(mask, expected["query"], 0)
    for name, x in actual.items():
        torch.testing.assert_close(x, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_packed(impl, p, device):
    lengths = [3, 37, 1, 20]
    inputs = make_inputs(batch=4, length=37, prompts=(5, 3), mixed=True, device=device)
    inputs["key_mask"] = (torch.arange(37) < torch.tensor(lengths)[:, None]).to(device)
    positions = make_positions(inputs, 36)
    options = {"positions": positions, "impl": impl, "dropout_p": p}
    torch.manual_seed(7)
    expected = prefix_attention(**inputs, **options)
    packed = {name: x for name, x in inputs.items() if name != "key_mask"}
    packed |= {name: pack(inputs[name], lengths) for name in GRADIENTS[:3]}
    packed["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    torch.manual_seed(7)
    out = prefix_attention_varlen(**packed, max_seqlen=37, **options)
    torch.testing.assert_close(out, pack(expected, lengths), rtol=0, atol=1e-6)


def test_gradcheck_with_dropout(impl, device):
    if impl == "triton" and device.type == "cuda":
        pytest.skip("float64 runs in the interpreter alone")
    inputs = make_inputs(
        batch=2, heads=1, length=3, head_dim=2, prompts=(2,), dtype=torch.float64, device=device
    )
    positions = make_positions(inputs, 2, buckets=3)
    leaves = [inputs[name].requires_grad_() for name in GRADIENTS]
    tables = (positions.key, positions.query, positions.bucket)

    def attend(*leaves):
        optional = (None, None, None, None, None, torch.tensor([5], device=device))
        options = (0.4, 0.7, False, None, 3, impl)
        return torch.ops.ptv2.prefix_attention(*leaves, *optional, *tables, *options)

    assert torch.autograd.gradcheck(attend, leaves)


def test_nothing_of_two_lengths_is_kept(device):
    """Kept for the backward are matrices and one number a row, not scores of positions."""
    inputs = make_inputs(batch=2, heads=2, length=50, device=device)
    positions = make_positions(inputs, 49)
    kept = []

    def keep(x):
        kept.append(x.numel())
        return x

    leaves = {name: inputs[name].requires_grad_() for name in GRADIENTS}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        prefix_attention(**inputs | leaves, positions=positions)
    assert max(kept) == inputs["query"].numel() < 2 * 2 * 50 * 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(bucket=torch.zeros(13)), r"positions.bucket: expected \(2 \* reach \+ 1,\) int32"),
        (dict(bucket=torch.zeros(12).int()), r"positions.bucket: expected \(2 \* reach"),
        (dict(bucket=torch.zeros(11).int()), "positions.bucket: expected a reach of at least 6"),
        (
            dict(bucket=torch.full((13,), 11).int()),
            "positions.bucket: expected values from 0 to 10",
        ),
        (
            dict(bucket=torch.full((13,), -1).int()),
            "positions.bucket: expected values from 0 to 10",
        ),
        (dict(key=torch.zeros(11, 2, 8)), r"positions.key: expected \(buckets, heads, head_dim\)"),
        (dict(key=torch.zeros(9, 2, 16)), "positions: expected tables of as many buckets"),
        (dict(key=torch.zeros(11, 2, 16).half()), "positions.key: expected query's dtype"),
        (
            dict(key=torch.zeros(11, 2, 16, requires_grad=True)),
            "positions.key: expected a tensor w",
        ),
        (
            dict(key=None, query=None),
            "positions: expected tables of as many buckets, at least one",
        ),
        (dict(key=torch.zeros(11, 2, 16, device="meta")), "position_key: expected query's device"),
    ],
)
def test_refused(change, message):
    inputs = make_inputs()
    positions = make_positions(inputs, 6)._replace(**change)
    with pytest.raises(ValueError, match=message):
        prefix_attention(**inputs, positions=positions)


def test_native_has_none():
    inputs = make_inputs()
    with pytest.raises(NotImplementedError, match="positions: impl 'native' has none"):
        prefix_attention(**inputs, positions=make_positions(inputs, 6), impl="native")


def test_a_reach_that_is_too_short_is_loud(monkeypatch, device):
    """Where values cannot be checked, as on a GPU, such a sequence is NaN, and no other."""
    pytest.importorskip("triton")
    monkeypatch.setattr(validation, "_validate_positions", lambda *_: None)
    lengths = [9, 4, 6]
    inputs = make_inputs(batch=3, length=9, device=device)
    positions = make_positions(inputs, 5)
    inputs |= {name: pack(inputs[name], lengths) for name in GRADIENTS[:3]}
    inputs["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    out = prefix_attention_varlen(**inputs, positions=positions, impl="triton")
    assert out[:9].isnan().all()
    assert out[9:].isfinite().all()
