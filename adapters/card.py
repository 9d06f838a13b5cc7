"""A method's card: what it is, whose it is, what it takes and what it needs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsebench.budget import BudgetKind

Family = Literal["pruning", "activation", "attention", "retrieval"]
Mode = Literal["simulated", "executed"]
"""`simulated`: dense work under a mask, which has no speed; `executed`: what is left out is skipped."""


class Paper(BaseModel):
    """Where a method was published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    authors: str
    year: int
    venue: str = ""
    url: str = ""
    key: str = ""
    """BibTeX key."""

    @property
    def bibtex(self) -> str:
        """An entry to copy."""
        kind = "inproceedings" if self.venue and not self.venue.startswith("arXiv") else "misc"
        fields = {"title": f"{{{self.title}}}", "author": self.authors, "year": str(self.year)}
        if self.venue:
            fields["booktitle" if kind == "inproceedings" else "howpublished"] = self.venue
        if self.url:
            fields["url"] = self.url
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@{kind}{{{self.key},\n{body}\n}}"


class MethodCard(BaseModel):
    """What a reader of the leaderboard, the planner and the conformance tests must know of a method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Unique over all families; the module's file name with `-` for `_`."""
    version: int = Field(default=1, ge=1)
    """Raised whenever the same configuration gives other numbers."""
    family: Family
    title: str
    summary: str
    """One sentence: what is scored, what is left out."""
    paper: Paper | None = None
    """None for controls (dense, random, oracle) that nobody published."""
    role: Literal["method", "comparator", "control", "bound"] = "method"
    unit: str
    """What is left out: weight, channel, neuron, token, block, page, column, head, term, vector ..."""
    phases: tuple[Literal["prefill", "decode"], ...] = ("prefill", "decode")
    """Phases in which the method acts; a search acts in none of them and says `()`."""
    adaptivity: Literal["fixed", "static", "threshold", "coverage"] = "fixed"
    """`fixed`: the same budget for each input; `static`: not even its place depends on the input; `threshold` and
    `coverage`: the realised budget varies with the input."""
    budgets: tuple[BudgetKind, ...] = ("sparsity",)
    training: Literal["none", "calibration", "gradient", "weights", "training"] = "none"
    """What has to happen before it runs: nothing, statistics of a calibration text, gradients on one, a released
    checkpoint, training."""
    needs: tuple[str, ...] = ()
    """What must be had beyond the installed package, in words; empty when it runs as it is."""
    modes: tuple[Mode, ...] = ("simulated",)
    prefix_invariant: bool = True
    """Whether a token's result depends on the tokens before it only. If not, the engine shares no prefixes."""
    prepare_depends_on_budget: bool = False
    nearest: str = ""
    """Id of the nearest relative."""
    differs: str = ""
    """What separates the two."""
    deviations: tuple[str, ...] = ()
    """Where this form departs from the paper's setting; shown beside every row."""

    @model_validator(mode="after")
    def _complete(self) -> MethodCard:
        if self.role in ("method", "comparator") and self.paper is None:
            raise ValueError(f"card {self.id}: a {self.role} names its paper")
        if bool(self.nearest) != bool(self.differs):
            raise ValueError(f"card {self.id}: `nearest` and `differs` go together")
        return self
