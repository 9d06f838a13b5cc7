"""2:4 masks, and compressed products where a GPU has them."""

from __future__ import annotations

import pytest
import torch

from sparsebench.errors import InputError
from sparsebench.kernels.semi_structured import backends, compressed, largest_of_four


def test_two_of_four_stay_and_of_equal_ones_the_first() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 4.0, 4.0, 4.0, 4.0]])
    assert largest_of_four(weight).tolist() == [[0, -3, 2, 0, 4, 4, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_of_every_four_is_zero(dtype: torch.dtype) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    pruned = largest_of_four(weight)
    assert ((pruned.unflatten(-1, (-1, 4)) != 0).sum(-1) == 2).all()
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])
    removed = torch.where(pruned == 0, weight, 0).unflatten(-1, (-1, 4)).abs().amax(-1)
    kept = pruned.unflatten(-1, (-1, 4)).abs()
    assert (kept.masked_fill(kept == 0, float("inf")).amin(-1) >= removed).all()


def test_rows_are_whole_fours() -> None:
    with pytest.raises(InputError, match="groups of four"):
        largest_of_four(torch.ones(2, 6))


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(InputError, match="unknown backend 'marlin'"):
        compressed(torch.ones(32, 64), "marlin")


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs sparse tensor cores"
)
@pytest.mark.parametrize("backend", backends())
def test_compressed_products_are_those_of_the_pruned_weight(backend: str) -> None:
    weight = largest_of_four(torch.randn(256, 512, dtype=torch.bfloat16, device="cuda"))
    x = torch.randn(64, 512, dtype=torch.bfloat16, device="cuda")
    got = torch.nn.functional.linear(x, compressed(weight, backend)).double()
    expected = x.double() @ weight.double().T
    assert (got - expected).norm() < 1e-2 * expected.norm()
