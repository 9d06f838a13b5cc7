"""Executed activation sparsity is the simulated one: the same selection, output and counts; only less is read."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import models
import numpy as np
import pytest
import torch
import transformers as hf

from sparsebench.adapters import attached, cards, create
from sparsebench.adapters.activation import _executed, _greedy
from sparsebench.adapters.activation._masking import Masking
from sparsebench.adapters.base import Sparsity
from sparsebench.adapters.calibration import Calibration
from sparsebench.engine import generation
from sparsebench.engine.generation import Generator, Prompt, generate
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError
from sparsebench.systems.causal_lm import CausalLM
from sparsebench.systems.fingerprint import hash_weights

pytest.importorskip("numba")

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "teal": ("teal", {"scope": "all"}),
    "teal, last half": ("teal", {}),
    "wina": ("wina", {"scope": "all"}),
    "wina transformed": ("wina", {"scope": "decode", "transform": True}),
    "random-activations": ("random-activations", {}),
    "r-sparse": ("r-sparse", {"scope": "all", "channel_share": 0.7}),
    "top-k-mlp": ("top-k-mlp", {}),
    "cats": ("cats", {}),
    "chess": ("chess", {}),
    "griffin": ("griffin", {}),
    "coreinfer": ("coreinfer", {}),
    "coreinfer by similarity": ("coreinfer", {"prediction": "similarity"}),
}
ARCHITECTURES = ("llama", "gpt2", "opt")
"""Grouped heads; transposed weights and biases; ReLU."""
FUSED = ("phi3", "gemma2")
"""One matrix for gate and up; windows and capped scores."""
CASES = [(method, name) for method in METHODS for name in ARCHITECTURES]
CASES += [(method, name) for method in ("teal", "r-sparse", "griffin") for name in FUSED]
MODES = ("simulated", "executed")
SPARED_BY_GATE = ("cats", "chess")


def member(name: str, mode: str, sparsity: float = 0.5) -> Sparsity:
    method, knobs = METHODS[name]
    return create(method, sparsity=sparsity, mode=mode, **knobs)


def text(sequences: int = 6, length: int = 40) -> Calibration:
    return Calibration("bytes", np.random.default_rng(0).integers(0, 256, (sequences, length)), 0)


def prompts(answer: int = 7) -> list[Prompt]:
    """Of unlike lengths; the second begins as the first does."""
    generator = np.random.default_rng(3)
    lead = generator.integers(0, 256, 24).tolist()
    tokens = [lead, [*lead[:18], 5, 6], generator.integers(0, 256, 9).tolist()]
    return [Prompt(t, len(t) - 1, (), answer, frozenset()) for t in tokens]


@functools.cache
def system_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return models.stories_system(dtype) if name == "stories" else models.tiny_system(name, dtype=dtype)


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The logits of all steps of decode."""
    found: list[torch.Tensor] = []
    real = generation.step

    def step(*args: Any) -> torch.Tensor:
        found.append(real(*args).clone())
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(generation, "step", step)
        yield found


def counted(system: Any) -> dict[str, float]:
    """What was counted, but for what the mode decides."""
    own = ("executed", "gathered")
    return {k: v for k, v in system.counters.to_dict().items() if v and not any(word in k for word in own)}


def run(system: Any, sparsity: Sparsity, asked: list[Prompt], patch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Tokens, logits and counts of texts, and all counts."""
    with attached(system, [sparsity], text()):
        system.counters.reset()
        with recorded(patch) as logits:
            generator = Generator(system, asked)
            generator.run()
        return generator.tokens, logits, counted(system), system.counters.to_dict()


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_texts_and_counts_are_those_of_the_mask(
    method: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three lanes with prompts of unlike lengths, then one."""
    system = system_of(architecture)
    for asked in (prompts(), prompts()[:1]):
        simulated, executed = (run(system, member(method, m), asked, monkeypatch) for m in MODES)
        assert executed[0] == simulated[0]
        for ours, theirs in zip(executed[1], simulated[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
        assert executed[2] == simulated[2]
        sums = executed[3]
        assert sums["decode.activation.zeros"] > 0
        steps = len(asked) * (asked[0].limit - 1)  # beside the last token of each prompt
        assert sums["decode.activation.executed"] / sums["decode.activation.total"] == steps / (steps + len(asked))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_does_as_the_mask(method: str, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = CausalLM(models.tiny_model(architecture).cuda(), models.tiny_tokenizer())
    for asked in (prompts(), prompts()[:1]):
        simulated, executed = (run(system, member(method, m), asked, monkeypatch) for m in MODES)
        assert executed[0] == simulated[0]
        for ours, theirs in zip(executed[1], simulated[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert executed[2] == simulated[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_trained_model_decodes_alike(method: str, dtype: torch.dtype) -> None:
    system = system_of("stories", dtype)
    calibration = Calibration.from_texts("stories", models.STORIES[:2] * 3, system.tokenizer, sequences=8, length=64)
    ids = torch.tensor([system.tokenizer(story).input_ids[:40] for story in models.STORIES])
    found = []
    for mode in MODES:
        with attached(system, [member(method, mode)], calibration), torch.no_grad():
            out = system.model(ids[:, :24], use_cache=True)
            steps = [out.logits[:, -1]]
            for place in range(24, 39):
                out = system.model(ids[:, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
                steps.append(out.logits[:, -1])
        found.append(torch.stack(steps).float())
    near = 1e-4 if dtype == torch.float32 else 0.03
    assert (found[0] - found[1]).norm() <= near * found[0].norm()


@pytest.mark.parametrize("method", ["teal", "wina", "cats", "griffin"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2_decodes_alike(method: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fed the selections of the simulated run: an input that a rounding error lifts over its threshold moves this
    model's logits by a tenth and more, as noise of 1e-7 on its embeddings does."""
    system = models.smollm2(dtype)
    ids = torch.tensor([system.tokenizer(story * 4).input_ids[:30] for story in models.STORIES[:2]])
    calibration = Calibration("stories", np.tile(ids.numpy(), (4, 1)), 0)
    chosen: list[torch.Tensor] = []
    real = Masking._gone

    def choosing(mode: str) -> Any:
        again = iter(list(chosen))

        def gone(masking: Masking, *args: Any) -> torch.Tensor:
            if mode == "executed":
                real(masking, *args)  # it may keep something of the rest
                return next(again)
            chosen.append(real(masking, *args))
            return chosen[-1]

        return gone

    found = []
    for mode in MODES:
        monkeypatch.setattr(Masking, "_gone", choosing(mode))
        with attached(system, [member(method, mode)], calibration), torch.no_grad():
            out = system.model(ids[:, :24], use_cache=True)
            steps = []
            for place in range(24, 28):
                out = system.model(ids[:, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
                steps.append(out.logits[:, -1])
        found.append(torch.stack(steps).float())
    near = 1e-5 if dtype == "float32" else 0.03
    assert (found[0] - found[1]).norm() <= near * found[0].norm()


@pytest.mark.parametrize("method", METHODS)
def test_no_sparsity_is_dense_and_the_way_back(method: str) -> None:
    system = system_of("llama")
    weights, dense = hash_weights(system.model), generate(system, prompts())
    with attached(system, [member(method, "executed", 0.0)], text()):
        assert generate(system, prompts()) == dense
    with pytest.raises(KeyError), attached(system, [member(method, "executed", 0.7)], text()):
        generate(system, prompts())
        raise KeyError
    assert generate(system, prompts()) == dense
    assert hash_weights(system.model) == weights
    assert not any("forward" in m.__dict__ or m._forward_pre_hooks or m._forward_hooks for m in system.model.modules())


def test_levels_that_were_searched_for_are_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_greedy, "STEP", 0.25)
    system, searched = system_of("llama"), {"scope": "decode", "allocation": "greedy"}
    found = [run(system, create("teal", sparsity=0.5, mode=mode, **searched), prompts(), monkeypatch) for mode in MODES]
    assert found[0][0] == found[1][0] and found[0][2] == found[1][2]


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_plain_calls_decode_alike(name: str) -> None:
    """Models that do not run in packed rows."""
    system = system_of(name)
    for method in ("teal", "random-activations", *(["griffin", "cats"] if name == "bloom" else [])):
        found = []
        for mode in MODES:
            with attached(system, [member(method, mode)], text()):
                system.counters.reset()
                found.append((generate(system, prompts()), counted(system)))
                executed = system.counters.to_dict().get("decode.activation.executed", 0)
        assert found[0] == found[1]
        assert executed > 0


def test_what_griffin_leaves_out_is_not_there() -> None:
    """Once the first token is decoded the model's own MLPs may hold anything."""
    system = models.tiny_system("llama")
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 20)))
    with attached(system, [create("griffin", sparsity=0.5, mode="executed")]), torch.no_grad():
        cache = system.model(ids[:, :18], use_cache=True).past_key_values
        first = system.model(ids[:, 18:19], past_key_values=cache, use_cache=True)
        weights = [weight for block in system.model.model.layers for weight in block.mlp.parameters()]
        before = [weight.clone() for weight in weights]
        for weight in weights:
            weight.fill_(torch.nan)
        second = system.model(ids[:, 19:], past_key_values=first.past_key_values, use_cache=True)
        for weight, values in zip(weights, before, strict=True):
            weight.copy_(values)
    assert torch.isfinite(second.logits).all()


def test_steps_of_many_sequences_and_prompts_stay_dense_under_the_mask() -> None:
    system = system_of("llama")
    lead = np.random.default_rng(5).integers(0, 256, 12).tolist()
    asked = [Prompt([*lead, i], 12, (), 3, frozenset()) for i in range(_executed.ROWS + 1)]
    found = []
    for method in ("teal", "griffin"):
        for mode in MODES:
            with attached(system, [member(method, mode)], text()):
                system.counters.reset()
                found.append((generate(system, asked), counted(system)))
                assert not system.counters.sums.get("decode.activation.executed")
                score(system, [Scored([*lead, *lead], 12, 12)])
                assert not system.counters.sums.get("decode.activation.executed")
    assert found[0] == found[1]
    assert found[2] == found[3]


def test_lanes_are_refilled() -> None:
    """Sequences that come later have columns and neurons of their own."""
    for method in ("teal", "griffin"):
        system = models.tiny_system()
        texts = []
        for lanes in (3, 1):
            system.max_lanes = lanes
            with attached(system, [member(method, "executed")], text()):
                texts.append(generate(system, prompts()))
        assert texts[0] == texts[1]


def test_copies_are_named_with_their_bytes() -> None:
    """A weight that lies by columns already is not copied."""
    for name, whole in (("llama", True), ("gpt2", False)):
        system = system_of(name)
        with attached(system, [member("teal", "executed")], text()) as (_, (prepared,)):
            copies = prepared.facts["weights_copied_by_columns"]
        size = sum(site.weight.nbytes for site in system.linears)
        assert copies == ({"layers": len(system.linears), "bytes": size} if whole else {"layers": 0, "bytes": 0})
    with attached(system, [member("griffin", "executed")], text()) as (_, (prepared,)):
        assert prepared.facts["weights_copied_by_columns"] == {"layers": 0, "bytes": 0}


def test_pruned_weights_are_stored_by_columns_and_not_pruned_after_that() -> None:
    system = system_of("llama")
    stacks = [[create("magnitude", sparsity=0.5), member("teal", mode)] for mode in MODES]
    texts = []
    for stack in stacks:
        with attached(system, stack, text()):
            texts.append(generate(system, prompts()))
    assert texts[0] == texts[1]
    with (
        pytest.raises(InputError, match="was changed after its columns were stored"),
        attached(system, stacks[1][::-1], text()),
    ):
        generate(system, prompts())
    assert not any("forward" in module.__dict__ for module in system.model.modules())


def test_all_that_run_say_that_they_can_be_executed() -> None:
    running = {card.id: card for card in cards("activation") if not card.needs}
    assert {name for name, card in running.items() if "executed" in card.modes} == set(running) - {"sirius"}
    assert {method for method, _ in METHODS.values()} == set(running) - {"sirius"}


def test_the_mode_is_part_of_a_configuration_where_it_is_not_the_usual_one() -> None:
    assert "mode" not in create("teal", sparsity=0.5).adapter.config
    assert create("teal", sparsity=0.5, mode="executed").adapter.config["mode"] == "executed"


def test_what_cannot_be_executed_is_refused() -> None:
    with pytest.raises(InputError, match="only decode skips"):
        create("teal", sparsity=0.5, mode="executed", scope="prefill")
    with pytest.raises(InputError, match="correct"):
        create("sirius", sparsity=0.5, options={"mode": "executed"})
    for method in SPARED_BY_GATE:
        with (
            pytest.raises(InputError, match="one matrix gives the gate"),
            attached(system_of("phi3"), [member(method, "executed")], text()),
        ):
            pass
    normed = CausalLM(hf.BitNetForCausalLM(hf.BitNetConfig(**models.GROUPED)), models.tiny_tokenizer())
    with (
        pytest.raises(InputError, match="other parameters have an entry for each"),
        attached(normed, [member("griffin", "executed")]),
    ):
        pass
    half = models.tiny_system(dtype=torch.float16)
    with (
        pytest.raises(InputError, match="no column product"),
        attached(half, [create("random-activations", sparsity=0.5, mode="executed")]),
    ):
        pass


def test_a_gate_that_runs_too_late_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    system = models.tiny_system("llama")
    for block in system.model.model.layers:
        mlp = block.mlp

        def forward(x: torch.Tensor, mlp: Any = mlp) -> torch.Tensor:
            up = mlp.up_proj(x)
            return mlp.down_proj(up * mlp.act_fn(mlp.gate_proj(x)))

        monkeypatch.setattr(mlp, "forward", forward)
    with (
        pytest.raises(InputError, match="runs before the gate"),
        attached(system, [member("cats", "executed")], text()),
    ):
        generate(system, prompts())
