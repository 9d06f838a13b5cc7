"""Which positions of a prompt a press of kvpress keeps; run by a Python that has it, without SparseBench.

Lines of JSON come on standard input, `{"ids": [...], "ratio": 0.5, "out": "kept.npy"}`; for each one an array, bool
`[layers, kv_heads, tokens]`, is written and a line goes to standard output, `{"ok": true}` or `{"error": "..."}`,
behind a mark that tells it from what libraries print.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import kvpress
import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers import __version__ as transformers_version

MARK = "press-worker: "


def made(text: str, options: dict[str, Any]) -> Any:
    """A press from its class's name, such as `AdaKVPress(SnapKVPress)`; each takes the options that it has."""
    found = re.fullmatch(r"(\w+)(?:\((.+)\))?", text.replace(" ", ""))
    if found is None or not hasattr(kvpress, found[1]):
        raise ValueError(f"kvpress has no press {text!r}")
    kind = getattr(kvpress, found[1])
    names = {field.name for field in fields(kind) if field.init}
    inner = {"press": made(found[2], options)} if found[2] else {}
    return kind(**inner, **{name: options.pop(name) for name in list(options) if name in names})


class Kept:
    """A press on a model."""

    def __init__(self, model: Any, press: Any) -> None:
        self.model = model
        self.press = press

    def of(self, ids: list[int], ratio: float) -> np.ndarray:
        """What stays of a prompt where a share `ratio` of its keys is to go."""
        self.press.compression_ratio = ratio
        tokens = torch.tensor([ids], device=self.model.device)
        dense, sparse = DynamicCache(), DynamicCache()
        with torch.no_grad():
            self.model.model(tokens, past_key_values=dense)
            with self.press(self.model):
                self.model.model(tokens, past_key_values=sparse)
        layers = zip(self.model.model.layers, dense.layers, sparse.layers, strict=True)
        return np.stack([self._layer(block.self_attn, whole, left) for block, whole, left in layers])

    def _layer(self, attention: Any, whole: Any, left: Any) -> np.ndarray:
        mask = torch.zeros(whole.keys.shape[1:3], dtype=torch.bool)
        for head in range(len(mask)):
            places = {row.tobytes(): place for place, row in enumerate(rows(whole, head))}
            for row in rows(left, head):
                if row.tobytes() not in places:
                    raise ValueError("the press changes keys or values, which is no choice of positions")
                mask[head, places[row.tobytes()]] = True
        hidden = getattr(attention, "masked_key_indices", None)  # kept in memory, and hidden from later queries
        if hidden is not None:
            mask[hidden[1].cpu(), hidden[2].cpu()] = False
            attention.masked_key_indices = None
        return mask.numpy()


def rows(layer: Any, head: int) -> np.ndarray:
    """Keys and values of one head side by side, one row a position."""
    return torch.cat([layer.keys[0, head], layer.values[0, head]], dim=-1).float().cpu().contiguous().numpy()


def library_version() -> str:
    """The version of kvpress."""
    try:
        return version("kvpress")
    except PackageNotFoundError:
        return str(getattr(kvpress, "__version__", "unknown"))


def say(message: dict[str, Any]) -> None:
    """One line to whoever asked."""
    print(MARK + json.dumps(message), flush=True)


def main() -> None:
    """Load model and press, then answer until the input ends."""
    parser = argparse.ArgumentParser()
    for name in ("model", "press", "options", "dtype", "device"):
        parser.add_argument(f"--{name}", required=True)
    chosen = parser.parse_args()
    try:
        options = json.loads(chosen.options)
        press = made(chosen.press, options)
        if options or not hasattr(press, "compression_ratio"):
            wrong = f"no option {next(iter(options))!r}" if options else "no compression ratio"
            raise ValueError(f"{chosen.press} has {wrong}")
        attention = "eager" if "ObservedAttention" in chosen.press else "sdpa"
        loaded = AutoModelForCausalLM.from_pretrained(
            chosen.model, dtype=getattr(torch, chosen.dtype), attn_implementation=attention
        )
        kept = Kept(loaded.to(chosen.device).eval(), press)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"kvpress": library_version(), "transformers": transformers_version})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            np.save(asked["out"], kept.of(asked["ids"], asked["ratio"]))
            say({"ok": True})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
