"""EvoPress: an evolutionary search over the sparsities of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.pruning.base import Allotment, CalibratedPruning, CompareGroup, Layer

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.pruning._allocation import Settings


class EvoPress(CalibratedPruning):
    """Layers swap sparsity with one another as long as predictions come nearer to the dense model's."""

    card: ClassVar[MethodCard] = MethodCard(
        id="evopress",
        family="pruning",
        title="EvoPress",
        summary="From a database of layers pruned at several sparsities a search picks one of each, so that the mean "
        "is the target and the divergence from the dense model least.",
        paper=Paper(
            title="EvoPress: Accurate Dynamic Model Compression via Evolutionary Search",
            authors="Oliver Sieberling and Denis Kuznedelev and Eldar Kurtic and Dan Alistarh",
            year=2025,
            venue="International Conference on Machine Learning",
            url="https://arxiv.org/abs/2410.14649",
            key="sieberling2025evopress",
        ),
        unit="weight",
        adaptivity="static",
        budgets=("sparsity",),
        training="calibration",
        prepare_depends_on_budget=True,
        nearest="sparsegpt",
        differs="layers have sparsities of their own, which are searched for",
        deviations=(
            "20 generations of 8 offspring by default, on up to 4,096 tokens; the paper's 400 of 64 on up to 65,536 "
            "are knobs",
            "layers of the database are pruned with the dense model's inputs",
            "the calibration text is the suite's",
        ),
    )
    moves_weights: ClassVar[bool] = True

    initial: Literal["sparsegpt", "wanda", "magnitude"] = "sparsegpt"
    """What prunes the layers of the database."""
    compare_group: CompareGroup = "block"
    """SparseGPT's own is `block`, Wanda's `row`, that of magnitude `layer`; what `initial` has where none is given."""
    ratios: Literal["evopress", "random-search"] = "evopress"
    stats_pass: Literal["dense"] = "dense"
    generations: int = Field(20, ge=0)
    """Rounds of the search."""
    offspring: int = Field(8, ge=1)
    """Candidates of a round."""
    survivors: tuple[int, ...] = (2, 1)
    """How many candidates stay after each stage of a round."""
    tokens: tuple[int, ...] = (1024, 4096)
    """Calibration tokens that each stage reads."""
    step: float = Field(0.05, gt=0, lt=1)
    """Sparsity between neighbouring levels of the database."""
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _own_group(cls, given: Any) -> Any:
        own = {"wanda": "row", "magnitude": "layer"}
        if isinstance(given, dict) and "compare_group" not in given and given.get("initial") in own:
            return {**given, "compare_group": own[given["initial"]]}
        return given

    @model_validator(mode="after")
    def _stages(self) -> Self:
        if len(self.survivors) != len(self.tokens) or not self.survivors or self.survivors[-1] != 1:
            raise ValueError("survivors and tokens are equally many, and the last stage leaves 1")
        if min(self.tokens) < 1 or min(self.survivors) < 1:
            raise ValueError("survivors and tokens must be at least 1")
        return self

    def settings(self) -> Settings:
        """See `PruningAdapter.settings`."""
        from sparsebench.adapters.pruning._allocation import Settings
        from sparsebench.adapters.pruning._search import Search

        search = Search(self.generations, self.offspring, self.survivors, self.tokens, self.step, seed=self.seed)
        return Settings(seed=self.seed, search=search)

    def reads_gram(self) -> bool:
        """See `CalibratedPruning.reads_gram`."""
        return self.initial == "sparsegpt"

    def score(self, layer: Layer) -> torch.Tensor:
        """The score of what prunes the database."""
        if self.initial == "magnitude":
            return layer.weight.abs()
        if self.initial == "wanda":
            return layer.weight.abs() * layer.inputs.norm
        from sparsebench.adapters.pruning import _obs
        from sparsebench.adapters.pruning.sparsegpt import gram_of

        return _obs.saliency(layer.weight, _obs.inverse_factor(gram_of(layer)))

    def update(self, layer: Layer, allotment: Allotment) -> torch.Tensor:
        """See `PruningAdapter.update`."""
        if self.initial != "sparsegpt":
            return super().update(layer, allotment)
        from sparsebench.adapters.pruning import _obs
        from sparsebench.adapters.pruning.sparsegpt import gram_of

        return _obs.prune(layer.weight, gram_of(layer), allotment)
