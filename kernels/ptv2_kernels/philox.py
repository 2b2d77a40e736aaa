"""Dropout's masks in plain torch: what every implementation has to draw from a seed."""

import torch
from torch import Tensor

OWN_COLUMN_OFFSET = 2**20
"""Dropout column of a sequence's first own key; the prompt's columns start at 0."""

PHILOX_ROUNDS = 7
_WORD = 0xFFFFFFFF


def keep_mask(
    seed: Tensor,
    threshold: int,
    rows: list[int],
    heads: int,
    length: int,
    first_column: int,
    columns: int,
) -> Tensor:
    """Dropout's keep mask, (rows, heads, length, columns) bool.

    One Philox call (Salmon et al. 2011, 7 rounds) with counter (column // 8, row, head, sequence)
    decides eight columns, 16 bits each; a column is kept if its bits reach the threshold p * 2^16.
    """
    device = seed.device
    key = int(seed)
    keys = (key & _WORD, (key >> 32) & _WORD)
    groups = (columns + 7) // 8
    counters = (
        torch.arange(first_column // 8, first_column // 8 + groups, device=device),
        torch.arange(length, device=device)[:, None],
        torch.arange(heads, device=device)[:, None, None],
        torch.tensor(rows, device=device)[:, None, None, None],
    )
    words = torch.stack(torch.broadcast_tensors(*_philox(counters, keys)), -1)
    bits = torch.stack((words & 0xFFFF, words >> 16), -1).flatten(-3)[..., :columns]
    return bits >= threshold


def _philox(counters: tuple[Tensor, ...], keys: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32 on int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counters
    k0, k1 = keys
    for _ in range(PHILOX_ROUNDS):
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (odd >> 32) & _WORD ^ c1 ^ k0, odd & _WORD
        c2, c3 = (even >> 32) & _WORD ^ c3 ^ k1, even & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3
