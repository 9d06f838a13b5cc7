"""LServe: heads that stream, and pages for the others, chosen every few tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from sparsebench.adapters.attention.base import AttentionAdapter, Selector
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionPolicy, AttentionView
    from sparsebench.systems.causal_lm import CausalLM

SINK_SHARE = 128 / 384
"""Of what a streaming head reads in decode, the released setting has a third at the beginning of the text."""


def first_keys(counts: torch.Tensor) -> torch.Tensor:
    """First keys among the `counts` that a streaming head reads in decode, int64 of the same shape."""
    return (counts * SINK_SHARE).long()


class LServe(AttentionAdapter):
    """Half of the heads read first and recent keys; the others pages, by bounds of their parts, for four tokens."""

    card: ClassVar[MethodCard] = MethodCard(
        id="lserve",
        family="attention",
        title="LServe",
        summary="In decode half of the key heads read first and recent keys, the others pages by the best bound of a "
        "page's parts, chosen anew at every fourth token.",
        paper=Paper(
            title="LServe: Efficient Long-sequence LLM Serving with Unified Sparse Attention",
            authors="Shang Yang and Junxian Guo and Haotian Tang and Qinghao Hu and Guangxuan Xiao and others",
            year=2025,
            venue="Conference on Machine Learning and Systems",
            url="https://arxiv.org/abs/2502.14866",
            key="yang2025lserve",
        ),
        unit="page",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        training="calibration",
        nearest="quest",
        differs="half of the heads stream, parts of a page have their own bounds, and a choice is kept for some tokens",
        deviations=(
            "streaming heads are those that lose least attention under first and recent keys on a calibration text, in "
            "the place of gates that are trained",
            "pages of 32 keys in parts of 8; the released setting has 64 and 16",
            "the index is charged evenly: to each token its share of the choices",
            "prefill is dense: see streaming-heads; keys and values are not quantised",
            "a streaming head reads 3 keys for every 32 of another head, as the released setting does, or more where a "
            "ratio leaves it more",
        ),
    )
    needs_calibration: ClassVar[bool] = True

    page: int = Field(32, ge=1)
    """Keys of a page; a multiple of a part's."""
    part: int = Field(8, ge=1)
    """Keys of a part of a page, whose entries are bounded together."""
    every: int = Field(4, ge=1)
    """Tokens for which a choice of pages is kept, at most a page; a new one is made at multiples of it."""
    streaming: float = Field(0.5, ge=0, le=1)
    """Share of the model's key heads that stream."""
    narrow: float = Field(384 / 4096, gt=0, le=1)
    """Keys of a streaming head over those of another."""

    @model_validator(mode="after")
    def _whole_parts(self) -> Self:
        if self.page % self.part:
            raise InputError(
                f"lserve: a page of {self.page} is no whole number of parts of {self.part}",
                "make page a multiple of part",
            )
        if self.every > self.page:
            raise InputError(
                f"lserve: a choice kept for {self.every} tokens outlasts a page of {self.page}: whole pages would be "
                "written and never chosen",
                "make every at most page",
            )
        return self

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """Bounds of all parts in a quarter of the tokens, for the share of heads that does not stream."""
        from sparsebench.adapters.attention.quest import pages_seen

        parts = sum(pages_seen(position, window, self.part) for position in range(start, start + count))
        vectors = 2.0 * parts * shape.head_dim * (1 - self.streaming) / self.every
        return 2 * vectors * shape.heads, vectors * shape.kv_heads * shape.bytes_per_entry

    def index_held(self, shape: ModelShape, length: int, window: int | None) -> float:
        """Both vectors of each part that the last query sees, for the share of heads that does not stream."""
        from sparsebench.adapters.attention.quest import pages_seen

        entries = 2.0 * pages_seen(length - 1, window, self.part) * shape.kv_heads * shape.head_dim
        return entries * (1 - self.streaming) * shape.bytes_per_entry

    def prepare(self, system: Any, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """Which key heads stream, bool [kv_heads], by layer."""
        if calibration is None:
            raise InputError("lserve reads a calibration text", "name one in the suite: calibration: ...")
        return streaming_heads(system, calibration, self.streaming, self.narrow, first_keys)

    def policy(
        self, system: CausalLM, prepared: Prepared, budget: Budget | None, inner: AttentionPolicy | None
    ) -> AttentionPolicy:
        """See `AttentionAdapter.policy`."""
        from sparsebench.adapters.attention._eviction import RememberingPolicy

        return RememberingPolicy(self, system, prepared, budget, inner)

    def selector(self, prepared: Prepared) -> Selector:
        """See `AttentionAdapter.selector`."""
        from sparsebench.adapters.attention._pages import KeptPages

        return KeptPages(self, prepared)

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        return self.selector(prepared).select(view, allowance)

    def _share(self, shape: ModelShape, span: tuple[int, int], budget: Budget | None, whole: frozenset[int]) -> float:
        share = super()._share(shape, span, budget, whole)
        if budget is None or budget.kind != "tokens":
            return share
        thin = replace(budget, value=self.narrowed(int(budget.number)))
        return (1 - self.streaming) * share + self.streaming * super()._share(shape, span, thin, whole)

    def narrowed(self, tokens: int) -> int:
        """Keys of a streaming head where another head reads so many."""
        return max(1, round(self.narrow * tokens))

    def shares(self, allowance: Allowance, streaming: float) -> tuple[Allowance, Allowance]:
        """What a head that streams and one that does not may read, where such a share of a layer's heads streams."""
        if allowance.tokens is not None:
            return replace(allowance, tokens=self.narrowed(allowance.tokens)), allowance
        density = 1.0 if allowance.density is None else allowance.density
        wide = min(1.0, density / (streaming * self.narrow + 1 - streaming))
        thin = (density - (1 - streaming) * wide) / streaming if streaming else wide
        return replace(allowance, density=min(1.0, thin)), replace(allowance, density=wide)


def streaming_heads(
    system: Any,
    calibration: Calibration,
    share: float,
    width: float,
    first: Callable[[torch.Tensor], torch.Tensor],
) -> Prepared:
    """The key heads of a model that lose least attention when they read first and recent keys only.

    Args:
        system: The model.
        calibration: The text.
        share: Share of the key heads of all layers together that stream.
        width: Keys that a streaming head reads, as a share of the text.
        first: How many of so many keys are first ones.

    Returns:
        Bool [kv_heads] by layer.
    """
    import torch

    from sparsebench.adapters.attention._pages import LostMass
    from sparsebench.adapters.passes import read

    observer = LostMass(system.policy, max(2, round(width * calibration.length)), first)
    with system.acting(decode=False, prefix_invariant=True, policy=observer):
        read(system, calibration)
    lost = torch.stack([observer.sums[layer].cpu() for layer in sorted(observer.sums)])
    order = lost.flatten().argsort(stable=True)
    streams = torch.zeros(lost.numel(), dtype=torch.bool)
    streams[order[: round(share * lost.numel())]] = True
    chosen = {
        layer: heads.to(observer.sums[layer].device)
        for layer, heads in zip(sorted(observer.sums), streams.reshape(lost.shape), strict=True)
    }
    facts = {"streaming": {str(layer): int(heads.sum()) for layer, heads in chosen.items()}}
    return Prepared(state=chosen, facts=facts, tokens=calibration.tokens)
