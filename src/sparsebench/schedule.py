"""Which cells a worker takes next: of what it has prepared, baselines, then the longest, in parts that shrink."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
        self._preparing: dict[tuple[str, str], float] = {}

    def learn(self, kind: Kind, flops: float, seconds: float) -> None:
        """Take note of a cell that is done."""
        for known in (kind, (kind[0], ""), ("", "")):
            self._seconds[known] += seconds
            self._flops[known] += flops

    def learn_preparing(self, group: Work, seconds: float) -> None:
        """Take note of what preparing a group's methods on its system has taken."""
        key = (group.system, group.methods)
        self._preparing[key] = max(seconds, self._preparing.get(key, 0.0))

    def preparing(self, group: Work) -> float | None:
        """Seconds that preparing a group's methods takes; None where nobody knows."""
        return self._preparing.get((group.system, group.methods))

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
        methods: What is prepared with parts in common for all groups that share it.
        stack: What is prepared once for all groups that share it; empty where there is nothing to prepare.
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
    def stack(self) -> str:
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
    leads: int = 0
    """Groups that others are compared with."""


class Schedule(Generic[W]):
    """Groups that wait for a worker.

    A worker that has a system loaded stays with it, and with the methods that it has prepared, as long as there is
    work for them. Else it takes up the system with the most work left for each worker that has it loaded, and there
    what others are compared with before all else. What another worker has prepared it leaves to that one, unless
    preparing is known to take less than half of what is left there, or nothing else is left. Longest first keeps the
    last workers from waiting for one another (Graham 1969: at most 4/3 of the shortest time); so does handing out a
    part of what is left (Polychronopoulos and Kuck 1987), which is a whole group for long and single cells at the end.

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
        self._prepared: Counter[tuple[str, str]] = Counter()
        for group in groups:
            self.put(group)

    def __len__(self) -> int:
        return sum(len(batch.groups) for batches in self._systems.values() for batch in batches.values())

    def put(self, group: W) -> None:
        """Add a group."""
        batch = self._systems.setdefault(group.system, {}).setdefault(group.methods, _Batch())
        batch.groups.append(group)
        batch.leads += group.leads
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
        limit = SHARE * self.pace.seconds(self._all) / self.workers
        group = self._next(last)
        if last is not None:
            self._prepared[last.system, last.stack] -= 1
            if group is None or group.system != last.system:
                self.left(last)
        if group is None:
            return None
        system, methods, batches = group.system, group.methods, self._systems[group.system]
        if last is None or last.system != system:
            self._loaded[system] = self._loaded.get(system, 0) + 1
        self._prepared[system, group.stack] += 1
        batches[methods].groups.remove(group)
        batches[methods].leads -= group.leads
        batches[methods].work.subtract(group.work)
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

    def _next(self, last: W | None) -> W | None:
        """What a worker that has done `last` takes up: of its system, or else of the one that needs it most."""
        loaded = [last.system] if last is not None and last.system in self._systems else []
        others = sorted((name for name in self._systems if name not in loaded), key=self._need, reverse=True)
        for system in [*loaded, *others]:
            found = self._of(self._systems[system], last if system in loaded else None)
            if found is not None:
                return found
        return None

    def _of(self, batches: Mapping[str, _Batch[W]], last: W | None) -> W | None:
        """What it takes up of one system; None where others will be done with it before it could begin."""
        if last is not None and last.methods in batches:
            own = batches[last.methods].groups
            found = self._best([group for group in own if group.stack == last.stack]) or self._best(self._free(own))
            if found is not None:
                return found
        # The largest goes first: a run that is cut short has then the baselines of all that it finished.
        ranked = sorted(batches.values(), key=lambda b: (b.leads > 0, self.pace.seconds(b.work)), reverse=True)
        shared: list[W] = []
        for batch in ranked:
            free = self._free(batch.groups)
            if free and (batch.leads or not self._shared(batch)):
                return self._best(free)
            shared = shared or free
        return self._best(shared or [g for batch in ranked for g in batch.groups if not self._late(g)])

    def _best(self, groups: Sequence[W]) -> W | None:
        return max(groups, key=lambda group: (group.leads, self.pace.seconds(group.work)), default=None)

    def _free(self, groups: Sequence[W]) -> list[W]:
        """Groups that no worker has prepared, or that are worth preparing once more."""
        return [g for g in groups if g.leads or self._prepared[g.system, g.stack] <= 0 or self._worth(g)]

    def _worth(self, group: W) -> bool:
        if not group.stack:
            return True
        preparing = self.pace.preparing(group)
        return preparing is not None and 2 * preparing < self.pace.seconds(group.work)

    def _late(self, group: W) -> bool:
        """Whether the worker that has prepared it will be done before another one has."""
        preparing = self.pace.preparing(group)
        return bool(group.stack) and preparing is not None and preparing >= self.pace.seconds(group.work)

    def _shared(self, batch: _Batch[W]) -> bool:
        """Whether some worker has prepared a part of it, at a cost that matters."""
        held = any(self._prepared[group.system, group.stack] > 0 for group in batch.groups)
        return held and not any(self._worth(group) for group in batch.groups)

    def _need(self, system: str) -> float:
        return self.pace.seconds(self._waiting[system]) / (1 + self._loaded.get(system, 0))
