"""What the parity scripts share: the model as a plain checkpoint, texts as tokens, and where results go."""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench.adapters.calibration import Calibration
from sparsebench.environment import hardware, packages
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.embedded import MODELS
from sparsebench.systems.loading import load_causal_lm

RESULTS = Path(__file__).parents[1] / "results"
SMOLLM2 = next(model.ref for model in MODELS if model.kind == "causal-lm")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of all scripts."""
    from environment import default_root

    parser.add_argument("--model", default=SMOLLM2, metavar="REF", help="hf:, path: or pypi:; default: SmolLM2-135M")
    parser.add_argument("--environments", type=Path, default=default_root(), metavar="DIR", help="the peers' own")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: benchmarks/results/NAME.json")


def loaded(reference: str, device: str = "cpu", dtype: str = "float32") -> CausalLM:
    """The model with quantised weights as numbers."""
    return load_causal_lm(reference, dtype, device)


def saved(system: CausalLM, folder: Path) -> Path:
    """The model as a plain checkpoint that any library loads: the same class and weights, nothing of a quantiser."""
    config = type(system.model.config).from_dict(
        {k: v for k, v in system.model.config.to_dict().items() if k != "quantization_config"}
    )
    plain = type(system.model)(config).to(system.dtype)
    plain.load_state_dict(system.model.state_dict(), strict=False)
    plain.save_pretrained(folder)
    system.tokenizer.save_pretrained(folder)
    return folder


def prose(system: CausalLM, part: str, sequences: int, length: int, seed: int) -> Calibration:
    """Sequences of the documentation of Python's standard library, which needs no download."""
    from sparsebench.tasks.builders import build_rows

    rows = build_rows("prose", [{"embedded": "prose"}], {"split": part}, None).rows
    texts = [str(row["text"]) for row in rows]
    return Calibration.from_texts(f"prose {part}", texts, system.tokenizer, sequences, length, seed)


def wikitext2(system: CausalLM, windows: int, length: int) -> np.ndarray:
    """Windows of WikiText-2's test text, evenly chosen of those that its perplexity task has at that length."""
    from sparsebench.tasks.perplexity import BoundPerplexityTask
    from sparsebench.tasks.registry import get

    definition = get("wikitext2-perplexity").definition.model_copy(update={"window": length})
    bound = BoundPerplexityTask(definition, system.tokenizer, windows)
    return np.stack([tokens for _, tokens in bound.windows])


def perplexity(system: CausalLM, ids: np.ndarray) -> float:
    """exp of the mean negative log-likelihood of every token but the first of each sequence."""
    from sparsebench.engine.scoring import Scored, score

    found = score(system, [Scored(row.tolist(), len(row) - 1, len(row)) for row in ids])
    return float(np.exp(-np.concatenate([scores.logprobs for scores in found]).mean()))


def stored(name: str, out: Path | None, settings: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write what was measured, and with what."""
    place = out or RESULTS / f"{name}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "hardware": hardware("cpu"),
        "platform": platform.system(),
        "packages": packages(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    place.write_text(json.dumps({"settings": settings, "rows": rows, "environment": about}, indent=1) + "\n")
    return place


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as text, one column a key."""
    names = list(rows[0])
    cells = [[f"{row[n]:.4f}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
    lines = [names, *cells]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
