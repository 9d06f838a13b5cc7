"""Expected Attention: keys by the attention that future queries are expected to pay them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.attention._cache import CacheAdapter
from sparsebench.adapters.base import Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import ModelShape

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._rotary import Rotary
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionView


class ExpectedAttention(CacheAdapter):
    """Queries to come are taken as normal with the prompt's own mean and covariance, turned to the positions ahead."""

    card: ClassVar[MethodCard] = MethodCard(
        id="expected-attention",
        family="attention",
        title="Expected Attention",
        summary="At the end of prefill the keys stay whose expected attention from future queries, times the norm of "
        "their value, is highest; future queries are normal with the moments of the prompt's.",
        paper=Paper(
            title="Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
            authors="Alessio Devoto and Maximilian Jeblick and Simon Jégou",
            year=2025,
            venue="arXiv:2510.00636",
            url="https://arxiv.org/abs/2510.00636",
            key="devoto2025expected",
        ),
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        modes=("simulated", "executed"),
        prefix_invariant=False,
        nearest="snapkv",
        differs="looks at the distribution of all queries, and not at the attention of the last ones",
        deviations=(
            "queries are turned back from the model's rotary embedding instead of being taken before it",
            "all heads of a layer have one budget; the paper lets them compete",
        ),
    )

    future: int = Field(512, ge=1)
    """Positions ahead over which rotations are averaged."""
    sinks: int = Field(4, ge=0)
    """First keys that stay; their queries are left out of the moments."""

    def prepare(self, system: Any, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The model's rotary embedding."""
        from sparsebench.adapters.attention._rotary import Rotary

        return Prepared(state=Rotary(system))

    def scoring(self, shape: ModelShape, length: int, window: int | None) -> tuple[float, float]:
        """A covariance of queries, and a product with it for each key and query head."""
        products = length * shape.heads * (2.0 * shape.head_dim**2 + 2 * shape.head_dim)
        return 2 * products, length * shape.kv_heads * shape.key_bytes

    def score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.score`."""
        import torch

        rotary: Rotary = prepared.state
        length = prompt.key.shape[2]
        score = torch.full((prompt.key.shape[1], length), torch.inf, device=prompt.key.device)
        if length <= self.sinks:
            return score
        positions = torch.arange(length, device=prompt.key.device)
        query = rotary.rotate(prompt.query[0].float(), positions, prompt.layer, back=True)[:, self.sinks :]
        mean, covariance = moments(query)
        ahead = self._turn(rotary, length, prompt)
        mean, covariance = mean @ ahead, ahead.T @ covariance @ ahead
        keys = prompt.key[0, :, self.sinks :].float()
        values = prompt.value[0, :, self.sinks :].float().norm(dim=-1)
        score[:, self.sinks :] = expectation(mean, covariance, keys, prompt.scaling, prompt.group) * values
        return score

    def _turn(self, rotary: Rotary, length: int, prompt: AttentionView) -> torch.Tensor:
        """Mean rotation over the positions ahead; row i is what becomes of the i-th unit vector."""
        import torch

        ahead = torch.arange(length, length + self.future, device=prompt.key.device)
        unit = torch.eye(prompt.key.shape[3], device=prompt.key.device)
        return rotary.rotate(unit[:, None].expand(-1, self.future, -1), ahead, prompt.layer).mean(dim=1)


def moments(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [heads, dim] and covariance [heads, dim, dim] over the queries of each head, [heads, queries, dim]."""
    mean = query.mean(dim=1)
    apart = query - mean[:, None]
    return mean, apart.transpose(1, 2) @ apart / query.shape[1]


def expectation(
    mean: torch.Tensor, covariance: torch.Tensor, keys: torch.Tensor, scaling: float, group: int
) -> torch.Tensor:
    """Share of the expected exponentiated scores that each key has, averaged over the heads of a group.

    The mean of exp(q.k) over normal q is exp(mean.k + k.covariance.k / 2).

    Args:
        mean: [heads, dim].
        covariance: [heads, dim, dim].
        keys: [kv_heads, keys, dim].
        scaling: What scores are multiplied with.
        group: Query heads of a key head.

    Returns:
        float32 [kv_heads, keys].
    """
    import torch

    from sparsebench.adapters.attention._estimate import grouped

    own = keys.repeat_interleave(group, dim=0)
    linear = (own @ mean[:, :, None])[:, :, 0] * scaling
    square = ((own @ covariance) * own).sum(dim=-1) * scaling**2 / 2
    return grouped(torch.softmax(linear + square, dim=-1), group).mean(dim=1)
