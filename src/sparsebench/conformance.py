"""What every method owes, tried on a small model: `sparsebench conform NAME`.

The checks here are those of methods of language models; `conformance_retrieval` has those of methods that rank
documents.

A check is a function that says nothing where the method does what it should, raises `Failure` with what it does
instead, or `Skip` with the reason why it is not asked. Methods of this repository and of other packages are held to
the same checks; the repository's tests run them on every method that it ships.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from sparsebench import adapters
from sparsebench.adapters.base import Adapter, Prepared, Sparsity, attached
from sparsebench.budget import Budget
from sparsebench.errors import InputError, MissingError, NotRestoredError

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.records import Outcome
    from sparsebench.systems.causal_lm import CausalLM

LENGTHS = ((300, 60, 260), (201, 50, 170), (96, 30, 80))
"""Of each text: its tokens, how many of them are scored, and how many run in prefill."""
FULL: dict[str, Any] = {"sparsity": 0.0, "tokens": 4096, "coverage": 1.0}
"""Budgets that leave nothing out, by kind."""
TIGHT: dict[str, tuple[Any, ...]] = {
    "sparsity": (0.3, 0.6),
    "tokens": (96, 32),
    "coverage": (0.9, 0.5),
    "pattern": ("2:4",),
    "bits": (8, 3),
    "depth": (2, 1),
}
"""Budgets that leave something out, by kind, the sparsest last."""
SAME = 1e-4
"""Largest difference of two log-likelihoods in float32 that is rounding."""
ALIKE = 1e-3
"""The same where the sums are taken in another order."""
NEAR = 0.12
"""How far what is realised may be from a ratio: prompts are short and blocks are few here, so what a method keeps or
drops whole weighs more than it does elsewhere."""


class Failure(Exception):
    """The method does not do what it should; the message says what it does."""


class Skip(Exception):
    """The check is not for this method; the message says why."""


@dataclass(frozen=True)
class Result:
    """What came of a check: `ok`, `failed` or `not asked`, and why."""

    check: str
    status: str
    detail: str = ""


@dataclass(frozen=True)
class Ran:
    """Log-likelihoods of all scored tokens, text by text, and what was realised."""

    logprobs: list[np.ndarray]
    outcome: Outcome

    def differs(self, other: Ran) -> float:
        """The largest difference of two log-likelihoods of one token; infinite where one is no number."""
        apart = np.concatenate(self.logprobs) - np.concatenate(other.logprobs)
        return float(np.nan_to_num(np.abs(apart), nan=np.inf).max())


class Tried(Protocol):
    """A method at hand."""

    @property
    def method(self) -> Adapter:
        """The method with its knobs."""
        ...


AnyBench = TypeVar("AnyBench", bound=Tried)


class Bench:
    """A method on a model, loaded anew where the method has spoilt it.

    Args:
        method: The method with its knobs.
        load: Gives the model.
    """

    def __init__(self, method: Adapter, load: Callable[[], CausalLM]) -> None:
        self.method = method
        self.load = load
        self.system = load()
        self.texts = list(_texts(self.system))
        self.calibration = _calibration(self.system)
        self.prepared: dict[str, Prepared] = {}
        """States by method, text and budget, until it is asked whether preparing again gives the same."""
        self.dense = self.run(None)

    def budgets(self, *kinds: str) -> list[Budget]:
        """Budgets that leave something out, of the first of these kinds that the method takes, the sparsest last."""
        kind = next((kind for kind in kinds or TIGHT if kind in self.method.card.budgets), None)
        return [] if kind is None else [Budget.from_dict({kind: value}) for value in TIGHT[kind]]

    def sparsest(self) -> Budget | None:
        """The tightest of `budgets`; None for a method that takes none.

        Raises:
            Skip: It takes budgets of which this module knows none.
        """
        if not self.method.card.budgets:
            return None
        if not (found := self.budgets()):
            raise Skip(f"no budget of {', '.join(self.method.card.budgets)} is known here")
        return found[-1]

    def tried(self) -> Sequence[Budget | None]:
        """All of `budgets`, or None alone for a method that takes none; see `sparsest`."""
        return self.budgets() or [self.sparsest()]

    def run(
        self,
        budget: Budget | None,
        method: Adapter | None = None,
        requests: Sequence[Any] | None = None,
        fail: bool = False,
    ) -> Ran:
        """Score the texts under a method.

        Args:
            budget: How sparse.
            method: The method; None: the dense model.
            requests: Other texts.
            fail: Whether an error is raised while the method is attached.

        Raises:
            Failure: The model was not given back as it was.
        """
        from sparsebench.engine.scoring import score
        from sparsebench.realised import outcome_of
        from sparsebench.systems.weights import weight_sparsity
        from sparsebench.tasks.base import TaskResult

        asked = self.texts if requests is None else requests
        stack = [Sparsity(method, budget)] if method is not None else []
        system = self.system
        system.counters.reset()
        before = weight_sparsity(system)
        try:
            with attached(system, stack, self.calibration, self.prepared) as (sparse, _):
                if fail:
                    raise InterruptedError
                after = weight_sparsity(sparse)  # type: ignore[arg-type]
                found = [scored.logprobs for scored in score(sparse, asked)]  # type: ignore[arg-type]
        except NotRestoredError as error:
            self.system = self.load()
            self.prepared.clear()
            raise Failure(error.message) from error
        workload = SimpleNamespace(counted=len(asked), samples=len(asked))
        bound: Any = SimpleNamespace(workload=workload)
        frame: Any = None
        return Ran(found, outcome_of(system, stack, (before, after), bound, TaskResult(frame, {}), 0.0))


def conform(name: str, knobs: Mapping[str, Any] | None = None, model: str | None = None) -> list[Result]:
    """Every check of a method.

    Args:
        name: Its id.
        knobs: Its knobs by name.
        model: A language model, or an encoder, in the place of the small one, in float32.

    Raises:
        UnknownNameError: No such method, or knob.
        InputError: It runs on nothing that there are checks for.
        MissingError: What it needs is not there.
    """
    cls = adapters.get(name)
    method = cls.configure(dict(knobs or {}))
    if method.card.needs and model is None and "causal-lm" in cls.accepts:
        raise MissingError(f"{name} needs {'; '.join(method.card.needs)}", "--model REF, where that is what it needs")
    if "causal-lm" in cls.accepts:
        return _results(CHECKS, Bench(method, _loader(model)))
    from sparsebench import conformance_retrieval as retrieval
    from sparsebench.adapters.retrieval.base import RankingAdapter

    if not isinstance(method, RankingAdapter):
        raise InputError(f"{name} runs on {' or '.join(cls.accepts)}, for which there are no checks")
    return _results(retrieval.CHECKS, retrieval.RankingBench(method, retrieval.load_encoder(method, model)))


def _results(checks: Mapping[str, Callable[[AnyBench], None]], bench: AnyBench) -> list[Result]:
    results: list[Result] = []
    for title, check in checks.items():
        result = _asked(title, check, bench)
        if result.status == "failed" and (first := next((r for r in results if r.detail == result.detail), None)):
            result = replace(result, detail=f"as in '{first.check}'")
        results.append(result)
    return results


def _asked(title: str, check: Callable[[AnyBench], None], bench: AnyBench) -> Result:
    try:
        check(bench)
    except Skip as reason:
        return Result(title, "not asked", str(reason))
    except MissingError:
        raise
    except Failure as failure:
        return Result(title, "failed", str(failure))
    except Exception as error:
        return Result(title, "failed", f"{type(error).__name__}: {error}")
    return Result(title, "ok")


def check_card(bench: Tried) -> None:
    """The card says what readers look for."""
    card, cls = bench.method.card, type(bench.method)
    if not card.summary.endswith("."):
        raise Failure("the summary is no sentence: it ends with no full stop")
    if not (cls.__doc__ or "").strip():
        raise Failure(f"{cls.__name__} has no docstring")
    if card.phases and not card.budgets and card.adaptivity != "threshold":
        raise Failure("it names no budget: how sparse can it be?")
    if card.nearest and card.nearest != "dense" and card.nearest not in adapters.ids():
        raise Failure(f"its nearest relative {card.nearest!r} is no method")
    if card.nearest == card.id:
        raise Failure("it is its own nearest relative")


def _given_back(bench: Bench) -> None:
    """Weights, hooks and settings are as before, also after an exception."""
    for budget in bench.tried():
        bench.run(budget, bench.method)
        with suppress(InterruptedError):
            bench.run(budget, bench.method, fail=True)
    again = bench.run(None)
    if again.differs(bench.dense):
        raise Failure(f"the dense model's log-likelihoods are {again.differs(bench.dense):.2g} from what they were")


def _writes_to_nothing(bench: Bench) -> None:
    """`score` leaves what it is handed as it is."""
    import torch

    from sparsebench.adapters.activation.base import ActivationAdapter
    from sparsebench.adapters.pruning.base import PruningAdapter

    method = bench.method
    if isinstance(method, ActivationAdapter) and not method.learns():
        site = method.sites(bench.system)[0]
        handed = torch.randn(5, site.channels, generator=torch.Generator().manual_seed(0))
        handed = handed.to(bench.system.device, bench.system.dtype)
        kept = handed.clone()
        method.score(handed, method.state_of(site), torch.arange(5, device=handed.device))
    elif isinstance(method, PruningAdapter) and not method.needs_calibration:
        layer = method.layer(bench.system.linears[0], None)
        handed, kept = layer.weight, layer.weight.clone()
        method.score(layer)
    else:
        raise Skip("what it is handed is not made here")
    if not torch.equal(handed, kept):
        raise Failure("`score` writes to the tensor that it is handed")


def _full_is_dense(bench: Bench) -> None:
    """At a budget that leaves nothing out, the result is the dense one."""
    kinds = [kind for kind in FULL if kind in bench.method.card.budgets]
    if not kinds:
        raise Skip("it has no budget that leaves nothing out")
    for kind in kinds:
        budget = Budget.from_dict({kind: FULL[kind]})
        apart = bench.run(budget, bench.method).differs(bench.dense)
        if not apart <= SAME:
            raise Failure(f"at {budget.label} log-likelihoods are up to {apart:.2g} from the dense ones")


def _acts(bench: Bench) -> None:
    """At a tight budget something becomes sparse, and the result another."""
    budget = bench.sparsest()
    ran = bench.run(budget, bench.method)
    if not ran.outcome.exercised:
        raise Failure("it acted on nothing")
    if ran.outcome.sparsity is not None and ran.outcome.sparsity <= 0 and budget is not None:
        if budget.kind not in ("bits", "depth"):
            raise Failure(f"at {budget.label} nothing is left out of {ran.outcome.sparsity_of}")
    if not ran.differs(bench.dense) > 0:
        raise Failure("the result is the dense one")


def _meets_budget(bench: Bench) -> None:
    """What is realised is near a ratio or a pattern, and grows with it."""
    method = bench.method
    found = [(budget, bench.run(budget, method).outcome) for budget in bench.budgets("sparsity", "pattern")]
    if not found:
        raise Skip("it takes neither a ratio nor a pattern")
    realised = [outcome.sparsity for _, outcome in found]
    for (budget, outcome), value in zip(found, realised, strict=True):
        if value is None:
            raise Skip("it has no one sparsity")
        fixed = method.card.adaptivity in ("fixed", "static")
        if fixed and abs(value - budget.number) > NEAR:
            raise Failure(f"at {budget.label} it leaves out {100 * value:.1f}% of {outcome.sparsity_of}")
    shares = [value for value in realised if value is not None]
    if shares != sorted(shares):
        raise Failure(f"a larger budget leaves out less: {', '.join(f'{100 * s:.1f}%' for s in shares)}")


def _numbers(bench: Bench) -> None:
    """No log-likelihood is NaN or infinite."""
    for budget in bench.tried():
        if not all(np.isfinite(part).all() for part in bench.run(budget, bench.method).logprobs):
            raise Failure(f"log-likelihoods at {budget.label if budget else 'its one setting'} are not all numbers")


def _same_again(bench: Bench) -> None:
    """Prepared and attached a second time, it gives the same bits."""
    budget = bench.sparsest()
    first = bench.run(budget, bench.method)
    bench.prepared.clear()
    bench.system.memory.clear()
    second = bench.run(budget, bench.method)
    if apart := first.differs(second):
        raise Failure(f"a second run is up to {apart:.2g} from the first: draw from the knob `seed`")


def _alone(bench: Bench) -> None:
    """A text has the same result alone and in a batch."""
    budget = bench.sparsest()
    together = bench.run(budget, bench.method)
    for place, text in enumerate(bench.texts):
        one = bench.run(budget, bench.method, [text]).logprobs[0]
        apart = float(np.abs(one - together.logprobs[place]).max())
        if not apart <= ALIKE:
            raise Failure(f"a text of {len(text.tokens)} tokens alone is up to {apart:.2g} from itself in a batch")


def _no_future(bench: Bench) -> None:
    """What follows a token has no part in its result, unless the card says that it may."""
    from sparsebench.engine.scoring import Scored

    method = bench.method
    budget = next(iter(bench.budgets("tokens", "coverage", "pattern")[-1:]), None) or bench.sparsest()
    shares: Callable[[Budget | None], bool] | None = getattr(method, "shares_prefixes", None)
    if not (shares(budget) if shares is not None else method.prefix_invariant()):
        raise Skip("it looks at whole prompts, and says so")
    text, other = bench.texts[0], bench.texts[1]
    common, tail = 240, 40
    tails = (text.tokens[common : common + tail], other.tokens[:tail])
    requests = [Scored([*text.tokens[:common], *end], 100, common + tail) for end in tails]
    one, two = (bench.run(budget, method, [request]).logprobs[0] for request in requests)
    same = 100 - tail
    apart = float(np.abs(one[:same] - two[:same]).max())
    if not apart <= SAME:
        raise Failure(
            f"tokens are up to {apart:.2g} from themselves before another ending: it looks at later tokens, "
            "and its card should say prefix_invariant=False"
        )


def _executed(bench: Bench) -> None:
    """Executed, it gives what it gives simulated."""
    method = bench.method
    if not {"simulated", "executed"} <= set(method.card.modes):
        raise Skip("it has one mode")
    budget = bench.sparsest()
    each = []
    for mode in ("simulated", "executed"):
        try:
            each.append(bench.run(budget, type(method).configure({**method.model_dump(), "mode": mode})))
        except InputError as error:
            if "cannot be executed" in error.message:
                raise Skip(f"not with these knobs: {error.message}") from None
            raise
    if not (apart := each[0].differs(each[1])) <= ALIKE:
        raise Failure(f"executed it is up to {apart:.2g} from what it is simulated")


CHECKS: dict[str, Callable[[Bench], None]] = {
    "the card is complete": check_card,
    "the model comes back bit for bit": _given_back,
    "nothing handed to `score` is written to": _writes_to_nothing,
    "all results are numbers": _numbers,
    "a full budget is dense": _full_is_dense,
    "a tight budget acts": _acts,
    "what is realised is near the budget": _meets_budget,
    "a second run gives the same bits": _same_again,
    "a batch changes nothing": _alone,
    "later tokens change nothing": _no_future,
    "executed is as simulated": _executed,
}
"""The checks by what they say, in the order in which they are made."""


def _texts(system: CausalLM) -> Iterator[Any]:
    from sparsebench.engine.scoring import Scored

    most = max(length for length, _, _ in LENGTHS)
    rows = _rows(system, len(LENGTHS), most, seed=1)
    for row, (length, scored, prefill) in zip(rows, LENGTHS, strict=True):
        yield Scored(row[:length].tolist(), scored, prefill)


def _calibration(system: CausalLM) -> Calibration:
    from sparsebench.adapters.calibration import Calibration

    return Calibration("prose", _rows(system, 4, 128, seed=0))


def _rows(system: CausalLM, sequences: int, length: int, seed: int) -> np.ndarray:
    from sparsebench.calibration_texts import calibration_for

    entry = {"data": "prose", "sequences": sequences, "length": length, "seed": seed}
    return calibration_for(system.tokenizer, entry).ids


def _loader(model: str | None) -> Callable[[], CausalLM]:
    if model is None:
        from sparsebench.systems.tiny import tiny_system

        return tiny_system
    from sparsebench.systems.loading import load_causal_lm

    return lambda: load_causal_lm(model, "float32")
