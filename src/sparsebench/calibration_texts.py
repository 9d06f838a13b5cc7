"""Calibration texts by name: where their documents come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsebench.errors import UnknownNameError

if TYPE_CHECKING:
    from sparsebench.adapters.calibration import Calibration

SOURCES: dict[str, dict[str, Any]] = {
    "prose": {"data": [{"embedded": "prose"}], "build": "prose", "options": {"split": "calibration"}},
    "wikitext2-train": {
        "data": [
            {"local": "wikitext2_train_5k/wikitext2_train_5k.txt.gz"},
            {"hf": "Salesforce/wikitext", "subset": "wikitext-2-raw-v1", "split": "train"},
        ]
    },
    "c4-half": {
        "data": [{"local": "redpajama_samples/sample_c4-rp1.jsonl.gz"}],
        "build": "half",
        "options": {"part": "calibration"},
    },
    "c4-sample": {
        "data": [
            {"local": "redpajama_samples/sample_c4-rp1.jsonl.gz"},
            {"hf": "allenai/c4", "file": "en/c4-train.00000-of-01024.json.gz"},
        ]
    },
}
"""Name of a text to the sources of its documents, in the form that tasks name theirs."""


def calibration_for(tokenizer: Any, entry: Mapping[str, Any]) -> Calibration:
    """The calibration set that a suite's entry describes.

    Args:
        tokenizer: The model's.
        entry: `data` (a name of `SOURCES`), `sequences`, `length`, `seed`.

    Raises:
        UnknownNameError: No such text.
        MissingError: Its data is not to be had.
    """
    from sparsebench.adapters.calibration import Calibration
    from sparsebench.tasks.builders import build_rows

    name = entry["data"]
    if name not in SOURCES:
        raise UnknownNameError("calibration text", name, SOURCES)
    source = SOURCES[name]
    built = build_rows(source.get("build", ""), source["data"], source.get("options", {}), tokenizer)
    texts = [str(row["text"]) for row in built.rows]
    return Calibration.from_texts(
        name, texts, tokenizer, sequences=entry["sequences"], length=entry["length"], seed=entry["seed"]
    )
