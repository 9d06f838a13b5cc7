"""Where a dense model spends its time on this machine, and the most that leaving out part of it can gain."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM

PARTS = ("linear", "attention", "head", "other")
"""Linear layers of the blocks; what is left of the attention modules without theirs; the LM head; all else."""


def amdahl(shares: Mapping[str, float], left: Mapping[str, float]) -> float:
    """The largest speed-up of the whole when parts of it take a share of their time, and all else takes what it took.

    Args:
        shares: Share of the whole time of each part; they add up to 1.
        left: For parts that become faster, the share of their work that is left.

    Raises:
        InputError: The shares are none of a whole, or something is left of a part that is not there.

    >>> amdahl({"linear": 0.6, "attention": 0.4}, {"attention": 0.1})
    1.5625
    """
    whole = sum(shares.values())  # but for a rounding 1, and the same rounding as below where nothing becomes faster
    if abs(whole - 1) > 1e-6 or min(shares.values()) < 0:
        raise InputError(f"shares of time add up to {whole:.4f}", "they are those of all parts, each above 0")
    if missing := set(left) - set(shares):
        raise InputError(f"no share of time for {', '.join(sorted(missing))}")
    after = sum(share * left.get(part, 1.0) for part, share in shares.items())
    return whole / after if after else float("inf")


def measured_shares(system: CausalLM, prompt: int, answer: int = 0, rounds: int = 3) -> dict[str, float]:
    """Share of the wall time of a dense pass that each of `PARTS` takes.

    The pass is prefill, or decode where there is an answer. The model's own attention runs, at batch 1, on tokens whose
    values mean nothing. The first round is left out.

    Args:
        system: The model.
        prompt: Tokens of the prompt.
        answer: Tokens that are decoded after it; 0: prefill is timed, else decode alone.
        rounds: Rounds that are timed.
    """
    import torch

    ids = torch.arange(prompt + answer, device=system.device)[None] % int(system.config.vocab_size)
    clock = _Clock(system)
    with clock.hooked(), torch.inference_mode():
        for number in range(rounds + 1):
            cache = system.model(ids[:, :prompt], use_cache=True).past_key_values if answer else None
            parts = torch.split(ids[:, prompt:], 1, dim=1) if answer else [ids]
            clock.running = number > 0
            for part in parts:
                clock.enter("other")
                system.model(part, past_key_values=cache, use_cache=bool(answer), logits_to_keep=1)
                clock.leave()
            clock.running = False
    whole = sum(clock.spent.values())
    return {part: clock.spent[part] / whole for part in PARTS}


class _Clock:
    """Time that modules spend, without that of modules inside them."""

    def __init__(self, system: CausalLM) -> None:
        self.system = system
        self._gpus = system.devices if system.device.type == "cuda" else []
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.running = False
        self._open: list[tuple[str, float]] = []
        self._inside: list[float] = []

    def enter(self, part: str) -> None:
        """A module begins."""
        if self.running:
            self._open.append((part, self._now()))
            self._inside.append(0.0)

    def leave(self) -> None:
        """The module that began last ends."""
        if self.running:
            part, begun = self._open.pop()
            elapsed = self._now() - begun
            self.spent[part] += elapsed - self._inside.pop()
            if self._inside:
                self._inside[-1] += elapsed

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch the model's modules."""
        handles = []
        for part, module in self._modules():
            handles.append(module.register_forward_pre_hook(lambda *_, part=part: self.enter(part)))
            handles.append(module.register_forward_hook(lambda *_: self.leave()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _modules(self) -> Iterator[tuple[str, Any]]:
        for module in {id(site.holder): site.holder for site in self.system.linears}.values():
            yield "linear", module
        for block in self.system.blocks:
            yield from (("attention", module) for module in block.modules() if "Attention" in type(module).__name__)
        head = self.system.model.get_output_embeddings()
        if head is not None:
            yield "head", head

    def _now(self) -> float:
        if self._gpus:
            import torch

            for device in self._gpus:
                torch.cuda.synchronize(device)
        return time.perf_counter()
