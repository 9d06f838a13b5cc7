"""The engine against plain forward calls of the model, and against lm-eval's own backend."""

from __future__ import annotations

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from sparsebench.engine import trie
from sparsebench.engine.generation import Generator, Prompt, Sampling
from sparsebench.engine.lm import SparseLM
from sparsebench.engine.scoring import Scored, score
from sparsebench.systems.causal_lm import CausalLM

STORY = "Once upon a time there was a little girl named Lily. She loved to play outside in the park."


def naive(model, request: Scored) -> np.ndarray:
    """Log-probabilities of the scored tokens from one plain forward call."""
    tokens = torch.tensor([list(request.tokens)])
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(tokens).logits[0].float(), dim=-1)
    places = range(tokens.shape[1] - request.scored, tokens.shape[1])
    return np.array([float(logprobs[p - 1, tokens[0, p]]) for p in places])


tokens = st.lists(st.integers(0, 5), min_size=2, max_size=60)


@given(st.lists(st.tuples(tokens, st.integers(0, 60)), min_size=1, max_size=12), st.booleans())
def test_every_sequence_is_a_path_of_the_tree(sequences, share):
    made = [trie.TokenSequence(np.array(t), min(p, len(t))) for t, p in sequences]
    nodes = trie.build(made, share=share)
    seen = set()
    for index, node in enumerate(nodes):
        assert node.parent < index
        for sequence in node.sequences:
            path = []
            at = index
            while at >= 0:
                path.append(nodes[at])
                at = nodes[at].parent
            path.reverse()
            assert np.array_equal(np.concatenate([n.tokens for n in path]), made[sequence].tokens)
            for n in path:
                assert n.decode == (n.start >= made[sequence].prefill)
                assert n.start < made[sequence].prefill <= n.end or n.decode or n.end <= made[sequence].prefill
            if not share and made[sequence].prefill:
                assert path[0].end == made[sequence].prefill
            seen.add(sequence)
    assert seen == set(range(len(made)))


def test_long_common_beginnings_are_computed_once():
    lead = list(range(100))
    sequences = [trie.TokenSequence(np.array([*lead, 7, i, i]), 102) for i in range(10)]
    assert sum(len(n.tokens) for n in trie.build(sequences)) == 101 + 10 * 2
    assert sum(len(n.tokens) for n in trie.build(sequences, share=False)) == sum(103 for _ in sequences)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_packed_rows_equal_plain_forward_calls(name):
    model = models.tiny_model(name)
    system = CausalLM(model, None, batch_tokens=150)
    rng = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    lead = rng.integers(3, vocabulary, 40).tolist()
    requests = []
    for length in (1, 5, 17, 17, 33, 60):
        tail = rng.integers(3, vocabulary, length).tolist()
        requests.append(Scored([*lead, *tail], min(length, 4), 40 + length // 2))
        requests.append(Scored(rng.integers(3, vocabulary, length + 1).tolist(), 1, length))
    for request, result in zip(requests, score(system, requests), strict=True):
        np.testing.assert_allclose(result.logprobs, naive(model, request), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(16, 400))
def test_scores_do_not_depend_on_the_batch_plan(seed, batch_tokens):
    model = models.tiny_model("llama")
    rng = np.random.default_rng(seed)
    lead = rng.integers(3, model.config.vocab_size, 30).tolist()
    requests = [
        Scored([*lead[: rng.integers(2, 30)], *rng.integers(3, 60, rng.integers(1, 40)).tolist()], 1, 5)
        for _ in range(8)
    ]
    one = score(CausalLM(model, None, fingerprint="x", batch_tokens=batch_tokens), requests)
    other = score(CausalLM(model, None, fingerprint="x", batch_tokens=2048), requests)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 40), st.integers(0, 40)), min_size=1, max_size=9), st.integers(0, 2**31))
def test_unlike_rows_equal_plain_forward_calls(sizes, seed):
    """Sequences of any lengths, few of which begin alike; keys of an earlier chunk must not be read for them."""
    model = models.tiny_model("llama")
    rng = np.random.default_rng(seed)
    lead = rng.integers(3, 250, 40).tolist()
    requests = [Scored([*lead[:shared], *rng.integers(3, 250, own).tolist()], 1, own + shared) for own, shared in sizes]
    for request, result in zip(
        requests, score(CausalLM(model, None, fingerprint="x", batch_tokens=64), requests), strict=True
    ):
        np.testing.assert_allclose(result.logprobs, naive(model, request), atol=1e-4)


@pytest.fixture(scope="module")
def story() -> CausalLM:
    model, tokenizer = models.stories()
    return CausalLM(model, tokenizer, batch_tokens=256)


def instances(kind, pairs):
    return [Instance(kind, {}, pair, 0, ("", i, 1)) for i, pair in enumerate(pairs)]


PAIRS = [
    (STORY, " One day she saw a big dog."),
    (STORY, " One day she saw a red ball."),
    (STORY + " ", "She was happy."),
    ("", "Once upon a time"),
    ("The dog", " ran"),
    ("The dog", " sat"),
]


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_loglikelihoods_equal_lm_evals_backend(story, batch_size):
    reference = HFLM(pretrained=story.model, tokenizer=story.tokenizer, batch_size=batch_size, device="cpu")
    wanted = reference.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    found = SparseLM(story).loglikelihood(instances("loglikelihood", PAIRS))
    for (value, greedy), (other, other_greedy), (_, text) in zip(found, wanted, PAIRS, strict=True):
        assert abs(value - other) / len(text.split()) < 1e-4
        assert greedy == other_greedy


def test_rolling_loglikelihood_equals_lm_evals_backend(story):
    texts = [(STORY * 12,), ("Lily ran home.",)]
    reference = HFLM(pretrained=story.model, tokenizer=story.tokenizer, batch_size=4, device="cpu")
    wanted = reference.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    found = SparseLM(story).loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_greedy_text_equals_lm_evals_backend(story):
    options = {"until": ["."], "max_gen_toks": 40, "do_sample": False}
    prompts = [(STORY[:n], options) for n in (12, 16, 40, 60, 60, 90)]
    reference = HFLM(pretrained=story.model, tokenizer=story.tokenizer, batch_size=3, device="cpu")
    wanted = reference.generate_until(instances("generate_until", prompts), disable_tqdm=True)
    story.max_lanes = 2  # fewer lanes than prompts: finished ones are refilled
    found = SparseLM(story).generate_until(instances("generate_until", prompts))
    assert found == wanted


def test_sampling_depends_on_the_seed_and_not_on_the_batch(story):
    tokens = story.tokenizer.encode(STORY)

    def texts(count, seed):
        prompt = Prompt(tokens, len(tokens), (), 12, frozenset(), Sampling(0.9, seed=seed))
        return Generator(story, [prompt] * count).run()

    assert texts(1, 0)[0] == texts(3, 0)[0]
    assert texts(1, 0) != texts(1, 1)


def test_decode_phase_changes_nothing_when_dense(story):
    tokens = story.tokenizer.encode(STORY)
    whole, split = score(story, [Scored(tokens, 5, len(tokens)), Scored(tokens, 5, len(tokens) - 9)])
    np.testing.assert_allclose(whole.logprobs, split.logprobs, atol=1e-5)


def test_attention_implementation_is_back_afterwards(story):
    before = story.model.config._attn_implementation
    score(story, [Scored([1, 2, 3], 1, 2)])
    assert story.model.config._attn_implementation == before


def test_rows_of_unequal_length_in_one_chunk_need_no_common_beginning():
    model = models.tiny_model("llama")
    rng = np.random.default_rng(3)
    requests = [Scored(rng.integers(3, 250, n).tolist(), 2, n) for n in (9, 10, 10, 12)]
    for request, result in zip(requests, score(CausalLM(model, None), requests), strict=True):
        np.testing.assert_allclose(result.logprobs, naive(model, request), atol=1e-4)
