"""TidalDecode: tokens chosen in two layers by full attention and read in all others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, Selector, first_layers
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import Cost, ModelShape, window_pairs
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Given, Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionView


class TidalDecode(AttentionAdapter):
    """Position-persistent tokens: what one layer attends to most, the following layers read."""

    card: ClassVar[MethodCard] = MethodCard(
        id="tidal-decode",
        version=2,
        family="attention",
        title="TidalDecode",
        summary="In decode one early layer and one further on attend fully; the tokens with their highest scores are "
        "all that the other layers read.",
        paper=Paper(
            title="TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention",
            authors="Lijie Yang and Zhihao Zhang and Zhuofu Chen and Zikun Li and Zhihao Jia",
            year=2025,
            venue="International Conference on Learning Representations",
            url="https://arxiv.org/abs/2410.05076",
            key="yang2025tidaldecode",
        ),
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        nearest="oracle-tokens",
        differs="looks for the top tokens in two layers only and reuses them in the others",
        deviations=(
            "a ratio is met over all layers, the dense ones included: the others read less than it says; layers "
            "count alike, so that a model with windows in some of them realises another ratio",
            "the correction layer lies at 9/32 of the depth, where the released code has it in a model of 32 layers",
            "models of fewer than 16 layers have one dense layer in eight, rounded down, before the first choice; of 2 "
            "to 5 layers the first two are dense, and three layers leave out a third of the pairs at most",
            "each query head chooses tokens of its own, also where heads share keys",
            "where windows differ, a layer takes those with the highest scores of the tokens that it sees itself; "
            "scores outside the window of the layer that chooses count as index, the bytes read for them do not",
        ),
    )

    dense: int = Field(2, ge=0)
    """First layers that attend densely; the next one chooses."""
    correction: int | None = Field(None, ge=1)
    """Layer that attends fully and chooses again; None: at 9/32 of the depth."""

    def choosing(self, layers: int) -> tuple[int, int]:
        """The two layers that choose."""
        first = len(first_layers(self.dense, layers))
        again = round(layers * 9 / 32) if self.correction is None else self.correction
        return first, min(max(again, first + 1), layers - 1)

    def dense_layers(self, layers: int) -> frozenset[int]:
        """See `AttentionAdapter.dense_layers`."""
        first, again = self.choosing(layers)
        return frozenset((*range(first + 1), again))

    def selector(self, prepared: Prepared) -> Selector:
        """See `AttentionAdapter.selector`."""
        return _Persistent(self)

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Given:
        """The choice that a choosing layer makes for layers with the window of the view."""
        from sparsebench.adapters.attention._selection import Given, TopTokens
        from sparsebench.engine.attention import scores

        return Given(TopTokens.within(allowance, view, scores).keep(view, 0))

    def _phase_cost(
        self, dense: Cost, shape: ModelShape, span: tuple[int, int], batch: int, budget: Budget | None, phase: str
    ) -> Cost:
        found = super()._phase_cost(dense, shape, span, batch, budget, phase)
        if phase not in self.phases() or not span[1]:
            return found
        first, again = self.choosing(shape.layers)
        flops = 0.0
        for chooser, end in ((first, again), (again, shape.layers)):
            own = window_pairs(*span, shape.windows[chooser])
            for window in {window for window in shape.windows[chooser + 1 : end] if window != 0}:
                flops += scoring_flops(shape.heads, shape.head_dim, window_pairs(*span, window) - own)
        return replace(found, index=found.index + batch * flops)


def scoring_flops(heads: int, head_dim: int, pairs: int) -> float:
    """FLOPs of scores of so many further pairs of each head; none where there are fewer than before."""
    return 2.0 * heads * head_dim * max(0, pairs)


@dataclass
class _Choice:
    """What one layer chose for some rows; layers with another window have the same scores cut by their own counts.

    Attributes:
        method: Whose choice it is.
        view: The rows in the layer that chooses.
        allowance: How much a layer may read.
        cut: The choice for each window that was asked for.
    """

    method: TidalDecode
    view: AttentionView
    allowance: Allowance
    cut: dict[int | None, Given] = field(default_factory=dict)

    def read_by(self, view: AttentionView) -> Given:
        """What the same rows read in a later layer.

        Raises:
            InputError: That layer does not hold the same keys.
        """
        from sparsebench.adapters.base import Prepared

        if view.key.shape[2] != self.view.key.shape[2]:
            raise InputError(
                "tidal-decode: a layer holds other keys than the layer that chose tokens for it",
                "caches that drop what lies outside a sliding window do not work in plain calls",
            )
        if view.window in self.cut:
            return self.cut[view.window]
        seen = replace(self.view, window=view.window)
        chosen = self.cut[view.window] = self.method.select(seen, self.allowance, Prepared())
        further = seen.dense_pairs() - self.view.dense_pairs()
        return replace(chosen, index_flops=scoring_flops(view.query.shape[1], view.query.shape[3], further))


class _Persistent:
    """Remembers the last choice of each group of rows while a forward pass goes from layer to layer.

    Rows reach the layers in the same groups and in the same order; the number of a group is its turn in a layer.
    """

    def __init__(self, method: TidalDecode) -> None:
        self.method = method
        self.layer = -1
        self.turn = 0
        self.chosen: dict[int, _Choice] = {}

    def select(self, view: AttentionView, allowance: Allowance) -> Selection:
        """See `Selector`."""
        self._enter(view.layer)
        if self.turn not in self.chosen:
            raise InputError("tidal-decode: a layer that reads tokens ran before any layer that chooses them")
        return self.chosen[self.turn].read_by(view)

    def observe(self, view: AttentionView, allowance: Allowance) -> None:
        """See `Selector`."""
        self._enter(view.layer)
        self.chosen[self.turn] = _Choice(self.method, view, allowance)

    def _enter(self, layer: int) -> None:
        self.turn = self.turn + 1 if layer == self.layer else 0
        if layer < self.layer:
            self.chosen.clear()
        self.layer = layer
