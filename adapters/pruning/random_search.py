"""Random search: as many candidates as EvoPress tries, drawn without learning from one another."""

from __future__ import annotations

from typing import ClassVar, Literal

from sparsebench.adapters.card import MethodCard
from sparsebench.adapters.pruning.evopress import EvoPress


class RandomSearch(EvoPress):
    """What a search for layer ratios must beat: the best of as many random ones, judged in the same way."""

    card: ClassVar[MethodCard] = MethodCard(
        id="random-search",
        family="pruning",
        title="Random search",
        summary="Sparsities of layers are drawn at random, their mean being the target, and those that diverge least "
        "from the dense model are taken.",
        role="control",
        unit="weight",
        adaptivity="static",
        budgets=("sparsity",),
        training="calibration",
        prepare_depends_on_budget=True,
        nearest="evopress",
        differs="draws each candidate anew instead of changing the best so far",
    )

    ratios: Literal["random-search"] = "random-search"
