"""How times are taken on a GPU: sides in turns, cold caches, events, medians and intervals.

A *launch* enqueues work; a graph launch replays a recorded graph that makes several calls, each on buffers of its own,
so that no call finds its data in the cache. Before every timed launch 512 MB are read, which clears the second-level
cache without leaving lines that must be written back while the launch is timed, and lets the processor get ahead of the
GPU, so that an eager launch is not timed by Python.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from run_all import RESTART

from sparsebench.speed.protocol import REPETITIONS, compared, in_turns


@dataclass(frozen=True)
class Launch:
    """Work to time: `run` enqueues `calls` calls.

    A graph does not own the memory that it was recorded on: `keeps` holds whatever does.
    """

    run: Callable[[], object]
    calls: int = 1
    graph: bool = False
    keeps: object = None


def graphed(functions: Sequence[Callable[[], object]]) -> Launch:
    """All functions, one after the other, recorded in one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for function in functions:
                function()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for function in functions:
            function()
    return Launch(graph.replay, len(functions), True, tuple(functions))


_flushed: list[torch.Tensor] = []


def flush() -> None:
    """Fill the second-level cache with lines that nobody needs and that are not written back."""
    if not _flushed:
        _flushed.append(torch.zeros(1 << 27, device="cuda"))
    _flushed[0].sum()


def timer(launch: Launch) -> Callable[[], float]:
    """A function that runs a launch on a cold cache and returns milliseconds a call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        flush()
        start.record()
        launch.run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / launch.calls

    return run


def compare(
    baseline: str,
    sides: Mapping[str, Launch],
    nominal: Mapping[str, float] | None = None,
    repetitions: int = REPETITIONS,
) -> dict[str, Any]:
    """Times of all sides in turns, as `sparsebench.speed.protocol.compared` gives them."""
    times = in_turns({name: timer(launch) for name, launch in sides.items()}, repetitions)
    result = compared(times, baseline, nominal)
    for name, launch in sides.items():
        result["sides"][name]["graph"] = launch.graph
    return result


def fastest(candidates: Mapping[str, Callable[[], Launch]], repetitions: int = 3) -> tuple[str, Launch, dict[str, Any]]:
    """The fastest of several ways to do the same; a way that fails is noted, not chosen."""
    launches: dict[str, Launch] = {}
    tried: dict[str, Any] = {}
    for name, make in candidates.items():
        try:
            launch = make()
            tried[name] = float(np.median(in_turns({name: timer(launch)}, repetitions)[name]))
            launches[name] = launch
        except Exception as error:
            torch.cuda.synchronize()
            tried[name] = f"{type(error).__name__}: {str(error).strip()[:200]}"
    if not launches:
        raise RuntimeError(f"no candidate ran: {tried}")
    best = min(launches, key=lambda name: tried[name])
    return best, launches[best], tried


def joules(launch: Launch, seconds: float = 0.4) -> float | str:
    """Energy of a call, or why there is none."""
    from sparsebench.errors import MissingError
    from sparsebench.kernels.energy import EnergyMeter

    try:
        meter = EnergyMeter()
    except MissingError as error:
        return str(error)
    launch.run()
    torch.cuda.synchronize()
    calls, end = 0, time.perf_counter() + seconds
    with meter:
        while time.perf_counter() < end:
            launch.run()
            torch.cuda.synchronize()
            calls += launch.calls
    return (meter.joules or 0.0) / calls


def error_of(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error by norms; not a number when anything is not finite."""
    difference = (got.double() - expected.double()).norm() / expected.double().norm()
    return float(difference) if torch.isfinite(got).all() else float("nan")


def environment() -> dict[str, Any]:
    """What the times were taken on."""
    device = torch.cuda.get_device_properties(0)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    with contextlib.suppress(ImportError):
        import triton

        versions["triton"] = triton.__version__
    return {
        "gpu": device.name,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "multiprocessors": device.multi_processor_count,
        "l2_mib": round(device.L2_cache_size / 2**20, 1),
        "python": platform.python_version(),
        **versions,
    }


class Part:
    """One part of the run: its rows, written after each; its checks; what failed; its time limit."""

    def __init__(self, name: str) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--seconds", type=float, default=120.0, help="time limit from the moment it has the GPU")
        parser.add_argument("--out", type=Path, default=Path("."), help="folder of the result")
        parser.add_argument("--together", type=int, default=1, help="parts that are started together")
        parser.add_argument("--resume", action="store_true", help="go on behind what the result in the folder has")
        parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
        given = parser.parse_args()
        self.name, self.out, self.seconds, self.quick = name, given.out, given.seconds, given.quick
        self.together = given.together
        self.out.mkdir(parents=True, exist_ok=True)
        self.path = self.out / f"{name}.json"
        self.wrong: list[str] = []
        self.lock: IO[str] | None = None
        self.started = time.monotonic()
        self.result: dict[str, Any] = {"part": name, "checks": {}, "rows": {}, "failed": {}}
        if given.resume:
            self._go_on()
        self.result["environment"] = environment()

    def _go_on(self) -> None:
        """Take up an earlier result. What it was at when its process ended is not tried again."""
        if self.path.exists():
            self.result = json.loads(self.path.read_text())
        if (lost := self.result.pop("running", None)) is not None:
            self.result["failed"].setdefault(lost, "the process ended in it")
        self.wrong = [name for name, check in self.result["checks"].items() if check["required"] and not check["good"]]
        self._write()
        self._take_gpu()

    def _take_gpu(self) -> None:
        self.lock = (self.out / "gpu.lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.started = time.monotonic()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until all parts have compiled, then have the GPU alone."""
        torch.cuda.empty_cache()
        self.result.setdefault("compile_seconds", round(time.monotonic() - self.started, 1))
        if self.lock is None:
            (self.out / f"{self.name}.ready").touch()
            limit = time.monotonic() + 90
            while len(list(self.out.glob("*.ready"))) < self.together and time.monotonic() < limit:
                time.sleep(0.1)
            self._take_gpu()
        yield
        assert self.lock is not None
        self.lock.close()

    def left(self) -> float:
        """Seconds of the time limit that are left."""
        return self.seconds - (time.monotonic() - self.started)

    @contextlib.contextmanager
    def _running(self, name: str) -> Iterator[None]:
        """Say what is being done, so that a process that ends in it is not ended by it twice; keep what it raises."""
        around = self.result.get("running")
        self.result["running"] = name
        self._write()
        try:
            yield
            torch.cuda.synchronize()
        except Exception as problem:
            self.failed(name, problem)
        self.result.pop("running", None)
        if around is not None:
            self.result["running"] = around
        self._write()

    def check(self, name: str, make: Callable[[], float], limit: float, *, required: bool = True) -> bool:
        """Compare with a reference; print and keep the error. Rows behind a required check that failed say so."""
        good = False
        if name not in self.result["failed"]:
            with self._running(name):
                error = make()
                good = error <= limit
                kept = error if math.isfinite(error) else str(error)
                self.result["checks"][name] = {"error": kept, "limit": limit, "good": good, "required": required}
                print(f"check {self.name}: {name}: error {error:.1e}, {'good' if good else 'WRONG'}", flush=True)
        if required and not good and name not in self.wrong:
            self.wrong.append(name)
        return good

    def row(
        self, name: str, make: Callable[[], dict[str, Any]], needs: float = 5.0, target: float | None = None
    ) -> None:
        """Measure one row, unless less than `needs` seconds are left; print and keep it."""
        if name in self.result["rows"] or name in self.result["failed"]:
            return
        if self.left() < needs:
            self.result["failed"][name] = f"not run: {self.left():.0f} s left of {self.seconds:.0f}, needs {needs:.0f}"
            print(f"{name}: {self.result['failed'][name]}", flush=True)
            self._write()
            return
        start = time.monotonic()
        with self._running(name):
            row = make()
            row |= {"target": target, "wrong": list(self.wrong), "seconds": round(time.monotonic() - start, 1)}
            self.result["rows"][name] = row
            _print(name, row)
        torch.cuda.empty_cache()

    def attempt(self, name: str, make: Callable[[], object]) -> None:
        """Something without a result of its own, such as compiling; a failure is kept."""
        if name not in self.result["failed"]:
            with self._running(name):
                make()

    def failed(self, name: str, problem: Exception) -> None:
        """Keep what went wrong. A CUDA error that lasts ends this process, to be started again."""
        self.result["failed"][name] = "".join(traceback.format_exception(problem))[-3000:]
        print(f"{name}: FAILED {type(problem).__name__}: {str(problem)[:300]}", flush=True)
        try:
            torch.cuda.synchronize()
        except Exception:
            self.result.pop("running", None)
            self._write()
            sys.stdout.flush()
            os._exit(RESTART)  # destructors of a lost context would only raise again

    def _write(self) -> None:
        path = self.path
        path.with_suffix(".part").write_text(json.dumps(self.result, indent=1))
        path.with_suffix(".part").replace(path)


def _print(name: str, row: Mapping[str, Any]) -> None:
    if "sides" not in row:
        print(f"{name}: {row}", flush=True)
        return
    parts = []
    for side, values in row["sides"].items():
        text = f"{side} {values['median_ms']:.4g} ms"
        if "ratio" in values:
            text += f" = {values['ratio']:.2f}x [{values['ratio_interval'][0]:.2f}, {values['ratio_interval'][1]:.2f}]"
        if "ratio_nominal" in values:
            text += f" of {values['ratio_nominal']:.2f}"
        parts.append(text)
    print(f"{name}: {'; '.join(parts)}", flush=True)
    for key in ("layout", "tiling", "bound", "density", "active", "joules", "target", "wrong"):
        if row.get(key):
            print(f"    {key}: {row[key]}", flush=True)
