"""A model of 16-bit weights computes in float32, one block in memory at a time, and is afterwards what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import tiny_system

from sparsebench.systems.widening import in_float32, widened

IDS = torch.arange(40)[None]


def places(system: Any) -> list[tuple[torch.dtype, int]]:
    return [(t.dtype, t.data_ptr()) for t in [*system.model.parameters(), *system.model.buffers()]]


def test_blocks_are_wide_while_they_run() -> None:
    system = tiny_system("qwen3", dtype=torch.bfloat16)
    before, wide = places(system), []

    def see(module: torch.nn.Module, args: Any) -> None:
        dtypes = [{p.dtype for p in block.parameters()} for block in system.blocks]
        wide.append([index for index, found in enumerate(dtypes) if torch.float32 in found])

    handles = [block.mlp.register_forward_pre_hook(see) for block in system.blocks]
    with torch.no_grad(), in_float32(system):
        logits = system.model(IDS).logits
    for handle in handles:
        handle.remove()
    assert wide == [[0], [1], [2]]
    assert logits.dtype == torch.float32
    assert places(system) == before
    with torch.no_grad():
        assert system.model(IDS).logits.dtype == torch.bfloat16


def test_an_exception_leaves_nothing_wide() -> None:
    system = tiny_system("gpt2", dtype=torch.float16)
    before = places(system)

    def fail(module: torch.nn.Module, args: Any) -> None:
        raise KeyError

    handle = system.blocks[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(KeyError), torch.no_grad(), in_float32(system):
        system.model(IDS)
    handle.remove()
    assert places(system) == before
    assert not any("forward" in vars(block) for block in system.blocks)


def test_wide_weights_stay_where_they_are() -> None:
    system = tiny_system("llama")
    before = places(system)
    with in_float32(system):
        assert places(system) == before
    weight = system.linears[0].owner
    with widened([weight, weight], copied=True):
        weight.data += 1
        assert weight.data_ptr() != before[0][1]
    assert places(system) == before
