"""LLM-Pruner: coupled structures by their first-order importance."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class LLMPruner(Unavailable):
    """Heads and channels that depend on one another leave together; a short fine-tuning brings the model back."""

    card: ClassVar[MethodCard] = MethodCard(
        id="llm-pruner",
        family="pruning",
        title="LLM-Pruner",
        summary="Structures that depend on one another are found as groups, ranked by the change of the loss to first "
        "order, and taken out; LoRA recovers the model.",
        paper=Paper(
            title="LLM-Pruner: On the Structural Pruning of Large Language Models",
            authors="Xinyin Ma and Gongfan Fang and Xinchao Wang",
            year=2023,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2305.11627",
            key="ma2023llmpruner",
        ),
        role="comparator",
        unit="channel",
        adaptivity="static",
        training="training",
        needs=("fine-tuning with LoRA, without which its published figures are not its own",),
        nearest="cfsp",
        differs="ranks coupled groups of heads and channels by gradients, where CFSP looks at activations",
    )
