"""Ranked documents, and the one order in which documents are ranked.

Documents are numbered in the ascending order of their ids, so that the order of trec_eval (score descending, then
document id descending) is an order of two numbers. Both fit in one unsigned integer, the *rank key*: sorting keys ranks
documents, and taking the k smallest keys is an exact top k, ties at the cut included.

trec_eval holds scores in single precision: scores that are equal there are ties, whatever their further digits. Scores
are therefore single precision here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparsebench.errors import InputError

_SIGN = np.uint32(1 << 31)
_LOW = np.uint64(0xFFFFFFFF)


def rank_keys(scores: NDArray[np.float32], docs: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Integers whose ascending order is score descending, then document number descending.

    Args:
        scores: Scores, `float32 [n]`, none of them NaN.
        docs: Document numbers below 2**32, `[n]`.

    Returns:
        Keys, `uint64 [n]`: the inverted score in the high half, the inverted document number in the low half.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # adding 0 makes -0.0 and 0.0 one score
    ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return ((~ascending).astype(np.uint64) << np.uint64(32)) | (_LOW - docs.astype(np.uint64))


def keyed(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The documents and scores of rank keys: the inverse of `rank_keys`."""
    docs = (_LOW - (keys & _LOW)).astype(np.int32)
    ascending = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ascending & _SIGN, ascending ^ _SIGN, ~ascending)
    return docs, bits.view(np.float32)


def best(
    scores: NDArray[np.float32], k: int, docs: NDArray[np.integer] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The k best documents, best first; all of them where there are fewer.

    Args:
        scores: Scores, `float32 [n]`.
        k: How many to keep.
        docs: Document numbers, `[n]`; 0 to n - 1 when not given.

    Returns:
        Document numbers and scores, `[min(k, n)]` each.
    """
    if k < len(scores):
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= kth)
        scores, docs = scores[kept], kept if docs is None else docs[kept]
    elif docs is None:
        docs = np.arange(len(scores))
    keys = rank_keys(scores, docs)
    keys.sort()
    return keyed(keys[:k])


@dataclass(frozen=True, eq=False)
class Hits:
    """The ranked documents of some queries, best first.

    Attributes:
        docs: Document numbers, `int32 [hits]`, query after query.
        scores: Their scores, `float32 [hits]`, in no query increasing.
        starts: Query i has the hits `starts[i]` to `starts[i + 1]`; `int64 [queries + 1]`.
        touched: Postings read, or vectors compared, for each query, `int64 [queries]`; None where it is not known.
    """

    docs: NDArray[np.int32]
    scores: NDArray[np.float32]
    starts: NDArray[np.int64]
    touched: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, query: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Document numbers and scores of one query."""
        span = slice(self.starts[query], self.starts[query + 1])
        return self.docs[span], self.scores[span]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Hits of each query, `int64 [queries]`."""
        return np.diff(self.starts)

    @property
    def query_of(self) -> NDArray[np.int64]:
        """The query of each hit, `int64 [hits]`."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def ranks(self) -> NDArray[np.int64]:
        """The rank of each hit in its query, from 1; `int64 [hits]`."""
        return np.arange(1, len(self.docs) + 1) - np.repeat(self.starts[:-1], self.counts)

    def cut(self, k: int) -> Hits:
        """The first k hits of each query."""
        kept = self.ranks <= k
        counts = np.minimum(self.counts, k)
        return Hits(self.docs[kept], self.scores[kept], starts_of(counts), self.touched)

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[tuple[NDArray[np.int32], NDArray[np.float32]]],
        touched: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> Hits:
        """Hits from documents and scores of each query, ranked already."""
        rows = list(rows)
        empty = (np.empty(0, np.int32), np.empty(0, np.float32))
        return cls(
            docs=np.concatenate([empty[0], *(docs for docs, _ in rows)]),
            scores=np.concatenate([empty[1], *(scores for _, scores in rows)]),
            starts=starts_of([len(docs) for docs, _ in rows]),
            touched=None if touched is None else np.asarray(touched, dtype=np.int64),
        )

    @classmethod
    def ranked(
        cls, queries: NDArray[np.integer], docs: NDArray[np.integer], scores: NDArray[np.floating], size: int
    ) -> Hits:
        """Rank the (query, document, score) triples of `size` queries.

        Args:
            queries: Query numbers, ascending, `[hits]`.
            docs: Document numbers, `[hits]`.
            scores: Scores, `[hits]`.
            size: How many queries there are, those without a hit included.

        Raises:
            InputError: A score is not a finite number.
        """
        if not np.isfinite(scores).all():
            raise InputError("a run has scores that are not finite numbers", "leave out what was not found")
        with np.errstate(over="ignore"):
            single = scores.astype(np.float32)
        if not np.isfinite(single).all():
            raise InputError("a run has scores beyond single precision", "trec_eval holds scores in single precision")
        keys = rank_keys(single, docs)
        starts = starts_of(np.bincount(queries, minlength=size))
        for begin, end in pairwise(starts.tolist()):
            keys[begin:end].sort()
        return cls(*keyed(keys), starts)


def starts_of(counts: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Where each row starts, and where the last ends: `int64 [rows + 1]`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(counts, dtype=np.int64))])
