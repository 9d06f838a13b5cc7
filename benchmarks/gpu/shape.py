"""The shape of an 8B model (Llama 3), with random weights: for speed only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS, VOCABULARY = 4096, 32, 8, 128, 14336, 32, 128256
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
LABEL = "8B shape (Llama 3), random weights"

Linear = Callable[[torch.Tensor], torch.Tensor]
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def random_weight(out: int, inputs: int) -> torch.Tensor:
    return torch.randn(out, inputs, dtype=torch.bfloat16, device="cuda") * inputs**-0.5


def dense_attention(backend: str, *, causal: bool, grouped: bool = True) -> Attention:
    """SDPA through one backend; without `grouped` keys and values are repeated for every head by the caller."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)

    return attend


def rotary(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, `[tokens, head_dim / 2]`, float32."""
    frequencies = 500_000.0 ** (-torch.arange(0, HEAD_DIM, 2, device="cuda") / HEAD_DIM)
    angles = torch.arange(tokens, device="cuda")[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """`[tokens, heads, head_dim]` to rotated `[1, heads, tokens, head_dim]`."""
    first, second = x.transpose(0, 1).float().chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x.dtype)[None]


def gated(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@dataclass
class Pointwise:
    """The element-wise steps, compiled where that works, the same for every side."""

    rotated: Callable[..., torch.Tensor] = rotated
    gated: Callable[..., torch.Tensor] = gated
    compiled: bool = False

    @classmethod
    def compile(cls) -> Pointwise:
        made = cls(torch.compile(rotated, dynamic=True), torch.compile(gated, dynamic=True), True)
        x = torch.randn(512, QKV, dtype=torch.bfloat16, device="cuda")
        cosine, sine = rotary(512)
        for heads in (HEADS, KV_HEADS):
            made.rotated(x[:, : heads * HEAD_DIM].view(512, heads, HEAD_DIM), cosine, sine)
        made.gated(torch.randn(512, 2 * INNER, dtype=torch.bfloat16, device="cuda"))
        return made


class Layer:
    """One decoder layer; linear layers by name, so that they can be replaced."""

    SHAPES: ClassVar[dict[str, tuple[int, int]]] = {
        "qkv": (QKV, HIDDEN),
        "o": (HIDDEN, HEADS * HEAD_DIM),
        "gate_up": (2 * INNER, HIDDEN),
        "down": (HIDDEN, INNER),
    }

    def __init__(self, weights: dict[str, Any] | None = None) -> None:
        self.weights = weights or {name: random_weight(*shape) for name, shape in self.SHAPES.items()}
        self.norms = [torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda") for _ in range(2)]

    def __call__(
        self, hidden: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], attend: Attention, steps: Pointwise
    ) -> torch.Tensor:
        """`hidden`, `[tokens, HIDDEN]`, is changed in place."""
        tokens = hidden.shape[0]
        qkv = F.linear(F.rms_norm(hidden, (HIDDEN,), self.norms[0], 1e-5), self.weights["qkv"])
        q, k, v = qkv.reshape(tokens, -1, HEAD_DIM).split([HEADS, KV_HEADS, KV_HEADS], 1)
        q, k, v = steps.rotated(q, *turn), steps.rotated(k, *turn), v.transpose(0, 1).contiguous()[None]
        mixed = attend(q.contiguous(), k.contiguous(), v)[0].transpose(0, 1).reshape(tokens, -1)
        hidden += F.linear(mixed, self.weights["o"])
        for part in hidden.split(1 << 15):
            inner = steps.gated(F.linear(F.rms_norm(part, (HIDDEN,), self.norms[1], 1e-5), self.weights["gate_up"]))
            part += F.linear(inner, self.weights["down"])
        return hidden
