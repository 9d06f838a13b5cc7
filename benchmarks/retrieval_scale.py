"""How many queries a second do the sparse engines answer, and what do they miss, at a size of your choice?

    python benchmarks/retrieval_scale.py [--documents N] [--queries N] [--engines exact,document,...] [--seconds S]

`--documents 1000000` is the size of BigANN's sparse track in little, and stays below 8 GiB with the default engines.
Vectors are synthetic, in the likeness of SPLADE's on MS MARCO: about 120 terms a document and 49 a query, of a
vocabulary of 30,522; terms by Zipf's law, drawn in topics so that terms come together; weights log-normal, the frequent
ones smaller. Printed are build time, bytes, recall of the exact first 10, queries a second in one thread and the
largest memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from sparsebench.retrieval.hits import Hits
from sparsebench.retrieval.index import Index, InvertedIndex
from sparsebench.retrieval.measure import recall_of_exact, threads
from sparsebench.retrieval.sparse_vectors import CSR, compact, keep_largest, quantise
from sparsebench.retrieval.static_pruning import prune_documents, prune_postings, prune_terms

TERMS = 30_522
TOPICS = 200
OF_A_TOPIC = 400
ROWS_AT_ONCE = 10_000
K = 10


def vectors(count: int, mean_terms: int, seed: int) -> CSR:
    """`float32 [count, TERMS]`: half of a text's terms are its topic's, the others of the language at large."""
    world = np.random.default_rng(1)
    frequency = 1 / np.arange(10, TERMS + 10) ** 0.9
    frequency /= frequency.sum()
    cumulative = np.cumsum(frequency)
    topics = world.choice(TERMS, size=(TOPICS, OF_A_TOPIC))
    importance = np.log1p(0.3 / (frequency * TERMS)).astype(np.float32)
    random = np.random.default_rng(seed)
    parts = []
    for first in range(0, count, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, count - first)
        lengths = np.maximum(3, random.gamma(9, mean_terms / 9 * 1.08, size=rows)).astype(np.int64)
        row = np.repeat(np.arange(rows), lengths)
        general = np.minimum(np.searchsorted(cumulative, random.random(len(row))), TERMS - 1)
        place = np.minimum((random.exponential(OF_A_TOPIC / 5, len(row))).astype(np.int64), OF_A_TOPIC - 1)
        special = topics[random.integers(TOPICS, size=rows)[row], place]
        terms = np.where(random.random(len(row)) < 0.5, special, general)
        weights = (0.2 + importance[terms]) * random.lognormal(-0.5, 0.6, len(row)).astype(np.float32)
        part = sparse.csr_array((weights.astype(np.float32), (row, terms)), shape=(rows, TERMS))
        part.data = np.log1p(part.data)
        parts.append(compact(part))
    return compact(sparse.csr_array(sparse.vstack(parts, format="csr")))


def seismic(docs: CSR) -> Index:
    from sparsebench.retrieval.seismic import Blocks, SeismicIndex

    return SeismicIndex(docs, Blocks(query_cut=10, heap_factor=0.9))


Engine = tuple[Callable[[CSR], Index], Callable[[CSR], CSR]]

ENGINES: dict[str, Engine] = {
    "exact": (InvertedIndex, lambda queries: queries),
    "query 10 terms": (InvertedIndex, lambda queries: keep_largest(queries, 10)),
    "document 50 %": (lambda docs: InvertedIndex(prune_documents(docs, 0.5)), lambda queries: queries),
    "term 50 %": (lambda docs: InvertedIndex(prune_terms(docs, 0.5)), lambda queries: queries),
    "quantile 50 %": (lambda docs: InvertedIndex(prune_postings(docs, 0.5)), lambda queries: queries),
    "8 bits": (lambda docs: InvertedIndex(*quantise(docs, 8)), lambda queries: queries),
    "seismic": (seismic, lambda queries: queries),
}


def measured(index: Index, queries: CSR, seconds: float) -> tuple[Hits, float]:
    """What is found for all queries, and queries a second over as many rounds as fit the time."""
    rounds, start = 0, time.perf_counter()
    while True:
        hits = index.search(queries, K)
        rounds += 1
        taken = time.perf_counter() - start
        if taken >= seconds:
            return hits, rounds * len(hits) / taken


def peak() -> float:
    """Largest memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthetic SPLADE-like vectors through the sparse engines.")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--engines", default="exact,query 10 terms,quantile 50 %,8 bits", help=", ".join(ENGINES))
    parser.add_argument("--seconds", type=float, default=3.0, help="least time that an engine is asked for")
    given = parser.parse_args()
    chosen: list[str] = [name.strip() for name in given.engines.split(",")]
    for name in chosen:
        if name not in ENGINES:
            parser.error(f"no engine {name!r}: there are {', '.join(ENGINES)}")
    start = time.perf_counter()
    docs, queries = vectors(given.documents, 120, seed=2), vectors(given.queries, 49, seed=3)
    shape = f"{docs.nnz / docs.shape[0]:.0f} and {queries.nnz / queries.shape[0]:.0f} terms"
    print(f"{docs.shape[0]} documents, {queries.shape[0]} queries, {shape}, {time.perf_counter() - start:.0f} s")
    print(
        f"{'engine':16} {'build s':>8} {'MiB':>8} {'recall@10':>10} {'queries/s':>10} {'postings/query':>15} {'GiB':>6}"
    )
    exact: Hits | None = None
    with threads(1):
        for name in dict.fromkeys(["exact", *chosen]):
            exact = report(name, docs, queries, given.seconds, exact)


def report(name: str, docs: CSR, queries: CSR, seconds: float, exact: Hits | None) -> Hits:
    """Print one engine's line; return the exact ranking."""
    build, asked = ENGINES[name]
    start = time.perf_counter()
    index: Any = build(docs)
    built = time.perf_counter() - start
    hits, rate = measured(index, asked(queries), seconds)
    exact = exact or hits
    touched = "" if hits.touched is None else f"{hits.touched.mean():.0f}"
    recall = recall_of_exact(exact, hits, K)
    figures = f"{built:8.1f} {index.nbytes / 2**20:8.0f} {recall:10.4f} {rate:10.1f} {touched:>15} {peak():6.2f}"
    print(f"{name:16} {figures}", flush=True)
    return exact


if __name__ == "__main__":
    main()
