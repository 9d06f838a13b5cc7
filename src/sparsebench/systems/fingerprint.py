"""The fingerprint of a model in memory: a hash of all that its answers follow from.

Every byte of its parameters and buffers counts, and so do its configuration, the attributes of its modules, its
tokenizer, and code that is not of its library: classes of one's own, forwards put in the place of others, hooks with
what they close over. Where something cannot be described, the fingerprint is a new one each time, so that nobody is
given numbers of another model.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import secrets
import types
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as torch_module

PIECE = 1 << 25
"""Bytes that are hashed at a time, each piece in a thread."""
LARGEST = 200_000
"""Values that a model's attributes and code may hold before they count as unknown."""
PLAIN = (bool, int, float, complex, str, bytes, range, slice, types.EllipsisType, np.generic, torch.dtype)
"""Types whose values say all that they are."""
LIBRARIES = ("torch", "transformers")
"""Packages whose classes are known by name; results name their versions."""
UNSEEN = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_attn_implementation_internal"})
"""Parts of a configuration and attributes that say where a model comes from."""
OF_TORCH = frozenset(vars(torch.nn.Module())) - {"training"} | {"_is_hf_initialized", "warnings_issued"}
"""Attributes of modules that are looked at by name, or change no forward."""


def model_fingerprint(model: torch.nn.Module, tokenizer: Any = None) -> str:
    """A hash of all that the model's answers follow from; hexadecimal.

    Warns:
        UserWarning: Something cannot be described; then no other call gives this hash.
    """
    described = _Described(model)
    described.add("model", model)
    described.add("tokenizer", _tokenizer(tokenizer))
    everywhere = (torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks)
    described.add("a hook of all modules", [list(hooks.values()) for hooks in everywhere])
    if described.unknown:
        shown = ", ".join(sorted(described.unknown)[:3])
        warnings.warn(
            f"{type(model).__name__} has what cannot be told from others of its kind ({shown}): its results are kept "
            "under a new fingerprint each time, and not found again",
            stacklevel=3,
        )
        described.put(secrets.token_hex(16))
    return described.sha.hexdigest()


def hash_weights(model: torch.nn.Module) -> str:
    """sha256 over names, shapes, dtypes and all bytes of parameters and buffers, kept in checkpoints or not."""
    described = _Described(model)
    for name, tensor in _tensors(model):
        described.add(name, tensor)
    return described.sha.hexdigest()


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


class _Described:
    """A hash that any value is added to by what it says, not by where it lies."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.sha = hashlib.sha256()
        self.unknown: set[str] = set()
        self.modules = {id(module): name for name, module in model.named_modules()}
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []
        self.tensors: dict[tuple[Any, ...], str] = {}

    def put(self, text: str) -> None:
        """Add a text; its length goes before it, so that two texts are not one other."""
        data = text.encode("utf-8", "surrogatepass")
        self.sha.update(len(data).to_bytes(8, "little"))
        self.sha.update(data)

    def add(self, place: str, value: Any) -> None:
        """Add a value that stands at a place."""
        if value is None or isinstance(value, PLAIN):
            self.put(f"{type(value).__name__} {value!r}")
        elif isinstance(value, torch.device):
            self.put("device")  # where a model lies is no part of what it is
        elif isinstance(value, Enum):
            self.put(f"{type(value).__qualname__}.{value.name}")
        elif isinstance(value, types.ModuleType):
            self.put(f"module {value.__name__}")
        elif isinstance(value, tuple):
            self._add_compound(place, value)
        elif len(self.seen) > LARGEST:
            self.unknown.add(place)
        elif id(value) in self.seen:
            self.put(f"again {self.seen[id(value)]}")
        else:
            self.seen[id(value)] = len(self.seen)
            self.kept.append(value)  # a new object must not get the id of one that is gone
            self._add_compound(place, value)

    def _add_compound(self, place: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self._add_tensor(place, value)
        elif isinstance(value, torch.nn.Module):
            self._add_module(place, value)
        elif isinstance(value, Mapping):
            self.put(f"{len(value)} {type(value).__qualname__}")
            for key in sorted(value, key=lambda key: (type(key).__name__, str(key))):
                self.add(place, key)
                self.add(f"{place}.{key}", value[key])
        elif isinstance(value, list | tuple):
            self.put(f"{len(value)} {type(value).__qualname__}")
            for number, part in enumerate(value):
                self.add(f"{place}.{number}", part)
        elif isinstance(value, set | frozenset):
            self.add(place, sorted(value, key=lambda part: (type(part).__name__, str(part))))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self.put(f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}")
        elif isinstance(value, type):
            self._add_class(place, value)
        elif hasattr(value, "to_diff_dict") and hasattr(value, "to_dict"):  # a configuration of transformers
            self.put(type(value).__qualname__)
            self.add(place, _without(value.to_dict()))
        else:
            self._add_code(place, value)

    def _add_code(self, place: str, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._add_function(place, value)
        elif isinstance(value, types.MethodType):
            self.add(place, value.__self__)
            self.add(place, value.__func__)
        elif isinstance(value, functools.partial):
            self.add(place, [value.func, value.args, value.keywords])
        elif isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType):
            self.put(f"{getattr(value, '__module__', '')} {value.__qualname__}")
        elif isinstance(value, types.CodeType):
            self.put(value.co_code.hex())
            names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
            self.add(place, [*names, list(value.co_consts)])
        elif isinstance(value, re.Pattern):
            self.put(f"{value.pattern!r} {value.flags}")
        elif isinstance(value, logging.Logger | PurePath):
            self.put(str(value))
        elif (state := vars_of(value)) is not None:
            self.add(place, type(value))
            self.add(place, state)
        else:
            self.unknown.add(place)

    def _add_function(self, place: str, function: types.FunctionType) -> None:
        if _of_library(function) and not function.__closure__:
            self.put(f"{function.__module__} {function.__qualname__}")
            return
        self.add(place, function.__code__)
        self.add(place, [function.__defaults__, function.__kwdefaults__])
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self.add(f"{place}.{name}", cell.cell_contents)
            except ValueError:  # nothing is in it yet
                self.put("empty")
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                self.put(name)
                self.add(f"{place}.{name}", function.__globals__[name])

    def _add_class(self, place: str, kind: type) -> None:
        """A class by its name and, unless a library's is as it was, by the code of its functions."""
        self.put(f"{kind.__module__} {kind.__qualname__}")
        for base in kind.__mro__:
            if base in (torch.nn.Module, object):
                break
            for name, value in sorted(vars(base).items()):
                plain = value.__func__ if isinstance(value, staticmethod | classmethod) else value
                plain = plain.fget if isinstance(plain, property) else plain
                if not isinstance(plain, types.FunctionType):
                    continue
                at_home = plain.__module__ == base.__module__ and plain.__qualname__ == f"{base.__qualname__}.{name}"
                if not _of_library(base) or (name == "forward" and not at_home):
                    self.put(name)
                    self.add(f"{place}.{name}", plain)

    def _add_module(self, place: str, module: torch.nn.Module) -> None:
        name = self.modules.get(id(module))
        self.put(f"module {name}")
        place = place if name is None else name or type(module).__qualname__
        self.add(place, type(module))
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            with_kwargs = {*module._forward_pre_hooks_with_kwargs, *module._forward_hooks_with_kwargs}
            for number, hook in hooks.items():
                self.put(f"hook {number in with_kwargs}")
                self.add(f"a hook of {place}", hook)
        own = {key: value for key, value in vars(module).items() if key not in OF_TORCH | UNSEEN}
        self.add(place, own)
        for tensors in (module._parameters, module._buffers):
            self.add(place, dict(tensors))
        for key, child in module._modules.items():
            self.put(key)
            self.add(f"{place}.{key}", child)

    def _add_tensor(self, place: str, tensor: torch.Tensor) -> None:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            self.add(place, type(tensor))
            if hasattr(tensor, "__tensor_flatten__"):
                names, rest = tensor.__tensor_flatten__()
                self.add(place, [*names, rest, *(getattr(tensor, name) for name in names)])
                return
            self.add(place, vars_of(tensor))
            tensor = tensor.detach().as_subclass(torch.Tensor)
        self.put(f"{tuple(tensor.shape)} {tensor.dtype}")
        try:
            self.put(_bytes_of(tensor.detach()))
        except (RuntimeError, NotImplementedError, TypeError):  # one without bytes, or quantised in a way of its own
            self.unknown.add(place)


def vars_of(value: Any) -> dict[str, Any] | None:
    """Attributes of an object; None where they cannot be read."""
    found = dict(getattr(value, "__dict__", {}))
    slots = [name for kind in type(value).__mro__ for name in _listed(getattr(kind, "__slots__", ()))]
    found |= {name: getattr(value, name) for name in slots if hasattr(value, name) and name != "__dict__"}
    return found if found or hasattr(value, "__dict__") else None


def _listed(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _of_library(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in LIBRARIES


def _names(code: types.CodeType) -> set[str]:
    """Names of globals and attributes that a code uses, with that of functions in it."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


def _without(data: Any) -> Any:
    """A configuration as plain data, without what says where it comes from."""
    if isinstance(data, Mapping):
        return {key: _without(value) for key, value in data.items() if key not in UNSEEN}
    return data


def _bytes_of(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes in the order of its entries, over the sha256 of each piece."""
    pieces = list(_pieces(tensor))
    if len(pieces) == 1:
        return _hashed(pieces[0])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.sha256("".join(pool.map(_hashed, pieces)).encode()).hexdigest()


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Parts of at most `PIECE` bytes, or of one row; views, so that nothing is copied before it is hashed."""
    if tensor.is_contiguous():
        tensor = tensor.reshape(-1)
    rows = tensor.shape[0] if tensor.ndim else 1
    of_row = max(1, tensor.numel() * tensor.element_size() // max(1, rows))
    yield from torch.split(tensor.reshape(1) if tensor.ndim == 0 else tensor, max(1, PIECE // of_row))


def _hashed(piece: torch.Tensor) -> str:
    data = piece.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()  # without the lock: threads hash at once


def _tokenizer(tokenizer: Any) -> Any:
    """What a tokenizer does with a text, as plain data; the tokenizer itself where it cannot say so."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    said = json.loads(backend.to_str())
    special = getattr(tokenizer, "special_tokens_map", {})
    return [type(tokenizer).__qualname__, {**said, "padding": None, "truncation": None}, _texts(special)]


def _texts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _texts(part) for key, part in value.items()}
    return [str(part) for part in value] if isinstance(value, list | tuple) else str(value)
