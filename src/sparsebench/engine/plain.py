"""Plain calls of models that cannot run packed: recurrent layers, ALiBi, attention of their own.

No sequence is padded, since padding would reach recurrent states, and caches of unlike lengths do not mix: sequences of
equal length are scored together, and texts are generated one at a time. Methods see the same phases as in packed rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsebench.engine.flow import Flow
from sparsebench.engine.generation import Prompt, choose, ended
from sparsebench.engine.scoring import Scored, TokenScores, logprobs_of

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM


def score(system: CausalLM, requests: Sequence[Scored]) -> list[TokenScores]:
    """As `scoring.score`."""
    results = [TokenScores(np.zeros(r.scored), np.zeros(r.scored, dtype=bool)) for r in requests]
    for batch in _batches(requests, system.batch_tokens):
        ids = np.array([requests[i].tokens[:-1] for i in batch], dtype=np.int64)
        count = max(requests[i].scored for i in batch)
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        flow = _flow(system, positions, np.array([requests[i].prefill for i in batch]))
        with torch.inference_mode(), _flowing(system, flow):
            logits = _last_logits(system, torch.from_numpy(ids).to(system.device), count)
        for row, index in enumerate(batch):
            request = requests[index]
            own = logits[row, count - request.scored :]
            targets = torch.tensor(request.tokens[len(request.tokens) - request.scored :]).to(own.device)
            values, greedy = logprobs_of(own, torch.arange(request.scored, device=own.device), targets)
            results[index].logprobs[:] = values.cpu()
            results[index].greedy[:] = greedy.cpu()
            phases = np.arange(ids.shape[1])[ids.shape[1] - request.scored :] >= request.prefill
            for phase, chosen in (("prefill", ~phases), ("decode", phases)):
                if chosen.any():
                    system.counters.add(f"{phase}.scored", int(chosen.sum()))
    return results


def _batches(requests: Sequence[Scored], tokens: int) -> Iterator[list[int]]:
    """Requests of equal length, at most so many tokens at a time but at least one request."""
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].tokens))
    for length, group in groupby(order, key=lambda i: len(requests[i].tokens)):
        same = list(group)
        step = max(1, tokens // max(length - 1, 1))
        yield from (same[i : i + step] for i in range(0, len(same), step))


def _last_logits(system: CausalLM, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Logits of the last `count` tokens, [sequences, count, vocabulary]."""
    options: dict[str, Any] = {"use_cache": False}
    if count and "logits_to_keep" in inspect.signature(system.model.forward).parameters:
        options["logits_to_keep"] = count
    logits: torch.Tensor = system.model(input_ids=ids, **options).logits
    return logits[:, logits.shape[1] - count :]


def _flow(system: CausalLM, positions: np.ndarray, prefill: np.ndarray) -> Flow:
    """The phases of the tokens of a call, which are counted.

    Args:
        system: The model.
        positions: Position of each token in its sequence, [sequences, tokens].
        prefill: Length of the prefill part of each sequence, [sequences].
    """
    decode = positions >= prefill[:, None]
    for phase, chosen in (("prefill", ~decode), ("decode", decode)):
        if chosen.any():
            system.count_queries(phase, (positions[chosen] + 1).tolist())
    prompts = np.broadcast_to(prefill[:, None], positions.shape)
    flat = (torch.from_numpy(array.reshape(-1).copy()).to(system.device) for array in (decode, positions, prompts))
    return Flow(None, None, *flat)


@contextmanager
def _flowing(system: CausalLM, flow: Flow | None = None) -> Iterator[None]:
    """Within the context what is attached to the model sees this flow; on exit the one before it."""
    previous, system.flow = system.flow, flow
    try:
        yield
    finally:
        system.flow = previous


def generate(system: CausalLM, prompts: Sequence[Prompt]) -> list[str]:
    """As `generation.generate`."""
    return [_Continuation(system, prompt, index).run() for index, prompt in enumerate(prompts)]


class _Continuation:
    """One text, through the model's own `generate`, which knows its caches and states.

    The model's own defaults of generation (penalties, sampling, lengths) play no part.
    """

    def __init__(self, system: CausalLM, prompt: Prompt, index: int) -> None:
        self.system = system
        self.prompt = prompt
        self.index = index
        self.generated: list[int] = []
        self.text: str | None = None

    def run(self) -> str:
        """The text."""
        from transformers import GenerationConfig

        model = self.system.model
        ids = torch.tensor([list(self.prompt.tokens)], device=self.system.device)
        own, model.generation_config = model.generation_config, GenerationConfig()
        hook = model.register_forward_pre_hook(self._before_call, with_kwargs=True)
        try:
            with torch.inference_mode(), _flowing(self.system):
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=GenerationConfig(
                        max_new_tokens=self.prompt.limit, do_sample=False, use_cache=True, pad_token_id=0
                    ),
                    logits_processor=[self._choose],
                    stopping_criteria=[self._stop],
                )
        finally:
            hook.remove()
            model.generation_config = own
        return self.text or ""

    def _choose(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The token that the prompt's sampling chooses gets all of the probability."""
        (token,) = choose(logits, [self.prompt], [self.index], [len(self.generated)])
        self.generated.append(token)
        only = torch.full_like(logits, -torch.inf)
        only[:, token] = 0
        return only

    def _stop(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.text = ended(self.system, self.prompt, self.generated)
        return torch.tensor([self.text is not None], device=ids.device)

    def _before_call(self, module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Tell the phases of the tokens that the model is called with."""
        ids = args[0] if args else options["input_ids"]
        seen, prefill = len(self.prompt.tokens) + len(self.generated), self.prompt.prefill
        self.system.flow = _flow(self.system, np.arange(seen - ids.shape[1], seen)[None], np.array([prefill]))
        self.system.counters.add("decode.scored" if seen > prefill else "prefill.scored", 1)
