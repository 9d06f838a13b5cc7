"""Five-shot short answers: how many times as fast the engine generates as lm-eval's Hugging Face backend.

    python benchmarks/engine/generation.py [--items 500] [--dtype bfloat16]

Needs `bigbench/qa_wikidata.json.gz` under SPARSEBENCH_DATA.
"""

from __future__ import annotations

from comparison import Compared, compare
from protocol import arguments

TARGET = 3

if __name__ == "__main__":
    chosen = arguments(__doc__, 500, "generation")
    compare(chosen, Compared.load("qa-wikidata", chosen.model, chosen.items), TARGET)
