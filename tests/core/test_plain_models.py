"""Models that cannot run in packed rows: they are known by trying, and run through plain calls."""

from __future__ import annotations

from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, WhisperConfig, WhisperForCausalLM

from sparsebench import adapters
from sparsebench.adapters import attached
from sparsebench.engine import plain
from sparsebench.engine.generation import Generator, Prompt, Sampling, generate
from sparsebench.engine.packing import relative_error
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError
from sparsebench.systems.causal_lm import CausalLM


def naive_scores(model, request):
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([request.tokens])).logits[0].float(), dim=-1)
    last = range(len(request.tokens) - request.scored, len(request.tokens))
    return np.array([float(logprobs[i - 1, request.tokens[i]]) for i in last])


def naive_text(system, tokens, count):
    tokens = list(tokens)
    for _ in range(count):
        with torch.inference_mode():
            tokens.append(int(system.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return system.decode_tokens(tokens[-count:])


def sequences(lengths, common=16):
    rng = np.random.default_rng(0)
    lead = rng.integers(3, 250, common).tolist()
    return [[*lead, *rng.integers(3, 250, length - common).tolist()] for length in lengths]


@pytest.mark.parametrize("name", models.PLAIN)
def test_scores_and_texts_equal_plain_forward_calls(name):
    system = models.tiny_system(name, batch_tokens=64)
    assert not system.packed
    assert system.describe()["engine"] == f"plain calls: {system.obstacle}"
    requests = [Scored(t, min(5, len(t) - 3), len(t) - 4) for t in sequences((30, 41, 30, 19, 30))]
    for request, found in zip(requests, score(system, requests), strict=True):
        wanted = naive_scores(system.model, request)
        np.testing.assert_allclose(found.logprobs, wanted, atol=2e-5)
    prompts = [Prompt(t, len(t) - 2, (), 7, frozenset()) for t in sequences((20, 33))]
    assert generate(system, prompts) == [naive_text(system, p.tokens, 7) for p in prompts]


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_sequences_of_which_nothing_is_scored_are_not_run(name):
    system = models.tiny_system(name)
    empty, whole = score(system, [Scored([5], 0, 1), Scored([5, 6, 7], 2, 3)])
    assert (len(empty.logprobs), len(whole.logprobs)) == (0, 2)
    assert system.counters.sums["prefill.tokens"] == 2
    assert score(system, []) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_models_that_can_run_packed_do(name, dtype):
    system = models.tiny_system(name, dtype=dtype)
    before = system.model.config._attn_implementation
    assert system.obstacle == ""
    assert system.describe()["engine"] == "packed rows"
    assert system.model.config._attn_implementation == before
    assert system.counters.sums == {}
    assert system.policy is None


def test_a_model_that_gives_all_logits_is_asked_for_some():
    """Whisper's decoder takes no notice of the places whose logits are wanted."""
    config = WhisperConfig(
        **models.SIZES,
        **{"d_model": 48, "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 96},
        max_target_positions=512,
        decoder_start_token_id=257,
    )
    torch.manual_seed(0)
    system = CausalLM(WhisperForCausalLM(config).eval(), models.tiny_tokenizer(), batch_tokens=64)
    assert system.packed
    requests = [Scored(t, len(t) - 5, 3) for t in sequences((30, 41, 30))]
    for request, found in zip(requests, score(system, requests), strict=True):
        np.testing.assert_allclose(found.logprobs, naive_scores(system.model, request), atol=2e-5)
    prompts = [Prompt(t, len(t) - 2, (), 7, frozenset()) for t in sequences((20, 33))]
    assert generate(system, prompts) == [naive_text(system, p.tokens, 7) for p in prompts]


def test_phases_and_counts_are_those_of_packed_rows():
    """One model both ways: what is scored, generated and counted agrees."""
    tokens = sequences((30, 34), common=1)
    requests = [Scored(t, 6, len(t) - 9) for t in tokens]
    prompts = [
        Prompt(t, len(t) - 3, (), 8, frozenset(), Sampling(temperature=s, seed=1))
        for t, s in zip(tokens, (0, 0.8), strict=True)
    ]
    found = {}
    for obstacle in ("", "for the sake of the test"):
        system = models.tiny_system("llama", max_lanes=1)
        system.__dict__["obstacle"] = obstacle
        with attached(system, [adapters.create("random-activations", sparsity=0.5, scope="decode")]):
            scores = score(system, requests)
            texts = generate(system, prompts)
        found[obstacle] = (scores, texts, dict(system.counters.sums))
    packed, plainly = found.values()
    for a, b in zip(packed[0], plainly[0], strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
        assert (a.greedy == b.greedy).all()
    assert packed[1:] == plainly[1:]


@pytest.mark.parametrize("name", ["mamba", "bloom", "jamba"])
def test_pruning_and_activation_methods_work(name):
    system = models.tiny_system(name)
    before = {key: value.clone() for key, value in system.model.state_dict().items()}
    requests = [Scored(t, 8, 20) for t in sequences((30, 30))]
    dense = score(system, requests)
    for member in (adapters.create("magnitude", sparsity=0.5), adapters.create("random-activations", sparsity=0.5)):
        system.counters.reset()
        with attached(system, [member]):
            sparse = score(system, requests)
            assert generate(system, [Prompt(requests[0].tokens, 29, (), 3, frozenset())]) != [""]
        assert np.abs(sparse[0].logprobs - dense[0].logprobs).max() > 1e-3
    assert system.counters.ratio("decode.activation.zeros", "decode.activation.total") == pytest.approx(0.5, abs=0.02)
    assert system.counters.ratio("prefill.activation.zeros", "prefill.activation.total") == pytest.approx(0.5, abs=0.02)
    for key, value in system.model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert [s.logprobs.tolist() for s in score(system, requests)] == [s.logprobs.tolist() for s in dense]


@pytest.mark.parametrize("name", ["mamba", "bloom", "jamba"])
def test_attention_methods_say_that_they_cannot(name):
    system = models.tiny_system(name)
    member = adapters.create("streaming-llm", tokens=16)
    with pytest.raises(InputError) as caught, attached(system, [member]):
        raise AssertionError
    assert type(system.model).__name__ in caught.value.message
    assert "attention" in str(caught.value)
    assert system.policy is None


def test_trying_is_not_misled_by_what_is_attached():
    system = models.tiny_system("llama")
    with attached(system, [adapters.create("streaming-llm", sparsity=0.9)]):
        assert system.packed
        assert system.policy is not None
        assert system.counters.sums == {}
    system = models.tiny_system("llama")
    with attached(system, [adapters.create("random-activations", sparsity=0.9, scope="decode")]):
        assert system.packed


def test_a_window_that_the_model_keeps_to_itself():
    system = models.tiny_system("llama")
    system.__dict__["shape"] = replace(system.shape, windows=(None, 24, None))
    assert system.obstacle == "layer 1 does not tell AttentionInterface its window of 24"
    assert models.tiny_system("mistral").shape.windows == (24, 24, 24)


def test_what_is_no_causal_language_model():
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    system = CausalLM(BertLMHeadModel(config), None)
    with pytest.raises(InputError, match="BertLMHeadModel is not causal"):
        score(system, [Scored([1, 2, 3], 1, 2)])


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_logits_that_are_no_numbers_are_an_error_and_no_perplexity(name):
    system = models.tiny_system(name)
    assert system.packed == (name == "llama")
    with torch.no_grad():
        next(iter(system.model.parameters()))[5] = torch.nan
    for run in (
        lambda: score(system, [Scored([4, 5, 6], 2, 3)]),
        lambda: generate(system, [Prompt([4, 5], 2, (), 3, frozenset())]),
    ):
        with pytest.raises(InputError, match="no finite numbers"):
            run()
    broken = models.tiny_system(name)
    with torch.no_grad():
        for parameter in broken.model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(InputError, match="no finite numbers"):
        score(broken, [Scored([4, 5, 6], 2, 3)])


def test_the_models_own_defaults_of_generation_play_no_part():
    system = models.tiny_system("falcon")
    own = system.model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature, own.max_length = 5.0, True, 3.0, 4
    (tokens,) = sequences((25,))
    assert generate(system, [Prompt(tokens, 25, (), 9, frozenset())]) == [naive_text(system, tokens, 9)]
    assert system.model.generation_config is own
    assert own.repetition_penalty == 5.0


@pytest.mark.parametrize("name", ["falcon", "jamba", "llama"])
def test_texts_end_where_they_should(name, monkeypatch):
    system = models.tiny_system(name)
    monkeypatch.setattr(system, "decode_tokens", lambda tokens: "".join(chr(33 + t % 90) for t in tokens))
    (tokens,) = sequences((25,))
    text = naive_text(system, tokens, 12)
    stop = next(c for c in text if c != text[0])
    prompts = [
        Prompt(tokens, 25, (), 3, frozenset()),
        Prompt(tokens, 25, (stop,), 12, frozenset()),
        Prompt(tokens, 25, (), 12, frozenset({first_token(system, tokens)})),
    ]
    assert generate(system, prompts) == [text[:3], text[: text.index(stop)], ""]


def first_token(system, tokens):
    with torch.inference_mode():
        return int(system.model(torch.tensor([tokens])).logits[0, -1].argmax())


def test_relative_error():
    a = torch.randn(4, 9)
    assert relative_error(a, a) == 0
    assert relative_error(a + 7, a) < 1e-6  # log-probabilities are the same
    assert relative_error(2 * a, a) == pytest.approx(1)
    assert relative_error(a * torch.nan, a) == float("inf")


def test_batches_have_equal_lengths_and_fit():
    requests = [Scored([0] * n, 1, 1) for n in (5, 9, 5, 5, 300, 9)]
    batches = list(plain._batches(requests, 8))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches == [[0, 2], [3], [1], [5], [4]]


def test_generating_in_packed_rows_is_the_same_function():
    system = models.tiny_system("llama")
    prompts = [Prompt(t, len(t), (), 5, frozenset()) for t in sequences((20, 33))]
    assert generate(system, prompts) == Generator(system, prompts).run()
