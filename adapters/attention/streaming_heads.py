"""Streaming heads in prefill: half of the heads read first and recent keys, the others everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import PAPER_LENGTH, AttentionAdapter
from sparsebench.adapters.attention.lserve import streaming_heads
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection, SinkAndRecent
    from sparsebench.adapters.attention._tiles import Tile
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionView


def first_keys(counts: torch.Tensor) -> torch.Tensor:
    """First keys among the `counts` that a streaming head reads in prefill, int64 of the same shape."""
    return (counts / 65).ceil().long()


class StreamingHeads(AttentionAdapter):
    """LServe's prefill: heads that need little of the text read only its beginning and what is near."""

    card: ClassVar[MethodCard] = MethodCard(
        id="streaming-heads",
        version=2,
        family="attention",
        title="Streaming heads",
        summary="In prefill half of the key heads, those that lose least by it, read first and recent keys; the others "
        "read all.",
        paper=Paper(
            title="LServe: Efficient Long-sequence LLM Serving with Unified Sparse Attention",
            authors="Shang Yang and Junxian Guo and Haotian Tang and Qinghao Hu and Guangxuan Xiao and others",
            year=2025,
            venue="Conference on Machine Learning and Systems",
            url="https://arxiv.org/abs/2502.14866",
            key="yang2025lserve",
        ),
        unit="head",
        phases=("prefill",),
        adaptivity="static",
        budgets=("tokens",),
        modes=("simulated", "executed"),
        training="calibration",
        nearest="streaming-llm",
        differs="half of the heads read everything",
        deviations=(
            "streaming heads are those that lose least attention under first and recent keys on a calibration text, in "
            "the place of gates that are trained",
            "a budget is the number of keys that a streaming head reads; one in 65 of them is a first key, as in the "
            "released setting (128 and 8,192)",
        ),
    )
    needs_calibration: ClassVar[bool] = True

    streaming: float = Field(0.5, ge=0, le=1)
    """Share of the model's key heads that stream."""

    def prepare(self, system: Any, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """Which key heads stream, bool [kv_heads], by layer."""
        if calibration is None:
            raise InputError("streaming-heads reads a calibration text", "name one in the suite: calibration: ...")
        return streaming_heads(system, calibration, self.streaming, 8_320 / PAPER_LENGTH, first_keys)

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._selection import sink_and_recent

        counts = allowance.counts(view)
        streams: torch.Tensor = prepared.state[view.layer]
        return SomeHeads(streams, sink_and_recent(view, counts, first_keys(counts)))

    def _share(self, shape: ModelShape, span: tuple[int, int], budget: Budget | None, whole: frozenset[int]) -> float:
        return 1 - self.streaming * (1 - super()._share(shape, span, budget, whole))


@dataclass(frozen=True)
class SomeHeads:
    """A selection for some key heads; the others read all.

    Attributes:
        streams: Which key heads have it, bool [kv_heads].
        narrow: What they read.
    """

    streams: torch.Tensor
    narrow: SinkAndRecent
    index_flops: float = 0.0

    def keep(self, part: AttentionView, first: int) -> torch.Tensor:
        """See `_selection.Selection`."""
        heads = self.streams.repeat_interleave(part.group)
        return self.narrow.keep(part, first) | ~heads[:, None, None]

    def tile(self, part: AttentionView, first: int) -> Tile:
        """See `_tiles.Tiled`."""
        import torch

        from sparsebench.adapters.attention._tiles import Tile, tiles_by_head

        everything = torch.ones((1, 1, part.key.shape[2]), dtype=torch.bool, device=part.key.device)
        whole = Tile(everything, lambda places: places[:, :, None] >= 0)
        heads = self.streams.repeat_interleave(part.group)
        return tiles_by_head([whole, self.narrow.tile(part, first)], heads.long(), part)
