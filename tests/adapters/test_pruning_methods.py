"""The arithmetic of each method, against hand-made cases, plain restatements and its own promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import STORIES, stories_system
from torch.testing import assert_close

from sparsebench.adapters import attached, create, get
from sparsebench.adapters.calibration import Calibration
from sparsebench.adapters.passes import InputStatistics, dense_statistics
from sparsebench.adapters.pruning import _obs, _swaps
from sparsebench.adapters.pruning.base import Allotment, Layer
from sparsebench.systems.weights import prunable

HALF = Allotment(0.5, "row")


def layer(weight: list[list[float]], inputs: torch.Tensor | None = None, name: str = "self_attn.q_proj") -> Layer:
    statistics = InputStatistics.of(inputs, gram=True) if inputs is not None else None
    return Layer(name, torch.tensor(weight), statistics)


def gone(method: str, of: Layer, allotment: Allotment = HALF, **knobs: Any) -> list[list[int]]:
    return get(method).configure(knobs).mask(of, allotment).int().tolist()  # type: ignore[attr-defined]


# -- scores ------------------------------------------------------------------------------------------------------------


def test_wanda_differs_from_magnitude() -> None:
    # Inputs of norm 5, 1, 2: scores 5 3 4 and 10 6 2.
    of = layer([[1.0, -3, 2], [-2, 6, 1]], torch.tensor([[3.0, 0, 2], [-4, 1, 0]]))
    third = Allotment(1 / 3, "row")
    assert gone("magnitude", of, third) == [[1, 0, 0], [0, 0, 1]]
    assert gone("wanda", of, third) == [[0, 1, 0], [0, 0, 1]]
    score = get("wanda")().score(of)  # type: ignore[attr-defined]
    assert_close(score, torch.tensor([[5.0, 3, 4], [10, 6, 2]]))


def test_wanda_by_row_differs_from_wanda_by_layer() -> None:
    of = layer([[1.0, 2, 3, 4], [5, 6, 7, 8]], torch.eye(4))
    assert gone("wanda", of) == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert gone("wanda", of, Allotment(0.5, "layer")) == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_wanda_sums_over_all_tokens() -> None:
    x = torch.randn(7, 5, 6)
    parts = InputStatistics.empty(6, torch.device("cpu"), gram=False)
    for batch in x.split(3):
        parts.add(InputStatistics.of(batch))
    assert_close(parts.norm, x.reshape(-1, 6).norm(dim=0))
    assert parts.tokens == 35


def test_scores_that_are_not_finite_are_refused() -> None:
    from sparsebench.errors import InputError

    with pytest.raises(InputError, match="not finite"):
        gone("magnitude", layer([[1.0, float("nan")]]))


# -- SparseGPT ---------------------------------------------------------------------------------------------------------


def test_sparsegpt_by_hand() -> None:
    # H = [[2, 1], [1, 2]], no damping: H^-1 = [[2, -1], [-1, 2]] / 3. Pruning column 0 of [1, 1] moves column 1 by
    # -w_0 (H^-1)_10 / (H^-1)_00 = 1/2.
    gram = torch.tensor([[2.0, 1], [1, 2]])
    factor = _obs.inverse_factor(gram, damping=0)
    assert_close(factor.T @ factor, torch.tensor([[2.0, -1], [-1, 2]]) / 3)
    # Saliencies: column 0 competes with what column 1 can mend, 1 / (2/3); column 1 with nothing after it, 1 / (1/2).
    assert_close(_obs.saliency(torch.ones(1, 2), factor), torch.tensor([[1.5, 2.0]]))
    assert_close(_obs.prune(torch.ones(1, 2), gram, HALF, damping=0), torch.tensor([[0.0, 1.5]]))


def plain_obs(weight: torch.Tensor, gram: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Optimal brain surgeon from left to right for a given mask, the inverse taken anew at each column."""
    gram = gram.double()
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weight = weight.double().clone()
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(gram[column:, column:])
        lost = torch.where(masks[:, column], weight[:, column], 0.0)
        weight[:, column:] -= lost[:, None] * inverse[0] / inverse[0, 0]
    return weight.masked_fill(masks, 0).float()


@pytest.mark.parametrize("allotment", [Allotment(0.5, "block"), Allotment(0.5, "block", (2, 4))])
@pytest.mark.parametrize("columns", [40, 300])
def test_sparsegpt_is_optimal_brain_surgeon(allotment: Allotment, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, columns, generator=generator)
    x = torch.randn(900, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    pruned = _obs.prune(weight, x.T @ x, allotment)
    assert int((pruned == 0).sum()) == 3 * columns
    assert_close(pruned, plain_obs(weight, x.T @ x, pruned == 0), rtol=1e-3, atol=1e-3)


def test_sparsegpt_mends() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(32, 64, generator=generator)
    x = torch.randn(500, 16, generator=generator) @ torch.randn(16, 64, generator=generator)  # inputs that correlate
    of = Layer("x", weight, InputStatistics.of(x, gram=True))
    errors = {}
    for method in ("magnitude", "wanda"):
        errors[method] = float(((weight.masked_fill(torch.tensor(gone(method, of)).bool(), 0) - weight) @ x.T).norm())
    errors["sparsegpt"] = float(((_obs.prune(weight, x.T @ x, HALF) - weight) @ x.T).norm())
    assert errors["sparsegpt"] < 0.5 * errors["wanda"]
    assert errors["wanda"] < errors["magnitude"]


def test_sparsegpt_drops_weights_of_inputs_that_never_fire() -> None:
    x = torch.randn(50, 6)
    x[:, 2] = 0
    pruned = _obs.prune(torch.ones(3, 6), x.T @ x, Allotment(1 / 6, "block"))
    assert bool((pruned[:, 2] == 0).all())
    assert int((pruned == 0).sum()) == 3  # they are the first to go, and all that goes
    assert bool(pruned.isfinite().all())


def test_sparsegpt_reduces_the_error_of_trained_layers() -> None:
    system = stories_system()
    text = Calibration.from_texts("stories", STORIES * 4, system.tokenizer, sequences=12, length=96)
    statistics = dense_statistics(system, text, gram=True)
    errors: dict[str, list[float]] = {"magnitude": [], "wanda": [], "sparsegpt": []}
    for site in prunable(system):
        of = Layer(site.name, site.weight.detach(), statistics[site.name])
        gram = of.inputs.gram
        assert gram is not None
        for method in errors:
            adapter: Any = get(method)()
            difference = adapter.update(of, HALF) - of.weight
            errors[method].append(float(((difference @ gram) * difference).sum()))
    for ours, wanda, magnitude in zip(errors["sparsegpt"], errors["wanda"], errors["magnitude"], strict=True):
        assert ours < wanda
        assert ours < magnitude
    assert sum(errors["wanda"]) < sum(errors["magnitude"])


# -- DSnoT -------------------------------------------------------------------------------------------------------------


def trade(weight: torch.Tensor, mean: torch.Tensor, worth: torch.Tensor, **limits: Any) -> _swaps.Trade:
    shares = weight * mean
    options = {"cycles": 50, "threshold": 0.0, "stop_at_sign_change": False, **limits}
    return _swaps.Trade(shares, shares, worth, **options)


def test_dsnot_by_hand() -> None:
    # Shares 5 1 -1 -2 3 2; the first three are gone: bias 5. The row brings back column 0 (share 5, the largest) and
    # lets go the least worthy kept weight of a negative share, column 3: bias 5 - 5 - 2 = -2. Then it brings back the
    # most negative, column 2, and lets go the least worthy of a positive share, column 5: -2 + 1 + 2 = 1. Column 1
    # would come back next, but no kept weight of a negative share is left to go for it.
    weight = torch.tensor([[5.0, 1, -1, -2, 3, 2]])
    worth = torch.tensor([[9.0, 9, 9, 3, 2, 1]])
    first = torch.tensor([[True, True, True, False, False, False]])
    terms = trade(weight, torch.ones(6), worth)
    assert _swaps.swap(first, terms).int().tolist() == [[0, 1, 0, 1, 0, 1]]
    assert _swaps.swap(first, trade(weight, torch.ones(6), worth, cycles=1)).int().tolist() == [[0, 1, 1, 1, 0, 0]]
    assert _swaps.swap(first, trade(weight, torch.ones(6), worth, threshold=5.0)).tolist() == first.tolist()
    # The first swap would turn the bias from 5 to -2.
    assert _swaps.swap(first, trade(weight, torch.ones(6), worth, stop_at_sign_change=True)).tolist() == first.tolist()


def test_dsnot_differs_from_its_first_mask() -> None:
    # Wanda lets go 1, 1 (scores 1); their shares add up to a bias that 3 and -2 can trade against.
    x = torch.tensor([[1.0, 1, 1, 1]]).repeat(4, 1) + torch.tensor([[0.1], [-0.1], [0.1], [-0.1]])
    of = layer([[1.0, 1.1, -2, 3]], x)
    assert gone("wanda", of) == [[1, 1, 0, 0]]
    assert gone("dsnot", of, cycles=1) == [[1, 0, 1, 0]]
    assert gone("dsnot", of, cycles=0) == [[1, 1, 0, 0]]
    elsewhere = Layer("mlp.up_proj", of.weight, of.statistics)
    assert gone("dsnot", elsewhere, cycles=1) == [[1, 1, 0, 0]]
    assert gone("dsnot", elsewhere, cycles=1, refine="all") == [[1, 0, 1, 0]]


def test_dsnot_grows_by_variance() -> None:
    # Two pruned weights of equal share: the one whose input varies less comes back.
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.full((400, 4), 1.0)], dim=1) + torch.randn(400, 4, generator=generator) * torch.tensor(
        [2.0, 0.1, 0.1, 0.1]
    )
    x -= x.mean(dim=0) - 1  # every mean is 1
    of = layer([[1.0, 1.0, -30, 30]], x)
    assert gone("magnitude", of) == [[1, 1, 0, 0]]
    assert gone("dsnot", of, initial="magnitude", cycles=1) == [[1, 0, 1, 0]]
    assert gone("dsnot", of, initial="magnitude", cycles=1, power=0) in ([[1, 0, 1, 0]], [[0, 1, 1, 0]])


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("stop", [False, True])
def test_dsnot_keeps_counts_and_reduces_bias(pattern: tuple[int, int] | None, stop: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, mean = torch.randn(64, 48, generator=generator), torch.randn(48, generator=generator)
    worth = weight.abs() * torch.rand(48, generator=generator)
    adapter: Any = get("magnitude")()
    first = adapter.mask(Layer("x", worth), Allotment(0.5, "row", pattern))
    terms = trade(weight, mean, worth, cycles=4, threshold=0.01, stop_at_sign_change=stop)
    refined = _swaps.swap(first, terms, pattern)
    assert torch.equal(refined.sum(dim=1), first.sum(dim=1))
    assert not torch.equal(refined, first)
    if pattern is not None:
        assert torch.equal(refined.reshape(64, -1, 4).sum(dim=2), torch.full((64, 12), 2))
    bias = [torch.where(mask, weight * mean, 0).sum(dim=1) for mask in (first, refined)]
    assert float(bias[1].abs().mean()) < float(bias[0].abs().mean())
    if stop:
        assert bool((bias[1] * bias[0] >= 0).all())
        if pattern is None:
            assert bool((bias[1].abs() <= bias[0].abs()).all())


def test_dsnot_starts_from_any_mask() -> None:
    system = stories_system()
    text = Calibration.from_texts("stories", STORIES * 4, system.tokenizer, sequences=4, length=64)
    found = {}
    for initial in ("wanda", "magnitude", "sparsegpt"):
        with attached(system, [create("dsnot", sparsity=0.5, initial=initial, cycles=0, stats_pass="dense")], text):
            found[initial] = [(site.weight == 0).clone() for site in prunable(system)]
    with attached(system, [create("wanda", sparsity=0.5, stats_pass="dense")], text):
        wanda = [(site.weight == 0).clone() for site in prunable(system)]
    assert all(torch.equal(a, b) for a, b in zip(found["wanda"], wanda, strict=True))
    for other in ("magnitude", "sparsegpt"):
        assert not any(torch.equal(a, b) for a, b in zip(found[other], wanda, strict=True))
