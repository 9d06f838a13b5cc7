"""A model of 16-bit weights that computes in float32 for a while."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.systems.experts import shadowed

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

NARROW = (torch.bfloat16, torch.float16)
"""Types whose numbers float32 holds exactly, and that it stands in for."""


@contextmanager
def in_float32(system: CausalLM) -> Iterator[None]:
    """Within the context a model of 16-bit weights computes in float32; after it each weight has its own memory again.

    Weights that are float32, or wider, stay as they are. Those of a block are widened while the block runs, so that
    beside the model lies in memory no more than one block in float32, and what is outside of blocks.
    """
    inside = {id(module) for block in system.blocks for module in block.modules()}
    outside = (module for module in system.model.modules() if id(module) not in inside)
    with ExitStack() as contexts:
        contexts.enter_context(widened(t for module in outside for t in _tensors(module, recurse=False)))
        for block in system.blocks:
            contexts.enter_context(shadowed(block, _widening(block)))
        yield


@contextmanager
def widened(tensors: Iterable[torch.Tensor], copied: bool = False) -> Iterator[None]:
    """Within the context these parameters and buffers are float32 if they have 16 bits; after it as they were.

    Args:
        tensors: Parameters and buffers. What they hold is exact.
        copied: Those that are wide already have other memory too, so that all may be written to.
    """
    chosen = list({id(t): t for t in tensors if t.dtype in NARROW or copied}.values())
    originals = [tensor.data for tensor in chosen]
    try:
        for tensor, original in zip(chosen, originals, strict=True):
            dtype = torch.float32 if original.dtype in NARROW else original.dtype
            tensor.data = original.to(dtype, copy=True)
        yield
    finally:
        for tensor, original in zip(chosen, originals, strict=True):
            tensor.data = original


def _widening(block: torch.nn.Module) -> Any:
    """The block's `forward`, within which its weights are float32."""
    run = block.forward

    @functools.wraps(run)
    def forward(*args: Any, **options: Any) -> Any:
        with widened(_tensors(block)):
            return run(*args, **options)

    return forward


def _tensors(module: torch.nn.Module, recurse: bool = True) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)
