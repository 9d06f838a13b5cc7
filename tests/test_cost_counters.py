"""The cost model line by line against counters: modules that ran, cached decoding, and masks that attention was given."""

from __future__ import annotations

from dataclasses import replace

import models
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparsebench import adapters
from sparsebench.account import Counted, account
from sparsebench.adapters import attached
from sparsebench.adapters.attention import _executor
from sparsebench.cost import PHASES, Request, dense_cost
from sparsebench.engine.generation import Prompt, generate
from sparsebench.engine.scoring import Scored, score

ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "qwen3", "phi3", "gemma3"]


def counts_of(model, run) -> dict[str, int]:
    """FLOPs by module, with eager attention."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}


def parts_of(system, counts: dict[str, int]) -> tuple[int, int, int]:
    """What linear layers, attention products and the LM head did."""
    linear = sum(counts.get(site.name, 0) for site in system.linears)
    head = counts.get("lm_head", counts.get("embed_out", 0))
    rotary = sum(flops for name, flops in counts.items() if name.endswith("rotary_emb"))
    return linear, counts[""] - linear - head - rotary, head


def everywhere(system):
    """The sizes without windows, of which the counter knows nothing."""
    return replace(system.shape, windows=(None,) * system.shape.layers)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("length", [17, 40])
def test_lines_of_prefill_are_what_modules_did(name, length):
    system = models.tiny_system(name)
    ids = torch.randint(0, 256, (2, length))
    counted = parts_of(system, counts_of(system.model, lambda: system.model(ids, use_cache=False, logits_to_keep=1)))
    cost = dense_cost(everywhere(system), Request(length, 0, batch=2)).prefill
    linear, attention, head = counted
    assert linear == cost.linear
    assert head == cost.head
    assert attention * (length + 1) == cost.attention * 2 * length  # eager attention has the upper triangle too


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lines_of_decode_are_what_modules_did_and_the_whole_is_both(name):
    system = models.tiny_system(name)
    shape, prompt, answer = everywhere(system), 13, 6  # within the windows: their cache drops nothing
    ids = torch.randint(0, 256, (1, prompt + answer))

    def decode():
        cache = system.model(ids[:, :prompt], use_cache=True, logits_to_keep=1).past_key_values
        for step in range(prompt, prompt + answer):
            cache = system.model(ids[:, step : step + 1], past_key_values=cache, use_cache=True).past_key_values

    spent = counts_of(system.model, decode)
    before = counts_of(system.model, lambda: system.model(ids[:, :prompt], use_cache=True, logits_to_keep=1))
    costs = dense_cost(shape, Request(prompt, answer))
    linear, attention, head = (a - b for a, b in zip(parts_of(system, spent), parts_of(system, before), strict=True))
    assert (linear, attention, head) == (costs.decode.linear, costs.decode.attention, costs.decode.head)
    assert costs.whole.flops == costs.prefill.flops + costs.decode.flops
    assert costs.whole.linear == 2 * shape.linear_params * (prompt + answer)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gemma3"])
@pytest.mark.parametrize(
    ("method", "phase"),
    [("vertical-slash", "prefill"), ("block-topk", "prefill"), ("oracle-tokens", "both"), ("quest", "decode")],
)
def test_sparse_attention_costs_the_pairs_that_attention_was_given(monkeypatch, architecture, method, phase):
    system = models.tiny_system(architecture)
    seen = {name: 0 for name in PHASES}
    real = _executor.attend_seen

    def watched(view, mask):
        pairs = int((mask & view.visible()).count_nonzero()) * view.query.shape[1] // mask.shape[1]
        seen["decode" if view.decode else "prefill"] += pairs
        return real(view, mask)

    monkeypatch.setattr(_executor, "attend_seen", watched)
    tokens = torch.randint(0, 256, (121,)).tolist()
    knobs = {"phase": phase} if phase == "both" else {}
    with attached(system, [adapters.create(method, sparsity=0.6, **knobs)]):
        system.counters.reset()
        score(system, [Scored(tokens, 40, 80)])
    counted = {name: Counted.of(system.shape, system.counters.sums, name) for name in PHASES}
    lines = {(x.phase, x.unit, x.item): x for x in account(system.shape, counted["prefill"], counted["decode"]).lines}
    pair = 2 * (system.shape.head_dim + system.shape.value_dim)
    for name in ("prefill", "decode") if phase == "both" else (phase,):
        assert seen[name] > 0
        assert lines[name, "flops", "attention"].sparse == pair * seen[name]
        assert lines[name, "flops", "attention"].sparse < 0.8 * lines[name, "flops", "attention"].dense
    assert (("decode", "flops", "index") in lines) is (method == "quest")


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral", "gpt_neo", "llama"])
@pytest.mark.parametrize("method", [None, "streaming-llm", "magnitude", "depth"])
def test_dense_pairs_end_at_windows_whatever_is_attached(name, method):
    """Of a text of 80 tokens scored from the 40th on and a prompt of 70 with 9 of answer, windows of 16 or 24."""
    system = models.tiny_system(name)
    if method == "streaming-llm" and not system.packed:
        pytest.skip("attends by itself")
    shape, tokens = system.shape, torch.randint(0, 256, (80,)).tolist()
    knobs = {"order": "spread"} if method == "depth" else {}
    stack = [adapters.create(method, sparsity=0.5, **knobs)] if method else []
    with attached(system, stack):
        system.counters.reset()
        score(system, [Scored(tokens, 40, 60)])
        generate(system, [Prompt(tokens[:70], 70, (), 9, frozenset())])
        ran, whole, sums = system.shape, system.unreduced, dict(system.counters.sums)
    counted = {phase: Counted.of(ran, sums, phase, whole) for phase in PHASES}
    answered = int(sums["decode.tokens"]) - 19  # nothing is asked of the last token
    wanted = {"prefill": [(0, 60), (0, 70)], "decode": [(60, 19), (70, answered)]}
    for phase in PHASES:
        pairs = shape.heads * sum(shape.pairs(*part) for part in wanted[phase])
        assert counted[phase].pairs * counted[phase].more == pytest.approx(pairs, rel=1e-12), phase


def test_choosing_and_repairing_are_part_of_the_sum():
    system = models.tiny_system("llama")
    quest = adapters.create("quest", sparsity=0.5)
    cost = quest.adapter.cost(system, Request(200, 20), quest.budget)
    dense = dense_cost(system.shape, Request(200, 20))
    assert cost.decode.index > 0
    assert cost.decode.flops == cost.decode.linear + cost.decode.attention + cost.decode.head + cost.decode.index
    assert cost.prefill == dense.prefill
    sirius = adapters.create("sirius", sparsity=0.5)
    repaired = sirius.adapter.cost(system, Request(200, 20), sirius.budget)
    assert repaired.decode.correction == dense.decode.flops
    assert repaired.whole.flops > dense.whole.flops
