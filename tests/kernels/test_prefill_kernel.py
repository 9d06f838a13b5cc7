"""Block-sparse prefill against its reference; without a GPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from sparsebench.errors import InputError
from sparsebench.kernels import reference

pytest.importorskip("triton")

from sparsebench.kernels.block_sparse_prefill import (
    Tiling,
    attend_blocks,
    block_budget,
    pooled_scores,
    select_blocks,
)


def tensors(
    device: str, heads: int, kv_heads: int, tokens: int, dim: int, batch: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(batch, n, tokens, dim) for n in (heads, kv_heads, kv_heads)]
    q, k, v = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize(
    ("tokens", "query_block", "key_block", "keys", "dim"),
    [(256, 64, 64, 32, 64), (200, 64, 32, 32, 64), (256, 32, 64, 32, 128), (130, 64, 64, 64, 64)],
)
def test_selected_blocks_are_attended_to_as_a_mask_would(
    device: str, tokens: int, query_block: int, key_block: int, keys: int, dim: int
) -> None:
    q, k, v = tensors(device, 4, 2, tokens, dim, batch=2)
    valid, keep = (x.to(device) for x in block_budget(tokens, 0.4, query_block, key_block))
    sizes = {"query_block": query_block, "key_block": key_block}
    blocks, counts = select_blocks(q, k, valid, keep, int(keep.max()), **sizes)
    got = attend_blocks(q, k, v, blocks, counts, **sizes, tiling=Tiling(keys=keys, warps=4, stages=2))
    expected = reference.attend_blocks(q, k, v, blocks, counts, **sizes)
    assert (counts.cpu() == keep.cpu()).all()
    assert (got.double() - expected).norm() < 2e-3 * expected.norm()


def test_tiles_through_tensor_descriptors_or_in_one_loop_are_the_same(device: str) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the bulk tensor copy engine needs compute capability 9.0")
    q, k, v = tensors(device, 4, 2, 200, 64)
    valid, keep = (x.to(device) for x in block_budget(200, 0.4, 64, 64))
    blocks, counts = select_blocks(q, k, valid, keep, 4, query_block=64, key_block=64)
    plain, *others = [
        attend_blocks(q, k, v, blocks, counts, query_block=64, key_block=64, tiling=Tiling(32, 4, 2, tma, merged))
        for tma in (False, True)
        for merged in (False, True)
    ]
    assert all(torch.equal(plain, other) for other in others)


def test_all_blocks_are_dense_causal_attention(device: str) -> None:
    q, k, v = tensors(device, 4, 2, 192, 64)
    valid, keep = (x.to(device) for x in block_budget(192, 1.0, 64, 64))
    blocks, counts = select_blocks(q, k, valid, keep, 3, query_block=64, key_block=64)
    got = attend_blocks(
        q, k, v, blocks, counts, query_block=64, key_block=64, tiling=Tiling(keys=64, warps=4, stages=2)
    )
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(got, dense, atol=2e-3)


def test_a_query_without_keys_is_zero(device: str) -> None:
    q, k, v = tensors(device, 1, 1, 128, 64)
    blocks = torch.tensor([[[[1]]]], dtype=torch.int32, device=device)  # keys 64 to 127 of 128 queries in one block
    counts = torch.ones(1, 1, 1, dtype=torch.int32, device=device)
    got = attend_blocks(q, k, v, blocks, counts, key_block=64, tiling=Tiling(keys=64, warps=4, stages=2))
    assert (got[:, :, :64] == 0).all()
    expected = reference.attend_blocks(q, k, v, blocks, counts, key_block=64)
    assert (got.double() - expected).norm() < 2e-3 * expected.norm()


def test_lists_hold_the_best_blocks_with_sink_and_diagonal(device: str) -> None:
    q, k, _ = tensors(device, 4, 2, 512, 64)
    valid, keep = (x.to(device) for x in block_budget(512, 0.5, 64, 32))
    blocks, counts = select_blocks(q, k, valid, keep, int(keep.max()), query_block=64, key_block=32)
    scores = pooled_scores(q, k, 64, 32)
    expected = reference.select(scores, valid, keep, sink=1, local=2)
    got = [row[: int(n)].tolist() for row, n in zip(blocks.flatten(0, 2), counts.flatten(), strict=True)]
    assert got == expected
    assert all(row[0] == 0 and row[-1] == int(valid[i % 8]) - 1 for i, row in enumerate(got))


def test_scores_of_blocks_are_products_of_means(device: str) -> None:
    _, k, _ = tensors(device, 4, 2, 150, 64)
    scores = pooled_scores(k, k, 24, 24)  # blocks need not be a power of two
    assert scores.shape == (1, 2, 7, 7)
    assert scores[0, 1, 2, 6].item() == pytest.approx((k[0, 1, 48:72].mean(0) @ k[0, 1, 144:].mean(0)).item(), rel=1e-4)
    q, k, _ = tensors(device, 4, 2, 150, 64)
    scores = pooled_scores(q, k, 64, 32)
    assert scores.shape == (1, 4, 3, 5)
    assert scores[0, 3, 2, 4].item() == pytest.approx((q[0, 3, 128:].mean(0) @ k[0, 1, 128:].mean(0)).item(), rel=1e-4)


def test_shapes_that_do_not_fit_are_named(device: str) -> None:
    q, k, v = tensors(device, 4, 2, 128, 64)
    lists, counts = torch.zeros(1, 4, 2, 1, dtype=torch.int32), torch.ones(1, 4, 2, dtype=torch.int32)
    with pytest.raises(InputError, match="blocks of queries"):
        attend_blocks(q, k, v, lists, counts)
    with pytest.raises(InputError, match="must be contiguous"):
        attend_blocks(q, k, v, lists[:, :, :1], counts[:, :, :1])
    with pytest.raises(InputError, match="does not divide"):
        attend_blocks(q, k, v, lists[:, :, :1], counts[:, :, :1], tiling=Tiling(keys=256))
