"""Retrieval tasks: a collection in BEIR form, scored query by query."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sparsebench.data.sources import Resolved, resolve
from sparsebench.errors import InputError
from sparsebench.identity import digest
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.evaluate import EVALUATOR, evaluate, parse_metric
from sparsebench.tasks.base import BoundTask, DefinedTask, TaskResult, Workload
from sparsebench.tasks.definition import TaskDefinition
from sparsebench.tasks.prompts import even_choice

DEPTH = 1000
"""Documents that are ranked for each query at least, and all that a metric without a cut-off looks at, as in
trec_eval's runs."""
SHOWN = 10
"""Documents of each ranking that are stored."""


class RetrievalTask(DefinedTask):
    """Retrieval over a collection, from a definition."""

    kind = "retrieval"

    def bind(self, tokenizer: Any, limit: int | None = None) -> BoundRetrievalTask:
        """Load the collection; `limit` keeps evenly spread queries and all documents."""
        return BoundRetrievalTask(self.definition, limit)


class BoundRetrievalTask(BoundTask):
    """A retrieval task with its collection."""

    protocol = ""

    def __init__(self, definition: TaskDefinition, limit: int | None) -> None:
        resolved = resolve(definition.data)
        collection = _asked(definition, resolved)
        if limit is not None and limit < len(collection.query_ids):
            collection = _fewer_queries(collection, limit, definition.seed)
        self.collection = collection
        self.definition = definition
        self.metrics = list(definition.metrics)
        self.family = definition.family
        self.title = definition.title
        self.notes = collection.notes
        self.data = [definition.fact(resolved.source, resolved.sha256)]
        self.depth = _depth(collection, [metric.column for metric in self.metrics])
        # Rankings that go deeper give other numbers than those that were cut at DEPTH, so they are another question.
        asked = collection.content_hash
        self.spec = definition.spec(asked if self.depth <= DEPTH else digest([asked, self.depth]), limit)
        characters = sum(map(len, collection.documents())) + sum(map(len, collection.queries))
        self.workload = Workload(len(collection.query_ids), characters // 4)

    def evaluate(self, system: Any) -> TaskResult:
        """Retrieve and score each query."""
        import pandas as pd

        found = system.retrieve(self.collection, self.depth)
        scored = evaluate(self.collection, found.run, [metric.column for metric in self.metrics], depth=DEPTH)
        rankings = found.run.cut(SHOWN)
        answered = set(found.run.query_ids)
        frame = pd.DataFrame(
            {
                "sample": list(scored.query_ids),
                "cluster": list(scored.query_ids),
                **{metric.column: scored.values[metric.column] for metric in self.metrics},
                **found.by_query,
                "response": [json.dumps(rankings.ranking(q) if q in answered else []) for q in scored.query_ids],
                "target": [
                    json.dumps(sorted(d for d, grade in self.collection.qrels[q].items() if grade > 0))
                    for q in scored.query_ids
                ],
            }
        )
        facts = {**found.facts, "evaluator": EVALUATOR, "counted": dict(found.counted)}
        return TaskResult(frame, facts)


def _depth(collection: Collection, metrics: list[str]) -> int:
    """Documents to rank for each query: as many as the deepest cut-off needs.

    Raises:
        InputError: There is no such metric.
    """
    deepest = max(cut or DEPTH for _, cut in map(parse_metric, metrics))
    # One more, since a query's own document is taken out of its ranking afterwards.
    return min(max(DEPTH, deepest + collection.drop_identical_ids), len(collection.doc_ids))


def _asked(definition: TaskDefinition, resolved: Resolved) -> Collection:
    """The collection, with its own queries or, where the definition says so, with some that exact words answer."""
    if not definition.build:
        return _collection(definition, resolved, dict(definition.options))
    from sparsebench.retrieval.precision import precision_collection

    own = {k: v for k, v in definition.options.items() if k in ("queries", "words", "seed")}
    others = {k: v for k, v in definition.options.items() if k not in own}
    if definition.seed and isinstance(own.get("seed", 0), int):
        own["seed"] = own.get("seed", 0) + definition.seed
    if wrong := [k for k, v in own.items() if not isinstance(v, int) or v < (k != "seed")]:
        raise InputError(f"task {definition.task}: {', '.join(wrong)} must be a whole number, 1 or more")
    return precision_collection(_collection(definition, resolved, others), definition.build, **own)


def _collection(definition: TaskDefinition, resolved: Resolved, options: dict[str, Any]) -> Collection:
    policies: dict[str, Any] = {
        k: options.pop(k) for k in ("field_policy", "grade_policy", "drop_identical_ids") if k in options
    }
    split = str(options.pop("qrels", "test"))
    judgements = options.pop("judgements", None)
    if options:
        hint = "qrels, judgements, field_policy, grade_policy, drop_identical_ids"
        raise InputError(f"task {definition.task}: no option {', '.join(options)}", hint)
    if resolved.embedded is not None:
        return _embedded(definition.task, resolved, policies)
    from sparsebench.retrieval.loaders import load_beir, load_hub, unpacked

    path = resolved.paths[0]
    if not resolved.source.startswith("hf:") or (path / "qrels" / f"{split}.tsv").is_file():
        folder = unpacked(path) if path.is_file() else path
        return load_beir(folder, split=split, name=definition.task, **policies)
    found = load_hub(str(path), split=split, qrels_repository=judgements, name=definition.task, **policies)
    return replace(found, source=found.source.replace(f"folder:{path.name}", resolved.source))


def _embedded(name: str, resolved: Resolved, policies: dict[str, Any]) -> Collection:
    from sparsebench.data.embedded.docs_collection import collection

    made = collection()
    return Collection.from_dicts(name, made.corpus, made.queries, made.qrels, source=resolved.source, **policies)


def _fewer_queries(collection: Collection, limit: int, seed: int) -> Collection:
    kept = set(even_choice(list(collection.query_ids), limit, seed))
    pairs = [(q, text) for q, text in zip(collection.query_ids, collection.queries, strict=True) if q in kept]
    return replace(
        collection,
        query_ids=[q for q, _ in pairs],
        queries=[text for _, text in pairs],
        qrels={q: grades for q, grades in collection.qrels.items() if q in kept},
    )
