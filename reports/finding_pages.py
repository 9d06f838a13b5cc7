"""What the site shows of findings: which hold in the results at hand, by the rules that were fixed before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsebench.errors import SparseBenchError
from sparsebench.reports import notation
from sparsebench.reports.sources import Source

if TYPE_CHECKING:
    from sparsebench.findings.answer import Figure
    from sparsebench.findings.definition import Finding

NOT_MEASURED = "not measured"
STYLES = {
    "holds": "non-inferior",
    "refuted": "regressed",
    "underpowered": "inconclusive",
    "collapsed": "no-signal",
    NOT_MEASURED: "no-signal",
}
SYMBOLS = {"holds": "●", "refuted": "▼", "underpowered": "○", "collapsed": "∅", NOT_MEASURED: "∅"}


def finding_views(findings: Sequence[Finding], sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Each finding with its answer; those whose suite is among the sources come first."""
    views = [_view(finding, [source for source in sources if _is_of(finding, source)]) for finding in findings]
    return sorted(views, key=lambda view: (view["status"] == NOT_MEASURED, view["id"]))


def _is_of(finding: Finding, source: Source) -> bool:
    suite = source.suite.get("suite") if isinstance(source.suite, dict) else None
    named = (suite.get("suite"), suite.get("version")) if isinstance(suite, dict) else ()
    return named == (finding.finding, finding.version)


def _view(finding: Finding, sources: Sequence[Source]) -> dict[str, Any]:
    status, reason, scope = NOT_MEASURED, "", ""
    figures: Sequence[Figure] = ()
    if sources:
        from sparsebench.findings.reproduce import reproduce

        try:
            found = reproduce(finding, [source.root for source in sources])
            status, reason, figures = found.answer.verdict, found.answer.reason, found.answer.figures
            trial = "; tasks were cut short, so that this is a trial and no reproduction" if found.limited else ""
            scope = f"{notation.model_name(found.model)}, and no other model{trial}"
        except SparseBenchError as error:
            status, reason = "underpowered", f"the rule cannot be applied: {error.message}"
    return {
        "id": finding.finding,
        "finding": finding,
        "status": status,
        "style": STYLES[status],
        "symbol": SYMBOLS[status],
        "reason": notation.printable(reason),
        "scope": scope,
        "figures": [_figure(figure) for figure in figures],
        "command": f"sparsebench reproduce {finding.finding}",
    }


def _figure(figure: Figure) -> dict[str, str]:
    from sparsebench.findings.text import said

    unbounded = math.isnan(figure.low) and math.isnan(figure.high)
    return {
        "what": notation.printable(figure.what, 200),
        "value": said(figure.value, figure),
        "bounds": "" if unbounded else f"{said(figure.low, figure)} to {said(figure.high, figure)}",
        "verdict": figure.verdict or "",
        "style": STYLES[figure.verdict] if figure.verdict else "",
        "note": notation.printable(figure.note, 300),
    }
