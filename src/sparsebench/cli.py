"""The command line. Exit codes: 0 done, 1 a gate or verification failed, 2 wrong input, 3 some cells failed."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsebench import __version__, cli_conform, cli_cost, cli_decisions, cli_findings, cli_gates, cli_training
from sparsebench.cli_options import Executor
from sparsebench.errors import InputError, IntegrityError, SparseBenchError
from sparsebench.redaction import redacted_text

if TYPE_CHECKING:
    from sparsebench.plan import Plan

app = typer.Typer(
    name="sparsebench",
    help="Find out what a sparse method costs and keeps: attention, activation, pruning and retrieval.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Kind(StrEnum):
    """What `list` lists."""

    adapters = "adapters"
    suites = "suites"
    tasks = "tasks"
    models = "models"
    data = "data"


class TableFormat(StrEnum):
    """Forms of the results table."""

    table = "table"
    md = "md"
    csv = "csv"
    json = "json"
    latex = "latex"
    parquet = "parquet"


SuiteArgument = Annotated[str, typer.Argument(metavar="SUITE", help="A suite or a finding by name, or a .yaml file.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="REF", help="hf:org/name, path:DIR or pypi:...; replaces the suite's language model."
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most N samples of each task.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1; default: cuda where there is one.")
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Results folder; default: results/SUITE.")]
ResultsArgument = Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    suite: SuiteArgument,
    out: OutOption = None,
    model: ModelOption = None,
    limit: LimitOption = None,
    executor: Annotated[
        Executor, typer.Option("--executor", help="In this process, in a process for each worker, or in Ray actors.")
    ] = Executor.inline,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes or actors.")] = 2,
    gpus: Annotated[
        float | None, typer.Option("--gpus", min=0, metavar="X", help="GPUs of each Ray actor, or a share of one.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="A", help="A Ray cluster; default: RAY_ADDRESS, or a local one."),
    ] = None,
    shard: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Run part I of N only.")] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option("--cell", metavar="ID", help="Run that cell and its baseline only; may be given again."),
    ] = None,
    device: DeviceOption = None,
    site: Annotated[bool, typer.Option("--site/--no-site", help="Build the site when all is done.")] = True,
) -> None:
    """Run a suite; cells that RESULTS holds already are not computed again."""
    from sparsebench.reports.collect import collect
    from sparsebench.reports.tables import print_terminal
    from sparsebench.retrieval.published import in_results
    from sparsebench.suite_run import run_suite

    outcome = run_suite(
        suite,
        out,
        model,
        limit=limit,
        executor=executor.value,
        workers=workers,
        gpus=gpus,
        ray_address=ray_address,
        shard=shard,
        only=cell or (),
        device=device,
        progress=True,
    )
    for note in outcome.notes:
        typer.echo(f"note: {note}", err=True)
    print_terminal(collect(outcome.folder), _console())
    for comparison in in_results(outcome.folder):
        typer.echo(str(comparison))
    if site:
        from sparsebench.reports.site import build_site

        build_site([outcome.folder], outcome.folder / "site")
        typer.echo(f"\nThe site: {outcome.folder / 'site' / 'index.html'}")
    if outcome.interrupted:
        typer.echo(f"Interrupted; the same command goes on where it stopped ({outcome.left} cells are left).", err=True)
        raise typer.Exit(130)
    if outcome.lost:
        typer.echo(
            f"{outcome.lost} cells were stored and are not in {outcome.folder} any more: it was moved or emptied "
            "during the run. The same command computes them again.",
            err=True,
        )
    if outcome.failed:
        typer.echo(
            f"{outcome.failed} cells failed; they are in the table. The same command tries them again.", err=True
        )
    if outcome.failed or outcome.lost:
        raise typer.Exit(3)


@app.command()
def plan(
    suite: SuiteArgument,
    out: OutOption = None,
    model: ModelOption = None,
    limit: LimitOption = None,
    device: DeviceOption = None,
) -> None:
    """Cells of a suite, their predicted cost and the power of each comparison; runs nothing."""
    from sparsebench.store import Store
    from sparsebench.suite_run import of_one_suite, planned, results_folder

    made = planned(suite, model, limit, device)
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    _print_plan(made)
    folder = results_folder(made.suite, out)
    store = Store.create(folder)
    of_one_suite(store, made.suite, folder)
    store.write_suite({"suite": made.suite.model_dump(mode="json"), "lock": made.lock})
    typer.echo(f"\nResolved hashes: {folder / 'suite.json'}")


@app.command("list")
def list_(
    kind: Kind,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
    family: Annotated[str | None, typer.Option("--family", help="Adapters of one family.")] = None,
) -> None:
    """What there is: adapters, suites, tasks, models or data."""
    from sparsebench.listing import listing

    rows = listing(kind.value, family)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    _print_rows(rows)


@app.command()
def show(adapter: Annotated[str, typer.Argument(metavar="ADAPTER")]) -> None:
    """A method's card, knobs and citation."""
    from sparsebench.listing import card_text

    typer.echo(card_text(adapter))


@app.command()
def report(
    results: ResultsArgument,
    format: Annotated[TableFormat, typer.Option("--format")] = TableFormat.table,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write there; parquet needs it.")] = None,
) -> None:
    """The results table of a folder; exit code 2 where a cell is damaged, after what can be read."""
    from sparsebench.reports.collect import collect
    from sparsebench.reports.tables import parquet, print_terminal, render, summary
    from sparsebench.store import AGAIN, Store

    table = collect(results)
    if format is TableFormat.parquet:
        if out is None:
            raise InputError("parquet is not for a terminal", "give --out FILE")
        parquet(table, out)
    elif format is TableFormat.table and out is None:
        print_terminal(table, _console())
    else:
        text = summary(table) if format is TableFormat.table else render(table, format.value)
        if out is None:
            typer.echo(text)
        else:
            _write(out, text)
    if out is not None:
        typer.echo(f"wrote {out}")
    damaged = Store.open(results).damaged()
    if damaged:
        raise IntegrityError("not all cells can be read:\n  " + "\n  ".join(damaged), AGAIN)


@app.command("site")
def site_(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS...")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR")],
    claims: Annotated[
        Path | None, typer.Option("--claims", metavar="CLAIMS", help="A folder of papers' claims to ask about.")
    ] = None,
) -> None:
    """The static leaderboard of one or more results folders."""
    from sparsebench.reports.ledger import read_claims
    from sparsebench.reports.site import build_site

    build_site(results, out, claims=read_claims(claims) if claims is not None else ())
    typer.echo(f"wrote {out / 'index.html'}")


@app.command()
def doctor() -> None:
    """Versions, devices, data and models found, and how to mend what is missing."""
    from sparsebench.doctor import findings

    good = True
    for finding in findings():
        good &= finding.good or finding.optional
        mark = "ok  " if finding.good else ("--  " if finding.optional else "BAD ")
        typer.echo(f"{mark}{finding.subject}: {finding.state}")
        if finding.mend and not finding.good:
            typer.echo(f"      {finding.mend}")
    if not good:
        raise typer.Exit(2)


cli_conform.add_to(app)
cli_gates.add_to(app)
cli_decisions.add_to(app)
cli_cost.add_to(app)
cli_findings.add_to(app)
cli_training.add_to(app)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _print_plan(made: Plan) -> None:
    from rich.table import Table

    from sparsebench.power import comparisons
    from sparsebench.prediction import predicted_seconds
    from sparsebench.targets import unmet

    console = _console()
    table = Table(title=f"{made.suite.suite}: {len(made.cells)} cells", title_justify="left", header_style="bold")
    knobs = any(cell.placement.config for cell in made.cells)
    asked = any("target" in cell.placement.facts for cell in made.cells)
    names = ["grid", "row", *["knobs"] * knobs, *["asked"] * asked, "task", "samples", "TFLOP", "seconds", "cell"]
    for name in names:
        table.add_column(name, justify="right" if name in ("samples", "TFLOP", "seconds") else "left")
    seconds = predicted_seconds(made)
    samples = {(b.spec.id, b.spec.limit): b.workload.samples for b in made.tasks.values()}
    for cell in made.cells:
        count = samples[cell.spec.task.id, cell.spec.task.limit]
        time = seconds[cell.id]
        table.add_row(
            cell.placement.grid,
            cell.placement.label,
            *[cell.placement.config] * knobs,
            *[_asked(cell.placement.facts.get("target"))] * asked,
            cell.spec.task.id,
            str(count),
            f"{cell.flops / 1e12:.1f}",
            f"{time:.0f}",
            cell.id,
        )
    console.print(table)
    console.print(f"Predicted: {sum(seconds.values()) / 60:.1f} minutes on this machine.\n")
    for line in unmet(made.lock.get("targets", [])):
        console.print(f"Out of reach: {line}")
    power = Table(title="Power of each comparison", title_justify="left", header_style="bold")
    for name in ("task", "metric", "n", "margin", "can detect", "powered", "n needed"):
        power.add_column(name, justify="left" if name in ("task", "metric", "powered") else "right")
    for row in comparisons(made):
        power.add_row(
            row.task, row.metric, str(row.n), row.margin, row.detectable, "yes" if row.powered else "no", row.needed
        )
    console.print(power)


def _asked(target: Any) -> str:
    """What a row was solved for: `0.9 of flops in prefill-4k`."""
    from sparsebench.budget import ISO_KINDS

    if not isinstance(target, dict):
        return ""
    kind = next((kind for kind in ISO_KINDS if kind in target), "")
    return f"{target.get(kind):g} of {kind} in {target.get('request', '')}" if kind else ""


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    columns = [name for name in rows[0] if name != "summary"] if rows else []
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name == "id")
    for row in rows:
        table.add_row(*(", ".join(row[c]) if isinstance(row[c], list) else str(row[c]) for c in columns))
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Characters that a stream cannot encode, as JSON writes them: what is JSON stays so."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _usable_streams() -> None:
    """Make streams that are closed, or that cannot encode what is printed, take it all the same."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # or else the next file that is opened would be stdout
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("json-escapes", _escaped)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="json-escapes")


def _check_words(words: list[str]) -> None:
    """Names that are not in UTF-8 could stand neither in a record nor in a table."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"{word!r} is not UTF-8", "give files and folders names in UTF-8") from None


def main() -> None:
    """Entry point: errors are said in words, with their exit code."""
    _usable_streams()
    try:
        _check_words(sys.argv)
        code = app(standalone_mode=False)
    except SparseBenchError as error:
        typer.echo(f"error: {redacted_text(str(error))}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        typer.echo(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), err=True)
        sys.exit(2)
    except Exception as error:
        # Typer's own errors (a wrong option or value) know how to say themselves; anything else is a defect of ours.
        say = getattr(error, "show", None)
        if say is None:
            raise
        say()
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
