"""Prunes a saved model with llm-compressor. Runs in the peer's environment; imports nothing of SparseBench."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from measured import measured
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "calibration", "out", "method", "pattern"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sparsity", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    ids = np.load(options.calibration)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(options.device)
    rows = {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}
    kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[options.method]
    recipe = kind(
        sparsity=options.sparsity, mask_structure=options.pattern, targets=["Linear"], ignore=["re:.*lm_head"]
    )
    with measured() as found:
        oneshot(
            model=model,
            processor=AutoTokenizer.from_pretrained(options.model),
            dataset=Dataset.from_dict(rows),
            recipe=recipe,
            max_seq_length=ids.shape[1],
            num_calibration_samples=len(ids),
            shuffle_calibration_samples=False,
        )
    weights = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n}
    out = Path(options.out)
    save_file(weights, out / "peer.safetensors")
    (out / "peer.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
