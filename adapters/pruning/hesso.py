"""HESSO: an optimiser that trains and removes structures in one run."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class HESSO(Unavailable):
    """Hybrid structured sparse optimiser, with or without its corrective cycle (CRIC)."""

    card: ClassVar[MethodCard] = MethodCard(
        id="hesso",
        family="pruning",
        title="HESSO",
        summary="Groups that can be removed together are driven to zero by the optimiser while the model is trained.",
        paper=Paper(
            title="HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning",
            authors="Tianyi Chen and Xiaoyi Qu and David Aponte and Colby Banbury and Jongwoo Ko and Tianyu Ding and "
            "Yong Ma and Vladimir Lyapunov and Ilya Zharkov and Luming Liang",
            year=2024,
            venue="arXiv:2409.09085",
            url="https://arxiv.org/abs/2409.09085",
            key="chen2024hesso",
        ),
        role="method",
        unit="group",
        adaptivity="static",
        training="training",
        needs=("training with its optimiser",),
        nearest="cfsp",
        differs="structures go during training, by the optimiser",
    )
