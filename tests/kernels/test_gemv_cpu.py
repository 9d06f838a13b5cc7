"""Products over active columns on the processor, against their reference."""

from __future__ import annotations

import pytest
import torch

from sparsebench.errors import InputError
from sparsebench.kernels import reference

pytest.importorskip("numba")

from sparsebench.kernels.gemv_cpu import TILE, ColumnWeight


def case(outputs: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight.to(dtype), torch.randn(inputs, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(TILE, 64), (TILE + 3, 101), (7, 5), (2 * TILE + 500, 33)])
@pytest.mark.parametrize("threshold", [0.0, 0.6745, 10.0])
def test_the_product_is_that_of_the_active_columns(
    outputs: int, inputs: int, dtype: torch.dtype, threshold: float
) -> None:
    weight, x = case(outputs, inputs, dtype)
    read = weight.clone()
    read[:, x.float().abs() <= threshold] = float("nan")  # to be noticed if it is read
    got = ColumnWeight(read)(x, threshold)
    expected = reference.active_product(weight, x, threshold)
    assert got.dtype == dtype and got.shape == (outputs,)
    limit = 1e-6 if dtype == torch.float32 else 4e-3
    assert (got.double() - expected).norm() <= limit * expected.norm()


def test_bfloat16_is_widened_exactly() -> None:
    weight, _ = case(300, 1, torch.bfloat16)
    one = torch.ones(1, dtype=torch.bfloat16)
    assert torch.equal(ColumnWeight(weight)(one), weight[:, 0])


def test_the_number_of_threads_changes_nothing() -> None:
    weight, x = case(3 * TILE, 257, torch.float32)
    product = ColumnWeight(weight)
    assert torch.equal(product(x, 0.5, threads=1), product(x, 0.5, threads=2))


def test_what_does_not_fit_is_named() -> None:
    weight, x = case(8, 4, torch.float32)
    with pytest.raises(InputError, match="no column product"):
        ColumnWeight(weight.half())
    with pytest.raises(InputError, match="does not fit 4 inputs"):
        ColumnWeight(weight)(x[:3])
