"""ShadowKV: keys of low rank, chunks by landmarks, values from outside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.attention._cache import PromptAdapter, reachable
from sparsebench.adapters.attention.base import Selector, Setting, scaled
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape, PhaseCosts, Request

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionPolicy
    from sparsebench.systems.causal_lm import CausalLM


class ShadowKV(PromptAdapter):
    """A prompt's keys are rebuilt from few dimensions; a query reads the chunks whose mean key it attends to most."""

    card: ClassVar[MethodCard] = MethodCard(
        id="shadowkv",
        family="attention",
        title="ShadowKV",
        summary="In decode a query reads the chunks of the prompt whose mean keys it attends to most; their keys are "
        "rebuilt from a factorisation of low rank, but for outlying and local chunks.",
        paper=Paper(
            title="ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference",
            authors="Hanshi Sun and Li-Wen Chang and Wenlei Bao and Size Zheng and Ningxin Zheng and others",
            year=2025,
            venue="International Conference on Machine Learning",
            url="https://arxiv.org/abs/2410.21465",
            key="sun2025shadowkv",
        ),
        unit="chunk",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        prefix_invariant=False,
        nearest="quest",
        differs="scores chunks by their mean key, and reads keys that were rebuilt from few dimensions",
        deviations=(
            "bytes resident are the accelerator's: factors, landmarks, outlying, local and decoded tokens; values "
            "of the prompt lie outside it, and reading them is counted as any other",
            "the rank is a share of the width of all keys of a layer: 160 of 1,024, as in the paper's models",
            "outlying and local chunks and decoded tokens are part of a budget",
            "`scaled` has fewer outlying chunks below 32,768 tokens, in proportion",
            "sparsity 0 is not dense: keys of the prompt are rebuilt at every budget, exactly only at rank 1",
        ),
    )

    executes: ClassVar[tuple[str, ...]] = ()

    rank: float = Field(160 / 1024, gt=0, le=1)
    """Dimensions of the factorisation, as a share of the width of the keys of all heads."""
    chunk: int = Field(8, ge=1)
    """Keys of a chunk."""
    outliers: int = Field(48, ge=0)
    """Chunks least like their mean key, which are kept as they are."""
    local: int = Field(4, ge=0)
    """Last chunks of the prompt that every query reads."""
    setting: Setting = "scaled"

    def dimensions(self, width: int) -> int:
        """The rank for keys of that width."""
        return max(1, round(self.rank * width))

    def outlying(self, length: int) -> int:
        """Outlying chunks of a prompt."""
        return scaled(self.outliers, length, self.setting) if self.outliers else 0

    def scoring(self, shape: ModelShape, length: int, window: int | None) -> tuple[float, float]:
        """A factorisation of the keys, by a product and its decomposition, and their mean by chunk."""
        width = shape.kv_heads * shape.head_dim
        flops = 2.0 * length * width**2 * 2 + 9.0 * width**3 + 4.0 * length * width
        return flops, length * width * shape.bytes_per_entry

    def prepare(self, system: Any, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The model's rotary embedding."""
        from sparsebench.adapters.attention._rotary import Rotary

        return Prepared(state=Rotary(system))

    def selector(self, prepared: Prepared) -> Selector:
        """See `AttentionAdapter.selector`."""
        from sparsebench.adapters.attention._shadow import Chunks

        return Chunks(self, prepared)

    def policy(
        self, system: CausalLM, prepared: Prepared, budget: Budget | None, inner: AttentionPolicy | None
    ) -> AttentionPolicy:
        """See `AttentionAdapter.policy`."""
        from sparsebench.adapters.attention._shadow import ShadowPolicy

        return ShadowPolicy(self, system, prepared, budget, inner)

    def rebuilding(self, shape: ModelShape) -> float:
        """FLOPs of one rebuilt key of one head."""
        return 2.0 * self.dimensions(shape.kv_heads * shape.head_dim) * shape.head_dim

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """Predicted cost; every key that is read and neither outlying, local nor decoded is rebuilt."""
        shape: ModelShape = system.shape
        dense = super().cost(system, request, budget)
        if budget is None or not request.prompt:
            return dense
        flops = read = index = held = 0.0
        for window in shape.windows:
            if window == 0:
                continue
            one = self.scoring(shape, request.prompt, window)
            flops, read = flops + one[0], read + one[1]
            chunks = reachable(request.prompt, window) // self.chunk
            kept = min(self.outlying(request.prompt) + self.local, chunks) * self.chunk
            for step in range(request.answer):
                seen = min(request.prompt + step + 1, window or 2**62)
                count = (1 - budget.number) * seen if budget.kind == "sparsity" else min(budget.number, seen)
                index += 2.0 * shape.heads * shape.head_dim * chunks
                index += shape.kv_heads * self.rebuilding(shape) * max(0.0, count - kept - step - 1)
            held += self.held_bytes(shape, request.prompt, kept) + shape.kv_heads * shape.key_bytes * request.answer
        prefill = replace(
            dense.prefill,
            index=request.batch * flops,
            bytes_kv_read=dense.prefill.bytes_kv_read + request.batch * read,
        )
        decode = replace(dense.decode, index=request.batch * index, bytes_kv_resident=request.batch * held)
        return PhaseCosts(prefill, decode)

    def held_bytes(self, shape: ModelShape, length: int, whole: int) -> float:
        """Bytes that the accelerator holds of a prompt in one layer, of which `whole` tokens are kept as they are."""
        width = shape.kv_heads * shape.head_dim
        rank = min(self.dimensions(width), length)
        landmarks = length // self.chunk * width
        factors = rank * (length + width)
        return (factors + landmarks) * shape.bytes_per_entry + shape.kv_heads * shape.key_bytes * whole
