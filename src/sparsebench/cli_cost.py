"""Commands about cost: quality at equal FLOPs or bytes, and where a dense model spends its time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ResultsArgument = Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="Results folders.")]


def isoflop(
    results: ResultsArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where figures and table go.")],
    levels: Annotated[str, typer.Option("--levels", metavar="X,Y", help="Shares of the dense cost in the table.")] = (
        "0.9,0.8,0.7,0.6,0.5"
    ),
    shares: Annotated[
        Path | None, typer.Option("--shares", metavar="FILE", help="What time-shares wrote: adds Amdahl's bounds.")
    ] = None,
) -> None:
    """Curves of quality against FLOPs and bytes with their frontier, and a table at equal FLOPs."""
    from sparsebench.errors import InputError
    from sparsebench.reports.collect import collect
    from sparsebench.reports.isoflop import asked_table, iso_table, write_isoflop
    from sparsebench.reports.speed_bounds import TimeShares, speed_bounds

    try:
        wanted = [float(level) for level in levels.split(",")]
    except ValueError:
        raise InputError(f"levels {levels!r} are no numbers", "--levels 0.9,0.8") from None
    times = None if shares is None else TimeShares.read(shares)
    table = collect(*results)
    written = write_isoflop(table, out)
    written.append(out / "isoflop.csv")
    iso_table(table, wanted).to_csv(written[-1], index=False)
    if (table["request"] != "").any():
        written.append(out / "requests.csv")
        asked_table(table).to_csv(written[-1], index=False)
    if times is not None:
        written.append(out / "speed-bounds.csv")
        speed_bounds(results, times).to_csv(written[-1], index=False)
    for file in written:
        typer.echo(f"wrote {file}")


def time_shares(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Reference of a causal LM.")],
    prompt: Annotated[int, typer.Option("--prompt", min=1, help="Tokens of the prompt.")] = 4096,
    answer: Annotated[int, typer.Option("--answer", min=0, help="Tokens decoded after it; 0 times prefill.")] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option("--device", metavar="D", help="cpu, cuda.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write them, for isoflop --shares.")] = None,
) -> None:
    """Share of a dense pass's time in each part, and the most that leaving all of one part out could gain."""
    from sparsebench.environment import hardware
    from sparsebench.reports.speed_bounds import TimeShares
    from sparsebench.suite_run import chosen_device
    from sparsebench.systems.loading import load_causal_lm, resolve_dtype
    from sparsebench.timeshares import amdahl, measured_shares

    where = chosen_device(device)
    name = str(resolve_dtype(dtype, where)).removeprefix("torch.")
    shares = measured_shares(load_causal_lm(model, name, where), prompt, answer)
    for part, share in shares.items():
        typer.echo(f"{part:<10} {share:6.1%}   at most {amdahl(shares, {part: 0.0}):.2f} times as fast without it")
    if out is not None:
        found = TimeShares("decode" if answer else "prefill", prompt, shares)
        found.write(out, model=model, dtype=name, hardware=hardware(where))


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(isoflop)
    app.command("time-shares")(time_shares)
