"""Does our Wanda, SparseGPT and whole-layer Wanda prune as their maintained implementations do?

    python benchmarks/parity/pruning.py --peer llm-compressor --method wanda
    python benchmarks/parity/pruning.py --peer llm-compressor --method sparsegpt
    python benchmarks/parity/pruning.py --peer torchao --method wanda

Both prune the same float32 checkpoint with the same calibration tokens, seed by seed; the perplexity of both is
computed
here, on the same windows. `ratio` is our perplexity over the peer's, `overlap` the Jaccard index of what was pruned,
`time` our seconds of preparing over the peer's in the same run. Ties go to the lowest index here and to whatever sorts
first there: weights that were 4-bit tie often. With llm-compressor weights compete within a row and blocks see what
earlier blocks lost. torchao 0.18 compares whole layers with the dense model's statistics, and multiplies weights with
the square of the inputs' norms (`PerChannelNormObserver` sums squares and takes no root): `--norm square` does the same
here, `--norm paper` shows what that changes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import environment
import numpy as np
import torch
from common import arguments, loaded, perplexity, prose, saved, stored, table
from safetensors.torch import load_file

from sparsebench.adapters import get
from sparsebench.adapters.base import Sparsity, attached
from sparsebench.adapters.pruning.base import Layer
from sparsebench.adapters.pruning.wanda import Wanda
from sparsebench.budget import Budget
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.weights import prunable, put, restoring

PEERS = Path(__file__).parent / "peers"
SCRIPTS = {"llm-compressor": "llm_compressor.py", "torchao": "torch_ao.py"}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--peer", choices=sorted(SCRIPTS), default="llm-compressor")
    parser.add_argument("--method", choices=["wanda", "sparsegpt"], default="wanda")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--pattern", default="0:0", help="n:m, or 0:0 for unstructured")
    parser.add_argument("--sequences", type=int, default=16, help="of the calibration text")
    parser.add_argument("--length", type=int, default=256, help="tokens of each")
    parser.add_argument("--windows", type=int, default=16, help="of the evaluation text, as long")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds")
    parser.add_argument("--norm", choices=["square", "paper"], default="square", help="for torchao, see above")
    parser.add_argument("--device", default="cpu")
    found = parser.parse_args()
    if found.peer == "torchao" and found.method != "wanda":
        parser.error("torchao has Wanda only")
    return found


class SquaredWanda(Wanda):
    """Wanda with squared norms."""

    def score(self, layer: Layer) -> torch.Tensor:
        return layer.weight.abs() * layer.inputs.squares.float()


def ours(chosen: argparse.Namespace) -> Sparsity:
    """The adapter that is the peer's method."""
    budget = Budget("sparsity", chosen.sparsity) if chosen.pattern == "0:0" else Budget("pattern", chosen.pattern)
    if chosen.peer != "torchao":
        return Sparsity(get(chosen.method)(), budget)
    kind = SquaredWanda if chosen.norm == "square" else Wanda
    return Sparsity(kind(compare_group="layer", stats_pass="dense"), budget)


def compared(chosen: argparse.Namespace, system: CausalLM, model: Path, seed: int, folder: Path) -> dict[str, Any]:
    """One calibration seed."""
    calibration = prose(system, "calibration", chosen.sequences, chosen.length, seed)
    evaluation = prose(system, "evaluation", chosen.windows, chosen.length, 0).ids
    np.save(folder / "ids.npy", calibration.ids)
    start = time.perf_counter()
    with attached(system, [ours(chosen)], calibration):
        seconds = time.perf_counter() - start
        our_perplexity = perplexity(system, evaluation)
        our_zeros = {site.name: site.weight.detach().cpu() == 0 for site in prunable(system)}
    named = {"model": model, "calibration": folder / "ids.npy", "out": folder, "method": chosen.method}
    more = {"pattern": chosen.pattern, "sparsity": chosen.sparsity, "device": chosen.device}
    flags = [text for name, value in {**named, **more}.items() for text in (f"--{name}", str(value))]
    environment.run(chosen.peer, chosen.environments, PEERS / SCRIPTS[chosen.peer], *flags)
    theirs = load_file(folder / "peer.safetensors")
    sites = prunable(system)
    with restoring(sites):
        for site in sites:
            put(site, theirs[f"{site.name}.weight"].to(site.weight.device, site.weight.dtype))
        their_perplexity = perplexity(system, evaluation)
    their_seconds = json.loads((folder / "peer.json").read_text())["seconds"]
    both = either = zeros = size = 0
    for name, mask in our_zeros.items():
        other = theirs[f"{name}.weight"] == 0
        both, either = both + int((mask & other).sum()), either + int((mask | other).sum())
        zeros, size = zeros + int(other.sum()), size + other.numel()
    return {
        "seed": seed,
        "dense": perplexity(system, evaluation),
        "ours": our_perplexity,
        chosen.peer: their_perplexity,
        "ratio": our_perplexity / their_perplexity,
        "overlap": both / max(1, either),
        "our sparsity": sum(int(mask.sum()) for mask in our_zeros.values()) / size,
        "its sparsity": zeros / size,
        "our seconds": seconds,
        "its seconds": their_seconds,
        "time": seconds / their_seconds,
    }


def main() -> None:
    chosen = options()
    torch.manual_seed(0)
    system = loaded(chosen.model, chosen.device)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = saved(system, folder / "model")
        rows = [compared(chosen, system, model, seed, folder) for seed in range(chosen.seeds)]
    print(table(rows))
    ratios = np.array([row["ratio"] for row in rows])
    means = [float(np.mean([row[side] for row in rows])) for side in ("ours", chosen.peer)]
    print(f"mean perplexity {means[0]:.3f} against {means[1]:.3f}: ratio {means[0] / means[1]:.4f}")
    print(f"single ratios from {ratios.min():.4f} to {ratios.max():.4f}")
    settings = {k: str(v) for k, v in vars(chosen).items() if k not in ("out", "environments")}
    settings["pinned"] = ", ".join(environment.PINNED[chosen.peer])
    pattern = "" if chosen.pattern == "0:0" else f"-{chosen.pattern.replace(':', '-')}"
    name = f"parity-{chosen.peer}-{chosen.method}{pattern}"
    print(f"wrote {stored(name, chosen.out, settings, rows)}")


if __name__ == "__main__":
    main()
