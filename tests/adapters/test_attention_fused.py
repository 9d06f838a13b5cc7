"""With kernels every method reads, gives and counts what it does without; without a GPU in Triton's interpreter."""

from __future__ import annotations

import os
from dataclasses import replace

import attention_views as views
import pytest
import torch
from attention_views import CARDS

from sparsebench.adapters import get
from sparsebench.adapters.attention import _executor
from sparsebench.engine import fused

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

ROWS = [(0, 70), (0, 33), (0, 1), (0, 130)]
LATER = [(48, 60), (48, 30)]
DECODED = [(40, 9), (3, 4), (0, 2), (87, 7)]
ONE = [(40, 1), (3, 1), (129, 1)]


def halved(view):
    """The view in half precision, which the kernels take."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = {name: getattr(view, name).half().to(device) for name in ("query", "key", "value")}
    return replace(view, **tensors, positions=view.positions.to(device), lengths=view.lengths.to(device), known=None)


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("name", views.BY_SELECTION)
def test_kernels_change_nothing(name, window, monkeypatch):
    for rows, decode in ((ROWS, False), (LATER, False), (DECODED, True), (ONE, True)):
        if ("decode" if decode else "prefill") not in CARDS[name].phases:
            continue
        found = []
        for usable in (False, True):
            monkeypatch.setattr(fused, "usable", lambda x, answer=usable: answer)
            policy = views.policy_of(name, views.shape_of(window=window), **views.some_budget(name))
            outs = []
            for view in views.views_of(rows, decode=decode, window=window)[:2]:
                real = (view.positions >= 0)[:, None, :, None]
                outs.append(policy.attend(halved(view)).cpu() * real)
            found.append((outs, dict(policy.system.counters.sums)))
        (plain, counted), (kernel, again) = found
        for a, b in zip(plain, kernel, strict=True):
            assert torch.allclose(a.float(), b.float(), atol=2e-2), (name, rows)
        assert counted == again


@pytest.mark.parametrize("name", [name for name in views.BY_SELECTION if "executed" in CARDS[name].modes])
def test_a_kernel_that_skips_executes_what_is_gathered_elsewhere(name, monkeypatch):
    able = get(name).executes
    knobs = views.some_budget(name) | views.executed(name)
    for rows, decode in ((ROWS, False), (ONE, True)):
        if (phase := "decode" if decode else "prefill") not in able or phase not in CARDS[name].phases:
            continue
        found = []
        for usable in (False, True):
            monkeypatch.setattr(fused, "usable", lambda x, answer=usable: answer)
            policy = views.policy_of(name, views.shape_of(), **knobs)
            if usable:
                monkeypatch.setattr(_executor, "execute", None)
            outs = []
            for view in views.views_of(rows, decode=decode)[:2]:
                real = (view.positions >= 0)[:, None, :, None]
                outs.append(policy.attend(halved(view)).cpu() * real)
            monkeypatch.undo()
            sums = policy.system.counters.sums
            found.append((outs, {key: value for key, value in sums.items() if not key.endswith(".tiles")}))
        (gathered, counted), (kernel, again) = found
        for a, b in zip(gathered, kernel, strict=True):
            assert torch.allclose(a.float(), b.float(), atol=2e-2), (name, rows)
        assert counted == again
