"""The registered operator: schema, fakes, autograd, compile, export, checkpointing, autocast."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from ptv2_kernels import prefix_attention, prefix_attention_varlen
from ptv2_kernels.arguments import Inputs
from ptv2_kernels.testing import GRADIENTS, make_inputs, make_positions
from tests.kernels.numerics import overlapping_inputs

MIXED = dict(prompts=(5, 3), mixed=True, masked=True, batch=4)
GATED = (*GRADIENTS, "prefix_gate")
INPUTS = len(Inputs._fields)


def arguments(dropout_p=0.0, seed=None, requires_grad=False, impl="reference", **kwargs):
    """Positional arguments of torch.ops.ptv2.prefix_attention."""
    inputs = make_inputs(**MIXED | kwargs, gated=True)
    leaves = [inputs[name].requires_grad_(requires_grad) for name in GATED]
    optional = [inputs["prompt_ids"], inputs["prompt_bounds"], inputs["key_mask"], None, seed]
    optional += list(make_positions(inputs, 9)) if impl != "native" else [None] * 3
    length = inputs["query"].shape[2]
    return (*leaves, *optional, dropout_p, 0.25, False, None, length, impl)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_opcheck(impl, dropout_p, requires_grad, device):
    seed = torch.tensor([7], device=device) if dropout_p else None
    args = arguments(dropout_p, seed, requires_grad, impl, device=device)
    torch.library.opcheck(torch.ops.ptv2.prefix_attention.default, args)


@pytest.mark.parametrize("shape", [{}, {"batch": 0}, {"length": 0}], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_opcheck_backward(impl, transposed, shape, device):
    args = arguments(impl=impl, device=device, **shape)
    if transposed:  # pools as they are cut out of (heads, rows, head_dim)
        pools = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in args[3:5]]
        args = (*args[:3], *pools, *args[5:])
    out, lse = torch.ops.ptv2.prefix_attention(*args)
    needs = [True, False, True, True, False, True]
    torch.library.opcheck(
        torch.ops.ptv2.prefix_attention_backward.default,
        (torch.ones_like(out), None, *args[:INPUTS], out, lse, needs, *args[INPUTS:]),
    )


def test_opcheck_backward_of_overlapping_rows(impl, device):
    inputs = Inputs(**dict.fromkeys(Inputs._fields) | overlapping_inputs(device))
    options = (0.0, 0.25, False, None, 3, impl)
    out, lse = torch.ops.ptv2.prefix_attention(*inputs, *options)
    torch.library.opcheck(
        torch.ops.ptv2.prefix_attention_backward.default,
        (torch.ones_like(out), None, *inputs, out, lse, [True] * 5 + [False], *options),
    )


def packed_attention(query, key, value, prefix_key, prefix_value, **options):
    """Two sequences of the first entry's rows."""
    own = (x[0].transpose(0, 1) for x in (query, key, value))
    ends = torch.tensor([0, 3, query.shape[2]], dtype=torch.int32, device=query.device)
    return prefix_attention_varlen(*own, prefix_key, prefix_value, ends, **options)


def loss_and_gradients(function, inputs):
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in GATED}
    loss = function(**inputs | leaves).square().sum()
    return (loss, *torch.autograd.grad(loss, tuple(leaves.values())))


@pytest.mark.parametrize("function", [prefix_attention, packed_attention])
def test_the_output_may_be_changed_in_place(impl, function, device):
    """Where autograd has not kept it, which it has for a gradient of scores."""
    inputs = make_inputs(device=device)
    value = inputs["value"].requires_grad_()
    out = function(**inputs, impl=impl)
    (expected,) = torch.autograd.grad(out.sum() * 2, value)
    out = function(**inputs, impl=impl)
    out *= 2
    torch.testing.assert_close(torch.autograd.grad(out.sum(), value)[0], expected)


def test_second_derivatives_are_refused(impl, device):
    inputs = make_inputs(**MIXED, gated=True, device=device)
    leaves = {name: inputs[name].requires_grad_() for name in GATED}
    out = prefix_attention(**inputs | leaves, impl=impl)
    grads = torch.autograd.grad(out.square().sum(), tuple(leaves.values()), create_graph=True)
    penalty = sum(grad.square().sum() for grad in grads)
    with pytest.raises(NotImplementedError, match="prefix_attention: second derivatives"):
        torch.autograd.grad(penalty, leaves["prefix_key"])


def test_compiles_without_a_break():
    inputs = make_inputs(**MIXED, gated=True)
    compiled = torch.compile(prefix_attention, fullgraph=True, backend="aot_eager")
    expected = loss_and_gradients(prefix_attention, inputs)
    for got, want in zip(loss_and_gradients(compiled, inputs), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_a_new_length_does_not_recompile():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(prefix_attention, fullgraph=True, dynamic=True, backend=counter)
    compiled(**make_inputs(length=6))
    compilations = counter.frame_count
    assert compilations
    for length in (9, 14):
        compiled(**make_inputs(length=length))
    assert counter.frame_count == compilations


def test_exports():
    class Attention(torch.nn.Module):
        def forward(self, query, key, value, prefix_key, prefix_value):
            return prefix_attention(query, key, value, prefix_key, prefix_value)

    inputs = make_inputs()
    program = torch.export.export(Attention(), tuple(inputs[name] for name in GRADIENTS))
    torch.testing.assert_close(program.module()(*inputs.values()), prefix_attention(**inputs))


def test_checkpoint_draws_the_same_dropout():
    inputs = make_inputs(**MIXED, gated=True)

    def dropped(**kwargs):
        return prefix_attention(**kwargs, dropout_p=0.5)

    def checkpointed(**kwargs):
        return checkpoint(dropped, **kwargs, use_reentrant=False)

    results = []
    for function in (dropped, checkpointed):
        torch.manual_seed(11)
        results.append(loss_and_gradients(function, inputs))
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_autocast_casts_the_sequence_and_keeps_the_prompt():
    inputs = make_inputs()
    inputs["prefix_key"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = prefix_attention(**inputs)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert inputs["prefix_key"].grad.dtype == torch.float32
    rounded = {k: v.to(torch.bfloat16) if k in GRADIENTS[:3] else v for k, v in inputs.items()}
    assert torch.equal(out, prefix_attention(**rounded))


def saved(**requires_grad):
    """Bytes that autograd keeps of one call, by name."""
    kept = {}
    inputs = make_inputs(batch=3, length=8, dtype=torch.float16)
    names = {inputs[name].data_ptr(): name for name in GRADIENTS}

    def pack(x):
        kept[names.get(x.data_ptr(), tuple(x.shape))] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        prefix_attention(**inputs | {k: inputs[k].requires_grad_() for k in requires_grad})
    return kept


def test_keeps_four_matrices_and_one_number_a_row():
    """batch 3, 2 heads, 8 rows of 16; the prompt has 5 rows and is the caller's own."""
    matrix, pool = 3 * 2 * 8 * 16 * 2, 5 * 2 * 16 * 2
    out, lse = (3, 2, 8, 16), (3, 2, 8)
    kept = saved(**dict.fromkeys(GRADIENTS, True))
    expected = dict.fromkeys(GRADIENTS[:3], matrix) | dict.fromkeys(GRADIENTS[3:], pool)
    assert kept == expected | {out: matrix, lse: 3 * 2 * 8 * 4}


def test_keeps_no_keys_where_only_the_prompt_learns():
    """The first layer of a frozen backbone."""
    assert set(saved(prefix_key=True, prefix_value=True)) == {
        *("query", "prefix_key", "prefix_value"),
        (3, 2, 8, 16),
        (3, 2, 8),
    }
    assert set(saved(prefix_value=True)) == {"query", "prefix_key", (3, 2, 8)}
