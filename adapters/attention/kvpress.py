"""Any press of an installed kvpress, in its own environment."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sparsebench.adapters.attention._cache import CacheAdapter
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.attention._press import PressWorker
    from sparsebench.adapters.base import Prepared
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.engine.attention import AttentionPolicy, AttentionView
    from sparsebench.systems.causal_lm import CausalLM


class KvPress(CacheAdapter):
    """The keys that a press keeps: kvpress says which, and all else is done and counted here.

    The model goes to another process as a checkpoint, each prompt as token ids; kept positions come back, as they
    stand in the cache that the press leaves behind (those that it only hides are gone too). A press that merges or
    turns keys, or keeps channels of them, is refused: what it does is no choice of positions.
    """

    card: ClassVar[MethodCard] = MethodCard(
        id="kvpress",
        version=2,
        family="attention",
        title="A press of kvpress",
        summary="At the end of prefill the keys stay that a named press of the kvpress library keeps, run in an "
        "environment of its own.",
        paper=Paper(
            title="Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
            authors="Alessio Devoto and Maximilian Jeblick and Simon Jégou",
            year=2025,
            venue="arXiv:2510.00636",
            url="https://arxiv.org/abs/2510.00636",
            key="devoto2025expected",
        ),
        role="comparator",
        unit="token",
        phases=("decode",),
        budgets=("sparsity", "tokens"),
        needs=("a Python environment with kvpress, named by SPARSEBENCH_KVPRESS",),
        prefix_invariant=False,
        nearest="snapkv",
        differs="takes from another library which keys stay",
        deviations=(
            "the work of choosing is not counted: it happens where nothing is counted",
            "a press decides on whole prompts: in layers with a sliding window that ratio is searched for at which as "
            "many keys as the budget says stay within the window",
            "methods before it in a stack act on it through the weights alone",
        ),
    )

    executes: ClassVar[tuple[str, ...]] = ()

    press: str = Field("SnapKVPress", pattern=r"^[A-Za-z]\w*(\([A-Za-z]\w*\)|\([A-Za-z]\w*\([A-Za-z]\w*\)\))?$")
    """Its class in kvpress; a press that wraps another is written `AdaKVPress(SnapKVPress)`."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Fields of the press, beside its compression ratio, which is the budget."""

    def prepare(self, system: Any, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The process that holds the model and the press."""
        from sparsebench.adapters.attention._press import PressWorker
        from sparsebench.adapters.base import Prepared

        worker = PressWorker(system, self.press, dict(self.options))
        return Prepared(state=worker, facts=worker.versions)

    def policy(
        self, system: CausalLM, prepared: Prepared, budget: Budget | None, inner: AttentionPolicy | None
    ) -> AttentionPolicy:
        """See `AttentionAdapter.policy`."""
        from sparsebench.adapters.attention._press import PressPolicy

        return PressPolicy(self, system, prepared, budget, inner)

    @contextmanager
    def attach(self, system: CausalLM, prepared: Prepared, budget: Budget | None) -> Iterator[CausalLM]:
        """See `Adapter.attach`."""
        with super().attach(system, prepared, budget) as sparse:
            policy: Any = sparse.policy
            embedding = system.model.get_input_embeddings()
            handle = embedding.register_forward_pre_hook(lambda module, inputs: policy.feed(inputs[0]))
            try:
                yield sparse
            finally:
                handle.remove()

    def score(self, prompt: AttentionView, prepared: Prepared) -> torch.Tensor:
        """A press keeps keys without saying what they are worth to it."""
        raise InputError(f"{self.press} has no scores of its own here", "use `keep`")

    def keep(self, prompt: AttentionView, count: int, prepared: Prepared) -> torch.Tensor:
        """See `CacheAdapter.keep`; the first layer that asks has the press run for all of them."""
        from sparsebench.adapters.attention._cache import reachable
        from sparsebench.adapters.attention._eviction import within_reach

        length, reach = prompt.key.shape[2], within_reach(prompt)

        def kept(total: int) -> torch.Tensor:
            return self._asked(prompt, total, prepared.state)[prompt.layer].to(reach.device) & reach

        def enough(total: int) -> bool:
            return int(kept(total).sum()) >= count * prompt.key.shape[1]

        if reachable(length, prompt.window) == length:
            return kept(count)
        return kept(count + bisect_left(range(count, length), True, key=enough))

    def _asked(self, prompt: AttentionView, total: int, worker: PressWorker) -> torch.Tensor:
        """What the press keeps of a prompt of which `total` keys are to stay, bool [layers, kv_heads, keys]."""
        from sparsebench.adapters.attention._press import IDS

        memory, length = prompt.states[0][-1], prompt.key.shape[2]
        name = ("kvpress", total, length)
        if name not in memory:
            # Half a key more than `total`: kvpress rounds down.
            ratio = 0.0 if total >= length else 1 - (total + 0.5) / length
            memory[name] = worker.kept(memory[IDS], ratio)
        found: torch.Tensor = memory[name]
        return found
