"""The native CPU implementation against the reference in float64."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ptv2_kernels import (
    implementations,
    native,
    prefix_attention,
    prefix_attention_varlen,
)
from ptv2_kernels.arguments import Inputs, Needs
from ptv2_kernels.native import native_backward, native_forward
from ptv2_kernels.testing import GRADIENTS, LIMITS, make_inputs, relative_l2
from tests.kernels.numerics import (
    CASES,
    assert_close,
    call,
    gradients_of_outputs,
    overlapping_inputs,
    run_exact,
)

# More than one block of rows, of keys and of the prompt, each with a remainder.
LARGE = {
    "large": ({"length": 201, "head_dim": 64, "prompts": (150,), "masked": True}, {}),
    "large-mixed": ({"batch": 5, "length": 133, "prompts": (20, 0, 130), "mixed": True}, {}),
    "large-causal": ({"length": 300, "prompts": (7,), "masked": True}, {"causal": True, "p": 0.1}),
    "large-window": ({"length": 300, "head_dim": 17}, {"window": 70, "p": 0.1}),
    "head-160": ({"length": 20, "head_dim": 160}, {}),
    "head-1": ({"length": 5, "head_dim": 1}, {}),
}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh memory holds NaN, so an element that is never written is noticed."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(*args, **options):
    return call(native_forward, native_backward, *args, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES | LARGE)
def test_matches_reference(case, dtype):
    kwargs, options = (CASES | LARGE)[case]
    inputs = make_inputs(**kwargs, poisoned=True, dtype=dtype)
    grads = gradients_of_outputs(inputs)
    actual = run(inputs, *grads, **options)
    assert actual[0].transpose(1, 2).is_contiguous()
    assert_close(actual, run_exact(inputs, *grads, **options), LIMITS[dtype])
    if "key_mask" in inputs:
        masked = ~inputs["key_mask"][:, None, :, None].expand_as(inputs["query"])
        assert all((x[masked] == 0).all() for x in actual[2:5])


@pytest.mark.parametrize("head_dim", [32, 20, 48, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pool_dtype", [None, torch.float32])
def test_half_precision(dtype, pool_dtype, head_dim):
    inputs = make_inputs(length=137, head_dim=head_dim, prompts=(20,), masked=True, dtype=dtype)
    for name in GRADIENTS[3:]:
        inputs[name] = inputs[name].to(pool_dtype or dtype)
    grads = gradients_of_outputs(inputs)
    actual = run(inputs, *grads, p=0.1)
    assert [x.dtype for x in actual[2:]] == [inputs[name].dtype for name in GRADIENTS]
    assert_close(actual, run_exact(inputs, *grads, p=0.1), LIMITS[dtype])


def test_any_strides():
    """Slices of one fused projection, and the expanded gradient of `out.sum()`."""
    fused = torch.randn(2, 9, 3, 2, 16)
    pool = torch.randn(2, 2, 5, 16)  # (key or value, heads, rows, head_dim)
    query, key, value = fused.transpose(1, 3).unbind(2)
    inputs = dict(zip(GRADIENTS, (query, key, value, *pool.transpose(1, 2)), strict=True))
    inputs["key_mask"] = torch.rand(9, 2).T < 0.5
    grad_out, grad_lse = torch.ones(()).expand(2, 2, 9, 16), torch.ones(()).expand(2, 2, 9)
    expected = run_exact(inputs, grad_out, grad_lse)
    assert_close(run(inputs, grad_out, grad_lse), expected, LIMITS[torch.float32])


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_prompts_may_overlap_and_leave_gaps(p):
    inputs = make_inputs(batch=5, length=9, heads=1, prompts=(45,))
    bounds = [[3, 24], [20, 39], [30, 30], [40, 44], [20, 39]]
    inputs["prompt_bounds"] = torch.tensor(bounds, dtype=torch.int32)
    inputs["prompt_ids"] = torch.tensor([0, 1, -1, 0, 4])
    unused = torch.ones(45, dtype=torch.bool)
    unused[3:39] = False
    for name in GRADIENTS[3:]:
        inputs[name][unused] = float("nan")
    grads = gradients_of_outputs(inputs)
    actual = run(inputs, *grads, p=p)
    assert all((x[unused] == 0).all() for x in actual[5:])
    assert_close(actual, run_exact(inputs, *grads, p=p), LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmasked_nan_stays_in_its_sequence(dtype):
    """As in softmax: NaN in one key makes NaN of every row that sees it, and of no other."""
    inputs = make_inputs(batch=3, length=20, dtype=dtype)
    inputs["key"][1, :, 4] = float("nan")
    out, lse, *_ = run(inputs, *gradients_of_outputs(inputs))
    assert out[1].isnan().all()
    assert lse[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


def test_extreme_scores():
    inputs = make_inputs(length=40, prompts=(5,))
    inputs["query"] *= 60
    grads = gradients_of_outputs(inputs)
    actual, expected = run(inputs, *grads), run_exact(inputs, *grads)
    # fp32 scores of size s carry an error of about s * 2^-24 into every weight.
    error = (60 * 16 * 2**-24) * 4
    assert all(relative_l2(x, y) <= error for x, y in zip(actual, expected, strict=True))


def test_overlapping_rows_and_an_endless_window():
    inputs = overlapping_inputs()
    grads = torch.randn(2, 2, 3, 8), None
    options = {"window": sys.maxsize}
    expected = run_exact(inputs, *grads, **options)
    assert_close(run(inputs, *grads, **options), expected, LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_of_a_block_meets_no_infinity(dtype):
    """An infinite key of the prompt has weight 0 in every row; rows of padding have none."""
    inputs = make_inputs(batch=1, heads=1, length=5, head_dim=16, dtype=dtype)
    inputs["query"].abs_()
    inputs["prefix_key"][2] = -float("inf")
    grads = torch.randn(1, 1, 5, 16, dtype=dtype), None
    actual = run(inputs, *grads, needs=Needs(False, True, True, True, True))
    assert all(x.isfinite().all() for x in actual if x is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [20, 24, 40])
def test_scratch_of_a_sequence_reaches_no_other(threads, dtype, length):
    """Products read rows beyond a short sequence, where a longer one has left NaN."""
    threads(1)
    inputs = make_inputs(batch=2, heads=1, length=128, head_dim=32, dtype=dtype)
    for name in GRADIENTS[:3]:
        inputs[name][0, :, 8:] = float("nan")
    inputs["key_mask"] = torch.arange(128) < torch.tensor([[128], [length]])
    out, lse, query, key, value, *_ = run(inputs, *gradients_of_outputs(inputs))
    assert out[0].isnan().all()
    assert all(x[1, :, :length].isfinite().all() for x in (out, lse, query, key, value))


BAD_VALUES = {
    "prompt_ids": dict(prompt_ids=torch.tensor([0, 0, 5])),
    "prompt_bounds": dict(prompt_bounds=torch.tensor([[0, 6]], dtype=torch.int32)),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_values_are_checked_in_a_compiled_graph(name):
    compiled = torch.compile(prefix_attention, fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match=f"{name}: expected"):
        compiled(**make_inputs() | BAD_VALUES[name])


@pytest.mark.parametrize("ends", [[0, 4, 9], [1, 4, 8], [0, 9, 8], [0, 4, 7]], ids=str)
def test_lengths_are_checked_in_a_compiled_graph(ends):
    inputs = make_inputs(batch=1, length=8)
    for name in GRADIENTS[:3]:
        inputs[name] = inputs[name][0].transpose(0, 1)
    inputs["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32)
    compiled = torch.compile(prefix_attention_varlen, fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match="cu_seqlens: expected values that rise from 0 to 8"):
        compiled(**inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_whatever_the_threads(threads, dtype):
    inputs = make_inputs(batch=9, length=75, prompts=(5, 9), mixed=True, masked=True, dtype=dtype)
    grads = gradients_of_outputs(inputs)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(run(inputs, *grads, p=0.1))
    for result in results[1:]:
        for x, y in zip(result, results[0], strict=True):
            assert torch.equal(x.nan_to_num(7), y.nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_independent_of_the_rest_of_the_batch(dtype):
    inputs = make_inputs(batch=5, length=18, prompts=(4, 6), mixed=True, masked=True, dtype=dtype)
    grads = gradients_of_outputs(inputs)
    whole = run(inputs, *grads)
    per_sequence = {"query", "key", "value", "prompt_ids", "key_mask"}
    alone = {name: x[2:3] if name in per_sequence else x for name, x in inputs.items()}
    single = run(alone, *(x[2:3] for x in grads))
    assert all(torch.equal(x[2:3], y) for x, y in zip(whole[:5], single[:5], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("needed", range(5))
def test_only_needed_gradients(needed, dtype):
    inputs = make_inputs(heads=1, dtype=dtype)
    grads = gradients_of_outputs(inputs)
    every = run(inputs, *grads)[2:]
    one = run(inputs, *grads, needs=Needs(*(i == needed for i in range(5))))[2:]
    for i, x in enumerate(one):
        assert torch.equal(x, every[i]) if i == needed else x is None


@pytest.mark.parametrize("empty", [{"batch": 0}, {"length": 0}, {"heads": 0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty(empty, dtype):
    inputs = make_inputs(**empty, dtype=dtype)
    out, lse, *grads = run(inputs, *gradients_of_outputs(inputs))
    assert out.shape == inputs["query"].shape
    assert lse.shape == out.shape[:3]
    for grad, name in zip(grads, GRADIENTS, strict=True):
        assert torch.equal(grad, torch.zeros_like(inputs[name]))


def test_auto_takes_native():
    inputs = make_inputs()
    tensors = Inputs(**dict.fromkeys(Inputs._fields) | inputs)
    assert implementations.choose_implementation("auto", tensors) == "native"
    double = tensors._replace(query=inputs["query"].double())
    assert implementations.choose_implementation("auto", double) == "reference"
    with pytest.raises(NotImplementedError, match="query: impl 'native' takes float16"):
        prefix_attention(**make_inputs(dtype=torch.float64), impl="native")


def test_without_native_auto_says_so_once(monkeypatch):
    monkeypatch.setattr(native, "WHY_MISSING", "_native_x.so was not built")
    implementations._say_missing.cache_clear()
    inputs = make_inputs()
    with pytest.warns(UserWarning, match="uses the slower reference: _native_x.so was not built"):
        expected = prefix_attention(**inputs)
    assert torch.equal(prefix_attention(**inputs), expected)  # a second warning would be an error
    with pytest.raises(NotImplementedError, match="impl: 'native' is not here: _native_x"):
        prefix_attention(**inputs, impl="native")
    implementations._say_missing.cache_clear()


CHECK = """
import sys, torch
from ptv2_kernels import native
from ptv2_kernels.testing import LIMITS
from tests.kernels.test_native import LARGE, make_inputs, run
from tests.kernels.numerics import CASES, assert_close, gradients_of_outputs, run_exact
for name in sys.argv[1:]:
    dtype = getattr(torch, name)
    print(native.library_path().name, native.WHY_MISSING, native.product_format(dtype))
    for kwargs, options in (CASES | LARGE).values():
        inputs = make_inputs(**kwargs, poisoned=True, dtype=dtype)
        grads = gradients_of_outputs(inputs)
        expected = run_exact(inputs, *grads, **options)
        assert_close(run(inputs, *grads, **options), expected, LIMITS[dtype])
"""


def check_in_a_process(*dtypes, **variables):
    """What it says of each dtype."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    command = [sys.executable, "-c", CHECK, *dtypes]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_on_a_smaller_instruction_set(capability):
    here = native.library_path()
    library = here.with_name(f"_native_{capability}_{here.stem.split('_', 3)[3]}.so")
    if capability == "avx2" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no avx2 on this processor")
    said = check_in_a_process("float32", "bfloat16", ATEN_CPU_CAPABILITY=capability)
    assert said == [f"{library.name} None fp32"] * 2


def cpu_has(flag):
    known = Path("/proc/cpuinfo")
    return known.exists() and re.search(rf"\b{flag}\b", known.read_text()) is not None


@pytest.mark.skipif(not cpu_has("avx512_bf16"), reason="a processor without products of bf16")
def test_bf16_in_pairs():
    (said,) = check_in_a_process("bfloat16", ATEN_CPU_CAPABILITY="avx512", PTV2_AMX="0")
    assert said.startswith("_native_avx512_")
    assert said.endswith(" None pairs")


@pytest.mark.skipif(not cpu_has("amx_bf16"), reason="a processor without AMX")
def test_bf16_by_amx():
    (said,) = check_in_a_process("bfloat16", ATEN_CPU_CAPABILITY="avx512", PTV2_AMX="1")
    assert said.startswith("_native_avx512_")
    assert said.endswith(" None amx")
