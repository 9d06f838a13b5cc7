"""MInference: one of three patterns for each head, chosen offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.a_shape import AShape
from sparsebench.adapters.attention.base import AttentionAdapter, Setting
from sparsebench.adapters.attention.block_topk import BlockTopK
from sparsebench.adapters.attention.vertical_slash import VerticalSlash
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.attention._tiles import Tile
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionPolicy, AttentionView
    from sparsebench.systems.causal_lm import CausalLM
    from sparsebench.systems.counters import Amount

PATTERNS = ("vertical-slash", "block-topk", "a-shape")


class MInference(AttentionAdapter):
    """Vertical-slash, block-sparse or A-shape: for each head what errs least on a calibration text at its budget."""

    card: ClassVar[MethodCard] = MethodCard(
        id="minference",
        family="attention",
        title="MInference",
        summary="In prefill each head has that of three patterns (vertical-slash, block-sparse, A-shape) whose output "
        "is nearest to the dense one on a calibration text, at the same budget.",
        paper=Paper(
            title="MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention",
            authors="Huiqiang Jiang and Yucheng Li and Chengruidong Zhang and Qianhui Wu and Xufang Luo and others",
            year=2024,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2407.02490",
            key="jiang2024minference",
        ),
        unit="token",
        phases=("prefill",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        training="calibration",
        prefix_invariant=False,
        prepare_depends_on_budget=True,
        nearest="vertical-slash",
        differs="lets a search give each head one of three patterns",
        deviations=(
            "patterns are compared at the budget of the cell, a ratio at equal density; a number of tokens is each "
            "pattern's own, and their densities differ; the paper also searches their sizes at equal FLOPs",
            "the index is charged as if every head had the pattern whose index is dearest",
            "patterns as in vertical-slash, block-topk and a-shape, with what those say of themselves",
        ),
    )
    needs_calibration: ClassVar[bool] = True

    samples: int = Field(4, ge=1)
    """Sequences of the calibration text that are looked at."""
    setting: Setting = "scaled"

    def _methods(self) -> tuple[AttentionAdapter, ...]:
        return VerticalSlash(setting=self.setting), BlockTopK(), AShape()

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """The dearer of both indices."""
        return max(method.index(shape, start, count, window) for method in self._methods())

    def prepare(self, system: Any, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The pattern of each head, int64 [heads], by layer."""
        from sparsebench.adapters.attention._allowance import Allowance
        from sparsebench.adapters.calibration import Calibration as Text
        from sparsebench.adapters.passes import read

        if calibration is None or budget is None:
            raise InputError(
                "minference reads a calibration text at a budget", "name one in the suite: calibration: ..."
            )
        text = Text(calibration.name, calibration.ids[: self.samples], calibration.seed)
        observer = _Errors(system, self._methods(), Allowance.of(budget))
        with system.acting(decode=False, prefix_invariant=True, policy=observer):
            read(system, text)
        chosen = {layer: errors.argmin(dim=0) for layer, errors in observer.sums.items()}
        heads = {name: sum(int((c == i).sum()) for c in chosen.values()) for i, name in enumerate(PATTERNS)}
        return Prepared(state=chosen, facts={"heads": heads}, tokens=text.tokens)

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        pattern: torch.Tensor = prepared.state[view.layer]
        parts = [
            method.select(view, allowance, Prepared()) if bool((pattern == i).any()) else None
            for i, method in enumerate(self._methods())
        ]
        return ByHead(parts, pattern)


@dataclass(frozen=True)
class ByHead:
    """A selection for each head out of several.

    Attributes:
        parts: The selections; None where no head has it.
        which: The number of each query head's selection, [heads].
    """

    parts: list[Selection | None]
    which: torch.Tensor

    @property
    def index_flops(self) -> Amount:
        """See `_selection.Selection`."""
        from sparsebench.adapters.attention._rows import total

        return total([part.index_flops for part in self.parts if part is not None])

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `_selection.Selection`."""
        import torch

        from sparsebench.adapters.attention._rows import per_head

        heads = part.query.shape[1]
        mask = torch.zeros((*part.query.shape[:3], part.key.shape[2]), dtype=torch.bool, device=part.query.device)
        for number, selection in enumerate(self.parts):
            if selection is not None:
                own = self.which.to(mask.device) == number
                chosen = per_head(selection.keep(part, first), part)
                mask[:, own] = chosen.expand(-1, heads, -1, -1)[:, own]
        return mask

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        from sparsebench.adapters.attention._tiles import tile_of, tiles_by_head

        tiles = [None if selection is None else tile_of(selection, part, first) for selection in self.parts]
        return tiles_by_head(tiles, self.which, part)


class _Errors:
    """Attends as before, and adds up by head how far each pattern's output is from the dense one."""

    def __init__(self, system: CausalLM, methods: tuple[AttentionAdapter, ...], allowance: Allowance) -> None:
        self.inner: AttentionPolicy | None = system.policy
        self.methods = methods
        self.allowance = allowance
        self.sums: dict[int, torch.Tensor] = {}

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        import torch

        from sparsebench.adapters.attention._executor import TILES, simulate
        from sparsebench.engine.attention import attend_dense

        dense = attend_dense(view)
        errors = [
            (simulate(view, method.select(view, self.allowance, Prepared()), TILES["prefill"])[0] - dense)
            .double()
            .square()
            .sum(dim=(0, 2, 3))
            for method in self.methods
        ]
        self.sums[view.layer] = self.sums.get(view.layer, 0) + torch.stack(errors)
        return self.inner.attend(view) if self.inner is not None else dense
