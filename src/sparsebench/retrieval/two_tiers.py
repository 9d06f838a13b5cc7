"""Dense search in two tiers: product-quantised codes in memory choose candidates, full vectors on disk rank them.

Source: Jégou et al., 2011, "Product Quantization for Nearest Neighbor Search" (codes and asymmetric distances); Xiao et
al., 2022, "Progressively Optimized Bi-Granular Document Representation", arXiv 2201.05409 (the two tiers).
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparsebench.errors import InputError
from sparsebench.retrieval.hits import Hits, best

Floats = NDArray[np.float32]
PAGE = 4096
"""Bytes that a disk gives at least."""
_SAMPLE = 65_536
_ROUNDS = 20


@dataclass(frozen=True, eq=False)
class ProductQuantiser:
    """Vectors as the numbers of their nearest centroids, part by part.

    Attributes:
        bounds: Where each part starts, and where the last ends; `int [parts + 1]`.
        centroids: For each part, `float32 [centroids, dimensions of the part]`.
    """

    bounds: NDArray[np.int64]
    centroids: tuple[Floats, ...]

    @classmethod
    def fit(cls, docs: Floats, parts: int, bits: int = 8, seed: int = 0) -> ProductQuantiser:
        """Centroids by k-means over the documents, over a sample of them where there are many.

        Args:
            docs: `float32 [documents, dimensions]`.
            parts: Parts of a vector, one code of a byte each.
            bits: Bits of a code, 1 to 8: 2 to the power of that many centroids, or as many as documents if fewer.
            seed: Seed of sample and first centroids.

        Raises:
            InputError: Parts or bits are out of range.
        """
        from scipy.cluster.vq import kmeans2

        if not 1 <= parts <= docs.shape[1] or not 1 <= bits <= 8:
            raise InputError(f"{parts} parts of {bits} bits for {docs.shape[1]} dimensions", "1 to 8 bits a part")
        random = np.random.default_rng(seed)
        sample = docs if len(docs) <= _SAMPLE else docs[np.sort(random.choice(len(docs), _SAMPLE, replace=False))]
        bounds = np.linspace(0, docs.shape[1], parts + 1).astype(np.int64)
        count = min(2**bits, len(sample))
        centroids = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="One of the clusters is empty")  # it keeps its place
            for begin, end in pairwise(bounds.tolist()):
                part = sample[:, begin:end]
                points = part[random.choice(len(part), count, replace=False)]
                centroids.append(kmeans2(part, points, iter=_ROUNDS, minit="matrix")[0].astype(np.float32))
        return cls(bounds, tuple(centroids))

    @property
    def nbytes(self) -> int:
        """Bytes of the centroids."""
        return sum(part.nbytes for part in self.centroids)

    def codes(self, docs: Floats) -> NDArray[np.uint8]:
        """The nearest centroid of each part of each document, `uint8 [parts, documents]`."""
        return np.stack([_nearest(docs[:, begin:end], part) for begin, end, part in self._parts()])

    def scores(self, query: Floats, codes: NDArray[np.uint8]) -> Floats:
        """Inner products of one query with all documents as their codes have them, `float32 [documents]`."""
        scores = np.zeros(codes.shape[1], dtype=np.float32)
        for (begin, end, part), row in zip(self._parts(), codes, strict=True):
            scores += (part @ query[begin:end])[row]
        return scores

    def _parts(self) -> list[tuple[int, int, Floats]]:
        bounds = self.bounds.tolist()
        return list(zip(bounds[:-1], bounds[1:], self.centroids, strict=True))


def _nearest(vectors: Floats, centroids: Floats) -> NDArray[np.uint8]:
    """The centroid of least Euclidean distance, the first of several."""
    nearness: Floats = vectors @ centroids.T - (centroids**2).sum(axis=1) / 2
    places: NDArray[np.int64] = nearness.argmax(axis=1)
    return places.astype(np.uint8)


class TwoTierIndex:
    """Codes in memory, vectors in a file; `Hits.touched` counts the vectors read from it.

    Args:
        docs: `float32 [documents, dimensions]`.
        candidates: Documents that are read and ranked exactly for each query; all when None.
        parts: Parts of a code.
        bits: Bits of a part.
        seed: Seed of the centroids.
    """

    def __init__(self, docs: Floats, candidates: int | None, parts: int = 48, bits: int = 8, seed: int = 0) -> None:
        docs = np.ascontiguousarray(docs, dtype=np.float32)
        self.size, self._dimensions = docs.shape
        self._candidates = candidates or self.size
        self.quantiser = ProductQuantiser.fit(docs, parts, bits, seed)
        self._codes = self.quantiser.codes(docs)
        self._file = tempfile.TemporaryFile()
        self._file.write(docs.tobytes())
        self._file.flush()
        self._disk = np.memmap(self._file, dtype=np.float32, mode="r", shape=docs.shape)
        self.pages_read = 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory: codes and centroids."""
        return int(self._codes.nbytes) + self.quantiser.nbytes

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk: the vectors."""
        return int(self._disk.nbytes)

    def search(self, queries: Floats, k: int) -> Hits:
        """The k best documents of each query among its candidates, by their full vectors.

        Args:
            queries: `float32 [queries, dimensions]`.
            k: How many documents; more than there are, or than candidates, is allowed.

        Raises:
            InputError: k is below 1, or the dimensions differ.
        """
        if k < 1:
            raise InputError(f"a search for {k} documents", "k must be 1 or more")
        if queries.ndim != 2 or queries.shape[1] != self._dimensions:
            raise InputError(f"queries have shape {queries.shape}, documents {self._dimensions} dimensions")
        rows, touched = [], []
        self.pages_read = 0
        for query in queries:
            docs, _ = best(self.quantiser.scores(query, self._codes), self._candidates)
            docs = np.sort(docs)
            rows.append(best(self._disk[docs] @ query, k, docs))
            touched.append(len(docs))
            self.pages_read += _pages(docs, 4 * self._dimensions)
        return Hits.from_rows(rows, touched)


def _pages(docs: NDArray[np.integer], size: int) -> int:
    """Pages that hold the vectors of some documents, in ascending order, `size` bytes each, in a file of their own."""
    begin = docs.astype(np.int64) * size
    first, last = begin // PAGE, (begin + size - 1) // PAGE
    shared = first[1:] == last[:-1]
    return int((last - first + 1).sum() - shared.sum())
