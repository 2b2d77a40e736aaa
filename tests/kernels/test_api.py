"""Bad arguments get an error that names the argument, what was expected and what came."""

from types import SimpleNamespace

import pytest
import torch

from ptv2_kernels import prefix_attention
from ptv2_kernels.arguments import Inputs
from ptv2_kernels.implementations import choose_implementation
from ptv2_kernels.testing import make_inputs

BOUNDS = torch.tensor([[0, 3], [3, 5]], dtype=torch.int32)

BAD = {
    "query rank": (dict(query=torch.zeros(2, 3, 4)), r"query: expected \(batch, heads, length"),
    "query dtype": (dict(query=torch.zeros(3, 2, 7, 16).int()), "query: expected a floating"),
    "key shape": (
        dict(key=torch.zeros(3, 2, 8, 16)),
        r"key: expected query's shape .* got \(3, 2, 8",
    ),
    "value dtype": (dict(value=torch.zeros(3, 2, 7, 16).half()), "value: expected query's dtype"),
    "prefix shape": (dict(prefix_key=torch.zeros(5, 3, 16)), r"prefix_key: expected \(prefix_tok"),
    "prefix dtype": (
        dict(prefix_key=torch.zeros(5, 2, 16).half()),
        "prefix_key: expected query's",
    ),
    "prefix lengths": (
        dict(prefix_value=torch.zeros(4, 2, 16)),
        "prefix_value: expected prefix_key",
    ),
    "stride": (dict(key=torch.zeros(3, 2, 16, 7).mT), "key: expected a last stride of 1"),
    "ids shape": (dict(prompt_ids=torch.zeros(2).long()), r"prompt_ids: expected \(3,\) int32"),
    "ids dtype": (dict(prompt_ids=torch.zeros(3)), r"prompt_ids: expected .* got .*float32"),
    "ids range": (
        dict(prompt_ids=torch.tensor([0, 1, 0])),
        "prompt_ids: expected values from -1 to 0",
    ),
    "bounds dtype": (dict(prompt_bounds=BOUNDS.long()), r"prompt_bounds: expected \(prompts, 2\)"),
    "bounds range": (dict(prompt_bounds=BOUNDS + 1), "prompt_bounds: expected 0 <= start <= end"),
    "mask dtype": (dict(key_mask=torch.ones(3, 7)), r"key_mask: expected \(3, 7\) bool"),
    "mask shape": (dict(key_mask=torch.ones(3, 12).bool()), r"key_mask: expected \(3, 7\) bool"),
    "dropout": (dict(dropout_p=1.0), r"dropout_p: expected a value in \[0, 1\), got 1.0"),
    "scale": (dict(scale=float("nan")), "scale: expected a finite number"),
    "window": (dict(window=-1), "window: expected an int >= 0"),
    "impl": (dict(impl="cuda"), "impl: expected 'auto'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        prefix_attention(**make_inputs() | changes)


def test_explicit_impl_never_falls_back(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(NotImplementedError, match="impl: 'triton' needs CUDA tensors"):
        prefix_attention(**make_inputs(), impl="triton")


@pytest.mark.parametrize("positions", [None, torch.zeros(13).int()], ids=["", "positions"])
@pytest.mark.parametrize(
    ("dtype", "head_dim", "chosen"),
    [
        (torch.float16, 128, "triton"),
        (torch.float32, 1, "triton"),
        (torch.float64, 64, "reference"),
        (torch.float32, 129, "reference"),
        (torch.bfloat16, 0, "reference"),
    ],
)
def test_auto_on_a_gpu_takes_what_its_kernels_do(dtype, head_dim, chosen, positions):
    query = SimpleNamespace(
        is_cuda=True, device=torch.device("cuda"), dtype=dtype, shape=(3, 2, 7, head_dim)
    )
    inputs = Inputs(query, *[None] * 12, positions)
    assert choose_implementation("auto", inputs) == chosen
    if chosen == "triton":
        assert choose_implementation("triton", inputs) == "triton"
    else:
        with pytest.raises(NotImplementedError, match="query: impl 'triton' takes float16"):
            choose_implementation("triton", inputs)


@pytest.mark.parametrize("length", [7, 70])
@pytest.mark.parametrize("case", ["masked", "saw-nothing"])
@pytest.mark.filterwarnings("ignore:overflow encountered in matmul")  # of the interpreter
def test_where_a_gradient_of_lse_counts_as_zero_if_it_is_not_finite(impl, case, length, device):
    inputs = make_inputs(
        batch=2, heads=1, length=length, masked=case == "masked", prompts=(0,), device=device
    )
    if case == "masked":
        reached = inputs["key_mask"][:, None].clone()
    else:
        inputs["query"][0], inputs["key"][0] = 1e30, -1e30
        reached = torch.tensor([False, True], device=device)[:, None, None]
    key = inputs["key"].requires_grad_()
    grads = []
    for unreached in (0.0, float("nan"), float("inf")):
        _, lse = prefix_attention(**inputs, return_lse=True, impl=impl)
        weight = torch.arange(length, device=device).float().expand_as(lse)
        weight = torch.where(reached, weight, unreached)
        grads += torch.autograd.grad(lse, key, weight)
    assert grads[0].count_nonzero()
    if case != "masked":
        assert (lse[0] == -float("inf")).all()
        assert grads[0][0].count_nonzero() == 0
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


@pytest.mark.parametrize("shape", [dict(batch=0), dict(length=0), dict(prompts=(0,))], ids=str)
def test_empty(shape):
    inputs = make_inputs(**shape)
    inputs["query"].requires_grad_()
    inputs["prefix_key"].requires_grad_()
    out, lse = prefix_attention(**inputs, return_lse=True)
    assert out.shape == inputs["query"].shape
    assert lse.shape == out.shape[:3]
    out.sum().backward()
    assert inputs["prefix_key"].grad.shape == inputs["prefix_key"].shape
