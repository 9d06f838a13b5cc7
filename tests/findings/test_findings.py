"""Findings: their definitions, and each kind of rule on results that are made to hold it, refute it or leave it open."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_cells import ACCURACY, KL, RECALL, Folder

from sparsebench.errors import CellsFailedError, InputError, IntegrityError, UnknownNameError
from sparsebench.findings import rules
from sparsebench.findings.answer import Answer, of_lines
from sparsebench.findings.definition import findings, from_yaml, load, names, rule_hash
from sparsebench.findings.interpolation import fold_of, held_out_scores
from sparsebench.findings.joint import Percentile
from sparsebench.findings.piecewise import read_at, where_reached
from sparsebench.findings.reproduce import apply
from sparsebench.findings.results import Results
from sparsebench.findings.text import to_json
from sparsebench.suite import Member
from sparsebench.yaml_source import parse_yaml

WANDA = rules.Row(method="wanda")
FEW = 400
"""Resamples: enough for verdicts that are made to be clear."""


def answer(folder: Folder, rule: rules.Rule) -> Answer:
    return apply(rule, Results([folder.root]))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "results")


# Definitions


def test_every_finding_has_a_rule_with_its_hash_and_a_suite_that_runs_what_the_rule_asks_for() -> None:
    for finding in findings():
        assert finding.papers[0].url.startswith("https://arxiv.org/abs/")
        asked = {task for task in _named_tasks(finding.rule.model_dump())}
        run = {entry.task for grid in finding.suite.grids for entry in grid.tasks}
        assert asked <= run, finding.finding
        methods = {row for row in _named_methods(finding.rule.model_dump())}
        there = {m.method for grid in finding.suite.grids for m in grid.methods}
        assert methods <= there, finding.finding
        assert finding.suite.suite == finding.finding


def _named_tasks(data: object) -> set[str]:
    if isinstance(data, dict):
        own = {data["task"]} if isinstance(data.get("task"), str) else set()
        forms = {f for v in data.get("tasks", {}).values() for f in v} if isinstance(data.get("tasks"), dict) else set()
        return own | forms | set().union(*(_named_tasks(v) for v in data.values()), set())
    return set().union(*(_named_tasks(v) for v in data), set()) if isinstance(data, list) else set()


def _named_methods(data: object) -> set[str]:
    if isinstance(data, dict):
        own = {data["method"]} if isinstance(data.get("method"), str) and "knobs" in data else set()
        return own | set().union(*(_named_methods(v) for k, v in data.items() if k != "knobs"), set())
    return set().union(*(_named_methods(v) for v in data), set()) if isinstance(data, list) else set()


def test_a_rule_that_was_changed_is_refused() -> None:
    from importlib.resources import files

    text = files("sparsebench.suites").joinpath("findings/dsnot-beats-wanda.yaml").read_text()
    assert from_yaml(parse_yaml(text, "f.yaml")).rule.kind == "superiority"
    softer = text.replace("collapse_ratio: 10\n", "collapse_ratio: 1000\n")
    with pytest.raises(IntegrityError, match="the rule has sha256"):
        from_yaml(parse_yaml(softer, "f.yaml"))


def test_an_error_in_the_suite_of_a_finding_names_its_line() -> None:
    from importlib.resources import files

    text = files("sparsebench.suites").joinpath("findings/wina-beats-teal.yaml").read_text()
    line = next(
        i for i, row in enumerate(text.splitlines(), 1) if "method: teal, knobs: {rule: topk, scope: all}, b" in row
    )
    wrong = text.replace(
        "- {method: teal, knobs: {rule: topk, scope: all}, b", "- {method: teel, knobs: {rule: topk, scope: all}, b"
    )
    with pytest.raises(InputError, match=f"f.yaml:{line}: .*'teel'"):
        from_yaml(parse_yaml(wrong, "f.yaml"))


def test_an_unknown_finding_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="wina-beats-teal"):
        load("wina-beat-teal")
    assert len(names()) >= 10


def test_a_rule_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert rule_hash({"a": 1, "b": [2]}) == rule_hash({"b": [2], "a": 1}) != rule_hash({"a": 1, "b": [3]})


# Parts


def test_lines_of_which_one_is_refuted_refute() -> None:
    assert of_lines(["holds", "collapsed"]) == "holds"
    assert of_lines(["holds", "underpowered"]) == "underpowered"
    assert of_lines(["underpowered", "refuted", "holds"]) == "refuted"
    assert of_lines(["collapsed"]) == of_lines([]) == "collapsed"


def test_curves_are_read_between_their_points() -> None:
    places = np.array([0.0, 0.5, 1.0])
    heights = np.array([[1.0, 3.0, 2.0], [1.0, 1.5, 2.0], [5.0, 5.0, 5.0]])
    at = where_reached(places, heights, np.array([2.0, 3.0, 4.0]))
    assert at[0] == 0.25  # the first time, on the way up
    assert math.isnan(at[1])
    assert at[2] == 0.0
    assert read_at(places, heights, np.array([0.25, 1.0, 1.1]))[:2].tolist() == [2.0, 2.0]
    assert math.isnan(read_at(places, heights, np.array([0.25, 1.0, 1.1]))[2])


def test_draws_without_a_value_count_against_every_conclusion() -> None:
    whole, broken = Percentile(np.linspace(1, 2, 999)), Percentile(np.r_[np.linspace(1, 2, 949), np.full(50, np.nan)])
    assert 1 < whole.lower(0.05) < 1.1 < 1.9 < whole.upper(0.05) < 2
    assert broken.lower(0.05) == -math.inf and broken.upper(0.05) == math.inf
    assert broken.p_above(0) > 0.05 and whole.p_above(0) == 0.001
    for x in (0.9, 1.2, 1.9):
        assert (whole.lower(0.05) > x) == (whole.p_above(x) <= 0.05)


def test_a_weight_is_never_chosen_by_the_queries_that_it_is_reported_on() -> None:
    table = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    folds = np.array([0, 0, 1, 1])
    assert held_out_scores(table, folds).tolist() == [0, 0, 0, 0]
    assert set(fold_of([str(i) for i in range(200)], 10)) == set(range(10))


# Rules


def matched(**changes: object) -> rules.Matched:
    return rules.Matched(
        **{
            "kind": "matched-perplexity",
            "statement": "",
            "method": WANDA,
            "pattern": "2:4",
            "knowledge": rules.Measured(task="qa"),
            "perplexity": rules.Measured(task="text"),
            "effect": 0.02,
            "resamples": FEW,
            **changes,
        }
    )


def write_matched(
    folder: Folder, pattern_nll: float, pattern_right: float, right: tuple[float, ...], n: int = 4000
) -> None:
    """Unstructured levels .5 and .7 with losses 3.5 and 4; shares of right answers of dense, those and the pattern."""
    draw = np.random.default_rng(0)
    luck, clusters = draw.random(n), np.arange(n) % 40
    base = draw.normal(0, 0.2, 300)
    rows = [({}, 3.0, right[0]), ({"sparsity": 0.5}, 3.5, right[1]), ({"sparsity": 0.7}, 4.0, right[2])]
    for budget, nll, share in (*rows, ({"pattern": "2:4"}, pattern_nll, pattern_right)):
        cell = {"method": "wanda", "budget": budget} if budget else {}
        folder.windows("text", nll + base, **cell)
        folder.questions("qa", luck < share, clusters, **cell)


@pytest.mark.parametrize(
    ("pattern", "right", "verdict"),
    [
        ((3.75, 0.10), (0.5, 0.4, 0.2), "holds"),
        ((3.75, 0.30), (0.5, 0.4, 0.2), "refuted"),
        ((3.75, 0.004), (0.5, 0.01, 0.005), "collapsed"),
        ((4.5, 0.1), (0.5, 0.4, 0.2), "underpowered"),
    ],
)
def test_a_pattern_is_compared_at_its_own_perplexity(folder: Folder, pattern, right, verdict) -> None:
    write_matched(folder, *pattern, right)
    found = answer(folder, matched())
    assert found.verdict == verdict, found
    if verdict == "holds":
        figures = {f.what: f.value for f in found.figures}
        assert figures["unstructured sparsity of that perplexity"] == pytest.approx(0.6)
        assert figures["accuracy, unstructured at that perplexity"] == pytest.approx(0.3, abs=0.01)
        assert figures["perplexity of wanda 2:4 over dense"] == pytest.approx(math.exp(0.75))


def test_few_questions_leave_a_pattern_open(folder: Folder) -> None:
    write_matched(folder, 3.75, 0.25, (0.5, 0.4, 0.2), n=60)
    assert answer(folder, matched()).verdict == "underpowered"


def first_to_fall(**changes: object) -> rules.FirstToFall:
    return rules.FirstToFall(
        **{
            "kind": "first-to-fall",
            "statement": "",
            "methods": [WANDA],
            "knowledge": rules.Measured(task="qa"),
            "perplexities": [rules.Measured(task="text"), rules.Measured(task="web")],
            "perplexity_ratio": 1.05,
            "knowledge_loss": 0.05,
            "share": 0.95,
            "required": 1,
            "resamples": FEW,
            **changes,
        }
    )


def write_falls(folder: Folder, ratios: tuple[float, ...], losses: tuple[float, ...], n: int = 8000) -> None:
    """Levels .1, .2, .3 with these perplexity ratios and relative losses of accuracy."""
    draw = np.random.default_rng(1)
    luck, clusters = draw.random(n), np.arange(n) % 50
    base, noise = draw.normal(3, 0.3, 300), draw.normal(0, 0.02, (3, 300))
    for k, (ratio, loss) in enumerate(zip((1.0, *ratios), (0.0, *losses), strict=True)):
        cell = {"method": "wanda", "budget": {"sparsity": round(0.1 * k, 1)}} if k else {}
        for task in ("text", "web"):
            folder.windows(task, base + math.log(ratio) + (noise[k - 1] if k else 0), **cell)
        folder.questions("qa", luck < 0.5 * (1 - loss), clusters, **cell)


@pytest.mark.parametrize(
    ("ratios", "losses", "n", "verdict"),
    [
        ((1.01, 1.02, 1.2), (0.01, 0.15, 0.4), 8000, "holds"),
        ((1.01, 1.2, 1.3), (0.0, 0.01, 0.01), 8000, "refuted"),
        ((1.01, 1.02, 1.2), (0.01, 0.05, 0.4), 300, "underpowered"),
    ],
)
def test_what_falls_first(folder: Folder, ratios, losses, n, verdict) -> None:
    write_falls(folder, ratios, losses, n)
    found = answer(folder, first_to_fall())
    assert found.verdict == verdict, found.figures


def test_a_bound_that_fails_for_want_of_questions_is_no_loss(folder: Folder) -> None:
    """With 100 questions the upper bound of a loss of nothing exceeds 5 %, and the rule's bounds alone would hold."""
    write_falls(folder, (1.0, 1.0, 1.01), (0.02, 0.02, 0.02), n=100)
    found = answer(folder, first_to_fall())
    assert found.verdict == "underpowered"
    assert found.figures[0].value >= 0.95


def knee() -> rules.Knee:
    curve = rules.Curve(row=WANDA, measured=rules.Measured(task="text"))
    return rules.Knee(kind="knee", statement="", curves=[curve], levels=16, widest=0.1, resamples=FEW)


@pytest.mark.parametrize("shape", ["lines", "smooth", "few"])
def test_a_knee_is_no_bend(folder: Folder, shape: str) -> None:
    draw = np.random.default_rng(2)
    base = draw.normal(0, 0.3, 300)
    levels = np.linspace(0.05, 0.8, 16) if shape != "few" else np.linspace(0.05, 0.8, 8)
    for level in levels:
        lines = 3 + 0.1 * level + 6 * max(0, level - 0.43)
        height = 3 + 2 / (1 + math.exp(-(level - 0.45) / 0.08)) if shape == "smooth" else lines
        noise = draw.normal(0, 0.001, 300)
        folder.windows("text", height + base + noise, method="wanda", budget={"sparsity": round(float(level), 4)})
    expected = {"lines": "holds", "smooth": "refuted", "few": "underpowered"}[shape]
    assert answer(folder, knee()).verdict == expected


def superiority(**changes: object) -> rules.Superiority:
    return rules.Superiority(
        **{
            "kind": "superiority",
            "statement": "",
            "measured": rules.Measured(task="text"),
            "ours": rules.Row(method="dsnot"),
            "theirs": WANDA,
            "levels": [0.5, 0.6],
            "replicates": 3,
            "samples": 240,
            "collapse_ratio": 10,
            "resamples": FEW,
            **changes,
        }
    )


def write_contest(
    folder: Folder,
    shift: float,
    seeds: int = 3,
    windows: int = 240,
    height: float = 3.5,
    between: float = 0.0,
    sparsities: tuple[float, float] = (0.5, 0.5),
) -> None:
    draw = np.random.default_rng(3)
    base = draw.normal(0, 0.3, windows)
    folder.windows("text", 3.0 + base)
    for level in (0.5, 0.6):
        for seed in range(seeds):
            calibration = f"c{seed}"
            theirs = height + level - 0.5 + base + draw.normal(0, 0.02, windows)
            ours = theirs + shift + draw.normal(0, 0.02, windows) + between * (-1) ** seed
            shared = {"budget": {"sparsity": level}, "calibration": calibration}
            folder.windows("text", theirs, method="wanda", sparsity=sparsities[0], **shared)
            folder.windows("text", ours, method="dsnot", sparsity=sparsities[1], **shared)


@pytest.mark.parametrize(
    ("options", "changes", "verdict"),
    [
        ({"shift": -0.02}, {}, "holds"),
        ({"shift": 0.02}, {}, "refuted"),
        ({"shift": -0.02, "height": 6.0}, {}, "collapsed"),
        ({"shift": -0.02, "windows": 100}, {}, "underpowered"),
        ({"shift": -0.02, "seeds": 2}, {}, "underpowered"),
        ({"shift": -0.02, "between": 0.2}, {}, "underpowered"),
        ({"shift": 0.0}, {}, "underpowered"),
        ({"shift": 0.0}, {"equivalence": 0.01}, "refuted"),
        ({"shift": -0.02, "sparsities": (0.5, 0.51)}, {"matched_sparsity": 0.002}, "underpowered"),
        ({"shift": -0.02, "sparsities": (0.5, 0.501)}, {"matched_sparsity": 0.002}, "holds"),
    ],
)
def test_one_method_over_another(folder: Folder, options, changes, verdict) -> None:
    write_contest(folder, **options)
    found = answer(folder, superiority(**changes))
    assert found.verdict == verdict, found.figures


def test_replicates_without_partners_are_refused(folder: Folder) -> None:
    write_contest(folder, -0.02)
    base = np.zeros(240)
    folder.windows("text", base + 3, method="dsnot", budget={"sparsity": 0.5}, calibration="other")
    with pytest.raises(InputError, match="other calibration sets or seeds"):
        answer(folder, superiority())


def equivalence(**changes: object) -> rules.Equivalence:
    return rules.Equivalence(
        **{
            "kind": "equivalence",
            "statement": "",
            "measured": rules.Measured(task="windows"),
            "ours": rules.Row(method="evopress"),
            "theirs": rules.Row(method="random-search"),
            "levels": [0.5],
            "replicates": 4,
            "margin": 0.02,
            "equal_knobs": ["generations"],
            "resamples": FEW,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("ratio", "spread", "verdict"), [(1.0, 0.001, "holds"), (0.8, 0.001, "refuted"), (1.0, 0.2, "underpowered")]
)
def test_no_better_than(folder: Folder, ratio: float, spread: float, verdict: str) -> None:
    draw = np.random.default_rng(4)
    base = draw.uniform(0.5, 1.5, 200)
    for seed in range(4):
        for method, factor in (("evopress", ratio), ("random-search", 1.0)):
            values = base * factor * (1 + draw.normal(0, spread)) * (1 + draw.normal(0, 0.01, 200))
            knobs = {"generations": 20}
            folder.values("windows", KL, values, method=method, budget={"sparsity": 0.5}, seed=seed, knobs=knobs)
    assert answer(folder, equivalence()).verdict == verdict


def test_an_unfair_contest_is_refused(folder: Folder) -> None:
    for method, generations in (("evopress", 20), ("random-search", 10)):
        for seed in range(4):
            knobs = {"generations": generations}
            folder.values("windows", KL, np.ones(20), method=method, budget={"sparsity": 0.5}, seed=seed, knobs=knobs)
    with pytest.raises(InputError, match="generations is 20 of evopress, 10 of random-search"):
        answer(folder, equivalence())


def tolerance(**changes: object) -> rules.Tolerance:
    unit = rules.Unit(
        name="tokens",
        prefill=rules.Row(method="oracle", knobs={"phase": "prefill"}),
        decode=rules.Row(method="oracle", knobs={"phase": "decode"}),
    )
    return rules.Tolerance(
        **{
            "kind": "phase-tolerance",
            "statement": "",
            "units": [unit],
            "tasks": {"a": ["a-2k", "a-4k"], "b": ["b-2k"], "c": ["c-2k"]},
            "margin": 0.05,
            "usable": 0.2,
            "samples": 500,
            "decode_queries": 64,
            "required": 2,
            "resamples": FEW,
            **changes,
        }
    )


LOSSES = {"early": (0.0, 0.02, 0.15, 0.5), "late": (0.0, 0.0, 0.01, 0.15), "never": (0.0, 0.0, 0.0, 0.01)}
"""Losses at sparsities .5, .75, .9 and .975."""


def write_tolerance(
    folder: Folder, prefill: str, decode: str, n: int = 500, queries: float = 70.0, dense: float = 0.8
) -> None:
    draw = np.random.default_rng(5)
    for task in ("a-2k", "a-4k", "b-2k", "c-2k"):
        luck = draw.random(n)
        folder.values(task, RECALL, (luck < dense).astype(float))
        for phase, kind in (("prefill", prefill), ("decode", decode)):
            for sparsity, loss in zip((0.5, 0.75, 0.9, 0.975), LOSSES[kind], strict=True):
                right = (luck < dense - loss).astype(float)
                knobs, budget = {"phase": phase}, {"sparsity": sparsity}
                facts = {"sparsity": sparsity, "decode_queries": queries}
                folder.values(task, RECALL, right, method="oracle", knobs=knobs, budget=budget, **facts)


@pytest.mark.parametrize(
    ("phases", "options", "verdict"),
    [
        (("early", "late"), {}, "holds"),
        (("late", "early"), {}, "refuted"),
        (("early", "never"), {}, "holds"),
        (("never", "late"), {}, "refuted"),
        (("never", "never"), {}, "underpowered"),
        (("early", "late"), {"n": 200}, "underpowered"),
        (("early", "late"), {"queries": 16.0}, "underpowered"),
        (("early", "late"), {"dense": 0.1}, "underpowered"),
    ],
)
def test_which_phase_tolerates_more(folder: Folder, phases, options, verdict) -> None:
    write_tolerance(folder, *phases, **options)
    found = answer(folder, tolerance())
    assert found.verdict == verdict, found.figures


def test_lengths_that_the_dense_model_does_not_read_need_no_sparse_rows(folder: Folder) -> None:
    write_tolerance(folder, "early", "late")
    folder.values("a-8k", RECALL, (np.arange(500) < 20).astype(float))
    found = answer(folder, tolerance(tasks={"a": ["a-2k", "a-4k", "a-8k"], "b": ["b-2k"], "c": ["c-2k"]}))
    assert found.verdict == "holds" and "2 of 3 lengths usable" in [figure.note for figure in found.figures]
    folder.values("a-6k", RECALL, (np.arange(500) < 200).astype(float))
    with pytest.raises(InputError, match="a-6k"):
        answer(folder, tolerance(tasks={"a": ["a-2k", "a-4k", "a-6k"], "b": ["b-2k"], "c": ["c-2k"]}))


def contextual() -> rules.Contextual:
    return rules.Contextual(
        kind="contextual-gap",
        statement="",
        early=rules.Measured(task="texts", metric="early"),
        late=rules.Measured(task="texts", metric="late"),
        unlikely=rules.Measured(task="texts", metric="unlikely"),
        sparse=[rules.Row(method="griffin")],
        corrected=[rules.Row(method="sirius")],
        level=0.5,
        samples=300,
        recovery=0.5,
        density=0.8,
        resamples=FEW,
    )


@pytest.mark.parametrize(
    ("gap", "recovered", "density", "n", "verdict"),
    [
        (0.2, 0.8, 0.7, 400, "holds"),
        (-0.2, 0.8, 0.7, 400, "refuted"),
        (0.2, 0.2, 0.7, 400, "refuted"),
        (0.2, 0.8, 0.9, 400, "refuted"),
        (0.2, 0.8, 0.7, 200, "underpowered"),
    ],
)
def test_drift_and_its_recovery(folder: Folder, gap, recovered, density, n, verdict) -> None:
    from sparsebench.metrics import Metric

    columns = ("early", "late", "unlikely")
    metrics = [Metric(name=name, column=name, higher_is_better=False, headline=name == "late") for name in columns]
    draw = np.random.default_rng(6)
    names = [f"t{i}" for i in range(n)]
    early, own, lost = draw.gamma(2, 0.2, n), draw.uniform(0.5, 1.5, n), draw.uniform(0.2, 0.6, n)
    for method, share in (("", 1.0), ("griffin", 0.0), ("sirius", recovered)):
        frame = pd.DataFrame(
            {
                "sample": names,
                "cluster": names,
                "early": early,
                "late": np.maximum(early + gap + draw.normal(0, 0.1, n), 0),
                "unlikely": own + lost * (1 - share),
            }
        )
        facts = {"densities": {"effective density in decode": density}} if method == "sirius" else {}
        folder.cell("texts", metrics, frame, method=method, budget={"sparsity": 0.5} if method else None, **facts)
    found = answer(folder, contextual())
    assert found.verdict == verdict, found.figures
    assert found.figures[1].value == pytest.approx(recovered)


def interpolation(**changes: object) -> rules.Interpolation:
    return rules.Interpolation(
        **{
            "kind": "interpolation",
            "statement": "",
            "row": rules.Row(method="prf"),
            "where": "interpolate",
            "weight": "alpha",
            "both": "both",
            "alone": ["before", "after"],
            "measured": [rules.Measured(task=t) for t in ("x", "y", "z")],
            "folds": 5,
            "collections": 3,
            "queries": 900,
            "resamples": FEW,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("gain", "n", "verdict"),
    [(0.05, 300, "holds"), (-0.05, 300, "refuted"), (0.0, 300, "underpowered"), (0.05, 100, "underpowered")],
)
def test_fusion_before_and_after(folder: Folder, gain: float, n: int, verdict: str) -> None:
    draw = np.random.default_rng(7)
    for task in ("x", "y", "z"):
        base = draw.beta(2, 2, n)
        for where in ("before", "after", "both"):
            for alpha in (0.2, 0.5):
                better = 0.03 * (alpha == 0.5) + gain * (where == "both")
                values = np.clip(base + better + draw.normal(0, 0.1, n), 0, 1)
                folder.values(task, RECALL, values, method="prf", knobs={"interpolate": where, "alpha": alpha})
    found = answer(folder, interpolation())
    assert found.verdict == verdict, found.figures


def reversals(**changes: object) -> rules.Reversals:
    return rules.Reversals(
        **{
            "kind": "rank-reversals",
            "statement": "",
            "row": rules.Row(method="random-allocation"),
            "measured": rules.Measured(task="windows"),
            "fact": "layer_error",
            "allocations": 12,
            "apart": 0.02,
            "pairs": 5,
            "resamples": FEW,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("order", "count", "verdict"),
    [("against", 12, "holds"), ("with", 12, "refuted"), ("with", 6, "underpowered")],
)
def test_layer_errors_and_losses(folder: Folder, order: str, count: int, verdict: str) -> None:
    draw = np.random.default_rng(8)
    base = draw.uniform(0.5, 1.5, 120)
    for seed in range(count):
        error = 1 + 0.1 * seed
        rank = -seed if order == "against" and seed in (3, 4) else seed
        values = base + 0.05 * rank + draw.normal(0, 0.005, 120)
        facts = {"facts": {"layer_error": error}}
        folder.values("windows", KL, values, method="random-allocation", budget={"sparsity": 0.5}, seed=seed, **facts)
    found = answer(folder, reversals())
    assert found.verdict == verdict, found
    tau = next(f.value for f in found.figures if f.what.startswith("Kendall"))
    assert tau == pytest.approx(1.0) if order == "with" else tau < 1


def test_chance_reversals_are_not_confirmed(folder: Folder) -> None:
    """All allocations lose the same: half of the pairs are in the wrong order, by chance."""
    draw = np.random.default_rng(11)
    base = draw.uniform(0.5, 1.5, 80)
    for seed in range(24):
        facts = {"facts": {"layer_error": 1 + 0.1 * seed}}
        values = base + draw.normal(0, 0.1, 80)
        folder.values("windows", KL, values, method="random-allocation", budget={"sparsity": 0.5}, seed=seed, **facts)
    found = answer(folder, reversals())
    assert found.verdict == "underpowered"
    assert any(f.what == "reversals found on one half" and f.value > 0 for f in found.figures)


# Results


def test_a_row_that_is_not_there_is_named(folder: Folder) -> None:
    folder.windows("text", np.zeros(5))
    with pytest.raises(InputError, match="wanda at a sparsity on text is not among the results"):
        answer(folder, matched())


def test_two_settings_of_one_method_are_not_mixed(folder: Folder) -> None:
    for group in ("row", "layer"):
        folder.windows("text", np.zeros(5), method="wanda", budget={"sparsity": 0.5}, knobs={"compare_group": group})
    with pytest.raises(InputError, match="is 2 configurations"):
        Results([folder.root]).levels(WANDA, "text")
    row = rules.Row(method="wanda", knobs={"compare_group": "row"})
    assert list(Results([folder.root]).levels(row, "text")) == [0.5]


def test_of_results_that_hold_more_the_suite_of_the_finding_counts(folder: Folder) -> None:
    suite = load("dsnot-beats-wanda").suite
    asked = suite.calibration["c4-0"]
    wanda = Member(method="wanda", budget={"sparsity": 0.5}).sparsity()
    knobs = wanda.adapter.resolved().config
    row, task = rules.Row(method="wanda"), "wikitext2-perplexity"
    others = [{"ratios": "owl"}, {}, {}]
    texts = [asked, asked.model_copy(update={"data": "c4-half"}), asked]
    for height, (other, text) in enumerate(zip(others, texts, strict=True)):
        folder.windows(
            task,
            np.full(5, float(height)),
            method="wanda",
            budget={"sparsity": 0.5},
            knobs={**knobs, **other},
            calibration=text.model_dump() | {"hash": str(height)},
        )
    with pytest.raises(InputError, match="is 2 configurations"):
        Results([folder.root]).levels(row, task)
    results = Results([folder.root], suite)
    (cell,) = results.levels(row, task)[0.5]
    assert cell.spec.calibration == asked.model_dump() | {"hash": "2"}
    assert results.used == [cell]


def test_results_of_another_suite_are_taken_as_they_are(folder: Folder) -> None:
    folder.windows("text", np.zeros(5), method="wanda", budget={"sparsity": 0.5})
    assert list(Results([folder.root], load("dsnot-beats-wanda").suite).levels(WANDA, "text")) == [0.5]


def test_a_cell_of_two_folders_is_one(folder: Folder, tmp_path: Path) -> None:
    folder.windows("text", np.zeros(5))
    shutil.copytree(folder.root, tmp_path / "copy")
    assert len(Results([folder.root, tmp_path / "copy"]).dense("text")) == 1


def test_results_of_two_models_are_not_mixed(folder: Folder) -> None:
    for ref in ("path:a", "path:b"):
        folder.windows("text", np.zeros(5), ref=ref)
    with pytest.raises(InputError, match="several models"):
        Results([folder.root]).dense("text")


def test_a_trial_gives_way_to_the_whole_run(folder: Folder) -> None:
    folder.windows("text", np.zeros(5), limit=5)
    folder.windows("text", np.zeros(9))
    (cell,) = Results([folder.root]).dense("text")
    assert cell.spec.task.limit is None


def test_a_failed_cell_gives_no_answer(folder: Folder) -> None:
    folder.cell("text", [], pd.DataFrame({"sample": ["a"]}), status="failed", error="out of memory")
    with pytest.raises(CellsFailedError, match="out of memory"):
        Results([folder.root]).dense("text")


def test_json_has_no_infinities(folder: Folder) -> None:
    from sparsebench.findings.reproduce import Reproduction

    write_matched(folder, 4.5, 0.1, (0.5, 0.4, 0.2))
    finding = load("two-four-fails-on-knowledge")
    found = Reproduction(finding, answer(folder, matched()), [folder.root], "m", False)
    import json

    assert json.loads(json.dumps(to_json(found), allow_nan=False))["verdict"] == "underpowered"


def test_replicates_of_a_row_are_averaged(folder: Folder) -> None:
    for seed, height in enumerate((1.0, 3.0)):
        folder.questions("qa", np.ones(4), np.arange(4), method="r", budget={"sparsity": 0.5}, seed=seed)
        folder.windows("text", np.full(5, height), method="r", budget={"sparsity": 0.5}, seed=seed)
    results = Results([folder.root])
    row = rules.Row(method="r")
    sheet = results.sheet(rules.Measured(task="text"), [results.at(row, "text", "sparsity", 0.5)])
    assert sheet.means.tolist() == [2.0]
    assert ACCURACY.headline


def setting(method: str, **budget: float) -> rules.Setting:
    return rules.Setting(method=method, budget=budget)


def pooled(**changes: object) -> rules.Pooled:
    return rules.Pooled(
        **{
            "kind": "pooled",
            "statement": "",
            "pairs": [rules.Pair(ours=setting("ours", depth=10), theirs=setting("theirs"))],
            "asks": "no-worse",
            "margin": 0.02,
            "costs": {"flops": 0.8, "search_ms": 0.8},
            "measured": [rules.Measured(task=t) for t in ("x", "y")],
            "queries": 300,
            "resamples": FEW,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("gain", "work", "n", "changes", "verdict"),
    [
        (0.0, 0.5, 200, {}, "holds"),
        (-0.08, 0.5, 200, {}, "refuted"),
        (0.0, 0.9, 200, {}, "refuted"),
        (0.0, 0.5, 100, {}, "underpowered"),
        (0.0, 0.5, 200, {"asks": "better"}, "underpowered"),
        (0.08, 0.5, 200, {"asks": "better"}, "holds"),
        (-0.08, 0.5, 200, {"asks": "better", "costs": {}}, "refuted"),
    ],
)
def test_one_setting_against_another_over_collections(
    folder: Folder, gain: float, work: float, n: int, changes: dict[str, object], verdict: str
) -> None:
    draw = np.random.default_rng(3)
    for task in ("x", "y"):
        base = draw.beta(2, 2, n)
        ours = base + gain + draw.normal(0, 0.05, n)
        folder.values(task, RECALL, base, method="theirs", flops=10.0, speed={"search_ms": 2.0})
        folder.values(task, RECALL, ours, method="ours", budget={"depth": 10}, flops=10 * work, speed={"search_ms": 1})
        folder.values(task, RECALL, base - 1, method="ours", budget={"depth": 20}, flops=1.0)
    found = answer(folder, pooled(**changes))
    assert found.verdict == verdict, found.figures
    assert found.figures[0].value == pytest.approx(gain, abs=0.01)


def test_costs_that_no_record_has_are_named(folder: Folder) -> None:
    for method in ("ours", "theirs"):
        folder.values("x", RECALL, np.ones(5), method=method, budget={"depth": 10} if method == "ours" else None)
    with pytest.raises(InputError, match="has no 'flops'"):
        answer(folder, pooled(measured=[rules.Measured(task="x")]))


def test_a_column_that_is_no_metric_is_compared(folder: Folder) -> None:
    for task, method, level in (("x", "ours", 0.9), ("x", "theirs", 0.4), ("y", "ours", 0.8), ("y", "theirs", 0.3)):
        frame = pd.DataFrame({"sample": [f"s{i}" for i in range(40)], "recall": 0.5, "found": level})
        frame["cluster"] = frame["sample"]
        budget = {"depth": 10} if method == "ours" else None
        folder.cell(task, [RECALL], frame, method=method, budget=budget)
    measured = [rules.Measured(task=t, column="found") for t in ("x", "y")]
    found = answer(folder, pooled(asks="better", costs={}, measured=measured, queries=80))
    assert (found.verdict, found.figures[0].value) == ("holds", pytest.approx(0.5))


@pytest.mark.parametrize(
    ("losses", "n", "verdict", "said"),
    [
        ((0.0, 0.0, 0.2), 400, "holds", "safe down to 32 terms"),
        ((0.0, 0.2, 0.3), 400, "refuted", "safe down to 64 terms"),
        ((0.2, 0.0, 0.0), 400, "refuted", "no level is safe"),
        ((0.0, 0.0, 0.0), 100, "underpowered", "200 queries"),
    ],
)
def test_the_safe_point_of_a_term_budget(folder: Folder, losses, n: int, verdict: str, said: str) -> None:
    draw = np.random.default_rng(5)
    for task in ("x", "y"):
        base = 0.5 + 0.3 * draw.beta(2, 2, n)
        folder.values(task, RECALL, base, method="sparse")
        for terms, loss, gone in zip((64, 32, 16), losses, (0.25, 0.5, 0.75), strict=True):
            values = base - loss + draw.normal(0, 0.02, n)
            folder.values(task, RECALL, values, method="sparse", budget={"terms": terms}, sparsity=gone)
    rule = rules.SafeLevel(
        kind="safe-level",
        statement="",
        row=setting("sparse"),
        budget="terms",
        levels=[64, 32, 16],
        margin=0.05,
        sparsity=0.5,
        measured=[rules.Measured(task=t) for t in ("x", "y")],
        queries=600,
        resamples=FEW,
    )
    found = answer(folder, rule)
    assert found.verdict == verdict, found.figures
    assert said in found.reason


def test_levels_of_a_safe_point_go_down() -> None:
    with pytest.raises(ValueError, match="largest down"):
        rules.SafeLevel(
            kind="safe-level",
            statement="",
            row=setting("sparse"),
            budget="terms",
            levels=[16, 64],
            margin=0.05,
            sparsity=0.5,
            measured=[rules.Measured(task="x")],
            queries=1,
        )
