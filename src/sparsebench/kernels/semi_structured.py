"""2:4 weights through PyTorch's semi-structured tensors (cuSPARSELt, or CUTLASS where that is absent)."""

from __future__ import annotations

from typing import Any

import torch

from sparsebench.errors import InputError


def largest_of_four(weight: torch.Tensor) -> torch.Tensor:
    """`weight` with the two smallest of every four neighbours in a row set to zero; of equal ones the first stay.

    Raises:
        InputError: Rows that are not whole fours.
    """
    if weight.shape[-1] % 4:
        raise InputError(f"rows of {weight.shape[-1]} weights are not whole groups of four")
    groups = weight.reshape(*weight.shape[:-1], -1, 4)
    order = groups.abs().float().sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :2], True)
    return (groups * mask).flatten(-2)


def backends() -> list[str]:
    """Backends that this build of PyTorch has, the one that it prefers first."""
    has = getattr(torch._C, "_cusparselt", None) is not None
    return ["cusparselt", "cutlass"] if has else ["cutlass"]


def compressed(weight: torch.Tensor, backend: str) -> Any:
    """A 2:4 weight as a semi-structured tensor that `torch.nn.functional.linear` takes; needs CUDA.

    Raises:
        InputError: A backend that there is not.
    """
    from torch.sparse import semi_structured

    kinds = {
        "cusparselt": semi_structured.SparseSemiStructuredTensorCUSPARSELT,
        "cutlass": semi_structured.SparseSemiStructuredTensorCUTLASS,
    }
    if backend not in kinds:
        raise InputError(f"unknown backend {backend!r} of 2:4 products", f"there are: {', '.join(kinds)}")
    return kinds[backend].from_dense(weight)
