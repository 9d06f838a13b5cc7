"""Steps of decode as CUDA graphs: recorded once, then played back for each further token of the same sequences.

A small step is so many starts of kernels that the host, not the GPU, says how long it takes. A graph starts them all at
once. It holds what the device does and nothing of what the host decides, so it serves for as long as the same sequences
run in all lanes; attention reads all keys that lanes have room for, and the mask hides those that are not there yet.
What a method counts on the device is counted again each time, and what the host counted while the step was recorded is
added once for each token.

Recorded are models with dense attention on one GPU, with whatever is attached that asks the device for nothing in a
step. Where that fails, steps run as ever, and `Playback.obstacle` says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from sparsebench.engine.attention import Geometry
from sparsebench.engine.flow import Lanes, Step
from sparsebench.engine.forward import step
from sparsebench.engine.transfer import sent
from sparsebench.systems.counters import Counters

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

States = list[list[dict[Any, Any]]]


class Graph(Protocol):
    """What the device did once, to be done again."""

    def replay(self) -> None:
        """Do it."""
        ...


def recorded(run: Callable[[], torch.Tensor]) -> tuple[Graph, torch.Tensor]:
    """A graph of what `run` asks the device for, and the tensor that holds its result after each replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()
    return graph, result


def obstacle(system: CausalLM) -> str:
    """Why steps of this system, with what is attached to it, cannot be recorded at all; empty where they may."""
    devices = {parameter.device for parameter in system.model.parameters()}
    if any(device.type != "cuda" for device in devices):
        return "the model is not on a GPU"
    if len(devices) > 1:
        return f"the model lies on {len(devices)} GPUs"
    if system.policy is not None:
        return "the host takes part in sparse attention"
    return "the host takes part in correcting" if system.correction is not None else ""


class Playback:
    """Steps of one system, recorded and played back.

    Attributes:
        obstacle: Why steps are not recorded; empty while they are.
        seconds: Time that recording took, with the step that is run before it; the time of no token.
    """

    def __init__(self, system: CausalLM) -> None:
        self.system = system
        self.obstacle = obstacle(system)
        self.seconds = 0.0
        self._step: RecordedStep | None = None

    def logits(
        self, lanes: Lanes, ids: Sequence[int], ends: Sequence[int], prompts: Sequence[int], states: States
    ) -> torch.Tensor | None:
        """Logits [lanes, vocabulary] of the next step; None where it is to be run as ever.

        Args:
            lanes: Keys and values of the sequences.
            ids: The token that each feeds.
            ends: How long each is with it.
            prompts: Length of the prefill part of each.
            states: What a method remembers of each; the same lists for the same sequences.
        """
        if self.obstacle or len(ids) != lanes.lanes:
            return None
        if self._step is None or not self._step.serves(lanes, states):
            self.close()
            start = time.perf_counter()
            try:
                self._step = RecordedStep(self.system, lanes, ids, ends, prompts, states)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.obstacle = str(error).strip().splitlines()[0][:200]
                return None
            finally:
                self.seconds += time.perf_counter() - start
        return self._step.play(ids, ends)

    def close(self) -> None:
        """Count what was played back, and let the graph go."""
        if self._step is not None:
            self._step.count()
        self._step = None


class RecordedStep:
    """A step of decode of some sequences, one for each lane; see `Playback.logits`."""

    def __init__(
        self,
        system: CausalLM,
        lanes: Lanes,
        ids: Sequence[int],
        ends: Sequence[int],
        prompts: Sequence[int],
        states: States,
    ) -> None:
        self.system, self.lanes, self.states = system, lanes, states
        self.plays = 0
        device = system.device
        self._numbers = torch.zeros(2, len(ids), dtype=torch.int64, device=device)
        self._put(ids, ends)
        own, lengths = self._numbers
        at = torch.zeros(len(ids), 1, dtype=torch.int64, device=device)
        known = Geometry(np.zeros(at.shape, np.int64), np.zeros(len(ids), np.int64), (at, lengths))
        lanes.begin(Step(torch.arange(len(ids), device=device), lengths, at, known), lanes.capacity, states)
        prefills = sent(np.asarray(prompts, dtype=np.int64), device)

        def run() -> torch.Tensor:
            known.memo.clear()  # what follows from lengths is worked out each time
            at.copy_(lengths[:, None] - 1)
            return step(system, lanes, own, lengths, prefills)

        counters, self._counted = system.counters, Counters()
        system.counters = self._counted
        try:
            run()  # whatever happens once happens now; it writes the same keys as the first replay will
            first = self._counted.on_host()
            self._counted.zero()
            self._graph, self._logits = recorded(run)
            self._each = self._counted.on_host()
        finally:
            system.counters = counters
        self._once = {name: amount - self._each.get(name, 0.0) for name, amount in first.items()}

    def serves(self, lanes: Lanes, states: States) -> bool:
        """Whether these are the sequences that it was recorded for."""
        same = zip(states, self.states, strict=True)
        return lanes is self.lanes and len(states) == len(self.states) and all(a is b for a, b in same)

    def play(self, ids: Sequence[int], ends: Sequence[int]) -> torch.Tensor:
        """Logits of the next step, which the step after it overwrites."""
        self._put(ids, ends)
        self._graph.replay()
        self.plays += 1
        return self._logits

    def count(self) -> None:
        """Add what all steps so far counted to the system's counters."""
        for name, amount in self._once.items():
            self.system.counters.add(name, amount + self.plays * self._each.get(name, 0.0))
        self.system.counters.absorb(self._counted)

    def _put(self, ids: Sequence[int], ends: Sequence[int]) -> None:
        self._numbers.copy_(sent(np.array([ids, ends], dtype=np.int64), self._numbers.device), non_blocking=True)
