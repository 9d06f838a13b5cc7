"""Encoders on released models: they agree with sentence-transformers, whatever the batches."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM

from sparsebench.errors import InputError, MissingError, UnknownNameError
from sparsebench.retrieval.encoders import DenseEncoder, SpladeEncoder, StaticQueryEncoder, token_batches, wordpieces
from sparsebench.retrieval.sparse_vectors import CSR, keep_largest, nonzeros
from sparsebench.retrieval.vocabulary_head import detached_head, largest_logits

TEXTS = [
    "experimental investigation of the aerodynamics of a wing in a slipstream",
    "time sharing",
    "",
    "the boundary layer in simple shear flow past a flat plate . " * 12,
    "Compilers: intermediate languages for multi-targeted compilers; TCOLL",
]


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 120))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_batches(lengths, budget)
    assert sorted(text for batch in batches for text in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(1, max(lengths[text] for text in batch)) <= budget


@cache
def splade(folder: Path, budget: int = 2048, dtype: str = "float32") -> SpladeEncoder:
    return SpladeEncoder(folder, token_budget=budget, dtype=dtype)  # type: ignore[arg-type]


def close(first: CSR, second: CSR, tolerance: float = 1e-4) -> bool:
    return bool(np.abs((first - second).toarray()).max() < tolerance)


def test_splade_agrees_with_sentence_transformers(splade_folder: Path) -> None:
    from sentence_transformers import SparseEncoder

    reference = SparseEncoder(str(splade_folder), local_files_only=True)
    expected = reference.encode(TEXTS, convert_to_sparse_tensor=False, batch_size=1).cpu().numpy()
    encoded = splade(splade_folder).encode(TEXTS)
    assert encoded.vectors.dtype == np.float32
    assert np.abs(encoded.vectors.toarray() - expected).max() < 1e-4
    assert encoded.seconds > 0


def test_splade_is_the_maximum_of_the_logarithms(splade_folder: Path) -> None:
    """The definition, term by term: log(1 + ReLU) at each position, then the maximum."""
    encoder = splade(splade_folder)
    tokens = encoder.tokenizer(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        logits = AutoModelForMaskedLM.from_pretrained(splade_folder)(**tokens).logits[0]
    expected = torch.log1p(torch.relu(logits)).amax(dim=0).numpy()
    assert np.abs(encoder.encode(TEXTS[:1]).vectors.toarray()[0] - expected).max() < 1e-5


def test_splade_vectors_do_not_depend_on_batch_or_order(splade_folder: Path) -> None:
    together = splade(splade_folder).encode(TEXTS)
    alone = splade(splade_folder, budget=1).encode(TEXTS)
    assert close(together.vectors, alone.vectors)
    backwards = splade(splade_folder).encode(TEXTS[::-1])
    assert close(together.vectors[::-1], backwards.vectors)
    assert together.tokens == alone.tokens == backwards.tokens


def test_a_term_budget_keeps_the_largest(splade_folder: Path) -> None:
    encoder = splade(splade_folder)
    full, cut = encoder.encode(TEXTS).vectors, encoder.encode(TEXTS, budget=8).vectors
    assert nonzeros(cut).max() == 8
    assert close(cut, keep_largest(full, 8))


def test_bfloat16_is_near_and_not_the_same(splade_folder: Path) -> None:
    full, half = (splade(splade_folder, dtype=dtype).encode(TEXTS[:2]).vectors for dtype in ("float32", "bfloat16"))
    cosine = (full.multiply(half)).sum() / np.sqrt(full.multiply(full).sum() * half.multiply(half).sum())
    assert 0.99 < cosine < 1 - 1e-9


def test_texts_that_are_too_long_are_counted(splade_folder: Path) -> None:
    encoder = SpladeEncoder(splade_folder, max_length=16)
    encoded = encoder.encode(TEXTS)
    assert encoded.truncated == sum(len(ids) > 16 for ids in encoder.tokenizer(TEXTS)["input_ids"]) > 0
    assert encoded.tokens <= 16 * len(TEXTS)
    assert splade(splade_folder).encode(TEXTS).truncated == 0
    assert encoder.encode([]).vectors.shape == (0, encoder.terms)


def test_twice_the_logarithm_where_the_folder_says_so(splade_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(splade_folder, folder, ignore=shutil.ignore_patterns("*.pt"))
    module = {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": "sentence_transformers.models.SpladePooling"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "1_SpladePooling").mkdir()
    config = folder / "1_SpladePooling" / "config.json"
    config.write_text(json.dumps({"pooling_strategy": "max", "activation_function": "log1p_relu"}))
    once, twice = splade(splade_folder).encode(TEXTS[:1]).vectors, SpladeEncoder(folder).encode(TEXTS[:1]).vectors
    assert close(once.log1p(), twice, 1e-6)
    config.write_text(json.dumps({"pooling_strategy": "sum"}))
    with pytest.raises(InputError, match="does not pool by maximum"):
        SpladeEncoder(folder)


def test_static_queries_weigh_each_wordpiece_once(splade_folder: Path, tmp_path: Path) -> None:
    encoder = splade(splade_folder)
    vocabulary = encoder.tokenizer.get_vocab()
    weights = np.arange(encoder.terms, dtype=np.float32)
    query = StaticQueryEncoder(encoder.tokenizer, weights).encode(["Wing wing wing in the slipstream", ""]).vectors
    pieces = encoder.tokenizer.tokenize("wing in the slipstream")
    expected = {vocabulary[piece]: float(vocabulary[piece]) for piece in pieces}
    assert dict(zip(query[[0]].indices.tolist(), query[[0]].data.tolist(), strict=True)) == expected
    assert nonzeros(query).tolist() == [len(expected), 0]
    (tmp_path / "idf.json").write_text(json.dumps({"wing": 2.5}))
    named = StaticQueryEncoder.from_file(encoder.tokenizer, tmp_path / "idf.json").encode(["wing in"]).vectors
    assert (named.indices.tolist(), named.data.tolist()) == ([vocabulary["wing"]], [2.5])
    (tmp_path / "idf.json").write_text(json.dumps({"no such piece": 1}))
    with pytest.raises(InputError, match="no such piece"):
        StaticQueryEncoder.from_file(encoder.tokenizer, tmp_path / "idf.json")


def test_wordpieces_are_those_that_an_encoder_reads(splade_folder: Path) -> None:
    tokenizer = splade(splade_folder).tokenizer
    assert nonzeros(wordpieces(tokenizer, ["one two three four"], 30522)).tolist() == [4]
    assert nonzeros(wordpieces(tokenizer, ["one two three four"], 30522, max_length=4)).tolist() == [2]


def test_minilm_is_the_normalised_mean_of_its_last_layer(minilm_folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    texts = TEXTS[:2] + TEXTS[3:]
    encoded = DenseEncoder(minilm_folder, batch_size=2).encode_documents(texts)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    model = AutoModel.from_pretrained(minilm_folder).eval()
    for vector, text in zip(encoded.vectors, texts, strict=True):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, truncation=True, max_length=256, return_tensors="pt")).last_hidden_state
        mean = hidden[0].mean(dim=0)
        assert np.abs(vector - (mean / mean.norm()).numpy()).max() < 1e-5
    assert encoded.truncated == 0
    assert encoded.tokens == sum(len(ids) for ids in tokenizer(texts)["input_ids"])


def test_minilm_counts_what_it_does_not_read(minilm_folder: Path) -> None:
    encoder = DenseEncoder(minilm_folder)
    encoded = encoder.encode_queries([TEXTS[3] * 4, "short"])
    assert encoder.max_length == 256
    assert encoded.truncated == 1
    assert encoded.tokens == 256 + 3


def test_folders_that_hold_no_such_model_are_errors(splade_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json"):
        SpladeEncoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MissingError, match="safetensors"):
        SpladeEncoder(tmp_path)
    with pytest.raises(MissingError, match=r"modules\.json"):
        DenseEncoder(splade_folder)
    with pytest.raises(UnknownNameError, match="bfloat16"):
        SpladeEncoder(splade_folder, dtype="bf16")  # type: ignore[arg-type]


def test_logits_in_parts_have_the_same_maxima() -> None:
    """A head of more terms than a part holds, with and without a bias, over texts of other lengths."""
    for bias in (True, False):
        head = torch.nn.Linear(8, 5000, bias=bias)
        hidden = torch.randn(3, 7, 8)
        with torch.inference_mode():
            found = largest_logits(hidden, [7, 1, 4], head)
            expected = [head(row[:length]).amax(0) for row, length in zip(hidden, [7, 1, 4], strict=True)]
        assert torch.allclose(found, torch.stack(expected), atol=1e-6)


def test_a_head_that_is_not_the_last_step_stays_on() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(4, 4), torch.nn.Linear(4, 4)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

        def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=2 * self.head(self.embedding(input_ids)))

    model = Scaled()
    ids = torch.tensor([[0, 1, 2]])
    before = model(ids).logits
    assert detached_head(model) is None
    assert torch.equal(model(ids).logits, before)
