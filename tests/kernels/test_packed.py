"""Packed sequences: the padded layout's results without its padding."""

import pytest
import torch

from ptv2_kernels import prefix_attention, prefix_attention_varlen
from ptv2_kernels.testing import GRADIENTS, LIMITS, make_inputs, pack, relative_l2
from tests.kernels.numerics import call

LENGTHS = (9, 0, 1, 70, 33)
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": 5},
    "dropout": {"dropout_p": 0.3},
}


def layouts(lengths=LENGTHS, **kwargs):
    """The same sequences twice: padded with NaN, and packed; arguments of the two functions."""
    longest = max(lengths)
    padded = make_inputs(batch=len(lengths), length=longest, heads=1, **kwargs)
    inside = torch.arange(longest) < torch.tensor(lengths)[:, None]
    padded["key_mask"] = inside.to(padded["query"].device)
    packed = {k: v for k, v in padded.items() if k != "key_mask"}
    for name in GRADIENTS[:3]:
        padded[name].masked_fill_(~padded["key_mask"][:, None, :, None], float("nan"))
        packed[name] = pack(padded[name], lengths)
    ends = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    packed["cu_seqlens"] = ends.to(padded["query"].device)
    packed["max_seqlen"] = longest
    return padded, packed


def evaluate(function, inputs, grad_out, **options):
    """out and the gradients of the five matrices."""
    torch.manual_seed(1)  # for the dropout
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in GRADIENTS}
    out = function(**inputs | leaves, **options)
    return out, *torch.autograd.grad(out, tuple(leaves.values()), grad_out)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mixed", [False, True])
def test_packed_equals_padded(impl, mixed, options, device):
    prompts = {"prompts": (20, 0, 3), "mixed": True} if mixed else {"prompts": (20,)}
    padded, packed = layouts(**prompts, device=device)
    grad_out = torch.randn_like(padded["query"])
    grad_out.masked_fill_(~padded["key_mask"][:, None, :, None], 0)
    options = OPTIONS[options] | {"impl": impl}
    expected = evaluate(prefix_attention, padded, grad_out, **options)
    result = evaluate(prefix_attention_varlen, packed, pack(grad_out, LENGTHS), **options)
    assert result[0].is_contiguous()
    per_token = [pack(x, LENGTHS) for x in expected[:4]]
    for name, x, y in zip(("out", *GRADIENTS), result, (*per_token, *expected[4:]), strict=True):
        assert x.shape == y.shape, name
        if impl != "reference":
            assert torch.equal(x, y), name
        else:
            assert relative_l2(x, y) <= LIMITS[torch.float32], name


def test_empty_sequences_do_not_change_the_order_of_sums(impl, device):
    """Many of them, so that sequences share a part of the prompt's gradient."""
    lengths = (3, 3, 0, 0) * 20
    padded, packed = layouts(lengths, device=device)
    grad_out = torch.randn_like(padded["query"])
    grad_out.masked_fill_(~padded["key_mask"][:, None, :, None], 0)
    expected = evaluate(prefix_attention, padded, grad_out, impl=impl)[4:]
    result = evaluate(prefix_attention_varlen, packed, pack(grad_out, lengths), impl=impl)[4:]
    for x, y in zip(result, expected, strict=True):
        if impl != "reference":
            assert torch.equal(x, y)
        else:
            assert relative_l2(x, y) <= LIMITS[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_packed_kernels_match_the_reference(impl, dtype, device):
    _, packed = layouts(prompts=(20, 40), mixed=True, dtype=dtype, device=device)
    grad_out = torch.randn_like(packed["query"])
    result = evaluate(prefix_attention_varlen, packed, grad_out, impl=impl, dropout_p=0.1)
    exactly = {
        k: v.double() if v.dtype == dtype else v for k, v in packed.items() if k in GRADIENTS
    }
    expected = evaluate(
        prefix_attention_varlen,
        packed | exactly,
        grad_out.double(),
        impl="reference",
        dropout_p=0.1,
    )
    for name, x, y in zip(("out", *GRADIENTS), result, expected, strict=True):
        assert relative_l2(x, y) <= LIMITS[dtype], name


def test_lse_and_mask_of_packed_sequences(impl, device):
    padded, packed = layouts(prompts=(3,), device=device)
    seen = torch.rand(padded["key_mask"].shape, device=device) < 0.5
    padded["key_mask"] &= seen
    packed["key_mask"] = pack(seen[:, None], LENGTHS)[:, 0]
    _, expected = prefix_attention(**padded, return_lse=True, impl=impl)
    out, lse = prefix_attention_varlen(**packed, return_lse=True, impl=impl)
    assert lse.shape == (out.shape[1], out.shape[0])
    torch.testing.assert_close(lse.T, pack(expected, LENGTHS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(0, 0), ()], ids=str)
def test_no_tokens(impl, lengths, device):
    _, packed = layouts((*lengths, 1), device=device)
    for name in GRADIENTS[:3]:
        packed[name] = packed[name][:0]
    packed["cu_seqlens"] = packed["cu_seqlens"][:-1]
    out, *grads = evaluate(
        prefix_attention_varlen, packed, torch.empty_like(packed["query"]), impl=impl
    )
    assert out.shape == packed["query"].shape
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("options", [{"window": 20}, {"window": 3}, {"causal": True}], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_too_small_a_maximum_is_loud(mixed, options, device):
    """Where values cannot be checked, the output is right and gradients are NaN, never wrong."""
    pytest.importorskip("triton")
    from ptv2_kernels.backward import launch_backward
    from ptv2_kernels.forward import launch_forward
    from ptv2_kernels.tiling import Tile, Tiles, override_tiles

    prompts = {"prompts": (4, 2), "mixed": True} if mixed else {}
    _, packed = layouts((33, 4, 40), device=device, **prompts)
    del packed["max_seqlen"]
    packed |= {name: packed[name].transpose(0, 1)[None] for name in GRADIENTS[:3]}
    grads = torch.ones_like(packed["query"]), None
    tile = Tile(32, 32, 32, 4, 1)
    with override_tiles(Tiles(tile, tile, tile, tile, tile)):
        right, wrong = (
            call(launch_forward, launch_backward, packed, *grads, max_length=length, **options)
            for length in (40, 16)
        )
    assert torch.equal(wrong[0], right[0])
    for x, y in zip(wrong[2:5], right[2:5], strict=True):
        assert x[:, :, :33].isnan().all()
        assert x[:, :, 37:].isnan().all()
        torch.testing.assert_close(x[:, :, 33:37], y[:, :, 33:37])
    keys, values = wrong[5:]
    if mixed:  # sequence 0 has no prompt, and prompt 0 only the short sequence
        assert keys[4:].isnan().all()
        torch.testing.assert_close(values, right[6])
    else:
        assert keys.isnan().all()
        assert values.isnan().all()


BAD = {
    "rank": (dict(query=torch.zeros(2, 1, 4, 16)), r"query: expected \(tokens, heads, head_dim\)"),
    "dtype": (dict(cu_seqlens=torch.tensor([0, 113])), r"cu_seqlens: expected .* int32"),
    "shape": (
        dict(cu_seqlens=torch.zeros(2, 2).int()),
        r"cu_seqlens: expected \(sequences \+ 1,\)",
    ),
    "start": (dict(cu_seqlens=torch.tensor([1, 113]).int()), "cu_seqlens: expected values that"),
    "end": (dict(cu_seqlens=torch.tensor([0, 112]).int()), "cu_seqlens: .* from 0 to 113"),
    "none": (dict(cu_seqlens=torch.zeros(1).int()), "cu_seqlens: expected at least one sequence"),
    "order": (dict(cu_seqlens=torch.tensor([0, 9, 8, 113]).int()), "cu_seqlens: expected values"),
    "maximum": (dict(max_seqlen=69), "max_seqlen: expected at least 70"),
    "negative": (dict(max_seqlen=-1), "max_seqlen: expected an int >= 0"),
    "ids": (dict(prompt_ids=torch.zeros(4).int()), r"prompt_ids: expected \(5,\)"),
    "mask": (dict(key_mask=torch.ones(5, 70).bool()), r"key_mask: expected \(113,\) bool"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument(case):
    changes, message = BAD[case]
    _, packed = layouts()
    with pytest.raises(ValueError, match=message):
        prefix_attention_varlen(**packed | changes)


def test_compiles_without_a_break():
    _, packed = layouts()
    compiled = torch.compile(prefix_attention_varlen, fullgraph=True, backend="aot_eager")
    grad_out = torch.ones_like(packed["query"])
    expected = evaluate(prefix_attention_varlen, packed, grad_out)
    for x, y in zip(evaluate(compiled, packed, grad_out), expected, strict=True):
        torch.testing.assert_close(x, y)
