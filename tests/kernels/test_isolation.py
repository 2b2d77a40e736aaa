"""What is not finite in one sequence's gradients reaches its own prompt and no other."""

import pytest
import torch

from ptv2_kernels import prefix_attention
from ptv2_kernels.testing import GRADIENTS, make_inputs

PROMPTS = ("prefix_key", "prefix_value")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("where", ["query", "grad_out", "grad_lse"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_prompt_harms_another(impl, device, dtype, where, value):
    inputs = make_inputs(batch=3, heads=1, length=5, prompts=(3, 3, 2), dtype=dtype, device=device)
    inputs["prompt_ids"] = torch.tensor([0, 1, 2], device=device)
    bounds = [[0, 3], [3, 6], [6, 8]]
    inputs["prompt_bounds"] = torch.tensor(bounds, dtype=torch.int32, device=device)
    gradients = {}
    for harmed in (False, True):
        leaves = {name: inputs[name].clone().requires_grad_() for name in GRADIENTS[:5]}
        if harmed and where == "query":
            with torch.no_grad():
                leaves["query"][0, :, 1, 2] = value
        out, lse = prefix_attention(**inputs | leaves, impl=impl, return_lse=True)
        grads = {"grad_out": torch.ones_like(out), "grad_lse": torch.ones_like(lse)}
        if harmed and where != "query":
            grads[where][0, :, 1] = value
        found = torch.autograd.grad(
            (out, lse), [leaves[name] for name in PROMPTS], tuple(grads.values())
        )
        gradients[harmed] = dict(zip(PROMPTS, found, strict=True))
    for name, expected in gradients[False].items():
        torch.testing.assert_close(gradients[True][name][3:], expected[3:], rtol=0, atol=0)
    assert not gradients[True]["prefix_key"][:3].isfinite().all()
