"""Do our cache methods keep the keys that kvpress keeps?

    python benchmarks/parity/eviction.py --tokens 1024 2048 --ratio 0.5 0.8

The same prompt, model and number of kept keys; `jaccard` compares the kept positions, over all layers and key heads,
and `least` is that of the layer and head where they agree least. Settings are the press's own: SnapKV's whole window
stays (`setting=paper`), TOVA's last key stays. StreamingLLM is asked what the first decoded query reads, beside its own
key.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import environment
import numpy as np
import torch
from common import arguments, loaded, prose, saved, stored, table

from sparsebench.adapters import create
from sparsebench.adapters.base import attached
from sparsebench.engine.distributions import Asked, logits_of
from sparsebench.systems.causal_lm import CausalLM

SCRIPT = Path(__file__).parent / "peers" / "kv_press.py"
METHODS: dict[str, dict[str, Any]] = {
    "snapkv": {"setting": "paper"},
    "knorm": {},
    "tova": {},
    "keydiff": {},
    "streaming-llm": {"phase": "decode"},
    "expected-attention": {},
}
JACCARD = 0.95
"""What each method must reach."""


def kept(system: CausalLM, method: str, knobs: dict[str, Any], ids: np.ndarray, count: int) -> np.ndarray:
    """Keys of the prompt that stay, bool `[layers, kv_heads, keys]`."""
    found: dict[int, torch.Tensor] = {}
    tokens = ids.tolist()
    extra = 1 if method == "streaming-llm" else 0
    with attached(system, [create(method, **knobs, tokens=count + extra)]) as (sparse, _):
        selector = sparse.policy.selector
        if method == "streaming-llm":
            select = selector.select

            def seen(view: Any, allowance: Any) -> Any:
                selection = select(view, allowance)
                mask = selection.keep(view, 0)
                found[view.layer] = mask[0, :: view.group, -1, : len(tokens)].expand(view.key.shape[1], -1).cpu()
                return selection

            selector.select = seen
            logits_of(sparse, [Asked([*tokens, tokens[0]], [len(tokens)], len(tokens))], lambda owners, rows: None)
        else:
            cut = selector.cut

            def held(prompt: Any, allowance: Any, layers: int) -> Any:
                result = cut(prompt, allowance, layers)
                if method == "tova":
                    worth = result.worth.clone()
                    worth[:, -1] = torch.inf
                    mask = torch.zeros_like(worth, dtype=torch.bool)
                    found[prompt.layer] = mask.scatter(-1, worth.topk(count, dim=-1).indices, True).cpu()
                else:
                    found[prompt.layer] = result.keys.cpu()
                return result

            selector.cut = held
            logits_of(sparse, [Asked(tokens, [len(tokens) - 1], len(tokens))], lambda owners, rows: None)
    return torch.stack([found[layer] for layer in sorted(found)]).numpy()


def theirs(system: CausalLM, folder: Path, chosen: argparse.Namespace, ids: np.ndarray, ratio: float) -> dict[str, Any]:
    """What kvpress keeps of a prompt, by method."""
    np.save(folder / "ids.npy", ids)
    if not (folder / "model").exists():
        saved(system, folder / "model")
    named = {"model": folder / "model", "prompt": folder / "ids.npy", "out": folder / "kept.npz"}
    more = {"ratio": ratio, "window": chosen.window}
    flags = [text for name, value in {**named, **more}.items() for text in (f"--{name}", str(value))]
    environment.run("kvpress", chosen.environments, SCRIPT, *flags)
    return dict(np.load(folder / "kept.npz"))


def compared(method: str, mine: np.ndarray, other: np.ndarray, tied: np.ndarray) -> dict[str, Any]:
    """How far two choices agree, bool `[layers, kv_heads, keys]`; `tied` names heads where the last place is drawn."""
    both, either = mine & other, mine | other
    each = both.sum(-1) / np.maximum(1, either.sum(-1))
    # All of StreamingLLM's scores are 0 or 1: its ties are no matter of rounding.
    clear = ~(tied & (method != "streaming-llm"))
    untied = float(both[clear].sum() / max(1, either[clear].sum()))
    return {
        "jaccard": float(both.sum() / max(1, either.sum())),
        "least": float(each.min()),
        "heads below": f"{int((each < JACCARD).sum())}/{each.size}",
        "tied": f"{int((~clear).sum())}/{tied.size}",
        "untied": untied,
        "kept by us": float(mine.sum(-1).mean()),
        "kept by it": float(other.sum(-1).mean()),
        "reached": "yes" if untied >= JACCARD else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512], help="of the prompts")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.5], help="shares of the keys that go")
    parser.add_argument("--window", type=int, default=64, help="SnapKV's last queries")
    chosen = parser.parse_args()
    system = loaded(chosen.model)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for tokens, ratio in itertools.product(chosen.tokens, chosen.ratio):
            ids = prose(system, "evaluation", 1, tokens, 0).ids[0]
            peer = theirs(system, Path(place), chosen, ids, ratio)
            for method, knobs in METHODS.items():
                knobs = {**knobs, "queries": chosen.window} if method == "snapkv" else knobs
                mine = kept(system, method, knobs, ids, max(1, int(len(ids) * (1 - ratio))))
                found = compared(method, mine, peer[method], peer[f"{method} tied"])
                rows.append({"method": method, "tokens": tokens, "ratio": ratio, **found})
    print(table(rows))
    settings = {k: str(v) for k, v in vars(chosen).items() if k not in ("out", "environments")}
    settings["pinned"] = ", ".join(environment.PINNED["kvpress"])
    print(f"wrote {stored('parity-eviction', chosen.out, settings, rows)}")


if __name__ == "__main__":
    main()
