"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from sparsebench.errors import MissingError


def expanded(given: str | Path, of: str) -> Path:
    """A path with `~` and `~user` replaced.

    Args:
        given: The path as it was written.
        of: What gives it, for the message: a variable or an option.

    Raises:
        MissingError: There is no such user, or the path of the user's home is not known.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise MissingError(f"{of} is {str(given)!r}, and there is no such home folder", "write it whole") from None
