"""FLOPs and bytes: worked numbers, PyTorch's own counter, and sums that must agree."""

from __future__ import annotations

from dataclasses import replace

import models
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sparsebench.account import Counted, WeightStorage, account
from sparsebench.cost import Cost, ModelShape, Request, dense_cost, window_pairs
from sparsebench.errors import InputError
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.weights import out_of_reach

SMOL = ModelShape(
    hidden=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    value_dim=64,
    vocab=49152,
    linear_params=30 * (576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536),
    stored_params=30 * (576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536),
    head_params=576 * 49152,
    parameters=134_515_008,
    windows=(None,) * 30,
)
"""SmolLM2-135M, from its published configuration."""


def counted_flops(model, ids) -> int:
    """What PyTorch's counter sees of a forward call with eager attention, without the rotary embedding's products."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(ids, use_cache=False, logits_to_keep=1)
    counts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    return counts["Global"] - sum(flops for name, flops in counts.items() if name.endswith("rotary_emb"))


@pytest.mark.parametrize(
    ("length", "gigaflops", "share", "gain"),
    [
        (1024, 253.8, 0.143, 1.15),
        (4096, 1449.7, 0.400, 1.56),
        (8192, 4059.1, 0.571, 2.06),
        (32768, 44067.6, 0.842, 4.13),
    ],
)
def test_worked_numbers_of_smollm2(length, gigaflops, share, gain):
    """Computed by hand from the published sizes; the LM head of the last prompt token is in the sum."""
    prefill = dense_cost(SMOL, Request(length, 0)).prefill
    assert prefill.flops / 1e9 == pytest.approx(gigaflops, abs=0.06)
    assert prefill.attention / prefill.flops == pytest.approx(share, abs=5e-4)
    assert prefill.flops / (prefill.flops - 0.9 * prefill.attention) == pytest.approx(gain, abs=5e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"])
def test_flops_are_those_of_pytorchs_counter(name):
    system = models.tiny_system(name)
    length = 40
    counted = counted_flops(system.model, torch.randint(0, 256, (2, length)))
    shape = replace(system.shape, windows=(None,) * system.shape.layers)  # the counter knows neither mask nor window
    prefill = dense_cost(shape, Request(length, 0, batch=2)).prefill
    every_pair = prefill.attention * 2 * length / (length + 1)  # eager attention computes the upper triangle too
    assert counted == pytest.approx(prefill.linear + prefill.head + every_pair, rel=1e-12)


def test_experts_count_those_that_run():
    config = hf.MixtralConfig(**models.GROUPED, num_local_experts=4, num_experts_per_tok=2)
    model = hf.AutoModelForCausalLM.from_config(config)
    shape = CausalLM(model, models.tiny_tokenizer()).shape
    attention, expert = 48 * 48 * 2 + 48 * 24 * 2, 3 * 48 * 96
    assert shape.linear_params == 3 * (attention + 4 * 48 + 2 * expert)
    assert shape.stored_params == 3 * (attention + 4 * 48 + 4 * expert)
    one, many = (dense_cost(shape, Request(0, 1, batch=b)).decode.bytes_weights for b in (1, 64))
    assert one == 2 * (shape.linear_params + shape.head_params)
    assert many == 2 * (shape.stored_params + shape.head_params)


@pytest.mark.parametrize("name", models.MIXTURES)
def test_flops_of_experts_are_those_of_pytorchs_counter(name):
    system = models.tiny_system(name)
    system.model.set_experts_implementation("eager")  # the counter does not know the grouped product
    shape = replace(system.shape, windows=(None,) * 3)
    prefill = dense_cost(shape, Request(40, 0, batch=2)).prefill
    counted = counted_flops(system.model, torch.randint(0, 256, (2, 40)))
    assert counted == pytest.approx(prefill.linear + prefill.head + prefill.attention * 80 / 41, rel=1e-12)


def test_experts_whose_form_is_not_known_have_no_cost():
    """Those of DBRX lie below one another in one matrix, and a token runs through some of its rows."""
    config = hf.DbrxConfig(d_model=48, n_heads=4, n_layers=2, vocab_size=260, max_seq_len=128)
    config.attn_config.rope_theta = 10000.0  # read by the model, and missing in its configuration
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(config)
    system = CausalLM(model, models.tiny_tokenizer(), fingerprint="none")
    with pytest.raises(InputError, match="one matrix"):
        _ = system.shape
    assert len(out_of_reach(system)) == 2 * 3


def test_shape_reads_windows_and_grouped_heads():
    assert models.tiny_system("gemma2").shape.windows == (24, None, 24)
    assert models.tiny_system("gemma3").shape.windows == (24, None, 24)
    assert models.tiny_system("mistral").shape.windows == (24, 24, 24)
    llama = models.tiny_system("llama").shape
    assert (llama.windows, llama.heads, llama.kv_heads, llama.head_dim) == ((None,) * 3, 4, 2, 12)
    assert llama.head_params == 48 * models.VOCAB
    assert llama.parameters == sum(p.numel() for p in models.tiny_model("llama").parameters())


def test_windows_follow_the_layers_that_are_left():
    """A model that has lost its first layer: the others keep their places, and with them their windows."""
    model = models.tiny_model("gemma3")
    del model.model.layers[0]
    assert CausalLM(model, models.tiny_tokenizer()).shape.windows == (None, 24)


def test_what_is_no_decoder_of_attention_blocks_is_refused():
    mamba = hf.AutoModelForCausalLM.from_config(hf.MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2))
    with pytest.raises(InputError, match="Mamba"):
        _ = CausalLM(mamba, models.tiny_tokenizer()).shape


def test_chunked_attention_is_refused():
    config = hf.LlamaConfig(**models.GROUPED)
    config.layer_types = ["chunked_attention"] * 3
    system = CausalLM(hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**models.GROUPED)), models.tiny_tokenizer())
    system.model.config = config
    with pytest.raises(InputError, match="chunked"):
        _ = system.shape


@given(st.integers(0, 60), st.integers(0, 60), st.one_of(st.none(), st.integers(0, 80)))
def test_window_pairs_counts_one_by_one(start, count, window):
    expected = sum(q + 1 if window is None else min(q + 1, window) for q in range(start, start + count))
    assert window_pairs(start, count, window) == expected


def test_decode_reads_every_key_of_every_step():
    request = Request(prompt=10, answer=3, batch=4)
    decode = dense_cost(SMOL, request).decode
    keys = 11 + 12 + 13
    assert decode.attention == 4 * 30 * 9 * 4 * 64 * keys
    assert decode.bytes_kv_read == 4 * 30 * 3 * 2 * 64 * 2 * keys
    assert decode.bytes_kv_resident == 4 * 30 * 3 * 2 * 64 * 2 * 13
    assert decode.linear == 4 * 3 * 2 * SMOL.linear_params
    assert decode.head == 4 * 3 * 2 * SMOL.head_params
    assert decode.bytes_weights == 3 * 2 * (SMOL.linear_params + SMOL.head_params)


def test_windows_bound_what_is_read_and_held():
    shape = replace(SMOL, layers=2, windows=(16, None))
    costs = dense_cost(shape, Request(100, 1))
    key = 3 * 2 * 64 * 2
    assert costs.decode.bytes_kv_read == key * (16 + 101)
    assert costs.decode.bytes_kv_resident == key * (16 + 101)
    assert costs.prefill.attention == 9 * 4 * 64 * (window_pairs(0, 100, 16) + 5050)


def test_the_whole_is_the_sum_and_the_larger_cache():
    costs = dense_cost(SMOL, Request(100, 10))
    assert costs.whole.flops == costs.prefill.flops + costs.decode.flops
    assert costs.whole.bytes_kv_resident == costs.decode.bytes_kv_resident
    assert costs.whole.ratio(costs.whole) == (1, 1)
    assert Cost(linear=1).ratio(Cost()) == (1, 1)


def test_weight_storage():
    assert WeightStorage().bytes_of(1000, 2) == 2000
    assert WeightStorage(0.5, "bitmap").bytes_of(1000, 2) == 500 * 2 + 1000 / 8
    assert WeightStorage(0.5, "2:4").bytes_of(1000, 2) == 500 * 2 + 500 * 2 / 8
    assert WeightStorage(0.5, "dense").bytes_of(1000, 2) == 2000
    with pytest.raises(InputError):
        WeightStorage(0.5, "csr").bytes_of(1000, 2)


def test_account_of_a_dense_cell_is_one():
    sums = {"prefill.tokens": 100, "prefill.causal_pairs": 5050, "decode.tokens": 2, "decode.causal_pairs": 203}
    result = account(SMOL, Counted.of(SMOL, sums, "prefill"), Counted.of(SMOL, sums, "decode"))
    assert result.flops_ratio == 1
    assert result.bytes_ratio == 1
    prefill = dense_cost(SMOL, Request(100, 0)).prefill
    lines = {(line.phase, line.unit, line.item): line.dense for line in result.lines}
    assert lines["prefill", "flops", "attention"] == prefill.attention
    assert lines["prefill", "flops", "linear"] == prefill.linear


def test_account_agrees_with_the_cost_of_a_request():
    costs = dense_cost(SMOL, Request(64, 8))
    pairs = 30 * 9 * window_pairs(64, 8)
    decode = Counted(tokens=8, pairs=pairs, kept=pairs, union=pairs / 3, scored=8)
    result = account(SMOL, Counted(0, 0, 0, 0), decode)
    assert sum(line.dense for line in result.lines if line.unit == "flops") == costs.decode.flops
    assert 8 * sum(line.dense for line in result.lines if line.unit == "bytes") == pytest.approx(costs.decode.bytes)


def test_account_of_sparse_attention_counts_index_and_union():
    shape = replace(SMOL, layers=1, windows=(None,))
    sums = {
        "decode.tokens": 1,
        "decode.causal_pairs": 100,
        "decode.attention.visible": 900,
        "decode.attention.kept": 90,
        "decode.attention.union": 60,
        "decode.attention.index_flops": 5000,
        "decode.attention.index_bytes": 700,
        "decode.scored": 1,
    }
    counted = Counted.of(shape, sums, "decode")
    assert (counted.kept, counted.pairs, counted.union, counted.tiles) == (90, 900, 60, None)
    result = account(shape, Counted.of(shape, {}, "prefill"), counted)
    dense = 2 * shape.linear_params + 900 * 256 + 2 * shape.head_params
    assert result.flops_ratio == pytest.approx((dense - 810 * 256 + 5000) / dense)
    weights = 2 * (shape.linear_params + shape.head_params)
    assert result.bytes_ratio == pytest.approx((weights + 60 * 256 + 700) / (weights + 300 * 256))
    assert result.ratio("bytes", "prefill") is None


def test_account_of_pruning_and_activation_sparsity():
    counted = Counted(tokens=1, pairs=0, kept=0, union=0, activation_zeros=0.25)
    result = account(SMOL, Counted(0, 0, 0, 0), counted, WeightStorage(0.5, "bitmap"))
    assert result.flops_ratio == pytest.approx(0.5 * 0.75)
    stored = SMOL.linear_params * (1 + 1 / 8) * 0.75
    assert result.bytes_ratio == pytest.approx(
        (stored + 2 * SMOL.head_params) / (2 * SMOL.linear_params + 2 * SMOL.head_params)
    )


def test_activation_zeros_are_a_share_of_all_multiply_adds():
    sums = {"decode.tokens": 10, "decode.activation.zeros": 2.5 * SMOL.linear_params, "decode.activation.total": 1.0}
    assert Counted.of(SMOL, sums, "decode").activation_zeros == pytest.approx(0.25)
