"""CoreInfer: the neurons that are large most often over a sentence serve its continuation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.adapters.activation._prompt import PromptActivation
from sparsebench.adapters.activation.base import Site, hooked
from sparsebench.adapters.card import MethodCard, Paper

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM

CORE = 0.4
"""Share of the neurons that describe a sentence when sentences are grouped."""


class CoreInfer(PromptActivation):
    """How often a neuron is among the largest positive ones of a token is what it is worth (section 3)."""

    card: ClassVar[MethodCard] = MethodCard(
        id="coreinfer",
        family="activation",
        title="CoreInfer",
        summary="Of the neurons of an MLP those that are seldom among the largest of a prompt token are left out in "
        "decode.",
        paper=Paper(
            title="CoreInfer: Accelerating Large Language Model Inference with Semantics-Inspired Adaptive Sparse "
            "Activation",
            authors="Qinsi Wang and Saeed Vahidian and Hancheng Ye and Jianyang Gu and Jianyi Zhang and Yiran Chen",
            year=2024,
            venue="arXiv:2410.18311",
            url="https://arxiv.org/abs/2410.18311",
            key="wang2024coreinfer",
        ),
        unit="neuron",
        phases=("decode",),
        training="calibration",
        modes=("simulated", "executed"),
        nearest="griffin",
        differs="counts how often a neuron is large, whatever its size, where GRIFFIN sums squares of relative sizes",
        deviations=(
            "the prompt is what runs in prefill: with a context, the question after it is decoded",
            "each token's own count of positive neurons sets how many of it are large; the released code takes the "
            "mean over the prompt",
            "exactly as many neurons stay as the budget says, though fewer may ever have been large",
            "all blocks are sparse unless first_block says otherwise; the released code leaves the first six dense",
            "similarity: sequences are grouped by their core neurons, not by embeddings of their sentences",
            "similarity: each block chooses its group by its own neurons; the released code chooses once, by a late "
            "block",
        ),
    )

    prediction: Literal["stability", "similarity"] = "stability"
    """`stability`: the prompt's own neurons; `similarity`: those of the group of calibration sequences that it is
    nearest to, for short prompts."""
    token_share: float = Field(default=0.4, gt=0, le=1)
    """Share of a token's positive neurons that count as large."""
    first_block: int = Field(default=0, ge=0)
    """Blocks before this one stay dense."""
    groups: int = Field(default=4, ge=1)
    """Groups of calibration sequences, where the prediction is by similarity."""
    seed: int = 0

    def sites(self, system: CausalLM) -> list[Site]:
        """The inputs of the MLPs' down projections, from `first_block` on."""
        return [site for site in super().sites(system) if site.block >= self.first_block]

    def learns(self) -> bool:
        """Groups come from a text."""
        return self.prediction == "similarity"

    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """Whether a neuron is among the largest positive ones of a token, float32 [tokens, channels] of 0 and 1."""
        ranked = x.sort(dim=1, descending=True).values
        large = (self.token_share * (x > 0).sum(dim=1, keepdim=True)).round().long()
        least = ranked.gather(1, (large - 1).clamp(min=0))
        return ((x >= least) & (x > 0) & (large > 0)).float()

    def worth(self, sums: torch.Tensor, state: Any) -> torch.Tensor:
        """The counts themselves, or those of the nearest group."""
        if state is None:
            return sums
        centres, counts = state
        nearest = (core(sums[None]) - centres).square().sum(dim=1).argmin()
        found: torch.Tensor = counts[nearest]
        return found

    def learn(self, system: CausalLM, calibration: Calibration) -> dict[str, Any]:
        """For each site the centres of groups, and how often each neuron is large in them: [groups, channels]."""
        import torch

        from sparsebench.adapters.passes import read

        sites = self.sites(system)
        found: dict[str, list[torch.Tensor]] = {site.name: [] for site in sites}

        def see(site: Site, x: torch.Tensor) -> None:
            for sequence in x.reshape(-1, calibration.length, x.shape[-1]):
                found[site.name].append(self.score(sequence, None, sequence[:0]).sum(dim=0))

        with hooked(sites, see):
            read(system, calibration)
        return {name: self._grouped(torch.stack(rows)) for name, rows in found.items()}

    def _grouped(self, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Groups of sequences by their core neurons; counts are [sequences, channels]."""
        import torch
        from scipy.cluster.vq import kmeans2

        cores = core(counts)
        wanted = min(self.groups, len(counts))
        _, labels = kmeans2(cores.cpu().double().numpy(), wanted, minit="++", rng=self.seed)
        members = torch.from_numpy(labels).to(counts.device)
        kept = sorted(set(labels.tolist()))
        centres = torch.stack([cores[members == group].mean(dim=0) for group in kept])
        return centres, torch.stack([counts[members == group].sum(dim=0) for group in kept])


def core(counts: torch.Tensor) -> torch.Tensor:
    """The neurons that are large most often in each sequence, float32 of 0 and 1.

    Args:
        counts: How often each is, [sequences, channels].
    """
    from sparsebench.adapters.selection import smallest

    channels = counts.shape[1]
    return (~smallest(counts.float(), channels - round(CORE * channels))).float()
