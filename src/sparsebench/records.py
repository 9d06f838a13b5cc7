"""The schema of a stored cell. Versioned; older versions are read through `upgrade`."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from sparsebench.errors import IntegrityError
from sparsebench.metrics import Metric

SCHEMA = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Common(_Model):
    """What many cells have in common. It cannot be changed, so that equal ones may be one object."""

    model_config = ConfigDict(frozen=True)


Common = TypeVar("Common", bound=BaseModel)


@lru_cache(maxsize=4096)
def _one(value: Common) -> Common:
    """The first of all that are equal: a hundred thousand cells hold a few tasks, systems, metrics and data sets."""
    return value


class MemberSpec(_Model):
    """One member of a stack: a method with its knobs at a budget."""

    method: str
    version: int = 1
    knobs: dict[str, Any] = Field(default_factory=dict)
    """A seed is among them where it is not the cell's."""
    budget: dict[str, float | int | str] | None = None
    code: str = ""
    """Of a method of another package: its name and version, and a hash of the files that define the method."""

    @model_serializer(mode="wrap")
    def _without_code(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Methods of this package have none: their `version` says what they are."""
        whole: dict[str, Any] = plain(self)
        return whole if self.code else {name: value for name, value in whole.items() if name != "code"}

    def plain(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump(mode="json")


class SystemSpec(_Common):
    """The system under test."""

    kind: Literal["causal-lm", "sparse-encoder", "dense-encoder", "lexical"]
    ref: str
    fingerprint: str = ""
    dtype: str = ""
    replica: str = ""
    """Set on rows of the noise floor (`A/A`): the same system run another way."""


class TaskSpec(_Common):
    """The task, with everything that changes its numbers."""

    id: str
    version: int
    definition: str
    """Hash of the task's definition: templates, metrics, scorer."""
    data: str
    """Hash of the rows that are evaluated."""
    limit: int | None = None


class CellSpec(_Model):
    """What a cell's id is computed from, as plain data through `identity.cell_id`."""

    system: Annotated[SystemSpec, AfterValidator(_one)]
    stack: list[MemberSpec]
    """Empty: dense."""
    task: Annotated[TaskSpec, AfterValidator(_one)]
    mode: Literal["simulated", "executed"] = "simulated"
    protocol: str = ""
    """Which parts of a sample run as prefill and as decode: `prompt`, `context`, `window`; `` for retrieval."""
    calibration: dict[str, Any] | None = None
    """Name, sequences, length, seed and content hash; None where no method reads one."""
    seed: int = 0

    def plain(self) -> dict[str, Any]:
        """Plain data: what is stored and what the id is computed from."""
        return self.model_dump(mode="json")


class MetricValue(_Model):
    """A metric with its value over the stored samples."""

    metric: Annotated[Metric, AfterValidator(_one)]
    value: float | None
    n: int
    """Samples that have a part in it."""


class Placement(_Model):
    """Where a cell stands in its suite; no part of its identity."""

    suite: str
    suite_version: int
    grid: str
    family: str
    baseline: str | None
    """Id of the cell that this one is paired with; None for a baseline."""
    role: str = "method"
    """`baseline`, `noise`, `method`, `comparator`, `control` or `bound`."""
    label: str
    """`wanda 50%`."""
    config: str = ""
    """Knobs as printed: `compare_group=row stats_pass=sequential`."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Unit, compare group, statistics pass, token scope, deviations from the paper."""


class Outcome(_Model):
    """What came of a cell."""

    status: Literal["ok", "failed"]
    error: str | None = None
    """Kind and message of the failure."""
    retryable: bool = False
    metrics: list[MetricValue] = Field(default_factory=list)
    counters: dict[str, float] = Field(default_factory=dict)
    phase: str = ""
    """Phases in which the method acted on tokens that matter: `prefill`, `decode`, `prefill+decode`, or ``."""
    exercised: bool = True
    """False when the method acted on nothing that feeds a scored token."""
    decode_queries: float | None = None
    """Decode queries a sample, on average."""
    sparsity: float | None = None
    """Realised: a ratio of sums over what the method's family counts."""
    sparsity_of: str = ""
    """What that ratio is of: `prunable weights`, `attention pairs (decode)`, ..."""
    densities: dict[str, float] = Field(default_factory=dict)
    """Further realised ratios by name."""
    flops: float | None = None
    flops_dense: float | None = None
    bytes_per_token: float | None = None
    bytes_per_token_dense: float | None = None
    bits_per_weight: float | None = None
    """Stored bits of the prunable weights, with indices, scales and values kept apart, over the number of those weights
    in the dense model; a dense weight counts 16. None where no weight was changed."""
    seconds: float = 0.0
    """Wall time of evaluating the cell; a speed only where mode is `executed`."""
    prepare_seconds: float = 0.0
    prepare_tokens: int = 0
    prepare_memory: int | None = None
    """Peak memory of the methods' offline work above what there was before it, bytes; None where it is not measured."""
    peak_memory: int | None = None
    """Largest resident memory of the process, bytes."""
    energy: float | None = None
    """Joules of one run of the batch that a speed task times, where the platform measures them."""
    speed: dict[str, float] = Field(default_factory=dict)
    """Measured speeds of executed rows."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Facts of methods (thresholds, layer ratios) and tasks (windows, tokens counted)."""

    @property
    def timed(self) -> bool:
        """Whether the samples are repetitions of one batch that was timed, and the counters of one of them."""
        return "prefill speed-up" in self.speed


class Environment(_Model):
    """Where and with what a cell was computed."""

    hardware: str
    device: str = "cpu"
    threads: int = 1
    platform: str = ""
    python: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    dirty: bool | None = None
    command: str = ""
    executor: str = "inline"
    batch_tokens: int | None = None
    batch_replans: int = 0
    """Times that memory ran out and the batch was halved, for this cell or one just before it."""
    started: str = ""
    """UTC, ISO 8601."""


class DataFact(_Common):
    """A data set that a cell read."""

    name: str
    source: str
    """The alternative that was there: `local:bigbench/...`, `embedded:facts`."""
    sha256: str
    license: str = ""
    publish_text: bool = False


class CellRecord(_Model):
    """`record.json`: a finished cell without its samples."""

    schema_version: int = SCHEMA
    cell: str
    placement: Placement
    outcome: Outcome
    system: dict[str, Any] = Field(default_factory=dict)
    """The system's own description: architecture, parameters, base precision."""
    data: list[Annotated[DataFact, AfterValidator(_one)]] = Field(default_factory=list)
    samples_sha256: str | None = None
    left_out: list[str] = Field(default_factory=list)
    """Columns of the samples that were left out of the packed results; see `sparsebench.packing`."""
    rounded_bits: int | None = Field(None, ge=8, le=52)
    """Bits that the fractions of the samples' floats were rounded to in packing; None: they are as they were."""


class NewerSchemaError(IntegrityError):
    """A record that a newer SparseBench wrote: not to be read, and not to be replaced."""


def upgrade(data: dict[str, Any], where: str) -> CellRecord:
    """A record of any known schema version.

    Raises:
        IntegrityError: It is not a record.
        NewerSchemaError: It comes from a newer SparseBench.
    """
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise IntegrityError(f"{where}: no schema_version; this is not a SparseBench record")
    if version > SCHEMA:
        raise NewerSchemaError(
            f"{where}: schema {version} is newer than this SparseBench knows ({SCHEMA})", "update it"
        )
    try:
        return CellRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{where}: {place}: {first['msg']}") from None
