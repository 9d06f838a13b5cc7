"""The arithmetic of ratios, searches, codes, groups and factors: by hand, and against plain restatements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import ARCHITECTURES, PLAIN, tiny_system
from sklearn.cluster import KMeans

from sparsebench.adapters import create, get
from sparsebench.adapters.calibration import Calibration
from sparsebench.adapters.passes import InputStatistics
from sparsebench.adapters.pruning import _quantise, _ranks, _ratios
from sparsebench.adapters.pruning._gradients import fisher_diagonal
from sparsebench.adapters.pruning._search import Search, Space, search
from sparsebench.adapters.pruning.base import Allotment, Layer
from sparsebench.budget import Budget
from sparsebench.systems.weights import prunable


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- ratios ------------------------------------------------------------------------------------------------------------


def test_ecoflap_by_hand() -> None:
    # Half of 300 stays: each block keeps 40 (ceiling .6), and 30 are dealt out as 2:1:0.
    found = _ratios.ecoflap([2.0, 1.0, 0.0], [100, 100, 100], 0.5, slack=0.1)
    assert found == pytest.approx([1 - 0.6, 1 - 0.5, 1 - 0.4])
    # A block that is full leaves the rest to others: 20 + 20 to deal; of 100 at most 100 stays.
    assert _ratios.ecoflap([1.0, 1e-9], [10, 190], 0.5, slack=0.4) == pytest.approx([0.0, 1 - 90 / 190])
    assert _ratios.ecoflap([0.0, 0.0], [10, 30], 0.5, slack=0.1) == pytest.approx([0.5, 0.5])


@example([5e-324, 0.0], [1] * 8, 0.95, 0.04)
@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=8),
    st.lists(st.integers(1, 1000), min_size=8, max_size=8),
    st.floats(0.05, 0.95),
    st.floats(0.0, 0.5),
)
def test_ecoflap_meets_the_target(worth: list[float], sizes: list[int], sparsity: float, slack: float) -> None:
    sizes = sizes[: len(worth)]
    found = _ratios.ecoflap(worth, sizes, sparsity, slack)
    assert all(-1e-9 <= s <= min(1.0, sparsity + slack) + 1e-6 for s in found)
    assert sum(s * n for s, n in zip(found, sizes, strict=True)) == pytest.approx(sparsity * sum(sizes), rel=1e-5)


def test_ecoflap_measures_the_gradient() -> None:
    """Of a loss that is linear in the weights, the mean slope is the gradient's norm times sqrt(2 / pi)."""
    from sparsebench.adapters.pruning._allocation import Settings, sensitivities

    system = tiny_system()
    row = np.random.default_rng(0).integers(0, 256, (1, 24))
    text = Calibration("bytes", np.repeat(row, 120, axis=0))
    found = sensitivities(system, text, Settings(sequences=120, noise=1e-4))
    gradients = fisher_diagonal(system, Calibration("bytes", row), 1)
    sites = prunable(system)
    expected = [
        float(sum(gradients[s.name].sum() for s in sites if s.block == index)) ** 0.5 * (2 / torch.pi) ** 0.5
        for index in range(3)
    ]
    assert found == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *PLAIN, "mixtral", "gpt_oss", "llama4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ecoflap_measures_in_float32(name: str, dtype: torch.dtype) -> None:
    """What a model of 16 bits gives is what the same weights give in float32; afterwards it has its own memory again."""
    from sparsebench.adapters.pruning._allocation import Settings, sensitivities

    system, wide = tiny_system(name, dtype=dtype), tiny_system(name)
    tensors = [*system.model.parameters(), *system.model.buffers()]
    for own, narrow in zip([*wide.model.parameters(), *wide.model.buffers()], tensors, strict=True):
        own.data = narrow.data.to(own.dtype)
    before = [(t.dtype, t.data_ptr(), t.detach().clone()) for t in tensors]
    text = Calibration("bytes", np.random.default_rng(0).integers(0, 256, (2, 24)))
    found = sensitivities(system, text, Settings(sequences=2))
    assert found == pytest.approx(sensitivities(wide, text, Settings(sequences=2)), rel=1e-3, abs=1e-3)
    assert min(found) > 0
    for tensor, (kind, place, value) in zip(tensors, before, strict=True):
        assert (tensor.dtype, tensor.data_ptr()) == (kind, place)
        assert torch.equal(tensor, value)
    assert not any("forward" in vars(block) for block in system.blocks)


# -- searches ----------------------------------------------------------------------------------------------------------


def test_space() -> None:
    space = Space.of([10, 20, 10, 20, 20], 0.5, 0.1)
    assert space.groups == ((0, 2), (1, 3, 4))
    assert (space.lowest, space.highest) == (-5, 4)  # sparsities 0 to .9
    assert (Space.of([1], 0.05, 0.1).lowest, Space.of([1], 0.95, 0.1).highest) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 30), st.floats(0.05, 0.95))
def test_switches_keep_every_groups_sum_and_bounds(seed: int, switches: int, sparsity: float) -> None:
    space = Space.of([1, 1, 2, 2, 2, 3], sparsity, 0.1)
    found = space.switched((0,) * 6, switches, np.random.default_rng(seed))
    assert [sum(found[i] for i in group) for group in space.groups] == [0, 0, 0]
    assert all(space.lowest <= level <= space.highest for level in found)
    assert all(0 <= sparsity + 0.1 * level < 1 for level in found)


def test_search_finds_what_random_draws_do_not() -> None:
    best = (3, -3, 2, -2, 1, -1, 0, 0)
    asked = {True: 0, False: 0}
    losses = {}
    for directed in (True, False):

        def fitness(candidates: Any, tokens: int, directed: bool = directed) -> list[float]:
            asked[directed] += len(candidates)
            return [float(sum((a - b) ** 2 for a, b in zip(c, best, strict=True))) for c in candidates]

        space = Space.of([1] * 8, 0.5, 0.05)
        found, history = search(space, 8, fitness, Search(60, 8, (2, 1), (1, 2), directed=directed))
        losses[directed] = history[-1]
        assert history == sorted(history, reverse=True)  # the best so far is never lost
        assert sum(found) == 0
    assert losses[True] == 0
    assert losses[False] > 4
    assert asked[True] == pytest.approx(asked[False], rel=0.05)


def test_search_is_repeatable_and_may_be_nothing() -> None:
    def fitness(candidates: Any, tokens: int) -> list[float]:
        return [float(c[0]) for c in candidates]

    space = Space.of([1] * 4, 0.5, 0.05)
    assert search(space, 4, fitness, Search(5, seed=3)) == search(space, 4, fitness, Search(5, seed=3))
    assert search(space, 4, fitness, Search(0)) == ((0, 0, 0, 0), [])


# -- Wanda's variant ---------------------------------------------------------------------------------------------------


def bisected(metric: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The plain way: alpha by bisection, each row losing its least weights up to alpha of its sum."""
    values, _ = metric.sort(dim=1)
    low, high = 0.0, 1.0
    for _ in range(60):
        alpha = (low + high) / 2
        counts = (values.cumsum(dim=1) <= alpha * metric.sum(dim=1, keepdim=True)).sum(dim=1)
        low, high = (low, alpha) if int(counts.sum()) > sparsity * metric.numel() else (alpha, high)
    counts = (values.cumsum(dim=1) <= low * metric.sum(dim=1, keepdim=True)).sum(dim=1)
    return metric.argsort(dim=1).argsort(dim=1) < counts[:, None]


def test_wanda_variant_is_alpha_by_row() -> None:
    weight, x = normal(24, 40) * torch.logspace(-1, 1, 24)[:, None], normal(200, 40, seed=1)
    layer = Layer("x", weight, InputStatistics.of(x))
    method: Any = get("wanda-variant")()
    found = method.mask(layer, Allotment(0.5, "layer"))
    expected = bisected(weight.abs() * layer.inputs.norm, 0.5)
    assert int(found.sum()) == 480
    assert int((found != expected).sum()) <= 1  # bisection stops short of the last weight
    rows = found.sum(dim=1)
    assert int(rows.max()) > int(rows.min())
    wanda: Any = get("wanda")()
    assert not torch.equal(found, wanda.mask(layer, Allotment(0.5, "layer")))  # scaling a row changes nothing here


# -- grids -------------------------------------------------------------------------------------------------------------


def plain_grid(weight: torch.Tensor, bits: int, group: int, symmetric: bool) -> torch.Tensor:
    found = torch.zeros_like(weight)
    width = group or weight.shape[1]
    for row in range(len(weight)):
        for first in range(0, weight.shape[1], width):
            part = weight[row, first : first + width]
            if symmetric:
                top = 2 ** (bits - 1) - 1
                scale = float((part.abs().max() / top).half())
                codes = [max(-top - 1, min(top, round(float(w) / scale))) for w in part]
                zero = 0
            else:
                low, high = min(0.0, float(part.min())), max(0.0, float(part.max()))
                scale = float(torch.tensor((high - low) / (2**bits - 1)).half())
                zero = max(0, min(2**bits - 1, round(-low / scale)))
                codes = [max(0, min(2**bits - 1, round(float(w) / scale) + zero)) for w in part]
            found[row, first : first + width] = torch.tensor([scale * (code - zero) for code in codes])
    return found


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (3, 0), (8, 0), (4, 12)])
def test_grid(bits: int, group: int, symmetric: bool) -> None:
    weight = normal(5, 40) + 0.3
    found = _quantise.on_grid(weight, bits, group, symmetric)
    torch.testing.assert_close(found, plain_grid(weight, bits, group, symmetric), rtol=1e-5, atol=1e-6)
    parts = found.split(group or 40, dim=1)
    assert all(len(row.unique()) <= 2**bits for part in parts for row in part)
    groups = 5 * len(parts)
    expected = {"codes": 200.0 * bits, "scales": 16.0 * groups, "zero points": float(bits * groups)}
    stored = _quantise.grid_bits(5, 40, bits, group, symmetric)
    assert stored == {key: value for key, value in expected.items() if key in stored}
    assert ("zero points" in stored) != symmetric


def test_grids_keep_zeros_and_survive_extremes() -> None:
    weight = normal(4, 32)
    weight[:, ::2] = 0
    assert bool((_quantise.on_grid(weight, 2, 8, False)[:, ::2] == 0).all())
    for odd in (torch.zeros(2, 8), torch.full((2, 8), 1e-12), torch.full((2, 8), 1e30), -torch.ones(2, 8)):
        for symmetric in (False, True):
            assert bool(_quantise.on_grid(odd, 4, 4, symmetric).isfinite().all())
    torch.testing.assert_close(_quantise.on_grid(-torch.ones(2, 8), 4, 4, False), -torch.ones(2, 8), rtol=1e-3, atol=0)


# -- k-means -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 8, 16])
def test_kmeans_is_as_good_as_sklearns(count: int) -> None:
    weight = normal(12, 200).pow(3)  # heavy tails
    mass = normal(12, 200, seed=1).square()
    found = _quantise.to_nearest_of(weight, mass, count)
    assert all(len(row.unique()) <= count for row in found)
    ours = ((found - weight).square() * mass).sum(dim=1)
    theirs = [
        KMeans(count, n_init=5, random_state=0, max_iter=50)
        .fit(row.numpy().reshape(-1, 1), sample_weight=m.numpy())
        .inertia_
        for row, m in zip(weight, mass, strict=True)
    ]
    assert float(ours.sum()) <= 1.05 * sum(theirs)


def test_kmeans_by_hand() -> None:
    row = torch.tensor([[1.0, 2.0, 10.0, 12.0]])
    assert _quantise.to_nearest_of(row, torch.ones(1, 4), 2).tolist() == [[1.5, 1.5, 11.0, 11.0]]
    assert _quantise.to_nearest_of(row, torch.tensor([[1.0, 1, 3, 1]]), 2).tolist() == [[1.5, 1.5, 10.5, 10.5]]
    assert _quantise.to_nearest_of(row, torch.zeros(1, 4), 4).tolist() == row.tolist()
    same = torch.full((2, 5), 3.0)
    assert torch.equal(_quantise.to_nearest_of(same, torch.ones(2, 5), 8), same)


# -- SqueezeLLM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "phi3"])
def test_fisher_is_the_mean_of_squared_gradients(name: str) -> None:
    system = tiny_system(name)
    for parameter in system.model.parameters():
        parameter.requires_grad_(False)
    text = Calibration("bytes", np.random.default_rng(0).integers(0, 256, (3, 20)))
    found = fisher_diagonal(system, text, 100)
    assert not any(p.requires_grad for p in system.model.parameters())
    expected = {site.name: torch.zeros_like(site.weight) for site in prunable(system)}
    for row in text.ids:
        ids = torch.from_numpy(row.copy())[None]
        system.model.requires_grad_(True)
        system.model(ids, labels=ids).loss.backward()
        for site in prunable(system):
            gradient = site.module.weight.grad
            expected[site.name] += (gradient.T if site.transposed else gradient).square() / 3
        system.model.zero_grad()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.detach(), rtol=1e-3, atol=1e-9)


def test_squeezellm_keeps_outliers_and_sensitive_weights() -> None:
    method: Any = get("squeezellm").configure({"outliers": 0.01, "sensitive": 0.005})
    weight, fisher = normal(20, 100), normal(20, 100, seed=1).square()
    fisher[3, 7] = 1e6
    found = method.encode("x", weight, {"x": fisher}, Budget("bits", 3))
    exact = (found - weight).abs() <= 1e-3 * weight.abs()
    largest = weight.abs().flatten().topk(20).indices
    assert bool(exact.flatten()[largest].all())
    assert bool(exact[3, 7])
    apart = set(largest.tolist()) | set(fisher.flatten().topk(10).indices.tolist())
    assert len(apart) <= 30
    for row in range(20):
        coded = [float(found[row, c]) for c in range(100) if row * 100 + c not in apart]
        assert len(set(coded)) <= 8 + 2  # where both shares overlap, the next largest goes apart instead
    stored = method.stored(20, 100, Budget("bits", 3))
    assert stored.bits == {
        "codes": 6000.0, "values of rows": 16.0 * 20 * 8, "outliers": 480.0, "outlier columns": 480.0, "rows": 672.0,
    }  # fmt: skip


# -- GQSA --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.6])
def test_gqsa_against_loops(sparsity: float) -> None:
    method: Any = get("gqsa").configure({"group": 4})
    weight, x = normal(6, 26), normal(100, 26, seed=1)
    gram = (x.T @ x).double()
    gram += 0.01 * gram.diagonal().mean() * torch.eye(26)
    worth = (1 / torch.linalg.inv(gram).diagonal()).float()
    saliency = weight.square() * worth
    found = method.encode("x", weight, {"x": worth}, Budget("sparsity", sparsity))
    stored = method.stored(6, 26, Budget("sparsity", sparsity))
    gone = (found.reshape(6, 26)[:, :24].reshape(6, 6, 4) == 0).all(dim=2)
    total = round(sparsity * 6 * 26 / 4)
    assert int(gone.sum()) == total
    assert stored.kept == 6 * 26 - 4 * total
    for row in range(6):
        means = [float(saliency[row, 4 * g : 4 * g + 4].mean()) for g in range(6)]
        count = int(gone[row].sum())
        assert count in (total // 6, total // 6 + 1)
        assert set(np.argsort(means)[:count].tolist()) == set(gone[row].nonzero()[:, 0].tolist())
    dense = method.encode("x", weight, {"x": worth}, Budget("sparsity", 0.0))
    kept = found != 0
    torch.testing.assert_close(found[kept], dense[kept])


def test_gqsa_worth_is_the_inverse_diagonal() -> None:
    system = tiny_system("gpt2")
    text = Calibration("bytes", np.random.default_rng(0).integers(0, 256, (4, 24)))
    from sparsebench.adapters.passes import dense_statistics

    statistics = dense_statistics(system, text, gram=True)
    worth = create("gqsa", sparsity=0.5).adapter.prepare(system, text).state
    assert set(worth) == set(statistics)
    name = prunable(system)[5].name
    gram = statistics[name].gram
    assert gram is not None
    gram = gram.double()
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    torch.testing.assert_close(worth[name], (1 / torch.linalg.inv(gram).diagonal()).float(), rtol=1e-3, atol=1e-6)


# -- WeLore ------------------------------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    # Normalised: 1 .5 .2 0 and 1 .9 .8 0. At .5 the first keeps two of four: 2 x 8 = 16 saves nothing; above that one.
    flat = _ranks.Matrix(4, 4, torch.tensor([10.0, 5, 2, 0]))
    steep = _ranks.Matrix(4, 4, torch.tensor([10.0, 9, 8, 0]))
    assert _ranks.ranks([flat, steep], 0.25, cut=0.5) == [1, None]
    assert _ranks.ranks([flat, steep], 0.5, cut=0.5) == [1, 1]
    assert _ranks.saved([flat, steep], [1, None]) == 8


def test_no_rank_is_raised_above_the_cut() -> None:
    # 4 x 16. Normalised: 1 .6 .3 0. Above .3 two of four ranks stay, 2 x 20 = 40 of 64: 24 are saved, and 10 asked for.
    wide = _ranks.Matrix(4, 16, torch.tensor([10.0, 6, 3, 0]))
    assert _ranks.ranks([wide], 10 / 64, cut=0.5) == [2]
    assert _ranks.ranks([wide], 4 / 64, cut=0.75) == [3]  # 3 x 20 = 60 is fewer than 64 all the same
    assert _ranks.ranks([wide], 10 / 64, cut=0.25) == [1]
    # Beside 1 .2 .1 0: above .3 they keep 2 and 1 and save 68. Of 45 a rank is given back, not to the first, whose .3 is
    # the largest that went, since it has the rank of the cut.
    steep = _ranks.Matrix(4, 16, torch.tensor([10.0, 2, 1, 0]))
    assert _ranks.ranks([wide, steep], 24 / 128, cut=0.5) == [None, 2]
    assert _ranks.ranks([wide, steep], 45 / 128, cut=0.5) == [2, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.floats(0.02, 0.8), st.floats(0.2, 1.0))
def test_ranks_meet_the_budget(seed: int, sparsity: float, cut: float) -> None:
    generator = np.random.default_rng(seed)
    matrices = [
        _ranks.Matrix(rows, columns, torch.linalg.svdvals(normal(rows, columns, seed=seed + i)))
        for i, (rows, columns) in enumerate(generator.integers(8, 40, (6, 2)).tolist())
    ]
    found = _ranks.ranks(matrices, sparsity, cut)
    size = sum(m.size for m in matrices)
    share = _ranks.saved(matrices, found) / size
    assert share >= sparsity or all(rank == 1 for rank in found)
    beyond = (share - sparsity) * size
    for rank, m in zip(found, matrices, strict=True):
        if rank is not None:
            assert 1 <= rank <= cut * len(m.values)
            assert m.factored(rank) < m.size
            # What is left to give back is less than a further rank takes, or this one has all that it may have.
            assert beyond < m.rows + m.columns or not m.fits(rank + 1, cut)


def test_factors_are_the_nearest_of_their_rank() -> None:
    from sparsebench.adapters.pruning.welore import truncated

    weight = normal(20, 30)
    found = truncated(weight, 5)
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    assert int(torch.linalg.matrix_rank(found, rtol=1e-4)) == 5
    assert float((found - weight).norm()) == pytest.approx(float(np.sqrt((values[5:] ** 2).sum())), rel=1e-4)
