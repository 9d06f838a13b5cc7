"""Whether a row was as sparse as it was asked to be: a verdict on a method that left nothing out says nothing."""

from __future__ import annotations

from sparsebench.budget import Budget
from sparsebench.records import CellRecord, CellSpec
from sparsebench.reports import notation

POINTS = 0.05
SHARE = 0.1
"""A realised sparsity is far below what was asked where it is so many points and such a share of it below."""
NOT_MET = "the budget was not met"
"""How the remark begins."""


def not_met(spec: CellSpec, record: CellRecord) -> str:
    """That a method at a ratio or a pattern realised far less; empty where it did not, or where it is not known.

    Stacks have no one sparsity, and other budgets (tokens, terms, bits ...) name no share that it could be held to.
    """
    realised = record.outcome.sparsity
    if len(spec.stack) != 1 or realised is None or not (given := spec.stack[0].budget):
        return ""
    budget = Budget.from_dict(given)
    if budget.kind not in ("sparsity", "pattern"):
        return ""
    lacking = budget.number - realised
    if lacking <= POINTS or lacking <= SHARE * budget.number:
        return ""
    asked = notation.percent(budget.number)
    return f"{NOT_MET}: {notation.percent(realised)} of {record.outcome.sparsity_of or 'what counts'}, {asked} asked"
