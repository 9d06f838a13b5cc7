"""Generation: prompts as a tree, then one lane for each sequence, refilled as sequences end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsebench.engine import trie
from sparsebench.engine.correction import Correction, Verdict, Window, count_moved, count_spared, verdicts
from sparsebench.engine.flow import Lanes
from sparsebench.engine.forward import TreeRun, step
from sparsebench.engine.graphs import Playback
from sparsebench.engine.grown import forget
from sparsebench.engine.reuse import Prefills
from sparsebench.engine.scoring import NOT_FINITE
from sparsebench.engine.transfer import sent
from sparsebench.errors import InputError
from sparsebench.identity import seed_of

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; greedy at temperature 0."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Prompt:
    """What is to be continued.

    Attributes:
        tokens: The prompt, at least one token.
        prefill: Tokens that run in the prefill phase; the rest of the prompt runs in decode, query by query.
        until: The text ends before the first of these strings.
        limit: Most tokens to generate.
        stop_tokens: Token ids that end the text.
        sampling: How tokens are chosen.
    """

    tokens: Sequence[int]
    prefill: int
    until: tuple[str, ...]
    limit: int
    stop_tokens: frozenset[int]
    sampling: Sampling = Sampling()


@dataclass
class _Lane:
    request: int
    node: int
    generated: list[int]
    dense: int
    """Positions whose keys the dense model computed, where it corrects."""
    states: list[dict[Any, Any]] = field(default_factory=list)
    """What a method remembers of the prompt's nodes, and last of this text alone."""


class Generator:
    """Continue prompts, as many at a time as `system.lanes` allows.

    Args:
        system: The model, with whatever is attached to it.
        prompts: What is to be continued.
        playback: Records steps and plays them back; None: each is run.
    """

    def __init__(self, system: CausalLM, prompts: Sequence[Prompt], playback: Playback | None = None) -> None:
        self.system = system
        self.playback = playback
        self.prompts = prompts
        self.texts = [""] * len(prompts)
        self.tokens: list[list[int]] = [[] for _ in prompts]
        sequences = [trie.TokenSequence(np.asarray(p.tokens, dtype=np.int64), p.prefill) for p in prompts]
        self.nodes = trie.build(sequences, share=system.prefix_invariant)
        wanted = [np.array([len(node.tokens) - 1]) if node.sequences else None for node in self.nodes]
        self.run_tree = TreeRun(system, self.nodes, wanted, keep_leaves=True)
        self.prefilled_at = 0.0
        """`time.perf_counter()` when the last prompt so far was computed and its first token chosen."""

    def run(self) -> list[str]:
        """The generated texts, in the order of the prompts."""
        if not self.prompts:
            return []
        room = max(len(p.tokens) + p.limit for p in self.prompts)
        count = max(1, min(self.system.lanes_for(room), len(self.prompts)))
        lanes = Lanes(count, room)
        free = deque(range(count))
        active: dict[int, _Lane] = {}
        waiting: deque[tuple[int, int, int]] = deque()  # request, node, first token
        chunks = self.run_tree.chunks()
        exhausted = False
        if (kept := Prefills.of(self.system)) is not None:
            kept.next_turn()
        while True:
            # Prompts are computed only as lanes come free, so that their keys do not pile up.
            while not exhausted and len(waiting) < len(free):
                chunk = next(chunks, None)
                if chunk is None:
                    exhausted = True
                    break
                self._prefill(chunk, waiting)
                self._admit(lanes, free, active, waiting)
            self._admit(lanes, free, active, waiting)
            if not active:
                if exhausted and not waiting:
                    break
                continue
            self._close_up(lanes, free, active)
            self._step(lanes, free, active)
        if self.playback is not None:
            self.playback.close()
        return self.texts

    def _prefill(self, chunk: list[int], waiting: deque[tuple[int, int, int]]) -> None:
        def first_tokens(places: list[tuple[int, int]], logits: torch.Tensor) -> None:
            asked = [(row, node, r) for row, (node, _) in enumerate(places) for r in self.nodes[node].sequences]
            chosen = self._choose(logits[[row for row, _, _ in asked]], [request for _, _, request in asked])
            waiting.extend((request, node, token) for (_, node, request), token in zip(asked, chosen, strict=True))

        self.run_tree.run_chunk(chunk, first_tokens)
        self.prefilled_at = time.perf_counter()

    def _admit(
        self, lanes: Lanes, free: deque[int], active: dict[int, _Lane], waiting: deque[tuple[int, int, int]]
    ) -> None:
        """Give free lanes to sequences that wait; those whose first token ends them need none."""
        places: list[int] = []
        while waiting and free:
            request, node, token = waiting.popleft()
            lane = _Lane(request, node, [token], self.prompts[request].prefill)
            if self.system.correction is not None or not self._finished(lane):
                places.append(free.popleft())
                active[places[-1]] = lane
                lane.states = [*(self.nodes[i].state for i in self.run_tree.path(node)), {}]
            else:
                self._leave(lane)
        slots = [self.run_tree.slots_of(active[place].node) for place in places]
        lanes.load(self.run_tree.store, places, slots)
        for place in places:
            self._leave(active[place])
        if self.system.correction is not None:
            self._settle(lanes, free, active, places)

    def _close_up(self, lanes: Lanes, free: deque[int], active: dict[int, _Lane]) -> None:
        """Move the last lanes into free ones before them: a step reads lanes that lie together as they are."""
        holes = [place for place in range(len(active)) if place not in active]
        if not holes:
            return
        movers = sorted(place for place in active if place >= len(active))
        lanes.move(movers, holes)
        for old, new in zip(movers, holes, strict=True):
            active[new] = active.pop(old)
        free.clear()
        free.extend(range(len(active), lanes.lanes))

    def _leave(self, lane: _Lane) -> None:
        """The keys of a prompt are in its lane, or not needed: the tree may drop them."""
        node = self.nodes[lane.node]
        node.sequences = [s for s in node.sequences if s != lane.request]
        if not node.sequences:
            self.run_tree.release(lane.node)

    def _step(self, lanes: Lanes, free: deque[int], active: dict[int, _Lane]) -> None:
        places = range(len(active))
        device = self.system.device
        current = [active[p] for p in places]
        prompts = [self.prompts[lane.request] for lane in current]
        tokens, prefills = [lane.generated[-1] for lane in current], [p.prefill for p in prompts]
        ends = [len(p.tokens) + len(lane.generated) for p, lane in zip(prompts, current, strict=True)]
        states = [lane.states for lane in current]
        self.system.count_decode(ends)
        logits = None
        if self.playback is not None:
            logits = self.playback.logits(lanes, tokens, ends, prefills, states)
        if logits is None:
            lengths = lanes.step(ends, states, device)
            ids, begun = (sent(np.array(numbers, dtype=np.int64), device) for numbers in (tokens, prefills))
            logits = step(self.system, lanes, ids, lengths, begun)
        chosen = self._choose(logits, [lane.request for lane in current])
        for lane, token in zip(current, chosen, strict=True):
            lane.generated.append(token)
        self._settle(lanes, free, active, places)

    def _settle(self, lanes: Lanes, free: deque[int], active: dict[int, _Lane], places: Sequence[int]) -> None:
        """Correct what a method that corrects asks for, and free the lanes of sequences that have ended."""
        if self.system.correction is not None:
            self._correct(lanes, active, self.system.correction, places)
        for place in places:
            if self._finished(active[place]):
                del active[place]
                free.append(place)

    def _correct(self, lanes: Lanes, active: dict[int, _Lane], policy: Correction, places: Sequence[int]) -> None:
        """Let the dense model judge windows that are full, and what sequences end with."""
        due = [place for place in places if self._due(active[place], policy)]
        if not due:
            return
        windows = [self._window(place, active[place]) for place in due]
        found = verdicts(self.system, lanes, windows, policy)
        forget(active[place].states[-1] for place in due)  # the dense model wrote their keys anew
        for place, window, verdict in zip(due, windows, found, strict=True):
            self._follow(active[place], window, verdict)

    def _due(self, lane: _Lane, policy: Correction) -> bool:
        prompt = self.prompts[lane.request]
        length = len(prompt.tokens) + len(lane.generated)
        if lane.dense == length - 1:  # the dense model itself chose the last token
            return False
        unread = length - max(lane.dense, len(prompt.tokens))
        return unread >= policy.every or ended(self.system, prompt, lane.generated) is not None

    def _window(self, place: int, lane: _Lane) -> Window:
        prompt = self.prompts[lane.request].tokens
        tokens = [*prompt, *lane.generated][lane.dense :]
        return Window(place, tokens, lane.dense, max(1, len(prompt) - lane.dense))

    def _follow(self, lane: _Lane, window: Window, verdict: Verdict) -> None:
        """Take back what was refused, and go on with the dense model's own choice."""
        refused = len(window.tokens) - verdict.kept
        if not refused and ended(self.system, self.prompts[lane.request], lane.generated) is not None:
            lane.dense = window.end
            return
        if refused:
            self.system.counters.add("decode.correction.replaced", 1)
            self.system.counters.add("decode.correction.taken_back", refused)
            del lane.generated[-refused:], self.tokens[lane.request][-refused:]
            count_moved(self.system, range(window.end - refused, window.end - 1))
        else:
            count_spared(self.system, window.end - 1)
        lane.generated += self._choose(verdict.logits[None], [lane.request])
        lane.dense = window.start + verdict.kept

    def _choose(self, logits: torch.Tensor, requests: list[int]) -> list[int]:
        prompts = [self.prompts[request] for request in requests]
        best = choose(logits, prompts, requests, [len(self.tokens[request]) for request in requests])
        for request, token in zip(requests, best, strict=True):
            self.tokens[request].append(token)
        return best

    def _finished(self, lane: _Lane) -> bool:
        text = ended(self.system, self.prompts[lane.request], lane.generated)
        if text is not None:
            self.texts[lane.request] = text
        return text is not None


def generate(system: CausalLM, prompts: Sequence[Prompt]) -> list[str]:
    """The texts that continue the prompts, in their order: packed where the model can, else through plain calls."""
    if system.packed:
        return Generator(system, prompts).run()
    from sparsebench.engine import plain

    return plain.generate(system, prompts)


def ended(system: CausalLM, prompt: Prompt, generated: Sequence[int]) -> str | None:
    """The text of the generated tokens if they end it (a stop token or string, or the limit), else None."""
    stopped = generated[-1] in prompt.stop_tokens
    if not (stopped or prompt.until or len(generated) >= prompt.limit):
        return None
    text = system.decode_tokens(generated[:-1] if stopped else generated)
    cuts = [text.find(stop) for stop in prompt.until if stop and stop in text]
    if not (stopped or cuts or len(generated) >= prompt.limit):
        return None
    return text[: min(cuts)] if cuts else text


def choose(
    logits: torch.Tensor, prompts: Sequence[Prompt], requests: Sequence[int], places: Sequence[int]
) -> list[int]:
    """The next token of each prompt.

    Args:
        logits: [prompts, vocabulary].
        prompts: How each is sampled.
        requests: The number of each prompt, for its random draws.
        places: How many tokens each has generated before.

    Raises:
        InputError: A logit is NaN.
    """
    highest, best = logits.max(dim=-1)
    if bool(highest.isnan().any()):
        raise InputError(NOT_FINITE)
    tokens: list[int] = best.tolist()
    for row, (prompt, request, place) in enumerate(zip(prompts, requests, places, strict=True)):
        if prompt.sampling.temperature > 0:
            tokens[row] = _sample(logits[row], prompt.sampling, request, place)
    return tokens


def _sample(logits: torch.Tensor, sampling: Sampling, request: int, place: int) -> int:
    """Draw a token; the draw depends on the request and the place only, not on what else is in the batch."""
    scaled = logits.float() / sampling.temperature
    if sampling.top_k > 0:
        scaled[scaled < scaled.topk(min(sampling.top_k, len(scaled))).values[-1]] = -torch.inf
    probabilities = torch.softmax(scaled, dim=-1).cpu().double()
    if sampling.top_p < 1:
        ranked, order = probabilities.sort(descending=True)
        outside = ranked.cumsum(0) - ranked >= sampling.top_p
        probabilities[order[outside]] = 0
    generator = torch.Generator().manual_seed(seed_of("sampling", sampling.seed, request, place))
    return int(torch.multinomial(probabilities, 1, generator=generator))
