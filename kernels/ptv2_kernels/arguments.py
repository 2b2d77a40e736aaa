"""What one call of the operation gets, as the operator hands it to an implementation."""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The tensors, in one of two layouts that share their shapes.

    Padded: a batch entry is a sequence. Packed: ``batch`` is 1, ``length`` counts the tokens of
    all sequences, and ``cu_seqlens`` (sequences + 1,) int32 says where each begins and the last
    ends. The backward gets None for a key or value that no needed gradient depends on.
    """

    query: Tensor  # (batch, heads, length, head_dim)
    key: Tensor
    value: Tensor
    prefix_key: Tensor  # (pool_rows, heads, head_dim)
    prefix_value: Tensor
    prefix_gate: Tensor | None  # (pool_rows, heads)
    prompt_ids: Tensor | None  # (sequences,)
    prompt_bounds: Tensor | None  # (prompts, 2)
    key_mask: Tensor | None  # (batch, length)
    cu_seqlens: Tensor | None
    seed: Tensor | None  # (1,) int64; None: no dropout
    position_key: Tensor | None = None  # (buckets, heads, head_dim), as RelativePositions has them
    position_query: Tensor | None = None
    position_bucket: Tensor | None = None  # (2 * reach + 1,)

    @property
    def sequences(self) -> int:
        """How many sequences attend."""
        return len(self.query if self.cu_seqlens is None else self.cu_seqlens[1:])


class RelativePositions(NamedTuple):
    """Disentangled position scores (He et al. 2021, arXiv:2006.03654), of frozen embeddings.

    Between row ``i`` and own column ``j`` the score is ``scale * (q_i k_j + q_i key[b] +
    k_j query[b])`` with ``b = bucket[i - j + reach]``; the prompt's columns have none.
    """

    key: Tensor | None  # (buckets, heads, head_dim); None: no such term
    query: Tensor | None
    bucket: Tensor  # (2 * reach + 1,) int32, of every distance from -reach to reach


class Options(NamedTuple):
    """What is the same for every sequence of a call."""

    dropout_p: float
    scale: float
    causal: bool
    window: int | None
    max_length: int  # no sequence is longer


class Needs(NamedTuple):
    """Which gradients are asked for."""

    query: bool
    key: bool
    value: bool
    prefix_key: bool
    prefix_value: bool
    prefix_gate: bool = False

    @property
    def own(self) -> bool:
        """Whether the gradient of anything but the prompt is asked for."""
        return self.query or self.key or self.value

    @property
    def prefix(self) -> bool:
        """Whether a gradient of the prompt is asked for."""
        return self.prefix_key or self.prefix_value or self.prefix_gate

    @property
    def delta(self) -> bool:
        """Whether a gradient of scores is among them, which takes delta."""
        return self.query or self.key or self.prefix_key or self.prefix_gate

    def without_prefix(self) -> "Needs":
        """The same for the sequence's own tensors alone."""
        return self._replace(prefix_key=False, prefix_value=False, prefix_gate=False)


class RowState(NamedTuple):
    """What the backward has of every row, beside the query."""

    grad_out: Tensor  # (batch, heads, length, head_dim)
    grad_lse: Tensor | None  # (batch, heads, length)
    out: Tensor | None  # None if no delta is asked for
    lse: Tensor
    delta: Tensor | None  # rowsum(grad_out * out) - grad_lse


def empty_output(query: Tensor) -> Tensor:
    """(batch, heads, length, head_dim), laid out so that ``.transpose(1, 2)`` is contiguous.

    It is no view, so that autograd lets it be changed in place.
    """
    _, heads, length, head_dim = query.shape
    strides = (length * heads * head_dim, head_dim, heads * head_dim, 1)
    return query.new_empty_strided(query.shape, strides)


def rows_contiguous(x: Tensor) -> Tensor:
    """The same with a last stride of 1, which kernels take for granted.

    `empty_like` has another one where the rows of its argument overlap.
    """
    return x if x.stride(-1) == 1 else x.contiguous()
