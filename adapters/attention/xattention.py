"""XAttention: blocks by the sums of their antidiagonals."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from sparsebench.adapters.attention.base import AttentionAdapter
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class XAttention(AttentionAdapter):
    """For each block of queries, the fewest blocks of keys that hold a share of the antidiagonal estimate."""

    card: ClassVar[MethodCard] = MethodCard(
        id="xattention",
        family="attention",
        title="XAttention",
        summary="Scores summed along antidiagonals, softmaxed at the stride's resolution and added up by block, name "
        "the blocks that a block of queries reads until a share is covered.",
        paper=Paper(
            title="XAttention: Block Sparse Attention with Antidiagonal Scoring",
            authors="Ruyi Xu and Guangxuan Xiao and Haofeng Huang and Junxian Guo and Song Han",
            year=2025,
            venue="International Conference on Machine Learning",
            url="https://arxiv.org/abs/2503.16428",
            key="xu2025xattention",
        ),
        unit="block",
        phases=("prefill",),
        adaptivity="coverage",
        budgets=("coverage",),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="block-topk",
        differs="estimates a block from antidiagonals, which cross every column and diagonal in it, not from its means",
        deviations=(
            "blocks of 32, not 128: with 128, sink and diagonal alone fill most of a short prompt",
            "one share for all heads, where the paper has tables of shares by head too",
        ),
    )

    block: int = Field(32, ge=1)
    """Queries and keys of a block; a multiple of the stride."""
    stride: int = Field(8, ge=1)
    """Queries and keys whose antidiagonal is one estimate."""

    @model_validator(mode="after")
    def _whole_strides(self) -> Self:
        if self.block % self.stride:
            raise InputError(
                f"xattention: a block of {self.block} is no whole number of strides of {self.stride}",
                "make block a multiple of stride",
            )
        return self

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """One product of `stride` concatenated vectors for each pair of strides."""
        from sparsebench.cost import window_pairs

        first, last = start // self.stride, -(-(start + count) // self.stride)
        span = None if window is None else (window - 1) // self.stride + 2
        pairs = window_pairs(first, last - first, span)
        read = (start + count) * shape.kv_heads * shape.key_bytes / 2
        return 2.0 * shape.heads * shape.head_dim * self.stride * pairs, read

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._rows import by_start

        return by_start(view, lambda rows: self._select_rows(rows, allowance.coverage or 1.0))

    def _select_rows(self, rows: AttentionView, coverage: float) -> Selection:
        from sparsebench.adapters.attention._blocks import Grid
        from sparsebench.adapters.attention._selection import Blocks

        grid = Grid.of(rows, self.block)
        visible = (grid.pairs > 0)[:, None]
        forced = grid.own.clone()
        forced[:, 0] = True
        chosen = cover_beside(antidiagonal_mass(rows, self.block, self.stride), forced & visible, coverage) & visible
        return Blocks(chosen, self.block, grid.first_block)


def antidiagonal_mass(rows: AttentionView, size: int, stride: int) -> torch.Tensor:
    """Estimated attention by block, [rows, heads, query_blocks, key_blocks]; rows begin together.

    Query (stride - 1 - k) of each stride of queries meets key k of each stride of keys.
    """
    import torch

    from sparsebench.adapters.attention._estimate import block_sums
    from sparsebench.adapters.attention._rows import SLICE
    from sparsebench.engine.transfer import sent

    start, length, device = int(rows.geometry.positions[0, 0]), rows.key.shape[2], rows.key.device
    first, lengths = start // stride, rows.geometry.lengths
    query, key = rows.query.float(), rows.key.float()
    strides = None  # of each row, where one is shorter than another
    if (lengths < length).any():
        place, ends = torch.arange(length, device=device), sent(lengths, device)[:, None]
        query = query.where((place[start:] < ends)[:, None, :, None], 0)
        key = key.where((place < ends)[:, None, :, None], 0)
        strides = -(-ends // stride)[:, :, None, None] - first
    queries = _by_stride(query, stride, start % stride, reverse=True)
    keys = _by_stride(key, stride, 0, reverse=False).repeat_interleave(rows.group, dim=1)
    place = torch.arange(keys.shape[2], device=device)
    parts = []
    for low in range(0, queries.shape[2], SLICE):
        at = torch.arange(low, min(low + SLICE, queries.shape[2]), device=device)
        own = at + first
        hidden = place > own[:, None]
        if rows.window is not None:
            hidden |= (place + 1) * stride - 1 <= own[:, None] * stride - rows.window
        logits = rows.scaling / stride * queries[:, :, low : low + SLICE] @ keys.transpose(-1, -2)
        weights = torch.softmax(logits.masked_fill(hidden, -torch.inf), dim=-1)
        if strides is not None:
            weights = weights.where(at[:, None] < strides, 0)
        parts.append(block_sums(weights, size // stride, 3))
    ratio = size // stride
    mass = block_sums(torch.cat(parts, dim=2), ratio, 2, first % ratio)
    return mass[..., : -(-length // size)]


def _by_stride(x: torch.Tensor, stride: int, offset: int, reverse: bool) -> torch.Tensor:
    """[..., n, dim] as [..., strides, stride * dim], zeros where a stride is incomplete."""
    import torch

    padded = torch.nn.functional.pad(x, (0, 0, offset, -(x.shape[-2] + offset) % stride))
    grouped = padded.reshape(*x.shape[:-2], -1, stride, x.shape[-1])
    return (grouped.flip(-2) if reverse else grouped).flatten(-2)


def cover_beside(mass: torch.Tensor, forced: torch.Tensor, coverage: float) -> torch.Tensor:
    """Forced entries, and the fewest others with which a share of each row's mass is reached; bool like `mass`."""
    import torch

    if coverage >= 1:
        return torch.ones_like(mass, dtype=torch.bool)
    mass = mass.double()
    held = (mass * forced).sum(dim=-1, keepdim=True)
    ranked, order = mass.masked_fill(forced, 0.0).sort(dim=-1, descending=True, stable=True)
    needed = held + ranked.cumsum(dim=-1) - ranked < coverage * mass.sum(dim=-1, keepdim=True)
    return torch.zeros_like(needed).scatter(-1, order, needed) & (mass > 0) | forced
