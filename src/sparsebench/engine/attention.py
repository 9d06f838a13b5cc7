"""Attention as the engine and the attention methods see it.

The engine registers one attention function with transformers (`AttentionInterface`), so no model class is patched. It
finds the running `Flow` through a context variable, splits the flat tokens into rows and lets the attached policy
attend them; without a policy, attention is dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from sparsebench.engine import blocked, fused
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.engine.flow import Flow

NAME = "sparsebench"
CURRENT: ContextVar[Flow | None] = ContextVar("sparsebench_flow", default=None)


@dataclass
class Geometry:
    """Where the queries of some rows lie, on the host: arithmetic with it makes no device wait.

    Attributes:
        positions: As those of the view, [rows, queries], int64.
        lengths: As those of the view, [rows], int64.
        of: The view's tensors that these are copies of.
        memo: What follows from these alone, worked out once for all layers; keys name what and whose.
    """

    positions: np.ndarray
    lengths: np.ndarray
    of: tuple[torch.Tensor, torch.Tensor]
    memo: dict[Any, Any] = field(default_factory=dict)

    def of_copies(self, positions: torch.Tensor, lengths: torch.Tensor) -> Geometry:
        """The same of copies on another device; what was worked out lies on the first one and is worked out anew."""
        return Geometry(self.positions, self.lengths, (positions, lengths))


@dataclass
class AttentionView:
    """The attention of some rows in one layer. Rows are padded on the right; keys lie in the order of their positions.

    Attributes:
        query: After rotary embedding, [rows, heads, queries, head_dim].
        key: [rows, kv_heads, keys, head_dim]; `kv_heads` divides `heads`, and query head h reads head h // group.
        value: [rows, kv_heads, keys, value_dim].
        positions: Position of each query in its sequence, [rows, queries], int64; -1 where a row is padded.
        lengths: Keys that each row has, [rows], int64; key j lies at position j.
        scaling: What scores are multiplied with.
        layer: Index of the layer.
        decode: Whether these queries run in the decode phase.
        window: A query sees the last `window` keys only; None: all.
        softcap: Scores s become softcap * tanh(s / softcap); None: as they are.
        sinks: Learned logits that take part in the softmax with no value, [heads]; None: none.
        states: For each row the states of its ancestors and its own, outermost first; a method may write to the last.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    positions: torch.Tensor
    lengths: torch.Tensor
    scaling: float
    layer: int
    decode: bool
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    states: list[list[dict[Any, Any]]] = field(default_factory=list)
    aligned: bool = False
    """Whether the rows are whole prompts: query i is at position i, and causal attention needs no mask."""
    known: Geometry | None = None
    """What is known of the rows on the host; see `geometry`."""

    @property
    def geometry(self) -> Geometry:
        """Positions and lengths on the host; fetched from the device where whoever made the view did not know them."""
        known = self.known
        if known is None or known.of[0] is not self.positions or known.of[1] is not self.lengths:
            at = (self.positions, self.lengths)
            known = self.known = Geometry(self.positions.cpu().numpy(), self.lengths.cpu().numpy(), at)
        return known

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.query.shape[1] // self.key.shape[1]

    def visible(self) -> torch.Tensor:
        """Which keys each query may see at all: causal, in its row, in the window; bool [rows, 1, queries, keys]."""
        if self.query.shape[2] > 1 or self.known is None or self.known.of[0] is not self.positions:
            return self._visible()
        memo, key = self.known.memo, ("visible", self.window, self.key.shape[2])
        if key not in memo:  # a step of decode asks for the same in every layer
            memo[key] = self._visible()
        seen: torch.Tensor = memo[key]
        return seen

    def _visible(self) -> torch.Tensor:
        keys = torch.arange(self.key.shape[2], device=self.key.device)
        at = self.positions[:, None, :, None]
        seen = (keys <= at) & (keys < self.lengths[:, None, None, None])
        if self.window is not None:
            seen &= keys > at - self.window
        return seen

    def seen_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first key that each query sees, and the first behind those, int32 [rows, 1, queries]."""
        if self.known is None or self.known.of[0] is not self.positions:
            return self._seen_range()
        memo, key = self.known.memo, ("range", self.window, self.key.shape[2])
        if key not in memo:  # the same in all layers
            memo[key] = self._seen_range()
        seen: tuple[torch.Tensor, torch.Tensor] = memo[key]
        return seen

    def _seen_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        end = torch.minimum(self.positions + 1, self.lengths[:, None]).clamp(max=self.key.shape[2])[:, None]
        end = end.to(torch.int32)
        if self.window is None:
            return torch.zeros_like(end), end
        return (self.positions[:, None] + 1 - self.window).clamp(min=0).to(torch.int32), end

    def dense_pairs(self) -> int:
        """Visible (query, key) pairs of one head, over all rows."""
        geometry, key = self.geometry, ("pairs", self.window)
        if key not in geometry.memo:
            seen = geometry.positions + 1  # 0 where a row is padded
            geometry.memo[key] = int((seen if self.window is None else np.minimum(seen, self.window)).sum())
        pairs: int = geometry.memo[key]
        return pairs


class AttentionPolicy(Protocol):
    """What an attention adapter puts in the place of dense attention."""

    def attend(self, view: AttentionView) -> torch.Tensor:
        """The output for `view`, [rows, heads, queries, value_dim]."""
        ...


def attend_dense(view: AttentionView, masks: dict[int | None, torch.Tensor] | None = None) -> torch.Tensor:
    """Exact attention; [rows, heads, queries, value_dim].

    Args:
        view: The rows.
        masks: What layers share that attend the same rows: their visible keys by window; filled here.
    """
    if view.softcap is not None or view.sinks is not None:
        return attend_masked(view, _visible(view, masks))
    whole = view.window is None or view.key.shape[2] <= view.window
    if view.aligned and whole:
        if blocked.suits(view.query, masked=False):
            last = torch.arange(view.query.shape[2])
            return blocked.attend(view.query, view.key, view.value, view.scaling, last)
        return scaled_dot_product_attention(
            view.query, view.key, view.value, is_causal=True, scale=view.scaling, enable_gqa=view.group > 1
        )
    return attend_masked(view, _visible(view, masks))


def _visible(view: AttentionView, masks: dict[int | None, torch.Tensor] | None) -> torch.Tensor:
    if masks is None:
        return view.visible()
    if view.window not in masks:
        masks[view.window] = view.visible()
    return masks[view.window]


def attend_masked(view: AttentionView, keep: torch.Tensor) -> torch.Tensor:
    """Attention over the keys that `keep` names; a query with no key at all gives zeros.

    Args:
        view: The rows.
        keep: Bool, broadcastable to [rows, heads, queries, keys]; must lie within `view.visible()`.
    """
    if view.softcap is not None or view.sinks is not None:
        return _attend_explicitly(view, keep)
    if blocked.suits(view.query, masked=True):
        last = view.positions.amax(dim=0).cummax(dim=0).values.clamp(min=0)
        return blocked.attend(view.query, view.key, view.value, view.scaling, last, keep)
    if (done := fused.attend(view, keep, within=True)) is not None:
        return done
    rows, heads, queries, dim = view.query.shape
    if queries == 1 and view.group > 1:
        # One query: the heads of a group are queries of the same key head, and nothing is repeated.
        kv_heads = heads // view.group
        folded = view.query.reshape(rows, kv_heads, view.group, dim)
        if keep.shape[1] == heads:
            keep = keep.reshape(rows, kv_heads, view.group, -1)
        out = scaled_dot_product_attention(folded, view.key, view.value, attn_mask=keep, scale=view.scaling)
        return torch.nan_to_num(out.reshape(rows, heads, 1, -1))
    key, value, grouped = view.key, view.value, view.group > 1
    if grouped and view.query.device.type == "cuda":
        # There, no fused kernel takes both a mask and groups; the one that is left writes all scores to memory.
        key, value = (x.repeat_interleave(view.group, dim=1) for x in (key, value))
        grouped = False
    out = scaled_dot_product_attention(view.query, key, value, attn_mask=keep, scale=view.scaling, enable_gqa=grouped)
    return torch.nan_to_num(out)


def attend_seen(view: AttentionView, keep: torch.Tensor) -> torch.Tensor:
    """As `attend_masked`; `keep` may name keys that a query does not see, and have key heads in the place of heads."""
    if (done := fused.attend(view, keep)) is not None:
        return done
    seen = keep & view.visible()
    return attend_masked(
        view, seen.repeat_interleave(view.group, 1) if 1 < seen.shape[1] < view.query.shape[1] else seen
    )


def scores(view: AttentionView) -> torch.Tensor:
    """Scaled attention logits in float32, [rows, heads, queries, keys]; not masked."""
    rows, heads, queries, dim = view.query.shape
    folded, across = view.query.reshape(rows, view.key.shape[1], view.group * queries, dim), view.key.transpose(-1, -2)
    if _widens(folded):
        logits = torch.bmm(folded.flatten(0, 1), across.flatten(0, 1), out_dtype=torch.float32)
    else:
        logits = torch.matmul(folded.float(), across.float())
    logits = logits.mul_(view.scaling).reshape(rows, heads, queries, -1)
    return view.softcap * torch.tanh(logits / view.softcap) if view.softcap is not None else logits


def _widens(x: torch.Tensor) -> bool:
    """Whether products of such tensors come in float32 without copies of them in float32."""
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def _attend_explicitly(view: AttentionView, keep: torch.Tensor) -> torch.Tensor:
    rows, heads, queries, _ = view.query.shape
    logits = scores(view).masked_fill(~keep, -torch.inf)
    if view.sinks is not None:
        sinks = view.sinks.float().reshape(1, -1, 1, 1).expand(rows, -1, queries, 1)
        weights = torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.nan_to_num(torch.softmax(logits, dim=-1))
    folded = weights.to(view.value.dtype).reshape(rows, view.key.shape[1], view.group * queries, -1)
    return torch.matmul(folded, view.value).reshape(rows, heads, queries, -1)


@contextmanager
def engaged(model: Any, flow: Flow) -> Iterator[None]:
    """Let `model` attend through `flow`; on exit its own attention is back."""
    register()
    before = model.config._attn_implementation
    token = CURRENT.set(flow)
    try:
        if before != NAME:
            model.set_attn_implementation(NAME)
        yield
    finally:
        CURRENT.reset(token)
        if before != NAME:
            model.set_attn_implementation(before)


def register() -> None:
    """Make the attention function known to transformers, once."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask_unless_flowing(sdpa_mask))


def _mask_unless_flowing(sdpa_mask: Any) -> Any:
    """In a flow, rows carry their own masks and building one of all tokens by all tokens would only cost."""

    def mask(*args: Any, **kwargs: Any) -> Any:
        flow = CURRENT.get()
        return None if flow is not None and flow.rows is not None else sdpa_mask(*args, **kwargs)

    return mask


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query [batch, heads, queries, head_dim]; output [batch, queries, heads, dim]."""
    flow = CURRENT.get()
    if flow is None:
        raise InputError("the model attends through SparseBench, but nothing of SparseBench is attached to it")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    options = {
        "window": kwargs.get("sliding_window"),
        "softcap": kwargs.get("softcap"),
        "sinks": kwargs.get("s_aux"),
    }
    layer = int(getattr(module, "layer_idx", 0) or 0)
    # Kernels of Triton run on the current device, wherever their tensors lie.
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        if flow.rows is not None:
            out = flow.rows.attend(flow.policy, layer, query, key, value, scale, options)
        else:
            out = _attend_batch(flow.policy, layer, query, key, value, attention_mask, scale, options)
    return out, None


def _attend_batch(
    policy: AttentionPolicy | None,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    options: dict[str, Any],
) -> torch.Tensor:
    """A plain forward call of the model: prefill when there are several queries, decode when there is one.

    Sequences padded on the left are moved to the front for the method and back, so that what is selected does not
    depend on the padding.
    """
    rows, _, queries, _ = query.shape
    keys = key.shape[2]
    device = query.device
    first = torch.zeros(rows, dtype=torch.long, device=device)
    lengths = torch.full((rows,), keys, dtype=torch.long, device=device)
    if mask is not None and mask.shape[-2] == queries:
        seen = mask if mask.dtype == torch.bool else mask == 0
        present = seen.any(dim=1).any(dim=1)[:, :keys]
        first = present.int().argmax(dim=-1).expand(rows).clone()
        last = keys - present.flip(-1).int().argmax(dim=-1).expand(rows)
        if options["window"] is not None and queries == 1:
            first = torch.zeros_like(first)
        lengths = last - first
    places = torch.arange(keys, device=device)
    source = (places + first[:, None]) % keys
    key = torch.gather(key, 2, source[:, None, :, None].expand_as(key))
    value = torch.gather(value, 2, source[:, None, :, None].expand_as(value))
    positions = torch.arange(keys - queries, keys, device=device)[None] - first[:, None]
    positions = torch.where((positions >= 0) & (positions < lengths[:, None]), positions, -1)
    aligned = mask is None and queries == keys
    view = AttentionView(
        query, key, value, positions, lengths, scaling, layer, queries == 1, states=[], aligned=aligned, **options
    )
    out = attend_dense(view) if policy is None else policy.attend(view)
    return out.transpose(1, 2).contiguous()
