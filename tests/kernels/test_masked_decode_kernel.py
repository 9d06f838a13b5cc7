"""Decode attention over the keys that a mask names; without a GPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from sparsebench.kernels import masked_decode


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor, scaling: float) -> torch.Tensor:
    """The same in float64, by definition; zeros for a query with no key."""
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    logits = (q.double() @ wide_k.transpose(-1, -2)) * scaling
    weights = torch.softmax(logits.masked_fill(~keep, -torch.inf), dim=-1)
    return torch.nan_to_num(weights) @ torch.nan_to_num(wide_v)


def drawn(
    device: str, keys: int, dim: int = 64, value_dim: int = 64, rows: int = 3, heads: int = 6
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(keys + dim)
    q = torch.randn(rows, heads, 1, dim, generator=generator)
    k = torch.randn(rows, 2, keys, dim, generator=generator)
    v = torch.randn(rows, 2, keys, value_dim, generator=generator)
    return [x.to(device) for x in (q, k, v)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("keys", "dim", "value_dim"), [(1, 64, 64), (100, 64, 64), (1300, 64, 64), (130, 80, 40)])
def test_it_is_attention_over_the_keys_that_are_named(
    device: str, keys: int, dim: int, value_dim: int, shared: bool
) -> None:
    q, k, v = drawn(device, keys, dim, value_dim)
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(3, 1 if shared else 6, 1, keys, generator=generator).to(device) < 0.4
    got = masked_decode.attend(q, k, v, keep, 0.2)
    assert (got.double() - expected(q, k, v, keep, 0.2)).abs().max() < 1e-5


def test_a_query_with_no_key_gives_zeros(device: str) -> None:
    q, k, v = drawn(device, 600)
    keep = torch.zeros(3, 1, 1, 600, dtype=torch.bool, device=device)
    keep[1, :, :, 550:] = True
    got = masked_decode.attend(q, k, v, keep, 0.125)
    assert not got[0].any() and not got[2].any() and got[1].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_depends_neither_on_its_padding_nor_on_other_rows(device: str, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in drawn(device, 700))
    keep = (torch.arange(700, device=device) < 530)[None, None, None].expand(3, 1, 1, 700)
    together = masked_decode.attend(q, k, v, keep, 0.125)
    alone = masked_decode.attend(q[1:2], k[1:2, :, :530], v[1:2, :, :530], keep[1:2, ..., :530], 0.125)
    assert torch.equal(together[1:2], alone)
    k[:, :, 530:], v[:, :, 530:] = float("nan"), float("nan")
    assert torch.equal(masked_decode.attend(q, k, v, keep, 0.125), together)


def test_tensors_are_read_where_they_lie(device: str) -> None:
    q, k, v = drawn(device, 200)
    lanes_k, lanes_v = (torch.full((5, 2, 300, 64), float("nan"), device=device) for _ in range(2))
    lanes_k[:3, :, :200], lanes_v[:3, :, :200] = k, v
    keep = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device).expand(3, 1, 1, 200)
    got = masked_decode.attend(
        q.transpose(0, 1).contiguous().transpose(0, 1), lanes_k[:3, :, :200], lanes_v[:3, :, :200], keep, 0.1
    )
    stored = k.transpose(1, 2).contiguous().transpose(1, 2), v.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(got, masked_decode.attend(q, *stored, keep, 0.1))
    assert (got.double() - expected(q, k, v, keep, 0.1)).abs().max() < 1e-5


def test_what_it_takes() -> None:
    q, k, v = drawn("cpu", 10)
    assert masked_decode.suits(q, k, v)
    assert not masked_decode.suits(q.double(), k.double(), v.double())
    assert not masked_decode.suits(q.expand(3, 6, 2, 64), k, v)
    assert not masked_decode.suits(q, k.expand(3, 2, 10, 64).repeat(1, 1, 1, 5), v)
