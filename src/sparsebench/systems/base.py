"""What every system has."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class System(ABC):
    """The thing under test.

    Attributes:
        ref: The reference it was loaded from, or `memory:NAME`.
        fingerprint: Hash of what determines its answers (weights); part of every cell's identity.
    """

    kind: str
    ref: str
    fingerprint: str

    @contextmanager
    def prefilling(self, state: str) -> Iterator[None]:
        """Say what acts in prefill, by a name for all of it: cells of the same name may share their prefills."""
        yield

    def see_dense(self) -> None:
        """Find out what has to be found out before a method is attached."""
        return

    def describe(self) -> dict[str, Any]:
        """Facts for the record, as plain data."""
        return {"kind": self.kind, "ref": self.ref, "fingerprint": self.fingerprint}
