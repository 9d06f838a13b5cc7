"""Executed attention is the simulated one: the same selection, the same output, the same counts; only less work."""

from __future__ import annotations

from typing import Any

import attention_views as views
import numpy as np
import pytest
import torch
from attention_caches import CACHE, ONCE, logprobs, phases, policy_of, some, whole_view
from attention_texts import calibration, random_ids
from attention_views import CARDS
from test_attention import DECODED, ROWS

from sparsebench.adapters import attached, create, get
from sparsebench.engine import flex
from sparsebench.engine.generation import Generator, Prompt
from sparsebench.engine.scoring import Scored
from sparsebench.errors import InputError

ARCHITECTURES = ("llama", "gemma3", "gpt_neox", "qwen2", "gemma2", "mistral")
CACHES = [*CACHE, "lserve"]
LATER = [(5, 100), (64, 80), (0, 130)]
"""Rows that begin within a tile and on its edge."""


EXECUTED = [name for name in views.RUNNING if "executed" in CARDS[name].modes]
SELECTING = [name for name in views.BY_SELECTION if name in EXECUTED]


def both(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Knobs of the simulated and of the executed method, which act in the same phases."""
    knobs = (some(name) if name in CACHES else views.some_budget(name)) | views.executed(name)
    return {**knobs, "mode": "simulated"}, knobs


def counted(system: Any) -> dict[str, float]:
    """What was counted, but for the tiles and the bytes of a kernel, which the mode decides."""
    return {k: v for k, v in system.counters.sums.items() if "tiles" not in k and "resident" not in k and v}


@pytest.mark.parametrize("name", SELECTING)
@pytest.mark.parametrize("window", [None, 24])
def test_output_and_counts_are_those_of_the_mask(name, window):
    simulated, knobs = both(name)
    shape = views.shape_of(window=window)
    for phase in get(name).executes:
        if phase not in CARDS[name].phases:
            continue
        decode = phase == "decode"
        for rows in (DECODED,) if decode else (ROWS, LATER):
            mask, real = views.policy_of(name, shape, **simulated), views.policy_of(name, shape, **knobs)
            for view in views.views_of(rows, decode=decode, window=window):
                there = (view.positions >= 0)[:, None, :, None]
                assert torch.allclose(mask.attend(view) * there, real.attend(view) * there, atol=1e-5)
            assert counted(mask.system) == pytest.approx(counted(real.system))
            sums = real.system.counters.sums
            assert sums[f"{phase}.attention.kept"] <= sums[f"{phase}.attention.tiles"]
            assert sums[f"{phase}.attention.tiles"] <= 2 * sums[f"{phase}.attention.visible"]


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("window", [None, 24])
def test_a_cache_without_what_was_evicted_gives_the_same(name, window):
    simulated, knobs = both(name)
    shape, view = views.shape_of(window=window), whole_view(window=window)
    outputs = []
    for chosen in (simulated, knobs):
        policy = policy_of(name, shape, **chosen)
        prefill, decode = phases(view)
        policy.attend(prefill)
        if name in ONCE and chosen is knobs:
            # What was evicted is never looked at again.
            for row, one in enumerate(policy.selector.stack(decode).held):
                decode.key[row, :, : one.length][~one.keys] = torch.nan
                decode.value[row, :, : one.length] = torch.nan
        outputs.append(policy.attend(decode) * (decode.positions >= 0)[:, None, :, None])
        outputs.append(counted(policy.system))
    assert torch.allclose(outputs[0], outputs[2], atol=1e-5)
    assert outputs[1] == pytest.approx(outputs[3])


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("name", ONCE)
def test_bytes_resident_are_those_of_the_tensors_that_are_left(name, window):
    """In the bytes of an entry that the dense cache beside it has, so that no cache is larger than that one."""
    policy = policy_of(name, views.shape_of(window=window), **both(name)[1])
    prefill, decode = phases(whole_view(window=window))
    policy.attend(prefill)
    policy.attend(decode)
    expected = 0.0
    for row, positions in enumerate(decode.positions):
        held = decode.states[row][0][name, 0]
        heads, kept, _ = held.more["key"].shape
        assert kept == int(held.keys.sum(dim=1).max()) < held.length or held.length < 4
        for at in positions[positions >= 0].tolist():
            places = kept + at + 1 - held.length
            expected += heads * (places if window is None else min(places, window)) * policy.shape.key_bytes
    assert policy.system.counters.sums["decode.kv_bytes_resident"] == expected
    assert policy.system.counters.ratio("decode.kv_bytes_resident", "decode.kv_bytes_resident_dense") < 1


REQUESTS = [
    Scored(random_ids(n, n), scored, prefill) for n, scored, prefill in ((150, 20, 140), (41, 9, 30), (100, 30, 72))
]
PROMPTS = [Prompt(random_ids(n, 7 * n), n - 1, (), 8, frozenset()) for n in (75, 20, 48)]


def on(system: Any, name: str, knobs: dict[str, Any]) -> Any:
    return attached(system, [create(name, **knobs)], calibration())


@pytest.mark.parametrize("name", EXECUTED)
def test_models_score_and_continue_alike(name, systems):
    """Grouped heads, windows in some layers and in all, capped scores, rows of unequal length, several lanes."""
    for architecture in ARCHITECTURES:
        system = systems[architecture]
        results = []
        for knobs in both(name):
            with on(system, name, knobs):
                results.append((logprobs(system, REQUESTS), Generator(system, PROMPTS).run()))
        assert np.abs(results[0][0] - results[1][0]).max() < 1e-4, architecture
        assert results[0][1] == results[1][1], architecture


@pytest.mark.parametrize("name", EXECUTED)
def test_full_budget_is_dense(name, systems):
    system = systems["gemma3"]
    dense = logprobs(system, REQUESTS)
    for budget in views.full_budget(name):
        with on(system, name, {**budget, **views.executed(name)}):
            assert np.abs(logprobs(system, REQUESTS) - dense).max() < 1e-4, budget


def test_a_padded_plain_batch_is_as_its_sequences(systems):
    model, ids = systems["llama"].model, [random_ids(40, 1), random_ids(23, 2)]
    for name in ("block-topk", "vertical-slash"):
        with torch.inference_mode(), on(systems["llama"], name, both(name)[1]):
            apart = [model(torch.tensor([one])).logits[0, -1] for one in ids]
            padded = torch.tensor([ids[0], [256] * 17 + ids[1]])
            mask = torch.tensor([[1] * 40, [0] * 17 + [1] * 23])
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            together = model(padded, attention_mask=mask, position_ids=positions).logits[:, -1]
        assert torch.allclose(torch.stack(apart), together, atol=1e-4)


@pytest.fixture
def compiler():
    if not flex.compiles():
        pytest.skip("needs a compiler of C++")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("window", [None, 300])
def test_flex_attention_runs_the_blocks(window):
    """Rows that begin anywhere, capped by a window or not, blocks of one size; one kernel is compiled for all of them."""
    rows = [(1000, 90), (0, 1024), (37, 1100)]
    shape = views.shape_of(window=window, layers=1, dim=16)
    for name in ("block-topk", "xattention"):
        simulated, knobs = both(name)
        mask, real = views.policy_of(name, shape, **simulated), views.policy_of(name, shape, **knobs)
        view = views.make_view(rows, window=window, dim=16)
        there = (view.positions >= 0)[:, None, :, None]
        assert torch.allclose(mask.attend(view) * there, real.attend(view) * there, atol=1e-5)
        assert counted(mask.system) == counted(real.system)


@pytest.mark.usefixtures("compiler")
def test_nothing_that_is_left_out_is_touched_by_flex_attention():
    """Keys of blocks that nobody chose may hold anything."""
    view = views.make_view([(0, 1100)], dim=16)
    chosen = torch.eye(35, dtype=torch.bool).expand(1, 4, -1, -1)
    from sparsebench.adapters.attention._gathered import execute
    from sparsebench.adapters.attention._selection import Blocks

    before, tally = execute(view, Blocks(chosen, 32))
    view.key[:, :, :32], view.value[:, :, :32] = torch.nan, torch.nan
    after, _ = execute(view, Blocks(chosen, 32))
    assert torch.equal(before[:, :, 32:], after[:, :, 32:])
    assert tally.kept == 4 * (34 * 32 * 33 // 2 + 12 * 13 // 2)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("oracle-tokens", {}), ("random-tokens", {}), ("power-attention", {"phase": "prefill"}), ("mustafar", {})],
)
def test_what_forms_no_tiles_is_refused(name, knobs):
    with pytest.raises(InputError, match="cannot be executed"):
        create(name, sparsity=0.5, mode="executed", **knobs)
    create(name, sparsity=0.5, mode="simulated", **knobs)


def test_the_mode_is_part_of_a_configuration_where_it_is_not_the_usual_one():
    assert "mode" not in create("quest", tokens=64).adapter.config
    assert create("quest", tokens=64, mode="executed").adapter.config["mode"] == "executed"


def test_decode_reads_no_key_that_is_not_selected():
    """Keys outside the pages that Quest chose may hold anything once it has chosen."""
    from sparsebench.adapters.attention._gathered import execute

    view = views.make_view([(200, 1), (90, 1)], decode=True)
    policy = views.policy_of("quest", views.shape_of(), sparsity=0.7, mode="executed")
    selection = policy.selector.select(view, policy.allowance)
    before, tally = execute(view, selection)
    read = (selection.keep(view, 0) & view.visible()).unflatten(1, (2, 2)).any(dim=2)[:, :, 0]
    view.key[~read], view.value[~read] = torch.nan, torch.nan
    after, _ = execute(view, selection)
    assert torch.equal(before, after)
    assert tally.union == int(read.sum())
