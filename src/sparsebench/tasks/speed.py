"""Time to first token and time per token, in turns with the dense model.

Prompts are windows of a text, side by side from its beginning, and run as one batch: all are prefilled, then each is
continued greedily by the same number of tokens, which nothing ends before. A repetition times the system as it is and
the dense one in two forms, one after the other (`speed.protocol`): the engine's own, which is what the method replaces,
and transformers with its cache and its own attention, which the facts name. The speed-up of a phase is the ratio to the
form that is faster there by its median. The dense model's own row says what the turns leave: a ratio of 1, give or
take the noise.

Everything that a method does while it runs is timed: choosing, its lists, counting. Attaching it is not.

On a GPU the engine's steps of decode are recorded and played back as CUDA graphs, the method's and the dense ones,
where that can be done; the facts say of each side whether it was. Recording is not timed. Where a method's steps cannot
be recorded, the dense engine is timed without graphs too. The energy of a prompt and of a further token is measured
besides, where the GPU has a counter: each of them over a time that the counter can resolve, side after side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from sparsebench.data.digests import content_hash
from sparsebench.errors import InputError, MissingError, UnknownNameError
from sparsebench.speed.protocol import REPETITIONS, compared, in_turns
from sparsebench.tasks.base import BoundTask, DefinedTask, TaskResult, Workload
from sparsebench.tasks.builders import build_rows
from sparsebench.tasks.definition import TaskDefinition

if TYPE_CHECKING:
    from sparsebench.kernels.energy import EnergyMeter
    from sparsebench.systems.causal_lm import CausalLM

SHARE_ROUNDS = 2
ENERGY_SECONDS = 2.0
"""For how long the energy of a side is measured in each phase: many times what the counter takes to change."""
SLOWEST = 2.0
"""How many times as long a prompt or a token may take while its energy is measured."""
OWN, ENGINE, TRANSFORMERS = "as it is", "dense, engine", "dense, transformers"
WITHOUT_GRAPHS = "dense, engine without graphs"
COLUMNS = ("prefill", "decode", "first_token_ms", "token_ms", "dense_first_token_ms", "dense_token_ms")


class Times(NamedTuple):
    """Milliseconds of one run of the batch: until all first tokens are chosen, and for each further token."""

    prefill: float
    decode: float


def _nothing() -> None:
    """What is done where nobody watches."""


@dataclass
class Side:
    """One of the sides that take turns.

    Attributes:
        dense: Whether what is attached is taken off while it runs.
        engine: Whether it runs through the engine, or as transformers generates.
        graphs: Whether its steps may be recorded; found out when they are.
        obstacle: Why they are not.
    """

    dense: bool
    engine: bool
    graphs: bool = True
    obstacle: str = ""


class SpeedTask(DefinedTask):
    """The speed of a system, from a definition."""

    def bind(self, tokenizer: Any, limit: int | None = None) -> BoundSpeedTask:
        """Prompts of the tokenised text; `limit` is the number of repetitions."""
        return BoundSpeedTask(self.definition, tokenizer, limit)


class BoundSpeedTask(BoundTask):
    """Speed on prompts of one length."""

    times: ClassVar[bool] = True

    def __init__(self, definition: TaskDefinition, tokenizer: Any, limit: int | None) -> None:
        for metric in definition.metrics:
            if metric.column not in COLUMNS:
                raise UnknownNameError(f"column of task {definition.task}", metric.column, COLUMNS)
        built = build_rows(definition.build, definition.data, definition.options, tokenizer, definition.seed)
        text = "\n\n".join(str(row["text"]) for row in built.rows)
        tokens = np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
        batch, length = definition.windows or 1, definition.window
        if len(tokens) < batch * length:
            raise InputError(
                f"task {definition.task}: {len(tokens)} tokens of text make no batch of {batch} x {length}",
                "take a longer text, shorter prompts or a smaller batch",
            )
        self.prompts: list[list[int]] = tokens[: batch * length].reshape(batch, length).tolist()
        self.repetitions = min(limit or REPETITIONS, REPETITIONS)
        self.definition = definition
        self.metrics = list(definition.metrics)
        self.family = definition.family
        self.title = definition.title
        self.protocol = "prompt"
        self.data = [definition.fact(built.source, built.sha256)]
        self.spec = definition.spec(content_hash([{"tokens": prompt} for prompt in self.prompts]), limit)
        runs = 3 * (self.repetitions + 1)
        answers = batch * self.answer
        self.workload = Workload(self.repetitions, runs * batch * length, runs * answers, answers, length, batch)

    @property
    def answer(self) -> int:
        """Tokens that each prompt is continued by."""
        return max(2, self.definition.generation.max_gen_toks)

    def evaluate(self, system: Any) -> TaskResult:
        """Time the system and the dense one in turns.

        Raises:
            InputError: The batch is larger than the engine runs at a time.
        """
        import pandas as pd

        if system.lanes_for(len(self.prompts[0]) + self.answer) < len(self.prompts):
            raise InputError(
                f"task {self.spec.id}: {len(self.prompts)} prompts of {len(self.prompts[0])} tokens do not run at once",
                "raise batch_tokens of the system in the suite",
            )
        sides = self._sides(system)
        self._run(system, sides[OWN])
        counted = dict(system.counters.sums)  # of one run
        if system.device.type == "cuda" and system.packed and not sides[OWN].graphs:
            sides[WITHOUT_GRAPHS] = Side(dense=True, engine=True, graphs=False, obstacle="the method has none")
        turns = {name: (lambda side=side: self._run(system, side)) for name, side in sides.items()}
        times = in_turns(turns, self.repetitions)
        phases = {phase: _compared(times, phase) for phase in Times._fields}
        facts = self._facts(phases) | {
            "graphs": {name: side.graphs for name, side in sides.items()},
            "without graphs": {name: side.obstacle for name, side in sides.items() if not side.graphs},
            **self._energy(system, sides, phases),
        }
        with system.lifted():
            facts["attention of transformers"] = str(getattr(system.config, "_attn_implementation", ""))
            facts["time_shares"] = self._shares(system, decode=not any(side.graphs for side in sides.values()))
        system.counters.reset()
        for name, amount in counted.items():
            system.counters.add(name, amount)
        facts["speed"] = {
            name: value
            for phase, found in phases.items()
            for name, value in (*_speed(phase, found), *_joules(phase, found, facts.get("energy", {})))
        }
        frame = pd.DataFrame({"sample": [f"repetition-{i}" for i in range(self.repetitions)]})
        frame["cluster"] = frame["sample"]
        for phase, name in (("prefill", "first_token_ms"), ("decode", "token_ms")):
            sides_ms = {side: np.array(found["times_ms"]) for side, found in phases[phase]["sides"].items()}
            dense = sides_ms[phases[phase]["baseline"]]
            frame[phase] = dense / sides_ms[OWN]
            frame[name], frame[f"dense_{name}"] = sides_ms[OWN], dense
        return TaskResult(frame, facts)

    def _sides(self, system: CausalLM) -> dict[str, Side]:
        sides = {OWN: Side(dense=False, engine=system.packed)}
        if system.packed:
            sides[ENGINE] = Side(dense=True, engine=True)
        return sides | {TRANSFORMERS: Side(dense=True, engine=False)}

    def _run(
        self, system: CausalLM, side: Side, answer: int | None = None, decoding: Callable[[], object] = _nothing
    ) -> Times:
        """One run of a side.

        Args:
            system: The system.
            side: The side.
            answer: Tokens that each prompt is continued by; None: the task's.
            decoding: Called when the first of the further tokens is chosen.
        """
        with _form(system, side):
            return self._timed(system, side, answer or self.answer, decoding)

    def _timed(self, system: CausalLM, side: Side, answer: int, decoding: Callable[[], object] = _nothing) -> Times:
        """One run of a system that has the form of the side."""
        return (self._engine if side.engine else self._transformers)(system, side, answer, decoding)

    def _engine(self, system: CausalLM, side: Side, answer: int, decoding: Callable[[], object]) -> Times:
        """One run through the engine, in which no prompt is known from before."""
        from sparsebench.engine.generation import Generator, Prompt
        from sparsebench.engine.graphs import Playback

        class Watched(Generator):
            steps = 0

            def _step(self, *args: Any) -> None:
                super()._step(*args)
                self.steps += 1
                if self.steps == 1:
                    decoding()

        late = 1 if system.decode_from_context_end else 0
        prompts = [Prompt(tokens, len(tokens) - late, (), answer, frozenset()) for tokens in self.prompts]
        playback = Playback(system) if side.graphs else None
        with _no_kept_prefills(system):
            start = time.perf_counter()
            generator = Watched(system, prompts, playback)
            generator.run()
            end = time.perf_counter()
        if playback is not None and generator.steps:
            side.graphs, side.obstacle = not playback.obstacle, playback.obstacle
        recording = playback.seconds if playback is not None else 0.0
        return _times(start, generator.prefilled_at, end - recording, answer)

    def _transformers(self, system: CausalLM, side: Side, answer: int, decoding: Callable[[], object]) -> Times:
        """One run as transformers generates: its own cache and attention."""
        import inspect

        import torch

        side.graphs, side.obstacle = False, "its cache grows"
        model = system.model
        one = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        tokens = torch.tensor(self.prompts, device=system.device)
        with torch.inference_mode():
            start = time.perf_counter()
            out = model(input_ids=tokens, use_cache=True, **one)
            chosen = out.logits[:, -1].argmax(dim=-1)
            chosen.tolist()  # waits for a GPU, as whoever prints the token does
            middle = time.perf_counter()
            for number in range(answer - 1):
                out = model(input_ids=chosen[:, None], past_key_values=out.past_key_values, use_cache=True, **one)
                chosen = out.logits[:, -1].argmax(dim=-1)
                chosen.tolist()
                if number == 0:
                    decoding()
            end = time.perf_counter()
        return _times(start, middle, end, answer)

    def _energy(self, system: CausalLM, sides: dict[str, Side], phases: dict[str, Any]) -> dict[str, Any]:
        """Joules of a prompt and of a further token by side; nothing where they are not measured.

        A prompt is computed again and again, and a text is decoded that is longer than the task's, for
        `ENERGY_SECONDS` each. A batch shares its energy out. Joules of runs that are not those that were timed, since
        each took far longer, are no one's.
        """
        from sparsebench.kernels.energy import EnergyMeter

        try:
            meter = EnergyMeter.of({parameter.device for parameter in system.model.parameters()})
        except MissingError as error:
            return {"no energy": error.message} if system.device.type == "cuda" else {}
        prompts, tokens = {}, {}
        for name, side in sides.items():
            expected = Times(*(phases[phase]["sides"][name]["median_ms"] for phase in ("prefill", "decode")))
            answer = self._longer(system, expected.decode)
            prompts[name], tokens[name], slower = self._joules_of(system, side, meter, answer, expected)
            if slower > SLOWEST:
                return {
                    "no energy": f"{name} took {slower:.1f} times as long while its energy was measured as in turns"
                }
        return {
            "joules": len(self.prompts) * (prompts[OWN] + (self.answer - 1) * tokens[OWN]),
            "energy": {
                "of": "all that runs on the GPU, by the counter that NVML reads; idle power is not taken off",
                "joules of a prompt": prompts,
                "joules of a token": tokens,
            },
        }

    def _longer(self, system: CausalLM, token_ms: float) -> int:
        """Tokens that take `ENERGY_SECONDS`, as far as the model's positions and the engine's lanes reach."""
        length = len(self.prompts[0])
        room = int(getattr(system.config, "max_position_embeddings", None) or 2 * length) - length
        wanted = min(2 + int(1e3 * ENERGY_SECONDS / token_ms), room)
        while wanted > self.answer and system.lanes_for(length + wanted) < len(self.prompts):
            wanted //= 2
        return max(3, self.answer, wanted)

    def _joules_of(
        self, system: CausalLM, side: Side, meter: EnergyMeter, answer: int, expected: Times
    ) -> tuple[float, float, float]:
        """Joules of a prompt and of a token, and how many times as long as expected a prompt or a token took."""
        marks: list[float] = []
        with _form(system, side):  # once: taking a method off and putting it back is no part of a prompt
            self._timed(system, side, answer=1)
            runs, before, begun = 0, meter.read(), time.perf_counter()
            while (taken := time.perf_counter() - begun) < ENERGY_SECONDS:
                self._timed(system, side, answer=1)
                runs += 1
            prompt = (meter.read() - before) / runs
            decoded = self._timed(system, side, answer, lambda: marks.append(meter.read())).decode
            token = (meter.read() - marks[0]) / (answer - 2)
        slower = max(1e3 * taken / runs / expected.prefill, decoded / expected.decode)
        return prompt / len(self.prompts), token / len(self.prompts), slower

    def _shares(self, system: CausalLM, decode: bool) -> dict[str, dict[str, float]]:
        """Where the dense model spends its time in each phase; nothing where that is not known of its architecture.

        Of decode only where no graph was played back: the shares are those of steps that the host starts.
        """
        from sparsebench.timeshares import measured_shares

        length = len(self.prompts[0])
        try:
            shares = {"prefill": measured_shares(system, length, rounds=SHARE_ROUNDS)}
            return shares | ({"decode": measured_shares(system, length, self.answer, rounds=1)} if decode else {})
        except (TypeError, AttributeError, ValueError):
            return {}

    def _facts(self, phases: dict[str, Any]) -> dict[str, Any]:
        return {
            "prompt_tokens": len(self.prompts[0]),
            "answer_tokens": self.answer,
            "batch": len(self.prompts),
            "repetitions": self.repetitions,
            **{f"dense form in {phase}": found["baseline"] for phase, found in phases.items()},
            "median milliseconds": {
                phase: {side: values["median_ms"] for side, values in found["sides"].items()}
                for phase, found in phases.items()
            },
        }


def _form(system: CausalLM, side: Side) -> AbstractContextManager[None]:
    """The form in which a side runs."""
    return system.lifted() if side.dense else nullcontext()


def _times(start: float, prefilled: float, end: float, answer: int) -> Times:
    return Times(1e3 * (prefilled - start), 1e3 * (end - prefilled) / max(1, answer - 1))


@contextmanager
def _no_kept_prefills(system: CausalLM) -> Iterator[None]:
    before, system.prefill_state = system.prefill_state, None
    try:
        yield
    finally:
        system.prefill_state = before


def _compared(times: dict[str, list[Times]], phase: str) -> dict[str, Any]:
    """All sides in one phase, against the dense form that is the faster there."""
    chosen = {side: [getattr(run, phase) for run in runs] for side, runs in times.items()}
    dense = min((side for side in chosen if side != OWN), key=lambda side: float(np.median(chosen[side])))
    return compared(chosen, dense)


def _speed(phase: str, found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    own, dense = found["sides"][OWN], found["sides"][found["baseline"]]
    name = {"prefill": "time to first token, ms", "decode": "time per token, ms"}[phase]
    yield name, own["median_ms"]
    yield f"{name}, dense", dense["median_ms"]
    yield f"{phase} speed-up", own["ratio"]
    yield f"{phase} speed-up, low", own["ratio_interval"][0]
    yield f"{phase} speed-up, high", own["ratio_interval"][1]


def _joules(phase: str, found: dict[str, Any], energy: dict[str, Any]) -> Iterator[tuple[str, float]]:
    name = {"prefill": "prompt", "decode": "token"}[phase]
    if energy:
        yield f"energy of a {name}, J", energy[f"joules of a {name}"][OWN]
        yield f"energy of a {name}, J, dense", energy[f"joules of a {name}"][found["baseline"]]
