"""Block-sparse attention through FlexAttention: tiles that are not chosen are never computed, on processors and GPUs.

The block mask is made from indices, never from a function that would be asked about every pair. FlexAttention must be
compiled; left to itself it would compile anew for each length, so that lengths are rounded up to powers of two, whose
surplus rows have no block at all. On a processor its products run in float32, which its kernel does several times as
fast as in bfloat16 where there are no matrix tiles; see docs/decisions/0013.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

LEAST = 1024
"""Keys below which compiling costs more than it gives."""
BLOCKS = {"cpu": 16, "cuda": 64}
"""Smallest blocks that the kernels skip one by one, by type of device."""
COMPILED = 256
"""Shapes that may be compiled in one process."""


@cache
def compiles() -> bool:
    """Whether kernels for processors can be compiled here; tried once, since headers may be missing too."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        return False
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1))
    except RuntimeError:
        return False
    return True


def suits(query: torch.Tensor, key: torch.Tensor, size: int) -> bool:
    """Whether one row's queries [1, heads, queries, dim] and keys run here in blocks of `size`."""
    device = query.device.type
    if key.shape[2] < LEAST or size < BLOCKS.get(device, size + 1) or size & (size - 1):
        return False
    return device != "cpu" or compiles()


def attend_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    chosen: torch.Tensor,
    pairs: torch.Tensor,
    size: int,
    start: int,
    window: int | None,
) -> torch.Tensor:
    """Causal attention of one row over chosen blocks; a query without any gives zeros.

    Args:
        query: [1, heads, queries, dim].
        key: [1, kv_heads, keys, dim]; `kv_heads` divides `heads`.
        value: [1, kv_heads, keys, value_dim].
        scaling: What scores are multiplied with.
        chosen: Bool [heads, query_blocks, key_blocks].
        pairs: Visible pairs of each block, int64 [query_blocks, key_blocks].
        size: Queries and keys of a block, a power of two.
        start: Position of the first query; block 0 of the queries begins at or before it, at a multiple of `size`.
        window: A query sees the last `window` keys only; None: all.

    Returns:
        [1, heads, queries, value_dim].
    """
    from torch.nn.attention.flex_attention import BlockMask

    dtype = torch.float32 if query.device.type == "cpu" else query.dtype
    offset = start % size
    length = _rounded(max(query.shape[2] + offset, key.shape[2]))
    blocks = length // size
    whole = chosen & (pairs == size * size)
    partly = torch.nn.functional.pad(chosen & ~whole, _margin(chosen, blocks))
    whole = torch.nn.functional.pad(whole, _margin(chosen, blocks))
    edges = torch.tensor([start - offset, window or 2**30], device=query.device)
    mask = BlockMask.from_kv_blocks(
        *_listed(partly),
        *_listed(whole),
        BLOCK_SIZE=size,
        mask_mod=_visible(edges),
        seq_lengths=(length, length),
        compute_q_blocks=False,
    )
    run = _compiled(query.shape[1] != key.shape[1])
    with torch._dynamo.config.patch(recompile_limit=COMPILED):
        out = run(
            _padded(query, dtype, offset, length),
            _padded(key, dtype, 0, length),
            _padded(value, dtype, 0, length),
            block_mask=mask,
            scale=scaling,
            kernel_options={} if query.device.type == "cpu" else {"BLOCK_M": min(size, 64), "BLOCK_N": min(size, 64)},
        )
    return torch.nan_to_num(out[:, :, offset : offset + query.shape[2]]).to(value.dtype)


def _visible(edges: torch.Tensor) -> Callable[..., torch.Tensor]:
    """What a query sees of a block that it does not see whole; where it stands is a tensor: nothing is recompiled."""

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        apart = query + edges[0] - key
        return (apart >= 0) & (apart < edges[1])

    return visible


@cache
def _compiled(grouped: bool) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, block_mask: Any, scale: float, kernel_options: Any
    ) -> torch.Tensor:
        return flex_attention(
            query, key, value, block_mask=block_mask, scale=scale, enable_gqa=grouped, kernel_options=kernel_options
        )

    compiled: Callable[..., torch.Tensor] = torch.compile(attend, dynamic=False)
    return compiled


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many key blocks each query block has, int32 [1, heads, rows], and which, first [1, heads, rows, n]."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32)[None], order.to(torch.int32)[None]


def _margin(blocks: torch.Tensor, count: int) -> tuple[int, int, int, int]:
    return (0, count - blocks.shape[2], 0, count - blocks.shape[1])


def _padded(x: torch.Tensor, dtype: torch.dtype, before: int, length: int) -> torch.Tensor:
    if before or x.shape[2] != length:
        x = torch.nn.functional.pad(x, (0, 0, before, length - before - x.shape[2]))
    return x.to(dtype).contiguous()


def _rounded(length: int) -> int:
    """The power of two at or above a length."""
    return 1 << (length - 1).bit_length()
