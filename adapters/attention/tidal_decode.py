"""TidalDecode: tokens chosen in two layers by full attention and read in all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, Selector, first_layers
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class TidalDecode(AttentionAdapter):
    """Position-persistent tokens: what one layer attends to most, the following layers read."""

    card: ClassVar[MethodCard] = MethodCard(
        id="tidal-decode",
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
            "a ratio is met over all layers, the dense ones included: the others read less than it says",
            "the correction layer lies at 9/32 of the depth, where the released code has it in a model of 32 layers",
            "models of fewer than 16 layers have one dense layer in eight, rounded down, before the first choice",
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

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """The choice that a choosing layer makes."""
        from sparsebench.adapters.attention._selection import Given, TopTokens
        from sparsebench.engine.attention import scores

        return Given(TopTokens.within(allowance, view, scores).keep(view, 0))


class _Persistent:
    """Remembers the last choice of each group of rows while a forward pass goes from layer to layer.

    Rows reach the layers in the same groups and in the same order; the number of a group is its turn in a layer.
    """

    def __init__(self, method: TidalDecode) -> None:
        self.method = method
        self.layer = -1
        self.turn = 0
        self.chosen: dict[int, Selection] = {}

    def select(self, view: AttentionView, allowance: Allowance) -> Selection:
        """See `Selector`."""
        self._enter(view.layer)
        if self.turn not in self.chosen:
            raise InputError("tidal-decode: a layer that reads tokens ran before any layer that chooses them")
        return self.chosen[self.turn]

    def observe(self, view: AttentionView, allowance: Allowance) -> None:
        """See `Selector`."""
        from sparsebench.adapters.base import Prepared

        self._enter(view.layer)
        self.chosen[self.turn] = self.method.select(view, allowance, Prepared())

    def _enter(self, layer: int) -> None:
        self.turn = self.turn + 1 if layer == self.layer else 0
        if layer < self.layer:
            self.chosen.clear()
        self.layer = layer
