"""A model's rotary embedding as a map of vectors at positions, in whatever form the model has it."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.adapters.passes import attending
from sparsebench.engine.attention import AttentionView, attend_dense
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

TRIAL = 12
"""Tokens of the trial: one token so many times, so that all positions differ by their rotation only."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}


class Rotary:
    """Rotates queries or keys to positions and back; the identity where a layer has no rotary embedding.

    The model's own code rotates. It is tried on one token repeated: without their rotations its queries are the same at
    every position, in every layer.

    Raises:
        InputError: The model rotates in a way that its code does not tell.
    """

    def __init__(self, system: CausalLM) -> None:
        self.system = system
        self.module = next((m for name, m in system.model.named_modules() if name.endswith("rotary_emb")), None)
        self.plain: frozenset[int] = frozenset()
        if self.module is not None:
            self.plain = self._layers_without()

    @cached_property
    def _own(self) -> Any:
        """The function of the model's code that rotates."""
        named = (getattr(sys.modules[type(m).__module__], "apply_rotary_pos_emb", None) for m in self.system.blocks)
        found = next((function for function in named if function is not None), None)
        if found is None or not {"q", "k", "cos", "sin"} <= set(inspect.signature(found).parameters):
            raise self._unknown("no function of its code rotates queries and keys")
        return found

    def _unknown(self, why: str) -> InputError:
        return InputError(f"the rotary embedding of {type(self.system.model).__name__} has an unknown form: {why}")

    def rotate(self, x: torch.Tensor, positions: torch.Tensor, layer: int, back: bool = False) -> torch.Tensor:
        """Vectors rotated to their positions, or from them back to position 0.

        Args:
            x: float32 [heads, n, head_dim].
            positions: [n].
            layer: Index of the layer.
            back: From the positions.
        """
        if self.module is None or layer in self.plain:
            return x
        cos, sin = self._tables(x, positions, layer)
        width = cos.shape[-1] * (2 if self._halved(cos, layer) else 1)
        turned: torch.Tensor = self._own(x[None, :, :, :width], x[None, :, :, :width], cos, -sin if back else sin)[0][0]
        if back:
            turned = turned / (cos.square() + sin.square())[0, 0, 0]
        return torch.cat([turned, x[:, :, width:]], dim=-1)

    def _tables(self, x: torch.Tensor, positions: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        kind = self._kind(layer)
        tables = self.module(x, positions[None], **({} if kind is None else {"layer_type": kind}))  # type: ignore[misc]
        if not isinstance(tables, tuple) or len(tables) != 2:
            raise self._unknown("its tables are no cosines and sines")
        cos, sin = tables
        return cos.to(x.device), sin.to(x.device)  # of a model that is spread, the tables lie on the first device

    def _kind(self, layer: int) -> str | None:
        """The type of a layer, where it decides on the rotation."""
        if "layer_type" not in inspect.signature(self.module.forward).parameters:  # type: ignore[union-attr]
            return None
        return str(self.system.config.layer_types[layer])

    def _halved(self, cos: torch.Tensor, layer: int) -> bool:
        """Whether tables have one entry for each frequency, which turns two entries of a vector (gpt-oss)."""
        kind = self._kind(layer)
        frequencies = getattr(self.module, "inv_freq" if kind is None else f"{kind}_inv_freq", None)
        return frequencies is not None and frequencies.shape[-1] == cos.shape[-1]

    def _layers_without(self) -> frozenset[int]:
        """Layers whose queries are not rotated, found out by trying all."""
        parameters = getattr(self.system.config, "rope_parameters", None) or {}
        kinds = {str(p.get("rope_type")) for p in (parameters, *parameters.values()) if isinstance(p, dict)}
        if kinds & {"dynamic", "longrope"}:
            raise self._unknown("it changes with the length of the text")
        found: set[int] = set()
        tolerance = TOLERANCE.get(self.system.dtype, 0.1)
        for layer, query in _queries_of_one_token(self.system).items():
            size = query.norm().clamp(min=1e-12)
            positions = torch.arange(TRIAL, device=query.device)
            turned = self.rotate(query, positions, layer, back=True)
            if float((turned - turned[:, :1]).norm() / size) <= tolerance:
                continue
            if float((query - query[:, :1]).norm() / size) > tolerance:
                raise self._unknown(f"the queries of layer {layer} are not turned as it says")
            found.add(layer)
        return frozenset(found)


def _queries_of_one_token(system: CausalLM) -> dict[int, torch.Tensor]:
    """The queries of every layer for one token repeated, float32 [heads, tokens, head_dim]."""
    found: dict[int, torch.Tensor] = {}

    class Watcher:
        def attend(self, view: AttentionView) -> torch.Tensor:
            found[view.layer] = view.query[0].float()
            # Learned sinks would take more from the first tokens than from later ones, and tell positions apart.
            return attend_dense(replace(view, sinks=None))

    ids = torch.full((1, TRIAL), 7, device=system.device)
    with torch.no_grad(), system.acting(decode=False, prefix_invariant=True, policy=Watcher()), attending(system):
        system.model.base_model(input_ids=ids, use_cache=False)
    return found
