"""SparseGPT: prune column by column and mend the error in the columns that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning.base import Allotment, CalibratedPruning, Layer

if TYPE_CHECKING:
    import torch


class SparseGPT(CalibratedPruning):
    """W_ij^2 over the squared diagonal of the inverse Hessian's factor decides; kept weights move."""

    card: ClassVar[MethodCard] = MethodCard(
        id="sparsegpt",
        family="pruning",
        title="SparseGPT",
        summary="In each block of 128 columns the weights whose loss is mended best go, and the columns that "
        "follow mend it.",
        paper=Paper(
            title="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
            authors="Elias Frantar and Dan Alistarh",
            year=2023,
            venue="International Conference on Machine Learning",
            url="https://arxiv.org/abs/2301.00774",
            key="frantar2023sparsegpt",
        ),
        unit="weight",
        adaptivity="static",
        budgets=("sparsity", "pattern"),
        training="calibration",
        prepare_depends_on_budget=True,
        nearest="wanda",
        differs="reads correlations between inputs, and changes the weights that it keeps",
        deviations=(
            "the paper reads 128 sequences of 2,048 tokens from C4; here the suite says what is read",
            "the inverse is taken in float64",
        ),
    )
    moves_weights: ClassVar[bool] = True

    compare_group: Literal["block"] = "block"
    stats_pass: Literal["sequential"] = "sequential"

    def reads_gram(self) -> bool:
        """See `CalibratedPruning.reads_gram`."""
        return True

    def score(self, layer: Layer) -> torch.Tensor:
        """The loss before any column has been mended; `update` computes it anew for each block."""
        from sparsebench.adapters.pruning import _obs

        return _obs.saliency(layer.weight, _obs.inverse_factor(gram_of(layer)))

    def update(self, layer: Layer, allotment: Allotment) -> torch.Tensor:
        """See `PruningAdapter.update`."""
        from sparsebench.adapters.pruning import _obs

        return _obs.prune(layer.weight, gram_of(layer), allotment)


def gram_of(layer: Layer) -> torch.Tensor:
    """X X^T of a layer's inputs, [in, in].

    Raises:
        ValueError: It was not gathered.
    """
    if layer.inputs.gram is None:
        raise ValueError(f"{layer.name} has statistics without X X^T")
    return layer.inputs.gram
