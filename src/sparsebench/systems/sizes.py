"""A model's sizes without its weights: from what a record says, or from the model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sparsebench.cost import ModelShape
from sparsebench.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM


def recorded_shape(system: Mapping[str, Any], key: str = "shape") -> ModelShape | None:
    """The sizes that a record holds; None where it holds none.

    Args:
        system: `CellRecord.system`.
        key: `shape`: as the model ran; `unreduced`: before blocks or channels were removed from it.

    Raises:
        IntegrityError: They are no sizes.
    """
    stored = system.get(key)
    if stored is None:
        return None
    names = {field.name for field in fields(ModelShape)}
    if not isinstance(stored, Mapping) or set(stored) != names:
        raise IntegrityError(f"the record's `system.{key}` has not the sizes of a model")
    windows = stored["windows"]
    numbers = [value for name, value in stored.items() if name != "windows"]
    good = isinstance(windows, list | tuple) and all(isinstance(w, int | None) for w in windows)
    if not good or not all(isinstance(x, int | float) and x >= 0 for x in numbers):
        raise IntegrityError(f"the record's `system.{key}` holds something that is no size")
    return ModelShape(**{**stored, "windows": tuple(windows)})


def weightless(ref: str) -> CausalLM:
    """A causal LM of the right shapes, whose weights take no memory: for its sizes and for predicted costs.

    Raises:
        InputError: It is no causal LM.
        MissingError: Its configuration is not to be had.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sparsebench.systems.causal_lm import CausalLM
    from sparsebench.systems.loading import check_causal, load_causal_lm, model_files, quiet

    files = model_files(ref)
    check_causal(files)
    if not (files.folder / "config.json").exists():  # a llama2.c checkpoint, which has no configuration
        return load_causal_lm(ref, "float32")
    try:
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(files.folder))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{ref}: its configuration makes no model: {error}") from error
    return CausalLM(model, None, files.ref, files.fingerprint, files.base_precision)
