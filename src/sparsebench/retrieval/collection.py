"""A retrieval collection: documents, queries and judgements, with the choices that change its numbers.

Two published figures for one collection often differ by choices that neither states: which fields were indexed, what a
negative grade means, whether a query may retrieve itself. A `Collection` carries them, and a hash of its content.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import ge
from typing import Literal, TypeAlias

from sparsebench.errors import InputError, UnknownNameError

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
FieldPolicy: TypeAlias = Literal["title_text", "title", "text"]
GradePolicy: TypeAlias = Literal["plain", "negative_best", "negative_zero", "binary"]

_FIELDS: dict[str, Callable[[str, str], str]] = {
    "title_text": lambda title, text: f"{title} {text}".strip(),
    "title": lambda title, text: title.strip(),
    "text": lambda title, text: text.strip(),
}
_GRADES: dict[str, Callable[[int, int], int]] = {
    "plain": lambda grade, top: grade,
    "negative_best": lambda grade, top: top + 1 if grade < 0 else grade,
    "negative_zero": lambda grade, top: max(grade, 0),
    "binary": lambda grade, top: int(grade > 0),
}


@dataclass(frozen=True, eq=False)
class Collection:
    """Documents, judged queries and judgements.

    Documents stand in ascending order of their ids (`retrieval.hits` says why), queries in the order of their source.
    A judged document that the corpus does not have stays in the ideal ranking and in the number of relevant documents,
    as in trec_eval: what it would have brought is lost to every system alike. `missing_docs` counts such judgements.

    Attributes:
        name: The collection's name.
        split: Which judgements: the name of the qrels file or of the split.
        doc_ids: Document ids, strictly ascending by code point.
        titles: Titles, empty where there is none.
        texts: Texts, empty where there is none.
        query_ids: Ids of the judged queries.
        queries: Their texts.
        qrels: Grades, `{query id: {document id: grade}}`, none negative; a grade above 0 is relevant.
        field_policy: What is indexed of a document: title and text joined by one space, or one of them.
        grade_policy: How grades were read. `plain`: as they stand, and a negative one is an error; `negative_best`: a
            negative grade is one above the best (Cranfield's -1 means "answers the question completely");
            `negative_zero`: not relevant (the TREC reading, spam in Touche); `binary`: 1 when above 0.
        drop_identical_ids: A document whose id is the query's is not a result (ArguAna, Quora: queries are documents).
        source: Where it came from, and the revision where there is one.

    Raises:
        InputError: Ids are not unique, a judged query has no text, or judged ids are spelt otherwise than the corpus's.
    """

    name: str
    split: str
    doc_ids: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]
    query_ids: Sequence[str]
    queries: Sequence[str]
    qrels: Qrels
    field_policy: FieldPolicy = "title_text"
    grade_policy: GradePolicy = "plain"
    drop_identical_ids: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        if self.field_policy not in _FIELDS:
            raise UnknownNameError("field policy", self.field_policy, _FIELDS)
        if self.grade_policy not in _GRADES:
            raise UnknownNameError("grade policy", self.grade_policy, _GRADES)
        if not self.doc_ids:
            raise InputError(f"collection {self.name!r} has no documents")
        if not self.qrels:
            raise InputError(f"collection {self.name!r} has no judged queries in split {self.split!r}")
        if not len(self.doc_ids) == len(self.titles) == len(self.texts):
            raise InputError(f"collection {self.name!r}: ids, titles and texts of the documents differ in number")
        if any(map(ge, self.doc_ids, self.doc_ids[1:])):
            raise InputError(f"collection {self.name!r}: document ids are not strictly ascending")
        if len(self.query_ids) != len(self.queries) or set(self.query_ids) != set(self.qrels):
            raise InputError(f"collection {self.name!r}: queries and judged queries differ")
        self._check_spelling()

    @classmethod
    def from_dicts(
        cls,
        name: str,
        corpus: Mapping[str, str | Mapping[str, str | None]],
        queries: Mapping[str, str],
        qrels: Mapping[str, Mapping[str, int]],
        *,
        split: str = "test",
        field_policy: FieldPolicy = "title_text",
        grade_policy: GradePolicy = "plain",
        drop_identical_ids: bool = False,
        source: str = "",
    ) -> Collection:
        """A collection from BEIR's dictionaries.

        Args:
            name: The collection's name.
            corpus: `{id: {"title": ..., "text": ...}}` or `{id: text}`.
            queries: `{id: text}`; those without judgements are left out.
            qrels: `{query id: {document id: grade}}`.
            split: Which judgements these are.
            field_policy: See `Collection`.
            grade_policy: See `Collection`.
            drop_identical_ids: See `Collection`.
            source: See `Collection`.

        Raises:
            InputError: A judged query has no text, or a grade is negative and `grade_policy` is `plain`.
        """
        judged = {qid: grades for qid, grades in qrels.items() if grades}
        for qid in judged:
            if qid not in queries:
                raise InputError(f"collection {name!r}: query {qid!r} is judged but has no text")
        doc_ids = sorted(corpus)
        docs = [{"text": doc} if isinstance(doc, str) else doc for doc in map(corpus.__getitem__, doc_ids)]
        query_ids = [qid for qid in queries if qid in judged]
        return cls(
            name=name,
            split=split,
            doc_ids=doc_ids,
            titles=[doc.get("title") or "" for doc in docs],
            texts=[doc.get("text") or "" for doc in docs],
            query_ids=query_ids,
            queries=[queries[qid] for qid in query_ids],
            qrels=apply_grade_policy(judged, grade_policy),
            field_policy=field_policy,
            grade_policy=grade_policy,
            drop_identical_ids=drop_identical_ids,
            source=source,
        )

    def documents(self) -> list[str]:
        """What is indexed of each document, by the field policy, in the order of `doc_ids`."""
        join = _FIELDS[self.field_policy]
        return [join(title, text) for title, text in zip(self.titles, self.texts, strict=True)]

    @cached_property
    def content_hash(self) -> str:
        """The sha256 of documents, judged queries and grades, whatever their order and the policies' names.

        Raises:
            InputError: A text or an id holds half a surrogate pair, which no file in UTF-8 can.
        """
        digest = hashlib.sha256()

        def add(kind: str, rows: Iterable[Sequence[str | int]]) -> None:
            for row in rows:
                line = json.dumps([kind, *row], ensure_ascii=False, separators=(",", ":"))
                try:
                    digest.update(line.encode() + b"\n")
                except UnicodeEncodeError:
                    what = f"collection {self.name!r}: {kind} {row[0]!r}"
                    raise InputError(f"{what}: holds half a surrogate pair, which is no character") from None

        add("doc", zip(self.doc_ids, self.titles, self.texts, strict=True))
        add("query", sorted(zip(self.query_ids, self.queries, strict=True)))
        add("grade", sorted((qid, doc, grade) for qid, grades in self.qrels.items() for doc, grade in grades.items()))
        return digest.hexdigest()

    @cached_property
    def missing_docs(self) -> int:
        """Judgements of documents that the corpus does not have."""
        return sum(not self.has_doc(doc) for grades in self.qrels.values() for doc in grades)

    def has_doc(self, doc_id: str) -> bool:
        """Whether the corpus has a document of this id."""
        return position(self.doc_ids, doc_id) >= 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever uses the collection should know of it."""
        if not self.missing_docs:
            return ()
        judgements = sum(map(len, self.qrels.values()))
        return (
            f"collection {self.name}: {self.missing_docs:,} of {judgements:,} judgements are of documents that the "
            "corpus does not have; relevant ones count as not found",
        )

    def describe(self) -> dict[str, str | int | bool]:
        """What a result must say about its collection to be comparable."""
        grades = [grade for judged in self.qrels.values() for grade in judged.values()]
        return {
            "name": self.name,
            "split": self.split,
            "source": self.source,
            "content_hash": self.content_hash,
            "field_policy": self.field_policy,
            "grade_policy": self.grade_policy,
            "drop_identical_ids": self.drop_identical_ids,
            "documents": len(self.doc_ids),
            "empty_documents": sum(not document for document in self.documents()),
            "queries": len(self.query_ids),
            "queries_without_relevant": sum(max(judged.values()) <= 0 for judged in self.qrels.values()),
            "judgements": len(grades),
            "relevant": sum(grade > 0 for grade in grades),
            "missing_docs": self.missing_docs,
        }

    def _check_spelling(self) -> None:
        """Judged ids that the corpus has in another spelling are unmatched silently, and the figures too low."""
        missing = {doc for grades in self.qrels.values() for doc in grades if not self.has_doc(doc)}
        if not missing:
            return
        spelt = {bare(doc): doc for doc in self.doc_ids}
        other = {doc: spelt[bare(doc)] for doc in sorted(missing) if bare(doc) in spelt}
        if other:
            judged, indexed = next(iter(other.items()))
            raise InputError(
                f"collection {self.name!r}: the judgements say {judged!r}, the corpus {indexed!r}",
                f"{len(other)} judged ids are spelt otherwise than in the corpus and would never match",
            )
        if len(missing) == len({doc for grades in self.qrels.values() for doc in grades}):
            raise InputError(
                f"collection {self.name!r}: none of the {len(missing)} judged documents is in the corpus",
                f"the judgements have ids such as {min(missing)!r}, the corpus such as {self.doc_ids[0]!r}",
            )


def position(ids: Sequence[str], wanted: str) -> int:
    """Where an id stands among ascending ids; -1 when it is not there."""
    place = bisect_left(ids, wanted)
    return place if place < len(ids) and ids[place] == wanted else -1


def bare(doc_id: str) -> str:
    """An id without case, white space and the zeros before its numbers: `CACM-0756` and ` cacm-756` are one."""
    return re.sub(r"(?<!\d)0+(?=\d)|\s", "", doc_id).casefold()


def apply_grade_policy(qrels: Mapping[str, Mapping[str, int]], policy: GradePolicy) -> dict[str, dict[str, int]]:
    """Grades as the policy reads them (see `Collection`).

    Raises:
        InputError: A grade is not an integer, or is negative and the policy is `plain`.
    """
    if policy not in _GRADES:
        raise UnknownNameError("grade policy", policy, _GRADES)
    for qid, grades in qrels.items():
        for doc, grade in grades.items():
            if grade != int(grade):
                raise InputError(f"query {qid!r}, document {doc!r}: grade {grade!r} is not an integer")
            if grade < 0 and policy == "plain":
                raise InputError(
                    f"query {qid!r}, document {doc!r}: grade {grade} is negative",
                    "say what it means: grade policy negative_best (Cranfield) or negative_zero (TREC)",
                )
    read = _GRADES[policy]
    top = max(int(grade) for grades in qrels.values() for grade in grades.values()) if qrels else 0
    return {qid: {doc: read(int(grade), top) for doc, grade in grades.items()} for qid, grades in qrels.items()}
