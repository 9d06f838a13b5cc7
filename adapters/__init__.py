"""Adapters: one file a method, by family.

    create("wanda", sparsity=0.5)     a method at a budget
    get("wanda")                      its class
    cards()                           every card, without importing torch
    create_stack([...])               several methods, attached in order

A method's module is named after its id, so that `get` imports that one file only; other packages add theirs under the
entry point group `sparsebench.adapters`.
"""

from __future__ import annotations

from typing import Any

from sparsebench.adapters.base import Adapter, Prepared, Sparsity, attached
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.registry import cards, code_of, get, ids, package_of
from sparsebench.budget import KINDS, Budget
from sparsebench.errors import InputError

__all__ = [
    "Adapter",
    "MethodCard",
    "Paper",
    "Prepared",
    "Sparsity",
    "attached",
    "cards",
    "code_of",
    "create",
    "get",
    "ids",
    "package_of",
]


def create(name: str, **knobs: Any) -> Sparsity:
    """A method at a budget: `create("wanda", sparsity=0.5, compare_group="layer")`.

    Args:
        name: The method's id.
        knobs: Its knobs; at most one keyword names a budget kind instead.

    Raises:
        UnknownNameError: No such method or knob.
        InputError: A value out of range, two budgets, or a budget that the method does not take.
    """
    method = get(name)
    given = {kind: knobs.pop(kind) for kind in KINDS if kind in knobs and kind not in method.model_fields}
    if len(given) > 1:
        raise InputError(f"{name}: one budget at a time, not {' and '.join(sorted(given))}")
    return Sparsity(method.configure(knobs), Budget.from_dict(given) if given else None)
