"""MUVERA's fixed-dimensional encodings: one vector for a set, whose inner product stands for Chamfer similarity.

Random hyperplanes divide space into buckets. A query's encoding has in each bucket the sum of its tokens there, a
document's their mean; where a document has none, its token whose side of the hyperplanes differs least. Several
divisions stand side by side. Buckets are in binary order (the authors' code has them in Gray code: a permutation that
is the same for both sides changes no product).

Source: Dhulipala et al., 2024, "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings", arXiv 2405.19504,
section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsebench.errors import InputError
from sparsebench.retrieval.late_interaction import Floats, TokenVectors

_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True)
class FixedDimensional:
    """How sets of vectors are encoded.

    Attributes:
        dimensions: Dimensions of a token vector.
        repetitions: Divisions of space.
        planes: Hyperplanes of a division; it has 2 to the power of that many buckets. 0: one bucket.
        projection: Dimensions that a token vector is brought to; its own when None or not fewer.
        seed: Seed of hyperplanes and projections.

    Raises:
        InputError: A number is out of range.
    """

    dimensions: int
    repetitions: int = 20
    planes: int = 5
    projection: int | None = 16
    seed: int = 0

    def __post_init__(self) -> None:
        narrow = self.projection is not None and self.projection < 1
        if self.repetitions < 1 or not 0 <= self.planes <= 16 or narrow:
            raise InputError(
                f"fixed-dimensional encodings of {self.repetitions} repetitions, {self.planes} hyperplanes and a "
                f"projection to {self.projection}",
                "1 repetition or more, 0 to 16 hyperplanes, 1 dimension or more",
            )

    @property
    def width(self) -> int:
        """Dimensions of a token vector in a bucket."""
        return self.dimensions if self.projection is None else min(self.projection, self.dimensions)

    @property
    def size(self) -> int:
        """Dimensions of an encoding."""
        return self.repetitions * (1 << self.planes) * self.width

    def queries(self, texts: TokenVectors) -> Floats:
        """Encodings of queries: sums; empty buckets stay empty. `float32 [texts, size]`."""
        return self._encoded(texts, fill=False)

    def documents(self, texts: TokenVectors) -> Floats:
        """Encodings of documents: means; empty buckets have the nearest token. `float32 [texts, size]`."""
        return self._encoded(texts, fill=True)

    def _encoded(self, texts: TokenVectors, fill: bool) -> Floats:
        if texts.dimensions != self.dimensions:
            raise InputError(f"token vectors have {texts.dimensions} dimensions, the encoding {self.dimensions}")
        encoded = np.empty((len(texts), self.repetitions, 2**self.planes, self.width), dtype=np.float32)
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            part = texts[first : first + _TEXTS_AT_ONCE]
            for repetition in range(self.repetitions):
                encoded[first : first + len(part), repetition] = self._one(part, repetition, fill)
        return encoded.reshape(len(texts), self.size)

    def _one(self, texts: TokenVectors, repetition: int, fill: bool) -> Floats:
        """One repetition, `float32 [texts, buckets, width]`."""
        from scipy import sparse

        random = np.random.default_rng([self.seed, repetition])
        normals = random.standard_normal((self.dimensions, self.planes), dtype=np.float32)
        projected = self._projected(texts.vectors, random)
        sides = texts.vectors @ normals > 0
        bucket: NDArray[np.int64] = sides @ (1 << np.arange(self.planes))
        buckets = 2**self.planes
        place = np.repeat(np.arange(len(texts)) * buckets, texts.counts) + bucket
        found = np.bincount(place, minlength=len(texts) * buckets)
        weight = 1 / found[place] if fill else np.ones(len(place))
        tokens = np.arange(len(place))
        gather = sparse.csr_array(
            (weight.astype(np.float32), (place, tokens)), shape=(len(texts) * buckets, len(place))
        )
        encoded: Floats = gather @ projected
        if fill:
            empty = np.flatnonzero(found == 0)
            encoded[empty] = projected[_nearest(bucket, texts, buckets).ravel()[empty]]
        return encoded.reshape(len(texts), buckets, self.width)

    def _projected(self, vectors: Floats, random: np.random.Generator) -> Floats:
        """Token vectors in fewer dimensions: each dimension is added to one of them, or taken from it."""
        if self.width == self.dimensions:
            return vectors
        sketch = np.zeros((self.dimensions, self.width), dtype=np.float32)
        column = random.integers(self.width, size=self.dimensions)
        sketch[np.arange(self.dimensions), column] = random.choice([-1, 1], size=self.dimensions)
        return vectors @ sketch


def _nearest(bucket: NDArray[np.int64], texts: TokenVectors, buckets: int) -> NDArray[np.int64]:
    """The token of each text that differs from each bucket in the fewest hyperplanes, the first of several.

    Returns:
        Token numbers, `int64 [texts, buckets]`.
    """
    tokens = len(bucket)
    differs = np.bitwise_count(bucket[:, None] ^ np.arange(buckets)).astype(np.int64)
    keys = differs * tokens + np.arange(tokens)[:, None]
    least: NDArray[np.int64] = np.minimum.reduceat(keys, texts.starts[:-1], axis=0)
    return least % tokens
