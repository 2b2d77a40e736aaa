"""The fixture of tests that every implementation passes."""

import pytest
import torch


@pytest.fixture(params=["reference", "native", "triton"])
def impl(request):
    """Every implementation in turn that takes tensors of `device`."""
    if request.param == "triton":
        pytest.importorskip("triton")
    if request.param == "native" and torch.cuda.is_available():
        pytest.skip("the CPU's")
    return request.param
