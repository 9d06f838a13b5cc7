"""Checkpoints in the format of llama2.c: one binary file of float32 weights, one of scored tokens.

The weights file is seven int32 (`dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len`; a negative
vocabulary size says that the classifier is not tied to the embedding), then each kind of weight for all layers. The
tokenizer file is an int32 (the longest token) and for each token a float32 score, an int32 length and its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsebench.errors import IntegrityError, MissingError

HEADER = struct.Struct("<7i")
NORM_EPS = 1e-5
ROPE_THETA = 10000.0
BOS, EOS, FIRST_PIECE = 1, 2, 259
"""Token ids that llama2.c fixes; token 0 is unknown, tokens 3 to 258 are the bytes."""
SPACE = "▁"
"""How sentencepiece writes a space inside a token."""


@dataclass(frozen=True)
class Header:
    """The sizes that a checkpoint begins with.

    Attributes:
        shared: Whether the classifier is the embedding.
    """

    dim: int
    hidden_dim: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    length: int
    shared: bool

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by their names in llama2.c, in the order of the file."""
        n, d, h, kv = self.layers, self.dim, self.hidden_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "token_embedding": (self.vocab, d),
            "rms_att": (n, d),
            "wq": (n, d, d),
            "wk": (n, kv, d),
            "wv": (n, kv, d),
            "wo": (n, d, d),
            "rms_ffn": (n, d),
            "w1": (n, h, d),
            "w2": (n, d, h),
            "w3": (n, h, d),
            "rms_final": (d,),
            "freq_cis_real": (self.length, self.head_dim // 2),
            "freq_cis_imag": (self.length, self.head_dim // 2),
        }
        return shapes if self.shared else {**shapes, "wcls": (self.vocab, d)}

    @property
    def bytes(self) -> int:
        """Size of the whole file."""
        return HEADER.size + 4 * sum(int(np.prod(shape)) for shape in self.shapes().values())

    @classmethod
    def read(cls, path: Path) -> Header | None:
        """The header of a file, or None where its size is not what a header there would say."""
        with path.open("rb") as file:
            data = file.read(HEADER.size)
        if len(data) < HEADER.size:
            return None
        dim, hidden, layers, heads, kv_heads, vocab, length = HEADER.unpack(data)
        if min(dim, hidden, layers, heads, kv_heads, abs(vocab), length) <= 0 or dim % (2 * heads) or heads % kv_heads:
            return None
        header = cls(dim, hidden, layers, heads, kv_heads, abs(vocab), length, vocab > 0)
        return header if header.bytes == path.stat().st_size else None


def find(folder: Path) -> tuple[Path, Path] | None:
    """The weights and the tokenizer of a folder, or None where it is no llama2.c folder.

    A weights file is known by its size, which its first bytes must give; a tokenizer by its name, `tok*.bin`.
    """
    files = sorted(folder.glob("*.bin"))
    tokenizers = [path for path in files if path.name.startswith("tok")]
    weights = [path for path in files if path not in tokenizers and Header.read(path) is not None]
    return (weights[0], tokenizers[0]) if weights and tokenizers else None


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model, a transformers `LlamaForCausalLM`, and its tokenizer.

    Raises:
        MissingError: The folder has no such checkpoint.
        IntegrityError: A file is cut short.
    """
    found = find(folder)
    if found is None:
        raise MissingError(f"{folder} holds no llama2.c checkpoint", "it needs weights (*.bin) and tok*.bin, whole")
    weights, tokens = found
    return load_model(weights, dtype), load_tokenizer(tokens)


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The weights as a transformers `LlamaForCausalLM` in evaluation mode.

    Raises:
        IntegrityError: The file's size is not what its header says.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    header = Header.read(path)
    if header is None:
        raise IntegrityError(f"{path} is no whole llama2.c checkpoint", "its size does not agree with its header")
    config = LlamaConfig(
        vocab_size=header.vocab,
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        max_position_embeddings=header.length,
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=header.shared,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(dict(_state(header, _arrays(header, path))))
    return model.to(dtype).eval()


def load_tokenizer(path: Path) -> Any:
    """The tokens as a transformers tokenizer: byte-pair merges in the order of their scores, BOS put in front.

    A space is put before every text, also before one that begins with a space: sentencepiece and llama2.c do so.

    Raises:
        IntegrityError: The file is cut short.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [(score, _piece(token)) for score, token in read_tokens(path)]
    pieces = ["<unk>", "<s>", "</s>", *(piece for _, piece in tokens[3:])]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    ranked = sorted(tokens[FIRST_PIECE:], key=lambda token: -token[0])
    merges = [
        (piece[:cut], piece[cut:])
        for _, piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def read_tokens(path: Path) -> list[tuple[float, bytes]]:
    """Score and bytes of each token.

    Raises:
        IntegrityError: The file is cut short.
    """
    data = path.read_bytes()
    tokens: list[tuple[float, bytes]] = []
    at = 4
    while at < len(data):
        if at + 8 > len(data):
            raise IntegrityError(f"{path} is cut short after {len(tokens)} tokens")
        score, length = struct.unpack_from("<fi", data, at)
        token = data[at + 8 : at + 8 + length]
        if length < 0 or len(token) < length:
            raise IntegrityError(f"{path} is cut short after {len(tokens)} tokens")
        tokens.append((score, token))
        at += 8 + length
    return tokens


def _piece(token: bytes) -> str:
    return token.decode("utf-8", "replace").replace(" ", SPACE)


def _arrays(header: Header, path: Path) -> dict[str, torch.Tensor]:
    flat = torch.from_numpy(np.fromfile(path, dtype="<f4", offset=HEADER.size).astype(np.float32))
    arrays, at = {}, 0
    for name, shape in header.shapes().items():
        size = int(np.prod(shape))
        arrays[name] = flat[at : at + size].reshape(shape)
        at += size
    return arrays


def _state(header: Header, arrays: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors as transformers has them."""
    yield "model.embed_tokens.weight", arrays["token_embedding"]
    yield "model.norm.weight", arrays["rms_final"]
    yield "lm_head.weight", arrays["token_embedding" if header.shared else "wcls"]
    for layer in range(header.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", arrays["rms_att"][layer]
        yield prefix + "post_attention_layernorm.weight", arrays["rms_ffn"][layer]
        yield prefix + "self_attn.q_proj.weight", _halves(arrays["wq"][layer], header.heads)
        yield prefix + "self_attn.k_proj.weight", _halves(arrays["wk"][layer], header.kv_heads)
        yield prefix + "self_attn.v_proj.weight", arrays["wv"][layer]
        yield prefix + "self_attn.o_proj.weight", arrays["wo"][layer]
        yield prefix + "mlp.gate_proj.weight", arrays["w1"][layer]
        yield prefix + "mlp.down_proj.weight", arrays["w2"][layer]
        yield prefix + "mlp.up_proj.weight", arrays["w3"][layer]


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows for a rotary embedding that turns halves of a head, where llama2.c turns neighbouring pairs."""
    out, channels = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, channels).transpose(1, 2).reshape(out, channels)
