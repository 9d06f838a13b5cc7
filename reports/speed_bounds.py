"""Beside each speed-up the most that Amdahl's law allows, from the measured time shares of the dense model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sparsebench.cost import Phase
from sparsebench.errors import InputError
from sparsebench.explain import explain
from sparsebench.reports.sources import open_sources
from sparsebench.timeshares import PARTS, amdahl

if TYPE_CHECKING:
    from sparsebench.store import StoredCell

COLUMNS = ["task", "method", "cell", "linear", "attention", "bound", "of", "speedup"]


@dataclass(frozen=True)
class TimeShares:
    """Where a dense pass spends its time; what `sparsebench time-shares --out` writes.

    Attributes:
        phase: What was timed.
        prompt: Tokens of its prompt.
        shares: Share of the time of each of `timeshares.PARTS`.
    """

    phase: Phase
    prompt: int
    shares: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> TimeShares:
        """From a file.

        Raises:
            InputError: There is none, or it is another kind of file.
        """
        hint = "sparsebench time-shares MODEL --out FILE writes one"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            shares = {part: float(data["shares"][part]) for part in PARTS}
            phase, prompt = data["phase"], int(data["prompt"])
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", hint) from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} holds no shares of time", hint) from None
        if phase not in ("prefill", "decode"):
            raise InputError(f"{path}: {phase!r} is no phase", hint)
        return cls(phase, prompt, shares)

    def write(self, path: Path, **about: str) -> None:
        """To a file, with what else is to be known of it."""
        data = {"phase": self.phase, "prompt": self.prompt, "shares": self.shares, **about}
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def speed_bounds(folders: Iterable[str | os.PathLike[str]], times: TimeShares) -> pd.DataFrame:
    """For each cell the share of the work that it left in the timed phase, and what that may gain at most.

    Args:
        folders: Results folders.
        times: Measured on the model of these results, at about the length of their prompts.

    Returns:
        `linear` and `attention` (shares of the dense work that are left, those of choosing with attention), `bound`
        (how many times as fast at most), `of` (the part that takes most of what is left), and `speedup`: the
        baseline's wall time over the cell's where the cell was executed, else empty.
    """
    rows = []
    for source in open_sources(folders):
        for cell in source.cells.values():
            if cell.record.outcome.status != "ok" or not cell.spec.stack:
                continue
            made = explain(cell, look_up=False).account
            left = made.left(times.phase) if made is not None else {}
            if not left:
                continue
            after = {part: share * left.get(part, 1.0) for part, share in times.shares.items()}
            baseline = source.cells.get(cell.record.placement.baseline or "")
            rows.append(
                {
                    "task": cell.spec.task.id,
                    "method": cell.record.placement.label,
                    "cell": cell.id,
                    "linear": left["linear"],
                    "attention": left["attention"],
                    "bound": amdahl(times.shares, left),
                    "of": max(after, key=lambda part: after[part]),
                    "speedup": _speedup(cell, baseline),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(["task", "method", "cell"], ignore_index=True)


def _speedup(cell: StoredCell, baseline: StoredCell | None) -> float:
    if cell.spec.mode != "executed" or baseline is None:
        return math.nan
    own, dense = cell.record.outcome.seconds, baseline.record.outcome.seconds
    return dense / own if own and dense else math.nan
