"""Static masks, searches and choices by head against what their papers say, and cards of methods that cannot run."""

from __future__ import annotations

from itertools import pairwise

import attention_views as views
import models
import numpy as np
import pytest
import torch
from attention_texts import random_ids
from attention_views import CARDS

from sparsebench.adapters import attached, create, get
from sparsebench.adapters.attention._allowance import Allowance
from sparsebench.adapters.attention._executor import TILES, simulate
from sparsebench.adapters.attention._spans import change, influences, plan
from sparsebench.adapters.attention._tree import blocks_of
from sparsebench.adapters.base import Prepared, prepare_timed
from sparsebench.adapters.calibration import Calibration
from sparsebench.adapters.unavailable import Unavailable
from sparsebench.engine.attention import attend_dense
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import MissingError


def chosen(name: str, view, **knobs) -> torch.Tensor:
    shape = views.shape_of(view.query.shape[1], view.key.shape[1], view.query.shape[3], window=view.window)
    return views.masks_of(views.policy_of(name, shape, **knobs), [view])[0]


def keys_of(mask: torch.Tensor, query: int, head: int = 0) -> list[int]:
    return mask[0, head, query].nonzero().flatten().tolist()


# static masks


def test_a_dilated_window_by_hand():
    view = views.make_view([(0, 50)])
    assert keys_of(chosen("dilated-window", view, tokens=4), 40) == [34, 36, 38, 40]
    assert keys_of(chosen("dilated-window", view, tokens=4, gap=3), 40) == [31, 34, 37, 40]
    assert keys_of(chosen("dilated-window", view, tokens=5, gap=4), 6) == [2, 3, 4, 5, 6], "then what lies between"


def test_s2_attention_by_hand():
    mask = chosen("s2-attention", views.make_view([(0, 22)]), tokens=12, block=2, stride=4)
    assert keys_of(mask, 21, 0) == [0, 1, 8, 9, 14, 15, 16, 17, 18, 19, 20, 21]
    assert keys_of(mask, 21, 1) == [6, 7, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
    short = chosen("s2-attention", views.make_view([(0, 22)]), tokens=6, block=2, stride=4)
    assert keys_of(short, 21, 0) == [8, 9, 16, 17, 20, 21], "the farthest block is left out"


def test_streaming_heads_by_hand():
    view = views.make_view([(0, 60)])
    mask = chosen("streaming-heads", view, tokens=8)
    for head in (0, 1):
        assert keys_of(mask, 50, head) == [0, *range(44, 51)]
    for head in (2, 3):
        assert keys_of(mask, 50, head) == list(range(51))


# hip


def tree_reference(view, low: int, end: int, queries: list[int], head: int, chunks: int, leaf: int) -> set[int]:
    """The keys of one block of queries in one head, chunk by chunk."""
    keys = view.key[0, head // view.group]
    edges = [low + (end - low) * j // chunks for j in range(chunks + 1)]
    spans = [(a, b) for a, b in pairwise(edges) if a < b]
    while any(b - a > leaf for a, b in spans):
        halves = []
        for a, b in spans:
            middle = a + -(-(b - a) // 2) if b - a > leaf else b
            halves.append((a, middle))
        for a, b in spans:
            middle = a + -(-(b - a) // 2) if b - a > leaf else b
            if middle < b:
                halves.append((middle, b))
        score = [max(float(view.query[0, head, q] @ keys[(a + b) // 2]) for q in queries) for a, b in halves]
        best = sorted(range(len(halves)), key=lambda i: -score[i])[:chunks]
        spans = [halves[i] for i in sorted(best)]
    return {key for a, b in spans for key in range(a, b)}


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("decode", [False, True])
def test_hip_is_the_reference(window, decode):
    start, count = (70, 12) if decode else (0, 90)
    view = views.make_view([(start, count)], decode=decode, window=window, layer=1)
    mask = chosen("hip", view, tokens=20, block=16, leaf=2)
    size = 1 if decode else 16
    found = 0
    for head in range(4):
        for query in range(count):
            at = start + query
            low = 0 if window is None else max(0, at + 1 - window)
            if at + 1 - low <= 20:
                assert keys_of(mask, query, head) == list(range(low, at + 1))
                continue
            block = [q for q in range(count) if (start + q) // size == at // size]
            seen_from = 0 if window is None else max(0, start + block[0] + 1 - window)
            tree = tree_reference(view, seen_from, start + block[-1] + 1, block, head, -(-(20 - 5 - 1) // 2), 2)
            forced = {0, *range(at - 4, at + 1)}
            seen = set(range(low, at + 1))
            tiers = [{at}, (forced - {at}) & seen, (tree - forced) & seen, seen - tree - forced]
            ranked = [key for tier in tiers for key in sorted(tier, reverse=True)]
            assert keys_of(mask, query, head) == sorted(ranked[:20]), (head, query)
            found += len(tree - forced)
    assert found > 100


def test_a_search_takes_a_logarithm_of_rounds():
    for length in (1024, 4096, 16384):
        positions = torch.tensor([[length - 1]])
        blocks = blocks_of(positions, torch.tensor([[256]]), None, 1, 2)
        assert int(blocks.rounds(2)) == int(np.log2(length / 256))


# qwen-1m


def test_recall_is_reached_in_every_chunk_with_the_least_budget():
    view = views.make_view([(0, 160)], layer=1)
    knobs = {"queries": 20, "first": 2, "near": 3, "setting": "paper", "chunk": 64}
    mask = chosen("qwen-1m", view, coverage=0.7, **knobs)[0]
    loose = chosen("qwen-1m", view, coverage=0.72, **knobs)[0]
    keys = view.key.repeat_interleave(2, dim=1)[0]
    weights = torch.softmax(
        (view.query[0] @ keys.transpose(-1, -2) * view.scaling).masked_fill(~view.visible()[0], -torch.inf), dim=-1
    )
    for end in (64, 128, 160):
        last = slice(end - 20, end)
        for head in range(4):
            recall = float((weights[head, last] * mask[head, last]).sum()) / 20
            assert 0.7 <= recall < 0.8
    assert int(loose.sum()) > int(mask.sum())
    assert not torch.equal(mask[:, 63, :60], mask[:, 127, :60]), "chunks have columns of their own"


# minference


def test_each_head_has_the_pattern_that_errs_least():
    system = models.tiny_system("gemma2")
    text = Calibration("random", np.array([random_ids(96, seed) for seed in range(3)]))
    member = create("minference", sparsity=0.6, samples=2)
    prepared = prepare_timed(member.adapter, system, text, member.budget)
    captured: list = []

    class Watch:
        def attend(self, view):
            captured.append(view)
            return attend_dense(view)

    with system.acting(decode=False, prefix_invariant=True, policy=Watch()):
        score(system, [Scored([*ids, 0], 1, 97) for ids in text.ids[:2].tolist()])
    for layer in range(3):
        errors = torch.zeros(3, 4, dtype=torch.float64)
        for view in (view for view in captured if view.layer == layer):
            for number, name in enumerate(("vertical-slash", "block-topk", "a-shape")):
                selection = create(name, sparsity=0.6).adapter.select(view, Allowance(density=0.4), Prepared())
                out, _ = simulate(view, selection, TILES["prefill"])
                errors[number] += (out - attend_dense(view)).double().square().sum(dim=(0, 2, 3))
        assert torch.equal(prepared.state[layer], errors.argmin(dim=0))
    assert sum(prepared.facts["heads"].values()) == 12
    assert prepared.tokens == 192


def test_minference_runs_each_heads_own_pattern():
    view = views.make_view([(0, 130)], layer=1)
    mask = chosen("minference", view, sparsity=0.6)
    names = ("vertical-slash", "block-topk", "a-shape", "vertical-slash")  # as `prepared_for` gives them
    for head, name in enumerate(names):
        assert torch.equal(mask[0, head], chosen(name, view, sparsity=0.6)[0, head])


# moa


def test_the_influence_of_weights_is_that_of_leaving_them_out():
    """A loss that is linear in the output of attention: the estimate is exact, up to the sign that it drops."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 5, 5, generator=generator).tril()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    values, slope = torch.randn(5, 3, generator=generator), torch.randn(2, 5, 3, generator=generator)
    gone = torch.rand(5, 5, generator=generator) < 0.4
    gone.fill_diagonal_(False)
    kept = weights * ~gone
    after = kept / kept.sum(dim=-1, keepdim=True)
    exact = ((after - weights) @ values * slope).sum(dim=-1).abs().sum(dim=-1)
    gradient = slope @ values.T
    assert torch.allclose(change(weights, gradient, gone), exact.double(), atol=1e-5)


def test_a_span_that_leaves_nothing_out_has_no_influence():
    system = models.tiny_system("gemma2")
    ids = np.array([random_ids(40)])
    found = influences(system, ids, [1.0, 0.5], 2)
    assert sorted(found) == [0, 1, 2]
    for influence in found.values():
        assert influence.shape == (4, 2)
        assert bool((influence[:, 0] == 0).all()) and bool((influence[:, 1] > 0).all())
    assert all(parameter.grad is None for parameter in system.model.parameters())


def test_a_plan_is_the_best_of_all():
    generator = torch.Generator().manual_seed(1)
    steps = [0.5, 1.0, 1.5]
    influence = {0: torch.rand(3, 3, generator=generator).double(), 1: torch.rand(2, 3, generator=generator).double()}
    costs = torch.cat(list(influence.values())).numpy()
    best = min(
        (sum(costs[h, i] for h, i in enumerate(which)), which)
        for which in np.ndindex(*[3] * 5)
        if 4.5 <= sum(steps[i] for i in which) <= 5
    )[1]
    chosen = plan(influence, steps)
    assert tuple(torch.cat([chosen[0], chosen[1]]).tolist()) == best


def test_moa_meets_its_budget_on_a_model_and_heads_differ():
    system = models.tiny_system("llama")
    text = Calibration("random", np.array([random_ids(64, seed) for seed in range(3)]))
    member = create("moa", sparsity=0.6, sinks=2)
    system.counters.reset()
    with attached(system, [member], text) as (_, (prepared,)):
        assert len({m for multiples in prepared.state.values() for m in multiples}) > 1
        score(system, [Scored(random_ids(201), 40, 160)])
    for phase in ("prefill", "decode"):
        density = system.counters.ratio(f"{phase}.attention.kept", f"{phase}.attention.visible")
        assert density == pytest.approx(0.4, abs=0.02)


# cards of what cannot run

UNAVAILABLE = sorted(name for name in CARDS if issubclass(get(name), Unavailable))


def test_what_needs_training_is_listed():
    named = {"seer-attention", "infllm-v2", "sse", "refrag", "sea", "hax", "combiner", "routing-transformer"}
    assert named <= set(UNAVAILABLE)


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_what_cannot_run_says_what_it_needs(name):
    card = CARDS[name]
    assert card.training in ("weights", "training")
    assert card.nearest in views.RUNNING
    assert card.paper is not None and card.paper.bibtex.startswith("@")
    with pytest.raises(MissingError, match="needs"):
        create(name, **{card.budgets[0]: 8 if card.budgets[0] == "tokens" else 0.5})
    with pytest.raises(MissingError, match=card.needs[0][:20]), attached(models.tiny_system(), [create(name)]):
        pass


@pytest.mark.parametrize("name", views.RUNNING)
def test_every_running_method_has_a_paper_or_is_no_method(name):
    card = CARDS[name]
    assert (card.paper is not None) == (card.role in ("method", "comparator"))
    assert get(name).card is card
