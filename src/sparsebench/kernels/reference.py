"""What the kernels compute, in plain PyTorch: slow, exact, and on any device."""

from __future__ import annotations

import math

import torch


def select(
    scores: torch.Tensor,
    valid: torch.Tensor,
    keep: torch.Tensor,
    *,
    repeat: bool = False,
    sink: int = 0,
    local: int = 0,
) -> list[list[int]]:
    """The `keep` best of the first `valid` positions of each row, ascending; of equal scores the first win."""
    rows = scores.reshape(-1, scores.shape[-1]).cpu()
    groups = valid.numel()
    lists = []
    for number, row in enumerate(rows):
        group = number // (len(rows) // groups) if repeat else number % groups
        n = int(valid[group])
        row = row[:n].double().clone()
        row[:sink] = math.inf
        row[max(0, n - local) :] = math.inf
        best = torch.sort(row, descending=True, stable=True).indices[: min(int(keep[group]), n)]
        lists.append(sorted(best.tolist()))
    return lists


def block_mask(
    blocks: torch.Tensor, counts: torch.Tensor, tokens: int, query_block: int, key_block: int
) -> torch.Tensor:
    """Which keys each query sees, `[batch, heads, tokens, tokens]`, bool: the selected blocks and the causal mask."""
    keys = -(-tokens // key_block)
    place = torch.arange(blocks.shape[-1], device=blocks.device)
    listed = place < counts[..., None]
    some = listed.any(-1, keepdim=True).expand_as(listed)
    chosen = torch.zeros(*counts.shape, keys, dtype=torch.bool, device=blocks.device)
    chosen.scatter_(-1, torch.where(listed, blocks, blocks[..., :1]).long(), some)
    mask = chosen.repeat_interleave(query_block, 2)[:, :, :tokens].repeat_interleave(key_block, 3)[..., :tokens]
    return mask.tril()


def attend_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    counts: torch.Tensor,
    *,
    query_block: int = 128,
    key_block: int = 128,
) -> torch.Tensor:
    """Causal attention over selected blocks, in float64; zero for a query that sees no key."""
    mask = block_mask(blocks, counts, q.shape[2], query_block, key_block)
    return _masked_attention(q, k, v, mask)


def _masked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (k, v))
    logits = q.double() @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
    weights = torch.softmax(logits.masked_fill(~mask, -math.inf), -1)
    return torch.nan_to_num(weights) @ values


def page_scores(q: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Upper bounds of a page's logits (Quest, Tang et al. 2024, section 3.2), summed over the heads of a group.

    Args:
        q: `[batch, heads, head_dim]`.
        low: Smallest value of each channel in a page, `[batch, kv_heads, pages, head_dim]`.
        high: Largest.

    Returns:
        `[batch, kv_heads, pages]`, float64.
    """
    batch, _, dim = q.shape
    grouped = q.double().view(batch, low.shape[1], -1, 1, dim)
    return torch.maximum(grouped * low.double()[:, :, None], grouped * high.double()[:, :, None]).sum(-1).sum(2)


def attend_tokens(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """One query a head over the kept tokens, in float64.

    Args:
        q: `[batch, heads, head_dim]`.
        k: `[batch, kv_heads, tokens, head_dim]`.
        v: As `k`.
        kept: `[batch, kv_heads, tokens]`, bool.
    """
    mask = kept.repeat_interleave(q.shape[1] // k.shape[1], 1)[:, :, None]
    return _masked_attention(q[:, :, None], k, v, mask)[:, :, 0]


def active_product(weight: torch.Tensor, x: torch.Tensor, threshold: float) -> torch.Tensor:
    """`weight @ x` over the columns whose input is larger than the threshold in magnitude, in float64.

    Args:
        weight: `[out, in]`.
        x: `[in]`.
        threshold: Inputs of at most this magnitude count as zero (TEAL, Liu et al. 2024). It is not rounded to the
            type of `x`, as a comparison in that type would.
    """
    wide = x.double()
    return weight.double() @ torch.where(wide.abs() > threshold, wide, 0)
