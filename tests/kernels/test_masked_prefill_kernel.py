"""Prefill attention over the keys that a mask names, what is counted of masks, and the mass of blocks; without a GPU in
Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from sparsebench.kernels import block_mass, masked_prefill, tallies

ROWS = [(0, 150), (0, 97), (0, 1)]
"""Position of the first query, and queries of each row."""


def drawn(device: str, rows=ROWS, heads: int = 6, kv_heads: int = 2, dim: int = 64, value_dim: int = 64):
    """Queries, keys and values of rows that are padded on the right, their positions and lengths."""
    generator = torch.Generator().manual_seed(dim)
    queries, keys = max(n for _, n in rows), max(start + n for start, n in rows)
    q = torch.randn(len(rows), heads, queries, dim, generator=generator).half()
    k = torch.randn(len(rows), kv_heads, keys, dim, generator=generator).half()
    v = torch.randn(len(rows), kv_heads, keys, value_dim, generator=generator).half()
    positions = torch.full((len(rows), queries), -1)
    for row, (start, count) in enumerate(rows):
        positions[row, :count] = torch.arange(start, start + count)
    lengths = torch.tensor([start + count for start, count in rows])
    return [x.to(device) for x in (q, k, v, positions, lengths)]


def visible(positions: torch.Tensor, lengths: torch.Tensor, keys: int, window: int | None) -> torch.Tensor:
    at = positions[:, None, :, None]
    key = torch.arange(keys, device=at.device)
    seen = (key <= at) & (key < lengths[:, None, None, None])
    return seen if window is None else seen & (key > at - window)


def expected(q, k, v, mask, scaling: float) -> torch.Tensor:
    """Attention by its definition, in float64."""
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    logits = (q.double() @ wide_k.transpose(-1, -2)) * scaling
    return torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=-1).nan_to_num() @ wide_v


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("masked", [1, 2, 6])
def test_it_is_attention_over_the_keys_that_are_named_and_seen(device: str, masked: int, window: int | None) -> None:
    q, k, v, positions, lengths = drawn(device)
    keep = torch.rand(3, masked, 150, 150, generator=torch.Generator().manual_seed(1)).to(device) < 0.3
    keep[:, :, :, 64:128] &= torch.arange(150, device=device)[:, None] > 140  # tiles with nothing in them
    got = masked_prefill.attend(q, k, v, keep, positions, lengths, 0.125, window)
    mask = keep.repeat_interleave(6 // masked, dim=1) & visible(positions, lengths, 150, window)
    assert (got.double() - expected(q, k, v, mask, 0.125)).abs().max() < 2e-2
    assert not got[2, :, 1:].any()


@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (80, 40)])
def test_what_comes_after_a_prefix_and_lies_anywhere(device: str, dim: int, value_dim: int) -> None:
    q, k, v, positions, lengths = drawn(device, [(70, 80), (70, 20)], dim=dim, value_dim=value_dim)
    k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    keep = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    got = masked_prefill.attend(q, k, v, keep, positions, lengths, 0.1)
    want = expected(q, k, v, visible(positions, lengths, 150, None), 0.1)
    assert (got.double() - want).abs().max() < 2e-2


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("masks", "groups"), [(6, 2), (2, 2), (1, 1)])
@pytest.mark.parametrize("tile", [(64, 64), (1, 16), (16, 32)])
def test_counts_are_those_of_the_mask(device: str, masks: int, groups: int, tile, window: int | None) -> None:
    rows = [(0, 150), (0, 97)] if tile[0] > 1 else [(140, 10), (90, 3)]
    _, _, _, positions, lengths = drawn(device, rows)
    queries = positions.shape[1]
    keep = torch.rand(2, masks, queries, 150, generator=torch.Generator().manual_seed(2)).to(device) < 0.01
    got = tallies.count(keep, positions, lengths, groups, tile, window)
    seen = visible(positions, lengths, 150, window)
    real = keep & seen
    union = real.view(2, groups, masks // groups, queries, 150).any(dim=2)
    touched = 0
    for first in range(0, queries, tile[0]):
        for start in range(0, 150, tile[1]):
            part = (..., slice(first, first + tile[0]), slice(start, start + tile[1]))
            some = real[part].flatten(2).any(dim=2)
            touched += int((some * seen[part].flatten(2).sum(dim=2)).sum())
    assert got.tolist() == [int(real.sum()), int(union.sum()), touched]


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("rows", [[(0, 150), (0, 97)], [(70, 80), (70, 20)]])
def test_mass_is_the_sum_of_weights_over_blocks(device: str, rows, size: int, window: int | None) -> None:
    q, k, _, positions, lengths = drawn(device, rows)
    start = rows[0][0]
    got = block_mass.block_mass(q, k, positions, lengths, start, size, 0.125, window)
    wide = k.double().repeat_interleave(3, dim=1)
    logits = (q.double() @ wide.transpose(-1, -2)) * 0.125
    weights = torch.softmax(logits.masked_fill(~visible(positions, lengths, 150, window), -torch.inf), dim=-1)
    weights = weights.nan_to_num()
    want = torch.zeros(got.shape, dtype=torch.float64, device=got.device)
    for query in range(q.shape[2]):
        for key in range(150):
            want[:, :, (start + query) // size - start // size, key // size] += weights[:, :, query, key]
    assert (got.double() - want).abs().max() < 1e-3
    assert got.sum() == pytest.approx(6 * sum(count for _, count in rows), rel=1e-3)
