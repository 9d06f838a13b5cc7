"""Equal cost: budgets that are solved for meet their targets, in prediction and in what is counted."""

from __future__ import annotations

from functools import cache

import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench import adapters, iso
from sparsebench.account import Counted, WeightStorage, account
from sparsebench.adapters import Sparsity, attached
from sparsebench.budget import ISO_KINDS, Budget
from sparsebench.cost import Request, dense_cost
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import FieldError, InputError
from sparsebench.iso import CalibrationSize, IsoRequest, Solved, solve
from sparsebench.systems.weights import weight_sparsity

PREFILL = IsoRequest(phase="prefill", prompt=400)
DECODE = IsoRequest(phase="decode", prompt=400, answer=64, batch=32)
METHODS = [
    ("vertical-slash", {}), ("a-shape", {}), ("block-topk", {}), ("streaming-llm", {}), ("quest", {}), ("snapkv", {}),
    ("oracle-tokens", {}), ("magnitude", {}), ("wanda", {}), ("rtn", {}), ("wina", {"scope": "all"}), ("depth", {}),
]  # fmt: skip


@cache
def system(name: str = "llama"):
    return models.tiny_system(name)


def found(name: str, kind: str, value: float, request: IsoRequest = PREFILL, **knobs) -> Solved:
    return solve(system(), [(adapters.get(name).configure(knobs), None)], 0, Budget(kind, value), request)


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    kind=st.sampled_from(ISO_KINDS),
    value=st.floats(0.2, 1.0),
    request=st.sampled_from([PREFILL, DECODE, IsoRequest(phase="whole", prompt=300, answer=40)]),
)
def test_a_target_is_met_or_out_of_reach(method, kind, value, request):
    if kind == "kv_bytes" and not request.answer:
        return
    name, knobs = method
    result = found(name, kind, value, request, **knobs)
    if result.budget is not None:
        own = iso.share(system(), [(adapters.get(name).configure(knobs), result.budget)], kind, request)
        assert own == result.share
        assert abs(own - value) <= iso.TOLERANCE
        adapters.get(name).configure(knobs).check_budget(result.budget)
    elif name not in ("rtn", "depth", "snapkv", "quest"):  # those have steps
        assert value > result.most - iso.TOLERANCE or value < result.least + iso.TOLERANCE


@settings(max_examples=25, deadline=None)
@given(method=st.sampled_from(METHODS), values=st.lists(st.floats(0.3, 1.0), min_size=2, max_size=4, unique=True))
def test_less_cost_is_never_a_smaller_sparsity(method, values):
    name, knobs = method
    budgets = [found(name, "flops", value, PREFILL, **knobs).budget for value in sorted(values, reverse=True)]
    met = [b.number if b.kind == "sparsity" else -b.number for b in budgets if b is not None]
    assert met == sorted(met)


def test_attention_alone_reaches_what_the_sizes_of_smollm2_say():
    """Of a prompt's FLOPs attention has .143, .250, .400 and .571: the rest is out of its reach."""
    from test_cost import SMOL

    class Sizes:
        shape = SMOL

    for length, floor in ((1024, 0.857), (2048, 0.75), (4096, 0.6), (8192, 0.429)):
        method = adapters.get("a-shape").configure({})
        result = solve(Sizes(), [(method, None)], 0, Budget("flops", 0.3), IsoRequest(prompt=length))
        assert result.budget is None
        left = (1 - iso.LARGEST_SPARSITY) * (1 - floor)
        assert result.least == pytest.approx(floor + left, abs=2e-3)
        assert result.most == pytest.approx(1)


def counted_share(name: str, budget: Budget, length: int, **knobs) -> float:
    """FLOPs over dense of a prompt that really ran, from counters and zeros."""
    own = models.tiny_system("llama", batch_tokens=4096)
    member = Sparsity(adapters.get(name).configure(knobs), budget)
    tokens = torch.randint(0, 256, (length + 1,), generator=torch.Generator().manual_seed(0)).tolist()
    with attached(own, [member]):
        own.counters.reset()
        score(own, [Scored(tokens, 1, length + 1)])
        zeros = weight_sparsity(own).zeros
    prefill, decode = (Counted.of(own.shape, own.counters.sums, phase) for phase in ("prefill", "decode"))
    assert (prefill.tokens, decode.tokens) == (length, 0)
    return account(own.shape, prefill, decode, WeightStorage(zeros / own.shape.linear_params)).flops_ratio


@pytest.mark.parametrize("value", [0.9, 0.75, 0.65])
@pytest.mark.parametrize(
    ("name", "knobs"),
    [("vertical-slash", {}), ("a-shape", {}), ("oracle-tokens", {}), ("magnitude", {}), ("wina", {"scope": "all"})],
)
def test_what_is_counted_is_near_the_target(name, knobs, value):
    result = found(name, "flops", value, PREFILL, **knobs)
    assert result.budget is not None
    assert counted_share(name, result.budget, PREFILL.prompt, **knobs) == pytest.approx(value, abs=0.02)


def test_stacks_share_out_the_saving():
    magnitude, shape = (adapters.get(name).configure({}) for name in ("magnitude", "a-shape"))
    stack = [(magnitude, Budget("sparsity", 0.2)), (shape, None)]
    result = solve(system(), stack, 1, Budget("flops", 0.7), PREFILL)
    alone = found("a-shape", "flops", 0.7)
    assert 0 < result.budget.number < alone.budget.number
    both = iso.predicted(system(), [(magnitude, Budget("sparsity", 0.2)), (shape, result.budget)], PREFILL).prefill
    dense = dense_cost(system().shape, PREFILL.request).prefill
    assert both.linear == pytest.approx(0.8 * dense.linear, rel=1e-3)
    assert both.attention == pytest.approx((1 - result.budget.number) * dense.attention)
    assert both.head == dense.head
    assert both.flops / dense.flops == pytest.approx(0.7, abs=1e-3)


def test_what_no_kernel_skips_is_no_saving():
    def share(name, budget, request, **knobs):
        return iso.share(system(), [(adapters.get(name).configure(knobs), Budget.from_dict(budget))], "flops", request)

    real = PREFILL.model_copy(update={"count": "realisable"})
    half = {"sparsity": 0.5}
    assert share("magnitude", half, PREFILL) < 0.8 < 1 == share("magnitude", half, real)
    assert share("magnitude", {"pattern": "2:4"}, real) == share("magnitude", {"pattern": "2:4"}, PREFILL) < 1
    assert share("magnitude", {"pattern": "4:8"}, real) == 1
    assert share("wina", half, real, scope="all") == 1
    assert share("random-tokens", half, real) == 1
    assert share("block-topk", half, real) == share("block-topk", half, PREFILL) < 1
    assert share("a-shape", half, real) == share("a-shape", half, PREFILL) < 1
    one = IsoRequest(phase="decode", prompt=300, answer=20, count="realisable")
    assert (
        share("wina", half, one, scope="all")
        < 1
        == share("wina", half, one.model_copy(update={"batch": 8}), scope="all")
    )
    for name in ("mustafar", "shadowkv"):
        assert iso.kernel(adapters.get(name).configure({}), Budget("sparsity", 0.5), "decode") is None
    assert share("mustafar", half, one) == 1
    assert share("mustafar", half, one.model_copy(update={"count": "ideal"})) < 1
    assert share("snapkv", half, one) == share("snapkv", half, one.model_copy(update={"count": "ideal"})) < 1
    assert share("depth", {"sparsity": 0.34}, real) < 1
    index_alone = iso.predicted(system(), [(adapters.get("quest").configure({}), Budget("sparsity", 0.5))], one).decode
    assert index_alone.index > 0


def test_memory_moves_with_what_is_held_and_not_with_what_is_read():
    assert found("snapkv", "kv_bytes", 0.5, DECODE).budget is not None
    quest = found("quest", "kv_bytes", 0.5, DECODE)
    # It drops no key, and keeps two vectors for every sixteen keys and values beside them.
    own = pytest.approx(1 + 2 / 32, abs=1e-3)
    assert (quest.budget, quest.least, quest.most) == (None, own, own)
    with pytest.raises(InputError, match="answer ends"):
        found("snapkv", "kv_bytes", 0.5, PREFILL)
    active = found("magnitude", "active_params", 0.6)
    shape = system().shape
    left = shape.linear_params * (1 - active.budget.number) + shape.head_params
    assert left / (shape.linear_params + shape.head_params) == pytest.approx(0.6, abs=1e-3)


def test_preparation_is_spread_over_requests():
    wanda = adapters.get("wanda").configure({})
    text = CalibrationSize(sequences=8, length=128)
    many = PREFILL.model_copy(update={"prepared_for": 10**9})
    few = PREFILL.model_copy(update={"prepared_for": 10})
    stack = [(wanda, Budget("sparsity", 0.5))]
    free, spread, once = (iso.share(system(), stack, "flops", r, text) for r in (PREFILL, many, few))
    assert free == pytest.approx(spread)
    passes = 8 * dense_cost(system().shape, Request(128, 0)).prefill.flops
    assert once - free == pytest.approx(passes / 10 / dense_cost(system().shape, Request(400, 0)).prefill.flops)
    assert (
        iso.share(system(), [(adapters.get("magnitude").configure({}), Budget("sparsity", 0.5))], "flops", few, text)
        < 1
    )


def test_a_larger_model_at_the_cost_of_a_smaller_one():
    small = models.tiny_system("llama")
    del small.model.model.layers[1:]
    for name in ("blocks", "shape"):
        small.__dict__.pop(name, None)
    large = system()
    method = adapters.get("magnitude").configure({})
    result = solve(large, [(method, None)], 0, Budget("flops", 1.0), PREFILL, reference=small)
    own = iso.predicted(large, [(method, result.budget)], PREFILL).prefill.flops if result.budget else None
    dense = dense_cost(small.shape, PREFILL.request).prefill.flops
    assert result.most == pytest.approx(dense_cost(large.shape, PREFILL.request).prefill.flops / dense)
    assert own is None or own == pytest.approx(dense, rel=iso.TOLERANCE)


def test_bits_that_a_method_refuses_are_no_solution():
    """With many keys to read, one bit for each weight would meet the target: there is no such grid."""
    result = found("rtn", "bytes", 0.96875, DECODE)
    assert result.budget is None
    at_two = iso.share(system(), [(adapters.get("rtn").configure({}), Budget("bits", 2))], "bytes", DECODE)
    assert result.least == at_two


def test_what_cannot_be_asked_for():
    with pytest.raises(InputError, match="cost can be predicted"):
        found("flexprefill", "flops", 0.8)
    with pytest.raises((FieldError, ValueError)):
        IsoRequest(phase="decode", prompt=10)
    with pytest.raises(InputError, match="above 0"):
        Budget("kv_bytes", 0)
