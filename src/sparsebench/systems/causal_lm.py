"""A causal language model with its tokenizer, as the engine and the adapters use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.cost import ModelShape, window_pairs
from sparsebench.engine.flow import Flow
from sparsebench.errors import InputError
from sparsebench.systems.base import System
from sparsebench.systems.counters import Counters
from sparsebench.systems.experts import ExpertLinear, Experts, experts_in
from sparsebench.systems.fingerprint import model_fingerprint

if TYPE_CHECKING:
    from sparsebench.engine.attention import AttentionPolicy
    from sparsebench.engine.correction import Correction
    from sparsebench.engine.trie import Node
    from sparsebench.systems.imprint import Imprint
    from sparsebench.systems.weights import Stored


BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of one forward pass, by type of device: enough to fill it, few enough for its memory."""
MAX_LANES = {"cpu": 128, "cuda": 1024}
"""Sequences generated at a time, by type of device."""


ACTING = (
    "policy",
    "flow",
    "correction",
    "prefix_invariant",
    "decode_from_context_end",
    "whole_prompt",
    "prefill_state",
    "unreduced",
)
"""Attributes of a `CausalLM` that a method sets for as long as it is attached."""


@dataclass(frozen=True)
class LinearSite:
    """One linear layer inside the decoder blocks, or one projection of one expert.

    Attributes:
        name: Its name in the model, `model.layers.0.mlp.up_proj`, `model.layers.0.mlp.experts.3.down_proj`.
        module: The module; its `weight` is [out, in], or [in, out] where `transposed` (GPT-2's Conv1D). The projection
            of an expert is a module that runs only within `systems.experts.exposed`.
        block: Index of the decoder block.
    """

    name: str
    module: torch.nn.Module
    block: int
    transposed: bool

    @property
    def expert(self) -> int | None:
        """Index of the expert; None: a layer of its own."""
        return self.module.index if isinstance(self.module, ExpertLinear) else None

    @property
    def owner(self) -> torch.nn.Parameter:
        """The parameter that holds the weight: [out, in] or [in, out], of experts all of these in one."""
        return self.module.stack if isinstance(self.module, ExpertLinear) else self.module.get_parameter("weight")

    @property
    def holder(self) -> torch.nn.Module:
        """What runs it in the model as it is: the module, or the one of all experts."""
        return self.module.experts.module if isinstance(self.module, ExpertLinear) else self.module

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """What of a tensor of the form of `owner` is this layer's, as [out, in]; a view."""
        own = whole if self.expert is None else whole[self.expert]
        return own.T if self.transposed else own

    @property
    def weight(self) -> torch.Tensor:
        """The weight as [out, in]; a view, writing to it writes to the model."""
        return self.part(self.owner)

    @property
    def role(self) -> str:
        """Last part of the name: `q_proj`, `down_proj`."""
        return self.name.rsplit(".", 1)[-1]


class CausalLM(System):
    """A causal language model under test.

    Args:
        model: A transformers causal LM; it is put into evaluation mode.
        tokenizer: Its tokenizer.
        ref: Where it comes from.
        fingerprint: Hash of what its answers follow from; computed of the model and its tokenizer when empty.
        base_precision: What the weights were before they became this dtype ("4-bit, dequantised"; "bfloat16").
        batch_tokens: Tokens of one forward pass; None: what suits the device.
        max_lanes: Most sequences generated at a time; None: what suits the device.
    """

    kind = "causal-lm"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        ref: str = "memory:model",
        fingerprint: str = "",
        base_precision: str = "",
        batch_tokens: int | None = None,
        max_lanes: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.ref = ref
        self.fingerprint = fingerprint or model_fingerprint(model, tokenizer)
        self.device: torch.device = next(model.parameters()).device
        """Where tokens go in and logits come out; blocks may lie on others (`systems.spreading`)."""
        if self.device.type == "cuda":
            # cuDNN's attention builds a plan for every shape, and packed rows hardly ever have the same one twice.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.batch_default = batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"])
        self.lanes_default = max_lanes or MAX_LANES.get(self.device.type, MAX_LANES["cpu"])
        self.plan_batch(None)
        self.flow: Flow | None = None
        self.policy: AttentionPolicy | None = None
        self.prefix_invariant = True
        self.decode_from_context_end = False
        self.whole_prompt = False
        self.correction: Correction | None = None
        """How generated tokens are corrected by the dense model; None: not at all."""
        self.prefill_state: str | None = None
        """A name for all that acts in prefill; None: not known, and no prefill is kept for other cells."""
        self.counters = Counters()
        self.memory: dict[str, Any] = {}
        """What callers keep with the system for as long as it is loaded: calibration statistics, prompts, plans."""
        self.stored: dict[str, Stored] = {}
        """How the weights of layers are stored where that is not entry by entry, by name of the layer."""
        self.unreduced: ModelShape | None = None
        """`shape` before anything was removed; None while nothing is."""
        parameter = next(model.parameters())
        self.dtype: torch.dtype = parameter.dtype
        self.base_precision = base_precision or str(self.dtype).removeprefix("torch.")

    def plan_batch(self, tokens: int | None) -> None:
        """Set the batch to so many tokens; None: what suits the device."""
        self.batch_tokens, self.max_lanes = tokens or self.batch_default, self.lanes_default
        self.halvings = 0
        """How often the batch was halved since, for want of memory."""

    def halve_batch(self) -> None:
        """Halve the batch, until it is planned anew."""
        self.batch_tokens //= 2
        self.max_lanes = max(1, self.max_lanes // 2)
        self.halvings += 1
        self.memory.pop("prefills", None)

    @property
    def config(self) -> Any:
        """The text model's configuration."""
        get = getattr(self.model.config, "get_text_config", None)
        return get() if get is not None else self.model.config

    @property
    def devices(self) -> list[str]:
        """All devices that hold weights, the first one first."""
        return list(dict.fromkeys(str(parameter.device) for parameter in self.model.parameters()))

    @cached_property
    def blocks(self) -> list[torch.nn.Module]:
        """See `decoder_blocks`."""
        return decoder_blocks(self.model)

    @cached_property
    def linears(self) -> list[LinearSite]:
        """Linear layers of the decoder blocks, with the projections of experts; no embeddings and no LM head.

        They are in the model's order, and those of one expert follow one another.
        """
        names = {id(module): name for name, module in self.model.named_modules()}
        found = []
        for index, block in enumerate(self.blocks):
            for module in block.modules():
                name = names[id(module)]
                if _is_linear(module):
                    found.append(LinearSite(name, module, index, type(module).__name__ == "Conv1D"))
                elif (experts := experts_in(module)) is not None:
                    found += [
                        LinearSite(f"{name}.{own.index}.{own.role}", own, index, experts.transposed)
                        for expert in experts.linears
                        for own in expert
                    ]
        return found

    @property
    def experts(self) -> list[Experts]:
        """The experts whose projections are among `linears`, one entry for each module that holds some."""
        found = [site.module.experts for site in self.linears if isinstance(site.module, ExpertLinear)]
        return list({id(experts): experts for experts in found}.values())

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes that the cost model needs.

        Raises:
            InputError: The architecture's cost is not modelled.
        """
        try:
            return ModelShape.of(self)
        except AttributeError as error:
            raise InputError(f"the cost of {type(self.model).__name__} is not modelled: {error}") from error

    @cached_property
    def obstacle(self) -> str:
        """Why rows cannot be packed for this model, found out by trying; empty where they can."""
        from sparsebench.engine.packing import obstacle

        return obstacle(self)

    @property
    def packed(self) -> bool:
        """Whether the engine packs rows; if not, it makes plain calls of the model, and attention is its own."""
        return not self.obstacle

    def see_dense(self) -> None:
        """See `System.see_dense`: a model that a method has broken rounds too badly to try rows of it."""
        _ = self.obstacle

    def imprint(self) -> Imprint:
        """See `System.imprint`: all weights, modules and hooks, the configuration, and what acts in the engine."""
        from sparsebench.systems.imprint import Imprint

        acting = {f"the system's {name}": getattr(self, name) for name in ACTING}
        return Imprint.of(self.model, {**acting, "the system's stored weights": dict(self.stored)})

    def refuse_attention(self) -> None:
        """Refuse a model whose attention cannot be replaced.

        Raises:
            InputError: It cannot.
        """
        if not self.packed:
            raise InputError(
                f"{type(self.model).__name__} cannot have its attention replaced: {self.obstacle}",
                "sparse attention needs a model whose blocks attend through transformers' AttentionInterface",
            )

    def describe(self) -> dict[str, Any]:
        """Facts for the record."""
        return {
            **super().describe(),
            "architecture": type(self.model).__name__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "base_precision": self.base_precision,
            "device": str(self.device),
            **({"devices": self.devices} if len(self.devices) > 1 else {}),
            "engine": f"plain calls: {self.obstacle}" if self.obstacle else "packed rows",
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **self._described_shape(),
        }

    def _described_shape(self) -> dict[str, Any]:
        """The sizes that the cost of a stored cell can be computed from again, where it is modelled."""
        try:
            sizes = {"shape": asdict(self.shape)}
        except InputError:
            return {}
        return sizes if self.unreduced is None else {**sizes, "unreduced": asdict(self.unreduced)}

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, without special tokens."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def lanes_for(self, length: int) -> int:
        """Sequences of `length` tokens that are generated at a time."""
        return max(1, min(self.max_lanes, 64 * self.batch_tokens // max(length, 1)))

    @property
    def windows(self) -> list[int]:
        """The numbers of keys that layers with a window see; none where the architecture's cost is not modelled."""
        try:
            shapes = [self.shape] if self.unreduced is None else [self.shape, self.unreduced]
        except InputError:
            return []
        return sorted({window for shape in shapes for window in shape.windows if window})

    def count_tokens(self, nodes: Iterable[Node]) -> None:
        """Count tokens and dense attention pairs of nodes about to run."""
        windows = self.windows
        for node in nodes:
            count, pairs = len(node.tokens), window_pairs(node.start, len(node.tokens))
            within = {window: window_pairs(node.start, count, window) for window in windows}
            self.counters.tokens("decode" if node.decode else "prefill", count, pairs, within)

    def count_decode(self, lengths: Sequence[int]) -> None:
        """Count one decode step over sequences of these lengths."""
        self.count_queries("decode", lengths)
        self.counters.add("decode.scored", len(lengths))

    def count_queries(self, phase: str, lengths: Sequence[int], sign: int = 1) -> None:
        """Count tokens, or take them back, of which each has so many keys up to itself."""
        within = {window: sign * sum(min(length, window) for length in lengths) for window in self.windows}
        self.counters.tokens(phase, sign * len(lengths), sign * sum(lengths), within)

    @contextmanager
    def prefilling(self, state: str) -> Iterator[None]:
        """See `System.prefilling`; before it the name was unknown, and is so again after it."""
        counted = "" if self.policy is None else ", attention counted"
        before, self.prefill_state = self.prefill_state, f"{state} in chunks of {self.batch_tokens}{counted}"
        try:
            yield
        finally:
            self.prefill_state = before

    @contextmanager
    def correcting(self, correction: Correction) -> Iterator[None]:
        """Within the context the dense model corrects what is generated.

        Raises:
            InputError: The engine does not generate this model's texts itself.
        """
        if not self.packed:
            raise InputError(
                f"texts of {type(self.model).__name__} cannot be corrected: {self.obstacle}",
                "the engine corrects texts that it generates in packed rows",
            )
        before, self.correction = self.correction, correction
        try:
            yield
        finally:
            self.correction = before

    @contextmanager
    def acting(
        self,
        decode: bool,
        prefix_invariant: bool,
        policy: AttentionPolicy | None = None,
        whole_prompt: bool = False,
    ) -> Iterator[None]:
        """Declare what an attached adapter needs of the engine.

        Args:
            decode: It acts in decode, so the question and the last prompt token run as decode.
            prefix_invariant: Whether prefixes may be shared while it is attached.
            policy: What attends in the place of dense attention.
            whole_prompt: Prefill ends before the last token of the prompt, wherever the context ends.

        Raises:
            InputError: A policy was given, and the model does not attend through the engine.
        """
        if not self.packed and policy is not None:  # tried in any case, before something is attached
            self.refuse_attention()
        before = (self.decode_from_context_end, self.prefix_invariant, self.policy, self.whole_prompt)
        self.decode_from_context_end |= decode
        self.prefix_invariant &= prefix_invariant
        self.whole_prompt |= whole_prompt
        self.policy = policy or self.policy
        try:
            yield
        finally:
            self.decode_from_context_end, self.prefix_invariant, self.policy, self.whole_prompt = before


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def decoder_blocks(model: Any) -> list[torch.nn.Module]:
    """The decoder blocks: the longest list of modules that hold linear layers."""
    lists = [list(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList) and _holds_linear(m)]
    return max(lists, key=len, default=[])


def _holds_linear(modules: torch.nn.ModuleList) -> bool:
    return len(modules) > 0 and all(any(_is_linear(m) for m in module.modules()) for module in modules)
