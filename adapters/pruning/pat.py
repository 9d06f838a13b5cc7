"""PAT: pruning-aware tuning."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class PAT(Unavailable):
    """Channels of the residual stream are masked while the model is fine-tuned."""

    card: ClassVar[MethodCard] = MethodCard(
        id="pat",
        family="pruning",
        title="PAT",
        summary="A mask over hidden channels is learned during fine-tuning, and channels whose mask is off go.",
        paper=Paper(
            title="PAT: Pruning-Aware Tuning for Large Language Models",
            authors="Yijiang Liu and Huanrui Yang and Youxin Chen and Rongyu Zhang and Miao Wang and Yuan Du and Li Du",
            year=2025,
            venue="AAAI Conference on Artificial Intelligence",
            url="https://arxiv.org/abs/2408.14721",
            key="liu2025pat",
        ),
        role="method",
        unit="channel",
        adaptivity="static",
        training="training",
        needs=("fine-tuning with the mask and its regulariser",),
        nearest="cfsp",
        differs="removes hidden channels instead of MLP channels, and learns which",
    )
