"""Results folders as a run would leave them, made of seeded random samples: no model is involved."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparsebench.budget import Budget
from sparsebench.identity import cell_id, seed_of
from sparsebench.metrics import Metric
from sparsebench.records import (
    CellRecord,
    CellSpec,
    DataFact,
    Environment,
    MemberSpec,
    MetricValue,
    Outcome,
    Placement,
    SystemSpec,
    TaskSpec,
)
from sparsebench.store import Store, StoredCell

LM = SystemSpec(kind="causal-lm", ref="pypi:tiny-lm==1.0#model", fingerprint="f" * 16, dtype="float32")
ENCODER = SystemSpec(kind="sparse-encoder", ref="pypi:tiny-splade==1.0#model", fingerprint="e" * 16, dtype="float32")

HOSTILE = "<script>alert('x')</script> [red]$\\frac{1}{0$ | a,b \"q\" =1+1 \u202egnp.exe\u202c & \x1b[31m"


@dataclass(frozen=True)
class SyntheticTask:
    """A task whose samples have a latent difficulty."""

    id: str
    metrics: list[Metric]
    kind: str
    level: float
    clusters: int = 0
    publish_text: bool = False
    fragile: float = 1.0
    """How much a method's damage shows in it."""

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(id=self.id, version=1, definition=f"def-{self.id}", data=f"data-{self.id}")


ACCURACY = Metric(name="accuracy", column="correct", kind="binary")
QA = SyntheticTask(
    "facts-qa",
    [
        Metric(name="non_prior_accuracy", column="correct_non_prior", kind="binary", headline=True, chance=0.0),
        ACCURACY,
    ],
    "qa",
    0.55,
    clusters=40,
    publish_text=True,
    fragile=1.6,
)
PPL = SyntheticTask(
    "prose-perplexity",
    [Metric(name="perplexity", column="nll", transform="exp", higher_is_better=False, headline=True)],
    "ppl",
    3.0,
)
CHOICE = SyntheticTask(
    "easy-choice",
    [
        Metric(name="accuracy", column="correct", kind="binary", headline=True, chance=0.25),
        Metric(name="gold_logprob", column="gold_logprob"),
    ],
    "choice",
    0.6,
    fragile=0.5,
)
GUESS = SyntheticTask(
    "hard-choice",
    [Metric(name="accuracy", column="correct", kind="binary", headline=True, chance=0.25)],
    "choice",
    0.24,
)
NEEDLE = SyntheticTask(
    "needle-4k",
    [Metric(name="recall", column="recall", headline=True, chance=0.0)],
    "recall",
    0.9,
)
SEARCH = SyntheticTask(
    "toy-search",
    [
        Metric(name="nDCG@10", column="ndcg", headline=True),
        Metric(name="R@100", column="recall"),
    ],
    "search",
    0.45,
)


def samples_of(task: SyntheticTask, damage: float, seed: int, n: int) -> pd.DataFrame:
    """Samples of a system that lost `damage` (0: none, 1: everything); at equal seeds, only what is damaged differs."""
    base = np.random.default_rng(seed_of(task.id, "data"))
    clusters = base.integers(0, task.clusters, n) if task.clusters else np.arange(n)
    ability = np.clip(
        base.normal(task.level, 0.12, n)
        if task.clusters == 0
        else task.level + base.normal(0, 0.15, task.clusters or 1)[clusters % max(task.clusters, 1)],
        0.02,
        0.98,
    )
    luck = base.random(n)
    own = np.random.default_rng(seed)
    hurt = min(1.0, damage * task.fragile)
    flipped = own.random(n) < 0.5 * hurt
    frame = pd.DataFrame(
        {"sample": [f"{task.id}-{i:05d}" for i in range(n)], "cluster": [f"c{c:04d}" for c in clusters]}
    )
    right = (luck < ability).astype(float)
    floor = 0.25 if task.kind == "choice" else 0.0
    right = np.where(flipped, (own.random(n) < floor + 0.25 * ability * (1 - hurt)).astype(float), right)
    if task.kind == "qa":
        prior = base.random(n) < 0.3
        frame["correct"] = right
        frame["correct_non_prior"] = np.where(prior, np.nan, right)
        frame["response"] = [f"answer {i}" if r else f"wrong <b>{own.integers(99)}</b>" for i, r in enumerate(right)]
        frame["target"] = [f"answer {i}" for i in range(n)]
    elif task.kind == "choice":
        frame["correct"] = right
        frame["gold_logprob"] = -np.abs(base.normal(1, 0.4, n)) - hurt * np.abs(own.normal(0.5, 0.2, n))
    elif task.kind == "ppl":
        weight = base.integers(200, 257, n).astype(float)
        nll = base.normal(task.level, 0.3, n) + (hurt > 0) * (hurt**2 * 2.2 + own.normal(0, 0.02, n))
        frame["nll"], frame["nll.weight"] = nll * weight, weight
    elif task.kind == "recall":
        frame["recall"] = np.round(np.where(flipped, own.random(n) * (1 - hurt), np.clip(ability + 0.1, 0, 1)) * 4) / 4
    else:
        frame["ndcg"] = np.clip(base.beta(2, 2.4, n) - hurt * own.random(n) * 0.5, 0, 1)
        frame["recall"] = np.clip(base.beta(5, 1, n) - hurt * own.random(n) * 0.2, 0, 1)
    return frame


@dataclass(frozen=True)
class SyntheticMethod:
    """A method whose damage grows with its sparsity."""

    id: str
    family: str
    budgets: tuple[dict[str, Any], ...]
    harm: float
    role: str = "method"
    phase: str = "prefill+decode"
    knobs: dict[str, Any] = field(default_factory=dict)
    sparsity_of: str = "prunable weights"
    sparsities: tuple[float, ...] = ()
    mode: str = "simulated"
    decode_queries: float | None = None
    exercised: bool = True
    system: SystemSpec = field(default_factory=lambda: LM)

    def sparsity(self, k: int) -> float:
        if self.sparsities:
            return self.sparsities[k]
        value = next(iter(self.budgets[k].values()))
        return 0.5 if value == "2:4" else float(value)


LEVELS = tuple({"sparsity": s} for s in (0.1, 0.2, 0.3, 0.5, 0.6))
PRUNING = (
    SyntheticMethod("wanda", "pruning", (*LEVELS, {"pattern": "2:4"}), 0.5, knobs={"compare_group": "row"}),
    SyntheticMethod("sparsegpt", "pruning", LEVELS, 0.4, knobs={"stats_pass": "sequential"}),
    SyntheticMethod("magnitude", "pruning", LEVELS, 0.9, role="comparator"),
    SyntheticMethod("random-weights", "pruning", LEVELS, 2.5, role="control"),
)
TOKENS = ({"tokens": 1024}, {"tokens": 512}, {"tokens": 256}, {"tokens": 128})
KEPT = (0.5, 0.75, 0.875, 0.9375)
ATTENTION = (
    SyntheticMethod(
        "quest",
        "attention",
        TOKENS,
        0.1,
        phase="decode",
        sparsity_of="attention pairs (decode)",
        sparsities=KEPT,
        decode_queries=96.0,
    ),
    SyntheticMethod(
        "streaming",
        "attention",
        TOKENS,
        0.5,
        phase="decode",
        sparsity_of="attention pairs (decode)",
        sparsities=KEPT,
        decode_queries=96.0,
    ),
    SyntheticMethod(
        "oracle-tokens",
        "attention",
        TOKENS,
        0.02,
        role="bound",
        phase="decode",
        sparsities=KEPT,
        sparsity_of="attention pairs (decode)",
        decode_queries=96.0,
    ),
    SyntheticMethod(
        "h2o",
        "attention",
        TOKENS[:1],
        0.1,
        phase="decode",
        sparsity_of="attention pairs (decode)",
        sparsities=KEPT,
        decode_queries=9.0,
    ),
)
ACTIVATION = (
    SyntheticMethod("teal", "activation", LEVELS, 0.3, sparsity_of="inputs of linear layers", mode="executed"),
)
RETRIEVAL = (
    SyntheticMethod(
        "term-pruning",
        "retrieval",
        ({"terms": 64}, {"terms": 32}, {"terms": 8}),
        0.5,
        phase="",
        system=ENCODER,
        sparsity_of="terms of a vector",
        sparsities=(0.4, 0.7, 0.92),
    ),
)


@dataclass
class Writer:
    """Writes cells of one suite into a store."""

    store: Store
    suite: str = "synthetic"
    samples: int = 240
    baselines: dict[str, StoredCell] = field(default_factory=dict)
    system: SystemSpec = field(default_factory=lambda: LM)

    def cell(
        self,
        task: SyntheticTask,
        family: str,
        *,
        method: SyntheticMethod | None = None,
        budget: int = 0,
        baseline: str | None = None,
        role: str = "baseline",
        replica: str = "",
        damage: float = 0.0,
        seed: int = 0,
        frame: pd.DataFrame | None = None,
        **changes: Any,
    ) -> StoredCell:
        """Write one cell with these samples, or made ones; `changes` go into its outcome, placement or environment."""
        system = (method.system if method else ENCODER if task.kind == "search" else self.system).model_copy(
            update={"replica": replica}
        )
        wanted = dict(method.budgets[budget]) if method else None
        stack = [MemberSpec(method=method.id, knobs=method.knobs, budget=wanted)] if method else []
        calibration = {"name": "prose", "sequences": 16, "length": 128, "seed": 0, "hash": "c" * 64}
        spec = CellSpec(
            system=system,
            stack=stack,
            task=task.spec,
            mode=method.mode if method else "simulated",  # type: ignore[arg-type]
            protocol="prompt" if system.kind == "causal-lm" else "",
            calibration=calibration if method and family == "pruning" else None,
            seed=seed,
        )
        identity = cell_id(spec.plain())
        frame = samples_of(task, damage, seed_of(identity), self.samples) if frame is None else frame
        metrics = [
            MetricValue(metric=m, value=m.value(frame), n=int(frame[m.column].notna().sum())) for m in task.metrics
        ]
        sparsity = method.sparsity(budget) if method else 0.0
        label = "dense" if system.kind == "causal-lm" else "full vectors"
        if method:
            label = f"{method.id} {Budget.from_dict(method.budgets[budget]).label}"
        executed = bool(method and method.mode == "executed")
        outcome: dict[str, Any] = {
            "status": "ok",
            "metrics": metrics,
            "phase": method.phase if method else "",
            "exercised": method.exercised if method else True,
            "decode_queries": method.decode_queries if method else None,
            "sparsity": sparsity,
            "sparsity_of": method.sparsity_of if method else "",
            "counters": {"weights.zeros": math.floor(1e6 * sparsity), "weights.total": 1e6},
            "flops": 1e9 * (1 - 0.8 * sparsity),
            "flops_dense": 1e9,
            "bytes_per_token": 2e6 * (1 - 0.6 * sparsity),
            "bytes_per_token_dense": 2e6,
            "seconds": 12.5,
            "speed": {"tokens_per_second": 812.5} if executed else {},
            "peak_memory": 3 * 2**30,
        }
        placement: dict[str, Any] = {
            "suite": self.suite,
            "suite_version": 1,
            "grid": family,
            "family": family,
            "baseline": baseline,
            "role": method.role if method and role == "method" else role,
            "label": label,
            "config": " ".join(f"{k}={v}" for k, v in method.knobs.items()) if method else "",
        }
        environment: dict[str, Any] = {
            "hardware": "x86_64, 2 threads",
            "platform": "Linux",
            "python": "3.11.9",
            "packages": {"torch": "2.10.0", "transformers": "5.17.0"},
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": False,
            "command": f"sparsebench run {self.suite}",
            "started": "2026-01-02T03:04:05Z",
        }
        for name, value in changes.items():
            place = next(
                d
                for d, model in ((outcome, Outcome), (placement, Placement), (environment, Environment))
                if name in model.model_fields
            )
            place[name] = value
        record = CellRecord(
            cell=identity,
            placement=Placement(**placement),
            outcome=Outcome(**outcome),
            system={"architecture": "llama", "parameters": 1_000_000, "base_precision": "float32"},
            data=[
                DataFact(
                    name=task.id,
                    source="embedded:facts",
                    sha256="d" * 64,
                    license="CC0-1.0",
                    publish_text=task.publish_text,
                )
            ],
        )
        failed = outcome["status"] == "failed"
        return self.store.write(spec, record, Environment(**environment), None if failed else frame)

    def grid(self, family: str, methods: tuple[SyntheticMethod, ...], tasks: tuple[SyntheticTask, ...]) -> None:
        """A baseline, an A/A row and all methods at all budgets, on some tasks; grids share their dense cells."""
        for task in tasks:
            base = self.baselines.get(task.id)
            if base is None:
                base = self.baselines[task.id] = self.cell(task, family)
                noise = {"baseline": base.id, "role": "noise", "replica": "bfloat16", "label": "dense (bfloat16)"}
                self.cell(task, family, **noise, damage=0.004)  # type: ignore[arg-type]
            for method in methods:
                for k in range(len(method.budgets)):
                    damage = method.harm * method.sparsity(k) ** 2
                    self.cell(task, family, method=method, budget=k, baseline=base.id, role="method", damage=damage)


def write_suite(
    store: Store, name: str = "synthetic", margins: dict[str, Any] | None = None, resamples: int = 1000
) -> None:
    conclude: dict[str, Any] = {"alpha": 0.05, "power": 0.8, "resamples": resamples}
    if margins is not None:
        conclude["margins"] = margins
    store.write_suite({"suite": {"suite": name, "version": 1, "title": "Synthetic", "conclude": conclude}, "lock": {}})


def write_results(root: Path, *, samples: int = 240) -> Store:
    """All families, with a failed cell, one that is not exercised, a task without signal and hostile names."""
    store = Store.create(root)
    write_suite(store, margins={"*": {"*": {"relative": 0.05}}, "needle-4k": {"recall": {"points": 0.05}}})
    writer = Writer(store, samples=samples)
    writer.grid("pruning", PRUNING, (QA, PPL, CHOICE, GUESS))
    writer.grid("attention", ATTENTION, (NEEDLE, PPL))
    writer.grid("activation", ACTIVATION, (QA, PPL))
    writer.grid("retrieval", RETRIEVAL, (SEARCH,))
    stuck = SyntheticMethod("griffin", "activation", LEVELS[:1], 0.1)
    qa = writer.baselines[QA.id]
    writer.cell(
        QA,
        "activation",
        method=stuck,
        baseline=qa.id,
        role="method",
        status="failed",
        metrics=[],
        error=f"RuntimeError: out of memory {HOSTILE}",
        exercised=True,
    )
    hostile = SyntheticMethod("wanda", "pruning", LEVELS[:1], 0.5, knobs={"note": HOSTILE})
    writer.cell(
        QA,
        "pruning",
        method=hostile,
        baseline=qa.id,
        role="method",
        damage=0.01,
        label=HOSTILE,
        config=HOSTILE,
        hardware=HOSTILE,
        command=f"sparsebench run </code></pre>{HOSTILE}",
        sparsity_of="prunable weights",
    )
    return store


def put_again(
    store: Store, spec: CellSpec, record: CellRecord, environment: Environment, samples: pd.DataFrame | None
) -> StoredCell:
    """Store a cell in the place of a finished one, which a store by itself would keep."""
    shutil.rmtree(store.cells_folder / cell_id(spec.plain()), ignore_errors=True)
    return store.write(spec, record, environment, samples)
