"""What every system has."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsebench.systems.imprint import Imprint


class System(ABC):
    """The thing under test.

    Attributes:
        ref: The reference it was loaded from, or `memory:NAME`.
        fingerprint: Hash of what determines its answers (weights); part of every cell's identity.
    """

    kind: str
    ref: str
    fingerprint: str
    lifting: Callable[[], AbstractContextManager[None]] = nullcontext
    """What `lifted` enters: set for as long as something is attached."""

    def lifted(self) -> AbstractContextManager[None]:
        """The dense system for a while: what is attached is taken off, and put back when the context ends."""
        return self.lifting()

    @contextmanager
    def prefilling(self, state: str) -> Iterator[None]:
        """Say what acts in prefill, by a name for all of it: cells of the same name may share their prefills."""
        yield

    def see_dense(self) -> None:
        """Find out what has to be found out before a method is attached."""
        return

    def imprint(self) -> Imprint | None:
        """What the system is now, for telling whether a method gave it back as it was; None: nothing is loaded."""
        return None

    def describe(self) -> dict[str, Any]:
        """Facts for the record, as plain data."""
        return {"kind": self.kind, "ref": self.ref, "fingerprint": self.fingerprint}
