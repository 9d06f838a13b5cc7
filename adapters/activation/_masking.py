"""An activation method at work: masking what sites see, and counting what the weights then meet."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from sparsebench.adapters.activation._executed import Skipping, columns_of, takes
from sparsebench.adapters.activation._tokens import Tokens, positions_of_call
from sparsebench.adapters.selection import without, zeros
from sparsebench.cost import active_share
from sparsebench.engine.transfer import Copies
from sparsebench.errors import InputError
from sparsebench.systems.experts import ExpertLinear

if TYPE_CHECKING:
    from sparsebench.adapters.activation.base import ActivationAdapter, ActivationState, Site
    from sparsebench.engine.flow import Flow
    from sparsebench.systems.causal_lm import CausalLM
    from sparsebench.systems.counters import Amount

Counted: TypeAlias = "tuple[int, Amount, Amount]"
"""Entries, and zeros among them before and after: zeros are left on the device that counted them."""


class Masking:
    """Called with a site and what it sees, [..., channels]; gives what it is to see instead, or None.

    Counted are, for each phase, of the tokens in scope: entries (`activation.total`), those that are zero
    (`activation.zeros`) and those that were zero already (`activation.zeros_before`), each weighted by the
    multiply-adds that it saves; and of all tokens the multiply-adds of all linear layers, of experts those that run
    (`activation.linear`), in scope or not. Where a method adds work of its own for a token in scope, that is counted
    (`activation.added`) and taken off what its zeros save. Of the entries those are counted again that were executed
    (`activation.executed`).

    Args:
        adapter: The method.
        system: The model, whose counters are filled.
        sites: Where it masks.
        levels: The sparsity of each site, by name; at 0 nothing is masked.
        state: What preparing left: distributions of scores, where the rule asks for thresholds, and what was learned.
        counting: Whether the system's counters are filled.
    """

    def __init__(
        self,
        adapter: ActivationAdapter,
        system: CausalLM,
        sites: list[Site],
        levels: dict[str, float],
        state: ActivationState,
        counting: bool = True,
    ) -> None:
        self.adapter = adapter
        self.system = system
        learned = state.learned
        self.states = {s.name: learned[s.name] if s.name in learned else adapter.state_of(s) for s in sites}
        self.distributions = state.distributions or {}
        self.levels: dict[str, float] = {}
        self.thresholds: dict[str, float] = {}
        for name, level in levels.items():
            self.set_level(name, level)
        self.counting = counting
        self.work: dict[str, int] = {}
        """Multiply-adds that the method does for each token in scope beside a layer's own, by site."""
        # An expert sees but some of the tokens.
        self.first = next((site.name for site in sites if not isinstance(site.module, ExpertLinear)), "")
        self.linear = round(sum(site.weight.numel() * active_share(system, site) for site in system.linears))
        self._flow: Flow | None = None
        self._of_flow: Copies[Tokens] | None = None
        self._of_call: Copies[Tokens] | None = None
        self._all: Copies[Tokens] | None = None
        self._last: tuple[torch.Tensor, torch.Tensor, dict[str, Counted]] | None = None
        self._listed: tuple[torch.Tensor, torch.Tensor, Any] | None = None
        self._skipping: Skipping | None = None
        self._looked_at: set[str] = set()
        """Sites of which a GPU's scores were looked at."""

    def set_level(self, name: str, level: float) -> None:
        """Give a site another sparsity."""
        self.levels[name] = level
        known = self.distributions.get(name)
        self.thresholds[name] = known.threshold(level) if known is not None else -1.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context, plain calls of the model are watched for the positions of their tokens."""

        def on_call(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            ids = args[0] if args else options.get("input_ids")
            ids = options.get("inputs_embeds") if ids is None else ids
            if isinstance(ids, torch.Tensor):
                self._of_call = _copies(Tokens.of_call(positions_of_call(ids, options), self.adapter.scope))

        # Some architectures go past their base model; calibration passes call nothing else.
        model = self.system.model
        handles = [m.register_forward_pre_hook(on_call, with_kwargs=True) for m in {model, model.base_model}]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = self._listed = self._flow = self._of_flow = self._of_call = self._all = None

    @contextmanager
    def executing(self, state: ActivationState, sites: list[Site]) -> Iterator[None]:
        """Within the context steps of decode are executed."""
        columns = columns_of(self.system, sites) if state.columns is None else state.columns
        self._skipping = Skipping(self.system, sites, columns, self.tokens)
        with self._skipping.multiplying():
            yield

    def widths(self, site: Site) -> Collection[int]:
        """How many channels a site may have."""
        return (site.channels,)

    def __call__(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        tokens = self._seen_by(site, x)
        if not self.counting:
            return self._masked(site, x, tokens) if tokens.anyone else None
        if site.name == self.first:
            for phase, count in tokens.sizes.items():
                self.system.counters.add(f"{phase}.activation.linear", count * self.linear)
        if not tokens.anyone:
            return None
        if self._skipping is not None and takes(tokens) and self.levels[site.name] > 0:
            return self._skipped(site, x, tokens, self._skipping)
        if not (self.adapter.shares_masks() and self._last is not None and self._last[0] is x):
            masked = self._masked(site, x, tokens)
            self._last = (x, masked, self._counted(site, x, masked, tokens))
        _, masked, counted = self._last
        for phase, (entries, before, after) in counted.items():
            self._count(phase, site, entries)
            self.system.counters.add(f"{phase}.activation.zeros", after * site.saved)
            self.system.counters.add(f"{phase}.activation.zeros_before", before * site.saved)
        return masked

    def _count(self, phase: str, site: Site, entries: int) -> None:
        """Count entries in scope, and the work that a method adds for them."""
        added = self.work.get(site.name, 0) * (entries // site.channels)
        self.system.counters.activation(phase, -added, entries * site.saved)
        if added:
            self.system.counters.add(f"{phase}.activation.added", added)

    def _skipped(self, site: Site, x: torch.Tensor, tokens: Tokens, skipping: Skipping) -> torch.Tensor | None:
        """Put down what the layers that follow this site skip in this pass; they count the zeros that they meet."""
        if not (self.adapter.shares_masks() and self._listed is not None and self._listed[0] is x):
            gone = self._gone(site, x, tokens)
            self._listed = (x, gone, skipping.listed(x.reshape(gone.shape), gone))
        _, gone, found = self._listed
        masked = without(x.reshape(gone.shape), gone).reshape(x.shape) if site.output else None
        skipping.put(site.name, x if masked is None else masked, found)
        self._count("decode", site, gone.numel())
        self.system.counters.add("decode.activation.executed", gone.numel() * site.saved)
        return masked

    def _seen_by(self, site: Site, x: torch.Tensor) -> Tokens:
        """The tokens that a site sees: those of the running pass, or of an expert those that are routed to it."""
        if isinstance(site.module, ExpertLinear):
            if self._all is None:
                raise RuntimeError(f"{site.name} ran before any layer that sees all tokens")
            return self._all[x.device].at(site.module.places)
        self._all = self.tokens(x)
        return self._all[x.device]

    def tokens(self, x: torch.Tensor) -> Copies[Tokens]:
        """The tokens of the running pass, by device; the same object for all sites."""
        flow = self.system.flow
        if flow is not None:
            if flow is not self._flow:
                found = Tokens.of_flow(flow, self.adapter.scope)
                self._flow, self._of_flow = flow, None if found is None else _copies(found)
            if self._of_flow is not None:
                return self._of_flow
        if self._of_call is not None and len(self._of_call.original) == x.shape[:-1].numel():
            return self._of_call
        # A block that is run on its own: its hidden states are [sequences, tokens, channels].
        positions = torch.arange(x.shape[-2], device=x.device).expand(x.shape[:-2].numel(), -1)
        return _copies(Tokens.of_call(positions, self.adapter.scope))

    def _gone(self, site: Site, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """Which channels of the tokens become zero, bool [tokens, channels]: the selection, whatever is made of it."""
        flat = x.detach().reshape(-1, x.shape[-1])
        if len(flat) != tokens.positions.numel():
            count = tokens.positions.numel()
            raise InputError(f"{site.name} reads {len(flat)} rows for {count} tokens: it is no place for this method")
        state, threshold = self.states[site.name], self.thresholds[site.name]
        recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if flat.is_cuda and site.name not in self._looked_at and not recording:
            self._looked_at.add(site.name)  # once for each: to look at each pass would be to wait for it
            self.adapter.checked_score(flat, state, tokens.positions, wait=True)
        gone = self.adapter.drop(flat, state, tokens.positions, self.levels[site.name], threshold)
        return gone if tokens.everyone else gone & tokens.chosen[:, None]

    def _masked(self, site: Site, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        if self.levels[site.name] == 0:
            return x
        gone = self._gone(site, x, tokens)
        return without(x.reshape(gone.shape), gone).reshape(x.shape)

    def _counted(self, site: Site, x: torch.Tensor, masked: torch.Tensor, tokens: Tokens) -> dict[str, Counted]:
        """For each phase the entries in scope, the zeros among them before, and after."""
        channels = x.shape[-1]
        after = zeros(masked.detach().reshape(-1, channels))
        before = after if masked is x else zeros(x.detach().reshape(-1, channels))
        return {
            phase: (len(rows) * channels, before[rows].sum(), after[rows].sum()) for phase, rows in tokens.rows.items()
        }


def _copies(tokens: Tokens) -> Copies[Tokens]:
    return Copies(tokens, tokens.decode.device, Tokens.to)
