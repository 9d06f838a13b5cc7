"""MInference's vertical-slash pattern: columns and diagonals that the last queries of a prompt attend to."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, Setting, scaled
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    import numpy as np
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class VerticalSlash(AttentionAdapter):
    """Columns and diagonals by the attention of the last queries, for each prompt and query head."""

    card: ClassVar[MethodCard] = MethodCard(
        id="vertical-slash",
        family="attention",
        title="MInference vertical-slash",
        summary="The attention of the last 64 queries, summed by column and by diagonal, names the columns and "
        "diagonals that all queries of the prompt read.",
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
        prefix_invariant=False,
        nearest="flexprefill",
        differs="single columns and diagonals at one budget for all heads, not blocks up to a share of attention",
        deviations=(
            "the pattern of all heads; the offline search that gives heads one of three patterns is not part of it",
            "`scaled` forces fewer first columns and near diagonals below 32,768 tokens, in proportion; `paper` always "
            "30 and 100, which leave no room for others in a short prompt",
            "diagonals are single ones; the released kernel runs whole 64 x 64 tiles of them (see the tile density)",
        ),
    )

    queries: int = Field(64, ge=1)
    """Queries at the end of the prompt whose attention is looked at."""
    slashes: float = Field(6.096, ge=0)
    """Diagonals for each column; the released default has 6,096 and 1,000."""
    first: int = Field(30, ge=0)
    """First columns that come before all others."""
    near: int = Field(100, ge=1)
    """Nearest diagonals that come before all others."""
    setting: Setting = "scaled"

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """Scores of the last queries over all keys."""
        queries = min(self.queries, count)
        keys = start + count if window is None else min(start + count, window + queries)
        return 2.0 * shape.heads * shape.head_dim * queries * keys, keys * shape.kv_heads * shape.key_bytes / 2

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._rows import by_start

        return by_start(view, lambda rows: self._select_rows(rows, allowance))

    def _select_rows(self, rows: AttentionView, allowance: Allowance) -> Selection:
        import numpy as np

        from sparsebench.adapters.attention import _selection
        from sparsebench.adapters.attention._estimate import attention_weights, last_queries
        from sparsebench.engine.transfer import sent

        last = last_queries(rows, self.queries)
        vertical, slash = sums_by_column_and_diagonal(attention_weights(last), last.positions)
        lengths = rows.geometry.lengths
        device = vertical.device
        ends = sent(lengths, device)[:, None, None]
        first, near = (
            sent(np.array([scaled(size, length, self.setting) for length in lengths.tolist()]), device)[:, None, None]
            for size in (self.first, self.near)
        )
        columns, diagonals = ranks(vertical, first * (self.first > 0), ends), ranks(slash, near, ends)
        if allowance.tokens is not None:
            whole = ((1 + self.slashes) * lengths).astype(np.int64) + 1
            budget = sent(np.where(allowance.tokens >= lengths, whole, allowance.tokens), device)[:, None]
            budget = budget.expand(*columns.shape[:2])
        else:
            start = int(rows.geometry.positions[0, 0])
            budget = self._budget(columns, diagonals, start, lengths, rows.window, allowance.density or 0.0)
        verticals, slashes = self.divide(budget)
        return _selection.VerticalSlash(columns < verticals[..., None], diagonals < slashes[..., None])

    def divide(self, budget: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns and diagonals out of their sum; at least the query's own diagonal."""
        verticals = (budget / (1 + self.slashes)).long()
        return verticals, (budget - verticals).clamp(min=1)

    def _budget(
        self,
        columns: torch.Tensor,
        diagonals: torch.Tensor,
        start: int,
        lengths: np.ndarray,
        window: int | None,
        density: float,
    ) -> torch.Tensor:
        """Columns and diagonals together with which each head comes nearest to a share of its pairs, [rows, heads]."""
        import numpy as np
        import torch

        from sparsebench.adapters.attention._selection import ASKED
        from sparsebench.cost import window_pairs
        from sparsebench.engine.transfer import sent

        device = columns.device
        totals = [density * window_pairs(start, length - start, window) for length in lengths.tolist()]
        target = sent(np.array(totals), device)[:, None, None]
        ends = sent(lengths, device)

        def pairs(budget: torch.Tensor) -> torch.Tensor:  # [rows, heads, budgets] in and out
            verticals, slashes = self.divide(budget)
            taken, along = columns[:, :, None] < verticals[..., None], diagonals[:, :, None] < slashes[..., None]
            return covered_pairs(taken, along, start, window, ends[:, None, None])

        most = ((1 + self.slashes) * lengths).astype(np.int64) + 1
        low = torch.zeros((*columns.shape[:2], 1), dtype=torch.int64, device=device)
        high = low + sent(most, device)[:, None, None]
        if density >= 1:
            return high[..., 0]
        # A processor halves; a device is given many budgets at a time, since each round is a fixed number of kernels.
        tries = 1 if device.type in ASKED else 15
        among = torch.arange(1, tries + 1, device=device)
        apart = int(most.max())
        while apart > 1:  # so far apart are low and high at most
            step = -(-apart // (tries + 1))
            budgets = torch.minimum(low + step * among, high)
            fit = ((pairs(budgets) <= target) & (budgets < high)).sum(dim=-1, keepdim=True)
            low, high = low + step * fit, torch.minimum(low + step * (fit + 1), high)
            apart = step
        return torch.where((pairs(high) - target).abs() < (pairs(low) - target).abs(), high, low)[..., 0]


def sums_by_column_and_diagonal(weights: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by key and by distance from query to key, each [rows, heads, keys].

    Args:
        weights: [rows, heads, queries, keys].
        positions: Of the queries, [rows, queries]; -1 where there is none.
    """
    import torch

    distances = torch.arange(weights.shape[3], device=weights.device)
    key = positions[..., None] - distances  # of each query at each distance
    along = weights.gather(3, key.clamp(min=0)[:, None].expand_as(weights))
    return weights.sum(dim=2), along.masked_fill((key < 0)[:, None], 0.0).sum(dim=2)


def ranks(score: torch.Tensor, forced: int | torch.Tensor, ends: torch.Tensor | None = None) -> torch.Tensor:
    """Place of each entry along the last dimension by falling score, the first `forced` entries before all others.

    Args:
        score: [..., n].
        forced: How many, broadcastable to [..., n].
        ends: How many entries there are, broadcastable to [..., n]; those beyond come last. None: all.
    """
    import torch

    places = torch.arange(score.shape[-1], device=score.device)
    score = score.masked_fill(places < forced, torch.inf)
    if ends is not None:
        score = score.masked_fill(places >= ends, -torch.inf)
    order = score.sort(dim=-1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(-1, order, places.expand_as(order))


def covered_pairs(
    columns: torch.Tensor, diagonals: torch.Tensor, start: int, window: int | None, ends: torch.Tensor | None = None
) -> torch.Tensor:
    """Visible pairs on the columns or the diagonals, counted exactly without making them; int64 [...].

    Args:
        columns: Bool [..., keys].
        diagonals: Bool [..., keys]: by distance.
        start: Position of the first query; the last is that of the last key.
        window: What a query sees at most.
        ends: Keys of each, broadcastable to [...]; None: all.
    """
    import torch

    keys = columns.shape[-1]
    place = torch.arange(keys, device=columns.device)
    end = place.new_tensor([keys]) if ends is None else ends[..., None]
    width = window or keys
    below = (torch.minimum(place + width, end) - place.clamp(min=start)).clamp(min=0)  # queries that see a column
    along = ((end - place.clamp(min=start)) * (place < width)).clamp(min=0)  # queries on a diagonal
    before = torch.nn.functional.pad(columns.int().cumsum(dim=-1, dtype=torch.int32), (1, 0))  # columns before a key
    last, first = (end - place).clamp(min=0), (start - place).clamp(min=0)
    crossing = before.gather(-1, last.expand_as(columns)) - before[..., first]
    return (columns * below).sum(dim=-1) + (diagonals * (along - crossing * (along > 0))).sum(dim=-1)
