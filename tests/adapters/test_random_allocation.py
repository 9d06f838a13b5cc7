"""Random allocations: seeds draw different ones, and the recorded error is that of the layers' outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import tiny_system

from sparsebench.adapters import create
from sparsebench.adapters.base import attached
from sparsebench.adapters.calibration import Calibration
from sparsebench.adapters.passes import dense_statistics
from sparsebench.systems.weights import prunable

TEXT = Calibration("bytes", np.random.default_rng(0).integers(0, 256, (4, 24)))


def test_the_error_is_what_layers_lose_of_their_outputs() -> None:
    system = tiny_system("llama")
    statistics = dense_statistics(system, TEXT, True)
    before = {site.name: site.weight.detach().clone().double() for site in prunable(system)}
    with attached(system, [create("random-allocation", sparsity=0.5)], TEXT) as (_, prepared):
        expected = []
        for site in prunable(system):
            gram = statistics[site.name].gram.double()  # type: ignore[union-attr]
            root = torch.linalg.cholesky(gram + 1e-6 * torch.eye(len(gram)))
            lost = (before[site.name] - site.weight.detach().double()) @ root
            expected.append(float(lost.square().sum() / (before[site.name] @ root).square().sum()))
    facts = prepared[0].facts
    assert facts["layer_errors"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert facts["layer_error"] == pytest.approx(sum(expected), rel=1e-3)


def test_seeds_draw_other_allocations_of_one_mean() -> None:
    system = tiny_system("llama")
    sizes = np.array([site.weight.numel() for site in prunable(system)])
    drawn = []
    for seed in (0, 1, 0):
        with attached(system, [create("random-allocation", sparsity=0.5, seed=seed)], TEXT) as (_, prepared):
            drawn.append(prepared[0].facts["layer_sparsities"])
    assert drawn[0] == drawn[2] != drawn[1]
    for levels in drawn:
        assert (np.array(levels) * sizes).sum() / sizes.sum() == pytest.approx(0.5)
        assert len(set(levels)) > 3
