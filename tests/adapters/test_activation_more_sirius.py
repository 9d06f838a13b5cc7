"""Sirius: windows of generated tokens that the dense model judges, against a naive form with the model's own caches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from models import STORIES, stories_system, tiny_system

from sparsebench.account import Counted, account
from sparsebench.adapters import attached, create
from sparsebench.adapters.calibration import Calibration
from sparsebench.cost import Request
from sparsebench.engine.generation import Prompt, Sampling, generate
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError, UnknownNameError
from sparsebench.realised import _corrections

LIMIT = 24


def prompts(
    system: Any, prefill: int = -1, stop: Sequence[int] = (), limit: int = LIMIT, **options: Any
) -> list[Prompt]:
    """Beginnings of unlike lengths; the last `-prefill` tokens of each run in decode."""
    if system.ref == "path:stories260k":
        rows = [
            system.tokenizer(story[:letters]).input_ids for story, letters in zip(STORIES, (30, 71, 40), strict=True)
        ]
    else:
        generator = np.random.default_rng(4)
        rows = [generator.integers(0, 256, length).tolist() for length in (9, 17, 30, 12)]
    return [Prompt(row, len(row) + prefill, (), limit, frozenset(stop), **options) for row in rows]


def tokens_of(system: Any, asked: list[Prompt]) -> list[list[int]]:
    from sparsebench.engine.generation import Generator

    generator = Generator(system, asked)
    generator.run()
    return generator.tokens


class Naive:
    """One text, token by token; `sparse` is attached for each step of the sparse model."""

    def __init__(self, system: Any, sparse: Any, every: int, threshold: float) -> None:
        self.system, self.sparse, self.every, self.threshold = system, sparse, every, threshold
        self.checks = self.replaced = self.taken_back = 0

    def read(self, ids: list[int], cache: Any, sparse: bool) -> tuple[torch.Tensor, Any]:
        with attached(self.system, [self.sparse]) if sparse else nullcontext(), torch.no_grad():
            out = self.system.model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
        return out.logits[0], out.past_key_values

    def run(self, prompt: Prompt) -> list[int]:
        row, prefill = list(prompt.tokens), prompt.prefill
        logits, cache = self.read(row[:prefill], None, sparse=False)
        for token in row[prefill:]:
            logits, cache = self.read([token], cache, sparse=True)
        made, dense = [int(logits[-1].argmax())], prefill
        while True:
            ended = made[-1] in prompt.stop_tokens or len(made) >= prompt.limit
            length = len(row) + len(made)
            own = dense == length - 1
            if ended and own:
                return made
            if not own and (ended or length - max(dense, len(row)) >= self.every):
                accepted, cache, dense = self.check(row, made, cache, dense, ended)
                if accepted and ended:
                    return made
                continue
            logits, cache = self.read([made[-1]], cache, sparse=True)
            made.append(int(logits[-1].argmax()))

    def check(self, row: list[int], made: list[int], cache: Any, dense: int, ended: bool) -> tuple[bool, Any, int]:
        self.checks += 1
        window = (row + made)[dense:]
        crop(cache, dense)
        logits, cache = self.read(window, cache, sparse=False)
        for index in range(max(0, dense + 1 - len(row)), len(made)):
            before = logits[len(row) + index - 1 - dense]
            if float(torch.softmax(before / 0.6, dim=-1)[made[index]]) < self.threshold:
                self.replaced += 1
                self.taken_back += len(made) - index
                made[index:] = [int(before.argmax())]
                crop(cache, len(row) + index)
                return False, cache, len(row) + index
        if not ended:
            made.append(int(logits[-1].argmax()))
        return True, cache, dense + len(window)


def crop(cache: Any, length: int) -> None:
    """Forget the keys of all but so many tokens."""
    more = cache.get_seq_length() - length
    if more:
        cache.crop(-more)


@pytest.mark.parametrize(
    ("model", "method", "prefill", "every"),
    [
        ("stories", "wina", 0, 5),
        ("stories", "top-k-mlp", -6, 8),
        ("gpt2", "wina", -1, 2),
        ("qwen2", "top-k-mlp", -6, 5),
        ("qwen2", "wina", -1, 7),
    ],
)
def test_naive_form(model: str, method: str, prefill: int, every: int) -> None:
    system = stories_system() if model == "stories" else tiny_system(model)
    threshold = 0.1 if model == "stories" else 0.3
    sparse = create(method, sparsity=0.6, scope="decode")
    asked = prompts(system, prefill)
    dense = tokens_of(system, asked)
    stop = dense[0][LIMIT // 2 :][:1]
    asked = prompts(system, prefill, stop)
    naive = Naive(system, sparse, every, threshold)
    expected = [naive.run(prompt) for prompt in asked]
    system.counters.reset()
    with attached(system, [create("sirius", method=method, sparsity=0.6, every=every, threshold=threshold)]):
        found = tokens_of(system, asked)
    assert found == expected
    sums = system.counters.sums
    counted = [sums[f"decode.correction.{name}"] for name in ("checks", "replaced", "taken_back")]
    assert counted == [naive.checks, naive.replaced, naive.taken_back]
    assert naive.replaced > 0


def test_what_is_counted_as_decode_is_what_the_dense_model_would_decode() -> None:
    system = tiny_system()
    asked = prompts(system)
    with attached(system, [create("wina", sparsity=0.0, scope="decode")]):
        system.counters.reset()
        generate(system, asked)
        plain = dict(system.counters.sums)
    member = create("sirius", method="wina", sparsity=0.5, every=6, threshold=0.02)
    with attached(system, [member]):
        system.counters.reset()
        generate(system, asked)
    sums = system.counters.sums
    assert sums["decode.correction.replaced"] > 0
    for name in ("tokens", "causal_pairs", "scored"):
        assert sums[f"decode.{name}"] == plain[f"decode.{name}"], name
    assert sums["decode.activation.total"] == pytest.approx(plain["decode.activation.total"])
    assert sums["decode.activation.zeros"] / sums["decode.activation.total"] == pytest.approx(0.5)
    # All work that was done: steps of the sparse model, and each check once.
    shape = system.shape
    steps = sums["decode.tokens"] + sums["decode.correction.steps"]
    lines = account(shape, Counted.of(shape, sums, "prefill"), Counted.of(shape, sums, "decode")).lines
    weights = next(line for line in lines if (line.unit, line.item) == ("bytes", "correction"))
    checks = sums["decode.correction.checks"]
    read = (steps * 0.5 + checks) * shape.linear_params + (steps + checks) * shape.head_params
    other = next(line for line in lines if (line.unit, line.item) == ("bytes", "weights"))
    head = next(line for line in lines if (line.unit, line.item) == ("bytes", "head"))
    total = sums["decode.tokens"] * (weights.sparse + other.sparse + head.sparse)
    assert total > 2 * read  # and keys, which are read in every pass
    assert total - 2 * read < sums["decode.tokens"] * 64 * shape.kv_heads * shape.key_bytes * 3 * 4
    found = _corrections(sums)
    assert found["effective density in decode"] == pytest.approx((0.5 * steps + checks) / sums["decode.tokens"])
    assert found["corrections of a token"] == sums["decode.correction.replaced"] / sums["decode.tokens"]


@pytest.mark.parametrize("method", ["griffin", "coreinfer", "cats", "chess", "r-sparse", "random-activations"])
def test_any_method_is_corrected_and_no_row_minds_another(method: str) -> None:
    system = stories_system()
    calibration = Calibration.from_texts("stories", STORIES * 3, system.tokenizer, sequences=4, length=48)
    asked = prompts(system)
    dense = generate(system, asked)
    with attached(system, [create("sirius", method=method, sparsity=0.5, every=8)], calibration):
        together = generate(system, asked)
        system.max_lanes = 1
        assert generate(system, asked) == together
    with attached(system, [create("sirius", method=method, sparsity=0.0)], calibration):
        assert generate(system, asked) == dense
    # A token that any other would replace is replaced by the dense model's own choice: its text comes out.
    with attached(system, [create("sirius", method=method, sparsity=0.5, threshold=1, every=2)], calibration):
        assert generate(system, asked) == dense
    assert system.correction is None
    assert generate(system, asked) == dense


def test_nothing_refused_is_nothing_but_fresh_keys() -> None:
    """At threshold 0 every token stays; windows still put the dense model's keys in place."""
    system = tiny_system()
    asked = prompts(system)
    with attached(system, [create("sirius", method="wina", sparsity=0.5, threshold=0, every=6)]):
        system.counters.reset()
        generate(system, asked)
    sums = system.counters.sums
    assert sums["decode.correction.checks"] == len(asked) * LIMIT / 6
    assert sums.get("decode.correction.replaced", 0) == 0
    assert sums["decode.correction.steps"] == -len(asked) * (LIMIT / 6 - 1)


def test_sampled_texts_do_not_depend_on_the_batch() -> None:
    system = tiny_system()
    asked = prompts(system, sampling=Sampling(temperature=0.8, top_k=20, seed=3))
    with attached(system, [create("sirius", method="wina", sparsity=0.5, every=4, threshold=0.05)]):
        together = generate(system, asked)
        system.max_lanes = 2
        assert generate(system, asked) == together
    assert len(set(together)) > 1


@pytest.mark.parametrize("place", [0, 3])
def test_a_refused_end_is_no_end(place: int) -> None:
    """A stop token of the sparse model that the dense one refuses is taken back, the very first token too."""
    system = tiny_system()
    row = prompts(system)[:1]
    with attached(system, [create("wina", sparsity=0.7, scope="decode")]):
        (sparse,) = tokens_of(system, row)
    stop = [sparse[place]]
    with attached(system, [create("sirius", method="wina", sparsity=0.7, threshold=1, every=8)]):
        (found,) = tokens_of(system, prompts(system, stop=stop)[:1])
    (dense,) = tokens_of(system, prompts(system, stop=stop)[:1])
    assert found == dense
    if stop[0] not in dense:
        assert len(found) == LIMIT


def test_detached_after_an_exception() -> None:
    system = tiny_system()
    dense = generate(system, prompts(system))
    member = create("sirius", method="griffin", sparsity=0.5)
    with pytest.raises(KeyError), attached(system, [member]):
        raise KeyError
    assert system.correction is None
    assert generate(system, prompts(system)) == dense
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in system.model.modules())


def test_scored_texts_are_those_of_the_method() -> None:
    system = tiny_system()
    asked = [Scored(list(range(30)), 12, 10)]
    with attached(system, [create("griffin", sparsity=0.5)]):
        expected = score(system, asked)[0].logprobs
    with attached(system, [create("sirius", sparsity=0.5)]):
        np.testing.assert_array_equal(score(system, asked)[0].logprobs, expected)


def test_knobs() -> None:
    with pytest.raises(InputError, match="activation methods, not wanda"):
        create("sirius", method="wanda", sparsity=0.5)
    with pytest.raises(InputError, match="scope"):
        create("sirius", method="teal", options={"scope": "all"}, sparsity=0.5)
    with pytest.raises(UnknownNameError):
        create("sirius", method="teal", options={"scop": "all"}, sparsity=0.5)
    with pytest.raises(InputError, match="activation methods, not sirius"):
        create("sirius", method="sirius", sparsity=0.5)
    adapter: Any = create("sirius", method="random-activations", seed=7, sparsity=0.5).adapter
    assert adapter.corrected.seed == 7
    assert create("sirius", method="teal", sparsity=0.5).adapter.reads_calibration()
    assert not create("sirius", method="wina", sparsity=0.5).adapter.reads_calibration()
    assert create(
        "sirius", method="teal", options={"allocation": "greedy"}, sparsity=0.5
    ).adapter.prepare_depends_on_budget()


def test_models_in_plain_calls_are_refused() -> None:
    system = tiny_system("bloom")
    with pytest.raises(InputError, match="cannot be corrected"), attached(system, [create("sirius", sparsity=0.5)]):
        pass


def test_cost() -> None:
    system, request = tiny_system(), Request(100, 32)
    corrected, plain = create("sirius", method="wina", sparsity=0.5), create("wina", scope="decode", sparsity=0.5)
    found, without = (m.adapter.cost(system, request, m.budget) for m in (corrected, plain))
    dense = plain.adapter.cost(system, request, None)
    assert found.prefill == without.prefill
    assert found.decode.correction == dense.decode.flops
    assert found.decode.bytes_weights - without.decode.bytes_weights == dense.decode.bytes_weights / 16
