"""Evolutionary search over levels of layers (EvoPress), and the same number of random draws as its control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Levels = tuple[int, ...]
"""For each layer how many steps its sparsity lies above the target."""
Fitness = Callable[[Sequence[Levels], int], list[float]]
"""What candidates lose, all on the same so many tokens; less is better."""


@dataclass(frozen=True)
class Search:
    """How long to search.

    Attributes:
        generations: Rounds.
        offspring: Candidates of a round.
        survivors: How many stay after each stage of a round; the last stage leaves one.
        tokens: Tokens that each stage reads.
        step: Sparsity between neighbouring levels.
        seed: What it is drawn with.
        directed: Whether candidates come from the best so far; if not, each is drawn anew.
    """

    generations: int = 20
    offspring: int = 8
    survivors: tuple[int, ...] = (2, 1)
    tokens: tuple[int, ...] = (1024, 4096)
    step: float = 0.05
    seed: int = 0
    directed: bool = True


@dataclass(frozen=True)
class Space:
    """What may be searched: levels between bounds, whose sum stays 0 over layers of equal size.

    Attributes:
        groups: Indices of layers of equal size; a level goes up in one layer and down in another of its group.
        lowest: Least level of any layer.
        highest: Greatest level of any layer.
    """

    groups: tuple[tuple[int, ...], ...]
    lowest: int
    highest: int

    @classmethod
    def of(cls, sizes: Sequence[int], sparsity: float, step: float) -> Space:
        """The space around a target: sparsities of at least 0 and below 1."""
        groups: dict[int, list[int]] = {}
        for index, size in enumerate(sizes):
            groups.setdefault(size, []).append(index)
        highest = max(0, int(np.ceil((1 - sparsity) / step - 1e-9)) - 1)
        return cls(tuple(tuple(group) for group in groups.values()), -int(sparsity / step + 1e-9), highest)

    def switched(self, levels: Levels, switches: int, generator: np.random.Generator) -> Levels:
        """The same levels after so many random switches: one layer up, another of equal size down."""
        found = list(levels)
        pairs = [group for group in self.groups if len(group) > 1]
        for _ in range(switches if pairs else 0):
            group = pairs[int(generator.choice(len(pairs), p=_shares(pairs)))]
            up = [index for index in group if found[index] < self.highest]
            if not up:
                continue
            raised = int(generator.choice(up))
            down = [index for index in group if index != raised and found[index] > self.lowest]
            if down:
                found[raised] += 1
                found[int(generator.choice(down))] -= 1
        return tuple(found)


def _shares(groups: Sequence[Sequence[int]]) -> np.ndarray:
    total = sum(len(group) for group in groups)
    return np.array([len(group) / total for group in groups])


def search(space: Space, layers: int, fitness: Fitness, settings: Search) -> tuple[Levels, list[float]]:
    """The best levels found, and what they lose after each round (Sieberling et al., 2025, algorithm 1).

    The first candidate is the target in every layer. Offspring differ from the best so far by one to three switches,
    the lesser of two draws. Stages read more tokens and keep fewer; in the last one the best so far takes part.
    """
    generator = np.random.default_rng(settings.seed)
    best: Levels = (0,) * layers
    history = []
    for _ in range(settings.generations):
        candidates = [_offspring(space, best, settings.directed, generator) for _ in range(settings.offspring)]
        stages = list(zip(settings.survivors, settings.tokens, strict=True))
        for place, (survivors, tokens) in enumerate(stages):
            if place == len(stages) - 1:
                candidates = [best, *(c for c in candidates if c != best)]
            losses = fitness(candidates, tokens)
            order = sorted(range(len(candidates)), key=lambda index: (losses[index], index))[:survivors]
            candidates = [candidates[index] for index in order]
        best = candidates[0]
        history.append(losses[order[0]])
    return best, history


def _offspring(space: Space, best: Levels, directed: bool, generator: np.random.Generator) -> Levels:
    if directed:
        return space.switched(best, int(generator.integers(1, 4, 2).min()), generator)
    return space.switched((0,) * len(best), int(generator.integers(1, 2 * len(best) + 1)), generator)
