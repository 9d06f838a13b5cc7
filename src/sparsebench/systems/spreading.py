"""A model over several devices: its decoder blocks in runs, one run a device, and all else on the first.

Tokens go in and logits come out on the first device, as if there were no other. What enters a part of the model is sent
to where the part lies, by the hooks that accelerate gives the modules of a device map; whatever is attached to a layer
finds everything on the device of that layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sparsebench.errors import InputError, MissingError

if TYPE_CHECKING:
    import torch


def devices_from(device: str, count: int) -> list[str]:
    """The devices that a model is spread over: so many GPUs from `device` on, where `cuda` is the first.

    A processor, and any device that is not CUDA's, is one device however many are asked for.

    Raises:
        InputError: There are fewer.
    """
    kind, _, number = device.partition(":")
    if count == 1 or kind != "cuda":
        return [device]
    import torch

    first, there = int(number or 0), torch.cuda.device_count()
    if first + count > there:
        raise InputError(
            f"a model is to be spread over {count} GPUs{f' from {device} on' if first else ''}, and there are {there}",
            "`devices` of the system in the suite says how many; CUDA_VISIBLE_DEVICES says which are to be seen",
        )
    return [f"cuda:{index}" for index in range(first, first + count)]


def spread(model: Any, devices: Sequence[str]) -> Any:
    """Put the parts of a model where `device_map` says; to a single device it is moved as it is.

    Raises:
        InputError: The model has fewer blocks than there are devices.
        MissingError: accelerate is not installed.
    """
    if len(devices) == 1:
        return model.to(devices[0])
    try:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module
    except ImportError as error:
        message = "spreading a model over several devices needs accelerate"
        raise MissingError(message, "pip install accelerate") from error

    model.hf_device_map = device_map(model, devices)
    parts = {name: model.get_submodule(name) for name in model.hf_device_map}
    homes = {id(t): model.hf_device_map[name] for name, part in parts.items() for t in _tensors(part)}
    for tensor in _tensors(model):  # one by one, so that tied weights stay tied and the host's memory is freed
        tensor.data = tensor.data.to(homes.get(id(tensor), devices[0]))
    caches = getattr(model, "_skip_keys_device_placement", None)  # whose layers lie where they should
    for name, part in parts.items():
        add_hook_to_module(part, AlignDevicesHook(model.hf_device_map[name], skip_keys=caches))
    return model


def device_map(model: Any, devices: Sequence[str]) -> dict[str, str]:
    """The device of each part of a model by name, in the form of accelerate's device maps.

    The runs of blocks are cut so that devices have about as many bytes; on the first lies what is in no block, too.

    Raises:
        InputError: The model has fewer blocks than there are devices.
    """
    from sparsebench.systems.causal_lm import decoder_blocks

    blocks = {id(block) for block in decoder_blocks(model)}
    if len(blocks) < len(devices):
        raise InputError(f"{type(model).__name__} has {len(blocks)} blocks, too few for {len(devices)} devices")
    parts = dict(_parts(model, blocks))
    sizes = {name: _size(part) for name, part in parts.items() if id(part) in blocks}
    found = dict.fromkeys(parts, devices[0])
    whole = _size(model)
    before = whole - sum(sizes.values())
    for name, size in sizes.items():
        # The device on whose share of all bytes the middle of the block falls.
        found[name] = devices[int(len(devices) * (before + size / 2) / whole)]
        before += size
    return found


def _parts(module: torch.nn.Module, blocks: set[int], name: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """The blocks, and the largest modules that hold none of them, in order."""
    for own, child in module.named_children():
        path = f"{name}.{own}" if name else own
        if id(child) in blocks or not any(id(inner) in blocks for inner in child.modules()):
            yield path, child
        else:
            yield from _parts(child, blocks, path)


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _size(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors(module))
