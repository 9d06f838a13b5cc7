"""How many queries a second do the sparse engines answer, and what do they miss, at a size of your choice?

    python benchmarks/retrieval_scale.py [--documents N] [--queries N] [--engines exact,seismic,...] [--seconds S]
                                         [--processes N] [--out FILE.json]

`--documents 1000000` is BigANN's sparse track (8.8 million) in little, and stays below 8 GiB. Queries a second are
those of one process and of `--processes` that share the index, each with a part of the queries.
Vectors are synthetic, in the likeness of SPLADE's on MS MARCO: about 120 terms a document and 49 a query, of a
vocabulary of 30,522; terms by Zipf's law, drawn in topics so that terms come together; weights log-normal, the frequent
ones smaller. Printed are build time, bytes, recall of the exact first 10, queries a second, and the largest memory of
the process that builds and asks the index, vectors included. Engines that differ in how they ask share an index.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sparsebench import environment
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


@dataclass(frozen=True)
class Engine:
    """How an index is built and asked.

    Attributes:
        name: What rows call it.
        build: Makes the index; engines with one `index` share it.
        index: What the index is called.
        asked: What becomes of the queries.
        tune: What is set in the index before it is asked.
    """

    name: str
    build: Callable[[CSR], Any]
    index: str = ""
    asked: Callable[[CSR], CSR] = lambda queries: queries
    tune: Callable[[Any], None] = lambda index: None


def seismic(name: str, query_cut: int, heap_factor: float) -> Engine:
    def build(docs: CSR) -> Index:
        from sparsebench.retrieval.seismic import SeismicIndex

        return SeismicIndex(docs)

    def tune(index: Any) -> None:
        index.blocks = replace(index.blocks, query_cut=query_cut, heap_factor=heap_factor)

    return Engine(name, build, "seismic", tune=tune)


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("exact", InvertedIndex, "inverted"),
        Engine("query 10 terms", InvertedIndex, "inverted", lambda queries: keep_largest(queries, 10)),
        Engine("document 50 %", lambda docs: InvertedIndex(prune_documents(docs, 0.5))),
        Engine("term 50 %", lambda docs: InvertedIndex(prune_terms(docs, 0.5))),
        Engine("quantile 50 %", lambda docs: InvertedIndex(prune_postings(docs, 0.5))),
        Engine("8 bits", lambda docs: InvertedIndex(*quantise(docs, 8))),
        seismic("seismic 5 terms", 5, 0.9),
        seismic("seismic", 10, 0.9),
        seismic("seismic 20 terms", 20, 1.0),
    )
}


def rate(index: Index, queries: CSR, seconds: float, processes: int) -> tuple[float, float]:
    """Queries a second of some processes that share the index: of wall time, and of processor time of one of them.

    Each asks for as many rounds as fit the time. On a busy machine the second is the one to look at.
    """
    fork = multiprocessing.get_context("fork")
    answers: Any = fork.Queue()

    def ask(part: CSR) -> None:
        rounds, start, used = 0, time.perf_counter(), time.process_time()
        while (taken := time.perf_counter() - start) < seconds or not rounds:
            index.search(part, K)
            rounds += 1
        asked = rounds * part.shape[0]
        answers.put((asked / taken, asked / (time.process_time() - used)))

    workers = [fork.Process(target=ask, args=(queries[place::processes],)) for place in range(processes)]
    for worker in workers:
        worker.start()
    rates = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    return float(sum(wall for wall, _ in rates)), float(np.mean([processor for _, processor in rates]))


def peak() -> float:
    """Largest memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthetic SPLADE-like vectors through the sparse engines.")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--engines", default="exact,query 10 terms,quantile 50 %,8 bits", help=", ".join(ENGINES))
    parser.add_argument("--seconds", type=float, default=3.0, help="least time that an engine is asked for")
    parser.add_argument("--processes", type=int, default=2, help="processes that share an index")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args()
    chosen: list[str] = [name.strip() for name in given.engines.split(",")]
    for name in chosen:
        if name not in ENGINES:
            parser.error(f"no engine {name!r}: there are {', '.join(ENGINES)}")
    start = time.perf_counter()
    docs, queries = vectors(given.documents, 120, seed=2), vectors(given.queries, 49, seed=3)
    shape = f"{docs.nnz / docs.shape[0]:.0f} and {queries.nnz / queries.shape[0]:.0f} terms"
    print(f"{docs.shape[0]} documents, {queries.shape[0]} queries, {shape}, {time.perf_counter() - start:.0f} s")
    heads = ("of CPU time", f"{given.processes} proc.", "postings", "GiB")
    print(f"{'engine':16} {'build s':>8} {'MiB':>8} {'recall@10':>10} {'queries/s':>10}", *(f"{h:>11}" for h in heads))
    exact: Hits | None = None
    rows: list[dict[str, Any]] = []
    engines = [ENGINES[name] for name in dict.fromkeys(["exact", *chosen])]
    by_index: dict[str, list[Engine]] = {}
    for engine in engines:
        by_index.setdefault(engine.index or engine.name, []).append(engine)
    for members in by_index.values():
        for row, hits in apart(lambda members=members, exact=exact: report(members, docs, queries, given, exact)):
            rows.append(row)
            exact = exact or hits
            if given.out:
                given.out.write_text(json.dumps(summary(docs, queries, given, rows), indent=1) + "\n")


def apart(work: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """What `work` yields in a process of its own, so that its memory is its own too."""
    fork = multiprocessing.get_context("fork")
    answers: Any = fork.Queue()

    def send() -> None:
        for answer in work():
            answers.put(answer)
        answers.put(None)

    worker = fork.Process(target=send)
    worker.start()
    while True:
        try:
            answer = answers.get(timeout=1)
        except queue.Empty:
            if worker.is_alive():
                continue
            raise SystemExit(f"an engine's process ended with code {worker.exitcode}") from None
        if answer is None:
            break
        yield answer
    worker.join()


def report(
    engines: Sequence[Engine], docs: CSR, queries: CSR, given: Any, exact: Hits | None
) -> Iterator[tuple[dict[str, Any], Hits]]:
    """Build the index that engines share; print each one's line; yield it and what it found."""
    with threads(1):
        start = time.perf_counter()
        index = engines[0].build(docs)
        built = time.perf_counter() - start
        building = peak()
        for engine in engines:
            engine.tune(index)
            asked = engine.asked(queries)
            hits = index.search(asked, K)
            exact = exact or hits
            alone, processor = rate(index, asked, given.seconds, 1)
            row = {
                "engine": engine.name,
                "build_s": built,
                "index_mib": index.nbytes / 2**20,
                "recall@10": recall_of_exact(exact, hits, K),
                "queries_per_second_1": alone,
                "queries_per_processor_second": processor,
                "queries_per_second": rate(index, asked, given.seconds, given.processes)[0],
                "postings_per_query": None if hits.touched is None else float(hits.touched.mean()),
                "peak_gib": max(building, peak()),
            }
            touched = "" if hits.touched is None else f"{hits.touched.mean():.0f}"
            figures = f"{built:8.1f} {row['index_mib']:8.0f} {row['recall@10']:10.4f} {alone:10.1f} {processor:11.1f}"
            rest = f"{row['queries_per_second']:11.1f} {touched:>11} {row['peak_gib']:11.2f}"
            print(f"{engine.name:16} {figures} {rest}", flush=True)
            yield row, hits


def summary(docs: CSR, queries: CSR, given: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All figures, with what they were measured on."""
    return {
        "documents": docs.shape[0],
        "queries": queries.shape[0],
        "terms_per_document": docs.nnz / docs.shape[0],
        "terms_per_query": queries.nnz / queries.shape[0],
        "processes": given.processes,
        "hardware": environment.hardware(),
        "packages": environment.packages(),
        "commit": environment.commit()[0],
        "engines": rows,
    }


if __name__ == "__main__":
    main()
