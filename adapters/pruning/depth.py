"""Depth: whole decoder blocks go, and what is left is a smaller dense model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsebench.adapters.base import Adapter, Prepared
from sparsebench.adapters.card import MethodCard
from sparsebench.budget import Budget
from sparsebench.cost import PhaseCosts, Request, dense_cost
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM


class Depth(Adapter):
    """Blocks go in one order for all budgets: those first that change least of what passes through them."""

    card: ClassVar[MethodCard] = MethodCard(
        id="depth",
        family="pruning",
        title="Depth",
        summary="Whole blocks are left out, those whose output is nearest to their input first; a smaller dense model.",
        role="control",
        unit="block",
        adaptivity="static",
        training="calibration",
        modes=("executed",),
        nearest="cfsp",
        differs="takes out whole blocks instead of channels of MLPs",
        deviations=("without training after it: a small model that was trained would be better",),
    )

    order: Literal["influence", "last", "spread"] = "influence"
    """`influence`: blocks of the smallest mean 1 - cos(input, output) on a calibration text go first; `last`: the
    deepest; `spread`: evenly over the depth, from the middle outwards. The first block is one like any other."""

    def reads_calibration(self) -> bool:
        """Only the order by influence reads a text."""
        return self.order == "influence"

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The order in which blocks go, shared by all budgets."""
        if self.order != "influence":
            return Prepared()
        from sparsebench.adapters.pruning._influence import influences

        if calibration is None:
            raise InputError(f"{self.card.id} reads a calibration text", "or set order: last")
        found = [influence.cosine / max(1, influence.tokens) for influence in influences(system, calibration)]
        facts = {"calibration": calibration.describe(), "block_influence": found}
        return Prepared(found, facts, tokens=calibration.tokens)

    @contextmanager
    def attach(self, system: CausalLM, prepared: Prepared, budget: Budget | None) -> Iterator[CausalLM]:
        """The model without those blocks; on exit it has them again."""
        from sparsebench.adapters.pruning._removal import without_blocks
        from sparsebench.adapters.pruning._storing import refuse_stored

        self.check_budget(budget)
        refuse_stored(self.card.id, system)
        gone = self.gone(prepared.state, len(system.blocks), budget)
        if not gone:
            yield system
            return
        with without_blocks(system, gone):
            yield system

    def gone(self, influence: list[float] | None, blocks: int, budget: Budget | None) -> list[int]:
        """Blocks that go; at least one stays.

        Args:
            influence: Of each block, where the order is by influence.
            blocks: How many there are.
            budget: How sparse.
        """
        count = min(int((budget.number if budget else 0) * blocks + 0.5), blocks - 1)
        return sorted(self._order(influence, blocks)[:count])

    def _order(self, influence: list[float] | None, blocks: int) -> list[int]:
        if self.order == "last":
            return list(range(blocks))[::-1]
        if self.order == "spread":
            return _spread(blocks)
        if influence is None or len(influence) != blocks:
            raise InputError(f"{self.card.id} was prepared on another model", "prepare it on this one")
        return sorted(range(blocks), key=lambda index: (influence[index], index))

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """The dense cost of a model with so many blocks less, of the average kind."""
        shape = system.shape
        left = shape.layers - len(self.gone([0.0] * shape.layers, shape.layers, budget))
        share = left / shape.layers
        smaller = replace(
            shape,
            layers=left,
            linear_params=round(shape.linear_params * share),
            stored_params=round(shape.stored_params * share),
            windows=tuple(shape.windows[int((place + 0.5) / share)] for place in range(left)),
        )
        return dense_cost(smaller, request)


def _spread(blocks: int) -> list[int]:
    """Indices so that those taken first lie apart from one another: the middle, the quarters, the eighths ..."""
    found: list[int] = []
    parts = 2
    while len(found) < blocks:
        for odd in range(1, parts, 2):
            place = odd * blocks // parts
            if place < blocks and place not in found:
                found.append(place)
        parts *= 2
        if parts > 4 * blocks:
            found += [index for index in range(blocks) if index not in found]
    return found
