"""Decode over selected pages against its reference; without a GPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from sparsebench.kernels import reference

pytest.importorskip("triton")

from sparsebench.kernels.paged_decode import Layout, PagedCache, PagedDecode
from sparsebench.kernels.selection import select

PAGE = 16


def case(device: str, tokens: int, *, shuffled: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedCache]:
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(2, 8, 64, generator=generator).to(device)
    k, v = (torch.randn(2, 2, tokens, 64, generator=generator).to(device) for _ in range(2))
    pages = -(-tokens // PAGE)
    order = torch.randperm(2 * pages, generator=generator) if shuffled else torch.arange(2 * pages)
    return q, k, v, PagedCache.of(k, v, PAGE, order.int().view(2, pages).to(device))


@pytest.mark.parametrize("tokens", [512, 505])
def test_a_step_reads_the_best_pages_and_the_last(device: str, tokens: int) -> None:
    q, k, v, cache = case(device, tokens, shuffled=True)
    step = PagedDecode(cache, 8, 8 * PAGE, Layout(splits=4, tile=32))
    got = step(q, torch.empty_like(q))
    in_order = cache.bounds[cache.table.long()]  # [batch, pages, kv_heads, 2, head_dim]
    low, high = (in_order[:, :, :, side].transpose(1, 2) for side in (0, 1))
    scores = reference.page_scores(q, low, high)
    assert torch.allclose(step.scores.double(), scores, rtol=1e-4, atol=1e-3)
    lists = reference.select(step.scores, step.valid, step.keep, repeat=True, local=1)
    pages = cache.table.shape[1]
    kept = torch.zeros(4, pages, dtype=torch.bool, device=device)
    for row, chosen in enumerate(lists):
        kept[row, chosen] = True
        assert len(chosen) == 8 and chosen[-1] == pages - 1
    mask = kept.view(2, 2, pages).repeat_interleave(PAGE, -1)[..., :tokens]
    expected = reference.attend_tokens(q, k, v, mask)
    assert (got.double() - expected).norm() < 2e-3 * expected.norm()


def test_all_pages_are_dense_attention(device: str) -> None:
    q, k, v, cache = case(device, 300, shuffled=True)
    step = PagedDecode(cache, 8, 512, Layout(splits=8, tile=64))
    step.choose_all()
    got = step.attend(q, torch.empty_like(q))
    dense = torch.nn.functional.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)[:, :, 0]
    assert torch.allclose(got, dense, atol=2e-3)
    assert torch.allclose(step(q, torch.empty_like(q)), dense, atol=2e-3)


def test_sequences_of_a_batch_have_their_own_lengths(device: str) -> None:
    q, k, v, cache = case(device, 320, shuffled=False)
    lengths = torch.tensor([320, 100], dtype=torch.int32, device=device)
    step = PagedDecode(PagedCache(cache.keys, cache.values, cache.bounds, cache.table, lengths), 8, 512, Layout(splits=2))
    got = step(q, torch.empty_like(q))
    kept = torch.arange(320, device=device) < lengths[:, None, None]
    expected = reference.attend_tokens(q, k, v, kept.expand(2, 2, 320))
    assert (got.double() - expected).norm() < 2e-3 * expected.norm()


def test_bounds_are_upper_bounds_of_a_pages_logits(device: str) -> None:
    q, k, _, cache = case(device, 256, shuffled=False)
    in_order = cache.bounds[cache.table.long()]
    low, high = (in_order[:, :, :, side].transpose(1, 2) for side in (0, 1))
    logits = torch.einsum("bhgd,bhtd->bhgt", q.view(2, 2, 4, 64), k)
    largest = logits.unflatten(-1, (-1, PAGE)).amax(-1).sum(2)
    assert (reference.page_scores(q, low, high) >= largest - 1e-4).all()


@pytest.mark.parametrize("seed", range(3))
def test_selection_is_exact_with_ties_and_infinities(device: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (6, 50), generator=generator).float()
    scores[0, :5], scores[1, 7], scores[2] = float("-inf"), float("inf"), 0.0
    valid = torch.tensor([50, 33, 7], dtype=torch.int32)
    keep = torch.tensor([12, 5, 20], dtype=torch.int32)
    for repeat in (False, True):
        for sink, local in ((0, 0), (1, 2)):
            sides = {"repeat": repeat, "sink": sink, "local": local}
            lists, counts = select(scores.to(device), valid.to(device), keep.to(device), 20, **sides)
            expected = reference.select(scores, valid, keep, **sides)
            assert [row[: int(n)].tolist() for row, n in zip(lists, counts, strict=True)] == expected
