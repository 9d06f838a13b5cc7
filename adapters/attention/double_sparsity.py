"""Double Sparsity: tokens by a few channels that carry most of the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.attention.base import AttentionAdapter, first_layers
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionPolicy, AttentionView
    from sparsebench.systems.causal_lm import CausalLM


class DoubleSparsity(AttentionAdapter):
    """Scores from label channels, fixed offline for each head, name the tokens that a decoded query reads."""

    card: ClassVar[MethodCard] = MethodCard(
        id="double-sparsity",
        family="attention",
        title="Double Sparsity",
        summary="In decode a query reads the tokens with the highest scores over a few channels, those with the "
        "largest mean |q k| on a calibration text.",
        paper=Paper(
            title="Post-Training Sparse Attention with Double Sparsity",
            authors="Shuo Yang and Ying Sheng and Joseph E. Gonzalez and Ion Stoica and Lianmin Zheng",
            year=2024,
            venue="arXiv:2408.07092",
            url="https://arxiv.org/abs/2408.07092",
            key="yang2024doublesparsity",
        ),
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        training="calibration",
        nearest="oracle-tokens",
        differs="scores tokens over 1 in 16 channels instead of all",
        deviations=(
            "labels are kept as keys are, and priced like them; the paper also quantises them to 4 bits",
            "a ratio is met over all layers, the dense first two included: the others read less than it says; layers "
            "count alike, so that a model with windows in some of them realises another ratio",
            "models of fewer than 16 layers have one dense layer in eight, rounded down",
        ),
    )
    needs_calibration: ClassVar[bool] = True

    factor: int = Field(16, ge=1)
    """Channels of a head for each label channel."""
    dense: int = Field(2, ge=0)
    """First layers that attend densely."""

    def labels(self, head_dim: int) -> int:
        """Label channels of a head."""
        return max(1, head_dim // self.factor)

    def dense_layers(self, layers: int) -> frozenset[int]:
        """See `AttentionAdapter.dense_layers`."""
        return first_layers(self.dense, layers)

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """Products of the label channels with all keys; every query head has labels of its own."""
        from sparsebench.cost import window_pairs

        products = float(shape.heads * self.labels(shape.head_dim) * window_pairs(start, count, window))
        return 2 * products, products * shape.bytes_per_entry

    def index_held(self, shape: ModelShape, length: int, window: int | None) -> float:
        """The label channels of all keys that the last query sees, for each query head."""
        keys = length if window is None else min(length, window)
        return float(shape.heads * self.labels(shape.head_dim) * keys * shape.bytes_per_entry)

    def prepare(self, system: Any, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The label channels of each layer, int64 [heads, labels], from the products of each token with itself."""
        from sparsebench.adapters.passes import read

        text = _given(calibration)
        observer = _Products(system, system.policy)
        with system.acting(decode=False, prefix_invariant=True, policy=observer):
            read(system, text)
        count = self.labels(system.shape.head_dim)
        chosen = {
            layer: sums.sort(dim=-1, descending=True, stable=True).indices[:, :count].sort(dim=-1).values
            for layer, sums in observer.sums.items()
        }
        return Prepared(state=chosen, facts={"labels": count}, tokens=text.tokens)

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """See `AttentionAdapter.select`."""
        from sparsebench.adapters.attention._selection import TopTokens

        channels: torch.Tensor = prepared.state[view.layer]
        return TopTokens.within(allowance, view, lambda part: label_scores(part, channels))


def label_scores(part: AttentionView, channels: torch.Tensor) -> torch.Tensor:
    """Products of queries and keys over some channels of each query head, float32 [rows, heads, queries, keys].

    Args:
        part: The rows.
        channels: [heads, labels].
    """
    rows, heads, queries, _ = part.query.shape
    query = part.query.gather(3, channels[None, :, None].expand(rows, -1, queries, -1)).float()
    # Of each key head every query head of its group takes channels of its own: no key is copied for the others.
    shared = part.key[:, :, None].expand(-1, -1, part.group, -1, -1)
    own = channels.reshape(-1, part.group, 1, channels.shape[1]).expand(rows, -1, -1, part.key.shape[2], -1)
    key = shared.gather(4, own).float().reshape(rows, heads, -1, channels.shape[1])
    return query @ key.transpose(-1, -2)


class _Products:
    """Attends as before, and adds up |q k| of each token with itself, by channel."""

    def __init__(self, system: CausalLM, inner: AttentionPolicy | None) -> None:
        self.system = system
        self.inner = inner
        self.sums: dict[int, torch.Tensor] = {}

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        from sparsebench.engine.attention import attend_dense

        real = view.positions >= 0
        key = view.key.float().repeat_interleave(view.group, dim=1)
        places = view.positions.clamp(min=0)[:, None, :, None].expand_as(view.query)
        products = (view.query.float() * key.gather(2, places)).abs() * real[:, None, :, None]
        sums = products.double().sum(dim=(0, 2))
        self.sums[view.layer] = self.sums.get(view.layer, 0) + sums
        return self.inner.attend(view) if self.inner is not None else attend_dense(view)


def _given(calibration: Calibration | None) -> Calibration:
    from sparsebench.errors import InputError

    if calibration is None:
        raise InputError("double-sparsity reads a calibration text", "name one in the suite: calibration: ...")
    return calibration
