"""Whether a model may run packed: found out by trying, since no flag of transformers says so reliably.

Packed rows need a model whose every block attends through transformers' `AttentionInterface` and whose other layers
look at one token at a time. Recurrent and convolutional layers, ALiBi and attention of a model's own would silently mix
the rows of a chunk. Such models run through plain calls; see `plain`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsebench.engine import trie
from sparsebench.engine.attention import AttentionView, attend_dense
from sparsebench.engine.forward import TreeRun
from sparsebench.engine.scoring import NOT_FINITE
from sparsebench.errors import InputError
from sparsebench.systems.counters import Counters

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

TOLERANCE = {torch.float16: 0.03, torch.bfloat16: 0.1}
"""Largest relative error of the logits of a sequence that is rounding; for other dtypes `EXACT`."""
EXACT = 1e-3
SHARED, FIRST, SECOND = 16, 8, 12
"""Tokens of the trial: two sequences with a common beginning."""


def obstacle(system: CausalLM) -> str:
    """Why a model cannot run packed; empty if it can. Hooks of adapters should not be attached yet.

    Raises:
        InputError: What the model says of a token depends on later tokens, or its logits are no finite numbers.
    """
    from sparsebench.systems.loading import quiet

    if "chunked_attention" in (getattr(system.config, "layer_types", None) or ()):
        return "it attends within chunks"
    sequences = _trial(int(system.model.get_input_embeddings().weight.shape[0]))
    tolerance = TOLERANCE.get(system.dtype, EXACT)
    before = (system.policy, system.counters)
    system.policy, system.counters = None, Counters()
    try:
        with quiet():
            wanted = [_plain(system, sequence) for sequence in sequences]
            if not all(bool(logits.isfinite().all()) for logits in wanted):
                raise InputError(NOT_FINITE)
            beginning = _plain(system, sequences[0][:SHARED])
            if relative_error(wanted[0][:SHARED], beginning) > tolerance:
                raise InputError(
                    f"{type(system.model).__name__} is not causal: what it says of a token depends on later tokens",
                    "an encoder is no language model under test",
                )
            system.policy = watcher = _Watcher()
            try:
                found = _packed(system, sequences)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whatever a model raises that cannot take rows
                return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        system.policy, system.counters = before
    return _difference(system, watcher, [relative_error(f, w) for f, w in zip(found, wanted, strict=True)], tolerance)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Distance of logits [tokens, vocabulary] over their size, each row shifted to mean 0; NaN is infinitely far."""
    a, b = (x.double() - x.double().mean(dim=-1, keepdim=True) for x in (found, wanted))
    error = float((a - b).norm() / b.norm().clamp(min=1e-12))
    return error if error == error else float("inf")


class _Watcher:
    """Attends densely, and notes which layers came and with which window."""

    def __init__(self) -> None:
        self.windows: dict[int, int | None] = {}

    def attend(self, view: AttentionView) -> torch.Tensor:
        self.windows[view.layer] = view.window
        return attend_dense(view)


def _difference(system: CausalLM, watcher: _Watcher, errors: list[float], tolerance: float) -> str:
    layers = len(system.blocks)
    if sorted(watcher.windows) != list(range(layers)):
        return f"{len(watcher.windows)} of its {layers} blocks attend through AttentionInterface"
    if max(errors) > tolerance:
        return f"its logits differ by {max(errors):.2g} in packed rows"
    try:
        windows = system.shape.windows
    except InputError:
        return ""
    for layer, window in enumerate(windows):
        if window and watcher.windows[layer] != window:
            return f"layer {layer} does not tell AttentionInterface its window of {window}"
    return ""


def _trial(vocabulary: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    common, one, other = (generator.integers(0, vocabulary, size) for size in (SHARED, FIRST, SECOND))
    return [np.concatenate([common, one]), np.concatenate([common, other])]


def _plain(system: CausalLM, tokens: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.from_numpy(tokens).to(system.device)
        logits: torch.Tensor = system.model(input_ids=ids[None], use_cache=False).logits[0]
    return logits


def _packed(system: CausalLM, sequences: list[np.ndarray]) -> list[torch.Tensor]:
    """Logits of all tokens of the sequences, their common beginning computed once.

    Each part is a call of its own, as in a long run: its keys must be found again as they were left. Every other token
    is asked for in one run and the rest in another: a model that does not give the logits it is asked for is seen.
    """
    found: dict[tuple[int, int], torch.Tensor] = {}

    def collect(places: list[tuple[int, int]], logits: torch.Tensor) -> None:
        found.update(zip(places, logits, strict=True))

    for first in (0, 1):
        nodes = trie.build([trie.TokenSequence(sequence, len(sequence)) for sequence in sequences])
        run = TreeRun(system, nodes, [np.arange(first, len(node.tokens), 2) for node in nodes])
        for index in range(len(nodes)):
            run.run_chunk([index], collect)
    results: dict[int, torch.Tensor] = {}
    for leaf, node in enumerate(nodes):
        for sequence in node.sequences:
            places: list[Any] = [(i, offset) for i in run.path(leaf) for offset in range(len(nodes[i].tokens))]
            results[sequence] = torch.stack([found[place] for place in places])
    return [results[i] for i in range(len(sequences))]
