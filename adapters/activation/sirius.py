"""Sirius: the dense model corrects what a model with sparse activations generates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from sparsebench.adapters.activation.base import ActivationAdapter
from sparsebench.adapters.base import Adapter, Prepared
from sparsebench.adapters.card import MethodCard, Paper
from sparsebench.cost import PhaseCosts, Request, dense_cost
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.budget import Budget
    from sparsebench.systems.causal_lm import CausalLM


class Sirius(Adapter):
    """Any activation method in decode; after each window of tokens the dense model reads them and may replace one."""

    card: ClassVar[MethodCard] = MethodCard(
        id="sirius",
        family="activation",
        title="Sirius",
        summary="Another activation method generates; every few tokens the dense model reads them, replaces the first "
        "that it holds for too unlikely and puts its own keys in place.",
        paper=Paper(
            title="Sirius: Contextual Sparsity with Correction for Efficient LLMs",
            authors="Yang Zhou and Zhuoming Chen and Zhaozhuo Xu and Victoria Lin and Beidi Chen",
            year=2024,
            venue="Advances in Neural Information Processing Systems",
            url="https://arxiv.org/abs/2409.03856",
            key="zhou2024sirius",
        ),
        unit="channel",
        phases=("decode",),
        adaptivity="threshold",
        training="calibration",
        nearest="griffin",
        differs="is no rule of its own: it corrects what the method that it wraps generates",
        deviations=(
            "one text at a time is drafted, no tree of them",
            "the part of a prompt that runs in decode is sparse until the first window, which covers it",
            "texts that are scored and not generated are not corrected",
            "the budget is that of the method that is corrected; what correcting costs is counted beside it",
        ),
    )

    method: str = "griffin"
    """Id of the activation method that is corrected; it acts in decode."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its knobs."""
    every: int = Field(default=16, ge=2)
    """Tokens of a window."""
    threshold: float = Field(default=0.1, ge=0, le=1)
    """The least probability that the dense model must give a token that stays."""
    temperature: float = Field(default=0.6, gt=0)
    """What its logits are divided by before, as in the released code."""
    seed: int = 0

    @model_validator(mode="after")
    def _wraps(self) -> Sirius:
        _ = self.corrected
        return self

    @cached_property
    def corrected(self) -> ActivationAdapter:
        """The method that is corrected.

        Raises:
            InputError: It is no activation method, or is to act elsewhere than in decode, or to be executed.
        """
        from sparsebench.adapters.registry import get

        method = get(self.method)
        if not issubclass(method, ActivationAdapter):
            raise InputError(f"{self.card.id} corrects activation methods, not {self.method}")
        if self.options.get("scope", "decode") != "decode":
            raise InputError(f"{self.card.id} corrects what is decoded: scope {self.options['scope']!r} is not for it")
        if self.options.get("mode", "simulated") != "simulated":
            raise InputError(f"what {self.card.id} corrects is simulated", "leave out the mode")
        seed = {"seed": self.seed} if "seed" in method.model_fields else {}
        return method.configure({**seed, **self.options, "scope": "decode"})

    def phases(self) -> tuple[str, ...]:
        """Decode."""
        return ("decode",)

    def prefix_invariant(self) -> bool:
        """As the corrected method."""
        return self.corrected.prefix_invariant()

    def reads_calibration(self) -> bool:
        """As the corrected method."""
        return self.corrected.reads_calibration()

    def prepare_depends_on_budget(self) -> bool:
        """As the corrected method."""
        return self.corrected.prepare_depends_on_budget()

    def prepare(self, system: CausalLM, calibration: Calibration | None, budget: Budget | None = None) -> Prepared:
        """What the corrected method prepares."""
        return self.corrected.prepare(system, calibration, budget)

    @contextmanager
    def attach(self, system: CausalLM, prepared: Prepared, budget: Budget | None) -> Iterator[CausalLM]:
        """The corrected method, and a dense model beside it.

        Raises:
            InputError: The engine does not generate this model's texts itself.
        """
        from sparsebench.engine.correction import Correction

        self.check_budget(budget)
        correction = Correction(self.every, self.threshold, self.temperature)
        with system.correcting(correction), self.corrected.attach(system, prepared, budget):
            yield system

    def cost(self, system: Any, request: Request, budget: Budget | None) -> PhaseCosts:
        """What the corrected method costs, and each token once more by the dense model, as if none were refused."""
        found, dense = self.corrected.cost(system, request, budget), dense_cost(system.shape, request)
        checks = 1 / self.every
        return replace(
            found,
            decode=replace(
                found.decode,
                correction=dense.decode.flops,
                bytes_weights=found.decode.bytes_weights + checks * dense.decode.bytes_weights,
                bytes_kv_read=found.decode.bytes_kv_read + checks * dense.decode.bytes_kv_read,
            ),
        )
