"""SparseBench from Python."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.adapters.base import Sparsity, check_together
from sparsebench.errors import CellsFailedError, InputError, NotRestoredError
from sparsebench.planned_cell import PlannedCell, cell_of_stack
from sparsebench.records import SystemSpec
from sparsebench.store import Store
from sparsebench.suite import Suite

if TYPE_CHECKING:
    import pandas as pd


def run(
    suite: str | Suite,
    out: str | PathLike[str] | None = None,
    model: str | None = None,
    *,
    limit: int | None = None,
    executor: str = "inline",
    workers: int = 2,
    device: str | None = None,
) -> pd.DataFrame:
    """Run a suite and return its tidy table: one row for each (cell, phase, metric).

    Args:
        suite: A suite's name, the path of its YAML, or a `Suite`.
        out: Results folder; `results/<suite>` when None.
        model: Reference that replaces the suite's language model.
        limit: Samples of each task at most.
        executor: `inline`, `process` or `ray`.
        workers: Processes or Ray actors.
        device: `cpu`, `cuda`; None: cuda where there is one.

    Raises:
        InputError: Something about the suite or a reference is wrong; nothing was run.
        CellsFailedError: The folder was moved or emptied during the run.
    """
    from sparsebench.reports.collect import collect
    from sparsebench.suite_run import run_suite

    folder = Path(out) if out is not None else None
    outcome = run_suite(suite, folder, model, limit=limit, executor=executor, workers=workers, device=device)
    if outcome.lost:
        raise CellsFailedError(
            f"{outcome.lost} cells were stored and are not in {outcome.folder} any more", "run it again to compute them"
        )
    return collect(outcome.folder)


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: str | Sequence[str],
    *,
    methods: Sparsity | Sequence[Sparsity | Sequence[Sparsity]] = (),
    calibration: str = "prose",
    limit: int | None = None,
    name: str = "model",
    out: str | PathLike[str] | None = None,
    batch_tokens: int | None = None,
) -> pd.DataFrame:
    """Evaluate a model that is in memory, as it is and under sparse methods; the tidy table of what was asked for.

    The model's own weights, attention and training mode are back when this returns, bit for bit; a method that does
    not see to it has failed. Where a method is not one of SparseBench's own, the weights are copied beforehand. What a
    results folder holds already is not computed again, unless the model, its configuration, its hooks or its tokenizer
    changed.

    Args:
        model: A transformers causal LM; its dtype and device are kept.
        tokenizer: Its tokenizer.
        tasks: Task names, or the paths of task files; lm-eval's as `lm-eval:NAME`.
        methods: Methods at budgets from `adapters.create`, or lists of them to be stacked. The dense model always runs.
        calibration: Text that calibrated methods read: `prose`, `wikitext2-train`, `c4-sample`.
        limit: Samples of each task at most.
        name: What the table calls the model.
        out: Results folder to keep; a temporary one when None.
        batch_tokens: Tokens of one forward pass; None: what suits the device.

    Raises:
        InputError: No task, or one that does not run on a language model; a method without the budget that it needs;
            a tokenizer without an end-of-text token.
        NotRestoredError: A method has changed the model for good.
    """
    from sparsebench.reports.collect import collect
    from sparsebench.systems.causal_lm import CausalLM

    if not tasks:
        raise InputError("no task to evaluate", "tasks=['facts-short', 'prose-perplexity']")
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: no sample of a task would be left", "limit=100, or None for all")
    if not callable(getattr(model, "modules", None)):
        raise InputError(f"{model!r:.60} is no model", "pass one that transformers has loaded, or use sparsebench.run")
    if tokenizer is None:
        raise InputError("there is no tokenizer", "pass the one that belongs to the model")
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-text token", "set tokenizer.eos_token")
    each = [methods] if isinstance(methods, Sparsity) else methods
    stacks: list[list[Sparsity]] = [[], *([m] if isinstance(m, Sparsity | str) else list(m) for m in each)]
    if strange := [m for stack in stacks for m in stack if not isinstance(m, Sparsity)]:
        raise InputError(f"{strange[0]!r} is no method at a budget", "adapters.create('wanda', sparsity=0.5)")
    _check(stacks)
    training = [module for module in model.modules() if module.training]
    system = CausalLM(model, tokenizer, ref=f"memory:{name}", batch_tokens=batch_tokens)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            store = Store.create(out if out is not None else temporary)
            each_task = [tasks] if isinstance(tasks, str) else tasks
            return collect(store.root, cells=_evaluate(system, stacks, each_task, calibration, limit, store))
    finally:
        for module in training:
            module.training = True


def _check(stacks: list[list[Sparsity]]) -> None:
    for stack in stacks:
        check_together([member.adapter.card for member in stack])
    for member in (member for stack in stacks for member in stack):
        card = member.adapter.card
        if "causal-lm" not in member.adapter.accepts:
            raise InputError(f"{card.id} does not run on a language model")
        member.adapter.check_budget(member.budget)


def _evaluate(
    system: Any, stacks: list[list[Sparsity]], tasks: Sequence[str], calibration: str, limit: int | None, store: Store
) -> set[str]:
    """Run what the store does not hold; the ids of all that was asked for."""
    from sparsebench.calibration_texts import calibration_for
    from sparsebench.runner import Session, run_cells
    from sparsebench.suite import CalibrationEntry
    from sparsebench.systems.imprint import copies_of
    from sparsebench.tasks import registry

    session = Session(device=str(system.device))
    dtype = str(system.dtype).removeprefix("torch.")
    spec = SystemSpec(kind="causal-lm", ref=system.ref, fingerprint=system.fingerprint, dtype=dtype)
    foreign = any(not type(m.adapter).__module__.startswith("sparsebench.") for stack in stacks for m in stack)
    session.adopt(system, spec, len(system.devices), copies_of(system.model) if foreign else None)
    entry = CalibrationEntry(data=calibration).model_dump()
    calibrated: dict[str, Any] | None = None
    cells: list[PlannedCell] = []
    for task in tasks:
        found = registry.get(task)
        if found.kind != "lm":
            raise InputError(f"task {task} does not run on a language model")
        bound = found.bind(system.tokenizer, limit)
        session.tasks[task, limit, system.ref] = bound
        dense: str | None = None
        for stack in stacks:
            if any(member.adapter.reads_calibration() for member in stack) and calibrated is None:
                made = calibration_for(system.tokenizer, entry)
                calibrated = {**entry, "hash": made.hash, "tokens": made.tokens}
            reads = any(member.adapter.reads_calibration() for member in stack)
            cell = cell_of_stack(spec, stack, task, bound, calibrated if reads else None, system.batch_tokens)
            cell.placement.baseline, cell.devices = dense, len(system.devices)
            dense = dense or cell.id
            cells.append(cell)
    store.write_suite({"suite": {"suite": "evaluate", "version": 1}, "lock": {}})
    run_cells([c for c in cells if not store.finished(c.id)], store, session)
    if session.broken:
        raise NotRestoredError(session.broken, "the model in memory is no longer what it was: load it anew")
    return {cell.id for cell in cells}


def read_lm_eval(path: str | PathLike[str]) -> dict[str, pd.DataFrame]:
    """Samples that lm-eval wrote with `--log_samples`, by task, in SparseBench's form; `compare` takes two of them."""
    from sparsebench.reports.lm_eval_files import read_log

    return {name: task.samples.frame for name, task in read_log(path).items()}
