"""Log-likelihoods of token sequences: what lm-eval's `loglikelihood` and perplexity windows need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsebench.engine import trie
from sparsebench.engine.forward import TreeRun
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

NOT_FINITE = "the model's logits are no finite numbers"
LOGITS = {"cpu": 2**20, "cuda": 2**26}
"""Logits that are turned into float32 log-probabilities at a time, by type of device: what its cache likes."""


@dataclass(frozen=True)
class Scored:
    """A sequence whose last `scored` tokens are to be scored.

    Attributes:
        tokens: Prompt and continuation, [length].
        scored: How many tokens at the end are scored; each is predicted from all before it.
        prefill: Tokens that run in the prefill phase; the others run in decode.
    """

    tokens: Sequence[int]
    scored: int
    prefill: int


@dataclass
class TokenScores:
    """What a model says of the scored tokens of one sequence.

    Attributes:
        logprobs: Natural-log probability of each scored token, float64 [scored].
        greedy: Whether each is the model's first choice, bool [scored].
    """

    logprobs: np.ndarray
    greedy: np.ndarray


def score(system: CausalLM, requests: Sequence[Scored]) -> list[TokenScores]:
    """Score sequences, packed where the model can, else through plain calls.

    The last token of a sequence is never fed, since nothing is predicted from it; a sequence of which nothing is scored
    is not run.

    Raises:
        InputError: The model's logits are no finite numbers.
    """
    from sparsebench.engine import plain

    asked = [request for request in requests if request.scored]
    found = iter(_score_packed(system, asked) if system.packed else plain.score(system, asked))
    results = [next(found) if r.scored else TokenScores(np.zeros(0), np.zeros(0, dtype=bool)) for r in requests]
    if not all(np.isfinite(scores.logprobs).all() for scores in results):
        raise InputError(NOT_FINITE)
    return results


def _score_packed(system: CausalLM, requests: Sequence[Scored]) -> list[TokenScores]:
    """Score sequences in packed rows, computing common beginnings once."""
    results = [TokenScores(np.full(r.scored, np.nan), np.zeros(r.scored, dtype=bool)) for r in requests]
    # A sequence of one token has nothing before its scored token; the caller puts a prefix token there.
    sequences = [
        trie.TokenSequence(np.asarray(r.tokens[:-1], dtype=np.int64), min(r.prefill, len(r.tokens) - 1))
        for r in requests
    ]
    nodes = trie.build(sequences, share=system.prefix_invariant)
    wanted, targets = _targets(nodes, requests)
    run = TreeRun(system, nodes, wanted)

    def collect(places: list[tuple[int, int]], logits: torch.Tensor) -> None:
        asked = [(row, *target) for row, (node, offset) in enumerate(places) for target in targets[node][offset]]
        rows, tokens = (torch.tensor(x, device=logits.device) for x in zip(*((a[0], a[3]) for a in asked), strict=True))
        values, greedy = logprobs_of(logits, rows, tokens)
        for (_, request, place, _), value, first_choice in zip(asked, values.tolist(), greedy.tolist(), strict=True):
            results[request].logprobs[place] = value
            results[request].greedy[place] = first_choice

    run.run(collect)
    return results


def logprobs_of(logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, computed in float32, of one token in some rows of logits.

    Args:
        logits: [n, vocabulary].
        rows: Rows that are asked for, rising, [k].
        tokens: A token in each of them, [k].

    Returns:
        The natural-log probabilities, float64 [k], and whether each is its row's first choice, bool [k].
    """
    step = max(1, LOGITS.get(logits.device.type, LOGITS["cuda"]) // logits.shape[1])
    starts = range(0, len(logits), step)
    borders = torch.searchsorted(rows, torch.tensor([*starts, len(logits)], device=rows.device)).tolist()
    values, greedy = [], []
    room = torch.empty(
        (step, logits.shape[1]), device=logits.device
    )  # memory that is asked for anew must be cleared anew
    for start, (begin, end) in zip(starts, pairwise(borders), strict=True):
        own, asked = logits[start : start + step], tokens[begin:end]
        places = rows[begin:end] - start
        torch.log_softmax(own, dim=-1, dtype=torch.float32, out=room[: len(own)])
        values.append(room[places, asked])
        # The largest logit takes a third of the time of its place, which matters only where it is the one asked for.
        greedy.append(_are_first(own, own.amax(dim=-1), places, asked))
    return torch.cat(values).double(), torch.cat(greedy)


def _are_first(logits: torch.Tensor, largest: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Whether each token is its row's first choice: of equal logits that is the first token. Bool [k]."""
    found = logits[rows, tokens] == largest[rows]
    at = found.nonzero()[:, 0]
    if logits.device.type == "cpu":  # copies of rows would cost more than steps of Python
        for k, row, token in zip(at.tolist(), rows[at].tolist(), tokens[at].tolist(), strict=True):
            found[k] = not bool((logits[row, :token] == largest[row]).any())
    elif len(at):
        before = torch.arange(logits.shape[1], device=logits.device) < tokens[at, None]
        found[at] = ~((logits[rows[at]] == largest[rows[at], None]) & before).any(dim=-1)
    return found


def _targets(
    nodes: list[trie.Node], requests: Sequence[Scored]
) -> tuple[list[np.ndarray | None], list[dict[int, list[tuple[int, int, int]]]]]:
    """For each node the offsets that predict scored tokens, and what they predict: (request, place, token)."""
    targets: list[dict[int, list[tuple[int, int, int]]]] = [{} for _ in nodes]
    for index, node in enumerate(nodes):
        for request in node.sequences:
            wanted = requests[request]
            first = len(wanted.tokens) - wanted.scored  # index of the first scored token
            at: int = index
            for place in range(wanted.scored - 1, -1, -1):
                position = first + place - 1
                while nodes[at].start > position:
                    at = nodes[at].parent
                offset = position - nodes[at].start
                token = int(wanted.tokens[first + place])
                targets[at].setdefault(offset, []).append((request, place, token))
    wanted_offsets = [np.array(sorted(t), dtype=np.int64) if t else None for t in targets]
    return wanted_offsets, targets
