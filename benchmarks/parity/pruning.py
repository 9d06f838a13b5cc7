"""Do our Wanda, SparseGPT and whole-layer Wanda prune as their maintained implementations do?

    python benchmarks/parity/pruning.py --sequences 128 --length 512 --windows 64
    python benchmarks/parity/pruning.py --only llm-compressor/wanda --pattern 2:4

Both sides prune the same checkpoint in the same dtype with the same calibration tokens, seed by seed; the perplexity of
both is computed here, on the same windows of WikiText-2. `ratio` is our perplexity over the peer's, `overlap` the
Jaccard index of what was pruned.

Ties: of equal scores those of the lowest column go here. llm-compressor sorts a row stably, which is the same, takes a
pattern's from `topk`, which promises no order, and all that equal the threshold of a SparseGPT block. torchao sorts
without a rule. Weights that were 4-bit tie often.

With llm-compressor weights compete within a row and blocks see what earlier blocks lost. torchao 0.18 compares whole
layers with the dense model's statistics, and multiplies weights with the square of the inputs' norms
(`PerChannelNormObserver` sums squares and takes no root): `--norm square` does the same here, `--norm paper` shows what
that changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment
import numpy as np
import torch
from common import arguments, loaded, perplexity, prose, saved, stored, table, wikitext2
from safetensors.torch import load_file

from sparsebench.adapters import get
from sparsebench.adapters.base import Sparsity, attached
from sparsebench.adapters.calibration import Calibration
from sparsebench.adapters.pruning.base import Layer
from sparsebench.adapters.pruning.wanda import Wanda
from sparsebench.budget import Budget
from sparsebench.calibration_texts import calibration_for
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.weights import prunable, put, restoring

PEERS = Path(__file__).parent / "peers"
SCRIPTS = {"llm-compressor": "llm_compressor.py", "torchao": "torch_ao.py"}
PAIRS = ("llm-compressor/wanda", "llm-compressor/sparsegpt", "torchao/wanda")


def options(arguments_given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--only", choices=PAIRS, action="append", help="peer and method; may be repeated")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--pattern", default="0:0", help="n:m, or 0:0 for unstructured")
    parser.add_argument("--calibration", default="wikitext2-train", help="a calibration text by name, or prose")
    parser.add_argument("--text", choices=["wikitext2", "prose"], default="wikitext2", help="what perplexity is of")
    parser.add_argument("--sequences", type=int, default=16, help="of the calibration text")
    parser.add_argument("--length", type=int, default=256, help="tokens of each")
    parser.add_argument("--windows", type=int, default=16, help="of the evaluation text, as long")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds")
    parser.add_argument("--norm", choices=["square", "paper"], default="square", help="for torchao, see above")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both sides' weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="peers' results, which are reused there")
    return parser.parse_args(arguments_given)


class SquaredWanda(Wanda):
    """Wanda with squared norms."""

    def score(self, layer: Layer) -> torch.Tensor:
        return layer.weight.abs() * layer.inputs.squares.float()


def ours(pair: str, chosen: argparse.Namespace) -> Sparsity:
    """The adapter that is the peer's method."""
    budget = Budget("sparsity", chosen.sparsity) if chosen.pattern == "0:0" else Budget("pattern", chosen.pattern)
    peer, method = pair.split("/")
    if peer != "torchao":
        return Sparsity(get(method)(), budget)
    kind = SquaredWanda if chosen.norm == "square" else Wanda
    return Sparsity(kind(compare_group="layer", stats_pass="dense"), budget)


def calibration_of(system: CausalLM, chosen: argparse.Namespace, seed: int) -> Calibration:
    """The tokens that both sides read."""
    if chosen.calibration == "prose":
        return prose(system, "calibration", chosen.sequences, chosen.length, seed)
    entry = {"data": chosen.calibration, "sequences": chosen.sequences, "length": chosen.length, "seed": seed}
    return calibration_for(system.tokenizer, entry)


def theirs(
    pair: str, chosen: argparse.Namespace, model: Path, calibration: Calibration, root: Path
) -> dict[str, torch.Tensor]:
    """The peer's pruned weights by name; computed unless they are kept from before."""
    peer, method = pair.split("/")
    told = [chosen.model, calibration.hash, chosen.pattern, chosen.sparsity, chosen.dtype, environment.PINNED[peer]]
    folder = root / f"{peer}-{method}-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]}"
    if not (folder / "peer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "ids.npy", calibration.ids)
        named = {"model": model, "calibration": folder / "ids.npy", "out": folder, "method": method}
        more = {k: getattr(chosen, k) for k in ("pattern", "sparsity", "device", "dtype")}
        flags = [text for name, value in {**named, **more}.items() for text in (f"--{name}", str(value))]
        environment.run(peer, chosen.environments, PEERS / SCRIPTS[peer], *flags)
    return load_file(folder / "peer.safetensors")


def compared(
    pair: str, chosen: argparse.Namespace, system: CausalLM, model: Path, seed: int, root: Path, text: np.ndarray
) -> dict[str, Any]:
    """One calibration seed."""
    calibration = calibration_of(system, chosen, seed)
    peer_weights = theirs(pair, chosen, model, calibration, root)
    sites = prunable(system)
    with restoring(sites):
        for site in sites:
            put(site, peer_weights[f"{site.name}.weight"].to(site.weight.device, site.weight.dtype))
        their_perplexity = perplexity(system, text)
    both = either = zeros = own = size = 0
    with attached(system, [ours(pair, chosen)], calibration):
        our_perplexity = perplexity(system, text)
        for site in prunable(system):
            mask, other = site.weight.detach().cpu() == 0, peer_weights[f"{site.name}.weight"] == 0
            both, either = both + int((mask & other).sum()), either + int((mask | other).sum())
            own, zeros, size = own + int(mask.sum()), zeros + int(other.sum()), size + other.numel()
    return {
        "seed": seed,
        "ours": our_perplexity,
        "peer": their_perplexity,
        "ratio": our_perplexity / their_perplexity,
        "overlap": both / max(1, either),
        "our sparsity": own / size,
        "its sparsity": zeros / size,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is concluded over seeds."""
    mean, other = (float(np.mean([row[side] for row in rows])) for side in ("ours", "peer"))
    peers = [row["peer"] for row in rows]
    return {
        "mean ours": mean,
        "mean peer": other,
        "ratio of means": mean / other,
        "peer's spread": [min(peers), max(peers)],
        "ours lies in it": min(peers) <= mean <= max(peers),
        "least overlap": min(row["overlap"] for row in rows),
    }


def main() -> None:
    chosen = options()
    torch.manual_seed(0)
    system = loaded(chosen.model, chosen.device, chosen.dtype)
    text = (
        wikitext2(system, chosen.windows, chosen.length)
        if chosen.text == "wikitext2"
        else prose(system, "evaluation", chosen.windows, chosen.length, 0).ids
    )
    dense = perplexity(system, text)
    print(f"dense perplexity {dense:.3f}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        model = saved(system, Path(place) / "model")
        for pair in chosen.only or PAIRS:
            found = [
                compared(pair, chosen, system, model, seed, chosen.keep or Path(place), text)
                for seed in range(chosen.seeds)
            ]
            print(f"{pair}\n{table(found)}\n{json.dumps(summary(found))}", flush=True)
            rows += [{"pair": pair, "pattern": chosen.pattern, "dense": dense, **row} for row in found]
            settings = {k: str(v) for k, v in vars(chosen).items() if k not in ("out", "environments", "keep")}
            settings["pinned"] = "; ".join(
                ", ".join(environment.PINNED[peer]) for peer in sorted({row["pair"].split("/")[0] for row in rows})
            )
            print(f"wrote {stored('parity-pruning', chosen.out, settings, rows)}")


if __name__ == "__main__":
    main()
