"""FLOPs and bytes of a language model and of a request, as pure functions.

One multiply-add is two FLOPs. Norms, softmax, rotary embedding and the lookup of embeddings count nothing. Storage is
priced at 16 bits for a weight and for an entry of the cache, whatever dtype was run, so that a measurement in float32
and one in bfloat16 have the same ratios.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.systems.causal_lm import CausalLM, LinearSite

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
BYTES = 2.0
"""Bytes of a stored weight, key or value entry."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder-only model.

    Attributes:
        hidden: Width of the residual stream.
        layers: Decoder blocks.
        heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer.
        head_dim: Entries of a query or key.
        value_dim: Entries of a value.
        vocab: Rows of the LM head.
        linear_params: Multiply-adds of one token in all linear layers of the blocks; of experts only those that run.
        stored_params: Weights of those linear layers; above `linear_params` where experts rest.
        head_params: Weights of the LM head.
        parameters: All parameters of the model, tied ones once.
        windows: For each layer how many of the last keys a query sees; None: all; 0: it has no softmax attention.
        bytes_per_weight: Bytes of a stored weight.
        bytes_per_entry: Bytes of an entry of a cached key or value.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    vocab: int
    linear_params: int
    stored_params: int
    head_params: int
    parameters: int
    windows: tuple[int | None, ...]
    bytes_per_weight: float = BYTES
    bytes_per_entry: float = BYTES

    @classmethod
    def of(cls, system: CausalLM) -> ModelShape:
        """Sizes read from the modules of a loaded model, and from its configuration where modules do not tell.

        Raises:
            InputError: The model attends in a way whose cost is not modelled.
        """
        config, model = system.config, system.model
        if not getattr(config, "num_attention_heads", None) or not system.blocks:
            raise InputError(f"{type(model).__name__}: not a decoder of attention blocks", "its cost is not modelled")
        heads = int(config.num_attention_heads)
        active, stored = _linear_params(system)
        head = model.get_output_embeddings()
        head_dim = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None)
        key_dim = int(head_dim or config.hidden_size // heads)
        return cls(
            hidden=int(config.hidden_size),
            layers=len(system.blocks),
            heads=heads,
            kv_heads=_kv_heads(config),
            head_dim=key_dim,
            value_dim=int(getattr(config, "v_head_dim", None) or key_dim),
            vocab=int(config.vocab_size),
            linear_params=active,
            stored_params=stored,
            head_params=head.weight.numel() if head is not None else 0,
            parameters=sum(p.numel() for p in model.parameters()),
            windows=_windows(config, system.blocks),
        )

    def pairs(self, start: int, count: int) -> int:
        """(query, key) pairs of one head, summed over layers, of `count` queries from position `start` on."""
        return sum(window_pairs(start, count, window) for window in self.windows)

    @property
    def pair_flops(self) -> int:
        """FLOPs of one (query, key) pair of one query head: the score and the weighted value."""
        return 2 * (self.head_dim + self.value_dim)

    @property
    def key_bytes(self) -> float:
        """Bytes of one key with its value, of one key head."""
        return (self.head_dim + self.value_dim) * self.bytes_per_entry

    @property
    def token_flops(self) -> int:
        """FLOPs of one token in the linear layers of all blocks."""
        return 2 * self.linear_params


@dataclass(frozen=True)
class Request:
    """One request, or a batch of equal ones.

    Attributes:
        prompt: Tokens that run in prefill.
        answer: Tokens that run in decode, one after another.
        batch: Requests that run together and share each read of the weights.
    """

    prompt: int
    answer: int
    batch: int = 1


@dataclass(frozen=True)
class Cost:
    """What something costs.

    Attributes:
        linear: FLOPs of the linear layers of the blocks.
        attention: FLOPs of attention scores and weighted values.
        head: FLOPs of the LM head.
        index: FLOPs of estimating and selecting.
        correction: FLOPs of repairing what sparsity did (a dense pass now and then).
        bytes_weights: Bytes of weights read.
        bytes_kv_read: Bytes of keys and values read, with what an index reads.
        bytes_kv_resident: Bytes of keys and values held at the end, with what an index keeps of them.
    """

    linear: float = 0.0
    attention: float = 0.0
    head: float = 0.0
    index: float = 0.0
    correction: float = 0.0
    bytes_weights: float = 0.0
    bytes_kv_read: float = 0.0
    bytes_kv_resident: float = 0.0

    @property
    def flops(self) -> float:
        """All FLOPs."""
        return self.linear + self.attention + self.head + self.index + self.correction

    @property
    def bytes(self) -> float:
        """All bytes read."""
        return self.bytes_weights + self.bytes_kv_read

    def __add__(self, other: Cost) -> Cost:
        """One after the other: work adds up, of what is resident the larger counts."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Cost(**{**sums, "bytes_kv_resident": max(self.bytes_kv_resident, other.bytes_kv_resident)})

    def ratio(self, dense: Cost) -> tuple[float, float]:
        """FLOPs and bytes read, each over those of `dense`; 1 where `dense` has none."""
        return _share(self.flops, dense.flops), _share(self.bytes, dense.bytes)


@dataclass(frozen=True)
class PhaseCosts:
    """The cost of a request by phase."""

    prefill: Cost
    decode: Cost

    @property
    def whole(self) -> Cost:
        """Both phases."""
        return self.prefill + self.decode

    def of(self, phase: Phase) -> Cost:
        """The cost of one phase."""
        return self.prefill if phase == "prefill" else self.decode


def window_pairs(start: int, count: int, window: int | None = None) -> int:
    """(query, key) pairs of `count` causal queries from position `start` on that see the last `window` keys.

    >>> window_pairs(0, 4), window_pairs(0, 4, window=2), window_pairs(2, 2)
    (10, 7, 7)
    """
    if window is None:
        return count * start + count * (count + 1) // 2
    rising = min(max(window - start, 0), count)  # queries that see fewer keys than the window, or just as many
    return window_pairs(start, rising) + (count - rising) * window


def dense_cost(shape: ModelShape, request: Request) -> PhaseCosts:
    """What a request costs the dense model.

    Prefill asks for the logits of the last prompt token alone and reads each weight and key once; decode reads all
    weights at each step, once for the batch, and all keys that the step's query sees. Of experts, a step reads those of
    `batch` tokens, as if no two tokens shared one, and at most all.
    """
    prompt, answer, batch = request.prompt, request.answer, request.batch
    prefill_kv = sum(_seen(prompt, window) for window in shape.windows)
    final_kv = sum(_seen(prompt + answer, window) for window in shape.windows)
    decode_pairs = shape.pairs(prompt, answer)
    keys = batch * shape.kv_heads * shape.key_bytes
    prefill = Cost(
        linear=batch * prompt * shape.token_flops,
        attention=batch * shape.heads * shape.pair_flops * shape.pairs(0, prompt),
        head=batch * 2 * shape.head_params if prompt else 0,
        bytes_weights=_weights_read(shape, batch * prompt) if prompt else 0.0,
        bytes_kv_read=keys * prefill_kv,
        bytes_kv_resident=keys * prefill_kv,
    )
    decode = Cost(
        linear=batch * answer * shape.token_flops,
        attention=batch * shape.heads * shape.pair_flops * decode_pairs,
        head=batch * answer * 2 * shape.head_params,
        bytes_weights=answer * _weights_read(shape, batch),
        bytes_kv_read=keys * decode_pairs,
        bytes_kv_resident=keys * final_kv,
    )
    return PhaseCosts(prefill, decode)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _seen(keys: int, window: int | None) -> int:
    return keys if window is None else min(keys, window)


def _weights_read(shape: ModelShape, tokens: int) -> float:
    """Bytes of weights that one pass over so many tokens reads."""
    linear = min(shape.stored_params, shape.linear_params * tokens)
    return (linear + shape.head_params) * shape.bytes_per_weight


def _kv_heads(config: Any) -> int:
    grouped = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    return int(grouped or config.num_attention_heads)


def active_share(system: CausalLM, site: LinearSite) -> float:
    """Share of the tokens that run through a linear layer: all, or of an expert's projection those routed to it.

    Raises:
        InputError: How many experts run for a token is not known.
    """
    return 1.0 if site.expert is None else _expert_share(system.config, len(site.owner), site.name)


def _linear_params(system: CausalLM) -> tuple[int, int]:
    """Multiply-adds of one token in the blocks, and the weights that are stored for them.

    Beside linear layers and experts a block may hold matrices of its own: a router (two dimensions), experts in one
    tensor (three) of a form that is not known.
    """
    import torch

    from sparsebench.systems.experts import many_in_one

    sizes = [(site.weight.numel(), active_share(system, site)) for site in system.linears]
    known = {id(site.owner) for site in system.linears}
    for block in system.blocks:
        for name, module in block.named_modules():
            if isinstance(module, torch.nn.Embedding):
                continue
            for own, parameter in module.named_parameters(recurse=False):
                if id(parameter) in known or parameter.dim() < 2 or own.endswith("bias"):
                    continue
                if parameter.dim() == 2 and any(parameter is experts for experts in many_in_one(module)):
                    raise InputError(f"the experts of {name!r} lie in one matrix", "their cost is not modelled")
                share = 1.0 if parameter.dim() == 2 else _expert_share(system.config, parameter.shape[0], name)
                sizes.append((parameter.numel(), share))
    return round(sum(size * share for size, share in sizes)), sum(size for size, _ in sizes)


def _expert_share(config: Any, experts: int, name: str) -> float:
    """Share of experts that run for a token."""
    counts = [getattr(config, field, None) for field in EXPERTS]
    active = next((n for field in ACTIVE if (n := getattr(config, field, None)) is not None), None)
    if experts in counts and isinstance(active, int):
        return active / experts
    raise InputError(
        f"the weights of {name!r} are neither linear layers nor experts",
        "the cost of this architecture is not modelled",
    )


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Fields of configurations with the number of experts of a layer."""
ACTIVE = ("num_experts_per_tok", "top_k_experts", "moe_topk")
"""Fields with the number of those that run for a token."""


def _windows(config: Any, blocks: list[Any]) -> tuple[int | None, ...]:
    kinds = getattr(config, "layer_types", None) or []
    found: list[int | None] = []
    for index, block in enumerate(blocks):
        # A model may have lost layers since its configuration was written: each layer knows its own place.
        place = next((int(m.layer_idx) for m in block.modules() if getattr(m, "layer_idx", None) is not None), index)
        kind = kinds[place] if place < len(kinds) else None
        if kind == "chunked_attention":
            raise InputError("chunked attention is not modelled", "the model's layers attend within fixed chunks")
        if kind not in (None, "full_attention", "sliding_attention"):
            found.append(0)
            continue
        own = [m.sliding_window for m in block.modules() if hasattr(m, "sliding_window")]
        everywhere = getattr(config, "sliding_window", None) if kind != "full_attention" else None
        window = own[0] if own else everywhere
        found.append(int(window) if window else None)
    return tuple(found)
