"""Flash-LLM: a GPU kernel for unstructured sparsity."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class FlashLLM(Unavailable):
    """Weights are loaded sparse and multiplied dense on tensor cores; what it prunes another method decides."""

    card: ClassVar[MethodCard] = MethodCard(
        id="flash-llm",
        family="pruning",
        title="Flash-LLM",
        summary="A kernel that loads unstructured sparse weights and multiplies them dense on tensor cores.",
        paper=Paper(
            title="Flash-LLM: Enabling Cost-Effective and Highly-Efficient Large Generative Model Inference with "
            "Unstructured Sparsity",
            authors="Haojun Xia and Zhen Zheng and Yuchao Li and Donglin Zhuang and Zhongzhu Zhou and Xiafei Qiu and "
            "Yong Li and Wei Lin and Shuaiwen Leon Song",
            year=2023,
            venue="Proceedings of the VLDB Endowment",
            url="https://arxiv.org/abs/2309.10285",
            key="xia2023flash",
        ),
        role="comparator",
        unit="weight",
        adaptivity="static",
        training="none",
        needs=(
            "an NVIDIA GPU with tensor cores",
            "the Flash-LLM kernels, which are built from source",
        ),
        nearest="wanda",
        differs="executes a mask that another method chose, and chooses none",
    )
