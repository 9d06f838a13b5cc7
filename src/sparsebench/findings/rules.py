"""The kinds of rule, as data: what is compared, by how much, and at which level. Thresholds are fixed before a run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsebench.errors import FieldError


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Entry):
    """A method among results, by its id and those of its knobs that matter; its other knobs must be one setting."""

    method: str
    knobs: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """`wina transform=True`."""
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.knobs.items())])


class Measured(_Entry):
    """A metric of a task."""

    task: str
    metric: str = ""
    """`` for the task's headline."""
    column: str = ""
    """A column of the samples that is no metric of the task, in the place of one."""


class Rule(_Entry):
    """What all rules have."""

    statement: str
    """The rule in words."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Level of each one-sided test."""
    resamples: int = Field(default=10_000, ge=100, le=1_000_000)
    seed: int = 0


class Matched(Rule):
    """A pattern against unstructured sparsity at the perplexity that the pattern itself has."""

    kind: Literal["matched-perplexity"]
    method: Row
    pattern: str
    knowledge: Measured
    perplexity: Measured
    effect: float = Field(gt=0)
    """How much lower the pattern's accuracy must be shown to be."""


class FirstToFall(Rule):
    """The largest sparsity that keeps knowledge against the largest that keeps perplexity."""

    kind: Literal["first-to-fall"]
    methods: list[Row] = Field(min_length=1)
    knowledge: Measured
    perplexities: list[Measured] = Field(min_length=1)
    perplexity_ratio: float = Field(gt=1)
    knowledge_loss: float = Field(gt=0, lt=1)
    """Relative to the dense model's accuracy."""
    share: float = Field(gt=0.5, lt=1)
    """Of joint draws in which knowledge must fall first."""
    required: int = Field(ge=1)
    """Methods of which it must be so."""


class Curve(_Entry):
    """One curve over sparsity."""

    row: Row
    measured: Measured


class Knee(Rule):
    """A breakpoint that two lines have and a smooth curve has not."""

    kind: Literal["knee"]
    curves: list[Curve] = Field(min_length=1)
    levels: int = Field(ge=6)
    """Fewest levels of a curve."""
    widest: float = Field(gt=0)
    """Widest interval of a breakpoint that counts as located."""


class Contest(Rule):
    """What two rows at equal levels have in common as a rule."""

    measured: Measured
    ours: Row
    theirs: Row
    levels: list[float] = Field(min_length=1)
    replicates: int = Field(ge=1)
    """Calibration sets or seeds that both rows must have."""
    samples: int = Field(default=1, ge=1)
    """Fewest samples."""


class Superiority(Contest):
    """One method loses less than another at equal sparsity."""

    kind: Literal["superiority"]
    collapse_ratio: float | None = Field(default=None, gt=1)
    """Perplexity ratio to dense beyond which a level has collapsed."""
    equivalence: float | None = Field(default=None, gt=0)
    """Two rows whose difference is shown to be less than this share of theirs are equivalent: no better."""
    matched_sparsity: float | None = Field(default=None, gt=0)
    """Largest difference of realised sparsities."""


class Equivalence(Contest):
    """One method is no better than another: TOST."""

    kind: Literal["equivalence"]
    margin: float = Field(gt=0)
    """As a share of theirs."""
    equal_knobs: list[str] = Field(default_factory=list)
    """Knobs that both must have alike: what makes the contest fair."""


class Unit(_Entry):
    """One rule of selection, in either phase."""

    name: str
    prefill: Row
    decode: Row


class Tolerance(Rule):
    """The density that prefill needs over the density that decode needs, for an equal loss."""

    kind: Literal["phase-tolerance"]
    units: list[Unit] = Field(min_length=1)
    tasks: dict[str, list[str]]
    """Task to its forms at each length."""
    margin: float = Field(gt=0)
    """Loss in points of the metric."""
    usable: float = Field(gt=0)
    """Least value of the dense model; tasks below have no signal."""
    samples: int = Field(ge=1)
    decode_queries: int = Field(ge=1)
    required: int = Field(ge=1)


class Contextual(Rule):
    """Contextual sparsity drifts with generated length, and correction recovers it."""

    kind: Literal["contextual-gap"]
    early: Measured
    late: Measured
    unlikely: Measured
    """How unlikely the dense model holds what each model wrote."""
    sparse: list[Row] = Field(min_length=1)
    corrected: list[Row] = Field(min_length=1)
    """In the order of `sparse`: the same methods, corrected."""
    level: float
    samples: int = Field(ge=1)
    recovery: float = Field(gt=0, le=1)
    density: float = Field(gt=0, le=1)
    """Effective density that a corrected row must stay below."""


class Interpolation(Rule):
    """Fusion before and after feedback against either alone, its weight chosen by nested cross-validation."""

    kind: Literal["interpolation"]
    row: Row
    where: str
    """The knob that says where rankings are fused."""
    weight: str
    """The knob that says by how much."""
    both: str
    alone: list[str] = Field(min_length=1)
    measured: list[Measured] = Field(min_length=1)
    """One collection each."""
    folds: int = Field(ge=2)
    collections: int = Field(ge=1)
    queries: int = Field(ge=1)


class Setting(Row):
    """A row at a budget; without one, the row as it is when nothing is left out."""

    budget: dict[str, float | int | str] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """`muvera depth=10`."""
        return " ".join([super().label, *(f"{kind}={value}" for kind, value in self.budget.items())])


class OverCollections(Rule):
    """What the rules have in common that put the queries of several collections together."""

    measured: list[Measured] = Field(min_length=1)
    """One collection each."""
    queries: int = Field(ge=1)
    """Fewest queries, of all collections together."""


class Pair(_Entry):
    """Two settings that are compared query by query."""

    ours: Setting
    theirs: Setting


class Pooled(OverCollections):
    """One setting against another over all queries, and what it costs."""

    kind: Literal["pooled"]
    pairs: list[Pair] = Field(min_length=1)
    asks: Literal["better", "no-worse"]
    margin: float = Field(default=0.0, ge=0)
    """How much worse is still no worse."""
    costs: dict[str, float] = Field(default_factory=dict)
    """Counted work or measured times, with the largest share of theirs that ours may take."""


class SafeLevel(OverCollections):
    """The least budget at which quality is kept, tested from the largest down."""

    kind: Literal["safe-level"]
    row: Setting
    """What the levels are compared with: the row without a budget."""
    budget: str
    levels: list[float] = Field(min_length=2)
    """From the largest down."""
    margin: float = Field(gt=0)
    """Loss that is still safe, as a share of the row's mean."""
    sparsity: float = Field(gt=0, lt=1)
    """Realised sparsity that must be safe."""

    @model_validator(mode="after")
    def _descending(self) -> Self:
        if self.levels != sorted(set(self.levels), reverse=True):
            raise FieldError("levels go from the largest down")
        return self


class Reversals(Rule):
    """Pairs of allocations whose layer errors and losses are in opposite orders."""

    kind: Literal["rank-reversals"]
    row: Row
    measured: Measured
    fact: str
    """Fact of a cell that holds its layer error."""
    allocations: int = Field(ge=3)
    apart: float = Field(ge=0)
    """Least relative difference of the layer errors of a pair."""
    pairs: int = Field(ge=1)
    """Most pairs that are taken from one half of the samples to the other."""
    ordered: float = Field(default=0.5, ge=0, le=1)
    """Share of pairs that must be shown in the right order before the want of reversals refutes anything."""


class Group(_Entry):
    """Methods of one kind, on the tasks that they share."""

    name: str
    rows: list[Row] = Field(min_length=2)
    measured: list[Measured] = Field(min_length=1)


class OverTasks(Rule):
    """What the rules have in common that look at several methods on several tasks, at one sparsity."""

    groups: list[Group] = Field(min_length=1)
    level: float = Field(gt=0, lt=1)
    """The sparsity at which methods are looked at."""
    matched_sparsity: float = Field(gt=0)
    """Rows whose realised sparsity is further from the level, on any task, are left out."""
    margin: float = Field(gt=0)
    """A loss in points of the metric that matters."""
    usable: float = Field(gt=0)
    """Least value of the dense model; tasks below have no signal."""
    samples: int = Field(ge=1)
    """Fewest samples of each task."""


class NoneBest(OverTasks):
    """Of every method another one is better on some task."""

    kind: Literal["none-best"]


class BreaksEarly(OverTasks):
    """Nearly every method has a task that it fails at little sparsity."""

    kind: Literal["breaks-early"]
    share: float = Field(gt=0, le=1)
    """Share of the methods of a group of which it must be so."""


class LengthUnit(_Entry):
    """One rule of selection, on tasks at several lengths."""

    name: str
    row: Row
    lengths: list[int] = Field(min_length=2)
    tasks: dict[str, list[str]]
    """Task to its forms, one for each length."""

    @model_validator(mode="after")
    def _one_form_a_length(self) -> Self:
        for task, forms in self.tasks.items():
            if len(forms) != len(self.lengths):
                raise FieldError(f"{task} has {len(forms)} forms for {len(self.lengths)} lengths")
        return self


class LengthTolerance(Rule):
    """The density that a share of the dense quality needs, for each doubling of the length."""

    kind: Literal["length-tolerance"]
    units: list[LengthUnit] = Field(min_length=1)
    loss: float = Field(gt=0, lt=1)
    """As a share of the dense model's value."""
    usable: float = Field(gt=0)
    """Least value of the dense model; lengths below have no signal."""
    samples: int = Field(ge=1)
    decode_queries: int = Field(default=0, ge=0)
    """Fewest decoded queries of a row that acts in decode."""
    required: int = Field(ge=1)
    """Tasks of a unit of which it must be so."""


AnyRule = Annotated[
    Matched
    | FirstToFall
    | Knee
    | Superiority
    | Equivalence
    | Tolerance
    | Contextual
    | Interpolation
    | Pooled
    | SafeLevel
    | Reversals
    | NoneBest
    | BreaksEarly
    | LengthTolerance,
    Field(discriminator="kind"),
]
