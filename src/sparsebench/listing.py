"""What there is, as plain rows; nothing here imports torch."""

from __future__ import annotations

from typing import Any

from sparsebench import adapters
from sparsebench.errors import InputError


def listing(kind: str, family: str | None = None) -> list[dict[str, Any]]:
    """Objects with at least `id`, `family`, `title` and `needs`.

    Args:
        kind: `adapters`, `suites`, `tasks`, `models` or `data`.
        family: Only those of one family.
    """
    rows = _KINDS[kind]()
    families = sorted({row["family"] for row in rows})
    if family is not None and family not in families:
        raise InputError(f"no {kind} of family {family!r}", f"families: {', '.join(families)}")
    return [row for row in rows if family in (None, row["family"])]


def _adapters() -> list[dict[str, Any]]:
    return [
        {
            "id": card.id,
            "family": card.family,
            "title": card.title,
            "role": card.role,
            "phases": list(card.phases),
            "budgets": list(card.budgets),
            "training": card.training,
            "needs": list(card.needs),
            "summary": card.summary,
        }
        for card in adapters.cards()
    ]


def _suites() -> list[dict[str, Any]]:
    from sparsebench.suite_source import load_suite, names

    rows = []
    for name in names():
        suite = load_suite(name)
        rows.append({"id": name, "family": "suite", "title": suite.title, "needs": _suite_needs(name)})
    return rows


def _suite_needs(name: str) -> list[str]:
    from sparsebench.suite_source import load_suite
    from sparsebench.tasks.registry import definitions

    alternatives = {d.task: d.data for d in definitions()}
    tasks = {entry.task for grid in load_suite(name).grids for entry in grid.tasks}
    needs = {_data_need(alternatives[task]) for task in tasks if task in alternatives}
    return sorted(need for need in needs if need)


def _data_need(alternatives: list[dict[str, Any]]) -> str:
    kinds = {kind for alternative in alternatives for kind in alternative}
    if not alternatives or "embedded" in kinds:
        return ""
    return "SPARSEBENCH_DATA or the hub" if "hf" in kinds else "SPARSEBENCH_DATA"


def _tasks() -> list[dict[str, Any]]:
    from sparsebench.tasks.registry import definitions

    return [
        {
            "id": d.task,
            "family": d.family,
            "title": d.title,
            "type": d.type,
            "metrics": [m.name for m in d.metrics if m.headline],
            "lengths": [str(length) for length in d.lengths],
            "needs": [need] if (need := _data_need(d.data)) else [],
        }
        for d in definitions()
        if not d.lengths or d.task.endswith(f"-{d.lengths[0]}")
    ]


def _models() -> list[dict[str, Any]]:
    from sparsebench.systems.embedded import MODELS

    return [
        {"id": m.id, "family": m.kind, "title": m.title, "ref": m.ref, "license": m.license, "needs": []}
        for m in MODELS
    ]


def _data() -> list[dict[str, Any]]:
    from sparsebench.data.catalogue import catalogue

    return [
        {
            "id": d.id,
            "family": d.family,
            "title": d.title,
            "license": d.license,
            "available": d.available(),
            "needs": list(d.needs),
        }
        for d in catalogue()
    ]


_KINDS = {"adapters": _adapters, "suites": _suites, "tasks": _tasks, "models": _models, "data": _data}


def card_text(name: str) -> str:
    """A card as text: what the method is, its knobs, its citation."""
    method = adapters.get(name)
    card = method.card
    lines = [f"{card.title}  ({card.id}, {card.family})", "", card.summary, ""]
    facts = {
        "role": card.role,
        "unit": card.unit,
        "phases": ", ".join(card.phases) or "none",
        "adaptivity": card.adaptivity,
        "budgets": ", ".join(card.budgets) or "none",
        "training": card.training,
        "modes": ", ".join(card.modes),
        "shares prefixes": "yes" if card.prefix_invariant else "no",
        "needs": ", ".join(card.needs) or "nothing more",
        "nearest": f"{card.nearest}: {card.differs}" if card.nearest else "",
    }
    lines += [f"  {key:<16} {value}" for key, value in facts.items() if value]
    for deviation in card.deviations:
        lines.append(f"  {'deviation':<16} {deviation}")
    if method.model_fields:
        lines += ["", "Knobs"]
        for knob, info in method.model_fields.items():
            default = info.get_default(call_default_factory=True)
            lines.append(f"  {knob:<16} {default!r:<14} {info.description or ''}".rstrip())
    if card.paper is not None:
        lines += ["", "Citation", card.paper.bibtex]
    return "\n".join(lines)
