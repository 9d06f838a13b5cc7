"""What the scripts of this folder share: both sides in processes of their own, taking turns on the same requests.

Each side has one process with its own copy of the model, so that neither lives with the other's memory or settings:
ours as `sparsebench run` sets itself up, lm-eval's Hugging Face backend as its command line does. The turns of a script
alternate between the sides; a ratio is that of the median times.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparsebench.environment import commit, hardware, packages
from sparsebench.systems.embedded import MODELS

RESULTS = Path(__file__).parents[1] / "results"
SMOLLM2 = next(model.ref for model in MODELS if model.kind == "causal-lm")
SIZES = ["1", "8", "16", "32", "64", "auto"]
"""Batch sizes of lm-eval's backend that are tried."""
_SIDE: dict[str, Any] = {}
"""In a side's process: its model, made once."""


@dataclass(frozen=True)
class Request:
    """One request, the same for both sides: `loglikelihood` of a continuation, or `generate_until` with options."""

    kind: str
    arguments: tuple[Any, ...]
    sample: int


@dataclass(frozen=True)
class Setting:
    """What both sides run with."""

    model: str
    dtype: str
    threads: int


@dataclass(frozen=True)
class Turn:
    """One pass of one side over the requests: its seconds and its answers."""

    seconds: float
    answers: list[Any]


def arguments(description: str | None, items: int, subject: str) -> argparse.Namespace:
    """The options of a script, read from the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, metavar="REF", help="hf:, path: or pypi:; default: SmolLM2-135M")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--items", type=int, default=items, help="samples of the task")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="N", help="batch sizes of the peer to choose from")
    parser.add_argument("--trial", type=int, default=16, help="samples on which the peer's batch size is chosen")
    parser.add_argument("--out", type=Path, default=RESULTS / f"engine-{subject}.json", metavar="FILE")
    return parser.parse_args()


def setting_of(chosen: argparse.Namespace) -> Setting:
    """What both sides run with, from the options."""
    return Setting(chosen.model, chosen.dtype, chosen.threads)


def side(setting: Setting) -> ProcessPoolExecutor:
    """A process for one side."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=begin, initargs=(setting,))


def begin(setting: Setting) -> None:
    """Make this process one side's."""
    import torch

    torch.set_num_threads(setting.threads)
    _SIDE["setting"] = setting


def ours(requests: list[Request], batch_tokens: int | None = None) -> Turn:
    """One turn of the engine; in its own process."""
    from sparsebench.engine.lm import SparseLM
    from sparsebench.systems import memory
    from sparsebench.systems.loading import load_causal_lm

    if "system" not in _SIDE:
        memory.keep_freed_memory()
        _SIDE["system"] = load_causal_lm(_SIDE["setting"].model, _SIDE["setting"].dtype)
    system = _SIDE["system"]
    system.batch_tokens = batch_tokens or system.batch_default
    system.memory.clear()  # what was tokenised in the turn before
    return _answered(SparseLM(system), requests)


def peer(requests: list[Request], size: str) -> Turn:
    """One turn of lm-eval's Hugging Face backend at a batch size; in its own process."""
    import logging

    from lm_eval.models.huggingface import HFLM

    from sparsebench.systems.loading import model_files, quiet

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if "backend" not in _SIDE:
        folder = str(model_files(_SIDE["setting"].model).folder)
        with quiet():
            _SIDE["backend"] = HFLM(pretrained=folder, dtype=_SIDE["setting"].dtype, device="cpu", max_batch_size=64)
    backend = _SIDE["backend"]
    backend.batch_size_per_gpu = size if size == "auto" else int(size)
    return _answered(backend, requests)


def _answered(model: Any, requests: list[Request]) -> Turn:
    from lm_eval.api.instance import Instance

    (kind,) = {request.kind for request in requests}
    instances = [Instance(kind, {}, r.arguments, r.sample, ("", r.sample, 1)) for r in requests]
    start = time.perf_counter()
    answers = getattr(model, kind)(instances, disable_tqdm=True)
    return Turn(time.perf_counter() - start, answers)


def best_size(process: ProcessPoolExecutor, requests: list[Request], sizes: list[str]) -> tuple[str, dict[str, float]]:
    """The batch size at which the peer is fastest on some requests, and the seconds of all that were tried."""
    process.submit(peer, requests[:1], "1").result()  # loads the model
    seconds = {size: process.submit(peer, requests, size).result().seconds for size in sizes}
    return min(seconds, key=lambda size: seconds[size]), seconds


def times(turns: list[Turn]) -> dict[str, float]:
    """Median and range of the seconds."""
    seconds = [turn.seconds for turn in turns]
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "turns": len(seconds)}


def processor_seconds() -> float | None:
    """Seconds of all cores that all processes have used since the machine started; None where it does not tell."""
    try:
        counts = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=4)[1:4]
    except OSError:
        return None
    return sum(map(int, counts)) / os.sysconf("SC_CLK_TCK")


STARTED = (time.perf_counter(), processor_seconds())


def others_share() -> float | None:
    """The share of all cores that other processes took since this script began: above a few percent, measure again."""
    used = processor_seconds()
    if used is None or STARTED[1] is None:
        return None
    own = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    whole = (time.perf_counter() - STARTED[0]) * (os.cpu_count() or 1)
    return max(0.0, (used - STARTED[1] - own) / whole)


def store(chosen: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print what was found, and write it with hardware, versions and command."""
    place: Path = chosen.out
    place.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "command": " ".join(["python", f"benchmarks/engine/{Path(sys.argv[0]).name}", *_options(sys.argv[1:])]),
        "model": chosen.model,
        "dtype": chosen.dtype,
        "threads": chosen.threads,
        "hardware": hardware("cpu"),
        "share of the processor that others took": others_share(),
        "packages": packages(),
        "commit": commit()[0],
        "date": datetime.now(UTC).date().isoformat(),
    }
    place.write_text(json.dumps(found | {"environment": about}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found | {"others": others_share()}, indent=1))
    print(f"ratio {found['ratio']:.2f}, target {found['target']}: {'met' if found['met'] else 'NOT met'}")


def verdict(ratio: float, target: float, at_most: bool = False) -> dict[str, Any]:
    """A ratio beside its target."""
    met = ratio <= target if at_most else ratio >= target
    return {"ratio": ratio, "target": f"at {'most' if at_most else 'least'} {target:g}", "met": met}


def _options(given: list[str]) -> list[str]:
    """Options of the command line but where the result goes."""
    at = given.index("--out") if "--out" in given else len(given)
    return given[:at] + given[at + 2 :]
