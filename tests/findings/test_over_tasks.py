"""Findings over several methods, tasks and lengths: on results made to hold them, refute them or leave them open."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_cells import RECALL, Folder

from sparsebench.errors import FieldError, InputError
from sparsebench.findings import rules
from sparsebench.findings.answer import Answer
from sparsebench.findings.over_tasks import partial_conjunction
from sparsebench.findings.reproduce import apply
from sparsebench.findings.results import Results

FEW = 400
"""Resamples: enough for verdicts that are made to be clear."""
METHODS = ("one", "two", "three", "four")
TASKS = ("a", "b", "c")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "results")


def answer(folder: Folder, rule: rules.Rule) -> Answer:
    return apply(rule, Results([folder.root]))


def _over_tasks(**changes: Any) -> dict[str, Any]:
    group = rules.Group(
        name="all",
        rows=[rules.Row(method=method) for method in METHODS],
        measured=[rules.Measured(task=task) for task in TASKS],
    )
    thresholds = {"level": 0.7, "matched_sparsity": 0.05, "margin": 0.05, "usable": 0.2, "samples": 100}
    return {"statement": "", "groups": [group], "resamples": FEW, **thresholds, **changes}


def none_best(**changes: Any) -> rules.NoneBest:
    return rules.NoneBest(kind="none-best", **_over_tasks(**changes))


def breaks_early(**changes: Any) -> rules.BreaksEarly:
    return rules.BreaksEarly(kind="breaks-early", share=0.75, **_over_tasks(**changes))


def write(
    folder: Folder, losses: dict[str, dict[str, float]], n: int = 120, dense: float = 0.8, realised: float = 0.7
) -> None:
    """Every method loses what `losses` says of it on a task, and else nothing; which answers it loses is its own."""
    draw = np.random.default_rng(3)
    for task in TASKS:
        luck = draw.random(n)
        folder.values(task, RECALL, (luck < dense).astype(float))
        for method in METHODS:
            lost = draw.random(n) < losses.get(method, {}).get(task, 0.0) / dense
            right = ((luck < dense) & ~lost).astype(float)
            sparsity = realised if method == METHODS[0] else 0.7
            folder.values(task, RECALL, right, method=method, budget={"sparsity": 0.7}, sparsity=sparsity)


EACH_FAILS_SOMEWHERE = {"one": {"a": 0.4}, "two": {"b": 0.4}, "three": {"c": 0.4}, "four": {"a": 0.4}}
ONE_IS_PERFECT = {"two": {"b": 0.4}, "three": {"c": 0.4}, "four": {"a": 0.4}}


@pytest.mark.parametrize(
    ("losses", "options", "verdict"),
    [
        (EACH_FAILS_SOMEWHERE, {}, "holds"),
        (ONE_IS_PERFECT, {"n": 400}, "refuted"),
        ({**EACH_FAILS_SOMEWHERE, "one": {"a": 0.06}}, {}, "underpowered"),
        (EACH_FAILS_SOMEWHERE, {"n": 60}, "underpowered"),
        (EACH_FAILS_SOMEWHERE, {"dense": 0.1}, "underpowered"),
    ],
)
def test_whether_a_method_is_best_everywhere(folder: Folder, losses, options, verdict) -> None:
    write(folder, losses, **options)
    found = answer(folder, none_best())
    assert found.verdict == verdict, (found.reason, found.figures)


def test_no_group_is_spared(folder: Folder) -> None:
    write(folder, {**EACH_FAILS_SOMEWHERE, "three": {}, "four": {}})
    rule = none_best()
    rows = rule.groups[0].rows
    groups = [rule.groups[0].model_copy(update={"name": n, "rows": r}) for n, r in (("x", rows[:2]), ("y", rows[2:]))]
    assert answer(folder, rule.model_copy(update={"groups": groups[:1]})).verdict == "holds"
    assert answer(folder, rule.model_copy(update={"groups": groups})).verdict != "holds"


@pytest.mark.parametrize("kind", [none_best, breaks_early])
def test_a_method_at_another_sparsity_takes_no_part(folder: Folder, kind: Any) -> None:
    write(folder, EACH_FAILS_SOMEWHERE, realised=0.3)
    found = answer(folder, kind())
    assert "3 methods on 3 of 3 tasks, without one (another sparsity)" in found.reason
    assert not any(" one " in f" {figure.what} " for figure in found.figures)


@pytest.mark.parametrize(
    ("losses", "options", "verdict"),
    [
        (EACH_FAILS_SOMEWHERE, {}, "holds"),
        ({**EACH_FAILS_SOMEWHERE, "one": {}}, {}, "holds"),
        ({}, {"n": 400}, "refuted"),
        ({"one": {"a": 0.4}, "two": {"a": 0.4}}, {"n": 400}, "refuted"),
        ({m: {"a": 0.08} for m in METHODS}, {}, "underpowered"),
        (EACH_FAILS_SOMEWHERE, {"n": 60}, "underpowered"),
        (EACH_FAILS_SOMEWHERE, {"dense": 0.1}, "underpowered"),
    ],
)
def test_whether_nearly_all_break(folder: Folder, losses, options, verdict) -> None:
    write(folder, losses, **options)
    found = answer(folder, breaks_early())
    assert found.verdict == verdict, (found.reason, found.figures)


def test_a_partial_conjunction_is_bonferroni_at_one_end_and_the_largest_at_the_other() -> None:
    p = [0.04, 0.001, 0.2, 0.01]
    assert partial_conjunction(p, 1) == pytest.approx(0.004)
    assert partial_conjunction(p, 3) == pytest.approx(0.08)
    assert partial_conjunction(p, 4) == pytest.approx(0.2)
    assert partial_conjunction([math.nan, 0.01], 2) == 1.0


def test_chance_alone_beats_nobody(tmp_path: Path) -> None:
    """Methods that are equally good: none of many tables may come out as a finding that holds."""
    held = 0
    for seed in range(10):
        folder = Folder(tmp_path / str(seed))
        draw = np.random.default_rng(seed)
        for task in TASKS:
            folder.values(task, RECALL, (draw.random(120) < 0.8).astype(float))
            for method in METHODS:
                right = (draw.random(120) < 0.6).astype(float)
                folder.values(task, RECALL, right, method=method, budget={"sparsity": 0.7}, sparsity=0.7)
        held += answer(folder, none_best()).verdict == "holds"
    assert held == 0


# Lengths

LENGTHS = [512, 1024, 2048]
LEVELS = (0.5, 0.75, 0.9, 0.95, 0.975)
KNEES = {"falls": (0.2, 0.1, 0.05), "stays": (0.1, 0.1, 0.1), "rises": (0.05, 0.1, 0.2), "never": (0.0, 0.0, 0.0)}
"""Densities at which each length begins to lose."""


def longer(**changes: Any) -> rules.LengthTolerance:
    unit = rules.LengthUnit(
        name="tokens",
        row=rules.Row(method="oracle", knobs={"phase": "decode"}),
        lengths=LENGTHS,
        tasks={task: [f"{task}-{length}" for length in LENGTHS] for task in ("a", "b")},
    )
    settings = {"loss": 0.1, "usable": 0.2, "samples": 100, "decode_queries": 64, "required": 2, "resamples": FEW}
    return rules.LengthTolerance(
        **{"kind": "length-tolerance", "statement": "", "units": [unit], **settings, **changes}
    )


def write_lengths(folder: Folder, knees: str, n: int = 200, queries: float = 70.0, dense: float = 0.8) -> None:
    draw = np.random.default_rng(9)
    for task in ("a", "b"):
        for length, knee in zip(LENGTHS, KNEES[knees], strict=True):
            luck = draw.random(n)
            folder.values(f"{task}-{length}", RECALL, (luck < dense).astype(float))
            for sparsity in LEVELS:
                lost = 0.4 * max(0.0, math.log2(knee / (1 - sparsity))) if knee else 0.0
                right = (luck < dense * (1 - min(lost, 1))).astype(float)
                knobs, facts = {"phase": "decode"}, {"sparsity": sparsity, "decode_queries": queries}
                folder.values(
                    f"{task}-{length}",
                    RECALL,
                    right,
                    method="oracle",
                    knobs=knobs,
                    budget={"sparsity": sparsity},
                    **facts,
                )


@pytest.mark.parametrize(
    ("knees", "options", "verdict"),
    [
        ("falls", {}, "holds"),
        ("stays", {}, "underpowered"),
        ("rises", {}, "refuted"),
        ("never", {}, "underpowered"),
        ("falls", {"n": 60}, "underpowered"),
        ("falls", {"queries": 16.0}, "underpowered"),
        ("falls", {"dense": 0.1}, "underpowered"),
    ],
)
def test_whether_longer_inputs_tolerate_more(folder: Folder, knees, options, verdict) -> None:
    write_lengths(folder, knees, **options)
    found = answer(folder, longer())
    assert found.verdict == verdict, found.figures


def test_the_factor_of_a_doubling_is_the_slope(folder: Folder) -> None:
    write_lengths(folder, "falls", n=2000)
    found = answer(folder, longer())
    for figure in found.figures:
        assert figure.value == pytest.approx(0.5, abs=0.08)  # between levels, a straight line stands for a curve
        assert figure.low < figure.value < figure.high


def test_a_loss_that_is_never_reached_counts_against_the_finding(folder: Folder, monkeypatch) -> None:
    """At the short length no level loses: its needed density may be anything below the least that was tried."""
    monkeypatch.setitem(KNEES, "short never", (0.0, 0.03, 0.03))
    write_lengths(folder, "short never", n=2000)
    found = answer(folder, longer())
    assert found.verdict != "holds"
    assert all(math.isinf(figure.high) for figure in found.figures)


def test_each_length_has_its_form() -> None:
    with pytest.raises((FieldError, ValueError), match="a has 1 forms for 2 lengths"):
        rules.LengthUnit(name="x", row=rules.Row(method="m"), lengths=[1, 2], tasks={"a": ["a-1"]})


def test_a_level_that_is_not_there_is_named(folder: Folder) -> None:
    write(folder, {})
    with pytest.raises(InputError, match=r"sparsity 0\.6"):
        answer(folder, none_best(level=0.6))
