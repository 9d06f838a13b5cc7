"""How long preparing Wanda and SparseGPT takes here and in llm-compressor, and how much memory above the model.

    python benchmarks/prepare.py --sequences 128 --length 512

Both sides run in turns on the same machine. Each measurement is a process of its own that loads the same checkpoint and
prunes it to 50 % by the same calibration tokens; loading is not timed. Here forward passes are in `--dtype` and
statistics in float32; llm-compressor's are the same, in `--peer-dtype`. What both pruned in the last round is compared
too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "parity"))

import environment
import numpy as np
from common import arguments, loaded, perplexity, saved, stored, table, wikitext2
from safetensors.torch import load_file

from sparsebench.calibration_texts import calibration_for
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.weights import prunable, put, restoring

PEERS = Path(__file__).parent / "parity" / "peers"
LIMIT_TIME, LIMIT_MEMORY = 0.5, 2.0
"""Of the peer's time, and GiB above the model."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--method", choices=["wanda", "sparsegpt"], action="append", help="may be repeated")
    parser.add_argument("--calibration", default="wikitext2-train", help="a calibration text by name")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1, help="of both sides in turn")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of our forward passes")
    parser.add_argument("--peer-dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the peer's")
    parser.add_argument("--windows", type=int, default=16, help="of WikiText-2, for perplexity; 0: none")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def measured(side: str, method: str, dtype: str, folder: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak memory of one side, whose weights stay in `folder / side`."""
    out = folder / side
    out.mkdir(exist_ok=True)
    named = {"model": folder / dtype, "calibration": folder / "ids.npy", "out": out, "method": method}
    more = {"pattern": "0:0", "sparsity": 0.5, "device": chosen.device, "dtype": dtype}
    flags = [text for name, value in {**named, **more}.items() for text in (f"--{name}", str(value))]
    if side == "ours":
        subprocess.run([sys.executable, str(PEERS / "ours.py"), *flags], check=True)
    else:
        environment.run("llm-compressor", chosen.environments, PEERS / "llm_compressor.py", *flags)
    found: dict[str, float] = json.loads((out / "peer.json").read_text())
    return found


def agreement(system: CausalLM, folder: Path, text: np.ndarray | None) -> dict[str, Any]:
    """How far both sides pruned the same weights, and the perplexity of either."""
    ours, peer = (load_file(folder / side / "peer.safetensors") for side in ("ours", "peer"))
    both = sum(int(((ours[name] == 0) & (peer[name] == 0)).sum()) for name in ours)
    either = sum(int(((ours[name] == 0) | (peer[name] == 0)).sum()) for name in ours)
    found: dict[str, Any] = {"overlap": both / max(1, either)}
    sites = prunable(system)
    for side, weights in (("ours", ours), ("peer", peer)) if text is not None else ():
        with restoring(sites):
            for site in sites:
                put(site, weights[f"{site.name}.weight"])
            found[f"perplexity {side}"] = perplexity(system, text)
    return found


def compared(method: str, system: CausalLM, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """One method, round by round: ours first in one, the peer first in the next."""
    dtypes = {"ours": chosen.dtype, "peer": chosen.peer_dtype}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in dtypes}
    for turn in range(chosen.rounds):
        for side in list(dtypes)[:: 1 if turn % 2 == 0 else -1]:
            found[side].append(measured(side, method, dtypes[side], folder, chosen))
    seconds = {side: [one["seconds"] for one in each] for side, each in found.items()}
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    text = wikitext2(system, chosen.windows, chosen.length) if chosen.windows else None
    return {
        "method": method,
        **{f"{side} seconds": statistics.median(each) for side, each in seconds.items()},
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        **{f"{side} GiB": max(one.get("peak_bytes", float("nan")) for one in found[side]) / 2**30 for side in found},
        **agreement(system, folder, text),
    }


def main() -> None:
    chosen = options()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for dtype in {chosen.dtype, chosen.peer_dtype}:
            system = loaded(chosen.model, chosen.device, dtype)
            saved(system, folder / dtype)
        sizes = {"sequences": chosen.sequences, "length": chosen.length}
        calibration = calibration_for(system.tokenizer, {"data": chosen.calibration, "seed": 0, **sizes})
        np.save(folder / "ids.npy", calibration.ids)
        rows = [compared(method, system, folder, chosen) for method in chosen.method or ("wanda", "sparsegpt")]
    print(table(rows))
    for row in rows:
        met = "met" if row["ratio"] <= LIMIT_TIME else "not met"
        print(f"{row['method']}: {row['ratio']:.2f} of the peer's time; limit {LIMIT_TIME}: {met}")
        met = "met" if row["ours GiB"] <= LIMIT_MEMORY else "not met"
        print(f"{row['method']}: {row['ours GiB']:.2f} GiB above the model; limit {LIMIT_MEMORY}: {met}")
    settings = {k: str(v) for k, v in vars(chosen).items() if k not in ("out", "environments")}
    settings["pinned"] = ", ".join(environment.PINNED["llm-compressor"])
    print(f"wrote {stored('prepare', chosen.out, settings, rows)}")


if __name__ == "__main__":
    main()
