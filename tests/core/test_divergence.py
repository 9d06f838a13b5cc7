"""KL divergence from the dense model, against the arithmetic of plain forward passes."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch

from sparsebench.adapters import create
from sparsebench.adapters.base import attached
from sparsebench.engine.distributions import Asked, divergence, logits_of
from sparsebench.metrics import Metric
from sparsebench.tasks.definition import TaskDefinition
from sparsebench.tasks.divergence import EARLY, EVERY, LATE, DivergenceTask


def definition(kind: str, data: Any, **fields: Any) -> TaskDefinition:
    column = "kl" if kind == "divergence" else "kl_late"
    metric = Metric(name="KL", column=column, higher_is_better=False, headline=True)
    common = {"task": "t", "version": 1, "title": "t", "family": "language", "type": kind, "metrics": [metric]}
    return TaskDefinition(**{**common, "data": data, **fields})


@pytest.fixture
def windows(tmp_path: Any) -> TaskDefinition:
    (tmp_path / "text.txt").write_text("".join(models.STORIES))
    return definition("divergence", [{"path": str(tmp_path / "text.txt")}], build="whole-text", window=33, windows=4)


def test_divergence_is_that_of_softmaxes() -> None:
    p, q = torch.randn(5, 11, dtype=torch.float64), torch.randn(5, 11, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    assert torch.allclose(divergence(p, q), expected, atol=1e-5)
    assert divergence(p, p).abs().max() == 0


def test_logits_are_those_of_the_model() -> None:
    system = models.tiny_system("llama")
    asked = [Asked(list(range(5, 25)), [0, 7, 19], 20), Asked(list(range(5, 15)), [9], 4)]
    found: dict[tuple[int, int], torch.Tensor] = {}
    logits_of(system, asked, lambda owners, rows: found.update(zip(owners, rows, strict=True)))
    for number, each in enumerate(asked):
        with torch.no_grad():
            whole = system.model(torch.tensor([each.tokens])).logits[0]
        for place, position in enumerate(each.positions):
            assert torch.allclose(found[number, place], whole[position], atol=1e-4)


def test_a_pruned_model_diverges_and_the_dense_one_does_not(windows: TaskDefinition) -> None:
    system = models.tiny_system("llama")
    bound = DivergenceTask(windows).bind(system.tokenizer)
    bound.observe(system)
    dense = bound.evaluate(system).samples
    assert dense["kl"].abs().max() < 1e-9 and (dense["agree"] == dense["agree.weight"]).all()
    assert (dense["kl.weight"] == len(range(0, 32, EVERY))).all()
    with attached(system, [create("magnitude", sparsity=0.5)]) as (sparse, _):
        pruned = bound.evaluate(sparse).samples
        ids = torch.tensor([bound.windows[0][1].tolist()[:-1]])
        with torch.no_grad():
            after = system.model(ids).logits[0].log_softmax(-1)
    with torch.no_grad():
        before = system.model(ids).logits[0].log_softmax(-1)
    by_hand = (before.exp() * (before - after)).sum(-1)[::EVERY].sum()
    assert float(pruned["kl"][0]) == pytest.approx(float(by_hand), rel=1e-3)
    assert (pruned["kl"] > 0).all()


def test_the_dense_model_is_seen_before_the_method_not_under_it(windows: TaskDefinition) -> None:
    """Without having been observed, a task would take the first system that it sees for the dense one."""
    system = models.tiny_system("llama")
    bound = DivergenceTask(windows).bind(system.tokenizer)
    bound.observe(system)
    with attached(system, [create("magnitude", sparsity=0.5)]) as (sparse, _):
        first = bound.evaluate(sparse).samples["kl"].sum()
    assert first > 0
    assert bound.evaluate(system).samples["kl"].sum() == pytest.approx(0, abs=1e-9)


def test_dense_text_is_the_models_own_greedy_continuation(tmp_path: Any) -> None:
    import json

    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "0", "prompt": models.STORIES[0][:50], "target": ""}) + "\n")
    system = models.tiny_system("llama")
    bound = DivergenceTask(definition("continuation", [{"path": str(tmp_path / "rows.jsonl")}])).bind(system.tokenizer)
    asked, texts = bound.sequences(system)
    ids = torch.tensor([system.tokenizer.encode(models.STORIES[0][:50])])
    with torch.no_grad():
        for token in texts[0]:
            assert int(system.model(ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    prompt = len(system.tokenizer.encode(models.STORIES[0][:50]))
    assert list(asked[0].positions) == [prompt - 1 + place for place in (*EARLY, *LATE)]
    assert asked[0].prefill == prompt - 1


@pytest.mark.parametrize(("method", "dense"), [("griffin", True), ("top-k-mlp", False)])
def test_the_dense_model_is_asked_only_where_prefill_is_dense(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, method: str, dense: bool
) -> None:
    import json

    monkeypatch.setattr("sparsebench.tasks.divergence.DENSE_PREFILL", 1e-6)  # random weights: nearly even predictions

    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "0", "prompt": models.STORIES[0][:50], "target": ""}) + "\n")
    system = models.tiny_system("llama")
    bound = DivergenceTask(definition("continuation", [{"path": str(tmp_path / "rows.jsonl")}])).bind(system.tokenizer)
    bound.observe(system)
    with attached(system, [create(method, sparsity=0.5)]) as (sparse, _):
        found = bound.evaluate(sparse).samples
        own = bound._continued(sparse)[0]
    assert found["unlikely_late"].notna().all() == dense
    if dense:
        whole = [*system.tokenizer.encode(models.STORIES[0][:50]), *own]
        with torch.no_grad():
            logprobs = system.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        by_hand = [-float(logprobs[at - 1, whole[at]]) for at in range(len(whole) - 8, len(whole))]
        assert found["unlikely_late"][0] == pytest.approx(sum(by_hand) / 8, rel=1e-3)
