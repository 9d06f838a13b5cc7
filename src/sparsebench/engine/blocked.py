"""Attention on a processor, in blocks of queries: batched matrix products and a softmax in float32.

SDPA's kernel for processors runs bfloat16 products at a tenth of their speed unless the processor has tiles (AMX), and
turns each boolean mask into numbers entry by entry. This is several times as fast. In bfloat16 the scores are rounded
before the softmax, as in the plain attention of transformers; see docs/decisions/0008.
"""

from __future__ import annotations

import torch

BLOCK_SCORES = 2**21
"""Scores that are held at a time: what a cache likes."""
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
    columns = key.transpose(-1, -2).reshape(rows * kv_heads, dim, keys)
    entries = value.reshape(rows * kv_heads, keys, -1)
    out = query.new_empty((rows, heads, queries, entries.shape[-1]))
    ends = last.tolist()
    step = min(128, max(16, BLOCK_SCORES // (rows * heads * keys)))
    for first in range(0, queries, step):
        block = slice(first, min(first + step, queries))
        size, end = block.stop - first, ends[block.stop - 1] + 1
        folded = query[:, :, block].reshape(rows * kv_heads, -1, dim)
        scores = torch.bmm(folded, columns[..., :end]).view(rows, heads, size, end).float().mul_(scaling)
        if keep is not None:
            read = keep[:, :, block, :end]
            # Adding is many times as fast as filling by a mask.
            scores = torch.add(scores, read.view(torch.int8).sub(1), alpha=HIDDEN)
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
