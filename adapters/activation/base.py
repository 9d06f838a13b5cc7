"""The activation family: a method says what each channel of a token is worth; everything else is here.

A method is a card, its knobs and `score`. The base class finds the sites, calibrates thresholds, applies the rule to
the tokens of the scope, in the engine's passes and in plain calls of the model alike, and counts the zeros that the
weights really meet. An expert is fed the tokens that are routed to it; one that no token of the calibration text
reaches has no threshold, and stays dense. With `mode: executed` the same selection says what a step of decode reads.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparsebench.adapters.base import ExecutableAdapter, Prepared
from sparsebench.budget import Budget
from sparsebench.cost import PhaseCosts, Request, active_share, dense_cost
from sparsebench.errors import InputError

if TYPE_CHECKING:
    import torch

    from sparsebench.adapters.activation._distribution import Distribution
    from sparsebench.adapters.activation._masking import Masking
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.systems.causal_lm import CausalLM

Scope = Literal["all", "decode", "prefill", "last-half", "last-99"]
"""Tokens that are made sparse: all, those of one phase, or decode and the last half, or 99 %, of each prompt."""
Rule = Literal["threshold", "topk"]
"""`threshold`: channels whose score exceeds a quantile of the calibration text stay, so tokens differ in sparsity;
`topk`: of each token equally many channels stay."""
CALIBRATION_TOKENS = 16_384
"""Tokens of a calibration text that enter the quantiles, at most; of longer ones every second, third ... token."""
SHARES: dict[Scope, tuple[float, float]] = {
    "all": (1.0, 1.0),
    "decode": (0.0, 1.0),
    "prefill": (1.0, 0.0),
    "last-half": (0.5, 1.0),
    "last-99": (0.99, 1.0),
}
"""Share of prefill and of decode tokens in each scope."""


@dataclass(frozen=True)
class Site:
    """A place where channels are masked.

    Attributes:
        name: Its name.
        module: The module whose input is masked, or whose output where `output`.
        weight: What its input meets, [out, channels]; None where it is no linear layer.
        channels: Channels of a token.
        saved: Multiply-adds of one token that one zero saves.
        block: Index of the decoder block.
        output: Whether the module's output is masked.
        share: Share of the tokens that it sees: all, or of an expert's projection those routed to it.
    """

    name: str
    module: torch.nn.Module
    weight: torch.Tensor | None
    channels: int
    saved: int
    block: int
    output: bool = False
    share: float = 1.0


@dataclass
class ActivationState:
    """What `prepare` leaves.

    Attributes:
        distributions: Of the scores at each site, by name, where the rule asks for thresholds.
        levels: Sparsity of each site, by name, where it was searched for.
        budget: The budget of that search.
        learned: What the method learned of sites from the text, by name; it takes the place of `state_of`.
        columns: Weights stored by columns, by name of the layer, where the method is executed.
    """

    distributions: dict[str, Distribution] | None = None
    levels: dict[str, float] | None = None
    budget: Budget | None = None
    learned: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] | None = None


class ActivationAdapter(ExecutableAdapter):
    """One activation method. Subclasses set `card` and write `score`, and `sites` where they mask other places."""

    shared: ClassVar[bool] = False
    """Whether sites with the very same input (queries, keys and values; gate and up) have the same mask."""

    rule: Rule = "threshold"
    scope: Scope = "all"

    @abstractmethod
    def score(self, x: torch.Tensor, state: Any, positions: torch.Tensor) -> torch.Tensor:
        """What each channel of each token is worth, [tokens, channels], not negative.

        Args:
            x: What the site sees, [tokens, channels].
            state: What `state_of` gave for the site.
            positions: Position of each token in its sequence, [tokens].
        """

    def sites(self, system: CausalLM) -> list[Site]:
        """Where channels are masked: the inputs of all linear layers of the decoder blocks, with those of experts.

        Raises:
            InputError: Tokens cannot be followed to all of the model's weights.
        """
        from sparsebench.systems.weights import names_of, out_of_reach

        beyond = out_of_reach(system)
        if beyond or not all(experts.placing for experts in system.experts):
            where = f"{names_of(system, beyond)}, matrices in one tensor," if beyond else "the experts"
            raise InputError(
                f"{self.card.id} cannot follow tokens to {where} of {type(system.model).__name__}",
                "of such tensors those are seen that hold experts in the form of transformers' experts interface",
            )
        found = []
        for site in system.linears:
            rows, columns = site.weight.shape
            share = active_share(system, site)
            found.append(Site(site.name, site.module, site.weight.detach(), columns, rows, site.block, share=share))
        return found

    def state_of(self, site: Site) -> Any:
        """What `score` wants to know of a site; asked once for each preparation and each attachment."""
        return None

    def learn(self, system: CausalLM, calibration: Calibration) -> dict[str, Any]:
        """What `score` wants to know of sites beyond their weights, by name, from the text; nothing as a rule."""
        return {}

    def learns(self) -> bool:
        """Whether `learn` reads the text with these knobs."""
        return False

    def masking(self, system: CausalLM, sites: list[Site], levels: dict[str, float], state: ActivationState) -> Masking:
        """What is called with the activations of each site while the method is attached."""
        from sparsebench.adapters.activation._masking import Masking

        return Masking(self, system, sites, levels, state)

    def drop(
        self, x: torch.Tensor, state: Any, positions: torch.Tensor, sparsity: float, threshold: float
    ) -> torch.Tensor:
        """Which channels of these tokens become zero, bool [tokens, channels]."""
        from sparsebench.adapters.selection import at_most, smallest

        score = self.checked_score(x, state, positions)
        if self.rule == "threshold":
            return at_most(score, threshold)
        return smallest(score.float(), dropped(sparsity, x.shape[1]))

    def checked_score(self, x: torch.Tensor, state: Any, positions: torch.Tensor, wait: bool = False) -> torch.Tensor:
        """`score`, or an error.

        Args:
            x: See `score`.
            state: See `score`.
            positions: See `score`.
            wait: Whether a GPU is waited for, to look at its numbers; those of a processor always are.

        Raises:
            InputError: There is not one for each channel of each token, or one is not a number.
        """
        score = self.score(x, state, positions)
        if score.shape != x.shape:
            raise InputError(
                f"{self.card.id}: `score` gives {list(score.shape)}, not [tokens, channels] = {list(x.shape)}"
            )
        if (wait or score.device.type == "cpu") and bool(score.sum().isnan()):  # one pass; any NaN makes the sum one
            raise InputError(f"{self.card.id}: `score` gives what is not a number (NaN)")
        return score

    def columns(self, system: CausalLM) -> dict[str, Any]:
        """The weights that are read by columns where the method is executed, stored so, by name of the layer."""
        from sparsebench.adapters.activation._executed import columns_of

        return columns_of(system, self.sites(system))

    def check_mode(self) -> None:
        """See `ExecutableAdapter.check_mode`: what is executed are steps of decode."""
        if self.mode == "simulated":
            return
        if "executed" not in self.card.modes:
            raise InputError(f"{self.card.id} cannot be executed: no code skips what it leaves out")
        if "decode" not in self.phases():
            raise InputError(
                f"{self.card.id} cannot be executed with scope {self.scope!r}: only decode skips what is left out",
                "give it the scope all or decode, or run it with mode: simulated",
            )

    def shares_masks(self) -> bool:
        """Whether one mask serves all sites with the very same input."""
        return self.shared

    def phases(self) -> tuple[str, ...]:
        """Phases in which tokens are made sparse."""
        shares = dict(zip(("prefill", "decode"), SHARES[self.scope], strict=True))
        return tuple(phase for phase, share in shares.items() if share)

    def prefix_invariant(self) -> bool:
        """Not where the scope asks how long the prompt is."""
        return self.card.prefix_invariant and not self.scope.startswith("last")

    def reads_calibration(self) -> bool:
        """Thresholds come from a text."""
        return self.rule == "threshold" or self.learns()

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The distribution of scores at each site, from which thresholds of all budgets come.

        Where the method is executed, also the copies of weights that lie by columns, which the facts name.
        """
        prepared = self._prepared(system, calibration)
        if self.mode == "executed":
            prepared.state.columns = columns = self.columns(system)
            copies = [weight.bytes for weight in columns.values() if weight.bytes]
            prepared.facts |= {"weights_copied_by_columns": {"layers": len(copies), "bytes": sum(copies)}}
        return prepared

    def _prepared(self, system: CausalLM, calibration: Calibration | None) -> Prepared:
        from sparsebench.adapters.passes import remembered

        if self.rule != "threshold" and not self.learns():
            return Prepared(ActivationState())
        if calibration is None:
            raise InputError(f"{self.card.id} reads a calibration text")
        knobs = {name: value for name, value in self.config.items() if name not in ("scope", "mode")}
        what = f"scores of {self.card.id} {knobs} on {calibration.hash}"
        learned, found = remembered(system, what, lambda: self._read(system, calibration))
        dtype = str(system.dtype).removeprefix("torch.")
        facts = {"calibration": calibration.describe(), "calibration_dtype": f"{dtype} forward and scores"}
        return Prepared(ActivationState(found, learned=learned), facts, tokens=calibration.tokens)

    def _read(
        self, system: CausalLM, calibration: Calibration
    ) -> tuple[dict[str, Any], dict[str, Distribution] | None]:
        learned = self.learn(system, calibration) if self.learns() else {}
        return learned, self._distributions(system, calibration, learned) if self.rule == "threshold" else None

    def _distributions(
        self, system: CausalLM, calibration: Calibration, learned: dict[str, Any]
    ) -> dict[str, Distribution]:
        import torch

        from sparsebench.adapters.activation._distribution import Distribution
        from sparsebench.adapters.passes import read

        stride = -(-calibration.tokens // CALIBRATION_TOKENS)
        sites = self.sites(system)
        states = {site.name: learned[site.name] if site.name in learned else self.state_of(site) for site in sites}
        found: dict[str, Distribution] = {}
        last: list[tuple[torch.Tensor, str]] = []

        def see(site: Site, x: torch.Tensor) -> None:
            if self.shares_masks() and last and last[0][0] is x:
                found[site.name] = found[last[0][1]]
                return
            last[:] = [(x, site.name)]
            flat = x.reshape(-1, x.shape[-1])[::stride]
            positions = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
            score = self.checked_score(flat, states[site.name], positions, wait=True)
            found.setdefault(site.name, Distribution()).add(score)

        with hooked(sites, see):
            read(system, calibration)
        return found

    @contextmanager
    def attach(self, system: CausalLM, prepared: Prepared, budget: Budget | None) -> Iterator[CausalLM]:
        """The model with sparse activations; on exit the hooks are gone."""
        self.check_budget(budget)
        state: ActivationState = prepared.state or ActivationState()
        if state.budget is not None and state.budget != budget:
            raise InputError(f"{self.card.id} was prepared at {state.budget.label}", "prepare it at each budget")
        sites = self.sites(system)
        levels = state.levels or dict.fromkeys((s.name for s in sites), budget.number if budget is not None else 0.0)
        masking = self.masking(system, sites, levels, state)
        acting = system.acting(decode="decode" in self.phases(), prefix_invariant=self.prefix_invariant())
        with ExitStack() as contexts:
            contexts.enter_context(acting)
            contexts.enter_context(masking.watching())
            contexts.enter_context(hooked(sites, masking, masking.widths))
            if self.mode == "executed":
                contexts.enter_context(masking.executing(state, sites))
            yield system

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """Zeros cost no FLOPs; in decode a column is not read that all requests of a batch leave out."""
        shape = system.shape
        sparsity = budget.number if budget is not None else 0.0
        sites = self.sites(system)
        active = sum(site.channels * site.saved * site.share for site in sites)
        covered = sum(site.channels * site.saved for site in sites)
        prefill, decode = SHARES[self.scope]
        costs = []
        for share, unread in ((prefill, 0.0), (decode, sparsity**request.batch)):
            flops = replace(shape, linear_params=round(shape.linear_params - share * sparsity * active))
            read = replace(
                shape,
                linear_params=round(shape.linear_params - share * unread * active),
                stored_params=round(shape.stored_params - share * unread * covered),
            )
            costs.append((dense_cost(flops, request), dense_cost(read, request)))
        return PhaseCosts(
            prefill=replace(costs[0][0].prefill, bytes_weights=costs[0][1].prefill.bytes_weights),
            decode=replace(costs[1][0].decode, bytes_weights=costs[1][1].decode.bytes_weights),
        )


class AllocatedActivation(ActivationAdapter):
    """An activation method that can search for the sparsity of each layer. Subclasses set `card` and write `score`."""

    allocation: Literal["uniform", "greedy"] = "uniform"
    """`uniform`: each site has the target; `greedy`: TEAL's search, block by block."""

    def shares_masks(self) -> bool:
        """Not where each site has a sparsity of its own."""
        return self.shared and self.allocation == "uniform"

    def reads_calibration(self) -> bool:
        """Thresholds come from a text, and so does the search."""
        return super().reads_calibration() or self.allocation == "greedy"

    def prepare_depends_on_budget(self) -> bool:
        """A search ends where its budget is used up."""
        return self.allocation == "greedy"

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """The distribution of scores, and the sparsity of each site where it is searched for."""
        from sparsebench.adapters.activation._greedy import allocate

        prepared = super().prepare(system, calibration, budget)
        if self.allocation == "uniform":
            return prepared
        if calibration is None or budget is None:
            raise InputError(f"{self.card.id} with allocation 'greedy' needs a calibration text and a budget")
        state: ActivationState = prepared.state
        levels = allocate(self, system, calibration, state, budget.number)
        facts = {"calibration": calibration.describe(), "levels": {name: round(s, 4) for name, s in levels.items()}}
        return Prepared(
            replace(state, levels=levels, budget=budget), {**prepared.facts, **facts}, tokens=calibration.tokens
        )


def dropped(sparsity: float, channels: int) -> int:
    """How many of so many channels go: the nearest whole number, halves up."""
    return int(sparsity * channels + 0.5)


@contextmanager
def hooked(
    sites: list[Site],
    see: Callable[[Site, torch.Tensor], torch.Tensor | None],
    widths: Callable[[Site], Collection[int]] = lambda site: (site.channels,),
) -> Iterator[None]:
    """Within the context `see` is called with what each site sees, and may give something else in its place.

    Args:
        sites: The places.
        see: Called with a site and what it sees.
        widths: How many channels that may have.

    Raises:
        InputError: A site has other channels than were expected.
    """
    from sparsebench.systems.experts import exposed

    def checked(site: Site, x: torch.Tensor) -> torch.Tensor | None:
        if x.shape[-1] not in widths(site):
            raise InputError(
                f"{site.name} has {x.shape[-1]} channels, not {site.channels}: it is no place for this method"
            )
        return see(site, x)

    def on_input(site: Site) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...]) -> Any:
            other = checked(site, args[0])
            return None if other is None else (other, *args[1:])

        return hook

    def on_output(site: Site) -> Callable[..., Any]:
        return lambda module, args, out: checked(site, out)

    with ExitStack() as handles:
        handles.enter_context(exposed(site.module for site in sites))
        for site in sites:
            if site.output:
                handle = site.module.register_forward_hook(on_output(site))
            else:
                handle = site.module.register_forward_pre_hook(on_input(site))
            handles.callback(handle.remove)
        yield
