"""Claims that papers make, with the rule by which results hold or refute each; one YAML file a claim.

The rule is a sentence of `claim_language`. Its sha256 stands beside it, so that a rule which was changed after it had
been written down does not load, and the day on which it was written down is compared with the day of the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sparsebench.adapters.card import Paper
from sparsebench.errors import InputError
from sparsebench.identity import digest
from sparsebench.reports import notation
from sparsebench.reports.claim_answer import ClaimAnswer
from sparsebench.reports.claim_cells import cells_of
from sparsebench.reports.claim_formats import conditions, evidence
from sparsebench.reports.claim_language import parse
from sparsebench.reports.claims import answer
from sparsebench.reports.sources import Source, open_sources
from sparsebench.yaml_source import read_yaml, validate

Tier = Literal["S", "M", "L"]
TIERS = {"S": "below 1B parameters", "M": "1B to 9B", "L": "above 9B"}


class LedgerClaim(BaseModel):
    """A claim of a paper, and what would hold or refute it here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    claim: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Name of the claim, and of its file."""
    paper: Paper
    says: str
    """What the paper says, in words of our own."""
    conditions: str
    """Models, data and settings under which it says so."""
    tier: Tier
    """Size of the smallest models that it says so of."""
    differs: str = ""
    """Where what is measured here departs from those conditions."""
    rule: str
    """The sentence that is asked."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    declared: date
    """The day on which the rule was written down."""
    sha256: str
    """Of the rule and its level."""

    @property
    def rule_hash(self) -> str:
        """What `sha256` has to be."""
        return digest({"rule": self.rule, "alpha": self.alpha})


@dataclass(frozen=True)
class LedgerRow:
    """A claim with what results say of it.

    Attributes:
        entry: The claim.
        found: The answer; None where nothing of it was measured.
        problem: Why there is none.
        declared_before: Whether the rule was written down on an earlier day than any of the cells was measured; None
            where that is not known.
        cells: The cells that it is about, as (source, id).
    """

    entry: LedgerClaim
    found: ClaimAnswer | None
    problem: str
    declared_before: bool | None
    cells: tuple[tuple[str, str], ...] = ()

    @property
    def status(self) -> str:
        """`HOLDS`, `REFUTED`, `UNDERPOWERED` or `not measured`."""
        return self.found.answer if self.found is not None else "not measured"

    @property
    def scope(self) -> str:
        """Of which models the answer speaks, and whether the paper's are among them."""
        if self.found is None:
            return f"the paper speaks of tier {self.entry.tier}"
        if self.found.tier == self.entry.tier:
            return f"tier {self.found.tier}, as in the paper"
        return f"tier {self.found.tier or 'unknown'}; the paper speaks of tier {self.entry.tier}"

    @property
    def when(self) -> str:
        """Whether the rule stood before the run."""
        day = self.entry.declared.isoformat()
        if self.declared_before is None:
            return f"rule of {day}; when the run was is not known"
        return f"rule of {day}, {'before the run' if self.declared_before else 'not before the run: exploratory'}"


def read_claims(place: str | os.PathLike[str]) -> list[LedgerClaim]:
    """The claims of a folder, by name, or of one file.

    Raises:
        InputError: A file that is no claim, whose rule is no sentence, or was changed after it had been hashed.
    """
    path = Path(place)
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no claims", "a claim is a .yaml file; see `leaderboard/claims`")
    return [_read(file) for file in files]


def _read(file: Path) -> LedgerClaim:
    source = read_yaml(file)
    entry = validate(LedgerClaim, source)
    if entry.claim != file.stem:
        raise source.error(("claim",), f"the claim is called {entry.claim!r}, its file {file.name!r}")
    try:
        parse(entry.rule)
    except InputError as error:
        raise source.error(("rule",), error.message, error.hint) from None
    if entry.sha256 != entry.rule_hash:
        raise source.error(
            ("sha256",), "the rule is not the one that was hashed", f"for a new rule: declared today, {entry.rule_hash}"
        )
    return entry


def evaluate(claims: Sequence[LedgerClaim], results_folders: Sequence[str | os.PathLike[str]]) -> list[LedgerRow]:
    """Ask results about claims.

    Raises:
        InputError: A folder without results.
    """
    return evaluate_sources(claims, open_sources(results_folders))


def evaluate_sources(claims: Sequence[LedgerClaim], sources: Sequence[Source]) -> list[LedgerRow]:
    """Ask opened results about claims; what they do not hold is `not measured`."""
    rows = []
    for entry in claims:
        claim = parse(entry.rule)
        try:
            cells = cells_of(claim, sources)
            found = answer(claim, sources, entry.alpha)
        except InputError as error:
            rows.append(LedgerRow(entry, None, error.message, None))
            continue
        days = sorted(cell.environment.started[:10] for _, cell in cells)
        before = entry.declared.isoformat() < days[0] if days and days[0] else None
        rows.append(LedgerRow(entry, found, "", before, tuple((s.name, c.id) for s, c in cells)))
    return rows


def text(rows: Sequence[LedgerRow]) -> str:
    """For a terminal."""
    lines = []
    for row in rows:
        lines += [f"{row.status:<12}  {row.entry.claim}  ({row.entry.paper.title}, {row.entry.paper.year})"]
        lines += [f"  {row.entry.says}", f"  rule: {row.entry.rule}"]
        if row.found is None:
            lines.append(f"  {row.problem}")
        else:
            lines += [f"  {notation.printable(part.name, 100)}: {evidence(part)}" for part in row.found.parts]
            lines.append(f"  {conditions(row.found)}")
        lines += [f"  {row.scope}; {row.when}", ""]
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(r.status for r in rows)}
    lines.append(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no claims")
    return "\n".join([*lines, ""])


def to_json(rows: Sequence[LedgerRow]) -> str:
    """As JSON."""
    data: list[dict[str, Any]] = [
        {
            "claim": row.entry.claim,
            "paper": row.entry.paper.model_dump(),
            "says": row.entry.says,
            "conditions": row.entry.conditions,
            "differs": row.entry.differs,
            "paper_tier": row.entry.tier,
            "rule": row.entry.rule,
            "sha256": row.entry.sha256,
            "declared": row.entry.declared.isoformat(),
            "declared_before_run": row.declared_before,
            "status": row.status,
            "tier": row.found.tier if row.found else "",
            "n_still_needed": row.found.n_still_needed if row.found else None,
            "reason": row.found.reason if row.found else row.problem,
            "evidence": [f"{part.name}: {evidence(part)}" for part in row.found.parts] if row.found else [],
            "cells": [list(cell) for cell in row.cells],
        }
        for row in rows
    ]
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
