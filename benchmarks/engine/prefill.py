"""Useful FLOP/s of a batched prefill as a share of the measured peak of a matrix product, beside plain transformers.

    python benchmarks/engine/prefill.py [--items 16] [--length 256]

Useful are the products with the weights of the linear layers, the attention of each token to those before it, and the
LM head at the last token of each sequence; nothing else is counted. The peak is that of the fastest product of square
matrices that fit the caches, in the same dtype on the same threads, between the turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import RESULTS, SMOLLM2, store, verdict

from sparsebench.engine.scoring import Scored, score
from sparsebench.systems import memory
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.loading import load_causal_lm

TARGET = 0.6
SQUARES = (512, 1024, 2048)


def useful(system: CausalLM, sequences: int, length: int) -> float:
    """FLOPs of the prefill of so many sequences of one length."""
    linear = sum(site.weight.numel() for site in system.linears)
    shape = system.shape
    config = system.config
    attention = 4 * config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    head = config.hidden_size * system.model.get_input_embeddings().weight.shape[0]
    pairs = length * (length + 1) // 2
    return sequences * (2 * linear * length + attention * pairs * len(shape.windows) + 2 * head)


def timed(work: Any) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few square products."""
    best = 0.0
    for size in SQUARES:
        one, other = torch.randn(2, size, size).to(dtype)
        best = max(best, *(2 * size**3 / timed(lambda a=one, b=other: a @ b) for _ in range(8)))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, metavar="REF")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--items", type=int, default=16, help="sequences of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of each")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "engine-prefill.json", metavar="FILE")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    memory.keep_freed_memory()
    system = load_causal_lm(chosen.model, chosen.dtype)
    tokens = np.random.default_rng(0).integers(3, 10000, (chosen.items, chosen.length + 1))
    requests = [Scored(row.tolist(), 1, chosen.length) for row in tokens]
    ids = torch.from_numpy(tokens[:, :-1].copy())

    def plain() -> None:
        with torch.inference_mode():
            system.model(input_ids=ids, use_cache=False, logits_to_keep=1)

    sides = {"engine": lambda: score(system, requests), "transformers": plain}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks = []
    for turn in range(chosen.rounds + 1):
        peaks.append(peak(system.dtype))
        for name, work in sides.items():
            taken = timed(work)
            if turn:  # the first turn warms both
                seconds[name].append(taken)
    limit, work = max(peaks), useful(system, chosen.items, chosen.length)
    shares = {name: work / statistics.median(own) / limit for name, own in seconds.items()}
    found = {
        "sequences": chosen.items,
        "tokens of each": chosen.length,
        "useful GFLOP": work / 1e9,
        "peak GFLOP/s": limit / 1e9,
        "seconds": {name: [min(own), statistics.median(own), max(own)] for name, own in seconds.items()},
        "share of the peak": shares,
        **verdict(shares["engine"], TARGET),
    }
    store(chosen, found)


if __name__ == "__main__":
    main()
