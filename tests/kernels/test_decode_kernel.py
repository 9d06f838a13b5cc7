"""Decode over selected pages against its reference; without a GPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from sparsebench.errors import InputError
from sparsebench.kernels import reference

pytest.importorskip("triton")

from sparsebench.kernels.paged_decode import Layout, PagedCache, PagedDecode
from sparsebench.kernels.selection import select

PAGE = 16


def case(
    device: str, tokens: int, *, shuffled: bool, batch: int = 2, kv_heads: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedCache]:
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(batch, 4 * kv_heads, 64, generator=generator).to(device)
    k, v = (torch.randn(batch, kv_heads, tokens, 64, generator=generator).to(device) for _ in range(2))
    pages = -(-tokens // PAGE)
    order = torch.randperm(batch * pages, generator=generator) if shuffled else torch.arange(batch * pages)
    return q, k, v, PagedCache.of(k, v, PAGE, order.int().view(batch, pages).to(device))


def expected_step(step: PagedDecode, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention over the pages that the reference chooses by the step's scores."""
    lists = reference.select(step.scores, step.valid, step.keep, repeat=True, local=1)
    kept = torch.zeros(len(lists), step.pages, dtype=torch.bool, device=q.device)
    for row, chosen in enumerate(lists):
        kept[row, chosen] = True
        assert len(chosen) == step.width and chosen[-1] == step.pages - 1
    mask = kept.view(*k.shape[:2], step.pages).repeat_interleave(PAGE, -1)[..., : k.shape[2]]
    return reference.attend_tokens(q, k, v, mask)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tokens", [512, 505])
def test_a_step_reads_the_best_pages_and_the_last(device: str, tokens: int, batch: int) -> None:
    q, k, v, cache = case(device, tokens, shuffled=True, batch=batch)
    step = PagedDecode(cache, 8, 8 * PAGE, Layout(splits=4, tile=32))
    got = step(q, torch.empty_like(q))
    in_order = cache.bounds[cache.table.long()]  # [batch, pages, kv_heads, 2, head_dim]
    low, high = (in_order[:, :, :, side].transpose(1, 2) for side in (0, 1))
    scores = reference.page_scores(q, low, high)
    assert torch.allclose(step.scores.double(), scores, rtol=1e-4, atol=1e-3)
    expected = expected_step(step, q, k, v)
    assert (got.double() - expected).norm() < 2e-3 * expected.norm()


def odd(x: torch.Tensor) -> torch.Tensor:
    """The same values; dimensions of size 1 have a stride that means nothing."""
    strides = [7 + i if size == 1 else stride for i, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True))]
    return x.as_strided(x.shape, strides)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_strides_of_single_dimensions_mean_nothing(device: str, kv_heads: int) -> None:
    q, k, v, cache = case(device, 180, shuffled=True, batch=1, kv_heads=kv_heads)
    strange = PagedCache(*(odd(x) for x in vars(cache).values()))
    assert strange.table.stride() != cache.table.stride()
    for one in (PagedDecode(c, 4 * kv_heads, 4 * PAGE, Layout(splits=8, tile=32)) for c in (cache, strange)):
        got = one(odd(q), odd(torch.empty_like(q)))
        expected = expected_step(one, q, k, v)
        assert (got.double() - expected).norm() < 2e-3 * expected.norm()


def test_a_cache_of_one_sequence_lies_in_pages(device: str) -> None:
    _, k, _, cache = case(device, 64, shuffled=True, batch=1)
    assert cache.keys.is_contiguous() and cache.values.is_contiguous()
    for number, page in enumerate(cache.table[0].tolist()):
        assert torch.equal(cache.keys[page], k[0, :, number * PAGE : (number + 1) * PAGE])


@pytest.mark.parametrize(("tokens", "budget", "splits"), [(131_072, 4_096, 32), (131_057, 4_096, 16), (16, 16, 64)])
def test_nothing_but_listed_tokens_is_read(device: str, tokens: int, budget: int, splits: int) -> None:
    q, k, v, cache = case(device, tokens, shuffled=True, batch=1, kv_heads=1)

    def surrounded(x: torch.Tensor) -> torch.Tensor:
        """Pages of values that would be noticed before, behind and between those of the table."""
        wide = torch.full((2 * len(x) + 3, *x.shape[1:]), float("nan"), device=device)
        wide[1 : 2 * len(x) + 1 : 2] = x
        return wide

    keys, values, bounds = (surrounded(x) for x in (cache.keys, cache.values, cache.bounds))
    table = 2 * cache.table + 1
    keys[table[0, -1], :, (tokens - 1) % PAGE + 1 :] = float("nan")
    values[table[0, -1], :, (tokens - 1) % PAGE + 1 :] = float("nan")
    step = PagedDecode(PagedCache(keys, values, bounds, table, cache.lengths), 4, budget, Layout(splits=splits))
    step.chosen.fill_(2**30)
    got = step(q, torch.empty_like(q))
    expected = expected_step(step, q, k, v)
    assert (got.double() - expected).norm() < 2e-3 * expected.norm()


def test_what_does_not_fit_is_named(device: str) -> None:
    q, _, _, cache = case(device, 64, shuffled=False)
    with pytest.raises(InputError, match="outside the pool"):
        PagedCache(cache.keys, cache.values, cache.bounds, cache.table + 1, cache.lengths)
    with pytest.raises(InputError, match="1 to 64 tokens"):
        PagedCache(cache.keys, cache.values, cache.bounds, cache.table, cache.lengths + 1)
    with pytest.raises(InputError, match="keys of a paged cache must be contiguous"):
        PagedCache(
            cache.keys.transpose(1, 2).contiguous().transpose(1, 2),
            cache.values,
            cache.bounds,
            cache.table,
            cache.lengths,
        )
    with pytest.raises(InputError, match="does not cover"):
        PagedDecode(cache, 8, 2 * PAGE).choose_all()
    with pytest.raises(InputError, match="queries and outputs"):
        PagedDecode(cache, 8, 2 * PAGE)(q[:1], torch.empty_like(q[:1]))


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
    step = PagedDecode(
        PagedCache(cache.keys, cache.values, cache.bounds, cache.table, lengths), 8, 512, Layout(splits=2)
    )
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
