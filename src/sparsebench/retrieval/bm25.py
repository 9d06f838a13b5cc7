"""BM25 with everything stated that changes its numbers: analyser, k1, b and the variant.

bm25s analyses, and its formulas give the weight of every term in every document. Those weights are a sparse matrix like
any other, and one inverted index searches both. So BM25 and learned sparse vectors differ in their weights alone, and
their postings are counted alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.retrieval.hits import Hits, starts_of
from sparsebench.retrieval.index import InvertedIndex
from sparsebench.retrieval.sparse_vectors import CSR, compact, csr

Method = Literal["lucene", "robertson", "atire"]
_METHODS = ("lucene", "robertson", "atire")
_IDF: dict[str, Callable[[int, NDArray[np.int64]], NDArray[np.float64]]] = {
    "lucene": lambda documents, frequency: np.log1p((documents - frequency + 0.5) / (frequency + 0.5)),
    "robertson": lambda documents, frequency: np.log(
        np.maximum((documents - frequency + 0.5) / (frequency + 0.5), 1.0)
    ),
    "atire": lambda documents, frequency: np.log(documents / frequency),
}


@dataclass(frozen=True)
class Analyser:
    """How text becomes terms: lower case, a pattern, stop words out, stems.

    Attributes:
        stemmer: A Snowball algorithm: `porter` is Porter's first, `english` his second; None for whole words.
        stopwords: A stop-word list of bm25s (`en`: 33 words, Lucene's); None for none.
        pattern: What a term is, as a regular expression; the default takes words of two characters or more.
    """

    stemmer: str | None = "porter"
    stopwords: str | None = "en"
    pattern: str = r"(?u)\b\w\w+\b"

    def __post_init__(self) -> None:
        import Stemmer

        if self.stemmer is not None and self.stemmer not in Stemmer.algorithms(aliases=True):
            raise UnknownNameError("stemmer", self.stemmer, Stemmer.algorithms())
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InputError(f"the analyser's pattern {self.pattern!r} is not a regular expression: {error}") from error

    def terms(self, texts: Sequence[str]) -> list[list[str]]:
        """The terms of each text, in order, repeated ones included.

        Raises:
            InputError: There is no such list of stop words.
        """
        rows, numbers = self.numbered(texts)
        term = {number: term for term, number in numbers.items()}
        return [[term[number] for number in row] for row in rows]

    def numbered(self, texts: Sequence[str]) -> tuple[list[list[int]], dict[str, int]]:
        """The terms of each text as numbers, and the number of each term; which is which differs from run to run.

        Raises:
            InputError: There is no such list of stop words.
        """
        import bm25s
        import Stemmer

        stemmer = Stemmer.Stemmer(self.stemmer) if self.stemmer else None
        try:
            tokens = bm25s.tokenize(
                list(texts),
                token_pattern=self.pattern,
                stopwords=self.stopwords,
                stemmer=stemmer,
                return_ids=True,
                show_progress=False,
            )
        except ValueError as error:
            raise InputError(f"stop words {self.stopwords!r}: {error}") from error
        return tokens.ids, tokens.vocab


@dataclass(frozen=True)
class BM25:
    """A BM25 configuration.

    Attributes:
        k1: Saturation of the term frequency; 0.9 is Anserini's default, 1.2 Lucene's.
        b: How far length counts; 0.4 is Anserini's default, 0.75 Lucene's.
        method: The variant of Kamphuis et al., 2020, as bm25s names it.
        analyser: How documents and queries become terms.
    """

    k1: float = 0.9
    b: float = 0.4
    method: Method = "lucene"
    analyser: Analyser = field(default_factory=Analyser)

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise UnknownNameError("BM25 method", self.method, _METHODS)
        if not self.k1 >= 0:
            raise InputError(f"k1 = {self.k1} is below 0")
        if not 0 <= self.b <= 1:
            raise InputError(f"b = {self.b} is not between 0 and 1")

    def index(self, documents: Sequence[str]) -> BM25Index:
        """The index of some documents.

        Raises:
            InputError: No document has a term.
        """
        return BM25Index(self, documents)

    def weights(self, counts: CSR) -> CSR:
        """The weight of each term in each document: bm25s's formulas, over whole arrays.

        Args:
            counts: How often each term comes, `float32 [documents, terms]`.

        Returns:
            `float32 [documents, terms]`, without stored zeros.
        """
        documents = int(counts.shape[0])
        frequency = np.bincount(counts.indices, minlength=counts.shape[1])
        lengths = np.asarray(counts.sum(axis=1), dtype=np.float64)
        saturation = self.k1 * (1 - self.b + self.b * lengths / lengths.mean())
        once = counts.data.astype(np.float64)
        part = once / (np.repeat(saturation, np.diff(counts.indptr)) + once)
        if self.method == "atire":
            part *= self.k1 + 1
        data = (_IDF[self.method](documents, frequency)[counts.indices] * part).astype(np.float32)
        weights = sparse.csr_array((data, counts.indices, counts.indptr), shape=counts.shape)
        weights.eliminate_zeros()
        return weights

    def describe(self) -> dict[str, object]:
        """All that decides the scores, the version of bm25s included."""
        return {**asdict(self), "bm25s": version("bm25s"), "pystemmer": version("pystemmer")}


class BM25Index:
    """Documents indexed for BM25.

    Args:
        config: The configuration.
        documents: Their texts.
    """

    def __init__(self, config: BM25, documents: Sequence[str]) -> None:
        self.config = config
        analysed, numbers = config.analyser.numbered(documents)
        # Sorted, so that sums of weights have one order in every process: sets of strings have none.
        self._vocabulary = {term: number for number, term in enumerate(sorted(numbers))}
        if not self._vocabulary:
            raise InputError("BM25: no document has a term", "is the analyser right for this language?")
        place = np.empty(len(numbers), dtype=np.int64)
        place[[numbers[term] for term in self._vocabulary]] = np.arange(len(numbers))
        self.weights = config.weights(_counted(analysed, place))
        self._inverted = InvertedIndex(self.weights)

    @property
    def size(self) -> int:
        """How many documents there are."""
        return self._inverted.size

    @property
    def nbytes(self) -> int:
        """Bytes of postings, without the vocabulary's strings."""
        return self._inverted.nbytes

    def encode_queries(self, queries: Sequence[str]) -> CSR:
        """How often each known term comes in each query, `float32 [queries, terms]`."""
        rows = []
        for terms in self.config.analyser.terms(queries):
            known = [self._vocabulary[term] for term in terms if term in self._vocabulary]
            rows.append((np.array(known, dtype=np.int64), np.ones(len(known), dtype=np.float32)))
        return csr(rows, len(self._vocabulary))

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """The k best documents of each query among those that have one of its terms; see `InvertedIndex.search`."""
        return self._inverted.search(self.encode_queries(queries), k)


def _counted(analysed: Sequence[Sequence[int]], place: NDArray[np.int64]) -> CSR:
    """How often each term comes in each document, `float32 [documents, terms]`, numbers of terms put in their place."""
    lengths = np.fromiter(map(len, analysed), np.int64, len(analysed))
    terms = place[np.fromiter(chain.from_iterable(analysed), np.int64, int(lengths.sum()))]
    ones = np.ones(len(terms), dtype=np.float32)
    counts = sparse.csr_array((ones, terms, starts_of(lengths)), shape=(len(analysed), len(place)))
    counts.sum_duplicates()
    return compact(counts)
