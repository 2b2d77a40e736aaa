"""The reference against the textbook form in float64, with autograd as the judge of gradients."""

import math

import pytest
import torch

from ptv2_kernels import prefix_attention
from ptv2_kernels.testing import GRADIENTS, make_inputs, relative_l2, textbook_attention

CASES = {
    "shared": dict(length=7),
    "mixed": dict(prompts=(5, 0, 3), mixed=True, batch=6),
    "no-prompt": dict(prompts=(0,)),
    "masked": dict(masked=True, length=13),
    "masked-mixed": dict(masked=True, prompts=(20, 1), mixed=True, batch=5),
    "sees-nothing": dict(masked=True, prompts=(0,)),
    "one-token": dict(length=1, head_dim=24),
}


def with_gradients(inputs, function, **options):
    """Output and the five gradients of a random, fixed projection of it."""
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in GRADIENTS}
    out = function(**inputs | leaves, **options)
    weight = torch.randn(
        out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    grads = torch.autograd.grad((out * weight.to(out.dtype)).sum(), tuple(leaves.values()))
    return out, dict(zip(GRADIENTS, grads, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 2}, {"scale": 0.3}], ids=str)
def test_equals_textbook(case, options):
    inputs = make_inputs(**CASES[case], dtype=torch.float64)
    out, grads = with_gradients(inputs, prefix_attention, impl="reference", **options)
    exact, exact_grads = with_gradients(inputs, textbook_attention, **options)
    assert relative_l2(out, exact) < 1e-13
    for name in GRADIENTS:
        assert relative_l2(grads[name], exact_grads[name]) < 1e-12, name


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float16, 2e-3)])
def test_precision(dtype, limit):
    inputs = make_inputs(batch=4, length=33, prompts=(20, 5), mixed=True, masked=True, dtype=dtype)
    exact_inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    out, grads = with_gradients(inputs, prefix_attention, impl="reference")
    exact, exact_grads = with_gradients(exact_inputs, textbook_attention)
    assert out.dtype == dtype
    assert relative_l2(out, exact) < limit
    for name in GRADIENTS:
        assert relative_l2(grads[name], exact_grads[name]) < limit, name


def test_masked_positions_reach_nothing():
    clean = make_inputs(masked=True, length=11, prompts=(5, 2), mixed=True, batch=4)
    poisoned = make_inputs(
        masked=True, poisoned=True, length=11, prompts=(5, 2), mixed=True, batch=4
    )
    mask = clean["key_mask"][:, None, :, None]
    clean["query"] = torch.where(mask, clean["query"], 0)  # what a poisoned query counts as
    out, grads = with_gradients(poisoned, prefix_attention, impl="reference")
    expected, expected_grads = with_gradients(clean, prefix_attention, impl="reference")
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    for name in GRADIENTS:
        want = expected_grads[name]
        want = torch.where(mask, want, 0) if name == "query" else want
        torch.testing.assert_close(grads[name], want, rtol=0, atol=0)


def test_row_that_sees_nothing_is_zero():
    inputs = make_inputs(masked=True, prompts=(0,))
    out, lse = prefix_attention(**inputs, return_lse=True, impl="reference")
    assert out[-1].count_nonzero() == 0
    assert (lse[-1] == -math.inf).all()


def test_lse_and_its_gradient():
    inputs = make_inputs(dtype=torch.float64, prompts=(3,))
    leaves = {name: inputs[name].clone().requires_grad_() for name in GRADIENTS}
    out, lse = prefix_attention(**leaves, return_lse=True, impl="reference")
    keys = torch.cat(
        (leaves["prefix_key"].transpose(0, 1).expand(3, -1, -1, -1), leaves["key"]), 2
    )
    exact = (leaves["query"] @ keys.transpose(-1, -2) / 4).logsumexp(-1)
    torch.testing.assert_close(lse, exact)
    names = ("query", "key", "prefix_key")
    grads = torch.autograd.grad(lse.sin().sum(), [leaves[n] for n in names])
    wanted = torch.autograd.grad(exact.sin().sum(), [leaves[n] for n in names])
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want)
    assert out.transpose(1, 2).is_contiguous()


def test_only_requested_gradients():
    inputs = make_inputs()
    inputs["prefix_value"].requires_grad_()
    prefix_attention(**inputs, impl="reference").sum().backward()
    assert inputs["prefix_value"].grad.abs().sum() > 0
    assert inputs["prefix_key"].grad is None


def test_gradcheck_with_dropout():
    inputs = make_inputs(batch=2, heads=1, length=3, head_dim=2, prompts=(2,), dtype=torch.float64)
    leaves = [inputs[name].clone().requires_grad_() for name in GRADIENTS]

    def seeded(*tensors):
        torch.manual_seed(5)
        return prefix_attention(*tensors, dropout_p=0.4, return_lse=True, impl="reference")

    assert torch.autograd.gradcheck(seeded, leaves)


def test_dropout_is_unbiased_and_keeps_the_right_share():
    """With value = ones the output is the kept share of the probability, 1 on average."""
    inputs = make_inputs(batch=8, heads=4, length=64, prompts=(32,), dtype=torch.float64)
    for name in ("query", "key", "prefix_key"):
        inputs[name] = torch.zeros_like(inputs[name])  # uniform attention over 96 columns
    for name in ("value", "prefix_value"):
        inputs[name] = torch.ones_like(inputs[name])
    torch.manual_seed(0)
    kept = prefix_attention(**inputs, dropout_p=0.1, impl="reference")[..., 0]
    draws = kept.numel() * 96
    standard_error = math.sqrt(0.1 / 0.9 / draws)
    assert abs(float(kept.mean()) - 1) < 4 * standard_error
    other = prefix_attention(**inputs, dropout_p=0.1, impl="reference")[..., 0]
    assert not torch.equal(kept, other)


def test_dropout_mask_does_not_move_with_the_prompt():
    """The sequence's own mask is the same under prompts of different length."""
    inputs = make_inputs(length=12, head_dim=16, prompts=(4,), dtype=torch.float64)
    inputs["prefix_value"] = torch.zeros_like(inputs["prefix_value"])
    identity = torch.eye(12, 16, dtype=torch.float64)
    inputs["value"] = identity.expand(3, 2, 12, 16)  # the output shows the dropped probabilities
    dropped = []
    for length in (4, 1):
        torch.manual_seed(3)
        pool = {name: inputs[name][:length] for name in ("prefix_key", "prefix_value")}
        out = prefix_attention(**inputs | pool, dropout_p=0.5, impl="reference")
        dropped.append(out[..., :12] == 0)
    assert torch.equal(*dropped)
    assert 0.4 < dropped[0].double().mean() < 0.6


def test_a_sequence_does_not_depend_on_its_neighbours_content():
    inputs = make_inputs(batch=6, prompts=(5, 3), mixed=True)
    out = prefix_attention(**inputs, impl="reference")
    changed = {k: v.clone() for k, v in inputs.items()}
    for name in ("query", "key", "value"):
        changed[name][3:] = float("nan")
    changed["prefix_key"][5:] = float("nan")  # prompt 1, used by sequences 2 and 5
    again = prefix_attention(**changed, impl="reference")
    assert torch.equal(out[:2], again[:2])
