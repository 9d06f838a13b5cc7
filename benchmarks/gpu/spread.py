"""The same cells on one GPU and spread over two: log-likelihoods, texts and counts must agree.

    python benchmarks/gpu/spread.py [--devices 2] [--model REF] [--layers 8] [--tokens 600] [--out FILE]

Needs that many GPUs, accelerate, and of the package's other requirements pydantic and transformers; the package need
not be installed. Without `--model` a model with random weights runs, whose tokens are numbers, and nothing is read. All
runs in float32: a token's log-likelihood may differ by 1e-4, texts and counts not at all. The exit status is 1 where
something does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from sparsebench import environment
from sparsebench.adapters import Sparsity, attached, create
from sparsebench.adapters.calibration import Calibration
from sparsebench.engine.generation import Prompt, generate
from sparsebench.engine.scoring import Scored, score
from sparsebench.systems import memory
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.spreading import devices_from, spread

TOLERANCE = 1e-4
CELLS: dict[str, list[Sparsity]] = {
    "dense": [],
    "wanda": [create("wanda", sparsity=0.5)],
    "sparsegpt": [create("sparsegpt", pattern="2:4")],
    "teal": [create("teal", sparsity=0.4)],
    "griffin": [create("griffin", sparsity=0.5)],
    "vertical-slash": [create("vertical-slash", tokens=128)],
    "quest": [create("quest", tokens=128)],
    "quest, executed": [create("quest", tokens=128, mode="executed")],
    "tidal-decode": [create("tidal-decode", tokens=128)],
    "snapkv": [create("snapkv", tokens=128)],
    "snapkv, executed": [create("snapkv", tokens=128, mode="executed")],
    "all three": [create("wanda", sparsity=0.5), create("teal", sparsity=0.4), create("snapkv", tokens=128)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--model", help="a reference, in the place of random weights")
    parser.add_argument("--layers", type=int, default=8, help="of the model with random weights")
    parser.add_argument("--tokens", type=int, default=600, help="of each text")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    one, several = (_answers(_system(chosen, count), chosen.tokens) for count in (1, chosen.devices))
    rows = [_compared(cell, one[cell], several[cell]) for cell in CELLS]
    print(f"{'cell':18}{'largest':>9}  texts  counts  seconds on one, on {chosen.devices}")
    for row in rows:
        same = "  ".join(f"{'equal' if row[name] else 'DIFFER':6}" for name in ("texts equal", "counts equal"))
        print(f"{row['cell']:18}{row['largest difference']:9.2g}  {same}", *row["seconds"])
    table = {"hardware": environment.hardware("cuda", chosen.devices), "blocks": several["blocks"], "rows": rows}
    table["model"] = chosen.model or f"{chosen.layers} random layers"
    table["packages"] = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(table, indent=1) + "\n")
    sys.exit(0 if all(row["good"] for row in rows) else 1)


def _system(chosen: argparse.Namespace, count: int) -> CausalLM:
    memory.free()  # what is left of the side before
    if chosen.model is not None:
        from sparsebench.systems.loading import load_causal_lm

        return load_causal_lm(chosen.model, "float32", "cuda", devices=count)
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096, "initializer_range": 0.1}
    config = LlamaConfig(hidden_size=512, intermediate_size=1024, num_hidden_layers=chosen.layers, **heads)
    numbers = SimpleNamespace(decode=lambda tokens, **options: " ".join(map(str, tokens)))
    return CausalLM(spread(AutoModelForCausalLM.from_config(config), devices_from("cuda", count)), numbers)


def _answers(system: CausalLM, length: int) -> dict[str, Any]:
    """What each cell gives; and `blocks`, how many lie on each device."""
    random, vocabulary = np.random.default_rng(0), system.model.get_input_embeddings().weight.shape[0]
    text = Calibration("random tokens", random.integers(0, vocabulary, (8, 256)))
    start = random.integers(0, vocabulary, length // 2).tolist()
    texts = [[*start, *random.integers(0, vocabulary, length // 2 + 7 * i).tolist()] for i in range(12)]
    homes = [str(next(block.parameters()).device) for block in system.blocks]
    found: dict[str, Any] = {"blocks": {device: homes.count(device) for device in system.devices}}
    for cell, stack in CELLS.items():
        began = time.perf_counter()
        system.counters.reset()
        with attached(system, stack, text) as (sparse, _):
            scores = [s.logprobs for s in score(sparse, [Scored(t, 32, len(t) - 40) for t in texts])]
            said = generate(sparse, [Prompt(t, len(t) - 1, (), 32, frozenset()) for t in texts])
        found[cell] = np.concatenate(scores), said, system.counters.to_dict(), time.perf_counter() - began
    return found


def _compared(cell: str, one: Any, several: Any) -> dict[str, Any]:
    largest, texts = float(np.abs(one[0] - several[0]).max()), one[1] == several[1]
    counts = one[2].keys() == several[2].keys() and all(np.isclose(x, several[2][k]) for k, x in one[2].items())
    row = {"cell": cell, "largest difference": largest, "texts equal": texts, "counts equal": counts}
    row["good"] = largest <= TOLERANCE and texts and counts
    return {**row, "seconds": [round(one[3], 2), round(several[3], 2)]}


if __name__ == "__main__":
    main()
