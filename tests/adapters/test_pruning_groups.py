from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.adapters.pruning import _groups, _ratios
from sparsebench.adapters.pruning.base import Allotment

# Three layers of small whole numbers; every choice below was made by hand.
SMALL = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
LARGE = torch.tensor([[9.0, 10, 11, 12], [13, 14, 15, 16]])


def gone(score: torch.Tensor, allotment: Allotment) -> list[list[int]]:
    return _groups.mask(score, allotment).int().tolist()


def test_groups_differ() -> None:
    assert gone(SMALL, Allotment(0.5, "row")) == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert gone(SMALL, Allotment(0.5, "layer")) == [[1, 1, 1, 1], [0, 0, 0, 0]]
    masks = list(_groups.global_masks(lambda: [LARGE, SMALL], 0.5, 16))
    assert [m.int().tolist() for m in masks] == [[[0] * 4] * 2, [[1] * 4] * 2]


def test_blocks_are_128_columns() -> None:
    # The first block holds the smallest scores, yet no more than its half goes.
    score = torch.arange(2 * 200.0).reshape(2, 200)
    mask = _groups.mask(score, Allotment(0.5, "block"))
    assert mask[:, :128].int().sum().item() == 128
    assert mask[0, :128].all()
    assert mask[:, 128:].int().sum().item() == 72
    assert mask[0, 128:].all()


@pytest.mark.parametrize("group", ["row", "layer", "block", "global"])
def test_ties_go_by_lowest_index(group: str) -> None:
    score = torch.ones(3, 10)
    if group == "global":
        (mask,) = _groups.global_masks(lambda: [score], 0.5, 30)
    else:
        mask = _groups.mask(score, Allotment(0.5, group))  # type: ignore[arg-type]
    flat = mask.flatten().tolist()
    expected = ([True] * 5 + [False] * 5) * 3 if group == "row" else [True] * 15 + [False] * 15
    assert flat == expected


def test_global_ties_go_by_layer_order() -> None:
    masks = list(_groups.global_masks(lambda: [torch.ones(1, 3), torch.ones(1, 3)], 0.5, 6))
    assert [m.tolist() for m in masks] == [[[True] * 3], [[False] * 3]]


def test_pattern() -> None:
    score = torch.tensor([[4.0, 1, 3, 2, 9, 9, 9, 9, 0, 0]])
    assert gone(score, Allotment(0.5, pattern=(2, 4))) == [[0, 1, 0, 1, 1, 1, 0, 0, 0, 0]]  # the last two stay
    assert gone(score, Allotment(0.25, pattern=(1, 4))) == [[0, 1, 0, 0, 1, 0, 0, 0, 0, 0]]
    assert gone(torch.ones(2, 3), Allotment(0.5, pattern=(2, 4))) == [[0, 0, 0]] * 2


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 300),
    st.floats(0, 0.999),
    st.sampled_from(["row", "layer", "block"]),
    st.integers(0, 2**31),
)
def test_counts_are_exact_and_masks_nest(rows: int, columns: int, sparsity: float, group: str, seed: int) -> None:
    score = torch.randint(0, 5, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    mask = _groups.mask(score, Allotment(sparsity, group))  # type: ignore[arg-type]
    if group == "row":
        assert mask.sum(dim=1).tolist() == [_groups.rounded(sparsity, columns)] * rows
    elif group == "layer":
        assert int(mask.sum()) == _groups.rounded(sparsity, rows * columns)
    else:
        for first in range(0, columns, 128):
            block = mask[:, first : first + 128]
            assert int(block.sum()) == _groups.rounded(sparsity, block.numel())
    smaller = _groups.mask(score, Allotment(sparsity / 2, group))  # type: ignore[arg-type]
    assert not bool((smaller & ~mask).any())


def test_rounding_is_to_the_nearest() -> None:
    assert [_groups.rounded(s, 5) for s in (0, 0.1, 0.29, 0.3, 0.5)] == [0, 1, 1, 2, 3]


@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_packing_loses_nothing(rows: int, columns: int, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(_groups.unpack(_groups.pack(mask)), mask)


def weighted(sparsities: list[float], sizes: list[int]) -> float:
    return sum(s * n for s, n in zip(sparsities, sizes, strict=True)) / sum(sizes)


def test_erk_by_hand() -> None:
    # 10 x 10 and 10 x 90: raw densities 20/100 and 100/900, weights 20 and 100 times the scale.
    # Density 0.25 over 1,000 weights: scale = 250 / 120.
    found = _ratios.erk([(10, 10), (10, 90)], 0.75)
    assert found == pytest.approx([1 - 250 / 120 * 0.2, 1 - 250 / 120 / 9])
    assert weighted(found, [100, 900]) == pytest.approx(0.75)


def test_erk_leaves_small_layers_dense() -> None:
    found = _ratios.erk([(2, 2), (100, 100)], 0.5)
    assert found[0] == 0.0  # its density would be far above 1
    assert weighted(found, [4, 10_000]) == pytest.approx(0.5)


def test_owl_by_hand() -> None:
    # Scaled to [0, 0.16]: 0, 0.08, 0.16; mean 0.08.
    found = _ratios.owl([0.01, 0.02, 0.03], [10, 10, 10], 0.5)
    assert found == pytest.approx([0.58, 0.5, 0.42])
    assert _ratios.owl([0.02, 0.02], [10, 30], 0.5) == pytest.approx([0.5, 0.5])


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.lists(st.integers(1, 50), min_size=6, max_size=6),
    st.floats(0, 0.99),
)
@settings(max_examples=100, deadline=None)
def test_owl_meets_the_target(outliers: list[float], sizes: list[int], sparsity: float) -> None:
    sizes = sizes[: len(outliers)]
    found = _ratios.owl(outliers, sizes, sparsity)
    assert all(0 <= s <= 1 for s in found)
    assert weighted(found, sizes) == pytest.approx(sparsity, abs=1e-6)


def test_outliers() -> None:
    scores = [torch.tensor([[1.0, 1, 1]]), torch.tensor([[1.0, 1, 55]])]  # mean 10
    assert _ratios.outlier_share(scores) == pytest.approx(1 / 6)
    assert _ratios.outlier_share(scores, factor=6) == 0
    assert _ratios.outlier_share([]) == 0
