"""Answers to claims, for people and for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from sparsebench.reports import notation
from sparsebench.reports.claim_answer import ClaimAnswer, Part


def text(found: ClaimAnswer) -> str:
    """For a terminal."""
    lines = [f"{found.answer}: {found.claim.sentence}"]
    for part in found.parts:
        lines.append(f"  {part.answer:12}  {notation.printable(part.name, 100)}: {evidence(part)}")
    lines.append(f"  {conditions(found)}")
    return "\n".join([*lines, ""])


def conditions(found: ClaimAnswer) -> str:
    """Of what the answer is, and how sure: in one line."""
    models = ", ".join(found.models)
    tier = f", tier {found.tier}" if found.tier else ""
    more = ""
    if found.answer == "UNDERPOWERED":
        needed, open_parts = found.n_still_needed, [part for part in found.parts if part.answer == "UNDERPOWERED"]
        enough = needed and all(part.n_needed for part in open_parts)
        more = f"; about {needed:,} more samples would decide it" if enough else f"; {found.reason}"
    return f"Measured on {models}{tier}; one-sided tests at alpha {found.alpha:g}{more}."


def evidence(part: Part) -> str:
    """One part's numbers in words."""
    if part.loss is None:
        return f"{part.measure + ': ' if part.measure else ''}{part.why}"
    if part.low is None or part.high is None:
        return f"{part.measure} {notation.percent(part.loss)}, the limit is {notation.percent(part.limit)}"

    def size(value: float) -> str:
        if math.isnan(value):
            return "?"
        shown = f"{100 * value:.2f}".replace("-", notation.MINUS)
        return shown if part.points else f"{shown}%"

    unit = " points" if part.points else ""
    values = f"{notation.number(part.baseline)} to {notation.number(part.value)}"
    interval = f"{size(part.loss)} [{size(part.low)}, {size(part.high)}]{unit}"
    said = f"{part.measure} {values}, a loss of {interval}, the limit is {size(part.limit)}{unit}; n {part.n:,}"
    needed = f"; n needed {part.n_needed:,}" if part.n_needed else ""
    return said + needed + "".join(f"; {more}" for more in (part.why, part.remark) if more)


def to_json(found: ClaimAnswer) -> str:
    """Everything as JSON; what is not known is null."""
    data = {
        "answer": found.answer,
        "claim": found.claim.sentence,
        "alpha": found.alpha,
        "n_still_needed": found.n_still_needed,
        "tier": found.tier,
        "models": list(found.models),
        "reason": found.reason,
        "parts": [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(part).items()}
            for part in found.parts
        ],
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
