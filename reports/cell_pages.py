"""The page of a cell: what was asked, what came of it, and how to get it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from sparsebench.data.references import parse
from sparsebench.findings import definition
from sparsebench.reports import notation
from sparsebench.reports.collect import budget_name, method_name
from sparsebench.reports.comparisons import Judged
from sparsebench.reports.views import Pages, Row
from sparsebench.suite_source import load_suite, names


def cell_page(item: Judged, rows: Sequence[Row], pages: Pages) -> dict[str, Any]:
    """The context of a cell's page.

    Args:
        item: The cell.
        rows: Its rows of the tidy table, as views; one without a metric for a failed cell.
        pages: Where pages lie.
    """
    spec, record, environment = item.cell.spec, item.cell.record, item.cell.environment
    place, outcome = record.placement, record.outcome
    first = rows[0]
    budget = budget_name(spec.stack)
    baseline = pages.cell(item.source.name, place.baseline) if place.baseline else ""
    return {
        "name": notation.printable(f"{first['label'] or first['method']}{_unless_in(budget, first['label'])}", 120),
        "method": first["method"],
        "method_page": first["method_page"],
        "task": first["task"],
        "task_page": first["task_page"],
        "cell": item.cell,
        "spec": spec,
        "place": place,
        "outcome": outcome,
        "problem": notation.visible(item.problem),
        "rows": sorted((row for row in rows if row["metric"]), key=lambda row: not row["headline"]),
        "baseline_page": "" if item.is_baseline else baseline,
        "cost": list(_cost(item, first, budget)),
        "speeds": sorted(outcome.speed.items()) if spec.mode == "executed" else [],
        "changes": item.changes,
        "command": command(item),
        "provenance": list(_provenance(item)),
        "spec_json": _json(spec.plain()),
        "facts_json": _json(
            {
                "counters": outcome.counters,
                "densities": outcome.densities,
                "facts": {"cell": outcome.facts, "placement": place.facts},
                "system": record.system,
                "packages": environment.packages,
            }
        ),
    }


def command(item: Judged) -> str:
    """What computes a cell again, with its baseline."""
    place, spec = item.cell.record.placement, item.cell.spec
    suite = notation.slug(place.suite) if place.suite else "SUITE"
    known = suite in suites()
    limit = f" --limit {spec.task.limit}" if spec.task.limit is not None else ""
    device = model = ""
    if spec.system.kind == "causal-lm":
        device = f" --device {item.cell.environment.device.split(':')[0]}"
        device = device if re.fullmatch(" --device [a-z]+", device) else ""
        other = known and spec.system.ref not in models(suite)
        model = f" --model {shlex.quote(notation.printable(spec.system.ref, 400))}" if other else ""
    return f"sparsebench run {suite if known else f'{suite}.yaml'} --cell {item.cell.id}{model}{limit}{device}"


@cache
def suites() -> frozenset[str]:
    """Suites that come with the package, those of findings among them."""
    return frozenset((*names(), *definition.names()))


@cache
def models(suite: str) -> frozenset[str]:
    """Language models of a suite that comes with the package, by canonical reference."""
    systems = load_suite(suite).systems.values()
    return frozenset(str(parse(system.model)) for system in systems if system.kind == "causal-lm")


def _unless_in(budget: str, label: str) -> str:
    return f" {budget}" if budget and budget not in label else ""


def _json(data: Any) -> str:
    return notation.escaped(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False))


def _cost(item: Judged, row: Row, budget: str) -> Iterator[tuple[str, str]]:
    """What the method was asked to leave out, what it left out, and what that costs."""
    outcome = item.cell.record.outcome
    executed, bytes_read = item.cell.spec.mode == "executed", outcome.bytes_per_token
    of = f" of {notation.printable(outcome.sparsity_of, 80)}" if outcome.sparsity_of else ""
    yield from _known(
        ("Method", method_name(item.cell)),
        ("Knobs", row["config"]),
        ("Budget", budget),
        ("Realised sparsity", _and(notation.percent(outcome.sparsity, 2), of)),
        *((f"Realised: {name}", notation.percent(value, 2)) for name, value in sorted(outcome.densities.items())),
        ("FLOPs", _and(notation.ratio(row["flops_ratio"]), _absolute(outcome.flops, outcome.flops_dense))),
        (
            "Bytes a token",
            _and(notation.ratio(row["bytes_ratio"]), _absolute(bytes_read, outcome.bytes_per_token_dense)),
        ),
        ("Bits a weight", notation.number(outcome.bits_per_weight)),
        ("Acts in", outcome.phase),
        ("Decode queries a sample", notation.number(outcome.decode_queries)),
        ("Wall time", _and(notation.number(outcome.seconds), " s") if executed else ""),
        ("Energy", _and(notation.number(outcome.energy), " J") if executed else ""),
        ("Preparation", _preparation(outcome.prepare_seconds, outcome.prepare_tokens)),
        ("Memory of preparing", notation.bytes_size(outcome.prepare_memory)),
        ("Peak memory of the process", notation.bytes_size(outcome.peak_memory)),
        ("Leaves out", row["unit"]),
        ("Compared within", row["compare_group"]),
        ("Statistics pass", row["stats_pass"]),
        ("Token scope", row["scope"]),
        ("Calibration", row["calibration"]),
        ("Base precision", row["base_precision"]),
        ("Computed in", row["dtype"]),
        ("Departs from the paper", _deviations(item.cell.record.placement.facts.get("deviations"))),
    )


def _provenance(item: Judged) -> Iterator[tuple[str, str]]:
    """Where, when and with what it was computed."""
    record, environment = item.cell.record, item.cell.environment
    place = record.placement
    changed = " with uncommitted changes" if environment.dirty else ""
    yield from _known(
        ("Model", item.cell.spec.system.ref),
        ("Fingerprint", item.cell.spec.system.fingerprint),
        ("Suite", f"{place.suite}, version {place.suite_version}, grid {place.grid}"),
        ("Results folder", item.source.name),
        ("Hardware", environment.hardware),
        ("Device", f"{environment.device}, {environment.threads} thread{'' if environment.threads == 1 else 's'}"),
        ("Platform", environment.platform),
        ("Python", environment.python),
        ("Commit", f"{environment.commit}{changed}" if environment.commit else ""),
        ("Started", environment.started),
        ("Command", environment.command),
        ("Executor", environment.executor),
        ("Tokens of a batch", _batch(environment.batch_tokens, environment.batch_replans)),
        *((f"Data: {fact.name}", _data(fact.source, fact.license, fact.sha256)) for fact in record.data),
        ("Samples", f"sha256 {record.samples_sha256}" if record.samples_sha256 else ""),
    )


def _known(*pairs: tuple[str, Any]) -> Iterator[tuple[str, str]]:
    return ((name, notation.printable(value, 400)) for name, value in pairs if notation.known(value))


def _and(text: str, more: str) -> str:
    return f"{text}{more}" if text else ""


def _absolute(part: float | None, whole: float | None) -> str:
    return f" of dense ({part:.4g} of {whole:.4g})" if part is not None and whole is not None else ""


def _preparation(seconds: float, tokens: int) -> str:
    if not seconds and not tokens:
        return ""
    return f"{notation.number(seconds)} s" + (f", {tokens:,} calibration tokens" if tokens else "")


def _batch(tokens: int | None, replans: int) -> str:
    if tokens is None:
        return ""
    return f"{tokens:,}" + (f", halved {replans} times for want of memory" if replans else "")


def _data(source: str, license: str, sha256: str) -> str:
    return ", ".join(part for part in (source, license, f"sha256 {sha256}") if part)


def _deviations(deviations: Any) -> str:
    if isinstance(deviations, list | tuple):
        return "; ".join(str(d) for d in deviations)
    return str(deviations) if deviations else ""
