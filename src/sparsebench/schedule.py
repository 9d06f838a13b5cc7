"""Which cells a worker takes next: of what it has loaded, baselines, then the longest, in parts that become smaller."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

Kind = tuple[str, str]
"""Task and methods: cells of a kind take about the same time for a FLOP."""

SHARE = 0.5
"""The largest part of a worker's fair share of all that waits which it takes at a time."""


class Pace:
    """Seconds for a predicted FLOP, learnt from cells that are done.

    A token that is generated takes many times as long as one of a prompt, and some methods many times as long as
    others: FLOPs alone would call the longest work short. A kind of which nothing is done yet goes by its task, and
    that by all.
    """

    def __init__(self) -> None:
        self._seconds: dict[Kind, float] = defaultdict(float)
        self._flops: dict[Kind, float] = defaultdict(float)

    def learn(self, kind: Kind, flops: float, seconds: float) -> None:
        """Take note of a cell that is done."""
        for known in (kind, (kind[0], ""), ("", "")):
            self._seconds[known] += seconds
            self._flops[known] += flops

    def knows(self, kind: Kind) -> bool:
        """Whether a cell of that kind is done."""
        return kind in self._flops

    def seconds(self, work: Mapping[Kind, float]) -> float:
        """What an amount of work will take; in FLOPs where nothing is known yet."""
        return sum(flops * self._of(kind) for kind, flops in work.items())

    def _of(self, kind: Kind) -> float:
        for known in (kind, (kind[0], ""), ("", "")):
            if self._flops.get(known):
                return self._seconds[known] / self._flops[known]
        return 1.0


class Work(Protocol):
    """A group of cells.

    Attributes:
        system: What has to be loaded for it.
        methods: What is prepared once for all groups that share it.
        work: Predicted FLOPs by kind.
        leads: Whether cells of other groups are compared with cells of this one.
    """

    @property
    def system(self) -> str:
        """See the class."""

    @property
    def methods(self) -> str:
        """See the class."""

    @property
    def work(self) -> Mapping[Kind, float]:
        """See the class."""

    @property
    def leads(self) -> bool:
        """See the class."""

    def cut(self, limit: float, pace: Pace) -> tuple[Self, Self | None]:
        """A first part that takes at most so long, or is one cell, and the rest.

        A cell of a kind that the pace does not know is a part by itself: nobody knows what more of them would take.
        """


W = TypeVar("W", bound=Work)


@dataclass
class _Batch(Generic[W]):
    """Groups that share system and methods."""

    groups: list[W] = field(default_factory=list)
    work: Counter[Kind] = field(default_factory=Counter)

    def rank(self, pace: Pace) -> tuple[bool, float]:
        """The largest goes first: a run that is cut short has then the baselines of all that it finished."""
        return any(group.leads for group in self.groups), pace.seconds(self.work)

    def take(self, pace: Pace) -> W:
        group = max(self.groups, key=lambda g: (g.leads, pace.seconds(g.work)))
        self.groups.remove(group)
        self.work.subtract(group.work)
        return group


class Schedule(Generic[W]):
    """Groups that wait for a worker.

    A worker that has a system loaded stays with it, and with the methods that it has prepared, as long as there is
    work for them. Else it takes up the system with the most work left for each worker that has it loaded, and there
    what others are compared with before all else. Longest first keeps the last workers from waiting for one another
    (Graham 1969: at most 4/3 of the shortest time); so does handing out a part of what is left (Polychronopoulos and
    Kuck 1987), which is a whole group for long and single cells at the end.

    Args:
        groups: All groups.
        workers: How many workers there are; one takes whole groups.
    """

    def __init__(self, groups: Iterable[W], workers: int = 1) -> None:
        self.pace = Pace()
        self.workers = workers
        self._systems: dict[str, dict[str, _Batch[W]]] = {}
        self._waiting: dict[str, Counter[Kind]] = {}
        self._all: Counter[Kind] = Counter()
        self._loaded: dict[str, int] = {}
        for group in groups:
            self.put(group)

    def __len__(self) -> int:
        return sum(len(batch.groups) for batches in self._systems.values() for batch in batches.values())

    def put(self, group: W) -> None:
        """Add a group."""
        batch = self._systems.setdefault(group.system, {}).setdefault(group.methods, _Batch())
        batch.groups.append(group)
        for work in (batch.work, self._waiting.setdefault(group.system, Counter()), self._all):
            work.update(group.work)

    def clear(self) -> None:
        """Forget all that waits."""
        self._systems.clear()
        self._waiting.clear()
        self._all.clear()

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
            methods = max(batches, key=lambda name: batches[name].rank(self.pace))
        limit = SHARE * self.pace.seconds(self._all) / self.workers
        group = batches[methods].take(self.pace)
        self._waiting[system].subtract(group.work)
        self._all.subtract(group.work)
        if not batches[methods].groups:
            del batches[methods]
        if not batches:
            del self._systems[system], self._waiting[system]
        if self.workers > 1:
            group, rest = group.cut(limit, self.pace)
            if rest is not None:
                self.put(rest)
        return group

    def left(self, last: W) -> None:
        """A worker gave up what it had loaded: it died, or goes on with another system."""
        self._loaded[last.system] = max(0, self._loaded.get(last.system, 0) - 1)

    def _need(self, system: str) -> float:
        return self.pace.seconds(self._waiting[system]) / (1 + self._loaded.get(system, 0))
