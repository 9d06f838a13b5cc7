"""Steps that are recorded and played back: what changes between them, what is counted, and what is not recorded.

Without a GPU a recording is the Python that made it, run again without what the host would have counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import models
import numpy as np
import pytest
import torch

from sparsebench.adapters import attached, create
from sparsebench.adapters.calibration import Calibration
from sparsebench.engine import graphs
from sparsebench.engine.generation import Generator, Prompt
from sparsebench.engine.graphs import Playback
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.counters import Counters


class OnDevice(Counters):
    """Takes what a device would count, and nothing of what the host counts."""

    def __init__(self, known: Counters) -> None:
        super().__init__()
        self._counted = known._counted

    def add(self, name: str, amount: Any) -> None:
        if isinstance(amount, torch.Tensor):
            super().add(name, amount)


class Replayed:
    """A recording of a system's step."""

    def __init__(self, system: Any, run: Callable[[], torch.Tensor]) -> None:
        self.system, self.run = system, run
        self.counters = OnDevice(system.counters)
        self.result = run().clone()
        for amount in system.counters._counted.values():
            amount.zero_()  # a device counts nothing while it records
        self.plays = 0

    def replay(self) -> None:
        own, self.system.counters = self.system.counters, self.counters
        try:
            self.result.copy_(self.run())
        finally:
            self.system.counters = own
        self.plays += 1


@contextmanager
def recording(system: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Replayed]]:
    """Within the context a processor records."""
    found: list[Replayed] = []

    def recorded(run: Callable[[], torch.Tensor]) -> tuple[Replayed, torch.Tensor]:
        found.append(Replayed(system, run))
        return found[-1], found[-1].result

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(graphs, "obstacle", lambda system: "")
        patch.setattr(graphs, "recorded", recorded)
        yield found


def prompts(answer: int = 9) -> list[Prompt]:
    generator = np.random.default_rng(3)
    return [Prompt(generator.integers(0, 256, n).tolist(), n - 1, (), answer, frozenset()) for n in (40, 13, 30)]


def generated(system: Any, asked: list[Prompt], playback: Playback | None) -> tuple[Any, dict[str, float]]:
    system.counters.reset()
    generator = Generator(system, asked, playback)
    generator.run()
    return generator.tokens, {name: amount for name, amount in system.counters.to_dict().items() if amount}


MEMBERS = {
    "dense": None,
    "a smaller model": ("depth", {"order": "last"}),
    "griffin": ("griffin", {"mode": "executed"}),
    "a mask": ("random-activations", {}),
    "thresholds by rank": ("wina", {"scope": "decode"}),
}


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt2"])
@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
def test_texts_and_counts_are_those_of_steps_that_are_run(
    name: str, member: tuple[str, dict[str, Any]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and capped scores among them; prompts of unlike lengths."""
    system = models.tiny_system(name)
    stack = [] if member is None else [create(member[0], sparsity=0.5, **member[1])]
    with attached(system, stack):
        expected = generated(system, prompts(), None)
        with recording(system, monkeypatch) as recordings:
            playback = Playback(system)
            found = generated(system, prompts(), playback)
    assert not playback.obstacle and playback.seconds > 0
    assert [recording.plays for recording in recordings] == [8]
    assert found == expected


def test_steps_are_recorded_anew_for_other_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes are refilled, and at last some stay empty: those steps are run."""
    system = models.tiny_system()
    system.max_lanes = 2
    asked = [*prompts(5), *prompts(7)]
    with attached(system, [create("griffin", sparsity=0.5, mode="executed")]):
        expected = generated(system, asked, None)
        with recording(system, monkeypatch) as recordings:
            found = generated(system, asked, Playback(system))
    assert found == expected
    assert len(recordings) >= 3


def test_what_cannot_be_recorded_is_run_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    system = models.tiny_system()
    expected = generated(system, prompts(), None)

    def refuse(run: Any) -> Any:
        raise RuntimeError("operation not permitted\nwhen recording")

    with recording(system, monkeypatch), monkeypatch.context() as patch:
        patch.setattr(graphs, "recorded", refuse)
        playback = Playback(system)
        assert generated(system, prompts(), playback) == expected
    assert playback.obstacle == "operation not permitted"
    assert Playback(system).obstacle == "the model is not on a GPU"
    assert generated(system, prompts(), Playback(system)) == expected


def test_a_want_of_memory_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    system = models.tiny_system()

    def refuse(run: Any) -> Any:
        raise torch.OutOfMemoryError

    with recording(system, monkeypatch), monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(graphs, "recorded", refuse)
        generated(system, prompts(), Playback(system))
    assert system.counters.to_dict()["decode.tokens"]  # its own counters are back


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [None, "griffin", "random-activations", "wina", "cats", "top-k-mlp"])
def test_a_gpu_plays_back_what_it_would_run(method: str | None, dtype: torch.dtype) -> None:
    """In bfloat16 attention over more keys, most of them hidden, may round otherwise: there only the counts are held."""
    system = CausalLM(models.tiny_model("llama", dtype=dtype).cuda(), models.tiny_tokenizer())
    text = Calibration("bytes", np.random.default_rng(0).integers(0, 256, (4, 40)), 0)
    stack = [] if method is None else [create(method, sparsity=0.5, mode="executed")]
    with attached(system, stack, text):
        tokens, counts = generated(system, prompts(), None)
        for _ in range(2):
            playback = Playback(system)
            found = generated(system, prompts(), playback)
            assert not playback.obstacle and playback.seconds > 0
            if dtype == torch.float32:
                assert found == (tokens, counts)
            assert found[1].keys() == counts.keys() and found[1]["decode.tokens"] == counts["decode.tokens"]
