"""What a model is, in so few numbers that it can be told whether a method gave it back as it was.

Version counters of tensors miss what is written through `.data`, and a tensor can be another one under the same name.
So the bytes of all parameters and buffers are read: they are summed as 64-bit words in a prime number of columns, of
which each has a weight of its own. A single change is always seen, and so is a change of places, unless it is by a
multiple of that prime. Tensors are read where they lie, in one pass, and each device is waited for once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

COLUMNS = 4093
SHOWN = 3
"""Differences that a message names."""
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass(frozen=True)
class Imprint:
    """What of a model a method may change for as long as it is attached only.

    Attributes:
        tensors: Shape, dtype, device and checksum of each parameter and buffer, by name.
        modules: Each module by name, with its hooks, an override of `forward`, and whether it is in training mode.
        more: What else is to be as it was, by name: the configuration as text, what acts in the engine.
    """

    tensors: dict[str, tuple[Any, ...]]
    modules: dict[str, tuple[Any, ...]]
    more: dict[str, Any]

    @classmethod
    def of(cls, model: torch.nn.Module, more: Mapping[str, Any] | None = None) -> Imprint:
        """The imprint of a model as it is now, with what else is known of it by name."""
        named = dict(_tensors(model))
        sums = _checksums(named.values())
        tensors = {
            name: (tuple(tensor.shape), tensor.dtype, tensor.device, value)
            for (name, tensor), value in zip(named.items(), sums, strict=True)
        }
        modules = {name: _built(module) for name, module in model.named_modules()}
        return cls(tensors, modules, {"the configuration": str(getattr(model, "config", "")), **(more or {})})

    def differences(self, now: Imprint) -> list[str]:
        """What is not as it was, by name; tensors first."""
        found = [
            f"{name} {'is gone' if name not in now.tensors else _how(was, now.tensors[name])}"
            for name, was in self.tensors.items()
            if now.tensors.get(name) != was
        ]
        found += [f"{name} is new" for name in now.tensors if name not in self.tensors]
        found += [
            f"module {name or 'of the whole model'} is another one, or has other hooks or another mode"
            for name in dict.fromkeys([*self.modules, *now.modules])
            if self.modules.get(name) != now.modules.get(name)
        ]
        return [*found, *(f"{name} is another one" for name, was in self.more.items() if now.more.get(name) != was)]


def copies_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers, in the processor's memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in _tensors(model)}


def put_back(model: torch.nn.Module, copies: Mapping[str, torch.Tensor]) -> None:
    """Give parameters and buffers the values of copies; what a model has none of stays."""
    for name, tensor in _tensors(model):
        if (copy := copies.get(name)) is not None:
            if tensor.shape == copy.shape and tensor.dtype == copy.dtype:
                tensor.data.copy_(copy)
            else:
                tensor.data = copy.to(tensor.device, copy=True)


def shown(differences: list[str]) -> str:
    """The first differences, and how many more there are."""
    rest = len(differences) - SHOWN
    return "; ".join(differences[:SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _how(was: tuple[Any, ...], now: tuple[Any, ...]) -> str:
    if was[:3] == now[:3]:
        return "has other values"
    one, other = (f"{list(shape)} {dtype} on {device}" for shape, dtype, device, _ in (was, now))
    return f"is {other}, and was {one}"


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name; those of rotary embeddings that the model sets anew at each call are left out."""
    yield from model.named_parameters()
    moving = {id(module) for module in model.modules() if _rewrites_itself(module)}
    for name, module in model.named_modules():
        if id(module) not in moving:
            yield from module.named_buffers(name, recurse=False)


def _rewrites_itself(module: torch.nn.Module) -> bool:
    """Whether a rotary embedding's frequencies go by the length of what it was called with last."""
    kinds = getattr(module, "rope_type", "")
    each = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any("dynamic" in str(kind) or kind == "longrope" for kind in each)


def _built(module: torch.nn.Module) -> tuple[Any, ...]:
    """The module itself, so that nothing else gets its id, and what is hung on it; of a list what it holds counts."""
    hooks = tuple(hook for kind in HOOKS for hook in getattr(module, kind, {}).values())
    itself = type(module) if isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict) else module
    return itself, hooks, vars(module).get("forward"), module.training


def _checksums(tensors: Iterable[torch.Tensor]) -> list[int]:
    weights: dict[torch.device, torch.Tensor] = {}
    sums = []
    for tensor in tensors:
        if tensor.device not in weights:
            weights[tensor.device] = _weights().to(tensor.device)
        sums.append(_checksum(tensor.detach(), weights[tensor.device]))
    devices = {value.device for value in sums}
    read = {device: iter(torch.stack([v for v in sums if v.device == device]).tolist()) for device in devices}
    return [next(read[value.device]) for value in sums]


def _checksum(tensor: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A number that goes by all bytes of a tensor and by their places, int64."""
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return torch.zeros((), dtype=torch.int64)
    octets = tensor.contiguous().reshape(-1).view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()
    whole = octets.numel() // 8
    words = octets[: 8 * whole].view(torch.int64)
    rows = whole // COLUMNS
    parts = [(words[: rows * COLUMNS].view(rows, COLUMNS).sum(dim=0) * weights).sum()] if rows else []
    rest = words[rows * COLUMNS :]
    parts.append((rest * weights[: len(rest)]).sum() * 3)
    last = octets[8 * whole :].long()
    parts.append((last * weights[: len(last)]).sum() * 5)
    return torch.stack(parts).sum()


@cache
def _weights() -> torch.Tensor:
    """An odd number for each column, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, (COLUMNS,), generator=generator) * 2 + 1
