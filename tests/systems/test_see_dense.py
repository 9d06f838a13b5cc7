"""What is found out about a model is found out while it is dense."""

from __future__ import annotations

import models
import pytest

from sparsebench.adapters import attached, create
from sparsebench.engine import packing
from sparsebench.systems.causal_lm import CausalLM


def test_whether_rows_can_be_packed_is_seen_before_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    system = models.tiny_system("llama")
    before = sum(int((p == 0).sum()) for p in system.model.parameters())
    zeros = []
    found_out = packing.obstacle

    def watched(seen: CausalLM) -> str:
        zeros.append(sum(int((p == 0).sum()) for p in seen.model.parameters()))
        return found_out(seen)

    monkeypatch.setattr(packing, "obstacle", watched)
    with attached(system, [create("magnitude", sparsity=0.5)]) as (sparse, _):
        assert sum(int((p == 0).sum()) for p in sparse.model.parameters()) > before
        assert sparse.packed
    assert zeros == [before]
