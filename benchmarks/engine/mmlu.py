"""MMLU with five shots, two subjects: how many times as fast the engine is as lm-eval's Hugging Face backend.

    python benchmarks/engine/mmlu.py [--items 120] [--subjects astronomy anatomy]

Needs `mmlu/` under SPARSEBENCH_DATA.
"""

from __future__ import annotations

from comparison import Compared, compare
from protocol import arguments

TARGET = 8
SUBJECTS = ("astronomy", "anatomy")


def of_subjects(task: Compared, items: int) -> Compared:
    """The first samples of each subject, as many of one as of the other."""
    each = items // len(SUBJECTS)
    places = [[i for i, row in enumerate(task.rows) if row["subject"] == subject][:each] for subject in SUBJECTS]
    return task.part([place for own in places for place in own])


if __name__ == "__main__":
    chosen = arguments(__doc__, 120, "mmlu")
    compare(chosen, of_subjects(Compared.load("mmlu", chosen.model, None), chosen.items), TARGET)
