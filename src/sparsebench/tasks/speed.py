"""Time to first token and time per token, in turns with the dense model.

Prompts are windows of a text, side by side from its beginning, and run as one batch: all are prefilled, then each is
continued greedily by the same number of tokens, which nothing ends before. A repetition times the system as it is and
the dense one in two forms, one after the other (`speed.protocol`): the engine's own, which is what the method replaces,
and transformers with its cache and its own attention, which the facts name. The speed-up of a phase is the ratio to the
form that is faster there by its median. The dense model's own row says what the turns leave: a ratio of 1, give or
take the noise.

Everything that a method does while it runs is timed: choosing, its lists, counting. Attaching it is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from sparsebench.data.digests import content_hash
from sparsebench.errors import InputError, UnknownNameError
from sparsebench.speed.protocol import REPETITIONS, compared, in_turns
from sparsebench.tasks.base import BoundTask, DefinedTask, TaskResult, Workload
from sparsebench.tasks.builders import build_rows
from sparsebench.tasks.definition import TaskDefinition

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

SHARE_ROUNDS = 2
OWN, ENGINE, TRANSFORMERS = "as it is", "dense, engine", "dense, transformers"
COLUMNS = ("prefill", "decode", "first_token_ms", "token_ms", "dense_first_token_ms", "dense_token_ms")


class Times(NamedTuple):
    """Milliseconds of one run of the batch: until all first tokens are chosen, and for each further token."""

    prefill: float
    decode: float


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
        built = build_rows(definition.build, definition.data, definition.options, tokenizer)
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
        own = self._engine if system.packed else self._transformers
        own(system)
        counted = dict(system.counters.sums)  # of one run
        sides: dict[str, Callable[[], Times]] = {OWN: lambda: own(system)}
        if system.packed:
            sides[ENGINE] = lambda: self._dense(system, self._engine)
        sides[TRANSFORMERS] = lambda: self._dense(system, self._transformers)
        times = in_turns(sides, self.repetitions)
        phases = {phase: _compared(times, phase) for phase in Times._fields}
        facts = self._facts(phases)
        with system.lifted():
            facts["attention of transformers"] = str(getattr(system.config, "_attn_implementation", ""))
            facts["time_shares"] = self._shares(system)
        system.counters.reset()
        for name, amount in counted.items():
            system.counters.add(name, amount)
        facts["speed"] = {name: value for phase, found in phases.items() for name, value in _speed(phase, found)}
        frame = pd.DataFrame({"sample": [f"repetition-{i}" for i in range(self.repetitions)]})
        frame["cluster"] = frame["sample"]
        for phase, name in (("prefill", "first_token_ms"), ("decode", "token_ms")):
            sides_ms = {side: np.array(found["times_ms"]) for side, found in phases[phase]["sides"].items()}
            dense = sides_ms[phases[phase]["baseline"]]
            frame[phase] = dense / sides_ms[OWN]
            frame[name], frame[f"dense_{name}"] = sides_ms[OWN], dense
        return TaskResult(frame, facts)

    def _dense(self, system: CausalLM, run: Callable[[CausalLM], Times]) -> Times:
        with system.lifted():
            return run(system)

    def _engine(self, system: CausalLM) -> Times:
        """One run through the engine, in which no prompt is known from before."""
        from sparsebench.engine.generation import Generator, Prompt

        late = 1 if system.decode_from_context_end else 0
        prompts = [Prompt(tokens, len(tokens) - late, (), self.answer, frozenset()) for tokens in self.prompts]
        with _no_kept_prefills(system):
            start = time.perf_counter()
            generator = Generator(system, prompts)
            generator.run()
            end = time.perf_counter()
        return self._times(start, generator.prefilled_at, end)

    def _transformers(self, system: CausalLM) -> Times:
        """One run as transformers generates: its own cache and attention."""
        import inspect

        import torch

        model = system.model
        one = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        tokens = torch.tensor(self.prompts, device=system.device)
        with torch.inference_mode():
            start = time.perf_counter()
            out = model(input_ids=tokens, use_cache=True, **one)
            chosen = out.logits[:, -1].argmax(dim=-1)
            chosen.tolist()  # waits for a GPU, as whoever prints the token does
            middle = time.perf_counter()
            for _ in range(self.answer - 1):
                out = model(input_ids=chosen[:, None], past_key_values=out.past_key_values, use_cache=True, **one)
                chosen = out.logits[:, -1].argmax(dim=-1)
                chosen.tolist()
            end = time.perf_counter()
        return self._times(start, middle, end)

    def _times(self, start: float, prefilled: float, end: float) -> Times:
        return Times(1e3 * (prefilled - start), 1e3 * (end - prefilled) / (self.answer - 1))

    def _shares(self, system: CausalLM) -> dict[str, dict[str, float]]:
        """Where the dense model spends its time in each phase; nothing where that is not known of its architecture."""
        from sparsebench.timeshares import measured_shares

        length = len(self.prompts[0])
        try:
            return {
                "prefill": measured_shares(system, length, rounds=SHARE_ROUNDS),
                "decode": measured_shares(system, length, self.answer, rounds=1),
            }
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
