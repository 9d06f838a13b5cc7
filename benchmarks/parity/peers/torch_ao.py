"""Prunes a saved model with torchao's Wanda, which compares whole layers and reads the dense model once."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from measured import measured
from safetensors.torch import save_file
from torchao.sparsity.wanda import WandaSparsifier
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "calibration", "out", "method", "pattern"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    ids = torch.from_numpy(np.load(options.calibration)).to(options.device)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(options.device)
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n]
    m = None if options.pattern == "0:0" else int(options.pattern.partition(":")[2])
    sparsifier = WandaSparsifier(sparsity_level=options.sparsity, semi_structured_block_size=m)
    with measured() as found:
        sparsifier.prepare(model, config=[{"tensor_fqn": f"{name}.weight"} for name in names])
        with torch.no_grad():
            for row in ids:
                model(row[None])
        sparsifier.step()
        sparsifier.squash_mask()
    modules = dict(model.named_modules())
    weights = {f"{name}.weight": modules[name].weight.detach().cpu().contiguous() for name in names}
    out = Path(options.out)
    save_file(weights, out / "peer.safetensors")
    (out / "peer.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
