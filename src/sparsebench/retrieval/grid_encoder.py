"""A trained cell of the unified framework as an encoder: `sparse-encoder` systems load it like any other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sparsebench.retrieval.encoders import Dtype, Encoded, check_model, token_batches, tokenise
from sparsebench.retrieval.sparse_vectors import CSR

CELL = "sparse_cell.json"


def is_grid_cell(folder: Path) -> bool:
    """Whether a model folder holds a trained cell."""
    return (folder / CELL).is_file()


class GridEncoder:
    """A query and a document encoder that were trained together.

    Args:
        folder: What `training.train` left.
        dtype: Precision of the language model; heads and weights are in single precision.
        device: Where the model runs.
        token_budget: Tokens of a batch.

    Raises:
        MissingError: The folder holds no model.
        InputError: Its heads are not those of its cell.
    """

    def __init__(
        self, folder: Path, *, dtype: Dtype = "float32", device: str = "cpu", token_budget: int = 2048
    ) -> None:
        import torch
        from transformers import AutoTokenizer

        from sparsebench.retrieval.training.model import LearnedSparseModel

        check_model(folder, dtype)
        self.device, self.token_budget = device, token_budget
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = LearnedSparseModel.from_folder(folder).to(device=device, dtype=getattr(torch, dtype)).eval()
        longest = min(self.tokenizer.model_max_length, self._model.backbone.config.max_position_embeddings)
        expansion = self._model.cell.expansion if self._model.cell.document == "expanded-mlp" else 0
        self.max_length = int(longest) - expansion

    @property
    def terms(self) -> int:
        """Size of the vocabulary."""
        return self._model.terms

    def encode_documents(self, texts: Sequence[str]) -> Encoded[CSR]:
        """Document vectors, `float32 [texts, terms]`."""
        return self._encode("document", texts)

    def encode_queries(self, texts: Sequence[str]) -> Encoded[CSR]:
        """Query vectors, `float32 [texts, terms]`."""
        return self._encode("query", texts)

    def _encode(self, side: Any, texts: Sequence[str]) -> Encoded[CSR]:
        import torch

        start = time.perf_counter()
        ids, truncated = tokenise(self.tokenizer, texts, self.max_length)
        batches = token_batches([len(row) for row in ids], self.token_budget)
        parts = []
        for batch in batches:
            padded = self.tokenizer.pad({"input_ids": [ids[text] for text in batch]}, return_tensors="pt").to(
                self.device
            )
            with torch.inference_mode():
                weights = self._model(side, padded["input_ids"], padded["attention_mask"])
            parts.append(sparse.csr_array(weights.float().cpu().numpy()))
        stacked = sparse.vstack(parts, format="csr") if parts else sparse.csr_array((0, self.terms), dtype=np.float32)
        order = np.concatenate(batches) if batches else np.empty(0, np.int64)
        vectors = sparse.csr_array(stacked)[np.argsort(order)]
        return Encoded(vectors, time.perf_counter() - start, sum(map(len, ids)), truncated)
