"""Matrix-vector products over active inputs against their reference; without a GPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from sparsebench.errors import InputError
from sparsebench.kernels import reference

pytest.importorskip("triton")

from sparsebench.kernels.sparse_gemv import CHUNK, Active, Columns, active_product, add_norm, gate_up, gather, heads


def vector(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("inputs", "outputs", "shares", "unroll"),
    [(1024, 256, 1, 4), (2500, 300, 2, 1), (2500, 300, 3, 2), (100, 64, 4, 8)],
)
def test_the_product_is_that_of_the_active_columns(
    device: str, inputs: int, outputs: int, shares: int, unroll: int
) -> None:
    x = Active(inputs, torch.float32, device)
    x.threshold.fill_(0.6745)
    parts = torch.stack([vector(inputs), vector(inputs, 1)]).to(device)
    gather(parts, x)
    assert torch.allclose(x.dense, parts.sum(0))
    weight = vector(inputs * outputs, 2).view(outputs, inputs).to(device)
    layout = Columns(shares=shares, outputs=64, inputs=16, unroll=unroll)
    columns = weight.T.contiguous()
    # Inactive columns that would be noticed if they were read.
    columns[x.dense.abs() <= x.threshold] = float("nan")
    parts = torch.full((layout.splits(inputs), outputs), float("nan"), device=device)
    got = active_product(columns, x, parts, layout).sum(0)
    expected = reference.active_product(weight, x.dense, float(x.threshold))
    assert (got.double() - expected).norm() < 1e-5 * expected.norm()


def test_lists_hold_the_active_entries_in_order(device: str) -> None:
    x = Active(1500, torch.float32, device)
    x.threshold.fill_(1.0)
    gather(vector(1500)[None].to(device), x)
    active = [
        c * CHUNK + i
        for c in range(x.chunks)
        for i in torch.nonzero(x.dense[c * CHUNK :][:CHUNK].abs() > 1)[:, 0].tolist()
    ]
    assert [i for c in range(x.chunks) for i in x.index[c, : int(x.count[c])].tolist()] == active
    assert [v for c in range(x.chunks) for v in x.value[c, : int(x.count[c])].tolist()] == x.dense[active].tolist()


def test_nothing_active_gives_zero(device: str) -> None:
    x = Active(64, torch.float32, device)
    x.threshold.fill_(100.0)
    gather(vector(64)[None].to(device), x)
    parts = active_product(
        torch.full((64, 32), float("nan"), device=device), x, torch.ones(2, 32, device=device), Columns(2, 32)
    )
    assert (parts == 0).all()


def test_what_does_not_fit_is_named(device: str) -> None:
    x = Active(64, torch.float32, device)
    with pytest.raises(InputError, match="do not fit each other"):
        active_product(torch.ones(64, 32, device=device), x, torch.ones(1, 32, device=device), Columns(2, 32))
    with pytest.raises(InputError, match="must be contiguous"):
        active_product(torch.ones(32, 64, device=device).T, x, torch.ones(2, 32, device=device), Columns(2, 32))


def test_norm_adds_the_parts_to_the_stream(device: str) -> None:
    x, stream = Active(1200, torch.float32, device), torch.zeros(1200, device=device)
    hidden, weight = vector(1200, 3).to(device), vector(1200, 4).to(device)
    parts = torch.stack([vector(1200, 5), vector(1200, 6)]).to(device)
    add_norm(hidden, parts, weight, stream, x)
    total = hidden + parts.sum(0)
    assert torch.allclose(stream, total, atol=1e-6)
    assert torch.allclose(x.dense, torch.nn.functional.rms_norm(total, (1200,), weight, 1e-5), atol=1e-5)
    assert int(x.count.sum()) == int((x.dense != 0).sum())


def test_gate_and_up_give_swiglu(device: str) -> None:
    x = Active(1100, torch.float32, device)
    parts = torch.stack([vector(2200, 7), vector(2200, 8)]).to(device)
    gate_up(parts, x, sparse=False)
    gate, up = parts.sum(0).view(2, 1100)
    assert torch.allclose(x.dense, torch.nn.functional.silu(gate) * up, atol=1e-5)
    assert int(x.count.sum()) == 0


def test_heads_are_rotated_and_written_at_the_position(device: str) -> None:
    count, kv, dim, tokens, now = 2, 1, 16, 4, 2
    parts = torch.stack([vector((count + 2 * kv) * dim, 9), vector((count + 2 * kv) * dim, 10)]).to(device)
    angles = vector(tokens * dim // 2, 11).view(tokens, dim // 2).to(device)
    q = torch.zeros(count, dim, device=device)
    keys, values = (torch.zeros(kv, tokens, dim, device=device) for _ in range(2))
    position = torch.tensor([now], dtype=torch.int32, device=device)
    heads(parts, (angles.cos(), angles.sin()), position, q, keys, values)
    whole = parts.sum(0).view(-1, dim)
    first, second = whole.chunk(2, -1)
    cosine, sine = angles[now].cos(), angles[now].sin()
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
    assert torch.allclose(q, turned[:count], atol=1e-6)
    assert torch.allclose(keys[:, now], turned[count : count + kv], atol=1e-6)
    assert torch.allclose(values[:, now], whole[count + kv :], atol=1e-6)
    assert not keys[:, [0, 1, 3]].any() and not values[:, [0, 1, 3]].any()
