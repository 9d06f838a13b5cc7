"""Products over what tokens keep, by Triton; without a GPU in its interpreter."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from sparsebench.errors import InputError

pytest.importorskip("triton")

from sparsebench.kernels.gemv_gpu import CHUNK, ColumnWeight, RowWeight, listed


@dataclass
class Met:
    """Two sums on a device."""

    saved: int
    sums: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def add(self, zeros: int, before: int) -> None:
        raise NotImplementedError

    def tallies(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        new = torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.float64, device=device)
        return self.sums.setdefault(device, new)


def tokens(count: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of several tokens, some of them zero, and what is left out of them."""
    generator = torch.Generator().manual_seed(seed + count)
    x = torch.randn(count, channels, generator=generator) * (torch.rand(count, channels, generator=generator) > 0.2)
    return x, torch.rand(count, channels, generator=generator) > 0.3


def weight_of(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(inputs))


@pytest.mark.parametrize("count", [1, 3])
def test_each_token_has_its_own_list(device: str, count: int) -> None:
    x, gone = (t.to(device) for t in tokens(count, CHUNK + 77))
    found = listed(x, gone)
    for token in range(count):
        for chunk in range(2):
            part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            kept = (x * ~gone)[token, part]
            length = int(found.count[token, chunk])
            places = found.index[token, chunk, :length].long() - chunk * CHUNK
            assert places.tolist() == kept.nonzero()[:, 0].tolist()
            assert torch.equal(found.value[token, chunk, :length], kept[places])
            assert int(found.nonzero[token, chunk]) == int((x[token, part] != 0).sum())


@pytest.mark.parametrize(("outputs", "inputs"), [(70, CHUNK + 30), (1030, 101)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_the_product_is_that_of_what_is_kept(device: str, outputs: int, inputs: int, count: int, biased: bool) -> None:
    weight, (x, gone) = weight_of(outputs, inputs).to(device), (t.to(device) for t in tokens(count, inputs))
    gone[:, ::7] = True
    bias = weight[:, 0] + 1 if biased else None
    kept = x * ~gone
    read = weight.clone()
    read[:, (kept == 0).all(dim=0)] = float("nan")  # to be noticed if it is read
    met = Met(5)
    found = ColumnWeight(read).product(listed(x, gone), bias, met)
    expected = kept.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert (found.double() - expected).norm() < 1e-6 * expected.norm()
    zeros, before = met.sums[found.device]
    assert (int(zeros), int(before)) == (5 * int((kept == 0).sum()), 5 * int((x == 0).sum()))
    whole = ColumnWeight(weight).product(listed(x))
    assert torch.allclose(whole.double(), x.double() @ weight.double().T, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_outputs_that_a_token_leaves_out_are_zero(device: str, count: int, biased: bool) -> None:
    weight = weight_of(CHUNK + 40, 300).to(device)
    x, _ = (t.to(device) for t in tokens(count, 300))
    neurons, gone = (t.to(device) for t in tokens(count, CHUNK + 40, seed=9))
    gone[:, ::3] = True
    kept = neurons * ~gone != 0
    bias = weight[:, 0].clone() if biased else None
    read = weight.clone()
    read[~kept.any(dim=0)] = float("nan")
    met = Met(3)
    found = RowWeight(read).product(x, listed(neurons, gone), bias, met)
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert torch.allclose(found.double(), torch.where(kept, expected, 0), atol=1e-4)
    zeros, before = met.sums[found.device]
    assert (int(zeros), int(before)) == (3 * int((~kept).sum()), 3 * int((neurons == 0).sum()))


def test_what_does_not_fit_is_named(device: str) -> None:
    with pytest.raises(InputError, match="no column product"):
        ColumnWeight(torch.ones(4, 4, dtype=torch.long, device=device))
    with pytest.raises(InputError, match="by rows"):
        RowWeight(torch.ones(5, 3, device=device).T)
