"""Methods that are listed and cannot run: they need training, weights or a kernel that is not there."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NoReturn

from sparsebench.adapters.base import Adapter, Prepared
from sparsebench.budget import Budget
from sparsebench.errors import MissingError


class Unavailable(Adapter):
    """A card with `needs`, and nothing behind it; subclasses set `card` alone."""

    def check_budget(self, budget: Budget | None) -> None:
        """Refuse.

        Raises:
            MissingError: Always; it says what is needed.
        """
        self.refuse()

    def attach(self, system: Any, prepared: Prepared, budget: Budget | None) -> AbstractContextManager[Any]:
        """See `check_budget`."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """Say what is needed."""
        raise MissingError(
            f"{self.card.id} does not run here: it needs {' and '.join(self.card.needs)}",
            f"sparsebench show {self.card.id} has its paper; its nearest relative that runs is {self.card.nearest}",
        )
