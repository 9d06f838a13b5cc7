"""A check's result for people and for build systems: text, Markdown, JSON, JUnit XML and GitHub annotations."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from sparsebench.errors import UnknownNameError
from sparsebench.reports import notation
from sparsebench.reports.check_result import CheckResult, CheckRow
from sparsebench.reports.tables import escape_markdown


def render(result: CheckResult, format: str) -> str:
    """A result in one of `FORMATS`.

    Raises:
        UnknownNameError: Another format.
    """
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    return FORMATS[format](result)


def _places(row: CheckRow) -> int | None:
    return notation.decimals(row.baseline) + 1 if row.baseline is not None and math.isfinite(row.baseline) else None


def difference(row: CheckRow) -> str:
    """`0.430 to 0.412, −0.018 [−0.031, −0.005]`."""
    if row.baseline is None or row.candidate is None:
        return ""
    places = _places(row)
    text = f"{notation.number(row.baseline, places)} to {notation.number(row.candidate, places)}"
    comparison = row.judgement.comparison if row.judgement else None
    if comparison is None:
        return text if row.tier == "quality" else f"{row.baseline:.12g} to {row.candidate:.12g}"
    interval = notation.interval(comparison.delta_low, comparison.delta_high, places)
    return f"{text}, {notation.signed(comparison.delta, places)} {interval}"


def _flips(row: CheckRow) -> str:
    comparison = row.judgement.comparison if row.judgement else None
    if comparison is None:
        return ""
    parts = [f"n {comparison.n:,}"]
    if comparison.lost is not None:
        parts.append(f"{comparison.lost} lost, {comparison.gained} gained")
    if math.isfinite(comparison.mde):
        parts.append(f"detectable {comparison.mde:.3g}")
    return "; ".join(parts)


def _subject(row: CheckRow) -> str:
    return f"{row.name}: {row.what}" if row.what else row.name


def verdict_line(result: CheckResult) -> str:
    """The result in one line."""
    tested = sum(row.tier == "quality" and row.headline and row.judgement is not None for row in result.rows)
    failures = len(result.failures)
    if result.passed:
        return f"passed: nothing became worse, {tested} headline comparisons at alpha {result.alpha:g}"
    return f"failed: {failures} of {len(result.rows)} rows"


def text(result: CheckResult) -> str:
    """For a terminal: what fails first, then the comparisons, then the rest in brief."""
    lines = [f"note: {note}" for note in result.notes]
    shown = sorted(result.rows, key=lambda row: not row.fails)
    for row in shown:
        if row.tier == "exact" and not row.fails and row.verdict in ("same", "not compared"):
            continue
        detail = "; ".join(part for part in (difference(row), _flips(row), row.reason) if part)
        lines.append(f"{'FAIL' if row.fails else 'ok':4}  {row.verdict:13}  {_subject(row)}  {detail}".rstrip())
    return "\n".join([*lines, verdict_line(result), ""])


def markdown(result: CheckResult) -> str:
    """For a pull request."""
    lines = [f"**{escape_markdown(verdict_line(result))}**", ""]
    lines += [f"- {escape_markdown(note)}" for note in result.notes]
    lines += ["", "| | verdict | what | difference | samples | reason |", "| --- | --- | --- | --- | --- | --- |"]
    for row in sorted(result.rows, key=lambda row: not row.fails):
        cells = (_subject(row), difference(row), _flips(row), row.reason)
        shown = " | ".join(escape_markdown(cell) for cell in cells)
        lines.append(f"| {'**fails**' if row.fails else 'ok'} | {row.verdict} | {shown} |")
    return "\n".join([*lines, ""])


def to_json(result: CheckResult) -> str:
    """Everything as JSON; what is not known is null."""
    data = {
        "passed": result.passed,
        "alpha": result.alpha,
        "notes": result.notes,
        "rows": [_row(row) for row in result.rows],
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(row: CheckRow) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "tier": row.tier,
        "name": row.name,
        "what": row.what,
        "verdict": row.verdict,
        "fails": row.fails,
        "reason": row.reason,
        "headline": row.headline,
        "baseline": _finite(row.baseline),
        "candidate": _finite(row.candidate),
    }
    comparison = row.judgement.comparison if row.judgement else None
    if row.judgement is not None and comparison is not None:
        names = ("delta", "delta_low", "delta_high", "p", "mde", "required_n", "margin", "n", "lost", "gained")
        plain |= {name: _finite(getattr(comparison, name)) for name in names}
        plain |= {"p_adjusted": _finite(row.judgement.p_adjusted), "noise": row.judgement.noise}
    return plain


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def junit(result: CheckResult) -> str:
    """For build systems: each row is a test case."""
    suite = ElementTree.Element(
        "testsuite",
        name="sparsebench check",
        tests=str(len(result.rows)),
        failures=str(len(result.failures)),
        errors="0",
        skipped=str(sum(_skipped(row) for row in result.rows)),
    )
    if result.notes:
        properties = ElementTree.SubElement(suite, "properties")
        for note in result.notes:
            ElementTree.SubElement(properties, "property", name="note", value=_xml(note))
    for row in result.rows:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"sparsebench.{row.tier}", name=_xml(_subject(row)), time="0"
        )
        message = _xml("; ".join(part for part in (row.verdict, difference(row), row.reason) if part))
        if row.fails:
            ElementTree.SubElement(case, "failure", type=row.verdict, message=message).text = message
        elif _skipped(row):
            ElementTree.SubElement(case, "skipped", message=message)
        else:
            ElementTree.SubElement(case, "system-out").text = message
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _skipped(row: CheckRow) -> bool:
    return not row.fails and row.verdict in ("no signal", "not exercised", "not compared", "new")


def _xml(text: str) -> str:
    """Without what XML 1.0 has no way to write."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def github(result: CheckResult) -> str:
    """Workflow commands that become annotations: an error for each failure, a warning for what is inconclusive."""
    lines = [f"::notice title=sparsebench check::{_command(note)}" for note in result.notes]
    for row in result.rows:
        level = "error" if row.fails else "warning" if row.verdict == "inconclusive" and row.headline else ""
        if level:
            message = "; ".join(part for part in (row.verdict, difference(row), row.reason) if part)
            lines.append(f"::{level} title={_property(_subject(row))}::{_command(message)}")
    level = "notice" if result.passed else "error"
    lines.append(f"::{level} title=sparsebench check::{_command(verdict_line(result))}")
    return "\n".join([*lines, ""])


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _command(text).replace(":", "%3A").replace(",", "%2C")


FORMATS: dict[str, Callable[[CheckResult], str]] = {
    "text": text,
    "json": to_json,
    "junit": junit,
    "github": github,
    "md": markdown,
}
