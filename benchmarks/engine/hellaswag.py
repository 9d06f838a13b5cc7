"""HellaSwag: how many times as fast the engine is as lm-eval's Hugging Face backend at its best batch size.

    python benchmarks/engine/hellaswag.py [--items 200] [--dtype bfloat16]

Needs `hellaswag/hellaswag_val_full.txt.bz2` under SPARSEBENCH_DATA.
"""

from __future__ import annotations

from comparison import Compared, compare
from protocol import arguments

TARGET = 3.5

if __name__ == "__main__":
    chosen = arguments(__doc__, 200, "hellaswag")
    compare(chosen, Compared.load("hellaswag", chosen.model, chosen.items), TARGET)
