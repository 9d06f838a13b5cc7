"""Models over several devices: where their parts lie, and that nothing which is attached mixes devices.

The devices are pretended: see `pretended`. What is computed is the same arithmetic on one device and on two, so answers are
equal to the last bit.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from models import ARCHITECTURES, GROUPED, MIXTURES, PLAIN, tiny_model, tiny_tokenizer
from pretended import NAME, Pretended

from sparsebench import adapters, environment
from sparsebench.adapters.attention._selection import top_mask
from sparsebench.adapters.base import Sparsity, attached
from sparsebench.adapters.calibration import Calibration
from sparsebench.budget import Budget
from sparsebench.engine import fused
from sparsebench.engine.generation import Prompt, generate
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError, MissingError
from sparsebench.store import Store
from sparsebench.suite_run import run_suite
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.spreading import device_map, devices_from, spread

GPUS = ("cuda:0", "cuda:1")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "spread.py"
BUDGETS = {"sparsity": 0.5, "tokens": 16, "coverage": 0.9, "bits": 4}
METHODS = [c.id for c in adapters.cards() if "causal-lm" in adapters.get(c.id).accepts and not c.needs]
KNOBS = {name: {"generations": 1, "offspring": 2} for name in ("evopress", "random-search")}
"""Searches are cut short."""


# -- the double itself -------------------------------------------------------------------------------------------------


def test_pretended_devices_do_not_mix() -> None:
    with Pretended() as world:
        a, b = torch.zeros(3, device="cuda:1"), torch.ones(3).to("cuda")
        assert (a.device, (b + 1)[:2].device, torch.zeros_like(a).device) == tuple(map(torch.device, ("cuda:1", "cuda:0", "cuda:1")))  # fmt: skip
        assert (b[torch.tensor([0])].device, a.cpu().device) == (b.device, torch.device("cpu"))
        for wrong in (lambda: a + b, lambda: b + torch.ones(3), lambda: torch.stack([a, b]), lambda: b[a.long()]):
            with pytest.raises(RuntimeError, match="tensors on"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            a.numpy()
        assert torch.equal(a.to(b.device) + b, b)
        assert world.moved == 1


# -- where parts lie ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("tied", [True, False])
def test_blocks_lie_in_runs_of_about_as_many_bytes(count: int, tied: bool) -> None:
    with torch.device("meta"):
        config = hf.LlamaConfig(
            hidden_size=64, intermediate_size=256, num_hidden_layers=24, vocab_size=1000, tie_word_embeddings=tied
        )
        model = hf.AutoModelForCausalLM.from_config(config)
    devices = [f"cuda:{index}" for index in range(count)]
    found = device_map(model, devices)
    blocks = [found[f"model.layers.{index}"] for index in range(24)]
    assert blocks == sorted(blocks)
    assert {device for name, device in found.items() if ".layers." not in name} == {"cuda:0"}
    held = dict.fromkeys(devices, 0)
    for name, parameter in model.named_parameters():
        part = next(own for own in found if name.startswith(f"{own}."))
        held[found[part]] += parameter.nbytes
    largest = sum(p.nbytes for p in model.model.layers[0].parameters())
    assert max(held.values()) - min(held.values()) <= 2 * largest


def test_parts_go_where_the_map_says_and_stay_what_they_are() -> None:
    model, like = tiny_model(), tiny_model()
    with Pretended():
        assert spread(model, GPUS) is model
        assert {str(p.device) for p in model.parameters()} == set(GPUS)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        for (name, own), other in zip(model.named_parameters(), like.parameters(), strict=True):
            part = next(part for part in model.hf_device_map if name.startswith(f"{part}."))
            assert str(own.device) == model.hf_device_map[part]
            assert torch.equal(own.cpu(), other)
        system = CausalLM(model, tiny_tokenizer())
        assert (str(system.device), system.describe()["devices"]) == ("cuda:0", list(GPUS))
    assert "devices" not in CausalLM(like, tiny_tokenizer()).describe()


def test_what_cannot_be_spread_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="has 3 blocks, too few for 4 devices"):
        device_map(tiny_model(), [f"cuda:{index}" for index in range(4)])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_from("cuda", 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices_from("cuda:1", 2) == ["cuda:1", "cuda:2"]
    assert (devices_from("cuda:2", 1), devices_from("cpu", 4)) == (["cuda:2"], ["cpu"])
    with pytest.raises(InputError, match="over 4 GPUs, and there are 3"):
        devices_from("cuda", 4)
    with pytest.raises(InputError, match="over 2 GPUs from cuda:2 on, and there are 3"):
        devices_from("cuda:2", 2)
    monkeypatch.setitem(sys.modules, "accelerate.hooks", None)
    with pytest.raises(MissingError, match="needs accelerate") as caught:
        spread(tiny_model(), GPUS)
    assert caught.value.hint == "pip install accelerate"


# -- the same answers --------------------------------------------------------------------------------------------------


def answers(system: CausalLM) -> tuple[list[list[float]], list[str], dict[str, float]]:
    """Log-probabilities and texts of prompts with a common beginning, in several chunks, and what was counted."""
    random = np.random.default_rng(0)
    start = random.integers(0, 256, 30).tolist()
    texts = [[*start, *random.integers(0, 256, 34 + 3 * index).tolist()] for index in range(4)]
    scored = [Scored(text, 4, 50 + index) for index, text in enumerate(texts)]
    prompts = [Prompt(text, 45 + index, (), 5, frozenset()) for index, text in enumerate(texts)]
    logprobs = [found.logprobs.tolist() for found in score(system, scored)]
    assert [found.logprobs.tolist() for found in score(system, scored)] == logprobs  # prefills that were kept
    return logprobs, generate(system, prompts), system.counters.to_dict()


def compared(model: Callable[[], Any], stack: list[Sparsity]) -> None:
    """Run a stack on one device and on two."""
    text = Calibration("bytes", np.random.default_rng(0).integers(0, 256, (4, 48)))
    found = []
    for devices in (GPUS[:1], GPUS):
        with Pretended() as world:
            system = CausalLM(spread(model(), devices), tiny_tokenizer(), fingerprint="x", batch_tokens=150)
            with attached(system, stack, text) as (sparse, _):
                found.append(answers(sparse))
            assert bool(world.moved) == (len(devices) > 1)
    (logprobs, texts, counts), (*others, their_counts) = found
    assert [logprobs, texts] == others
    assert counts == pytest.approx(their_counts, rel=1e-9)  # each device has a sum of its own


def member(name: str) -> Sparsity:
    method = adapters.get(name)
    kind = next((kind for kind in BUDGETS if kind in method.card.budgets), None)
    return Sparsity(method.configure(KNOBS.get(name, {})), Budget(kind, BUDGETS[kind]) if kind else None)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_same_on_two_devices(name: str) -> None:
    compared(tiny_model, [member(name)])


@pytest.mark.parametrize(
    "name", ["quest", "snapkv", "ada-snapkv", "vertical-slash", "streaming-llm", "tidal-decode", "block-topk"]
)
def test_an_executed_method_gives_the_same_on_two_devices(name: str) -> None:
    compared(tiny_model, [adapters.create(name, sparsity=0.5, mode="executed")])


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MIXTURES, "bloom", "mamba"])
def test_a_stack_gives_the_same_on_two_devices(name: str) -> None:
    def model() -> Any:
        made = tiny_model(name)
        if name in MIXTURES:
            made.set_experts_implementation("eager")  # grouped products ask what GPU there is
        return made

    stack = [adapters.create("wanda", sparsity=0.5), adapters.create("random-activations", sparsity=0.3)]
    compared(model, stack if name in PLAIN else [*stack, adapters.create("snapkv", sparsity=0.5)])


def test_the_dense_model_gives_the_same_on_two_devices() -> None:
    compared(tiny_model, [])


def test_what_layers_share_is_copied_to_a_device_once_for_all_of_them() -> None:
    def moved(layers: int) -> int:
        model = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**{**GROUPED, "num_hidden_layers": layers})).eval()
        with Pretended() as world:
            system = CausalLM(spread(model, GPUS), tiny_tokenizer(), fingerprint="x")
            assert system.packed
            world.moved = 0
            with attached(system, [adapters.create("quest", sparsity=0.5)]) as (sparse, _):
                generate(sparse, [Prompt(list(range(40)), 39, (), 9, frozenset())])
            return world.moved

    # Each further block is sent what the model hands to each: positions, and the cosine and sine of rotations.
    passes = 2 + 8  # the prompt's last token runs in decode
    for fewer, more in pairwise(moved(layers) for layers in (4, 8, 12)):
        assert more - fewer == pytest.approx(2 * 3 * passes, abs=2 * 3)


def test_kernels_are_launched_where_their_tensors_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = set()
    with Pretended() as world:

        def kernel(scores: torch.Tensor, counts: torch.Tensor, among: Any) -> torch.Tensor:
            assert world.current == scores.device == counts.device
            launched.add(str(world.current))
            return top_mask(scores.cpu(), counts.cpu()).to(scores.device)

        refusing = SimpleNamespace(suits=lambda *tensors: False)
        selecting = SimpleNamespace(WIDEST=2**15, select_mask=kernel)
        kernels = SimpleNamespace(prefill=refusing, decode=refusing, mass=refusing, selection=selecting)
        monkeypatch.setattr(fused, "usable", lambda x: x.device.type == "cuda")
        monkeypatch.setattr(fused, "_kernels", lambda: kernels)
        monkeypatch.setattr(fused, "count", lambda view, keep, tile: None)
        system = CausalLM(spread(tiny_model(), GPUS), tiny_tokenizer(), fingerprint="x")
        with attached(system, [adapters.create("quest", sparsity=0.5)]) as (sparse, _):
            answers(sparse)
    assert launched == set(GPUS)


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_suite_has_the_same_cells_on_one_device_and_on_two(tmp_path) -> None:
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    environments, found = [], []
    for devices in (1, 2):
        suite = tmp_path / f"suite-{devices}.yaml"
        suite.write_text(SUITE.format(model=model, devices=devices))
        with Pretended():
            outcome = run_suite(str(suite), tmp_path / f"on-{devices}", device="cuda", limit=3)
        assert (outcome.done, outcome.failed) == (3, 0)
        cells = sorted(Store.open(outcome.folder), key=lambda cell: cell.id)
        found.append([(cell.id, cell.record.samples_sha256) for cell in cells])
        environments += {cell.environment.hardware for cell in cells}
        assert all(len(cell.record.system.get("devices", [0])) == devices for cell in cells)
    assert found[0] == found[1]
    assert environments == [NAME, f"2 x {NAME}"]


SUITE = """\
suite: spread
version: 1
systems:
  model: {{model: "path:{model}", dtype: float32, devices: {devices}}}
calibration:
  prose: {{data: prose, sequences: 2, length: 64}}
grids:
  - name: grid
    system: model
    calibration: prose
    tasks: [prose-perplexity]
    methods:
      - {{method: wanda, budgets: {{sparsity: 0.5}}}}
      - {{method: streaming-llm, budgets: {{tokens: 16}}}}
"""


@pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks are not part of what is released")
def test_the_benchmark_compares_one_device_with_two(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("spread_benchmark", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "CELLS", {name: script.CELLS[name] for name in ("dense", "quest")})
    out = tmp_path / "spread.json"
    monkeypatch.setattr(sys, "argv", ["spread.py", "--layers", "3", "--tokens", "48", "--out", str(out)])
    with Pretended(), pytest.raises(SystemExit) as ended:
        script.main()
    table = json.loads(out.read_text())
    assert ended.value.code == 0
    assert [(row["cell"], row["largest difference"], row["good"]) for row in table["rows"]] == [
        ("dense", 0.0, True),
        ("quest", 0.0, True),
    ]
    assert (table["hardware"], sum(table["blocks"].values())) == (f"2 x {NAME}", 3)


def test_names_of_hardware_say_how_many_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    assert [environment.hardware("cuda", devices) for devices in (1, 2)] == ["H200", "2 x H200"]
    assert environment.hardware("cpu", 2) == environment.hardware()
