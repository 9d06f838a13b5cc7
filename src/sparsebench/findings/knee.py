"""Whether a curve over sparsity has a knee: two lines against a smooth curve (`stats.breakpoint`)."""

from __future__ import annotations

import math

from sparsebench.findings.answer import Answer, Figure, Verdict, of_lines
from sparsebench.findings.results import Results
from sparsebench.findings.rules import Curve, Knee
from sparsebench.stats import Breakpoint, find_breakpoint


def answer(rule: Knee, results: Results) -> Answer:
    """A knee must be there in every curve; a smooth curve that predicts better by two errors refutes it."""
    lines: list[Figure] = []
    verdicts: list[Verdict] = []
    for curve in rule.curves:
        levels, found = _found(rule, results, curve)
        verdicts.append(verdict := _verdict(rule, levels, found))
        lines.append(
            Figure(
                f"{curve.row.label} on {curve.measured.task}: breakpoint",
                found.at,
                found.low,
                found.high,
                verdict=verdict,
                note=f"two lines are better by {_errors(found):+.2f} standard errors over {levels} levels; "
                f"slopes {found.slope_before:.3g} and {found.slope_after:.3g}",
            )
        )
    overall = of_lines(verdicts)
    reasons: dict[Verdict, str] = {
        "holds": f"two lines predict better by two standard errors, and the breakpoint is located to {rule.widest:g}",
        "refuted": "a smooth curve predicts left-out levels better by two standard errors",
        "underpowered": "neither two lines nor a smooth curve is shown to be better, or the breakpoint is not located",
    }
    return Answer(overall, reasons.get(overall, ""), lines)


def _found(rule: Knee, results: Results, curve: Curve) -> tuple[int, Breakpoint]:
    levels = results.levels(curve.row, curve.measured.task)
    sheet = results.sheet(curve.measured, list(levels.values()))
    found = find_breakpoint(
        list(levels),
        sheet.values,
        weights=sheet.weights,
        clusters=sheet.clusters,
        confidence=1 - rule.alpha,
        widest=rule.widest,
        resamples=rule.resamples,
        seed=rule.seed,
    )
    return len(levels), found


def _errors(found: Breakpoint) -> float:
    if found.advantage_error == 0:
        return math.copysign(math.inf, found.advantage) if found.advantage else 0.0
    return found.advantage / found.advantage_error


def _verdict(rule: Knee, levels: int, found: Breakpoint) -> Verdict:
    if levels < rule.levels:
        return "underpowered"
    if found.supported:
        return "holds"
    return "refuted" if _errors(found) <= -2 else "underpowered"
