"""A step of decode asks the device for nothing but the next tokens, however many layers and sequences there are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from models import ARCHITECTURES, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from sparsebench import adapters
from sparsebench.adapters.attention import _selection
from sparsebench.adapters.base import Sparsity, attached
from sparsebench.budget import Budget
from sparsebench.engine.generation import Generator, Prompt
from sparsebench.systems.causal_lm import CausalLM

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "equal"}
"""Operations whose answer the host needs, or whose shape."""

CASES = [
    ("oracle-tokens", {"phase": "decode"}),
    ("random-tokens", {"phase": "decode"}),
    ("streaming-llm", {"phase": "decode"}),
    ("sliding-window", {"phase": "decode"}),
    ("quest", {}),
    ("tidal-decode", {}),
    ("h2o", {}),
    ("tova", {}),
    ("snapkv", {}),
    ("ada-snapkv", {}),
    ("pyramidkv", {}),
    ("keydiff", {}),
    ("knorm", {}),
    ("expected-attention", {}),
    ("griffin", {}),
    ("coreinfer", {}),
    ("griffin", {"mode": "executed"}),
    ("random-activations", {}),
]


class Waits(TorchDispatchMode):
    """Counts operations that a device would have to finish before the host goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        by_flags = name in ("index", "index_put", "index_put_") and any(
            isinstance(place, torch.Tensor) and place.dtype == torch.bool for place in args[1]
        )
        if name in WAITS or by_flags:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def system_of(layers: int) -> CausalLM:
    config = ARCHITECTURES["llama"]()
    config.num_hidden_layers = layers
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    return CausalLM(model, tiny_tokenizer(), ref=f"memory:llama-{layers}")


def waits_of_a_step(system: Any, method: str, knobs: dict[str, Any], sequences: int, monkeypatch: Any) -> int:
    member = Sparsity(adapters.get(method).configure(knobs), Budget.from_dict({"sparsity": 0.5}))
    rng = np.random.default_rng(0)
    found: list[int] = []

    def watched(self: Generator, *args: Any) -> None:
        with Waits() as mode:
            step(self, *args)
        found.append(sum(mode.found.values()))

    step = Generator._step
    with attached(system, [member], None, {}) as (sparse, _), monkeypatch.context() as patch:
        patch.setattr(Generator, "_step", watched)
        # As on a device, which would have to be asked.
        patch.setattr(_selection, "ASKED", frozenset())
        prompts = [Prompt(rng.integers(3, 90, 40 + i).tolist(), 30 + i, (), 6, frozenset()) for i in range(sequences)]
        Generator(sparse, prompts).run()
    return found[-1]


@pytest.mark.parametrize(
    ("method", "knobs"), CASES, ids=[" ".join([method, *map(str, knobs.values())]) for method, knobs in CASES]
)
def test_waiting_grows_neither_with_layers_nor_with_sequences(method, knobs, monkeypatch):
    small, large = system_of(2), system_of(5)
    few = waits_of_a_step(small, method, knobs, 2, monkeypatch)
    assert waits_of_a_step(large, method, knobs, 2, monkeypatch) == few
    assert waits_of_a_step(small, method, knobs, 7, monkeypatch) == few
    assert few <= 8
