"""The mask of the highest scores as the kernel finds it, against the plain one; in Triton's interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch

from sparsebench.adapters.attention._selection import top_mask

pytest.importorskip("triton")

from sparsebench.kernels import reference
from sparsebench.kernels.selection import select, select_mask


@pytest.mark.parametrize("width", [1, 7, 16, 100, 257])
def test_a_mask_is_that_of_a_sort(device: str, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    scores = torch.randn(3, 4, width, generator=generator)
    scores[1] = (scores[1] * 2).round() / 2  # ties, and both zeros
    scores[2, 0] = -torch.inf
    scores[2, 1, : width // 2] = -torch.inf
    scores[2, 2, : width // 3] = torch.inf
    scores[2, 3] *= 1e38
    keep = torch.randint(0, width + 1, (3, 1), generator=generator)
    found = select_mask(scores.to(device), keep.to(device)).cpu()
    assert torch.equal(found, top_mask(scores, keep))


@pytest.mark.parametrize("width", [5, 100, 700])
def test_a_mask_within_a_range_is_that_of_a_sort_of_it(device: str, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    scores = torch.randint(-4, 4, (40, width), generator=generator).float().to(device)
    begin, end = (torch.randint(0, width + 1, (40,), generator=generator).to(device) for _ in range(2))
    keep = torch.randint(0, width + 1, (40,), generator=generator).to(device)
    got = select_mask(scores, keep, (begin, end))
    for row in range(40):
        low, high = int(begin[row]), int(end[row])
        best = torch.sort(scores[row, low:high], descending=True, stable=True).indices[: int(keep[row])] + low
        assert got[row].nonzero()[:, 0].tolist() == sorted(best.tolist())


def test_a_mask_of_no_rows(device: str) -> None:
    assert select_mask(torch.zeros(0, 5, device=device), torch.zeros(0, device=device)).shape == (0, 5)


@pytest.mark.parametrize("seed", range(3))
def test_lists_are_those_of_a_sort_whatever_is_forced(device: str, seed: int) -> None:
    """Few distinct scores, forced positions that overlap or are more than what is kept, rows with nothing in them."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = 40, 60

    def drawn(high: int, count: int = rows) -> torch.Tensor:
        return torch.randint(0, high, (count,), generator=generator, dtype=torch.int32)

    for sink, local in ((0, 0), (0, 1), (2, 3), (40, 30)):
        scores = torch.randn(1, rows, width, generator=generator) * 10.0 ** drawn(30)[:, None]
        scores[:, ::3] = scores[:, ::3].sign()
        scores[:, 1::7, :5] = -torch.inf
        valid, keep = drawn(width + 1), drawn(width + 1)
        expected = reference.select(scores, valid, keep, sink=sink, local=local)
        given = (x.to(device) for x in (scores, valid, keep))
        lists, counts = select(*given, width, sink=sink, local=local)
        assert [row[:n].tolist() for row, n in zip(lists[0].cpu(), counts[0].tolist(), strict=True)] == expected
