"""How numbers, verdicts and names are written, wherever a report shows them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def by_number(name: str) -> list[tuple[str, int]]:
    """What names are sorted by: `needle-512` before `needle-1024`.

    >>> sorted(["needle-1024", "needle-512", "facts"], key=by_number)
    ['facts', 'needle-512', 'needle-1024']
    """
    return [(text, int(digits or -1)) for text, digits in re.findall(r"([^0-9]*)([0-9]{0,18})", name)]


@dataclass(frozen=True)
class Mark:
    """How a verdict is shown: a symbol and a word always, a colour where there is one."""

    symbol: str
    style: str
    """Style in a terminal."""
    meaning: str


VERDICTS: dict[str, Mark] = {
    "improved": Mark("▲", "bold blue", "Better than the baseline, beyond chance and beyond the noise of the baseline."),
    "non-inferior": Mark("●", "green", "The loss is smaller than the declared margin: quality is kept."),
    "regressed": Mark("▼", "bold red", "Worse than the baseline beyond chance, and not shown to be within the margin."),
    "inconclusive": Mark("○", "yellow", "These samples cannot tell; the reason says what stands in the way."),
    "no signal": Mark("∅", "dim", "The baseline itself is not above chance, so a loss could not be seen."),
    "not exercised": Mark("\N{EN DASH}", "dim", "The method acted on nothing that feeds a scored token."),
    "baseline": Mark("◆", "default", "What the other rows of its grid are compared with."),
    "noise": Mark("≈", "dim", "The baseline again, run another way (A/A): the noise that a difference must exceed."),
    "failed": Mark(
        "✕", "bold red", "The cell did not finish, or its files cannot be trusted; the reason is beside it."
    ),
}
"""Every verdict that a table can hold, in the order in which they are listed."""

_NOT_PRINTABLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def printable(text: object, limit: int | None = None) -> str:
    """One line of text without control, direction or other invisible characters, cut to `limit` characters."""
    kept = str(text)
    if not kept.isprintable() or "  " in kept:
        spaced = re.sub(r"\s+", " ", kept)
        kept = "".join(c for c in spaced if unicodedata.category(c) not in _NOT_PRINTABLE)
    kept = kept.strip()
    return kept if limit is None or len(kept) <= limit else kept[: limit - 1] + "…"


def visible(text: str) -> str:
    """Lines of text without control, direction or other invisible characters."""
    return "\n".join(printable(line) for line in text.splitlines())


def harmless(text: str) -> str:
    """Text with its lines and spaces as they are, without control, direction or other invisible characters."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _NOT_PRINTABLE)


def escaped(text: str) -> str:
    """JSON with such characters as escapes: it still means the same."""
    if text.replace("\n", "").isprintable():
        return text
    hidden = (c for c in set(text) if c != "\n" and unicodedata.category(c) in _NOT_PRINTABLE)
    return text.translate({ord(c): json.dumps(c)[1:-1] for c in hidden})


def model_name(reference: str) -> str:
    """A model's reference in brief: `model.Q4_1.gguf`, `org/name@revision`, `package/folder`, the end of a path."""
    kind, colon, rest = reference.partition(":")
    rest = rest.split("&sha256=")[0]
    if not colon:
        return printable(reference)
    if kind == "hf":
        return printable(rest)
    package, _, inside = rest.partition("#")
    last = rest.rstrip("/").rsplit("#", 1)[-1].rsplit("/", 1)[-1]
    if inside and "." not in last:  # a folder, whose name says little
        return printable(f"{package.split('==')[0]}/{inside}")
    return printable(last or rest)


def slug(text: str) -> str:
    """A file name for any text: itself where that is safe, else a cleaned form with a hash that keeps it apart."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
    if cleaned and cleaned == text and cleaned != "index":
        return cleaned
    return f"{cleaned or 'name'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def known(value: object) -> bool:
    """Whether a table's entry is there: neither None nor NaN nor an empty string."""
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))


def decimals(value: float) -> int:
    """Decimals that a value of this size is written with."""
    size = abs(value)
    if size >= 1000:
        return 0
    return 1 if size >= 100 else 2 if size >= 10 else 3


def number(value: object, places: int | None = None) -> str:
    """A number with a proper minus sign; empty where it is not known."""
    if not known(value):
        return ""
    x = float(value)  # type: ignore[arg-type]
    if math.isinf(x):
        return "∞" if x > 0 else f"{MINUS}∞"
    if abs(x) >= 1e6:
        return f"{x:.2e}".replace("-", MINUS)
    places = decimals(x) if places is None else min(places, decimals(x) + 1 if abs(x) < 1000 else 0)
    text = f"{x:,.{places}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)


def signed(value: object, places: int | None = None) -> str:
    """A difference with its sign."""
    text = number(value, places)
    return text if not text or text.startswith(MINUS) or not re.search(r"[1-9∞]", text) else f"+{text}"


def interval(low: object, high: object, places: int | None = None) -> str:
    """`[−0.034, +0.010]`; an unknown end is open, and nothing is written where neither is known."""
    if not known(low) and not known(high):
        return ""
    ends = (signed(low, places) or f"{MINUS}∞", signed(high, places) or "+∞")
    return f"[{ends[0]}, {ends[1]}]"


def percent(value: object, places: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * float(value):.{places}f}%" if known(value) else ""  # type: ignore[arg-type]


def ratio(value: object) -> str:
    """A cost as a multiple of the dense one."""
    if not known(value):
        return ""
    x = float(value)  # type: ignore[arg-type]
    return f"{x:.2f}{TIMES}" if x < 10 else f"{x:.3g}{TIMES}"


def p_value(value: object) -> str:
    """A p value, `<0.001` where it is smaller."""
    if not known(value):
        return ""
    x = float(value)  # type: ignore[arg-type]
    return "<0.001" if x < 0.001 else f"{x:.3f}"


def count(value: object) -> str:
    """A whole number with thousands separated."""
    return f"{float(value):,.0f}" if known(value) else ""  # type: ignore[arg-type]


def bytes_size(value: object) -> str:
    """`1.2 GiB`."""
    if not known(value):
        return ""
    x = float(value)  # type: ignore[arg-type]
    for unit in ("B", "KiB", "MiB", "GiB"):
        if x < 1024:
            return f"{x:.3g} {unit}"
        x /= 1024
    return f"{x:.3g} TiB"
