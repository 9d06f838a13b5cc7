"""Prunes a saved model with SparseBench; takes what the peers' scripts take."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from measured import measured
from safetensors.torch import save_file

from sparsebench.adapters import get
from sparsebench.adapters.base import Sparsity, attached
from sparsebench.adapters.calibration import Calibration
from sparsebench.budget import Budget
from sparsebench.systems.loading import load_causal_lm
from sparsebench.systems.weights import prunable


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "calibration", "out", "method", "pattern"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    calibration = Calibration("tokens", np.load(options.calibration))
    system = load_causal_lm(f"path:{options.model}", options.dtype, options.device)
    pattern = options.pattern != "0:0"
    budget = Budget("pattern", options.pattern) if pattern else Budget("sparsity", options.sparsity)
    member = Sparsity(get(options.method)(), budget)
    with measured() as found:
        context = attached(system, [member], calibration)
        context.__enter__()
    weights = {f"{site.name}.weight": site.weight.detach().cpu().contiguous() for site in prunable(system)}
    context.__exit__(None, None, None)
    out = Path(options.out)
    save_file(weights, out / "peer.safetensors")
    (out / "peer.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
