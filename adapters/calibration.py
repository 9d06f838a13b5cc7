"""Calibration text: the tokens that methods read before they prune or choose thresholds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sparsebench.errors import InputError
from sparsebench.identity import seed_of

if TYPE_CHECKING:
    import torch

SEPARATOR = "\n\n"
"""Between short documents that are joined."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Token sequences of equal length.

    Attributes:
        name: What the text is.
        ids: Token ids, int64 [sequences, length].
        seed: What the sequences were drawn with.
    """

    name: str
    ids: np.ndarray
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.size == 0 or self.ids.dtype.kind not in "iu":
            raise InputError(f"calibration {self.name!r}: ids must be whole numbers, [sequences, length]")
        object.__setattr__(self, "ids", np.ascontiguousarray(self.ids, dtype=np.int64))
        self.ids.setflags(write=False)

    @cached_property
    def hash(self) -> str:
        """sha256 of the tokens and their arrangement; the name plays no part."""
        return hashlib.sha256(f"{self.ids.shape}".encode() + self.ids.tobytes()).hexdigest()

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return int(self.ids.shape[0])

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return int(self.ids.shape[1])

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return int(self.ids.size)

    def describe(self) -> dict[str, Any]:
        """Facts for the record."""
        shape = {"sequences": self.sequences, "length": self.length}
        return {"name": self.name, "hash": self.hash, "seed": self.seed, **shape}

    def batches(self, tokens: int) -> Iterator[torch.Tensor]:
        """The sequences in order, at most `tokens` tokens at a time but at least one; int64 [batch, length]."""
        import torch

        step = max(1, tokens // self.length)
        for first in range(0, self.sequences, step):
            yield torch.from_numpy(self.ids[first : first + step].copy())

    @classmethod
    def from_texts(
        cls,
        name: str,
        documents: Sequence[str],
        tokenizer: Any,
        sequences: int = 128,
        length: int = 2048,
        seed: int = 0,
    ) -> Self:
        """Random crops of documents, as Wanda and SparseGPT take them from C4.

        Documents are taken in a random order, each at most once a round. One that is longer than `length` gives a
        random crop; shorter ones, which the papers' recipe throws away, are joined in that order until they are long
        enough. A text that is used up begins another round, so crops of a small text overlap. No special tokens are
        added.

        Args:
            name: What the text is, for the record.
            documents: The text.
            tokenizer: A transformers tokenizer.
            sequences: How many sequences.
            length: Tokens of each.
            seed: What they are drawn with.

        Raises:
            InputError: The whole text is shorter than one sequence.
        """
        generator = np.random.default_rng(seed_of("calibration", seed))
        text = _Tokens(documents, tokenizer)
        rows: list[np.ndarray] = []
        while len(rows) < sequences:
            before = len(rows)
            for row in _round(text, length, generator):
                rows.append(row)
                if len(rows) == sequences:
                    break
            if len(rows) == before:
                hint = "give more text, or shorter sequences"
                raise InputError(f"calibration {name!r} has {text.total} tokens, too few for one of {length}", hint)
        return cls(name, np.stack(rows), seed)


class _Tokens:
    """Documents as tokens, each tokenised when it is first asked for."""

    def __init__(self, documents: Sequence[str], tokenizer: Any) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.separator = self._encode(SEPARATOR)
        self._known: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self._known:
            self._known[index] = self._encode(self.documents[index])
        return self._known[index]

    @property
    def total(self) -> int:
        """Tokens of all documents."""
        return sum(len(self[index]) for index in range(len(self)))

    def _encode(self, text: str) -> np.ndarray:
        # verbose=False: a document may well be longer than the model's context, since it is cropped.
        return np.array(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=np.int64)


def _round(text: _Tokens, length: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """One sequence of each long document and of each run of short ones, in a random order."""
    joined = np.zeros(0, dtype=np.int64)
    for index in generator.permutation(len(text)):
        tokens = text[int(index)]
        if len(tokens) < length:
            tokens = joined = np.concatenate([joined, text.separator, tokens]) if len(joined) else tokens
            if len(joined) < length:
                continue
            joined = np.zeros(0, dtype=np.int64)
        start = int(generator.integers(len(tokens) - length + 1))
        yield tokens[start : start + length]
