"""The order in which workers take groups of cells: what a worker has loaded first, then baselines, then the longest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Work(Protocol):
    """A group of cells that are run together.

    Attributes:
        system: What has to be loaded for it.
        methods: What is prepared once for all groups that share it.
        cost: Predicted work, in any unit.
        leads: Whether cells of other groups are compared with cells of this one.
    """

    @property
    def system(self) -> str:
        """See the class."""

    @property
    def methods(self) -> str:
        """See the class."""

    @property
    def cost(self) -> float:
        """See the class."""

    @property
    def leads(self) -> bool:
        """See the class."""


W = TypeVar("W", bound=Work)


@dataclass
class _Batch(Generic[W]):
    """Groups that share system and methods, baselines and then the longest first."""

    groups: deque[W] = field(default_factory=deque)
    cost: float = 0.0
    leads: bool = False

    @property
    def rank(self) -> tuple[bool, float]:
        """The largest goes first: a run that is cut short has then the baselines of all that it finished."""
        return self.leads, self.cost

    def add(self, group: W) -> None:
        self.groups.append(group)
        self.cost += group.cost
        self.leads |= group.leads

    def take(self) -> W:
        group = self.groups.popleft()
        self.cost = self.cost - group.cost if self.groups else 0.0
        return group


class Schedule(Generic[W]):
    """Groups that wait for a worker.

    A worker that has a system loaded stays with it, and with the methods that it has prepared, as long as there is
    work for them. Else it takes up the system with the most work left for each worker that has it loaded, and there
    what others are compared with before all else. Longest first keeps the last workers from waiting for one another
    (Graham 1969: at most 4/3 of the shortest time).

    Args:
        groups: All groups.
    """

    def __init__(self, groups: Iterable[W]) -> None:
        self._systems: dict[str, dict[str, _Batch[W]]] = {}
        self._loaded: dict[str, int] = {}
        for group in sorted(groups, key=lambda group: (not group.leads, -group.cost)):
            self.put(group)

    def __len__(self) -> int:
        return sum(len(batch.groups) for batches in self._systems.values() for batch in batches.values())

    def put(self, group: W) -> None:
        """Add a group; one that comes back is taken last."""
        self._systems.setdefault(group.system, {}).setdefault(group.methods, _Batch()).add(group)

    def clear(self) -> None:
        """Forget all that waits."""
        self._systems.clear()

    def take(self, last: W | None) -> W | None:
        """The next group of a worker; None where none is left.

        Args:
            last: What the worker ran before; None for a new worker.
        """
        if last is not None and last.system in self._systems:
            system = last.system
        else:
            if last is not None:
                self.left(last)
            if not self._systems:
                return None
            system = max(self._systems, key=self._need)
            self._loaded[system] = self._loaded.get(system, 0) + 1
        batches = self._systems[system]
        methods = last.methods if last is not None and last.methods in batches and last.system == system else None
        if methods is None:
            methods = max(batches, key=lambda name: batches[name].rank)
        group = batches[methods].take()
        if not batches[methods].groups:
            del batches[methods]
        if not batches:
            del self._systems[system]
        return group

    def left(self, last: W) -> None:
        """A worker gave up what it had loaded: it died, or goes on with another system."""
        self._loaded[last.system] = max(0, self._loaded.get(last.system, 0) - 1)

    def _need(self, system: str) -> float:
        return sum(batch.cost for batch in self._systems[system].values()) / (1 + self._loaded.get(system, 0))
