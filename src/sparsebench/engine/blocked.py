"""Attention on a processor, in blocks of queries: batched matrix products and a softmax in float32.

SDPA's kernel for processors runs bfloat16 products at a tenth of their speed unless the processor has tiles (AMX), and
turns each boolean mask into numbers entry by entry. This is several times as fast. In bfloat16 the scores are rounded
before the softmax, as in the plain attention of transformers; see docs/decisions/0008.
"""

from __future__ import annotations

import torch

BLOCK_SCORES = 2**20
"""Scores that are held at a time: what a cache likes."""
LONGEST = 128
"""Most queries of a block: the keys that only its last queries read are computed for all of them."""
FEW = 8
"""Queries below which SDPA is as fast."""
HIDDEN = 1e30
"""What a hidden score loses; exp of it is exactly 0."""


def suits(query: torch.Tensor, masked: bool) -> bool:
    """Whether this is faster than SDPA for queries [rows, heads, queries, dim], with a mask or without."""
    if query.device.type != "cpu" or query.shape[2] < FEW:
        return False
    return query.dtype == torch.bfloat16 or (query.dtype == torch.float32 and masked)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    last: torch.Tensor,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention; a query with no key gives zeros.

    Args:
        query: [rows, heads, queries, dim].
        key: [rows, kv_heads, keys, dim]; `kv_heads` divides `heads`.
        value: [rows, kv_heads, keys, value_dim].
        scaling: What scores are multiplied with.
        last: The last key that any row's query reads, int64 [queries]; no query of a later place reads fewer.
        keep: Keys that are read, bool, broadcastable to [rows, heads, queries, keys]; None: all up to `last`.

    Returns:
        [rows, heads, queries, value_dim].
    """
    rows, heads, queries, dim = query.shape
    kv_heads, keys = key.shape[1:3]
    columns = key.reshape(rows * kv_heads, keys, dim).transpose(1, 2)
    entries = value.reshape(rows * kv_heads, keys, -1)
    # Laid out as the output projection reads it.
    out = query.new_empty((rows, queries, heads, entries.shape[-1])).transpose(1, 2)
    ends = last.tolist()
    most = min(LONGEST, max(16, BLOCK_SCORES // (rows * heads * keys)))
    step = -(-queries // -(-queries // most))
    for first in range(0, queries, step):
        block = slice(first, min(first + step, queries))
        size, end = block.stop - first, ends[block.stop - 1] + 1
        folded = query[:, :, block].reshape(rows * kv_heads, -1, dim)
        scores = torch.bmm(folded, columns[..., :end]).view(rows, heads, size, end).float().mul_(scaling)
        if keep is not None:
            read = keep[:, :, block, :end]
            # Adding is many times as fast as filling by a mask.
            scores += torch.where(read, 0.0, -HIDDEN)
        else:
            _hide_later(scores, last[block])
        weights = torch.softmax(scores, dim=-1)
        if keep is not None:
            weights *= read.any(dim=-1, keepdim=True)
        weights = weights.to(value.dtype).view(rows * kv_heads, -1, end)
        out[:, :, block] = torch.bmm(weights, entries[:, :end]).view(rows, heads, size, -1)
    return out


def _hide_later(scores: torch.Tensor, last: torch.Tensor) -> None:
    """Hide the keys after each query's last one; all queries read those up to the first query's."""
    first = int(last[0]) + 1
    later = torch.arange(first, scores.shape[-1]) > last[:, None]
    scores[..., first:] -= later.to(scores.dtype) * HIDDEN
