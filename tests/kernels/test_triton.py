"""The Triton kernels against the reference in float64; interpreted where there is no GPU."""

import sys
from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton")

from ptv2_kernels import launch
from ptv2_kernels.arguments import Needs
from ptv2_kernels.backward import launch_backward
from ptv2_kernels.forward import launch_forward
from ptv2_kernels.testing import GRADIENTS, LIMITS, make_inputs, pack
from ptv2_kernels.tiling import Tile, Tiles, override_tiles
from tests.kernels.numerics import (
    CASES,
    SEED,
    assert_close,
    call,
    closed_gate_inputs,
    gradients_of_outputs,
    overlapping_inputs,
    run_exact,
)

ON_GPU = torch.cuda.is_available()
ALLOCATORS = (
    *((torch, "empty"), (torch, "empty_like")),
    *((torch.Tensor, "new_empty"), (torch.Tensor, "new_empty_strided")),
)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh memory holds NaN, so an element that no kernel writes is noticed."""
    for owner, name in ALLOCATORS:
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def poisoned(function):
    def allocate(*args, **kwargs):
        x = function(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    return allocate


def recorded(function, sizes):
    def allocate(*args, **kwargs):
        x = function(*args, **kwargs)
        sizes.append(x.nbytes)
        return x

    return allocate


def run(*args, **options):
    return call(launch_forward, launch_backward, *args, **options)


@pytest.fixture(params=["long", "short"])
def path(request):
    """Both backwards: by blocks, and in one kernel for sequences of at most 64 rows."""
    if request.param == "long":
        yield
    else:
        tile = Tile(64, 32, 32, num_warps=4, num_stages=1)
        with override_tiles(Tiles(tile, tile, tile, tile, tile)):
            yield


@pytest.mark.parametrize(
    ("case", "path"),
    [(case, "long") for case in CASES]
    + [(case, "short") for case in CASES if CASES[case][0].get("length", 7) <= 64],
    indirect=["path"],
)
def test_matches_reference(case, path, device):
    kwargs, options = CASES[case]
    inputs = make_inputs(**kwargs, poisoned=True, device=device)
    grads = gradients_of_outputs(inputs)
    actual = run(inputs, *grads, **options)
    assert actual[0].transpose(1, 2).is_contiguous()
    assert_close(actual, run_exact(inputs, *grads, **options), LIMITS[torch.float32])
    if "key_mask" in inputs:
        query, key, value = actual[2:5]
        masked = ~inputs["key_mask"][:, None, :, None].expand_as(query)
        assert all((x[masked] == 0).all() for x in (query, key, value))


@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("pool_dtype", [None, torch.float32])
def test_half_precision(dtype, pool_dtype, device):
    length = 137 if ON_GPU else 37
    inputs = make_inputs(length=length, prompts=(20,), masked=True, dtype=dtype, device=device)
    for name in GRADIENTS[3:]:
        inputs[name] = inputs[name].to(pool_dtype or dtype)
    grads = gradients_of_outputs(inputs)
    actual = run(inputs, *grads, p=0.1)
    assert [x.dtype for x in actual[2:]] == [inputs[name].dtype for name in GRADIENTS]
    assert_close(actual, run_exact(inputs, *grads, p=0.1), LIMITS[dtype])


def test_any_strides(device):
    """Slices of one fused projection, and the expanded gradient of `out.sum()`."""
    fused = torch.randn(2, 9, 3, 2, 16, device=device)
    pool = torch.randn(2, 2, 5, 16, device=device)  # (key or value, heads, rows, head_dim)
    query, key, value = fused.transpose(1, 3).unbind(2)
    inputs = dict(zip(GRADIENTS, (query, key, value, *pool.transpose(1, 2)), strict=True))
    grad_out = torch.ones((), device=device).expand(2, 2, 9, 16)
    assert_close(
        run(inputs, grad_out, None), run_exact(inputs, grad_out, None), LIMITS[torch.float32]
    )


def test_overlapping_rows_and_an_endless_window(path, device):
    inputs = overlapping_inputs(device)
    grads = torch.randn(2, 2, 3, 8, device=device), None
    options = {"window": sys.maxsize}
    expected = run_exact(inputs, *grads, **options)
    assert_close(run(inputs, *grads, **options), expected, LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("gate_learns", [False, True])
def test_a_closed_gate_hides_any_score(gate_learns, dtype, path, device):
    inputs = closed_gate_inputs(dtype, device)
    grads = gradients_of_outputs(inputs)
    needs = Needs(True, True, True, True, True, gate_learns)
    actual, expected = (f(inputs, *grads, needs=needs) for f in (run, run_exact))
    assert_close(actual[:7], expected[:7], LIMITS[dtype])
    assert (actual[7] is None) != gate_learns


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_prompts_may_overlap_and_leave_gaps(p, device):
    inputs = make_inputs(batch=5, length=9, heads=1, prompts=(45,), device=device)
    bounds = [[3, 24], [20, 39], [30, 30], [40, 44], [20, 39]]
    inputs["prompt_bounds"] = torch.tensor(bounds, dtype=torch.int32, device=device)
    ids = torch.tensor([[0, 1, -1, 0, 4]] * 2, dtype=torch.int32, device=device)
    inputs["prompt_ids"] = ids.T.contiguous()[:, 0]
    unused = torch.ones(45, dtype=torch.bool, device=device)
    unused[3:39] = False
    for name in GRADIENTS[3:]:
        inputs[name][unused] = float("nan")
    grads = gradients_of_outputs(inputs)
    actual = run(inputs, *grads, p=p)
    assert all((x[unused] == 0).all() for x in actual[5:])
    assert_close(actual, run_exact(inputs, *grads, p=p), LIMITS[torch.float32])


def test_more_prompts_than_are_looked_at_at_once(device):
    inputs = make_inputs(batch=4, length=5, heads=1, prompts=(1,) * 70, mixed=True, device=device)
    inputs["prompt_ids"] = torch.tensor([69, 3, 64, 63], device=device)
    grads = gradients_of_outputs(inputs)
    assert_close(run(inputs, *grads), run_exact(inputs, *grads), LIMITS[torch.float32])


def test_dropout_is_the_same_in_any_tile(device):
    inputs = make_inputs(batch=1, heads=1, length=70, prompts=(33,), device=device)
    grads = gradients_of_outputs(inputs)
    tiles = [Tile(16, 64, 16, 4, 1), Tile(64, 16, 64, 4, 1), Tile(32, 32, 32, 4, 2)]
    results = []
    for forward, other in pairwise([*tiles, tiles[0]]):
        with override_tiles(Tiles(forward, other, forward, other, None)):
            results.append(run(inputs, *grads, p=0.4))
    for result in results[1:]:
        assert_close(result, results[0], LIMITS[torch.float32])


def test_same_bits_in_every_run(path, device):
    inputs = make_inputs(batch=8, heads=1, length=18, device=device)
    grads = gradients_of_outputs(inputs)
    first, second = (run(inputs, *grads, p=0.1) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_independent_of_the_rest_of_the_batch(device):
    inputs = make_inputs(
        batch=5, length=18, prompts=(4, 6), mixed=True, masked=True, device=device
    )
    grads = gradients_of_outputs(inputs)
    whole = run(inputs, *grads)
    per_sequence = {"query", "key", "value", "prompt_ids", "key_mask"}
    alone = {name: x[2:3] if name in per_sequence else x for name, x in inputs.items()}
    single = run(alone, *(x[2:3] for x in grads))
    assert all(torch.equal(x[2:3], y) for x, y in zip(whole[:5], single[:5], strict=True))


@pytest.mark.parametrize("needed", range(5))
def test_only_needed_gradients(needed, path, device):
    inputs = make_inputs(heads=1, device=device)
    grads = gradients_of_outputs(inputs)
    every = run(inputs, *grads)[2:]
    one = run(inputs, *grads, needs=Needs(*(i == needed for i in range(5))))[2:]
    for i, x in enumerate(one):
        assert torch.equal(x, every[i]) if i == needed else x is None


@pytest.mark.parametrize("packed", [False, True])
def test_memory_does_not_grow_with_the_batch(packed, path, monkeypatch, device):
    """Beside results and delta there are the partial sums of the prompt's gradient, so many."""
    monkeypatch.setattr(launch, "PROGRAMS", 4)

    def beside_results(batch):
        sizes = []
        inputs = make_inputs(batch=batch, length=3, heads=1, prompts=(16,), device=device)
        if packed:
            for name in GRADIENTS[:3]:
                inputs[name] = pack(inputs[name], [3] * batch).transpose(0, 1)[None]
            inputs["cu_seqlens"] = torch.arange(0, 3 * batch + 1, 3, dtype=torch.int32).to(device)
        grads = gradients_of_outputs(inputs)
        with monkeypatch.context() as patch:
            for owner, name in ALLOCATORS:
                patch.setattr(owner, name, recorded(getattr(owner, name), sizes))
            out, lse, *grads = run(inputs, *grads, max_length=3)
        return sum(sizes) - sum(x.nbytes for x in (out, lse, lse, *grads[:3]))

    assert beside_results(4) == beside_results(12) == 2 * 4 * 16 * 16 * 4


@pytest.mark.parametrize("empty", [{"batch": 0}, {"length": 0}])
def test_empty(empty, device):
    inputs = make_inputs(**empty, device=device)
    out, lse, *grads = run(inputs, *gradients_of_outputs(inputs))
    assert out.shape == inputs["query"].shape
    assert lse.shape == out.shape[:3]
    for grad, name in zip(grads, GRADIENTS, strict=True):
        assert torch.equal(grad, torch.zeros_like(inputs[name]))


@pytest.mark.skipif(ON_GPU, reason="float64 runs in the interpreter alone")
@pytest.mark.parametrize(("path", "packed"), [("long", True), ("short", False)], indirect=["path"])
def test_gradcheck(path, packed):
    inputs = make_inputs(
        batch=2, heads=1, length=3, head_dim=2, prompts=(2,), gated=True, dtype=torch.float64
    )
    inputs["prefix_gate"] += 0.5  # finite differences stay above 0
    leaves = [inputs[name].requires_grad_() for name in (*GRADIENTS, "prefix_gate")]
    cu_seqlens = torch.tensor([0, 1, 3], dtype=torch.int32) if packed else None

    def attend(query, key, value, *pool):
        own = (x[:1] if packed else x for x in (query, key, value))
        optional = (None, None, None, cu_seqlens, torch.tensor([SEED]), None, None, None)
        return torch.ops.ptv2.prefix_attention(
            *own, *pool, *optional, 0.4, 0.7, False, None, 3, "triton"
        )

    assert torch.autograd.gradcheck(attend, leaves)
