"""The presses of an installed kvpress, asked for the positions that they keep, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsebench.adapters.attention._eviction import CachePolicy
from sparsebench.engine.attention import CURRENT, AttentionView
from sparsebench.engine.flow import PackedRows
from sparsebench.errors import InputError, MissingError

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

VARIABLE = "SPARSEBENCH_KVPRESS"
WORKER = Path(__file__).with_name("_press_worker.py")
RUN = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
"""Runs a script without its folder on the path, where `kvpress` would be another module."""
MARK = "press-worker: "
IDS = "token ids of the prompt"


def python() -> str:
    """The Python that has kvpress: the one that the variable names, or this one.

    Raises:
        MissingError: Neither has it.
    """
    named = os.environ.get(VARIABLE, "")
    if named and not Path(named).is_file():
        raise MissingError(f"{VARIABLE} is {named}, and there is no such Python")
    if named or find_spec("kvpress") is not None:
        return named or sys.executable
    raise MissingError(
        "kvpress is not installed",
        f"make an environment of its own (python -m venv DIR; DIR/bin/pip install kvpress) and set {VARIABLE} to its "
        "Python: kvpress takes other versions of transformers than SparseBench",
    )


class PressWorker:
    """A process that holds the model, as it was when the worker was made, and a press.

    Args:
        system: The model.
        press: Its class, `SnapKVPress` or `AdaKVPress(SnapKVPress)`.
        options: Fields of the press.

    Raises:
        MissingError: There is no kvpress.
        InputError: There is no such press, or it has no such option.
    """

    def __init__(self, system: CausalLM, press: str, options: dict[str, Any]) -> None:
        executable = python()
        folder = tempfile.TemporaryDirectory(prefix="sparsebench-press-")
        self.folder = Path(folder.name)
        _save(system, self.folder / "model")
        flags = {
            "model": str(self.folder / "model"),
            "press": press,
            "options": json.dumps(options),
            "dtype": str(system.dtype).removeprefix("torch."),
            "device": str(system.device),
        }
        self.said = self.folder / "stderr"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [
                    executable,
                    "-c",
                    RUN,
                    str(WORKER),
                    *(x for name, value in flags.items() for x in (f"--{name}", value)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                cwd=self.folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        self._end = weakref.finalize(self, _end, self.process, folder)
        self.versions = self._answer()

    def kept(self, ids: list[int], ratio: float) -> torch.Tensor:
        """What the press keeps of a prompt, bool [layers, kv_heads, tokens], where a share `ratio` of it is to go."""
        out = self.folder / "kept.npy"
        if self.process.stdin is None:
            raise InputError("the process with kvpress has no input")
        self.process.stdin.write(json.dumps({"ids": ids, "ratio": ratio, "out": str(out)}) + "\n")
        self.process.stdin.flush()
        self._answer()
        return torch.from_numpy(np.load(out, allow_pickle=False))

    def _answer(self) -> dict[str, Any]:
        for line in self.process.stdout or ():
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                if "error" in answer:
                    raise InputError(f"kvpress: {answer['error']}")
                return answer
        last = self.said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise InputError(f"the process with kvpress ended with code {self.process.wait()}", "\n".join(last))


def _end(process: subprocess.Popen[str], folder: tempfile.TemporaryDirectory[str]) -> None:
    process.kill()
    process.wait()
    folder.cleanup()


def _save(system: CausalLM, folder: Path) -> None:
    """The model as a plain checkpoint: its class and the weights as they are now, nothing of a quantiser."""
    kind = type(system.model)
    config = {k: v for k, v in system.model.config.to_dict().items() if k != "quantization_config"}
    plain = kind(type(system.model.config).from_dict(config)).to(system.dtype)
    plain.load_state_dict(system.model.state_dict(), strict=False)
    plain.save_pretrained(folder)


class PressPolicy(CachePolicy):
    """Also remembers the token ids of each prompt, which a press is asked with."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.fed: torch.Tensor | None = None

    def feed(self, ids: torch.Tensor) -> None:
        """The token ids of a pass, as the model's embedding sees them, [batch, tokens]."""
        self.fed = ids

    def attend(self, view: AttentionView) -> torch.Tensor:
        """See `engine.attention.AttentionPolicy`."""
        view = view if view.states else self._remembered(view)
        if not view.decode and any(IDS not in memory[-1] for memory in view.states):
            for memory, ids in zip(view.states, self._ids(view), strict=True):
                memory[-1][IDS] = ids
        return super().attend(view)

    def _ids(self, view: AttentionView) -> list[list[int]]:
        """The token ids of each row's queries."""
        if self.fed is None:
            raise InputError("a press needs token ids, and the model was called with embeddings")
        flow = CURRENT.get()
        if flow is not None and isinstance(flow.rows, PackedRows):
            batch = next(batch for batch in flow.rows.batches[self.fed.device] if batch.states is view.states)
            ids = self.fed[0][batch.tokens]
        else:
            ids = self.fed
        real = (view.positions >= 0).to(ids.device)
        return [own[there].tolist() for own, there in zip(ids, real, strict=True)]
