"""A run: what one system retrieved for each query, in the order of trec_eval whatever order it came in."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import ge
from pathlib import Path
from typing import IO, Literal

import numpy as np

from sparsebench.errors import InputError
from sparsebench.retrieval.collection import position
from sparsebench.retrieval.hits import Hits


@dataclass(frozen=True, eq=False)
class Run:
    """Ranked documents by query.

    Attributes:
        query_ids: Query ids; a query without hits counts as answered with nothing.
        doc_ids: The ids that document numbers stand for, strictly ascending.
        hits: One row for each query: score descending, then document id descending.
    """

    query_ids: Sequence[str]
    doc_ids: Sequence[str]
    hits: Hits

    def __post_init__(self) -> None:
        if len(self.query_ids) != len(self.hits):
            raise InputError(f"a run of {len(self.query_ids)} queries has {len(self.hits)} rankings")

    @classmethod
    def from_dict(cls, scores: Mapping[str, Mapping[str, float]], doc_ids: Sequence[str] | None = None) -> Run:
        """A run from `{query id: {document id: score}}`; the order of insertion has no influence.

        Args:
            scores: Scores by query and document.
            doc_ids: Strictly ascending ids that hold all those of `scores`; collected from `scores` when not given.

        Raises:
            InputError: A score is not a finite number, `doc_ids` is not ascending, or it lacks an id.
        """
        if doc_ids is None:
            doc_ids = sorted(set().union(*scores.values()))
        elif any(map(ge, doc_ids, doc_ids[1:])):
            raise InputError("the document ids of a run are not strictly ascending", "sort them, or leave them out")
        number = {doc: place for place, doc in enumerate(doc_ids)}
        counts = [len(row) for row in scores.values()]
        total = sum(counts)
        try:
            docs = np.fromiter((number[doc] for row in scores.values() for doc in row), np.int64, total)
            values = np.fromiter((score for row in scores.values() for score in row.values()), np.float64, total)
        except KeyError as error:
            raise InputError(f"a run has document {error.args[0]!r}, which the collection does not have") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"a run has a score that is not a number: {error}") from error
        queries = np.repeat(np.arange(len(counts)), counts)
        return cls(list(scores), doc_ids, Hits.ranked(queries, docs, values, len(counts)))

    def to_dict(self) -> dict[str, dict[str, float]]:
        """`{query id: {document id: score}}`, best first."""
        ranked: dict[str, dict[str, float]] = {}
        for number, qid in enumerate(self.query_ids):
            docs, scores = self.hits.row(number)
            ranked[qid] = dict(zip(map(self.doc_ids.__getitem__, docs.tolist()), scores.tolist(), strict=True))
        return ranked

    def ranking(self, query_id: str) -> list[str]:
        """The document ids of one query, best first."""
        docs, _ = self.hits.row(self.query_ids.index(query_id))
        return [self.doc_ids[doc] for doc in docs.tolist()]

    def cut(self, depth: int) -> Run:
        """The first `depth` documents of each query; among equal scores the higher ids stay."""
        return Run(self.query_ids, self.doc_ids, self.hits.cut(depth))

    def without_identical_ids(self) -> Run:
        """The run without documents whose id is their query's."""
        own = np.array([position(self.doc_ids, qid) for qid in self.query_ids], dtype=np.int64)
        kept = self.hits.docs != own[self.hits.query_of]
        queries = self.hits.query_of[kept]
        starts = np.searchsorted(queries, np.arange(len(self.hits) + 1))
        return Run(
            self.query_ids,
            self.doc_ids,
            Hits(self.hits.docs[kept], self.hits.scores[kept], starts, self.hits.touched),
        )


def write_trec(run: Run, path: Path, tag: str) -> None:
    """Write a run in TREC's form, `query Q0 document rank score tag`; gzipped where the name ends in `.gz`.

    Scores have nine significant digits, which give a single-precision number back exactly.

    Raises:
        InputError: An id has white space in it or is empty.
    """
    for identifier in (tag, *run.query_ids, *(run.doc_ids[doc] for doc in np.unique(run.hits.docs).tolist())):
        if identifier.split() != [identifier]:
            raise InputError(f"{identifier!r} cannot stand in a TREC run: it is empty or has white space in it")
    with _opened(path, "wt") as stream:
        for number, qid in enumerate(run.query_ids):
            docs, scores = run.hits.row(number)
            for rank, (doc, score) in enumerate(zip(docs.tolist(), scores.tolist(), strict=True), start=1):
                stream.write(f"{qid} Q0 {run.doc_ids[doc]} {rank} {score:.9g} {tag}\n")


def read_trec(path: Path, doc_ids: Sequence[str] | None = None) -> Run:
    """Read a run in TREC's form. Scores order it, as in trec_eval; its ranks are not looked at.

    Args:
        path: The file, gzipped where the name ends in `.gz`.
        doc_ids: As for `Run.from_dict`.

    Raises:
        InputError: A line cannot be read, or a document comes twice for one query.
    """
    scores: dict[str, dict[str, float]] = {}
    with _opened(path, "rt") as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 6:
                raise InputError(f"{path}:{number}: {len(fields)} columns", "query, Q0, document, rank, score, tag")
            qid, _, doc, _, score, _ = fields
            row = scores.setdefault(qid, {})
            if doc in row:
                raise InputError(f"{path}:{number}: document {doc!r} comes a second time for query {qid!r}")
            try:
                row[doc] = float(score)
            except ValueError:
                raise InputError(f"{path}:{number}: the score {score!r} is not a number") from None
    return Run.from_dict(scores, doc_ids)


def _opened(path: Path, mode: Literal["rt", "wt"]) -> IO[str]:
    return gzip.open(path, mode, encoding="utf-8") if path.suffix == ".gz" else path.open(mode, encoding="utf-8")
