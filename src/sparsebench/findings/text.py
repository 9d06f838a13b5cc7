"""A reproduction as text and as JSON."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from sparsebench.findings.answer import Figure
from sparsebench.findings.definition import Finding
from sparsebench.findings.reproduce import Reproduction

WIDTH = 110


def text(found: Reproduction) -> str:
    """What a person reads: the verdict, why, the figures, and the rule with its hash."""
    finding, answer = found.finding, found.answer
    lines = [f"{finding.finding}: {answer.verdict.upper()}", f"  {finding.title}", ""]
    lines += _wrapped("because", answer.reason)
    lines += _wrapped("rule", finding.rule.statement)
    lines += [f"  {'sha256':<10}{finding.rule_sha256}"]
    lines += [f"  {'source':<10}{paper.title}, {paper.url}" for paper in finding.papers]
    lines += [f"  {'model':<10}{found.model or 'none'}"]
    lines += [f"  {'results':<10}{folder}" for folder in found.folders]
    if found.limited:
        lines += _wrapped("trial", "tasks were cut short with a limit: this is no reproduction")
    confidence = f"{100 * (1 - finding.rule.alpha):g} %"
    lines += ["", f"Figures, with one-sided bounds at {confidence}"]
    lines += [f"  {line}" for figure in answer.figures for line in _figure(figure)]
    return "\n".join(lines) + "\n"


def listed(findings: list[Finding]) -> str:
    """All findings, one paragraph each."""
    lines: list[str] = []
    for finding in findings:
        lines += [finding.finding, f"  {finding.title}", f"  {finding.papers[0].url}", ""]
    return "\n".join(lines)


def to_json(found: Reproduction) -> dict[str, Any]:
    """As plain data; a bound that is not finite is null."""
    return {
        "finding": found.finding.finding,
        "version": found.finding.version,
        "title": found.finding.title,
        "verdict": found.answer.verdict,
        "reason": found.answer.reason,
        "rule": found.finding.rule.model_dump(mode="json"),
        "rule_sha256": found.finding.rule_sha256,
        "papers": [paper.url for paper in found.finding.papers],
        "model": found.model,
        "limited": found.limited,
        "figures": [
            {
                "what": f.what,
                "value": _number(f.value),
                "low": _number(f.low),
                "high": _number(f.high),
                "unit": f.unit,
                "verdict": f.verdict,
                "note": f.note,
            }
            for f in found.answer.figures
        ],
    }


def entry(finding: Finding) -> dict[str, Any]:
    """A finding in a list, as plain data."""
    return {
        "id": finding.finding,
        "version": finding.version,
        "title": finding.title,
        "kind": finding.rule.kind,
        "rule_sha256": finding.rule_sha256,
        "papers": [paper.url for paper in finding.papers],
    }


def _wrapped(name: str, said: str) -> list[str]:
    return textwrap.wrap(" ".join(said.split()), WIDTH, initial_indent=f"  {name:<10}", subsequent_indent=" " * 12)


def _figure(figure: Figure) -> list[str]:
    bounds = ""
    if not (math.isnan(figure.low) and math.isnan(figure.high)):
        bounds = f"  [{said(figure.low, figure)}, {said(figure.high, figure)}]"
    verdict = f"  {figure.verdict}" if figure.verdict else ""
    lines = [f"{figure.what}: {said(figure.value, figure)}{bounds}{verdict}"]
    return [*lines, f"    {figure.note}"] if figure.note else lines


def said(value: float, figure: Figure) -> str:
    """A value or a bound of a figure, in its unit."""
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else "unbounded"
    if figure.unit == "points":
        return f"{100 * value:+.2f} points"
    if figure.unit == "%":
        return f"{100 * value:+.2f} %"
    if figure.unit == "nats":
        return f"{value:+.5f} nats"
    if figure.unit == "x":
        return f"{value:.3g}x"
    return f"{value:g}" if value == int(value) else f"{value:.4g}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
