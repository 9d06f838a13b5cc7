"""ARC-easy: how many times as fast the engine is as lm-eval's Hugging Face backend at its best batch size.

    python benchmarks/engine/arc_easy.py [--items 200] [--dtype bfloat16]

Needs `llm_foundry_gauntlet/arc_easy.jsonl` under SPARSEBENCH_DATA.
"""

from __future__ import annotations

from comparison import Compared, compare
from protocol import arguments

TARGET = 4

if __name__ == "__main__":
    chosen = arguments(__doc__, 200, "arc-easy")
    compare(chosen, Compared.load("arc-easy", chosen.model, chosen.items), TARGET)
