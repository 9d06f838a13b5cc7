"""PyramidKV: SnapKV with more keys in lower layers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sparsebench.adapters.attention.snapkv import SnapKV
from sparsebench.adapters.card import MethodCard, Paper


class PyramidKV(SnapKV):
    """SnapKV's scores at budgets that fall linearly from the first layer to the last."""

    card: ClassVar[MethodCard] = MethodCard(
        id="pyramidkv",
        version=2,
        family="attention",
        title="PyramidKV",
        summary="SnapKV's scores, with budgets that fall from layer to layer: lower ones attend widely, upper ones to "
        "few tokens.",
        paper=Paper(
            title="PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
            authors="Zefan Cai and Yichi Zhang and Bofei Gao and Yuliang Liu and Tianyu Liu and others",
            year=2024,
            venue="arXiv:2406.02069",
            url="https://arxiv.org/abs/2406.02069",
            key="cai2024pyramidkv",
        ),
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="snapkv",
        differs="gives layers unequal budgets",
        deviations=(
            "scores are SnapKV's, averaged over the heads of a group and over neighbours",
            "the first layer's budget is cut at the prompt's length, and the others' rise so that the mean stays",
            "where windows differ between layers, each kind has a pyramid and a mean of its own",
            "`scaled` leaves the last keys no more than half of a budget; `paper` always keeps all of them",
        ),
    )

    steepness: float = Field(20.0, ge=1)
    """The mean budget, the last keys aside, over that of the last layer: beta."""

    def share_of_layer(self, count: int, available: int, layer: int, layers: int) -> int:
        """See `CacheAdapter.share_of_layer`; linear in the layer, with the mean `count`."""
        last = self.last(count)
        free, most = count - last, available - last
        lowest = free / self.steepness
        highest = 2 * free - lowest
        if highest > most:
            lowest, highest = 2 * free - most, float(most)
        fall = (highest - lowest) / max(layers - 1, 1)
        # Rounded sums of the layers before, so that the layers together keep what they should.
        before, after = (n * highest - fall * n * (n - 1) / 2 for n in (layer, layer + 1))
        return last + round(after) - round(before) if layers > 1 else count
