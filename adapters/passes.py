"""Calibration passes: what the layers of a model are fed, in the dense model or block by block as it is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from sparsebench.errors import InputError
from sparsebench.systems.experts import exposed, shadowed

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM, LinearSite

T = TypeVar("T")


@dataclass
class InputStatistics:
    """Sums over the tokens that a layer was fed; an expert's projection is fed those that are routed to it.

    Attributes:
        tokens: Tokens seen.
        sums: Sum of each input channel, float64 [in].
        squares: Sum of squares of each input channel, float64 [in].
        gram: X X^T, the sum over tokens of x x^T, float32 [in, in]; None where nobody asked for it.
    """

    tokens: int
    sums: torch.Tensor
    squares: torch.Tensor
    gram: torch.Tensor | None = None

    @property
    def norm(self) -> torch.Tensor:
        """2-norm of each input channel over all tokens, float32 [in]."""
        return self.squares.sqrt().float()

    @property
    def mean(self) -> torch.Tensor:
        """Mean of each input channel, float32 [in]."""
        return (self.sums / max(self.tokens, 1)).float()

    @property
    def variance(self) -> torch.Tensor:
        """Variance of each input channel over all tokens, float32 [in]."""
        tokens = max(self.tokens, 1)
        return (self.squares / tokens - (self.sums / tokens) ** 2).clamp(min=0).float()

    @classmethod
    def empty(cls, channels: int, device: torch.device, gram: bool) -> InputStatistics:
        """No token yet."""
        sums, squares = torch.zeros(2, channels, dtype=torch.float64, device=device)
        return cls(0, sums, squares, torch.zeros(channels, channels, device=device) if gram else None)

    @classmethod
    def unknown(cls, channels: int, device: torch.device, gram: bool) -> InputStatistics:
        """What stands for the inputs of a layer that no token reached: independent channels, each of norm 1.

        With them weights are worth their size, where zeros would make all of them worth nothing.
        """
        sums, squares = torch.zeros(2, channels, dtype=torch.float64, device=device)
        return cls(0, sums, squares + 1, torch.eye(channels, device=device) if gram else None)

    @classmethod
    def of(cls, x: torch.Tensor, gram: bool = False) -> InputStatistics:
        """Those of one batch, [..., in]; summed in float32."""
        flat = x.detach().reshape(-1, x.shape[-1]).to(torch.float32, copy=True)
        sums, product = flat.sum(0).double(), _gram(flat) if gram else None
        return cls(flat.shape[0], sums, flat.square_().sum(0).double(), product)

    def add(self, other: InputStatistics) -> None:
        """Take further tokens in."""
        self.tokens += other.tokens
        self.sums += other.sums
        self.squares += other.squares
        if self.gram is not None and other.gram is not None:
            self.gram += other.gram


GRAM_BLOCK = 256
"""Channels of a block of X X^T."""


def _gram(flat: torch.Tensor) -> torch.Tensor:
    """X X^T of x [tokens, in]: one half is multiplied, block by block, and the other is its mirror image."""
    channels = flat.shape[1]
    product = flat.new_empty(channels, channels)
    for first in range(0, channels, GRAM_BLOCK):
        last = min(first + GRAM_BLOCK, channels)
        torch.mm(flat[:, first:last].T, flat[:, first:], out=product[first:last, first:])
        product[last:, first:last] = product[first:last, last:].T
    return product


Statistics = dict[str, InputStatistics]
"""Statistics by name of the layer."""


@contextmanager
def fed(sites: Sequence[LinearSite], see: Callable[[LinearSite, torch.Tensor, bool], None]) -> Iterator[None]:
    """Within the context, `see` is called with the input of each of these layers.

    The projections of an expert are called for the tokens that are routed to it, and for none not at all.

    Args:
        sites: The layers.
        see: Called with the layer, its input [..., in] and whether the layer before it had the very same input, as the
            projections of queries, keys and values have.
    """
    last: list[torch.Tensor] = []

    def hook_of(site: LinearSite) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            again = bool(last) and last[0] is args[0]
            last[:] = [args[0]]
            see(site, args[0], again)

        return hook

    with ExitStack() as handles:
        handles.enter_context(exposed(site.module for site in sites))
        for site in sites:
            handles.callback(site.module.register_forward_pre_hook(hook_of(site)).remove)
        yield


@contextmanager
def gathering(sites: Sequence[LinearSite], gram: bool) -> Iterator[Statistics]:
    """Statistics of what these layers are fed within the context; of one that no token reached, `unknown` ones."""
    found = {site.name: InputStatistics.empty(site.weight.shape[1], site.weight.device, gram) for site in sites}
    batch: list[InputStatistics] = []

    def see(site: LinearSite, x: torch.Tensor, again: bool) -> None:
        if not again:
            batch[:] = [InputStatistics.of(x, gram)]
        found[site.name].add(batch[0])

    with fed(sites, see):
        yield found
    for site in sites:
        if found[site.name].tokens == 0:
            found[site.name] = InputStatistics.unknown(site.weight.shape[1], site.weight.device, gram)


def unreached(statistics: Statistics) -> dict[str, int]:
    """How many layers no token reached, as a fact for the record; nothing where each was reached."""
    count = sum(inputs.tokens == 0 for inputs in statistics.values())
    return {UNREACHED: count} if count else {}


UNREACHED = "layers_without_tokens"
"""Name of that fact."""


def read(system: CausalLM, calibration: Calibration) -> None:
    """Feed the whole text to the model's blocks, for the sake of hooks; no logits are computed."""
    with torch.no_grad(), attending(system):
        for ids in calibration.batches(system.batch_tokens):
            system.model.base_model(input_ids=ids.to(system.device), use_cache=False)


@contextmanager
def attending(system: CausalLM, through_engine: bool = False) -> Iterator[None]:
    """Within the context a plain call of the model attends as the attached policy says.

    Args:
        system: The model.
        through_engine: Attend as the engine does where no policy is attached: on a processor in bfloat16 that takes a
            quarter off a pass (`engine.blocked`). It knows no gradients.
    """
    if system.policy is None and not (through_engine and system.packed):
        yield
        return
    from sparsebench.engine.attention import engaged
    from sparsebench.engine.flow import Flow

    with engaged(system.model, Flow(system.policy)):
        yield


def dense_statistics(system: CausalLM, calibration: Calibration, gram: bool = False) -> Statistics:
    """Statistics of all layers in one pass through the model as it is; kept for other methods that ask for the same."""
    from sparsebench.systems.weights import prunable

    def compute() -> Statistics:
        with gathering(prunable(system), gram) as found:
            read(system, calibration)
        return found

    return compute() if gram else remembered(system, f"inputs of {calibration.hash}", compute)


def remembered(system: CausalLM, what: str, compute: Callable[[], T]) -> T:
    """What was computed of the same weights before, or else what `compute` gives, kept for as long as the system is.

    Nothing is kept of a model to whose activations something is attached: hooks cannot be told from one another.
    """
    from sparsebench.systems.fingerprint import hash_weights

    if system.policy is not None or any(m._forward_pre_hooks or m._forward_hooks for m in system.model.modules()):
        return compute()
    key = f"{what}, weights {hash_weights(system.model)}"
    if key not in system.memory:
        system.memory[key] = compute()
    found: T = system.memory[key]
    return found


def block_by_block(
    system: CausalLM, calibration: Calibration, prune: Callable[[LinearSite, InputStatistics], None], gram: bool = False
) -> dict[str, int]:
    """Visit the blocks in order, each fed by the blocks before it as they are by then.

    The layers of a block are measured together, pruned, and then the pruned block is run to feed the next one. What a
    model passes to its blocks beside hidden states (masks, rotary embeddings) is taken from its own code, so that any
    architecture works whose blocks are called once each, in order.

    Args:
        system: The model; `prune` changes its weights.
        calibration: The text.
        prune: Called once for each layer with its statistics; it may put another weight there.
        gram: Whether statistics have X X^T.

    Returns:
        `unreached` of all blocks.

    Raises:
        InputError: The model does not call its blocks in order.
    """
    from sparsebench.systems.weights import prunable

    system.see_dense()  # before the hooks would see its trials
    sites, facts = prunable(system), dict[str, int]()
    with torch.no_grad(), attending(system, through_engine=True):
        batches = [block_calls(system, ids.to(system.device)) for ids in calibration.batches(system.batch_tokens)]
        hidden = [calls[0].hidden for calls in batches]
        for index in range(len(system.blocks)):
            own = [site for site in sites if site.block == index]
            with gathering(own, gram) as found:
                _feed(own, [calls[index] for calls in batches], hidden)
            for name, count in unreached(found).items():
                facts[name] = facts.get(name, 0) + count
            for site in own:
                prune(site, found.pop(site.name))
            if index + 1 < len(system.blocks):
                hidden = [calls[index].run(states) for calls, states in zip(batches, hidden, strict=True)]
    return facts


@dataclass
class BlockCall:
    """How a model calls one of its blocks on one batch."""

    block: torch.nn.Module
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states that it gave."""
        states: torch.Tensor = self.args[0] if self.args else self.options["hidden_states"]
        return states

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """The block's output for other hidden states."""
        if self.args:
            out = self.block(hidden, *self.args[1:], **self.options)
        else:
            out = self.block(**{**self.options, "hidden_states": hidden})
        states: torch.Tensor = out[0] if isinstance(out, tuple | list) else out
        return states


class _Enough(Exception):
    """All linear layers of a block have been fed; no error, but the end of what has to be run."""


def _feed(sites: Sequence[LinearSite], calls: Sequence[BlockCall], hidden: Sequence[torch.Tensor]) -> None:
    """Run a block on all batches for the sake of hooks, as far as the input of its last linear layer.

    Which one is last is seen in the first batch, where each must be fed once; else all is run.
    """
    order: list[LinearSite] = []
    with fed(sites, lambda site, x, again: order.append(site)):
        calls[0].run(hidden[0])

    def stop(site: LinearSite, x: torch.Tensor, again: bool) -> None:
        raise _Enough

    once = len(order) == len(sites) == len({site.name for site in order})
    with fed(order[-1:] if once else [], stop):
        for call, states in zip(calls[1:], hidden[1:], strict=True):
            with suppress(_Enough):
                call.run(states)


def block_calls(system: CausalLM, ids: torch.Tensor) -> list[BlockCall]:
    """The calls of all blocks on one batch.

    Only the first block is run: the others are stood in for by its output, which has the form that the model expects.
    """
    calls: list[BlockCall] = []
    outputs: list[Any] = []

    def stand_in(block: torch.nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(BlockCall(block, args, options))
            if not outputs:
                outputs.append(forward(*args, **options))
            return outputs[0]

        return call

    with ExitStack() as forwards:
        for block in system.blocks:
            forwards.enter_context(shadowed(block, stand_in(block, block.forward)))
        system.model.base_model(input_ids=ids, use_cache=False)
    if [id(call.block) for call in calls] != [id(block) for block in system.blocks]:
        raise InputError(
            f"{type(system.model).__name__} does not call its blocks once each, in order", "use stats_pass: dense"
        )
    return calls
