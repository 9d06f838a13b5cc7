"""GPTQ: what it rounds to, what it mends, and that a pruned matrix stays pruned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_system

from sparsebench.adapters import attached, create, get
from sparsebench.adapters.calibration import Calibration
from sparsebench.adapters.passes import InputStatistics
from sparsebench.adapters.pruning import _obs
from sparsebench.adapters.pruning._quantise import grid_of, on_grid
from sparsebench.errors import InputError
from sparsebench.systems.weights import prunable, weight_sparsity


def gptq(**knobs: Any) -> Any:
    return get("gptq")(**knobs)


def drawn(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and inputs that correlate, [tokens, columns]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(600, columns // 3, generator=generator) @ torch.randn(columns // 3, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), x + 0.1 * torch.randn(600, columns, generator=generator)


def plain(weight: torch.Tensor, gram: torch.Tensor, bits: int, group: int, symmetric: bool) -> torch.Tensor:
    """Column by column with the inverse of what is left taken anew each time, in float64."""
    gram = gram.double() + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight, found = weight.double().clone(), torch.zeros_like(weight)
    for column in range(weight.shape[1]):
        if column % group == 0:
            grid = grid_of(weight[:, column : column + group].float(), bits, symmetric)
        found[:, column] = grid.nearest(weight[:, column, None].float())[:, 0]
        inverse = torch.linalg.inv(gram[column:, column:])
        weight[:, column:] -= (weight[:, column] - found[:, column])[:, None] * inverse[0] / inverse[0, 0]
    return found


@pytest.mark.parametrize(("columns", "group"), [(40, 8), (40, 24), (150, 30), (150, 150), (300, 64), (300, 200)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_is_the_plain_algorithm(columns: int, group: int, symmetric: bool) -> None:
    weight, x = drawn(5, columns)
    found = gptq(group=group, symmetric=symmetric).mended(weight, InputStatistics.of(x, gram=True), 4)
    expected = plain(weight, x.T @ x, 4, group, symmetric)
    # A rounding that falls the other way by the last bit moves all that follows: it must be rare.
    assert float((found - expected).abs().gt(1e-3).float().mean()) < 0.02


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = drawn(6, 64)[0]
    statistics = InputStatistics.of(torch.eye(64), gram=True)
    found = gptq(group=16).mended(weight, statistics, 3)
    torch.testing.assert_close(found, on_grid(weight, 3, 16, False))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_output_changes_less_than_by_rounding(bits: int) -> None:
    weight, x = drawn(24, 96)
    mended = gptq(group=32).mended(weight, InputStatistics.of(x, gram=True), bits)
    error, plainly = (((w - weight) @ x.T).norm() for w in (mended, on_grid(weight, bits, 32, False)))
    assert error < 0.7 * plainly


def test_codes_of_a_group_lie_on_one_grid() -> None:
    weight, x = drawn(7, 64)
    found = gptq(group=16).mended(weight, InputStatistics.of(x, gram=True), 3)
    values = [len(part.unique()) for row in found.reshape(7, 4, 16) for part in row]
    assert max(values) <= 8


def test_inputs_that_never_fire_and_their_weights() -> None:
    weight, x = drawn(4, 32)
    x[:, 5] = 0
    found = gptq(group=8).mended(weight, InputStatistics.of(x, gram=True), 4)
    assert bool(found.isfinite().all())
    assert bool((found[:, 5] == 0).all())


def test_a_pruned_model_stays_pruned() -> None:
    system = tiny_system()
    text = Calibration("bytes", np.random.default_rng(0).integers(0, 256, (4, 24)))
    with attached(system, [create("wanda", pattern="2:4"), create("gptq", bits=4, group=16)], text):
        assert weight_sparsity(system).sparsity >= 0.5
        for site in prunable(system):
            assert bool(((site.weight == 0).reshape(site.weight.shape[0], -1, 4).sum(dim=2) >= 2).all())


def test_it_belongs_to_its_budget() -> None:
    system = tiny_system()
    text = Calibration("bytes", np.random.default_rng(0).integers(0, 256, (2, 16)))
    four, eight = create("gptq", bits=4), create("gptq", bits=8)
    prepared = four.adapter.prepare(system, text, four.budget)
    with pytest.raises(InputError, match="prepared at"), eight.adapter.attach(system, prepared, eight.budget):
        pass
    with pytest.raises(InputError, match="at a budget"):
        four.adapter.prepare(system, text)


@pytest.mark.parametrize(
    ("most", "group", "step"), [(128, 128, 128), (16, 128, 16), (16, 5, 15), (16, 24, 8), (128, 200, 8)]
)
def test_steps_begin_where_groups_do(most: int, group: int, step: int) -> None:
    assert _obs._aligned(most, group) == step
