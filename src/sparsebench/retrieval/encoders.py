"""Encoders: texts to sparse or dense vectors, from a local model folder, with the time that encoding takes.

Encoders batch texts of like length together, up to a budget of tokens, since padding costs as much as text. Order and
batches do not change a vector beyond the rounding of its dtype.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sparsebench.errors import InputError, MissingError, UnknownNameError
from sparsebench.retrieval.sparse_vectors import CSR, csr, keep_largest

if TYPE_CHECKING:
    from sparsebench.retrieval.late_interaction import Staged

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
_DTYPES = ("float32", "bfloat16", "float16")
_Vectors = TypeVar("_Vectors")


@dataclass(frozen=True, eq=False)
class Encoded(Generic[_Vectors]):
    """Vectors and what they cost.

    Attributes:
        vectors: `[texts, terms]` sparse or `[texts, dimensions]` dense, `float32`.
        seconds: Wall time, tokenising included.
        tokens: Tokens that the model read.
        truncated: Texts that were longer than the model reads.
    """

    vectors: _Vectors
    seconds: float
    tokens: int
    truncated: int


def token_batches(lengths: Sequence[int], budget: int) -> list[NDArray[np.int64]]:
    """Batches of like length: longest first, as many texts as fit the budget when padded to the longest, at least one.

    Args:
        lengths: Tokens of each text.
        budget: Tokens of a batch, padding included.

    Returns:
        Text numbers of each batch; every text is in one.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches, first = [], 0
    while first < len(order):
        size = max(1, budget // max(1, lengths[order[first]]))
        batches.append(order[first : first + size])
        first += size
    return batches


class SpladeEncoder:
    """SPLADE: the weight of a term is the largest logit that the masked-language head gives it at any position.

    The maximum comes first and log(1 + ReLU) after it: both functions never decrease, so the vector is the same, and
    the logarithm is taken once for a text in place of once for each position.

    Args:
        folder: A local model folder for `AutoModelForMaskedLM`, with its tokenizer and weights in safetensors. Where it
            has the `modules.json` of a SparseEncoder, its pooling is followed.
        dtype: Precision of the model; weights are computed in single precision.
        device: Where the model runs.
        token_budget: Tokens of a batch. The logits take `token_budget x vocabulary` numbers.
        max_length: Longest text in tokens; what the model allows when not given.

    Raises:
        MissingError: The folder does not hold such a model.
        InputError: Its pooling is another than SPLADE's maximum.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: Dtype = "float32",
        device: str = "cpu",
        token_budget: int = 2048,
        max_length: int | None = None,
    ) -> None:
        import torch
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        from sparsebench.retrieval.vocabulary_head import detached_head

        check_model(folder, dtype)
        self.dtype, self.device, self.token_budget = dtype, device, token_budget
        self.activations = _splade_activations(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")
        model = AutoModelForMaskedLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype)
        )
        self._model = model.to(device).eval()
        self._head = detached_head(self._model) if device == "cpu" else None
        longest = min(self.tokenizer.model_max_length, model.config.max_position_embeddings)
        self.max_length = min(max_length or longest, longest)

    @property
    def terms(self) -> int:
        """Size of the vocabulary."""
        return int(self._model.config.vocab_size)

    def encode_documents(self, texts: Sequence[str]) -> Encoded[CSR]:
        """Document vectors, `float32 [texts, terms]`: SPLADE encodes both sides alike."""
        return self.encode(texts)

    def encode_queries(self, texts: Sequence[str]) -> Encoded[CSR]:
        """Query vectors, `float32 [texts, terms]`."""
        return self.encode(texts)

    def encode(self, texts: Sequence[str], budget: int | None = None) -> Encoded[CSR]:
        """Sparse vectors of some texts.

        Args:
            texts: The texts.
            budget: Terms to keep of each vector, the largest; all when not given.

        Returns:
            `float32 [texts, terms]`.
        """
        start = time.perf_counter()
        ids, truncated = tokenise(self.tokenizer, texts, self.max_length)
        batches = token_batches([len(row) for row in ids], self.token_budget)
        parts = [_pruned(self._weights([ids[text] for text in batch]), budget) for batch in batches]
        stacked = sparse.vstack(parts, format="csr") if parts else sparse.csr_array((0, self.terms), dtype=np.float32)
        order = np.concatenate(batches) if batches else np.empty(0, np.int64)
        vectors = sparse.csr_array(stacked)[np.argsort(order)]
        return Encoded(vectors, time.perf_counter() - start, sum(map(len, ids)), truncated)

    def _weights(self, batch: list[list[int]]) -> CSR:
        """Vectors of one batch of token ids."""
        import torch

        from sparsebench.retrieval.vocabulary_head import largest_logits

        padded = self.tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            logits = self._model(**padded).logits
            if self._head is not None:
                weights = largest_logits(logits, padded["attention_mask"].sum(1).tolist(), self._head).float().relu_()
            else:
                if not padded["attention_mask"].all():
                    logits.masked_fill_(padded["attention_mask"][:, :, None] == 0, float("-inf"))
                weights = logits.amax(dim=1).float().relu_()
            for _ in range(self.activations):
                weights.log1p_()
        return sparse.csr_array(weights.cpu().numpy())


class StaticQueryEncoder:
    """Inference-free queries: each wordpiece of the query, once, with a fixed weight; no model is run.

    Args:
        tokenizer: The document encoder's tokenizer.
        weights: The weight of each term, `float32 [terms]`, such as its inverse document frequency.

    Source: Geng et al., 2024, arXiv 2411.04403.
    """

    def __init__(self, tokenizer: Any, weights: NDArray[np.float32]) -> None:
        self.tokenizer = tokenizer
        self.weights = np.asarray(weights, dtype=np.float32)

    @classmethod
    def from_file(cls, tokenizer: Any, path: Path, terms: int | None = None) -> StaticQueryEncoder:
        """Weights from a JSON file `{wordpiece: weight}`, as released with inference-free encoders; others weigh 0.

        Args:
            tokenizer: The document encoder's tokenizer.
            path: The file.
            terms: Size of the document encoder's vocabulary, where it is more than the tokenizer's.

        Raises:
            InputError: The file holds something else, or a wordpiece that the tokenizer does not have.
        """
        vocabulary = tokenizer.get_vocab()
        weights = np.zeros(max(terms or 0, max(vocabulary.values()) + 1), dtype=np.float32)
        try:
            for piece, weight in json.loads(path.read_text(encoding="utf-8")).items():
                weights[vocabulary[piece]] = weight
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path}: not a JSON object of wordpieces and weights: {error}") from error
        except KeyError as error:
            raise InputError(f"{path}: the tokenizer has no wordpiece {error.args[0]!r}") from None
        return cls(tokenizer, weights)

    def encode(self, texts: Sequence[str]) -> Encoded[CSR]:
        """Sparse vectors of some queries, `float32 [texts, terms]`."""
        start = time.perf_counter()
        pieces = wordpieces(self.tokenizer, texts, len(self.weights))
        vectors = pieces.astype(np.float32) * self.weights
        vectors = sparse.csr_array(vectors)
        vectors.eliminate_zeros()
        return Encoded(vectors, time.perf_counter() - start, 0, 0)


def wordpieces(tokenizer: Any, texts: Sequence[str], terms: int, max_length: int | None = None) -> CSR:
    """Which wordpieces each text has, special tokens left out: 1 or nothing, `float32 [texts, terms]`.

    Args:
        tokenizer: The tokenizer.
        texts: The texts.
        terms: Size of the vocabulary.
        max_length: Tokens that are read of a text, special ones included, as an encoder would; all when not given.
    """
    special = set(tokenizer.all_special_ids)
    rows = []
    for ids in tokenise(tokenizer, texts, max_length)[0]:
        present = np.array(sorted(set(ids) - special), dtype=np.int64)
        rows.append((present, np.ones(len(present), dtype=np.float32)))
    return csr(rows, terms)


class DenseEncoder:
    """A bi-encoder from a local sentence-transformers folder, with the pooling, prompts and length that it states.

    Args:
        folder: The model folder, with `modules.json`.
        dtype: Precision of the model.
        device: Where the model runs.
        batch_size: Texts of a batch; sentence-transformers batches texts of like length.

    Raises:
        MissingError: The folder does not hold such a model. Without `modules.json` the pooling would be a guess.
    """

    def __init__(self, folder: Path, *, dtype: Dtype = "float32", device: str = "cpu", batch_size: int = 32) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        check_model(folder, dtype)
        if not (folder / "modules.json").is_file():
            raise MissingError(f"no such file: {folder / 'modules.json'}", "a sentence-transformers folder has one")
        self.dtype, self.device, self.batch_size = dtype, device, batch_size
        self._model = SentenceTransformer(
            str(folder), device=device, local_files_only=True, model_kwargs={"dtype": getattr(torch, dtype)}
        )

    @property
    def max_length(self) -> int:
        """Longest text in tokens; the rest of a longer one is not read."""
        return int(self._model.max_seq_length)

    def encode_documents(self, texts: Sequence[str]) -> Encoded[NDArray[np.float32]]:
        """Document vectors, `float32 [texts, dimensions]`."""
        return self._encode(self._model.encode_document, texts)

    def encode_queries(self, texts: Sequence[str]) -> Encoded[NDArray[np.float32]]:
        """Query vectors, `float32 [texts, dimensions]`."""
        return self._encode(self._model.encode_query, texts)

    def encode_document_tokens(self, texts: Sequence[str]) -> Encoded[Staged]:
        """Document vectors with those of their tokens, of unit length, special tokens included."""
        return self._encode_tokens(self._model.encode_document, texts)

    def encode_query_tokens(self, texts: Sequence[str]) -> Encoded[Staged]:
        """Query vectors with those of their tokens, of unit length, special tokens included."""
        return self._encode_tokens(self._model.encode_query, texts)

    def _encode(self, encode: Any, texts: Sequence[str]) -> Encoded[NDArray[np.float32]]:
        read, truncated = self._lengths(texts)
        start = time.perf_counter()
        vectors = encode(list(texts), batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False)
        dense = vectors.float().cpu().numpy()
        return Encoded(dense, time.perf_counter() - start, read, truncated)

    def _encode_tokens(self, encode: Any, texts: Sequence[str]) -> Encoded[Staged]:
        from sparsebench.retrieval.late_interaction import Staged, TokenVectors

        read, truncated = self._lengths(texts)
        start = time.perf_counter()
        found = encode(list(texts), batch_size=self.batch_size, output_value=None, show_progress_bar=False)
        coarse = np.stack([text["sentence_embedding"].float().cpu().numpy() for text in found])
        rows = [text["token_embeddings"][text["attention_mask"].bool()].float().cpu().numpy() for text in found]
        fine = TokenVectors.of(rows)
        return Encoded(Staged(coarse, fine), time.perf_counter() - start, read, truncated)

    def _lengths(self, texts: Sequence[str]) -> tuple[int, int]:
        """Tokens that are read of all texts together, and how many texts are cut."""
        lengths = [len(ids) for ids in tokenise(self._model.tokenizer, texts, None)[0]]
        read = [min(length, self.max_length) for length in lengths]
        return sum(read), sum(map(int.__gt__, lengths, read))


def tokenise(tokenizer: Any, texts: Iterable[str], max_length: int | None) -> tuple[list[list[int]], int]:
    """Token ids of each text, and how many texts were cut to `max_length`."""
    texts = list(texts)
    if not texts:
        return [], 0
    encoded = tokenizer(
        texts,
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    cut = sum(bool(encoding.overflowing) for encoding in encoded.encodings) if max_length else 0
    return encoded["input_ids"], cut


def _pruned(vectors: CSR, budget: int | None) -> CSR:
    return vectors if budget is None else keep_largest(vectors, budget)


def check_model(folder: Path, dtype: str) -> None:
    """Whether a folder holds a model that can be loaded.

    Raises:
        MissingError: It has no configuration, or no weights in safetensors.
        UnknownNameError: There is no such dtype.
    """
    if dtype not in _DTYPES:
        raise UnknownNameError("dtype", dtype, _DTYPES)
    if not (folder / "config.json").is_file():
        raise MissingError(f"no model at {folder}: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise MissingError(f"no weights at {folder}", "weights must be in safetensors; pickled ones are not loaded")


def _splade_activations(folder: Path) -> int:
    """How many times the logarithm is taken: once, or twice where the folder's pooling says so."""
    if not (folder / "modules.json").is_file():
        return 1
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    pooling = [folder / module["path"] for module in modules if module["type"].endswith(".SpladePooling")]
    if len(pooling) != 1:
        raise InputError(f"{folder / 'modules.json'}: not one SpladePooling", "other sparse encoders are not SPLADE")
    config = json.loads((pooling[0] / "config.json").read_text(encoding="utf-8"))
    if config.get("pooling_strategy", "max") != "max":
        raise InputError(f"{pooling[0] / 'config.json'}: it does not pool by maximum", "SPLADE does")
    return 2 if config.get("activation_function") == "log1p_relu" else 1
