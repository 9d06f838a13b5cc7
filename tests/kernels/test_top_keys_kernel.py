"""The keys with the highest scores, found without writing scores; without a GPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from sparsebench.kernels import top_keys

ROWS, QUERIES, KEYS = 2, 70, 150


def drawn(
    device: str, values: int, dim: int = 64, heads: int = 4, kv_heads: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of small integers, whose products are exact however they are added; few values give ties."""
    generator = torch.Generator().manual_seed(values + dim)
    shapes = (ROWS, heads, QUERIES, dim), (ROWS, kv_heads, KEYS, dim)
    return tuple(torch.randint(-values, values + 1, s, generator=generator).half().to(device) for s in shapes)  # type: ignore[return-value]


def ranges(device: str, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries that end at the last key of the first row, and at the hundredth of the second, with padding behind."""
    at = torch.stack([torch.arange(KEYS - QUERIES, KEYS), torch.arange(30, 100)])
    at[1, 60:] = -1
    begin = torch.zeros_like(at) if window is None else (at + 1 - window).clamp(min=0)
    return begin.to(device), (at + 1).to(device)


def expected(q, k, counts, begin, end) -> torch.Tensor:
    """A stable sort of all scores, keys that are not seen last."""
    scores = q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)
    key = torch.arange(KEYS, device=q.device)
    seen = (key >= begin[:, None, :, None]) & (key < end[:, None, :, None])
    order = scores.masked_fill(~seen, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.empty_like(order).scatter_(-1, order, key.expand(order.shape).contiguous())
    return seen & (ranks < counts[:, None, :, None])


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("values", [1, 40])
def test_the_highest_are_taken_and_of_equal_ones_the_first(device: str, values: int, window: int | None) -> None:
    q, k = drawn(device, values)
    begin, end = ranges(device, window)
    for share in (0.0, 0.03, 0.3, 0.9, 2.0):
        counts = (share * (end - begin)).ceil().long()
        got = top_keys.top_keys(q, k, counts, (begin, end))
        assert torch.equal(got, expected(q, k, counts, begin, end)), share


@pytest.mark.parametrize("name", ["all equal", "far outliers", "two values"])
def test_odd_distributions(device: str, name: str) -> None:
    q, k = drawn(device, 40)
    if name == "all equal":
        q = torch.zeros_like(q)
    elif name == "far outliers":
        k[:, :, ::37] *= 200
    else:
        k = torch.where(k[..., :1] > 0, torch.ones_like(k), -torch.ones_like(k))
        q = torch.ones_like(q)
    begin, end = ranges(device, None)
    counts = torch.full((ROWS, 1), 7, device=device)
    got = top_keys.top_keys(q, k, counts, (begin, end))
    assert torch.equal(got, expected(q, k, counts.expand(ROWS, QUERIES), begin, end))


def test_a_head_dimension_that_is_no_power_of_two_and_tensors_that_lie_anywhere(device: str) -> None:
    q, k = drawn(device, 40, dim=80)
    q, k = q.transpose(1, 2).contiguous().transpose(1, 2), torch.stack([k, k], dim=-1)[..., 0]
    begin, end = ranges(device, None)
    counts = torch.full((ROWS, QUERIES), 12, device=device)
    got = top_keys.top_keys(q, k, counts, (begin, end))
    assert torch.equal(got, expected(q, k, counts, begin, end))
