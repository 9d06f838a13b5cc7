"""Intel's kernels: block-sparse products on CPUs."""

from __future__ import annotations

from typing import ClassVar

from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.adapters.unavailable import Unavailable


class IntelSparse(Unavailable):
    """Weights pruned in constant blocks, multiplied by kernels for Intel's deep learning instructions."""

    card: ClassVar[MethodCard] = MethodCard(
        id="intel-sparse",
        family="pruning",
        title="Intel sparse inference",
        summary="Kernels for int8 weights that are sparse in constant blocks, on CPUs with VNNI.",
        paper=Paper(
            title="An Efficient Sparse Inference Software Accelerator for Transformer-based Language Models on CPUs",
            authors="Haihao Shen and Hengyu Meng and Bo Dong and Zhe Wang and Ofir Zafrir and Yi Ding and Yu Luo and "
            "Hanwen Chang and Qun Gao and Ziheng Wang and Guy Boudoukh and Moshe Wasserblat",
            year=2023,
            venue="arXiv:2306.16601",
            url="https://arxiv.org/abs/2306.16601",
            key="shen2023efficient",
        ),
        role="comparator",
        unit="block",
        adaptivity="static",
        training="none",
        needs=(
            "a CPU with AVX-512 VNNI",
            "the kernels of Intel Extension for Transformers, which is no longer maintained",
        ),
        nearest="gqsa",
        differs="executes blocks that another method pruned, in int8, and chooses none",
    )
