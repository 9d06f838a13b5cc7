"""Suites of a phase-tolerance rule in steps: what is left out has no part in the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from synthetic_cells import RECALL, Folder

from sparsebench.findings import stepwise, tolerance
from sparsebench.findings.definition import load
from sparsebench.findings.results import Results
from sparsebench.findings.rules import Tolerance
from sparsebench.suite import DENSE, Suite

LOSSES = {
    "prefill": {0.5: 0.0, 0.75: 0.15, 0.9: 0.5, 0.95: 0.7, 0.975: 0.8, 0.99: 0.8},
    "decode": {0.5: 0.0, 0.75: 0.0, 0.9: 0.02, 0.95: 0.04, 0.975: 0.06, 0.99: 0.5},
}


class Runner:
    """Writes what a suite asks for, and remembers which levels of which phase it wrote in each step."""

    def __init__(self, root: Path, read: float = 0.8) -> None:
        self.folder = Folder(root)
        self.read = read
        self.steps: list[dict[tuple[str, str], list[float]]] = []
        self.there: set[tuple[str, str, str, float]] = set()

    def __call__(self, suite: Suite) -> Path:
        step: dict[tuple[str, str], list[float]] = {}
        for grid in suite.grids:
            for task in grid.tasks:
                dense = self.read if "value" not in task.task else 0.1
                for entry in grid.methods:
                    phase = str(entry.knobs.get("phase", ""))
                    for level in entry.budgets.get("sparsity", [0.0]):
                        key = task.task, entry.method, phase, float(level)
                        if key not in self.there:
                            self._write(*key, dense)
                            step.setdefault((task.task, phase), []).append(float(level))
                        self.there.add(key)
        self.steps.append(step)
        return self.folder.root

    def _write(self, task: str, method: str, phase: str, level: float, dense: float) -> None:
        luck = np.random.default_rng(sum(task.encode())).random(500)
        if method == DENSE:
            self.folder.values(task, RECALL, (luck < dense).astype(float))
            return
        right = (luck < dense - LOSSES[phase][level]).astype(float)
        facts = {"sparsity": level, "decode_queries": 70.0}
        knobs = {"phase": phase} | ({"block": 16} if method == "oracle-blocks" else {})
        self.folder.values(task, RECALL, right, method=method, knobs=knobs, budget={"sparsity": level}, **facts)


def test_levels_beyond_doubt_and_forms_that_are_not_read_do_not_run(tmp_path: Path) -> None:
    finding = load("decode-tolerates-more")
    rule = finding.rule.model_copy(update={"resamples": 1000})
    assert isinstance(rule, Tolerance)
    runner = Runner(tmp_path / "steps")
    folder = stepwise.run(finding, rule, runner)
    dense, *steps = runner.steps
    assert len(dense) == 9 and {phase for _, phase in dense} == {""}
    assert len(steps) == 6
    for step, level in zip(steps, (0.5, 0.75, 0.9, 0.95, 0.975, 0.99), strict=True):
        ran = {task for task, _ in step}
        assert len(ran) == 6 and not any("value" in task for task in ran)
        assert {phase for _, phase in step} == ({"prefill", "decode"} if level <= 0.75 else {"decode"})
        assert all(levels == [level] * (1 if level == 0.99 else 2) for levels in step.values())
    whole = Runner(tmp_path / "whole")
    everything = tolerance.answer(rule, Results([whole(finding.suite)]))
    stepped = tolerance.answer(rule, Results([folder]))
    assert stepped.verdict == everything.verdict == "holds"
    assert [(f.value, f.low, f.high) for f in stepped.figures if f.value == f.value] == [
        (f.value, f.low, f.high) for f in everything.figures if f.value == f.value
    ]


def test_nothing_sparse_runs_where_the_dense_model_reads_nothing(tmp_path: Path) -> None:
    finding = load("decode-tolerates-more")
    assert isinstance(finding.rule, Tolerance)
    runner = Runner(tmp_path / "steps", read=0.1)
    stepwise.run(finding, finding.rule, runner)
    assert len(runner.steps) == 1
