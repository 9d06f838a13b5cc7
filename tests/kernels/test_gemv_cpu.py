"""Products over active columns on the processor, against their reference."""

from __future__ import annotations

import pytest
import torch

from sparsebench.errors import InputError
from sparsebench.kernels import reference

pytest.importorskip("numba")

from sparsebench.kernels.gemv_cpu import TILE, ColumnWeight, RowWeight, listed, threads


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
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(product(x, 0.5))
    assert torch.equal(*found)


def tokens(count: int, channels: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of several tokens, some of them zero, and what is left out of them."""
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, channels, generator=generator) * (torch.rand(count, channels, generator=generator) > 0.2)
    return x.to(dtype), torch.rand(count, channels, generator=generator) > 0.3


@pytest.mark.parametrize("count", [1, 3])
def test_lists_hold_what_any_token_keeps(count: int) -> None:
    x, gone = tokens(count, 37, torch.float32)
    found = listed(x, gone)
    kept = x * ~gone
    assert found.places.tolist() == kept.any(dim=0).nonzero()[:, 0].tolist()
    assert torch.equal(torch.from_numpy(found.values), kept[:, found.places])
    assert (found.entries, found.kept, found.nonzero) == (37 * count, int((kept != 0).sum()), int((x != 0).sum()))
    whole = listed(x)
    assert whole.kept == whole.nonzero == found.nonzero


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(TILE + 3, 101), (300, 66)])
@pytest.mark.parametrize("biased", [False, True])
def test_several_tokens_read_each_column_once_that_one_of_them_keeps(
    dtype: torch.dtype, outputs: int, inputs: int, biased: bool
) -> None:
    weight, _ = case(outputs, inputs, dtype)
    x, gone = tokens(3, inputs, dtype)
    gone[:, ::7] = True
    bias = weight[:, 0] + 1 if biased else None
    read = weight.clone()
    read[:, (x * ~gone == 0).all(dim=0)] = float("nan")
    found = ColumnWeight(read).product(listed(x, gone), bias)
    expected = (x * ~gone).double() @ weight.double().T + (0 if bias is None else bias.double())
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_rows_that_no_token_keeps_are_not_read(dtype: torch.dtype, biased: bool) -> None:
    weight, _ = case(70, 133, dtype)
    x, _ = tokens(2, 133, dtype)
    neurons, gone = tokens(2, 70, dtype)
    gone[:, ::3] = True
    outputs = listed(neurons, gone)
    left = torch.ones(70, dtype=torch.bool)
    left[outputs.places] = False
    bias = weight[:, 0].clone() if biased else None
    read = weight.clone()
    read[left] = float("nan")
    found = RowWeight(read).product(x, outputs, bias)
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    expected[:, left] = 0
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * expected.norm()


def test_weights_that_are_stored_by_columns_already_are_not_copied() -> None:
    stored = torch.randn(5, 8)
    columns = ColumnWeight(stored.T)
    stored[2] = 0
    assert columns(torch.eye(5)[2]).abs().sum() == 0
    with pytest.raises(InputError, match="by rows"):
        RowWeight(stored.T)


def test_what_does_not_fit_is_named() -> None:
    weight, x = case(8, 4, torch.float32)
    with pytest.raises(InputError, match="no column product"):
        ColumnWeight(weight.half())
    with pytest.raises(InputError, match="does not fit 4 inputs"):
        ColumnWeight(weight)(x[:3])
