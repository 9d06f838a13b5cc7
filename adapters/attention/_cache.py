"""Cache methods: at the end of prefill a method says what each key of the prompt is worth, and a budget of them stays.

Prefill attends as it would without the method. From then on a query reads the keys that were kept and those decoded
after them; a method that evicts in decode as well decides anew at each step. What is kept depends on the whole prompt,
so prompts share no prefixes; questions on one context share the context and what was kept of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from sparsebench.adapters.attention.base import AttentionAdapter, Selector
from sparsebench.cost import Cost, ModelShape, PhaseCosts, Request, dense_cost
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.adapters.base import Prepared
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionPolicy, AttentionView
    from sparsebench.systems.causal_lm import CausalLM

Protocol = Literal["query-agnostic", "query-aware"]
"""`query-agnostic`: the cache is cut at the end of the context, before any question is seen; `query-aware`: before the
last token of the prompt. A task that marks no context is query-aware either way."""


DOUBT = "whether there was NaN among the scores of a prompt"
"""Where it stands in what is known of a prompt, until a device is asked."""


def unsound(method: str, layer: int) -> InputError:
    """What to say of scores that rank nothing."""
    return InputError(f"{method}: `score` gives what is not a number (NaN) in layer {layer}")


class PromptAdapter(AttentionAdapter):
    """A method that looks at each prompt once, at the end of prefill, and acts in decode on what it remembers of it."""

    protocol: Protocol = "query-agnostic"

    def scoring(self, shape: ModelShape, length: int, window: int | None) -> tuple[float, float]:
        """FLOPs of looking at a prompt in one layer, and bytes read for it."""
        return 0.0, 0.0

    def prefix_invariant(self) -> bool:
        """Never, whatever the card says: what is remembered of a prompt depends on all of it."""
        return False

    def sees_whole_prompt(self) -> bool:
        """See `AttentionAdapter.sees_whole_prompt`."""
        return self.protocol == "query-aware"

    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """What decoded queries read, by what the states of the view hold of their prompts."""
        return self.selector(prepared).select(view, allowance)

    def policy(
        self, system: CausalLM, prepared: Prepared, budget: Budget | None, inner: AttentionPolicy | None
    ) -> AttentionPolicy:
        """See `AttentionAdapter.policy`."""
        from sparsebench.adapters.attention._eviction import CachePolicy

        return CachePolicy(self, system, prepared, budget, inner)


class CacheAdapter(PromptAdapter):
    """A method that evicts keys. Subclasses set `card` and write `score`; one with a rule of its own writes `keep`."""

    @abstractmethod
    def score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """What each key of a prompt is worth, float32 [kv_heads, keys]; infinite where it must stay.

        Args:
            prompt: One row, the whole of what ran in prefill, without padding: query i is at position i. Its tensors
                have the axis of rows all the same: `prompt.key[0]` is [kv_heads, keys, head_dim].
            prepared: What `prepare` left.
        """

    def checked_score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """`score`, or an error.

        Raises:
            InputError: There is not one for each key of each key head, or one is not a number.
        """
        from sparsebench.adapters.attention._selection import ASKED

        score = self.score(prompt, prepared)
        wanted = prompt.key.shape[1:3]
        if score.shape != wanted:
            raise InputError(
                f"{self.card.id}: `score` gives {list(score.shape)} in layer {prompt.layer}, "
                f"not [kv_heads, keys] = {list(wanted)}",
                "a prompt is one row: of its tensors take the first, as in `prompt.key[0]`",
            )
        doubt = score.isnan().any()
        if doubt.device.type not in ASKED:  # whoever cuts prompts asks for all of them at once
            prompt.geometry.memo[DOUBT] = doubt
        elif bool(doubt):
            raise unsound(self.card.id, prompt.layer)
        return score

    def keep(self, prompt: AttentionView, count: int, prepared: Prepared) -> torch.Tensor:
        """Which keys of a prompt stay, bool [kv_heads, keys]; the `count` best of each head, of equal ones the first.

        Args:
            prompt: As in `score`.
            count: Keys that a head keeps, on average over heads; never more than can be seen later.
            prepared: What `prepare` left.
        """
        from sparsebench.adapters.attention._eviction import best, within_reach

        return best(self.checked_score(prompt, prepared), within_reach(prompt), count)

    def share_of_layer(self, count: int, available: int, layer: int, layers: int) -> int:
        """Keys of each head that one layer keeps where the layers keep `count` on average.

        Args:
            count: The mean.
            available: Keys that there are to keep.
            layer: Its place among the layers that have these keys available; see `among_alike`.
            layers: How many these are.
        """
        return count

    def held(self, allowance: Allowance, available: int, layer: int, layers: int) -> int:
        """Keys of each head that a layer keeps of `available` ones; at least 1 where there is one.

        `layer` and `layers` are as in `share_of_layer`.
        """
        if allowance.tokens is not None:
            count = allowance.tokens
        else:
            density = 1.0 if allowance.density is None else allowance.density
            count = int(density * available + 1e-9)
        count = min(max(count, 1), available)
        return min(max(self.share_of_layer(count, available, layer, layers), min(1, available)), available)

    def selector(self, prepared: Prepared) -> Selector:
        """See `AttentionAdapter.selector`."""
        from sparsebench.adapters.attention._eviction import KeptKeys

        return KeptKeys(self, prepared)

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """Predicted cost: dense prefill and scoring, then decode over what is held."""
        from sparsebench.adapters.attention._allowance import Allowance

        shape: ModelShape = system.shape
        dense = dense_cost(shape, request)
        if budget is None or not request.prompt:
            return dense
        whole = self.dense_layers(shape.layers)
        allowance = Allowance.of(budget).beside_dense(shape.layers, len(whole))
        flops = read = 0.0
        pairs = final = 0.0
        for layer, window in enumerate(shape.windows):
            if window == 0:
                continue
            seen = _seen(request, window)
            if layer in whole:
                steps = seen
            else:
                one = self.scoring(shape, request.prompt, window)
                flops, read = flops + request.batch * one[0], read + request.batch * one[1]
                steps = self._reads(request, window, *among_alike(shape.windows, layer), allowance)
            pairs, final = pairs + sum(steps), final + (steps[-1] if steps else 0.0)
        return PhaseCosts(
            prefill=replace(
                dense.prefill,
                index=flops,
                bytes_kv_read=dense.prefill.bytes_kv_read + read,
            ),
            decode=_decode(dense.decode, shape, request.batch, pairs, final),
        )

    def _reads(
        self, request: Request, window: int | None, layer: int, layers: int, allowance: Allowance
    ) -> list[float]:
        """Keys that each decoded query reads in one layer; of those kept, a window loses an even share at each step."""
        available = reachable(request.prompt, window)
        kept = self.held(allowance, available, layer, layers)
        steps = []
        for step in range(request.answer):
            left = available if window is None else max(0, min(available, window - 1 - step))
            decoded = step + 1 if window is None else min(step + 1, window)
            steps.append(kept * left / max(available, 1) + decoded)
        return steps


class StepwiseCache(CacheAdapter):
    """A method that evicts at each decoded token too: a query reads its budget, its own key included.

    `score` says what the prompt's keys are worth to begin with, `update` what they are worth after a query.
    """

    @abstractmethod
    def update(self, worth: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What keys are worth after a query has read them, float32 [rows, kv_heads, keys].

        Args:
            worth: What they were worth before it, float32 [rows, kv_heads, keys].
            weights: The query's attention, float32 [rows, kv_heads, group, keys]; zero where it did not read.
        """

    def recent(self, count: int) -> int:
        """How many of the last keys, out of `count` that stay, are never evicted."""
        return 0

    def keep(self, prompt: AttentionView, count: int, prepared: Prepared) -> torch.Tensor:
        """All keys that can be seen later: the first decoded query evicts."""
        from sparsebench.adapters.attention._eviction import within_reach

        return within_reach(prompt).expand(prompt.key.shape[1], -1)

    def selector(self, prepared: Prepared) -> Selector:
        """See `AttentionAdapter.selector`."""
        from sparsebench.adapters.attention._eviction import StepByStep

        return StepByStep(self, prepared)

    def _reads(
        self, request: Request, window: int | None, layer: int, layers: int, allowance: Allowance
    ) -> list[float]:
        return [float(self.held(allowance, int(seen), layer, layers)) for seen in _seen(request, window)]


def among_alike(windows: Sequence[int | None], layer: int) -> tuple[int, int]:
    """The place of a layer among those that have the same window, and their number.

    Where layers are given unlike shares of a budget, a mean over layers is kept only among those that see as much.

    >>> among_alike((24, None, 24, None), 2)
    (1, 2)
    """
    own = windows[layer]
    return sum(window == own for window in windows[:layer]), sum(window == own for window in windows)


def reachable(length: int, window: int | None) -> int:
    """How many keys of a prompt the first query after it sees."""
    return length if window is None else min(length, window - 1)


def _seen(request: Request, window: int | None) -> list[float]:
    """Keys that dense attention reads at each decoded token."""
    return [float(min(request.prompt + step + 1, window or 2**62)) for step in range(request.answer)]


def _decode(dense: Cost, shape: ModelShape, batch: int, pairs: float, final: float) -> Cost:
    keys = batch * shape.kv_heads * shape.key_bytes
    return replace(
        dense,
        attention=batch * shape.heads * shape.pair_flops * pairs,
        bytes_kv_read=keys * pairs,
        bytes_kv_resident=keys * final,
    )
