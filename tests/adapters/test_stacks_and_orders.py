"""What one method leaves for another: counts of stacks, and what is remembered of a text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import stories_system, tiny_system

from sparsebench.adapters import create, get
from sparsebench.adapters.activation import _greedy
from sparsebench.adapters.base import attached
from sparsebench.adapters.calibration import Calibration
from sparsebench.systems.weights import prunable


def text(sequences: int, length: int) -> Calibration:
    return Calibration("bytes", np.random.default_rng(0).integers(0, 256, (sequences, length)))


@pytest.mark.parametrize(
    ("method", "options", "keeps"),
    [("rtn", {"bits": 4}, True), ("squeezellm", {"bits": 3}, False), ("welore", {"sparsity": 0.2}, False)],
)
def test_zeros_of_a_member_before_count_where_the_form_keeps_them(method, options, keeps) -> None:
    system = tiny_system()
    with attached(system, [create("magnitude", sparsity=0.9), create(method, **options)], text(4, 24)):
        for site in prunable(system):
            stored = system.stored.get(site.name)  # none where a matrix has no factors that are smaller
            if stored is None:
                continue
            # What is said to be left out is zero, or in a product of factors.
            zeros, factors = int((site.weight == 0).sum()), stored.kept % sum(site.weight.shape) == 0
            assert stored.kept == stored.weights - zeros or (method == "welore" and factors)
            assert not keeps or stored.kept <= 0.11 * stored.weights


def test_thresholds_are_read_though_the_same_text_was_read_for_ranks() -> None:
    system, calibration = tiny_system(), text(4, 32)
    ratios = {}
    for rule in ("topk", "threshold"):
        with attached(system, [create("chess", sparsity=0.5, rule=rule)], calibration):
            system.counters.reset()
            with torch.no_grad():
                system.model(torch.from_numpy(calibration.ids.copy()))
            ratios[rule] = system.counters.ratio("prefill.activation.zeros", "prefill.activation.total")
    assert ratios["threshold"] == pytest.approx(0.5, abs=0.05)
    assert ratios["topk"] == pytest.approx(0.5, abs=0.05)


def test_greedy_allocation_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_greedy, "STEP", 0.2)
    monkeypatch.setattr(_greedy, "TOKENS", 120)  # three of the five sequences
    calibration = text(5, 40)
    found = []
    for batch in (40, 80, 1000):
        system = stories_system(batch_tokens=batch)
        with attached(system, [create("teal", sparsity=0.5, scope="all", allocation="greedy")], calibration) as (_, of):
            found.append(of[0].facts["levels"])
    assert found[0] == pytest.approx(found[1])
    assert found[0] == pytest.approx(found[2])


def test_what_prunes_the_levels_of_a_search_has_its_own_groups() -> None:
    groups = {initial: get("evopress").configure({"initial": initial}).config["compare_group"] for initial in
              ("sparsegpt", "wanda", "magnitude")}  # fmt: skip
    assert groups == {"sparsegpt": "block", "wanda": "row", "magnitude": "layer"}
    assert get("evopress").configure({"initial": "wanda", "compare_group": "layer"}).config["compare_group"] == "layer"
