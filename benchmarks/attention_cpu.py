"""Executed sparse attention on a processor: how many times as fast as SDPA's causal kernel, selection included.

    python benchmarks/attention_cpu.py [--tokens 8192] [--rounds 9] [--no-model]

Attention is timed on the queries, keys and values of two layers of the model over real text, each method in turn with
SDPA, the order moving on by one at each round; then whole prefills of the model, through transformers with SDPA and
through the engine with the first method. Ratios are medians over rounds with a 95 % bootstrap interval. Everything that
a method does is timed: selection, its lists, conversion of dtypes, counting. What is compiled is compiled before.

Text: the standard library's documentation. The model's default comes from the Python package index.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from sparsebench.adapters import Prepared, attached, create
from sparsebench.engine.attention import AttentionView, attend_dense
from sparsebench.engine.scoring import Scored, score
from sparsebench.environment import commit, hardware, packages
from sparsebench.systems.embedded import MODELS
from sparsebench.systems.loading import load_causal_lm
from sparsebench.timeshares import amdahl

SMOLLM2 = next(model.ref for model in MODELS if model.kind == "causal-lm")
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "block-topk, blocks of 64": ("block-topk", {"sparsity": 0.83, "block": 64}),
    "block-topk, blocks of 32": ("block-topk", {"sparsity": 0.83, "block": 32}),
    "xattention": ("xattention", {"coverage": 0.6}),
    "flexprefill": ("flexprefill", {"coverage": 0.8}),
    "streaming-llm": ("streaming-llm", {"sparsity": 0.83, "phase": "prefill"}),
    "anchor-attention": ("anchor-attention", {"theta": 4.0}),
    "vertical-slash": ("vertical-slash", {"sparsity": 0.83}),
}
DENSITY = 0.18
TARGETS = {"attention": 2.0, "prefill": 1.6}
LAYERS = (5, 15)


class Capture:
    """Attends densely and keeps the views of some layers."""

    def __init__(self) -> None:
        self.views: list[AttentionView] = []

    def attend(self, view: AttentionView) -> torch.Tensor:
        if view.layer in LAYERS:
            self.views.append(replace(view, query=view.query.clone(), key=view.key.clone(), value=view.value.clone()))
        return attend_dense(view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, metavar="REF")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--no-model", action="store_true", help="attention alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention_cpu.json")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    system = load_causal_lm(chosen.model, "bfloat16", batch_tokens=chosen.tokens)
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = system.tokenizer.encode(text)[: chosen.tokens]
    found: dict[str, Any] = {
        "about": {
            "command": f"python benchmarks/attention_cpu.py --tokens {chosen.tokens} --rounds {chosen.rounds}",
            "model": chosen.model,
            "dtype": "bfloat16",
            "tokens": len(ids),
            "threads": chosen.threads,
            "hardware": hardware("cpu"),
            "packages": packages(),
            "commit": commit()[0],
            "date": datetime.now(UTC).date().isoformat(),
        },
        "targets": TARGETS,
        "attention": _attention(system, ids, chosen),
    }
    _print(found["attention"], "attention", DENSITY)
    _store(chosen.out, found)
    if not chosen.no_model:
        found["prefill"] = _prefill(system, ids, chosen, found["attention"])
        _print(found["prefill"], "prefill", DENSITY)
        _store(chosen.out, found)


def _store(place: Path, found: dict[str, Any]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _attention(system: Any, ids: Sequence[int], chosen: argparse.Namespace) -> dict[str, Any]:
    """One layer's attention: the mean over some layers of what each method takes."""
    capture = Capture()
    with system.acting(decode=False, prefix_invariant=True, policy=capture):
        score(system, [Scored([*ids, 0], 1, len(ids) + 1)])
    policies = {name: _policy(system, *METHODS[name]) for name in chosen.methods}
    sides: dict[str, Callable[[], object]] = {"SDPA causal": lambda: [_sdpa(view) for view in capture.views]}
    sides["dense, as the engine runs it"] = lambda: [attend_dense(view) for view in capture.views]
    for name, policy in policies.items():
        sides[name] = lambda policy=policy: [policy.attend(view) for view in capture.views]
    times = _interleaved(sides, chosen.rounds)
    rows = _rows(times, "SDPA causal", len(capture.views))
    for name, policy in policies.items():
        system.counters.reset()
        for view in capture.views:
            policy.attend(view)
        rows[name] |= _densities(system)
    return rows


def _policy(system: Any, method: str, knobs: dict[str, Any]) -> Any:
    one = create(method, mode="executed", **knobs)
    return one.adapter.policy(system, Prepared(), one.budget, None)


def _sdpa(view: AttentionView) -> torch.Tensor:
    return scaled_dot_product_attention(
        view.query, view.key, view.value, is_causal=True, scale=view.scaling, enable_gqa=view.group > 1
    )


def _densities(system: Any) -> dict[str, float]:
    ratio = system.counters.ratio
    return {
        "density": ratio("prefill.attention.kept", "prefill.attention.visible"),
        "tile_density": ratio("prefill.attention.tiles", "prefill.attention.visible"),
    }


def _prefill(system: Any, ids: Sequence[int], chosen: argparse.Namespace, attention: dict[str, Any]) -> dict[str, Any]:
    """Logits of the last token of a prompt."""
    name = chosen.methods[0]
    method, knobs = METHODS[name]
    tokens = torch.tensor([ids])
    system.model.set_attn_implementation("sdpa")

    def dense() -> object:
        with torch.inference_mode():
            return system.model(tokens, use_cache=False, logits_to_keep=1).logits

    def sparse() -> object:
        with attached(system, [create(method, mode="executed", **knobs)]):
            return score(system, [Scored([*ids, 0], 1, len(ids) + 1)])

    rows = _rows(_interleaved({"SDPA causal": dense, name: sparse}, chosen.rounds), "SDPA causal", 1)
    system.counters.reset()
    sparse()
    rows[name] |= _densities(system)
    layers = int(system.shape.layers)
    share = layers * attention["SDPA causal"]["median_ms"] / rows["SDPA causal"]["median_ms"]
    shares = {"attention": share, "rest": 1 - share}
    rows[name] |= {
        "share_of_attention": share,
        "bound_at_density": amdahl(shares, {"attention": rows[name]["density"]}),
        "bound_at_measured_attention": amdahl(shares, {"attention": 1 / attention[name]["ratio"]}),
    }
    return rows


def _interleaved(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each side, in turns, after a turn that warms up; the first of a round moves on by one."""
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for name in names:
            sides[name]()
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                start = time.perf_counter()
                sides[name]()
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _rows(times: Mapping[str, list[float]], baseline: str, calls: int) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, values in times.items():
        ratios = [dense / own for dense, own in zip(times[baseline], values, strict=True)]
        rows[name] = {
            "median_ms": float(np.median(values)) / calls,
            "interval_ms": [limit / calls for limit in _interval(values)],
            "times_ms": [value / calls for value in values],
            "ratio": float(np.median(ratios)),
            "ratio_interval": _interval(ratios),
        }
    return rows


def _interval(values: Sequence[float]) -> list[float]:
    """95 % bootstrap interval of the median."""
    data = np.asarray(values)
    drawn = np.random.default_rng(0).integers(0, len(data), (2000, len(data)))
    return [float(limit) for limit in np.quantile(np.median(data[drawn], axis=1), [0.025, 0.975])]


def _print(rows: dict[str, Any], part: str, density: float) -> None:
    print(f"\n{part}, target {TARGETS[part]} times at a density of {density} or less")
    for name, row in rows.items():
        low, high = row["ratio_interval"]
        line = f"{name:32s} {row['median_ms']:10.1f} ms  {row['ratio']:6.2f} times [{low:.2f}, {high:.2f}]"
        if "density" in row:
            met = row["ratio"] >= TARGETS[part] and row["density"] <= density
            line += f"  density {row['density']:.3f}, tiles {row['tile_density']:.3f}: {'met' if met else 'NOT met'}"
        print(line, flush=True)
        for bound in ("share_of_attention", "bound_at_density", "bound_at_measured_attention"):
            if bound in row:
                print(f"    {bound.replace('_', ' ')}: {row[bound]:.2f}")


if __name__ == "__main__":
    main()
