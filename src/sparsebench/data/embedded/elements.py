"""Chemical elements, read from the database of mendeleev."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import cache

from sparsebench.data.wheels import distribution_member

MENDELEEV = ("mendeleev", "1.3.0")


@dataclass(frozen=True)
class Element:
    """A chemical element: atomic number, symbol, and name in lower case."""

    number: int
    symbol: str
    name: str


@cache
def elements() -> tuple[Element, ...]:
    """All elements by atomic number."""
    path = distribution_member(*MENDELEEV, "mendeleev/elements.db")
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        rows = database.execute("SELECT atomic_number, symbol, name FROM elements ORDER BY atomic_number")
        return tuple(Element(number, symbol, name.lower()) for number, symbol, name in rows)
