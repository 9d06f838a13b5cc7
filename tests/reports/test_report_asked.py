"""What rows really cost in the request that they were solved for: by hand, and against what the plan predicts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sparsebench.account import Account, Line
from sparsebench.cost import ModelShape
from sparsebench.reports.asked import axis, near, preparation, realised

ACCOUNT = Account(
    (
        Line("prefill", "flops", "linear", "", 100.0, 100.0),
        Line("prefill", "flops", "attention", "", 100.0, 40.0),
        Line("prefill", "flops", "index", "", 0.0, 10.0),
        Line("decode", "flops", "linear", "", 10.0, 10.0),
        Line("decode", "bytes", "weights", "", 240.0, 240.0),
        Line("decode", "bytes", "head", "", 80.0, 80.0),
        Line("decode", "bytes", "keys", "", 50.0, 10.0),
        Line("decode", "bytes", "index", "", 0.0, 5.0),
    )
)


def test_shares_by_hand():
    assert realised(ACCOUNT, "flops", {"phase": "prefill"}) == pytest.approx(150 / 200)
    assert realised(ACCOUNT, "flops", {"phase": "whole"}) == pytest.approx(160 / 210)
    assert realised(ACCOUNT, "bytes", {"phase": "decode"}) == pytest.approx(335 / 370)
    assert realised(ACCOUNT, "bytes", {"phase": "decode", "batch": 32}) == pytest.approx((10 + 15) / (10 + 50))


@pytest.mark.parametrize(
    ("of", "target"),
    [
        ("bytes", {"phase": "prefill"}),
        ("kv_bytes", {"phase": "decode"}),
        ("flops", {"phase": "prefill", "of": "small"}),
        ("flops", {"phase": "prefill", "count": "realisable"}),
    ],
)
def test_what_an_account_does_not_say_is_not_said(of, target):
    assert realised(ACCOUNT, of, target) is None


@pytest.mark.parametrize("length", [4096, 3000, 1500])
def test_texts_are_near_a_request_by_what_their_queries_see(length):
    pairs = length * (length + 1) / 2
    prompts = {"prefill.tokens": 3.0 * length, "prefill.causal_pairs": 3 * pairs}
    assert near(prompts, {"prompt": 4096}) == (length >= 0.7 * 4096)
    shared = {"prefill.tokens": length + 20.0, "prefill.causal_pairs": pairs + 20 * length}  # a second question on it
    assert near(shared, {"prompt": 4096, "phase": "whole"}) == (length >= 0.7 * 4096)
    answers = {"decode.tokens": 10.0, "decode.causal_pairs": 10.0 * length}
    assert near(answers, {"prompt": 4096, "phase": "decode"}) == (length >= 0.7 * 4096)
    assert not near({}, {"prompt": 4096})


@pytest.mark.parametrize(
    ("method", "tokens", "share"),
    [("wanda", 4 * 512, 4.0), ("squeezellm", 4 * 512, 12.0), ("magnitude", 0, 0.0), ("no-such-method", 512, None)],
)
def test_preparation_is_spread_over_requests(method, tokens, share):
    """Texts as long as the prompt of a request cost as much each; with gradients three times that."""
    shape = ModelShape(64, 2, 4, 2, 16, 16, 100, 2 * 64 * 200, 2 * 64 * 200, 6400, 40_000, (None, None))
    cell = SimpleNamespace(
        record=SimpleNamespace(outcome=SimpleNamespace(prepare_tokens=tokens)),
        spec=SimpleNamespace(calibration={"length": 512}, stack=[SimpleNamespace(method=method)]),
    )
    for requests in (1, 1000):
        found = preparation(cell, shape, {"prompt": 512, "prepared_for": requests})  # type: ignore[arg-type]
        assert found == (None if share is None else pytest.approx(share / requests))


def test_an_axis_names_what_and_where():
    assert axis("flops", "prefill-4k") == "FLOPs in prefill-4k, as a share of dense"
