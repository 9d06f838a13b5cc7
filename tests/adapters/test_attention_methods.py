"""Each attention method against what its paper says, by hand or by a plain reference, and apart from its relatives."""

from __future__ import annotations

from dataclasses import replace

import attention_views as views
import models
import numpy as np
import pytest
import torch

from sparsebench.adapters import create
from sparsebench.adapters.attention._allowance import Allowance
from sparsebench.adapters.attention._extremes import page_bounds
from sparsebench.adapters.attention.base import scaled
from sparsebench.adapters.attention.xattention import antidiagonal_mass
from sparsebench.adapters.base import prepare_timed
from sparsebench.adapters.calibration import Calibration
from sparsebench.engine.attention import attend_dense, engaged
from sparsebench.engine.flow import Flow
from sparsebench.errors import InputError


def chosen(name: str, view, **knobs) -> torch.Tensor:
    """What a method chooses in one view, [rows, heads, queries, keys]."""
    heads, kv_heads, dim = view.query.shape[1], view.key.shape[1], view.query.shape[3]
    shape = views.shape_of(heads, kv_heads, dim, window=view.window)
    return views.masks_of(views.policy_of(name, shape, **knobs), [view])[0]


def keys_of(mask: torch.Tensor, query: int, head: int = 0) -> list[int]:
    return mask[0, head, query].nonzero().flatten().tolist()


def small(count: int, query: torch.Tensor, key: torch.Tensor, **options):
    """A view of one row and one head with these queries and keys, [n, dim]."""
    view = views.make_view([(count - len(query), len(query))], heads=1, kv_heads=1, dim=query.shape[1], **options)
    return replace(view, query=query[None, None].float(), key=key[None, None].float(), scaling=1.0)


# static patterns


def test_static_patterns_by_hand():
    view = views.make_view([(0, 64)])
    assert keys_of(chosen("sliding-window", view, tokens=4), 40) == [37, 38, 39, 40]
    assert keys_of(chosen("streaming-llm", view, tokens=4, sinks=2), 40) == [0, 1, 39, 40]
    assert keys_of(chosen("streaming-llm", view, tokens=4), 40) == [0, 1, 2, 40], "the query's own key, then sinks"
    assert keys_of(chosen("a-shape", view, tokens=4), 40) == [0, 38, 39, 40], "one first key in 32, rounded up"
    tri = chosen("tri-shape", view, tokens=4, last=10, setting="paper")
    assert keys_of(tri, 53) == [0, 51, 52, 53]
    assert keys_of(tri, 54) == list(range(55))
    assert keys_of(tri, 63) == list(range(64))


def test_first_queries_read_all_they_see():
    for name in ("sliding-window", "streaming-llm", "a-shape"):
        mask = chosen(name, views.make_view([(0, 64)]), tokens=6)
        for query in range(6):
            assert keys_of(mask, query) == list(range(query + 1))


def test_sinks_outside_a_window_leave_their_room():
    view = views.make_view([(0, 40)], window=8)
    mask = chosen("streaming-llm", view, tokens=6, sinks=3)
    assert keys_of(mask, 7) == [0, 1, 2, 5, 6, 7]
    assert keys_of(mask, 8) == [1, 2, 5, 6, 7, 8]
    assert keys_of(mask, 30) == [25, 26, 27, 28, 29, 30]


def test_published_sizes_shrink_with_the_prompt():
    assert [scaled(100, n, "scaled") for n in (100_000, 32_768, 8_192, 64)] == [100, 100, 25, 1]
    assert scaled(100, 64, "paper") == 100


# vertical-slash


def test_vertical_slash_finds_a_column_and_a_diagonal():
    """Queries that attend to key 5 and to the key three before them; one forced column, one forced diagonal."""
    count = 16
    queries = torch.stack([8.0 * (torch.eye(count)[5] + torch.eye(count)[max(i - 3, 0)]) for i in range(count)])
    view = small(count, queries, torch.eye(count))
    mask = chosen("vertical-slash", view, tokens=4, slashes=1.0)
    at, keys = torch.arange(count)[:, None], torch.arange(count)
    expected = ((keys == 0) | (keys == 5) | (at - keys == 0) | (at - keys == 3)) & (keys <= at)
    assert torch.equal(mask[0, 0], expected)
    blocks = chosen("flexprefill", view, coverage=0.9, block=4, least=1, tau=0.0)
    assert not torch.equal(blocks[0, 0], expected), "blocks, not single columns"


def test_vertical_slash_looks_at_the_last_queries_only():
    view = views.make_view([(0, 120)])
    other = replace(view, query=view.query.clone())
    other.query[:, :, :90] += 1.0
    options = {"sparsity": 0.6, "queries": 30}
    assert torch.equal(chosen("vertical-slash", view, **options), chosen("vertical-slash", other, **options))
    other.query[:, :, 95] += 1.0
    assert not torch.equal(chosen("vertical-slash", view, **options), chosen("vertical-slash", other, **options))


def test_vertical_slash_in_the_papers_setting_forces_30_and_100():
    mask = chosen("vertical-slash", views.make_view([(0, 300)]), tokens=250, setting="paper")
    assert bool(mask[0, :, 250, :30].all())
    assert bool(mask[0, :, 250, 151:251].all())
    scaled_down = chosen("vertical-slash", views.make_view([(0, 300)]), tokens=250)
    assert not bool(scaled_down[0, :, 250, :30].all())


# quest


def quest_reference(view, size: int, budget: int) -> torch.Tensor:
    """Query by query and head by head over repeated keys, with the sign trick of the released simulation."""
    keys = view.key.repeat_interleave(view.group, dim=1)
    mask = torch.zeros((*view.query.shape[:3], keys.shape[2]), dtype=torch.bool)
    for row, head, query in np.ndindex(*view.query.shape[:3]):
        at = int(view.positions[row, query])
        if at < 0:
            continue
        q, k = view.query[row, head, query], keys[row, head, : at + 1]
        sign = torch.where(q > 0, 1.0, -1.0)
        pages = [(k[first : first + size] * sign).amax(dim=0) @ (q * sign) for first in range(0, at + 1, size)]
        bounds = torch.stack(pages)
        bounds[-1] = torch.inf  # the page of the query itself
        for page in bounds.topk(min(max(3, budget // size), len(pages))).indices.tolist():
            mask[row, head, query, page * size : min((page + 1) * size, at + 1)] = True
    return mask


@pytest.mark.parametrize("budget", [16, 64, 100])
def test_quest_is_the_reference(budget):
    view = views.make_view([(100, 20), (61, 7), (0, 3)], decode=True, layer=3)
    assert torch.equal(chosen("quest", view, tokens=budget), quest_reference(view, 16, max(budget, 48)))


def test_pages_of_sequences_that_grow_are_looked_at_once():
    whole = views.make_view([(0, 90)] * 3, window=None)
    memories = [[{}], [{}], [{}]]
    for step in range(40):
        rows = [0, 1, 2] if step < 20 else [2, 0]  # one leaves, and the others change places
        lengths = torch.tensor([(20, 31, 50)[row] + step for row in rows])
        longest = int(lengths.max())
        at = {"positions": lengths[:, None] - 1, "lengths": lengths, "decode": True, "known": None}
        query = torch.stack([whole.query[row, :, n - 1 : n] for row, n in zip(rows, lengths.tolist(), strict=True)])
        key = whole.key[rows, :, :longest].clone()
        view = replace(whole, query=query, key=key, value=key, states=[memories[row] for row in rows], **at)
        want = page_bounds(replace(view, states=[]), 8)
        if step:
            for row, length in enumerate(lengths.tolist()):
                key[row, :, : (length - 1) // 8 * 8] = 99.0  # pages that were full before
        got = page_bounds(view, 8)
        for row, length in enumerate(lengths.tolist()):
            full = length // 8
            assert torch.allclose(got[row, ..., :full], want[row, ..., :full], atol=1e-5), (step, row)


def test_quest_bounds_hold_and_are_reached():
    view = views.make_view([(60, 4)], decode=True)
    bounds = page_bounds(view, 8)
    scores = view.query @ view.key.repeat_interleave(2, dim=1).transpose(-1, -2)
    for page in range(8):
        assert bool((bounds[..., page, None] >= scores[..., 8 * page : 8 * page + 8] - 1e-4).all())
    same = replace(view, key=view.key[:, :, :1].expand_as(view.key))
    scores = same.query @ same.key.repeat_interleave(2, dim=1).transpose(-1, -2)
    assert torch.allclose(page_bounds(same, 8), scores[..., ::8], atol=1e-4)
    cut = replace(same, key=same.key[:, :, :60], value=same.value[:, :, :60])
    assert bool((page_bounds(cut, 8)[..., 7] == torch.inf).all()), "a page that is not full is read by who sees it"


def test_quest_takes_a_page_for_its_extremes_where_the_oracle_takes_the_truth():
    keys = torch.tensor([[9.0, -9], [-9, 9], [5, 5], [5, 5], [0, 0], [0, 0]])
    view = small(6, torch.tensor([[1.0, 1.0]]), keys, decode=True)
    assert keys_of(chosen("quest", view, tokens=4, page=2, least=1), 0) == [0, 1, 4, 5]
    assert keys_of(chosen("oracle-blocks", view, tokens=4, block=2), 0) == [2, 3, 4, 5]
    assert keys_of(chosen("oracle-tokens", view, tokens=2), 0) == [2, 3]


def test_quest_shared_pages_are_one_choice_for_a_group():
    view = views.make_view([(200, 6)], decode=True, layer=2)
    apart, shared = (chosen("quest", view, sparsity=0.7, share=share) for share in ("head", "group"))
    assert not torch.equal(apart[:, 0], apart[:, 1])
    assert torch.equal(shared[:, 0], shared[:, 1])
    assert torch.equal(shared[:, 2], shared[:, 3])
    assert not torch.equal(shared[:, 0], shared[:, 2])
    policy = views.policy_of("quest", views.shape_of(), sparsity=0.7, share="group")
    policy.attend(view)
    assert (
        policy.system.counters.sums["decode.attention.union"] * 2
        == policy.system.counters.sums["decode.attention.kept"]
    )


def test_quest_leaves_the_first_two_layers_dense():
    method = create("quest", tokens=64).adapter
    assert [sorted(method.dense_layers(layers)) for layers in (32, 30, 16, 12, 3)] == [[0, 1], [0, 1], [0, 1], [0], []]
    policy = views.policy_of("quest", views.shape_of(layers=16), tokens=48)
    view = views.make_view([(200, 3)], decode=True, layer=1)
    assert torch.allclose(policy.attend(view), attend_dense(view))
    sums = policy.system.counters.sums
    assert sums["decode.attention.kept"] == sums["decode.attention.visible"]
    assert sums["decode.attention.index_flops"] == 0


def test_quests_index_by_hand():
    """At positions 31 and 32 a query sees 2 and 3 pages: two products of width 8 for each of 4 heads."""
    flops, read = create("quest").adapter.index(views.shape_of(), 31, 2, None)
    assert flops == 2 * 2 * 8 * 4 * 5
    assert read == 2 * 8 * 2 * 2 * 5
    assert create("quest").adapter.index(views.shape_of(), 31, 1, 8) == (2 * 2 * 8 * 4, 2 * 8 * 2 * 2)


# controls and bounds


@pytest.mark.parametrize("name", ["random-blocks", "random-tokens"])
@pytest.mark.parametrize("decode", [False, True])
def test_random_selections_nest_and_differ(name, decode):
    view = views.make_view([(150, 40)] if decode else [(0, 160)], decode=decode, layer=2)
    before = None
    for sparsity in (0.9, 0.75, 0.5, 0.2, 0.0):
        mask = chosen(name, view, sparsity=sparsity)
        assert before is None or bool((mask | ~before).all()), "what a small budget reads, a larger one reads too"
        before = mask
    mask = chosen(name, view, sparsity=0.75)
    assert torch.equal(mask, chosen(name, view, sparsity=0.75))
    assert not torch.equal(mask, chosen(name, view, sparsity=0.75, seed=1))
    assert not torch.equal(mask, chosen(name, replace(view, layer=3), sparsity=0.75))
    assert not torch.equal(mask[:, 0], mask[:, 1])
    own = torch.arange(view.key.shape[2]) == view.positions[0][:, None]
    assert bool(mask[0, :, own].all())


def test_random_blocks_are_blocks_and_uniform():
    mask = chosen("random-blocks", views.make_view([(0, 256)], heads=32, kv_heads=32), sparsity=0.5, phase="prefill")
    tiles = mask[0].unflatten(2, (16, 16)).unflatten(1, (16, 16)).sum(dim=(2, 4))
    assert set(tiles.unique().tolist()) == {0, 136, 256}
    below = torch.ones(16, 16).tril(-1).bool()
    last = (tiles[:, 15] > 0).float().mean(dim=0)[:15]  # share of heads in which the last queries read each block
    assert float(last.std()) < 0.15
    assert float((tiles[:, below] > 0).float().mean()) == pytest.approx(
        (0.5 * 32896 - 16 * 136) / (120 * 256), abs=0.01
    )


def test_oracle_tokens_are_the_top_weights_and_cover():
    logits = torch.tensor([0.1, 3.0, 0.2, 2.0, 1.0])
    view = small(5, torch.tensor([[1.0]]), logits[:, None], decode=True)
    assert keys_of(chosen("oracle-tokens", view, tokens=2), 0) == [1, 3]
    assert keys_of(chosen("oracle-tokens", view, tokens=3), 0) == [1, 3, 4]
    weights = torch.softmax(logits, dim=0)  # 0.595, 0.219, 0.081 and two below
    assert keys_of(chosen("oracle-tokens", view, coverage=float(weights[1]) - 0.01), 0) == [1]
    assert keys_of(chosen("oracle-tokens", view, coverage=float(weights[1]) + 0.01), 0) == [1, 3]
    assert keys_of(chosen("oracle-tokens", view, coverage=1.0), 0) == [0, 1, 2, 3, 4]


def test_oracle_blocks_sum_the_weights_of_a_block():
    view = views.make_view([(0, 48)], heads=2, kv_heads=1)
    mask = chosen("oracle-blocks", view, tokens=32, block=16, phase="prefill")
    weights = torch.softmax(
        (view.query @ view.key.expand(-1, 2, -1, -1).transpose(-1, -2) * view.scaling).masked_fill(
            ~view.visible(), -torch.inf
        ),
        dim=-1,
    )
    for head in range(2):
        sums = [float(weights[0, head, 32:, j : j + 16].sum()) for j in (0, 16)]
        best = int(np.argmax(sums))
        assert keys_of(mask, 47, head) == [*range(16 * best, 16 * best + 16), *range(32, 48)]


def test_block_topk_compares_means():
    """The mean of a block hides a single strong key; the oracle and the antidiagonals do not miss it."""
    keys = torch.zeros(16, 2)
    keys[1], keys[2] = torch.tensor([20.0, 0]), torch.tensor([-20.0, 0])  # in block 0, with a mean of 0
    keys[4:8] = torch.tensor([1.0, 0])
    queries = torch.tensor([[1.0, 0.0]]).expand(16, 2)
    view = small(16, queries, keys)
    options = {"tokens": 8, "block": 4}
    assert keys_of(chosen("block-topk", view, **options), 13) == [4, 5, 6, 7, 12, 13]
    assert keys_of(chosen("oracle-blocks", view, **options), 13) == [0, 1, 2, 3, 12, 13]


# xattention


def test_antidiagonals_by_hand():
    view = views.make_view([(0, 22)], heads=2, kv_heads=1, dim=4)
    mass = antidiagonal_mass(view, size=8, stride=4)[0]
    query, key = torch.zeros(2, 24, 4), torch.zeros(24, 4)
    query[:, :22], key[:22] = view.query[0], view.key[0, 0]
    for head in range(2):
        estimate = torch.full((6, 6), -torch.inf)
        for i in range(6):
            for j in range(i + 1):
                estimate[i, j] = sum(query[head, 4 * i + 3 - k] @ key[4 * j + k] for k in range(4)) * view.scaling / 4
        weights = torch.softmax(estimate, dim=-1)
        expected = weights.reshape(3, 2, 3, 2).sum(dim=(1, 3))
        assert torch.allclose(mass[head], expected, atol=1e-5)


def test_xattention_takes_the_fewest_blocks_beside_sink_and_diagonal():
    view = views.make_view([(0, 96)], heads=1, kv_heads=1, layer=1)
    mass = antidiagonal_mass(view, 8, 4)[0, 0]
    mask = chosen("xattention", view, coverage=0.8, block=8, stride=4)
    blocks = mask[0, 0].unflatten(1, (12, 8)).unflatten(0, (12, 8)).any(dim=3).any(dim=1)
    for row in range(12):
        kept = blocks[row].nonzero().flatten().tolist()
        assert 0 in kept and row in kept
        free = sorted((float(mass[row, j]) for j in range(1, row)), reverse=True)
        held, count = float(mass[row, 0] + mass[row, row]) if row else float(mass[0, 0]), 0
        while held < 0.8 * float(mass[row].sum()) and count < len(free):
            held, count = held + free[count], count + 1
        assert len(kept) == count + (2 if row else 1)
        if count:
            assert min(float(mass[row, j]) for j in kept if 0 < j < row) == pytest.approx(free[count - 1])


def test_xattention_sees_what_means_hide():
    keys = torch.zeros(32, 2)
    keys[9], keys[10] = torch.tensor([30.0, 0]), torch.tensor([-30.0, 0])  # block 1, with a mean of 0
    keys[16:24] = torch.tensor([0.1, 0])
    queries = torch.tensor([[0.0, 0.0], [0, 0], [1.0, 0.0], [0, 0]]).repeat(8, 1)  # meets keys 1, 5, 9 ... of a stride
    view = small(32, queries, keys)
    assert keys_of(chosen("xattention", view, coverage=0.5, block=8, stride=4), 26)[8:16] == list(range(8, 16))
    assert 9 not in keys_of(chosen("block-topk", view, tokens=16, block=8), 26)


# flexprefill


def flexprefill_reference(view, size: int, gamma: float, tau: float, least: int) -> tuple[torch.Tensor, list[bool]]:
    """One row and one head at a time, with loops; the length is a multiple of the block."""
    count = view.key.shape[2]
    blocks = count // size
    mask = torch.zeros((view.query.shape[1], count, count), dtype=torch.bool)
    branches = []
    for head in range(view.query.shape[1]):
        q, k = view.query[0, head], view.key[0, head // view.group]
        logits = (q[-size:] @ k.T * view.scaling).masked_fill(
            ~torch.ones(count, count).tril().bool()[-size:], -torch.inf
        )
        weights = torch.softmax(logits, dim=-1)
        vertical = weights.mean(dim=0)
        slash = torch.zeros(count)
        for i in range(size):
            for j in range(count - size + i + 1):
                slash[count - size + i - j] += weights[i, j] / size
        pooled_k = k.reshape(blocks, size, -1).mean(dim=1)
        estimate = torch.softmax(q[-size:].mean(dim=0) @ pooled_k.T * view.scaling, dim=-1)
        truth = vertical.reshape(blocks, size).sum(dim=1)
        middle = (estimate + truth) / 2
        divergence = sum(0.5 * float((p * (p / middle).log()).sum()) for p in (estimate, truth))
        aware = divergence**0.5 < tau
        branches.append(aware)

        def cover(x: torch.Tensor) -> int:
            return int((x.sort(descending=True).values.cumsum(0) <= gamma).sum()) + 1

        wide = least if aware else max(least, cover(vertical) // size + 1)
        deep = least if aware else max(least, cover(slash) // size + 1)
        truth[0] = along = torch.inf
        by_distance = slash.reshape(blocks, size).sum(dim=1)
        by_distance[0] = along
        kept = torch.zeros(blocks, blocks, dtype=torch.bool)
        for j in truth.topk(min(wide, blocks)).indices.tolist():
            kept[:, j] = True
        for d in by_distance.topk(min(deep, blocks)).indices.tolist():
            kept |= torch.ones(blocks, blocks).tril(-d).bool() & ~torch.ones(blocks, blocks).tril(-d - 1).bool()
        if aware:
            pooled_q = q.reshape(blocks, size, -1).mean(dim=1)
            mapped = (pooled_q @ pooled_k.T * view.scaling).masked_fill(
                ~torch.ones(blocks, blocks).tril().bool(), -torch.inf
            )
            flat = torch.softmax(mapped, dim=-1).flatten()
            held = 0.0
            for place in flat.argsort(descending=True).tolist():
                if held >= gamma * blocks:
                    break
                kept[place // blocks, place % blocks] = True
                held += float(flat[place])
        mask[head] = kept.repeat_interleave(size, 0).repeat_interleave(size, 1)
    return mask & torch.ones(count, count).tril().bool(), branches


@pytest.mark.parametrize(("tau", "aware"), [(0.0, [False] * 4), (0.2, [True, False, False, True]), (2.0, [True] * 4)])
def test_flexprefill_is_the_reference_in_both_branches(tau, aware):
    view = views.make_view([(0, 128)], layer=4)
    expected, branches = flexprefill_reference(view, 8, 0.7, tau, 2)
    assert branches == aware
    mask = chosen("flexprefill", view, coverage=0.7, block=8, tau=tau, least=16, setting="paper")
    assert torch.equal(mask[0], expected)


def test_flexprefill_is_dense_on_short_prompts():
    view = views.make_view([(0, 64)])
    assert bool(chosen("flexprefill", view, coverage=0.3)[view.visible().expand(1, 4, -1, -1)].all())
    assert create("flexprefill").adapter.index(views.shape_of(), 0, 64, None) == (0, 0)


# anchor attention


def anchor_reference(view, size: int, step: int, theta: float) -> torch.Tensor:
    count, group = view.key.shape[2], size * step
    keys = view.key.repeat_interleave(view.group, dim=1)[0]
    mask = torch.zeros((view.query.shape[1], count, count), dtype=torch.bool)
    for head in range(view.query.shape[1]):
        scores = view.query[0, head] @ keys[head].T * view.scaling
        for begin in range(0, count, group):
            end = min(begin + group, count)
            columns = torch.zeros(count, dtype=torch.bool)
            columns[:size] = True
            for low in range(begin, end, size):
                high = min(low + size, end)
                near = [
                    max(float(scores[i, j]) for j in range(i + 1) if j < size or j >= begin) for i in range(low, high)
                ]
                pooled = view.query[0, head, low:high].mean(dim=0) @ keys[head].T * view.scaling
                columns |= pooled >= sum(near) / len(near) - theta
            columns[begin:] = True
            mask[head, begin:end] = columns
    return mask & torch.ones(count, count).tril().bool()


@pytest.mark.parametrize("theta", [-5.0, 0.5, 2.0])
def test_anchor_attention_is_the_reference(theta):
    view = views.make_view([(0, 83)], layer=1)
    mask = chosen("anchor-attention", view, theta=theta, block=4, step=3)
    assert torch.equal(mask[0], anchor_reference(view, 4, 3, theta))
    if theta == -5.0:  # nothing comes near: the first block and the local group only
        assert keys_of(mask, 40) == [0, 1, 2, 3, 36, 37, 38, 39, 40]


# methods with a memory


def test_tidal_decode_reads_what_two_layers_chose():
    method = create("tidal-decode").adapter
    assert method.choosing(32) == (2, 9)
    assert sorted(method.dense_layers(32)) == [0, 1, 2, 9]
    assert method.choosing(views.LAYERS) == (0, 1)
    several = views.views_of([(60, 5), (33, 3)], decode=True)
    other = views.views_of([(80, 4)], decode=True, seed=1)
    shape = replace(views.shape_of(), layers=12, windows=(None,) * 12)
    policy = views.policy_of("tidal-decode", shape, tokens=10)
    assert policy.method.choosing(12) == (1, 3)
    masks: dict[tuple[int, int], torch.Tensor] = {}
    oracle = {}
    for layer in range(12):
        for turn, group in enumerate((several, other)):  # two groups of rows, in turns, as the engine has them
            view = replace(group[layer % views.LAYERS], layer=layer)
            (masks[layer, turn],) = views.masks_of(policy, [view])
            oracle[layer, turn] = chosen("oracle-tokens", view, tokens=10)
    for turn in range(2):
        assert torch.equal(masks[2, turn], oracle[1, turn])
        assert not torch.equal(oracle[1, turn], oracle[3, turn])
        assert all(torch.equal(masks[layer, turn], oracle[3, turn]) for layer in range(4, 12))
    again = views.views_of([(60, 5), (33, 3)], decode=True, seed=2)
    views.masks_of(policy, [replace(again[0], layer=0), replace(again[1], layer=1)])
    (mask,) = views.masks_of(policy, [replace(again[2], layer=2)])
    assert torch.equal(mask, chosen("oracle-tokens", again[1], tokens=10)), "the next pass chooses anew"


def test_double_sparsity_learns_the_channels_with_the_largest_products():
    system = models.tiny_system("llama")
    ids = np.array(
        [torch.randint(0, 256, (24,), generator=torch.Generator().manual_seed(s)).tolist() for s in range(3)]
    )
    method = create("double-sparsity", factor=4, sparsity=0.5).adapter
    prepared = prepare_timed(method, system, Calibration("random", ids))
    seen: dict[int, list] = {}

    class Watch:
        def attend(self, view):
            seen.setdefault(view.layer, []).append(view.query * view.key.repeat_interleave(view.group, dim=1))
            return attend_dense(view)

    with torch.no_grad(), engaged(system.model, Flow(Watch())):
        system.model(torch.tensor(ids.tolist()), use_cache=False)
    assert prepared.tokens == 72
    assert sorted(prepared.state) == [0, 1, 2]
    for layer, (products,) in seen.items():
        expected = products.abs().mean(dim=(0, 2)).topk(3, dim=-1).indices.sort(dim=-1).values
        assert torch.equal(prepared.state[layer], expected)
    with pytest.raises(InputError, match="calibration"):
        prepare_timed(method, system, None)


def test_double_sparsity_scores_over_its_channels_only():
    view = views.make_view([(50, 4)], decode=True, layer=1)
    shape = views.shape_of()
    method = create("double-sparsity", factor=4, tokens=9)
    policy = views.policy_of("double-sparsity", shape, factor=4, tokens=9)
    labels = torch.tensor([[1, 6], [0, 7], [2, 3], [4, 5]])
    policy.selector.prepared.state[1] = labels
    (mask,) = views.masks_of(policy, [view])
    keys = view.key.repeat_interleave(2, dim=1)
    for head in range(4):
        for query in range(4):
            scores = keys[0, head, : 51 + query, labels[head]] @ view.query[0, head, query, labels[head]]
            assert keys_of(mask, query, head) == sorted(scores.topk(9).indices.tolist())
    assert method.adapter.index(shape, 50, 4, None)[0] == 2 * 4 * 2 * (51 + 52 + 53 + 54)
    assert torch.equal(chosen("double-sparsity", view, factor=1, tokens=9), chosen("oracle-tokens", view, tokens=9)), (
        "with all channels it is the oracle"
    )


# knobs and budgets


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("quest", {"pages": 3}, "page"),
        ("quest", {"page": 0}, "page"),
        ("quest", {"coverage": 0.5}, "tokens"),
        ("streaming-llm", {"phase": "training"}, "phase"),
        ("xattention", {"sparsity": 0.5}, "coverage"),
        ("anchor-attention", {"sparsity": 0.5}, "no budget"),
        ("xattention", {"stride": 5}, "multiple of stride"),
        ("xattention", {"stride": 64}, "multiple of stride"),
        ("lserve", {"part": 16, "page": 8}, "multiple of part"),
        ("lserve", {"part": 12, "page": 32}, "multiple of part"),
        ("lserve", {"every": 33, "page": 32}, "at most page"),
        ("snapkv", {"kernel": 6}, "odd"),
        ("pyramidkv", {"kernel": 2}, "odd"),
    ],
)
def test_bad_knobs_and_budgets_say_what_is_right(name, knobs, message):
    with pytest.raises(InputError, match=message):
        create(name, **knobs)


def test_a_phase_knob_narrows_the_phases():
    assert create("streaming-llm").adapter.phases() == ("prefill", "decode")
    assert create("streaming-llm", phase="decode").adapter.phases() == ("decode",)
    policy = views.policy_of("streaming-llm", views.shape_of(), phase="decode", sparsity=0.9)
    view = views.make_view([(0, 50)])
    assert torch.allclose(policy.attend(view), attend_dense(view))
    assert policy.system.counters.ratio("prefill.attention.kept", "prefill.attention.visible") == 1


def test_a_share_of_a_prompt_shares_no_prefixes_but_a_number_of_tokens_does():
    share, number = create("streaming-llm", sparsity=0.5), create("streaming-llm", tokens=64)
    assert not share.adapter.shares_prefixes(share.budget)
    assert number.adapter.shares_prefixes(number.budget)
    decode = create("streaming-llm", phase="decode", sparsity=0.5)
    assert decode.adapter.shares_prefixes(decode.budget)
    slash = create("vertical-slash", tokens=64)
    assert not slash.adapter.shares_prefixes(slash.budget)


def test_allowances_of_budgets():
    assert Allowance.of(create("quest", sparsity=0.75).budget) == Allowance(density=0.25)
    assert Allowance.of(create("quest", tokens=64).budget) == Allowance(tokens=64)
    assert Allowance.of(create("xattention", coverage=0.9).budget) == Allowance(coverage=0.9)


def test_power_attention_by_hand():
    """In blocks of 2, a query at 21 is in block 10 and reads blocks 10, 9, 8, 6, 2 and 0, then recent keys."""
    view = views.make_view([(0, 22)])
    blocks = [0, 1, 4, 5, 12, 13, 16, 17, 18, 19, 20, 21]
    assert keys_of(chosen("power-attention", view, tokens=12, block=2), 21) == blocks
    assert keys_of(chosen("power-attention", view, tokens=14, block=2), 21) == sorted([*blocks, 14, 15])
    assert keys_of(chosen("power-attention", view, tokens=5, block=2), 21) == [0, 1, 19, 20, 21]
    assert keys_of(chosen("power-attention", view, tokens=1, block=2), 21) == [21]
