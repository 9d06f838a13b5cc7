"""What SparseBench says when it cannot go on.

Every error that a user can cause is a `SparseBenchError`: it says what was wrong, where, and what would be right.
The command line prints it without a traceback and leaves with its `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparseBenchError(Exception):
    """An error for a person to read.

    Args:
        message: What is wrong and where.
        hint: What would be right, or how to get what is missing.
    """

    exit_code: int = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class InputError(SparseBenchError):
    """The input is wrong: a suite, an option, a budget, a results folder."""


class FieldError(InputError, ValueError):
    """Wrong input that a validator of a pydantic model found: as a `ValueError` it keeps its place in the data."""


class UnknownNameError(InputError):
    """A name that no registry has; the nearest valid ones are offered.

    Args:
        kind: What was looked for ("adapter", "task", "suite", ...).
        name: The name as given.
        valid: The names that would have been right.
    """

    def __init__(self, kind: str, name: object, valid: Iterable[str]) -> None:
        names = sorted(valid)
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(repr(n) for n in near)}?"
            if near
            else f"there are: {', '.join(names) or 'none'}"
        )
        super().__init__(f"unknown {kind} {name!r}", hint)
        self.name = name
        self.nearest = near


class MissingError(InputError):
    """A model, a data set or a package that is not to be had; `hint` says what was tried and how to get it."""


class IntegrityError(InputError):
    """Bytes that are not what they should be: a wrong sha256, a file cut short, an edited record."""


class NotRestoredError(SparseBenchError):
    """A method did not give the system back as it was; what it measured, and what is in memory now, is of no use."""

    exit_code = 3


class StorageError(InputError):
    """Results cannot be written: a full disk, a folder without permission. The run ends; what is stored stays."""


class GateError(SparseBenchError):
    """A gate or a verification failed."""

    exit_code = 1


class CellsFailedError(SparseBenchError):
    """Some cells failed; the others are stored."""

    exit_code = 3


def shown(text: str, most: int = 80) -> str:
    """A text as a message quotes it, cut where it is long."""
    return repr(text if len(text) <= most else f"{text[:most]}...")
