"""Which positions the presses of kvpress keep of a prompt. Runs in the peer's environment."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from kvpress import ExpectedAttentionPress, KeyDiffPress, KnormPress, SnapKVPress, StreamingLLMPress, TOVAPress
from transformers import AutoModelForCausalLM, DynamicCache

PRESSES = {
    "snapkv": SnapKVPress,
    "knorm": KnormPress,
    "tova": TOVAPress,
    "keydiff": KeyDiffPress,
    "streaming-llm": StreamingLLMPress,
    "expected-attention": ExpectedAttentionPress,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "prompt", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--ratio", type=float, required=True, help="Share of the keys that goes.")
    parser.add_argument("--window", type=int, required=True, help="SnapKV's window of last queries.")
    options = parser.parse_args()
    ids = torch.from_numpy(np.load(options.prompt))[None]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="sdpa").eval()
    found = {}
    for name, kind in PRESSES.items():
        extra = {"window_size": options.window} if name == "snapkv" else {}
        press = kind(compression_ratio=options.ratio, **extra)
        kept: dict[int, torch.Tensor] = {}
        tied: dict[int, torch.Tensor] = {}
        score = press.score

        def recorded(module, *rest, score=score, kept=kept, tied=tied, **named):
            scores = score(module, *rest, **named)
            count = max(1, int(scores.shape[-1] * (1 - options.ratio)))
            mask = torch.zeros_like(scores, dtype=torch.bool)
            kept[module.layer_idx] = mask.scatter(-1, scores.topk(count, dim=-1).indices, True)[0]
            ordered = scores.sort(dim=-1, descending=True).values[0]
            tied[module.layer_idx] = ordered[:, count - 1] == ordered[:, count]
            return scores

        press.score = recorded
        with torch.no_grad(), press(model):
            model(ids, past_key_values=DynamicCache())
        found[name] = torch.stack([kept[layer] for layer in sorted(kept)]).numpy()
        found[f"{name} tied"] = torch.stack([tied[layer] for layer in sorted(tied)]).numpy()
    np.savez_compressed(options.out, **found)


if __name__ == "__main__":
    main()
