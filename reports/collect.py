"""The tidy table: one row for each cell, phase and metric, with its verdict."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sparsebench.budget import Budget
from sparsebench.cost import PHASES
from sparsebench.errors import SparseBenchError
from sparsebench.records import MemberSpec
from sparsebench.reports.asked import asked
from sparsebench.reports.claim_answer import tier_of
from sparsebench.reports.comparisons import Judged, Judgement
from sparsebench.reports.notation import printable
from sparsebench.reports.processes import uncollected
from sparsebench.reports.runs import runs_told_apart
from sparsebench.reports.sources import Source, open_sources
from sparsebench.reports.verdicts import judge
from sparsebench.store import StoredCell

TEXT = "text"
NUMBER = "number"
WHOLE = "whole number"
FLAG = "flag"

COLUMNS: dict[str, tuple[str, str]] = {
    "suite": (TEXT, "Suite that the cell belongs to."),
    "cell": (TEXT, "The cell's id: a hash of everything that changes its numbers."),
    "family": (TEXT, "Family of the method."),
    "method": (TEXT, "Method; `dense` for the baseline of language models; a stack is `a+b`."),
    "config": (TEXT, "Knobs as printed."),
    "model": (TEXT, "Reference of the system under test."),
    "task": (TEXT, "Task."),
    "phase": (TEXT, "Phases in which the method acted: `prefill`, `decode`, both, or none."),
    "budget": (TEXT, "How sparse it was asked to be."),
    "sparsity": (NUMBER, "How sparse it was: a ratio of sums, of what `sparsity_of` says."),
    "flops_ratio": (NUMBER, "FLOPs over the dense system's, selection and index work included."),
    "bytes_ratio": (NUMBER, "Bytes read a decoded token over the dense system's."),
    "mode": (TEXT, "`simulated`: a mask over dense work, which has no speed; `executed`: less work was really done."),
    "metric": (TEXT, "Metric; empty for a failed cell."),
    "value": (NUMBER, "The metric's value, computed again from the samples."),
    "ci_low": (NUMBER, "Lower end of its interval at confidence 1 - alpha."),
    "ci_high": (NUMBER, "Upper end."),
    "n": (WHOLE, "Samples that have a part in it."),
    "dense": (NUMBER, "The baseline's value on the same samples."),
    "delta": (NUMBER, "Value less the baseline's."),
    "delta_low": (NUMBER, "Lower end of the paired interval of delta at confidence 1 - alpha."),
    "delta_high": (NUMBER, "Upper end."),
    "verdict": (TEXT, "What may be concluded, after correction for many tests."),
    "seconds": (NUMBER, "Wall time, where mode is `executed`; a mask over dense work has no speed."),
    "peak_memory": (WHOLE, "Largest resident memory of the process, bytes."),
    "energy": (NUMBER, "Joules of one run of a timed batch, where mode is `executed` and the platform measures them."),
    "hardware": (TEXT, "Where it was computed."),
    "source": (TEXT, "Results folder that the row comes from."),
    "grid": (TEXT, "Grid of the suite."),
    "role": (TEXT, "`baseline`, `noise`, `method`, `comparator`, `control` or `bound`."),
    "label": (TEXT, "Method and budget as printed."),
    "baseline": (TEXT, "Id of the cell that it is compared with; empty for a baseline."),
    "headline": (FLAG, "Whether verdicts of the task rest on this metric."),
    "higher_is_better": (FLAG, "Which direction is a gain."),
    "reason": (TEXT, "Why that verdict; what went wrong with a failed cell; that a budget was not met."),
    "p": (NUMBER, "Two-sided p value of no change, before correction."),
    "p_adjusted": (NUMBER, "The same after the correction that `family_of_tests` names."),
    "p_noninferior": (NUMBER, "One-sided p value of a loss of the margin or more; empty where none could be shown."),
    "p_kept": (NUMBER, "The same, corrected: from a method's least sparse level up, with Holm between methods."),
    "family_of_tests": (TEXT, "Correction and number of tests: Holm in a gate, Benjamini-Hochberg elsewhere."),
    "mde": (NUMBER, "Smallest loss that these samples show with power .8, in the metric's units."),
    "required_n": (WHOLE, "Samples for which that would be the margin."),
    "margin": (NUMBER, "Declared acceptable loss, in the metric's units."),
    "alpha": (NUMBER, "Level of each one-sided test."),
    "relative": (NUMBER, "Delta as a fraction of the baseline's value."),
    "flips_lost": (WHOLE, "Samples that the baseline has right and this cell wrong."),
    "flips_gained": (WHOLE, "Samples that the baseline has wrong and this cell right."),
    "noise": (NUMBER, "Absolute change of the metric between two runs of the baseline (A/A)."),
    "chance": (NUMBER, "What guessing reaches."),
    "calibration": (TEXT, "Calibration text, its hash and the seed of its draw where that is not 0."),
    "compare_group": (TEXT, "Within what scores were compared: row, layer, block, global."),
    "stats_pass": (TEXT, "How calibration statistics were taken: dense or sequential."),
    "scope": (TEXT, "Which tokens count in an activation sparsity."),
    "unit": (TEXT, "What is left out: weight, neuron, block, term."),
    "sparsity_of": (TEXT, "What the sparsity is a share of."),
    "data_hash": (TEXT, "Hash of the rows that were evaluated."),
    "base_precision": (TEXT, "Precision of the weights before any method."),
    "tier": (TEXT, "Size of that model: `S` below 1B parameters, `M` to 9B, `L` above; empty where it is not known."),
    "dtype": (TEXT, "Type that was computed in."),
    "status": (TEXT, "`ok` or `failed`."),
    "seed": (WHOLE, "The method's seed."),
    "protocol": (TEXT, "Which parts of a sample run as prefill and as decode."),
    "decode_queries": (NUMBER, "Decode queries a sample, on average."),
    "n_clusters": (WHOLE, "Independent clusters that the samples fall into."),
    "evaluation_seconds": (NUMBER, "Wall time of evaluating the cell: no speed of the method."),
    "prepare_seconds": (NUMBER, "Wall time of the method's offline work."),
    "prepare_tokens": (WHOLE, "Calibration tokens that it read."),
    "prepare_memory": (WHOLE, "Peak memory of that work above what there was before, bytes."),
    "bits_per_weight": (NUMBER, "Stored bits of a prunable weight, indices, scales and outliers included; dense: 16."),
    "bytes_per_token": (NUMBER, "Bytes read for a decoded token."),
    "request": (TEXT, "Request of the suite of which it was asked to cost a share; empty where its budget is its own."),
    "asked_of": (TEXT, "What that is a share of: `flops`, `bytes`, `kv_bytes`, `active_params`."),
    "asked": (NUMBER, "Share of the dense cost in the request that was asked for."),
    "realised": (NUMBER, "That share as it was counted, at the request's batch."),
    "speed": (TEXT, "Measured speed-ups of the same methods, knobs, budgets and model where they were executed."),
}
"""Columns of the tidy table: kind and meaning."""


ORDER = ["suite", "family", "model", "grid", "task", "method", "config", "budget", "seed", "cell", "metric", "source"]


@uncollected()
def collect(*results_folders: str | os.PathLike[str], cells: Collection[str] | None = None) -> pd.DataFrame:
    """The tidy table of one or more results folders: one row for each (source, cell, phase, metric).

    Failed cells are rows too, with an empty metric; so are cells whose files cannot be read or do not agree with their
    record. Numbers that are not known are NaN. The columns are those of `COLUMNS`.

    Args:
        results_folders: Folders that `sparsebench run` wrote.
        cells: Ids of the cells to be judged, as if there were no others; None for all.

    Raises:
        InputError: A folder that holds no results.
    """
    sources = open_sources(results_folders)
    if cells is not None:
        sources = [source.only(cells) for source in sources]
    return table_of(judge(sources), sources)


@uncollected()
def table_of(judged: Sequence[Judged], sources: Iterable[Source] = ()) -> pd.DataFrame:
    """The tidy table of judged cells, with the unreadable cells of their sources."""
    speeds = measured_speeds(item.cell for item in judged)
    runs = runs_told_apart(judged)
    rows = (row for item in judged for row in _rows(item, speeds, runs.get((item.source.name, item.cell.id), "")))
    broken = (_unreadable(source, cell, problem) for source in sources for cell, problem in source.broken.items())
    # A row at a time: as mappings all of them would take a gigabyte where there are a hundred thousand cells.
    entries = [tuple(map(row.get, COLUMNS)) for row in chain(rows, broken)]
    columns = zip(COLUMNS.items(), list(zip(*entries, strict=True)) or [()] * len(COLUMNS), strict=True)
    table = pd.DataFrame({name: _converted(kind, values) for (name, (kind, _)), values in columns})
    return table.sort_values(ORDER, kind="stable").reset_index(drop=True)


def _converted(kind: str, values: Sequence[Any]) -> npt.NDArray[Any] | pd.api.extensions.ExtensionArray:
    """A column; None is an empty text, NaN or false."""
    if kind != TEXT:
        return np.array(values, dtype=np.bool_ if kind == FLAG else np.float64)
    # Texts that a terminal or a page can show: no control or direction characters.
    shown = {text: printable(text or "") for text in set(values)}
    return pd.array([shown[text] for text in values], dtype="str")


def _rows(item: Judged, speeds: dict[str, str], run: str) -> list[dict[str, Any]]:
    shared = {**_cell_columns(item), "speed": speeds.get(_executed_alike(item.cell), "") if speeds else ""}
    if run:
        # Before the knobs, which may be cut.
        shared["config"] = f"{run} {shared['config']}".strip()
    if not item.judgements:
        problem = item.problem or "no metric was recorded"
        return [{**shared, "metric": "", "verdict": "failed", "status": "failed", "reason": problem}]
    return [{**shared, **_metric_columns(judgement)} for judgement in item.judgements]


def _unreadable(source: Source, cell: str, problem: str) -> dict[str, Any]:
    return {
        "source": source.name,
        "cell": cell,
        "suite": str(_get(source.suite, "suite", "suite") or ""),
        "metric": "",
        "verdict": "failed",
        "status": "failed",
        "reason": problem,
    }


def _cell_columns(item: Judged) -> dict[str, Any]:
    spec, record, environment = item.cell.spec, item.cell.record, item.cell.environment
    place, outcome = record.placement, record.outcome
    executed = spec.mode == "executed"
    wanted = asked(item.cell)
    return {
        "suite": place.suite,
        "cell": item.cell.id,
        "family": place.family,
        "method": method_name(item.cell),
        "config": place.config,
        "model": spec.system.ref,
        "tier": tier_of([record.system.get("parameters")]),
        "task": spec.task.id,
        "phase": outcome.phase,
        "budget": budget_name(spec.stack),
        "sparsity": outcome.sparsity,
        "flops_ratio": _ratio(outcome.flops, outcome.flops_dense),
        "bytes_ratio": _ratio(outcome.bytes_per_token, outcome.bytes_per_token_dense),
        "request": wanted.request if wanted else "",
        "asked_of": wanted.of if wanted else "",
        "asked": wanted.share if wanted else None,
        "realised": wanted.realised if wanted else None,
        "mode": spec.mode,
        "seconds": outcome.seconds if executed else None,
        "peak_memory": outcome.peak_memory,
        "energy": outcome.energy if executed else None,
        "hardware": environment.hardware,
        "source": item.source.name,
        "grid": place.grid,
        "role": place.role,
        "label": place.label,
        "baseline": "" if item.is_baseline else place.baseline,
        "calibration": _calibration(spec.calibration),
        "compare_group": _variant(item, "compare_group"),
        "stats_pass": _variant(item, "stats_pass"),
        "scope": _variant(item, "scope", "token_scope"),
        "unit": _variant(item, "unit"),
        "sparsity_of": outcome.sparsity_of,
        "data_hash": spec.task.data,
        "base_precision": str(record.system.get("base_precision") or ""),
        "dtype": spec.system.dtype,
        "status": outcome.status,
        "seed": spec.seed,
        "protocol": spec.protocol,
        "decode_queries": outcome.decode_queries,
        "evaluation_seconds": outcome.seconds,
        "prepare_seconds": outcome.prepare_seconds,
        "prepare_tokens": outcome.prepare_tokens,
        "prepare_memory": outcome.prepare_memory,
        "bits_per_weight": outcome.bits_per_weight,
        "bytes_per_token": outcome.bytes_per_token,
    }


def _metric_columns(judgement: Judgement) -> dict[str, Any]:
    metric, c = judgement.metric, judgement.comparison
    columns: dict[str, Any] = {
        "metric": metric.name,
        "value": judgement.value,
        "ci_low": judgement.ci_low,
        "ci_high": judgement.ci_high,
        "n": judgement.n,
        "headline": metric.headline,
        "higher_is_better": metric.higher_is_better,
        "verdict": judgement.verdict,
        "reason": judgement.reason,
        "p_adjusted": judgement.p_adjusted,
        "p_noninferior": judgement.p_noninferior,
        "p_kept": judgement.p_kept,
        "family_of_tests": judgement.family,
        "alpha": judgement.alpha,
        "noise": judgement.noise,
        "chance": metric.chance,
    }
    if c is None:
        return {**columns, "dense": judgement.value if judgement.verdict == "baseline" else None}
    return {
        **columns,
        "dense": c.dense,
        "delta": c.delta,
        "delta_low": c.delta_low,
        "delta_high": c.delta_high,
        "p": c.p,
        "mde": c.mde if math.isfinite(c.mde) else None,
        "required_n": c.required_n,
        "margin": c.margin,
        "relative": c.relative,
        "flips_lost": c.lost,
        "flips_gained": c.gained,
        "n_clusters": c.n_clusters,
    }


def measured_speeds(cells: Iterable[StoredCell]) -> dict[str, str]:
    """What was measured of each stack, by `_executed_alike`: `prefill 1.62x, decode 1.01x (speed-2048)`.

    Where energy was measured it follows the phase's speed-up: `decode 1.31x with 0.41 of 0.62 J a token`.
    A quality row may be of another task, mode or dtype than the row that was timed; the cells of that task say more.
    """
    found: dict[str, list[str]] = {}
    for cell in cells:
        speed = cell.record.outcome.speed
        ups = [
            f"{phase} {speed[name]:.2f}x{_energy(speed, phase)}"
            for phase in PHASES
            if (name := f"{phase} speed-up") in speed
        ]
        if ups and cell.spec.stack and cell.spec.mode == "executed":
            found.setdefault(_executed_alike(cell), []).append(f"{', '.join(ups)} ({cell.spec.task.id})")
    return {alike: "; ".join(sorted(set(texts))) for alike, texts in found.items()}


def _energy(speed: dict[str, float], phase: str) -> str:
    of = {"prefill": "prompt", "decode": "token"}[phase]
    own, dense = (speed.get(f"energy of a {of}, J{side}") for side in ("", ", dense"))
    return "" if own is None or dense is None else f" with {own:.3g} of {dense:.3g} J a {of}"


def _executed_alike(cell: StoredCell) -> str:
    """The same for cells of one model, one seed and one stack, whatever the mode, the task and the dtype."""
    members = [m.model_dump(mode="json") for m in cell.spec.stack]
    for member in members:
        member["knobs"].pop("mode", None)
    return json.dumps([cell.spec.system.ref, cell.spec.system.fingerprint, cell.spec.seed, members], sort_keys=True)


def method_name(cell: StoredCell) -> str:
    """The method's id, `a+b` for a stack, `dense` for an untouched language model."""
    spec = cell.spec
    if spec.stack:
        return "+".join(member.method for member in spec.stack)
    if spec.system.kind == "causal-lm":
        return "dense"
    return cell.record.placement.label or "dense"


def budget_name(stack: Sequence[MemberSpec]) -> str:
    """`50%`; the members' budgets for a stack, `50%+256 tokens`."""
    labels = [_budget_label(member.budget) for member in stack if member.budget is not None]
    return "+".join(labels)


def _budget_label(budget: dict[str, float | int | str]) -> str:
    try:
        return Budget.from_dict(budget).label
    except SparseBenchError:
        # A record from elsewhere may hold a budget that this version does not know; show it as it is.
        return ", ".join(f"{kind} {value}" for kind, value in budget.items())


def _calibration(calibration: dict[str, Any] | None) -> str:
    if not calibration:
        return ""
    name = calibration.get("name") or calibration.get("data") or ""
    content = next((calibration[k] for k in ("hash", "sha256", "content", "content_hash") if calibration.get(k)), "")
    seed = f", seed {calibration['seed']}" if calibration.get("seed") else ""
    return f"{name} {str(content)[:12]}".strip() + seed


def _variant(item: Judged, *names: str) -> str:
    """A named variant: from the record's facts, else from the members' knobs."""
    places = [item.cell.record.placement.facts, *(member.knobs for member in item.cell.spec.stack)]
    return next((str(place[name]) for name in names for place in places if place.get(name) is not None), "")


def _ratio(part: float | None, whole: float | None) -> float | None:
    """A cost over the dense one's; None where it is not known or no number (1e308 of 5e-324), which `verify` names."""
    ratio = part / whole if part is not None and whole else math.nan
    return ratio if math.isfinite(ratio) else None


def _get(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data
