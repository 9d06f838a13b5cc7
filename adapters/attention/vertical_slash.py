"""MInference's vertical-slash pattern: columns and diagonals that the last queries of a prompt attend to."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, Setting, scaled
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
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
        from sparsebench.adapters.attention._selection import by_row

        return by_row(view, lambda row: self._select_row(row, allowance))

    def _select_row(self, row: AttentionView, allowance: Allowance) -> Selection:
        import torch

        from sparsebench.adapters.attention import _selection
        from sparsebench.adapters.attention._estimate import attention_weights, last_queries

        last = last_queries(row, self.queries)
        vertical, slash = sums_by_column_and_diagonal(attention_weights(last)[0], last.positions[0])
        length = row.key.shape[2]
        first, near = scaled(self.first, length, self.setting), scaled(self.near, length, self.setting)
        columns = ranks(vertical, first if self.first else 0)
        diagonals = ranks(slash, near)
        start = int(row.geometry.positions[0, 0])
        if allowance.tokens is not None:
            everything = allowance.tokens >= length
            budget = torch.full(
                (len(columns),), int((1 + self.slashes) * length) + 1 if everything else allowance.tokens
            )
        else:
            budget = self._budget(columns, diagonals, start, row.window, allowance.density or 0.0)
        verticals, slashes = self.divide(budget.to(columns.device))
        return _selection.VerticalSlash(columns < verticals[:, None], diagonals < slashes[:, None])

    def divide(self, budget: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns and diagonals out of their sum; at least the query's own diagonal."""
        verticals = (budget / (1 + self.slashes)).long()
        return verticals, (budget - verticals).clamp(min=1)

    def _budget(
        self, columns: torch.Tensor, diagonals: torch.Tensor, start: int, window: int | None, density: float
    ) -> torch.Tensor:
        """Columns and diagonals together with which each head comes nearest to a share of its pairs."""
        import torch

        from sparsebench.adapters.attention._selection import ASKED
        from sparsebench.cost import window_pairs

        length = columns.shape[1]
        target = density * window_pairs(start, length - start, window)

        def pairs(budget: torch.Tensor) -> torch.Tensor:  # [heads, budgets] in and out
            verticals, slashes = self.divide(budget)
            taken, along = columns[:, None] < verticals[..., None], diagonals[:, None] < slashes[..., None]
            return covered_pairs(taken, along, start, window)

        most = int((1 + self.slashes) * length) + 1
        low = torch.zeros((len(columns), 1), dtype=torch.int64, device=columns.device)
        high = low + most
        if density >= 1:
            return high[:, 0]
        # A processor halves; a device is given many budgets at a time, since each round is a fixed number of kernels.
        tries = 1 if columns.device.type in ASKED else 15
        among = torch.arange(1, tries + 1, device=columns.device)
        while most > 1:  # so far apart are low and high
            step = -(-most // (tries + 1))
            budgets = torch.minimum(low + step * among, high)
            fit = ((pairs(budgets) <= target) & (budgets < high)).sum(dim=-1, keepdim=True)
            low, high = low + step * fit, torch.minimum(low + step * (fit + 1), high)
            most = step
        return torch.where((pairs(high) - target).abs() < (pairs(low) - target).abs(), high, low)[:, 0]


def sums_by_column_and_diagonal(weights: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by key and by distance from query to key, each [heads, keys].

    Args:
        weights: [heads, queries, keys].
        positions: Of the queries, [queries].
    """
    import torch

    keys = weights.shape[2]
    distance = (positions[:, None] - torch.arange(keys, device=weights.device)).clamp(min=0)
    slash = torch.zeros_like(weights[:, 0]).index_add_(1, distance.flatten(), weights.flatten(1))
    return weights.sum(dim=1), slash


def ranks(score: torch.Tensor, forced: int) -> torch.Tensor:
    """Place of each entry along the last dimension by falling score, the first `forced` entries before all others."""
    import torch

    score = score.clone()
    score[..., :forced] = torch.inf
    order = score.sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def covered_pairs(columns: torch.Tensor, diagonals: torch.Tensor, start: int, window: int | None) -> torch.Tensor:
    """Visible pairs on the columns or the diagonals, counted exactly without making them; int64 [...].

    Args:
        columns: Bool [..., keys].
        diagonals: Bool [..., keys]: by distance.
        start: Position of the first query; the last is that of the last key.
        window: What a query sees at most.
    """
    import torch

    end = columns.shape[-1]
    place = torch.arange(end, device=columns.device)
    width = window or end
    below = ((place + width).clamp(max=end) - place.clamp(min=start)).clamp(min=0)  # queries that see a column
    along = torch.where(place < width, end - place.clamp(min=start), 0)  # queries on a diagonal
    before = torch.nn.functional.pad(columns.long().cumsum(dim=-1), (1, 0))  # columns before a key
    crossing = before[..., end - place] - before[..., (start - place).clamp(min=0)]
    own = diagonals & (place < width)
    return (columns * below).sum(dim=-1) + (own * (along - crossing)).sum(dim=-1)
