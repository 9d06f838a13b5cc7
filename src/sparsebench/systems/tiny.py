"""A language model of 90,000 random weights over bytes, made in no time and of no data, to try methods on."""

from __future__ import annotations

from typing import Any

import torch

from sparsebench.systems.causal_lm import CausalLM

VOCABULARY = 260
"""256 bytes, then pad, bos, eos, unk."""


def tiny_system(seed: int = 0) -> CausalLM:
    """A Llama of three blocks with grouped heads and tied embeddings, in float32, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        pad_token_id=256,
        bos_token_id=257,
        eos_token_id=258,
        initializer_range=0.1,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        roughen(model)
    return CausalLM(model.eval(), tiny_tokenizer(), ref="memory:tiny")


def roughen(model: torch.nn.Module) -> None:
    """Give norms and biases, which begin as ones and zeros, values of their own: leaving one out is seen then."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def tiny_tokenizer() -> Any:
    """Bytes as tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(letters)}
    vocab |= {"<pad>": 256, "<s>": 257, "</s>": 258, "<unk>": 259}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
