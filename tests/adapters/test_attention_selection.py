"""Allowances, selections and their arithmetic, against counting one by one."""

from __future__ import annotations

import attention_views as views
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.adapters.attention._allowance import Allowance, row_spans, seen_keys
from sparsebench.adapters.attention._blocks import Grid, block_pairs, choose_blocks, choose_pages
from sparsebench.adapters.attention._estimate import attention_weights, block_means, block_sums, uniform
from sparsebench.adapters.attention._selection import cover_mask, top_mask
from sparsebench.adapters.attention.vertical_slash import covered_pairs, ranks, sums_by_column_and_diagonal
from sparsebench.engine.attention import attend_masked

spans = st.tuples(st.integers(0, 40), st.integers(1, 60))
windows = st.one_of(st.none(), st.integers(1, 70))
densities = st.floats(0.02, 1.0)
relaxed = settings(deadline=None)  # machines that share their cores take their time


def visible_pairs(start: int, count: int, window: int | None) -> np.ndarray:
    """Bool [queries, keys]."""
    at, keys = np.arange(start, start + count)[:, None], np.arange(start + count)
    return (keys <= at) & (keys > at - (window or start + count + 1))


@relaxed
@given(spans, windows, densities)
def test_prefill_counts_meet_the_target_and_are_one_number(span, window, density):
    view = views.make_view([span], window=window, dim=2)
    counts = Allowance(density=density).counts(view)[0]
    seen = visible_pairs(*span, window).sum(1)
    assert ((counts.numpy() >= 1) & (counts.numpy() <= seen)).all()
    least = len(seen)
    assert int(counts.sum()) == pytest.approx(max(density * seen.sum(), least), abs=1)
    short = counts.numpy() < seen  # those that leave something out read the same number, give or take a fraction
    assert not short.any() or np.ptp(counts.numpy()[short]) <= 1


@relaxed
@given(spans, windows, st.floats(0.02, 1.0), st.floats(0.02, 1.0))
def test_a_larger_density_gives_no_query_less(span, window, one, other):
    low, high = sorted((one, other))
    for decode in (False, True):
        view = views.make_view([span], window=window, dim=2, decode=decode)
        assert (Allowance(density=low).counts(view) <= Allowance(density=high).counts(view)).all()


@relaxed
@given(densities, windows)
def test_decode_counts_depend_on_the_position_alone_and_hold_the_share(density, window):
    together = views.make_view([(100, 80)], decode=True, window=window, dim=2)
    counts = Allowance(density=density).counts(together)[0]
    for place in (0, 17, 79):
        one = views.make_view([(100 + place, 1)], decode=True, window=window, dim=2)
        assert Allowance(density=density).counts(one)[0, 0] == counts[place]
    seen = seen_keys(together)[0]
    assert float(counts.sum()) == pytest.approx(max(density * float(seen.sum()), 80), abs=80 * 0.2 + 1)
    assert ((counts - density * seen).abs() < 1).all() or density * int(seen.min()) < 1


def test_full_density_and_many_tokens_are_everything():
    for decode in (False, True):
        view = views.make_view([(5, 50), (0, 9)], decode=decode)
        for allowance in (Allowance(density=1.0), Allowance(tokens=55)):
            assert torch.equal(allowance.counts(view), seen_keys(view))


def test_pinned_queries_are_paid_for_by_the_others():
    view = views.make_view([(0, 100)])
    pinned = view.positions >= 90
    counts = Allowance(density=0.4).counts(view, pinned)
    assert torch.equal(counts[pinned], view.positions[pinned] + 1)
    assert int(counts.sum()) == pytest.approx(0.4 * 5050, abs=1)


def test_a_ratio_is_met_over_dense_layers_too():
    allowance = Allowance(density=0.5).beside_dense(layers=10, dense=2)
    assert allowance.density == pytest.approx(3 / 8)
    assert 0.2 * 1 + 0.8 * allowance.density == pytest.approx(0.5)
    assert Allowance(density=0.1).beside_dense(10, 2).density == 0
    assert Allowance(tokens=7).beside_dense(10, 2) == Allowance(tokens=7)


def test_spans_of_rows():
    assert row_spans(views.make_view([(3, 4), (0, 9)])) == [(3, 4), (0, 9)]


@relaxed
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**16))
def test_top_mask_is_the_first_of_a_stable_sort(rows, columns, seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, (rows, columns)).astype(np.float32)  # many ties
    counts = generator.integers(0, columns + 1, rows)
    mask = top_mask(torch.from_numpy(scores), torch.from_numpy(counts))
    for row in range(rows):
        expected = np.argsort(-scores[row], kind="stable")[: counts[row]]
        assert sorted(np.flatnonzero(mask[row].numpy())) == sorted(expected)


@relaxed
@given(st.integers(1, 12), st.floats(0.05, 0.99), st.integers(0, 2**16))
def test_cover_mask_is_the_fewest_that_hold_the_share(columns, coverage, seed):
    mass = np.random.default_rng(seed).random(columns)
    mask = cover_mask(torch.from_numpy(mass), coverage).numpy()
    assert mass[mask].sum() >= coverage * mass.sum() - 1e-12
    smallest = mass[mask].min()
    assert mass[mask].sum() - smallest < coverage * mass.sum() + 1e-12
    assert mask.sum() == 0 or (mass[~mask] <= smallest).all()


@relaxed
@given(spans, windows, st.sampled_from([1, 4, 7, 16]))
def test_block_pairs_counts_one_by_one(span, window, size):
    start, count = span
    visible = visible_pairs(start, count, window)
    found = block_pairs(start, count, window, size).numpy()
    expected = np.zeros_like(found)
    for query, key in zip(*np.nonzero(visible), strict=True):
        expected[(query + start) // size - start // size, key // size] += 1
    assert np.array_equal(found, expected)
    grid = Grid.made(start, np.array([start + count]), window, size, torch.device("cpu"))
    own = grid.own.numpy()
    assert (own.sum(axis=1) == 1).all()
    assert (found[own] > 0).all()
    assert np.array_equal(grid.pairs[0].numpy(), found)
    assert (grid.totals.tolist(), grid.seen.tolist()) == ([found.sum()], [(found > 0).sum()])


@relaxed
@given(spans, st.integers(1, 30), windows, st.sampled_from([1, 4, 7, 16]))
def test_a_grid_of_rows_is_that_of_each(span, more, window, size):
    start, count = span
    lengths = np.array([start + count, start + count + more, start + 1])
    grid = Grid.made(start, lengths, window, size, torch.device("cpu"))
    for row, length in enumerate(lengths):
        own = block_pairs(start, int(length) - start, window, size)
        padded = torch.zeros_like(grid.pairs[row])
        padded[: own.shape[0], : own.shape[1]] = own
        assert torch.equal(grid.pairs[row], padded)
        assert (grid.totals[row], grid.seen[row]) == (own.sum(), (own > 0).sum())


@settings(max_examples=50, deadline=None)
@given(spans, windows, st.sampled_from([4, 8]), st.floats(0.1, 1.0), st.integers(0, 99))
def test_chosen_blocks_meet_the_density_and_keep_the_forced(span, window, size, density, seed):
    start, count = span
    grid = Grid.made(start, np.array([start + count]), window, size, torch.device("cpu"))
    pairs, forced = grid.pairs[0], grid.own
    score = torch.rand((3, *pairs.shape), generator=torch.Generator().manual_seed(seed))
    chosen = choose_blocks(score[None], grid, forced, Allowance(density=density))[0]
    assert bool(chosen[:, forced].all())
    assert not bool((chosen & (pairs == 0)).any())
    for head in range(3):
        held = int((chosen[head] * pairs).sum())
        least = int((forced * pairs).sum())
        assert held <= max(density * int(pairs.sum()) + size * size / 2, least)
        assert held >= min(density * int(pairs.sum()) - size * size / 2, int(pairs.sum()))
        for row in range(pairs.shape[0]):
            free = (pairs[row] > 0) & ~forced[row]
            kept, left = score[head, row][free & chosen[head, row]], score[head, row][free & ~chosen[head, row]]
            assert not len(kept) or not len(left) or kept.min() >= left.max()


def test_chosen_pages_are_the_best_and_the_own_one():
    view = views.make_view([(30, 2)], decode=True, heads=1, kv_heads=1)
    score = torch.tensor([[[[3.0, 9.0, 5.0, 1.0], [3.0, 9.0, 5.0, 1.0]]]])  # pages of 8; queries at 30 and 31 in page 3
    chosen = choose_pages(score, view, Allowance(tokens=24), 8).chosen
    assert chosen.tolist() == [[[[False, True, True, True]] * 2]]
    assert choose_pages(score, view, Allowance(tokens=8), 8).chosen.sum() == 2  # its own page only
    assert choose_pages(score, view, Allowance(tokens=8), 8, least=3).chosen.sum() == 6
    assert choose_pages(score, view, Allowance(tokens=32), 8).chosen.all()
    narrow = views.make_view([(30, 2)], decode=True, heads=1, kv_heads=1, window=12)
    assert choose_pages(score, narrow, Allowance(density=1.0), 8).chosen.tolist() == [
        [[[False, False, True, True]] * 2]
    ]


@settings(max_examples=60, deadline=None)
@given(spans, windows, st.integers(0, 2**16))
def test_covered_pairs_counts_one_by_one(span, window, seed):
    start, count = span
    length = start + count
    generator = torch.Generator().manual_seed(seed)
    columns, diagonals = (torch.rand((2, length), generator=generator) < 0.3 for _ in range(2))
    visible = torch.from_numpy(visible_pairs(start, count, window))
    at, keys = torch.arange(start, length)[:, None], torch.arange(length)
    for head in range(2):
        mask = visible & (columns[head][keys] | diagonals[head][(at - keys).clamp(min=0)])
        assert int(covered_pairs(columns, diagonals, start, window)[head]) == int(mask.sum())
    ends = torch.tensor([length, start + 1])
    both = covered_pairs(columns[:1].expand(2, -1), diagonals[:1].expand(2, -1), start, window, ends)
    alone = [covered_pairs(columns[0, :end], diagonals[0, :end], start, window) for end in ends.tolist()]
    assert both.tolist() == [int(pairs) for pairs in alone]


def test_sums_by_column_and_diagonal():
    weights = torch.tensor([[[[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]]])
    vertical, slash = sums_by_column_and_diagonal(weights, torch.tensor([[1, 2]]))
    assert torch.allclose(vertical, torch.tensor([[[0.7, 0.8, 0.5]]]))
    assert torch.allclose(slash, torch.tensor([[[1.0, 0.8, 0.2]]]))


def test_ranks_put_the_forced_first_and_break_ties_by_place():
    score = torch.tensor([[1.0, 5.0, 5.0, 9.0]])
    assert ranks(score, forced=1).tolist() == [[0, 2, 3, 1]]
    assert ranks(score, forced=1, ends=torch.tensor([[3]])).tolist() == [[0, 1, 2, 3]]


def test_block_sums_and_means_of_incomplete_blocks():
    x = torch.arange(7.0)
    assert block_sums(x, 3, 0).tolist() == [3, 12, 6]
    assert block_sums(x, 3, 0, start=2).tolist() == [0, 6, 15]
    assert block_means(x, 3, 0, start=2).tolist() == [0, 2, 5]
    assert block_means(x.expand(2, -1), 3, 1, 2, np.array([7, 2])).tolist() == [[0, 2, 5], [0, 1, 0]]


@pytest.mark.parametrize("window", [None, 9])
def test_attention_weights_give_the_dense_output(window):
    view = views.make_view([(0, 30), (0, 12)], window=window)
    view.softcap = 4.0
    weights = attention_weights(view)
    values = view.value.repeat_interleave(2, dim=1)
    assert torch.allclose(weights @ values, attend_masked(view, view.visible()), atol=1e-5)
    view.sinks = torch.tensor([0.0, 1.0, 2.0, -50.0])
    with_sinks = attention_weights(view)
    assert torch.allclose(with_sinks @ values, attend_masked(view, view.visible()), atol=1e-5)
    assert float(with_sinks[0, 2].sum(-1).max()) < 1
    assert float(with_sinks[0, 3, 5].sum()) == pytest.approx(1)


def test_uniform_numbers_depend_on_their_places_alone():
    keys = torch.arange(20_000)
    numbers = uniform(0, 3, torch.tensor([[0], [1]]), keys)
    assert torch.equal(uniform(0, 3, 1, keys[500:600]), numbers[1, 500:600])
    assert not torch.equal(uniform(1, 3, 0, keys), numbers[0])
    assert not torch.equal(uniform(0, 4, 0, keys), numbers[0])
    for row in numbers:
        assert 0 <= float(row.min()) and float(row.max()) < 1
        counts = torch.histc(row, 20, 0, 1)
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8  # chi-squared with 19 degrees of freedom, p = .001
    assert abs(float(torch.corrcoef(numbers)[0, 1])) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([numbers[0, 1:], numbers[0, :-1]]))[0, 1])) < 0.03
