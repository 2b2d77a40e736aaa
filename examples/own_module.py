"""The operator by itself: a self-attention layer of one's own, with a prompt for each sequence.

    python examples/own_module.py

It is compared with the usual way, which concatenates the prompt to the keys and values of every
sequence: the same numbers, and what each of them keeps for its backward.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import pad, scaled_dot_product_attention

import ptv2


class PromptedAttention(nn.Module):
    """Self-attention whose sequences also attend to one of several trained prompts."""

    def __init__(self, hidden: int, heads: int, prompts: int, length: int) -> None:
        super().__init__()
        self.heads, self.length = heads, length
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.pool = nn.Parameter(torch.randn(2, prompts * length, heads, hidden // heads))
        starts = torch.arange(0, prompts * length, length, dtype=torch.int32)
        self.register_buffer("bounds", torch.stack((starts, starts + length), 1))  # (prompts, 2)

    def forward(self, states: Tensor, mask: Tensor, prompt_ids: Tensor) -> Tensor:
        """States (batch, length, hidden), mask (batch, length), prompt_ids (batch,) -> states."""
        out = ptv2.prefix_attention(
            *self.project(states),
            *self.pool,
            prompt_ids=prompt_ids,
            prompt_bounds=self.bounds,
            key_mask=mask,
        )
        return out.transpose(1, 2).flatten(2)

    def concatenating(self, states: Tensor, mask: Tensor, prompt_ids: Tensor) -> Tensor:
        """The same, as others do it."""
        query, key, value = self.project(states)
        own = self.pool.unflatten(1, (-1, self.length))[:, prompt_ids].transpose(2, 3)
        key, value = torch.cat((own[0], key), 2), torch.cat((own[1], value), 2)
        wide = pad(mask, (self.length, 0), value=True)[:, None, None]
        out = scaled_dot_product_attention(query, key, value, wide)
        return out.transpose(1, 2).flatten(2)

    def project(self, states: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (batch, heads, length, head_dim)."""
        qkv = self.qkv(states).unflatten(-1, (3, self.heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--prompt-length", type=int, default=64)
    args = parser.parse_args()
    torch.manual_seed(0)
    module = PromptedAttention(384, heads=12, prompts=3, length=args.prompt_length)
    states = torch.randn(args.batch, args.length, 384)
    mask = torch.arange(args.length) < torch.randint(1, args.length + 1, (args.batch, 1))
    prompt_ids = torch.randint(0, 3, (args.batch,))

    outputs, gradients = [], []
    for name in ("concatenating", "forward"):
        kept: dict[int, int] = {}  # storage -> bytes

        def keep(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with saved_tensors_hooks(keep, lambda x: x):
            outputs.append(getattr(module, name)(states, mask, prompt_ids)[mask])
        gradients += torch.autograd.grad(outputs[-1].square().sum(), module.pool)
        print(f"{name}: keeps {sum(kept.values()) / 2**20:.1f} MiB for its backward")
    for name, (expected, got) in (("outputs", outputs), ("prompts' gradients", gradients)):
        print(f"{name}: differ by {(expected - got).abs().max() / expected.abs().max():.0e}")


if __name__ == "__main__":
    main()
