"""BM25 with everything stated that changes its numbers: analyser, k1, b and the variant.

bm25s computes the weight of every term in every document; those weights are a sparse matrix like any other, and one
inverted index searches both. So BM25 and learned sparse vectors differ in their weights alone, and their postings are
counted alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Literal

import numpy as np
from scipy import sparse

from sparsebench.errors import InputError, UnknownNameError
from sparsebench.retrieval.hits import Hits
from sparsebench.retrieval.index import InvertedIndex
from sparsebench.retrieval.sparse_vectors import CSR, csr

Method = Literal["lucene", "robertson", "atire"]
_METHODS = ("lucene", "robertson", "atire")


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
        self.weights = self._weights(analysed, [numbers[term] for term in self._vocabulary])
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

    def _weights(self, analysed: Sequence[Sequence[int]], order: Sequence[int]) -> CSR:
        """The weight of each term in each document, `float32 [documents, terms]`, the terms in some order."""
        import bm25s

        scorer = bm25s.BM25(k1=self.config.k1, b=self.config.b, method=self.config.method)
        scores = scorer.build_index_from_ids(
            unique_token_ids=list(range(len(order))),
            corpus_token_ids=analysed,
            show_progress=False,
        )
        by_term = sparse.csc_array(
            (scores["data"], scores["indices"], scores["indptr"]), shape=(len(analysed), len(self._vocabulary))
        )
        weights = by_term[:, order].tocsr()
        weights.eliminate_zeros()
        return weights
