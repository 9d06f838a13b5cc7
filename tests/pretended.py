"""Devices that are pretended: tensors stay on the processor, and each says that it lies on `cuda:0` or `cuda:1`.

Within `Pretended` every operation is refused whose tensors lie on different devices, as CUDA refuses it; so a model that
is spread over two GPUs, and all that is attached to it, can be run where there is none. What is computed is bit for bit
what one processor computes. Kernels that need a GPU (Triton, FlexAttention) are not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
NAME = "a pretended GPU"
TENSOR = torch.Tensor
DEVICE = TENSOR.device.__get__  # type: ignore[attr-defined]
GRADIENT = TENSOR.grad.__get__  # type: ignore[attr-defined]
IS_CUDA = TENSOR.is_cuda.__get__  # type: ignore[attr-defined]
ANYWHERE = (
    TENSOR.copy_,
    TENSOR.data.__set__,  # type: ignore[attr-defined]
    torch._has_compatible_shallow_copy_type,
    torch.autograd.grad,
)
"""Operations whose tensors may lie on different devices."""
INDEXED = (TENSOR.__getitem__, TENSOR.__setitem__)
"""Operations that take places which lie on the processor."""


def tensors_in(x: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for part in x:
            yield from tensors_in(part)
    elif isinstance(x, dict):
        yield from tensors_in(list(x.values()))


def named(device: Any) -> torch.device:
    """A device with its number."""
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


class Pretended(TorchFunctionMode):
    """Within the context tensors may be sent to devices that are not there.

    Args:
        count: How many GPUs there are said to be.
    """

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self._said = {
            "device_count": lambda: count,
            "get_device_name": lambda device: NAME,
            "get_device_properties": lambda device: SimpleNamespace(total_memory=2**34),
            "device_of": self._current_is_that_of,
        }
        self.current = named("cuda")
        """The device on which kernels are launched."""
        self._context = ExitStack()
        self._places: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self.moved = 0
        """Tensors that were sent from one pretended device to another."""

    def __enter__(self) -> Self:
        self._context.enter_context(mock.patch.multiple(torch.cuda, **self._said))
        self._context.enter_context(mock.patch("sparsebench.engine.fused.usable", lambda x: False))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._context.close()

    @contextmanager
    def _current_is_that_of(self, x: torch.Tensor) -> Iterator[None]:
        before, self.current = self.current, self.place(x)
        yield
        self.current = before

    def place(self, x: torch.Tensor) -> torch.device:
        """Where a tensor is said to lie: a storage that nobody sent elsewhere lies on the processor."""
        known = self._places.get(x.untyped_storage()._cdata)
        return DEVICE(x) if known is None else known[1]

    def put(self, x: torch.Tensor, device: torch.device) -> None:
        """Say that a tensor lies there."""
        # The weak reference keeps the number of the storage from being given to another one.
        self._places[x.untyped_storage()._cdata] = StorageWeakRef(x.untyped_storage()), device

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        special = self._special(func, args)
        if special is not None:
            return special
        if func in (TENSOR.to, TENSOR.cpu, TENSOR.cuda):
            return self._sent(func, args, kwargs)
        place = self._agreed(func, args, kwargs)
        wanted = kwargs.pop("device", None)
        before = {x.untyped_storage()._cdata for x in tensors_in([args, kwargs])}
        if func == torch.histc:  # of whole numbers there is one on GPUs alone
            args = (args[0].float(), *args[1:])
        result = func(*args, **kwargs)
        if wanted is not None:
            place = named(wanted)
        if func is torch.autograd.grad:
            for own, x in zip(tensors_in(result), tensors_in(args[1]), strict=True):
                self.put(own, self.place(x))
        elif func == GRADIENT and result is not None:
            self.put(result, place)
        elif place.type != "cpu":
            for x in tensors_in(result):
                if x.untyped_storage()._cdata not in before:
                    self.put(x, place)
        return result

    def _special(self, func: Callable[..., Any], args: Any) -> Any:
        if func == DEVICE:
            return self.place(args[0])
        if func == IS_CUDA:
            return self.place(args[0]).type == "cuda"
        if func == TENSOR.pin_memory:
            return args[0]
        if func in (TENSOR.numpy, TENSOR.__array__) and self.place(args[0]).type != "cpu":
            raise TypeError(f"a tensor on {self.place(args[0])} has no numpy array")
        return None

    def _sent(self, func: Callable[..., Any], args: Any, kwargs: Any) -> torch.Tensor:
        x, rest = args[0], list(args[1:])
        options = {"device": CPU if func is TENSOR.cpu else None, "dtype": None}
        if func is TENSOR.cuda:
            options["device"] = named(rest[0] if rest else 0)
        elif func is TENSOR.to and rest and isinstance(rest[0], torch.Tensor):
            options = {"device": self.place(rest[0]), "dtype": rest[0].dtype}
        elif func is TENSOR.to:
            copy = kwargs.pop("copy", False)
            kwargs.pop("memory_format", None)
            options["device"], options["dtype"], _, _ = torch._C._nn._parse_to(*rest, **kwargs)
            x = x.clone() if copy else x
            if copy:
                self.put(x, self.place(args[0]))
        here = self.place(x)
        target = here if options["device"] is None else named(options["device"])
        found = x if options["dtype"] is None else x.to(options["dtype"])
        if target != here:
            self.moved += here.type == target.type
            found = found.clone() if found is x else found
        if found is not x:
            self.put(found, target)
        return found

    def _agreed(self, func: Callable[..., Any], args: Any, kwargs: Any) -> torch.device:
        """The one device that tensors lie on; single numbers on the processor go with all.

        Raises:
            RuntimeError: There are several.
        """
        loose = [args[1]] if func in INDEXED else []
        indices = {id(x) for x in tensors_in(loose) if self.place(x).type == "cpu"}
        if func in ANYWHERE:
            return self.place(next(tensors_in(args)))
        places = {
            self.place(x)
            for x in tensors_in([args, kwargs])
            if (x.dim() or self.place(x).type != "cpu") and id(x) not in indices
        }
        if len(places) > 1:
            raise RuntimeError(f"{getattr(func, '__name__', func)}: tensors on {', '.join(sorted(map(str, places)))}")
        return places.pop() if places else CPU
