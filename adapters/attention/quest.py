"""Quest: pages of keys by an upper bound on their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, first_layers
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.engine.attention import AttentionView


class Quest(AttentionAdapter):
    """The pages whose keys could have the highest scores, for each decoded query."""

    card: ClassVar[MethodCard] = MethodCard(
        id="quest",
        family="attention",
        title="Quest",
        summary="In decode a query reads the pages with the highest upper bound on q.k, from the least and the "
        "greatest entry of each channel in a page.",
        paper=Paper(
            title="Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
            authors="Jiaming Tang and Yilong Zhao and Kan Zhu and Guangxuan Xiao and Baris Kasikci and Song Han",
            year=2024,
            venue="International Conference on Machine Learning",
            url="https://arxiv.org/abs/2406.10774",
            key="tang2024quest",
        ),
        unit="page",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        nearest="oracle-blocks",
        differs="bounds the scores of a page from two vectors instead of knowing the attention it receives",
        deviations=(
            "the page of the query's own key is always read, as in the released kernel, and counts in the budget",
            "a ratio is met over all layers, the dense first two included: the others read less than it says; layers "
            "count alike, so that a model with windows in some of them realises another ratio",
            "models of fewer than 16 layers have one dense layer in eight, rounded down",
        ),
    )

    page: int = Field(16, ge=1)
    """Keys of a page."""
    share: Literal["head", "group"] = "head"
    """Whether each query head has its own pages, or the heads of a group share those with the highest summed bound."""
    dense: int = Field(2, ge=0)
    """First layers that attend densely."""
    least: int = Field(3, ge=1)
    """Pages that a budget in tokens gives at least."""

    def dense_layers(self, layers: int) -> frozenset[int]:
        """See `AttentionAdapter.dense_layers`."""
        return first_layers(self.dense, layers)

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """A product with both vectors of each page for each query head, and both vectors read once for a key head."""
        pages = sum(pages_seen(position, window, self.page) for position in range(start, start + count))
        vectors = 2.0 * pages * shape.head_dim
        return 2 * vectors * shape.heads, vectors * shape.kv_heads * shape.bytes_per_entry

    def index_held(self, shape: ModelShape, length: int, window: int | None) -> float:
        """Both vectors of each page that the last query sees."""
        return 2.0 * pages_seen(length - 1, window, self.page) * shape.kv_heads * shape.head_dim * shape.bytes_per_entry

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._blocks import choose_pages
        from sparsebench.adapters.attention._extremes import page_bounds

        bounds = page_bounds(view, self.page)
        if self.share == "group":
            rows, _, queries, pages = bounds.shape
            bounds = bounds.reshape(rows, -1, view.group, queries, pages).sum(dim=2)
        return choose_pages(bounds, view, allowance, self.page, self.least)


def pages_seen(position: int, window: int | None, size: int) -> int:
    """Pages of which a query at that position sees a key."""
    oldest = 0 if window is None else max(0, position + 1 - window)
    return position // size - oldest // size + 1
