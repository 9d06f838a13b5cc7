"""The exact tier of a check: cells that are there, and counts that must be equal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sparsebench.reports import notation
from sparsebench.reports.check_result import CheckRow, name_of
from sparsebench.reports.matching import Match
from sparsebench.reports.verdicts import not_exercised
from sparsebench.store import StoredCell

TOLERANCE = 1e-9
"""Relative difference up to which counts are equal."""
UNSAID = "no reason was recorded"


def cell_rows(m: Match, tolerance: float) -> Iterator[CheckRow]:
    """What is said of a cell as a whole, and of its counts."""
    name = name_of(m.baseline)
    if m.candidate is None:
        yield CheckRow("cells", name, "", "missing", True, "not in the candidate")
        return
    if m.refused:
        yield CheckRow("cells", name, "", "refused", True, f"{m.refused}: {', '.join(m.differs)}")
        return
    before, after = m.baseline.record.outcome, m.candidate.record.outcome
    if after.status == "failed":
        # Also where it failed before: nothing about it was checked, and a gate that says nothing of it would pass.
        too = "in the baseline too: " if before.status == "failed" else ""
        yield CheckRow("cells", name, "", "failed", True, too + notation.printable(after.error or UNSAID, 300))
        return
    if before.status == "failed":
        yield CheckRow("cells", name, "", "new", False, "it failed in the baseline")
        return
    if not_exercised(after) and not not_exercised(before):
        yield CheckRow("cells", name, "", "changed", True, f"no longer exercised: {not_exercised(after)}")
    fingerprints = m.baseline.spec.system.fingerprint, m.candidate.spec.system.fingerprint
    if fingerprints[0] != fingerprints[1] or m.baseline.spec.system.ref != m.candidate.spec.system.ref:
        yield CheckRow("exact", name, "", "not compared", False, "another model: its counts may differ")
        return
    yield from _count_rows(name, m.baseline, m.candidate, tolerance)


def _count_rows(name: str, baseline: StoredCell, candidate: StoredCell, tolerance: float) -> Iterator[CheckRow]:
    """Counts that are not equal, and how many are."""
    before, after = counts_of(baseline), counts_of(candidate)
    equal = 0
    if any(before.get(what) != after.get(what) for what in LENGTHS):
        # What a model says decides how long it goes on, and so all that is counted while it does.
        reason = "it wrote texts of other lengths, and what is counted in them was not compared"
        tokens = before.get(LENGTHS[0]), after.get(LENGTHS[0])
        yield CheckRow("exact", name, "decode tokens", "not compared", False, reason, *tokens)
        before, after = ({k: v for k, v in each.items() if not _of_texts(k, baseline)} for each in (before, after))
    for what in sorted({*before, *after}):
        a, b = before.get(what), after.get(what)
        if a is not None and b is not None and math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance):
            equal += 1
            continue
        cheaper = what in COSTS and a is not None and b is not None and b < a
        worse = what in COSTS and a is not None and b is not None and b > a
        verdict = "improved" if cheaper else "regressed" if worse else "changed"
        reason = "only in one of the two" if a is None or b is None else "should be equal"
        yield CheckRow("exact", name, what, verdict, not cheaper, "costs less" if cheaper else reason, a, b)
    if equal:
        yield CheckRow("exact", name, "", "same", False, f"{equal} count{'s' if equal > 1 else ''} equal")


def _of_texts(what: str, cell: StoredCell) -> bool:
    """Whether a count depends on how long the texts are that a model writes."""
    if what == "sparsity":
        of = cell.record.outcome.sparsity_of or ""
        return not ("weights" in of or of.endswith("in prefill"))
    return what.startswith(("flops", "bytes_per_token", "decode_queries", "counter decode.")) or (
        what.startswith("realised") and "prefill" not in what and "weights" not in what
    )


LENGTHS = ("counter decode.tokens", "counter decode.causal_pairs")
"""Counts that differ where texts that were written are of other lengths."""
COSTS = ("flops", "bytes_per_token")
"""Counts of which less is better, and no defect."""


def counts_of(cell: StoredCell) -> dict[str, float]:
    """What a cell counted: sparsity, densities, FLOPs, bytes and counters; no times and no memory."""
    outcome = cell.record.outcome
    named = {
        name: getattr(outcome, name)
        for name in ("sparsity", "flops", "flops_dense", "bytes_per_token", "bytes_per_token_dense", "decode_queries")
    }
    densities = {f"realised {name}": value for name, value in outcome.densities.items()}
    counters = {f"counter {name}": value for name, value in outcome.counters.items()}
    return {k: v for k, v in {**named, **densities, **counters}.items() if v is not None}
