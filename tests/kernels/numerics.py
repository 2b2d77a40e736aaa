"""What the tests of every implementation share: cases, a call with its gradients, a comparison."""

import torch

from ptv2_kernels.arguments import Inputs, Needs, Options
from ptv2_kernels.reference import reference_backward, reference_forward
from ptv2_kernels.testing import GRADIENTS, make_inputs, relative_l2

ALL = Needs(*[True] * 5)
SEED = -(2**40) - 12345

CASES = {
    "one-token": ({"length": 1, "prompts": (1,)}, {}),
    "short": ({"length": 7, "head_dim": 24, "prompts": (5,)}, {"scale": 0.3}),
    "one-short-of-a-tile": ({"length": 63, "prompts": (20,), "masked": True}, {}),
    "several-tiles": ({"batch": 2, "heads": 1, "length": 130, "prompts": (33,)}, {}),
    "mixed": (
        {"batch": 4, "length": 33, "prompts": (20, 0, 3), "mixed": True, "masked": True},
        {},
    ),
    "sees-nothing": ({"prompts": (0,), "masked": True}, {}),
    "causal": ({"batch": 2, "heads": 1, "length": 70, "masked": True}, {"causal": True}),
    "window": ({"batch": 2, "heads": 1, "length": 130, "head_dim": 32}, {"window": 5}),
    "causal-window": ({"batch": 1, "length": 70, "masked": True}, {"window": 9, "causal": True}),
    "head-80": ({"batch": 2, "head_dim": 80, "prompts": (20,)}, {}),
    "head-96": ({"batch": 2, "head_dim": 96, "length": 20, "masked": True}, {}),
    "head-128": ({"batch": 2, "head_dim": 128, "heads": 1}, {}),
    "dropout": ({"length": 33, "masked": True, "prompts": (5, 7, 9), "mixed": True}, {"p": 0.2}),
    "short-causal": ({"length": 40, "heads": 1, "masked": True}, {"causal": True}),
    "short-window": ({"length": 40, "heads": 1, "prompts": (0,)}, {"window": 6}),
    "gated": ({"length": 40, "prompts": (33,), "gated": True, "masked": True}, {}),
    "gated-long": ({"batch": 2, "length": 70, "prompts": (5,), "gated": True}, {"causal": True}),
    "gated-mixed": (
        {"batch": 5, "prompts": (20, 0, 3), "mixed": True, "masked": True, "gated": True},
        {"p": 0.2},
    ),
    "dropout-causal": ({"batch": 2, "heads": 1, "length": 70}, {"p": 0.5, "causal": True}),
}


def exact(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def call(
    forward, backward, inputs, grad_out, grad_lse, *, p=0.0, scale=None, causal=False,
    window=None, needs=None, max_length=None,
):  # fmt: skip
    """out, lse and the five gradients of an implementation, six if there are gates."""
    gated = "prefix_gate" in inputs
    needs = needs or ALL._replace(prefix_gate=gated)
    seed = torch.tensor([SEED], device=grad_out.device) if p else None
    arguments = Inputs(**dict.fromkeys(Inputs._fields) | inputs | {"seed": seed})
    length, head_dim = inputs["query"].shape[2:]
    options = Options(p, scale or head_dim**-0.5, causal, window, max_length or length)
    out, lse = forward(arguments, options)
    grads = backward(grad_out, grad_lse, arguments, out, lse, needs, options)
    assert gated or grads[5] is None
    return out, lse, *grads[: 6 if gated else 5]


def run_exact(inputs, grad_out, grad_lse, **options):
    """The same of the reference, in float64."""
    inputs = {name: exact(x) for name, x in inputs.items()}
    return call(
        reference_forward, reference_backward, inputs, exact(grad_out), exact(grad_lse), **options
    )


def gradients_of_outputs(inputs):
    """Random gradients of out and lse, NaN in masked rows."""
    query = inputs["query"]
    grad_out = torch.randn(query.shape).to(query)
    grad_lse = torch.randn(query.shape[:3]).to(query.device)
    if "key_mask" in inputs:
        masked = ~inputs["key_mask"][:, None]
        grad_out.masked_fill_(masked[..., None], float("nan"))
        grad_lse.masked_fill_(masked, float("nan"))
    return grad_out, grad_lse


def overlapping_inputs(device="cpu"):
    """Fewer rows than elements, and a row's elements are its neighbour's, moved by one."""
    inputs = make_inputs(batch=2, length=3, head_dim=8, device=device)
    inputs["query"] = torch.randn(2, 2, 11, device=device).as_strided((2, 2, 3, 8), (22, 11, 1, 1))
    return inputs


def closed_gate_inputs(dtype, device="cpu"):
    """A prompt row behind a closed gate whose scores are about 120, and other scores near 0."""
    inputs = make_inputs(length=9, gated=True, dtype=dtype, device=device)
    inputs["query"] += 5
    inputs["key"] *= 0.1
    inputs["prefix_key"] *= 0.1
    inputs["prefix_key"][1] = 6  # 16 * 5 * 6 / 4
    inputs["prefix_gate"] = inputs["prefix_gate"].float()
    inputs["prefix_gate"][1] = 0
    return inputs


def assert_close(actual, expected, limit):
    names = ("out", "lse", *GRADIENTS, "prefix_gate")
    for name, x, y in zip(names[: len(expected)], actual, expected, strict=True):
        assert x.shape == y.shape, name
        finite = y.isfinite()
        assert torch.equal(x.isfinite(), finite), name
        assert torch.equal(x[~finite].float(), y[~finite].float()), name
        assert relative_l2(x[finite], y[finite]) <= limit, name


def with_gradients(function, inputs, **options):
    """The output and the gradients of a fixed projection of it, by name."""
    names = (*GRADIENTS, "prefix_gate") if "prefix_gate" in inputs else GRADIENTS
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in names}
    out = function(**inputs | leaves, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((out * weight.to(out)).sum(), tuple(leaves.values()))
    return {"out": out} | dict(zip(names, grads, strict=True))
