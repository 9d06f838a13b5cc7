"""Taking parts out of a model: blocks, and channels of MLPs. What is left is a smaller model that runs faster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM, LinearSite

FOUND_OUT = ("blocks", "linears", "shape")
"""What a system finds out about its model once, and finds out anew when the model has changed. Whether its rows can be
packed is not among it: blocks that stay attend as before, and a model with parts missing rounds too badly to try."""
NUMBERS = ("layer_idx", "layer_id", "layer_number")
"""Attributes of modules that hold their block's place."""
BY_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers", "attention_layers")
"""Lists in configurations with an entry for each block."""
CALLED = re.compile(r"(^|[._])(mlp|ffn|feed_?forward)$", re.IGNORECASE)
"""Names of modules that are MLPs."""


@contextmanager
def reshaped(system: CausalLM) -> Iterator[None]:
    """Within the context the model may lose parts; the system finds out anew what it knew about it, before and after.

    The shape that the model had at first stays known as `system.unreduced`.
    """
    unreduced = system.unreduced
    if unreduced is None:
        try:
            system.unreduced = system.shape
        except InputError:
            system.unreduced = None  # a model whose cost is not modelled
    known = {name: system.__dict__.pop(name) for name in FOUND_OUT if name in system.__dict__}
    try:
        yield
    finally:
        for name in FOUND_OUT:
            system.__dict__.pop(name, None)
        system.__dict__.update(known)
        system.unreduced = unreduced


@contextmanager
def without_blocks(system: CausalLM, gone: Sequence[int]) -> Iterator[None]:
    """Within the context the model has no such blocks; the others are numbered anew, as its caches expect.

    Raises:
        InputError: The model does not run without them.
    """
    owner, name, blocks = _list_of(system)
    left = [index for index in range(len(blocks)) if index not in set(gone)]
    with ExitStack() as changes:
        changes.enter_context(reshaped(system))
        for place, index in enumerate(left):
            for module in blocks[index].modules():
                for number in NUMBERS:
                    if getattr(module, number, None) == index:
                        changes.enter_context(_changed(module, number, place))
        kept = [blocks[index] for index in left]
        changes.enter_context(_changed(owner, name, torch.nn.ModuleList(kept)))
        system.__dict__["blocks"] = kept
        for config in _configs(system):
            _recount(changes, system, config, left, len(blocks))
        _try(system)
        yield


def _recount(changes: ExitStack, system: CausalLM, config: Any, left: Sequence[int], blocks: int) -> None:
    """Let a configuration speak of the blocks that are left.

    Raises:
        InputError: It derives what a block is from its place.
    """
    wanted = {}
    for name in _counting(config, blocks):
        value = getattr(config, name)
        wanted[name] = [value[index] for index in left] if isinstance(value, list | tuple) else len(left)
    for name in sorted(wanted, key=lambda name: isinstance(wanted[name], list)):  # numbers first: lists may follow
        if _listed(getattr(config, name)) != _listed(wanted[name]):
            try:
                changes.enter_context(_changed(config, name, wanted[name]))
            except AttributeError:
                raise InputError(
                    f"{type(system.model).__name__} cannot do without single blocks", f"its {name} goes by their places"
                ) from None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _try(system: CausalLM) -> None:
    """Run a few tokens.

    Raises:
        InputError: The model, whatever it raises, does not run without those blocks.
    """
    ids = torch.zeros(1, 4, dtype=torch.long, device=system.device)
    try:
        with torch.inference_mode():
            system.model(input_ids=ids, use_cache=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{type(system.model).__name__} does not run without some of its blocks: {error}") from error


def _list_of(system: CausalLM) -> tuple[torch.nn.Module, str, list[torch.nn.Module]]:
    blocks = system.blocks
    wanted = [id(block) for block in blocks]
    for owner in system.model.modules():
        for name, child in owner.named_children():
            if isinstance(child, torch.nn.ModuleList) and [id(block) for block in child] == wanted:
                return owner, name, blocks
    raise InputError(f"{type(system.model).__name__}: its blocks are not in one list of modules")


def _configs(system: CausalLM) -> list[Any]:
    """The configurations that the model's modules read, each once."""
    found = {id(c): c for m in system.model.modules() if (c := getattr(m, "config", None)) is not None}
    return list({**found, id(system.config): system.config}.values())


def _counting(config: Any, blocks: int) -> list[str]:
    """Fields of a configuration that say how many blocks there are, or something of each."""
    names = {"num_hidden_layers", *BY_LAYER}
    attributes = getattr(config, "attribute_map", {})
    own = {attributes.get(name, name) for name in names}
    found = []
    for name in sorted(own):
        value = getattr(config, name, None)
        if value == blocks or (isinstance(value, list | tuple) and len(value) == blocks):
            found.append(name)
    return found


@contextmanager
def _changed(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Within the context an attribute has another value."""
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)


@dataclass(frozen=True)
class FeedForward:
    """An MLP by its linear layers.

    Attributes:
        block: Index of the decoder block.
        up: Layers that give one number for each channel, or two: the first half of their rows is the gate's.
        down: The layer that reads the channels.
    """

    block: int
    up: tuple[LinearSite, ...]
    down: LinearSite

    @property
    def channels(self) -> int:
        """Channels that the layers have now."""
        return int(self.down.weight.shape[1])

    @property
    def channel_weights(self) -> int:
        """Weights of one channel in all layers."""
        rows = sum(site.weight.numel() for site in self.up)
        return (rows + self.down.weight.numel()) // self.channels

    def rows_of(self) -> list[torch.Tensor]:
        """Weights of the layers that give the channels, each [channels, in]; one of double height counts as two."""
        return [part for site in self.up for part in site.weight.detach().chunk(site.weight.shape[0] // self.channels)]


def feed_forwards(system: CausalLM) -> list[FeedForward]:
    """The MLPs whose channels can be taken out, in order.

    An MLP is a module with an activation function of its own, or one that is called so, whose linear layers fit: one
    reads channels, the others give them. Left out are experts that are stacked in one tensor, modules that have
    something else by channel, such as a norm or a convolution, and layers that share their weight with another.
    """
    from sparsebench.adapters.activation._mlp import is_activation

    sites = {id(site.module): site for site in system.linears}
    owners = [id(site.owner) for site in system.linears]
    found = []
    for block in system.blocks:
        for name, holder in block.named_modules():
            if CALLED.search(name) or any(is_activation(child) for child in holder.children()):
                mlp = _feed_forward([sites[id(child)] for child in holder.children() if id(child) in sites])
                if mlp is None or _others_by_channel(holder, mlp):
                    continue
                if all(owners.count(id(site.owner)) == 1 for site in (mlp.down, *mlp.up)):
                    found.append(mlp)
    return found


def _feed_forward(children: Sequence[LinearSite]) -> FeedForward | None:
    """The layer that reads what the others give, with those; where several might, the last is the one that reads."""
    fitting = []
    for down in children:
        hidden, width = down.weight.shape
        up = tuple(s for s in children if s is not down and s.weight.shape[0] in (width, 2 * width))
        if up and all(site.weight.shape[1] == hidden for site in up):
            fitting.append(FeedForward(down.block, up, down))
    widest = [mlp for mlp in fitting if mlp.channels == max(m.channels for m in fitting)]
    return widest[-1] if widest else None


def _others_by_channel(holder: torch.nn.Module, mlp: FeedForward) -> bool:
    """Whether a module has parameters with an entry for each channel beside those of its MLP's layers."""
    own = {id(parameter) for site in (mlp.down, *mlp.up) for parameter in site.module.parameters()}
    return any(mlp.channels in p.shape for p in holder.parameters() if id(p) not in own)


@contextmanager
def without_channels(system: CausalLM, kept: Sequence[tuple[FeedForward, torch.Tensor]]) -> Iterator[None]:
    """Within the context these MLPs have the given channels alone, int64 [channels left], in order."""
    with ExitStack() as changes:
        changes.enter_context(reshaped(system))
        for mlp, channels in kept:
            for site in mlp.up:
                parts = site.weight.shape[0] // mlp.channels
                rows = torch.cat([channels + part * mlp.channels for part in range(parts)])
                _narrow(changes, site, rows, dim=0)
        for mlp, channels in kept:
            _narrow(changes, mlp.down, channels, dim=1)
        yield


def _narrow(changes: ExitStack, site: LinearSite, places: torch.Tensor, dim: int) -> None:
    """Keep some outputs (`dim` 0, with their biases) or inputs (1) of a layer."""
    from sparsebench.systems.weights import put

    owner, places = site.owner, places.to(site.weight.device)
    changes.enter_context(_changed(owner, "data", owner.data))
    put(site, site.weight.detach().index_select(dim, places))
    bias = getattr(site.module, "bias", None)
    if dim == 0 and bias is not None:
        changes.enter_context(_changed(bias, "data", bias.data[places]))
    names = ("out_features", "nf") if dim == 0 else ("in_features", "nx")
    for name in names:
        if hasattr(site.module, name):
            changes.enter_context(_changed(site.module, name, len(places)))
