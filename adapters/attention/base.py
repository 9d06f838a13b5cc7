"""The attention family: a method says which keys each query reads; everything else is here.

A method is a card, its knobs and `select`. The base class attaches it to the engine's rows and to plain calls of the
model alike, translates budgets, keeps phases and layers apart, applies the selection and counts what was really read:
pairs over query heads, the union over the heads of a group, pairs in touched tiles, and the work of choosing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from sparsebench.adapters.base import ExecutableAdapter, Prepared
from sparsebench.cost import Cost, ModelShape, PhaseCosts, Request, dense_cost, window_pairs
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.adapters.attention._allowance import Allowance
    from sparsebench.adapters.attention._selection import Selection
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionPolicy, AttentionView
    from sparsebench.systems.causal_lm import CausalLM

PhaseKnob = Literal["prefill", "decode", "both"]
Setting = Literal["paper", "scaled"]
"""`paper`: sizes as published; `scaled`: sizes in proportion to the prompt below `PAPER_LENGTH` tokens."""
PAPER_LENGTH = 32_768


class Selector(Protocol):
    """What chooses keys; a method itself, unless it must remember something from layer to layer."""

    def select(self, view: AttentionView, allowance: Allowance) -> Selection:
        """Which keys the queries of `view` read; called for every layer, in order, that is not dense."""
        ...

    def observe(self, view: AttentionView, allowance: Allowance) -> None:
        """Look at a layer that attends densely."""
        ...


class AttentionAdapter(ExecutableAdapter):
    """One sparse attention method. Subclasses set `card` and write `select`, and `index` where choosing costs.

    A knob `phase` (`prefill`, `decode` or `both`) narrows the phases of the card.
    """

    executes: ClassVar[tuple[str, ...]] = ("prefill", "decode")
    """Phases in which the method's selections can be executed."""

    def check_mode(self) -> None:
        """Whether the method can be executed, if it is to be.

        Raises:
            InputError: It cannot, in a phase in which it acts.
        """
        if self.mode == "simulated":
            return
        refused = [phase for phase in self.phases() if phase not in self.executes]
        if refused:
            able = [phase for phase in self.card.phases if phase in self.executes]
            narrower = f", or with phase: {able[0]}" if able and "phase" in type(self).model_fields else ""
            raise InputError(
                f"{self.card.id} cannot be executed in {' and '.join(refused)}: no code skips what it leaves out there",
                f"run it with mode: simulated{narrower}",
            )

    @abstractmethod
    def select(self, view: AttentionView, allowance: Allowance, prepared: Prepared) -> Selection:
        """Which keys the queries of `view` read.

        Rows may be padded and may have ancestors; a query may be chosen for by nothing that it does not see, unless the
        card says that the method is not prefix invariant, and never by another row.

        Args:
            view: Queries and keys of some rows in one layer, all in one phase.
            allowance: How much they may read; `allowance.counts(view)` is the number of keys of each query.
            prepared: What `prepare` left.
        """

    def index(self, shape: ModelShape, start: int, count: int, window: int | None) -> tuple[float, float]:
        """FLOPs of choosing, and bytes read for it, in one layer: `count` queries of a row from position `start`."""
        return 0.0, 0.0

    def index_held(self, shape: ModelShape, length: int, window: int | None) -> float:
        """Bytes that the index keeps beside the cache in one layer, for a row of that many tokens."""
        return 0.0

    def phases(self) -> tuple[str, ...]:
        """Phases in which the method acts with these knobs."""
        phase = getattr(self, "phase", "both")
        return self.card.phases if phase == "both" else (phase,)

    def acts_in_prefill(self) -> bool:
        """See `Adapter.acts_in_prefill`."""
        own_policy = type(self).policy is not AttentionAdapter.policy  # may look at prefill to act in decode
        return own_policy or "prefill" in self.phases()

    def dense_layers(self, layers: int) -> frozenset[int]:
        """Layers of a model that attend densely. A ratio budget is met over all layers, these included."""
        return frozenset()

    def selector(self, prepared: Prepared) -> Selector:
        """What chooses keys for as long as the method is attached."""
        return _Bound(self, prepared)

    def policy(
        self, system: CausalLM, prepared: Prepared, budget: Budget | None, inner: AttentionPolicy | None
    ) -> AttentionPolicy:
        """What attends in the place of dense attention; `inner` is the policy of the member before in a stack."""
        from sparsebench.adapters.attention._executor import SelectivePolicy

        return SelectivePolicy(self, system, prepared, budget, inner)

    def sees_whole_prompt(self) -> bool:
        """Whether prefill goes on to the end of the prompt where a task says that its context ends earlier."""
        return False

    def shares_prefixes(self, budget: Budget | None) -> bool:
        """Whether a prefix has the same result whatever follows it.

        A share of a prompt's pairs is a number of keys only once the prompt's length is known.
        """
        share = budget is not None and budget.kind == "sparsity" and budget.number > 0
        return self.prefix_invariant() and not (share and "prefill" in self.phases())

    @contextmanager
    def attach(self, system: CausalLM, prepared: Prepared, budget: Budget | None) -> Iterator[CausalLM]:
        """See `Adapter.attach`; where the method does not act, the member before it attends, or dense attention."""
        from sparsebench.engine.attention import engaged
        from sparsebench.engine.flow import Flow

        self.check_budget(budget)
        self.check_mode()
        system.refuse_attention()
        policy = self.policy(system, prepared, budget, system.policy)
        decode = "decode" in self.phases()
        with (
            system.acting(
                decode=decode,
                prefix_invariant=self.shares_prefixes(budget),
                policy=policy,
                whole_prompt=self.sees_whole_prompt(),
            ),
            engaged(system.model, Flow(policy)),
        ):
            yield system

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """Predicted cost; dense attention, and the work of choosing, where the density shows at run time only.

        Bytes of keys are those that one query head reads of each group: a lower bound where query heads choose for
        themselves. What is counted is the union over a group: how far its heads agree shows at run time only, but those
        of a trained model agree so much that this bound is the nearer one; the upper is the group's size times as much.
        """
        shape: ModelShape = system.shape
        dense = dense_cost(shape, request)
        return PhaseCosts(
            prefill=self._phase_cost(dense.prefill, shape, (0, request.prompt), request.batch, budget, "prefill"),
            decode=self._phase_cost(
                dense.decode, shape, (request.prompt, request.answer), request.batch, budget, "decode"
            ),
        )

    def _phase_cost(
        self, dense: Cost, shape: ModelShape, span: tuple[int, int], batch: int, budget: Budget | None, phase: str
    ) -> Cost:
        if phase not in self.phases() or not span[1]:
            return dense
        whole = self.dense_layers(shape.layers)
        share = self._share(shape, span, budget, whole)
        flops = read = held = 0.0
        for layer, window in enumerate(shape.windows):
            if layer not in whole and window != 0:
                one = self.index(shape, *span, window)
                flops, read = flops + batch * one[0], read + batch * one[1]
                held += batch * self.index_held(shape, sum(span), window)
        return replace(
            dense,
            attention=dense.attention * share,
            index=flops,
            bytes_kv_read=dense.bytes_kv_read * share + read,
            bytes_kv_resident=dense.bytes_kv_resident + held,
        )

    def _share(self, shape: ModelShape, span: tuple[int, int], budget: Budget | None, whole: frozenset[int]) -> float:
        if budget is None or budget.kind not in ("sparsity", "tokens"):
            return 1.0
        if budget.kind == "sparsity" and (not whole or len(set(shape.windows)) == 1):
            return max(1 - budget.number, len(whole) / shape.layers)
        if budget.kind == "sparsity":
            from sparsebench.adapters.attention._allowance import Allowance

            # Of what a ratio leaves the others all layers count alike, of the pairs those with a window less.
            left = Allowance.of(budget).beside_dense(shape.layers, len(whole)).density or 0.0
            pairs = [window_pairs(*span, window) for window in shape.windows]
            kept = [n if layer in whole else left * n for layer, n in enumerate(pairs)]
            return sum(kept) / max(sum(pairs), 1)
        widths = [
            window if layer in whole or window == 0 else min(int(budget.number), window or int(budget.number))
            for layer, window in enumerate(shape.windows)
        ]
        return sum(window_pairs(*span, width) for width in widths) / max(shape.pairs(*span), 1)


class _Bound:
    """A method with what it prepared."""

    def __init__(self, method: AttentionAdapter, prepared: Prepared) -> None:
        self.method = method
        self.prepared = prepared

    def select(self, view: AttentionView, allowance: Allowance) -> Selection:
        """See `Selector`."""
        return self.method.select(view, allowance, self.prepared)

    def observe(self, view: AttentionView, allowance: Allowance) -> None:
        """See `Selector`."""


def scaled(size: int, length: int, setting: Setting) -> int:
    """A published size for a prompt of that length: in proportion below `PAPER_LENGTH`, at least 1."""
    return size if setting == "paper" else max(1, round(size * min(length, PAPER_LENGTH) / PAPER_LENGTH))


def first_layers(count: int, layers: int) -> frozenset[int]:
    """The first layers, which a method leaves dense; of a model of few layers no more than one in eight."""
    return frozenset(range(min(count, layers // 8)))
