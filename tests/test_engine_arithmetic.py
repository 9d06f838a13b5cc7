"""The arithmetic beneath the engine: attention in blocks, rows out of flat tokens and back, log-probabilities."""

from __future__ import annotations

import pytest
import torch

from sparsebench.engine import blocked
from sparsebench.engine.flow import RowBatch
from sparsebench.engine.scoring import logprobs_of

GENERATOR = torch.Generator().manual_seed(0)


def explicit(query, key, value, scaling, keep):
    group = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    scores = (query.double() @ key.transpose(-1, -2) * scaling).masked_fill(~keep, -torch.inf)
    return torch.nan_to_num(torch.softmax(scores, dim=-1)) @ value


@pytest.mark.parametrize(("queries", "keys"), [(8, 8), (113, 113), (129, 300), (300, 300)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_blocks_equal_the_explicit_softmax(queries, keys, masked, dtype, tolerance):
    query = torch.randn(2, 6, queries, 16, generator=GENERATOR).to(dtype)
    key, value = torch.randn(2, 2, 2, keys, 16, generator=GENERATOR).to(dtype)
    last = torch.arange(keys - queries, keys)
    keep = (torch.arange(keys) <= last[:, None])[None, None].expand(2, 1, -1, -1).clone()
    if masked:
        keep &= torch.rand(keep.shape, generator=GENERATOR) < 0.3
        keep[0, 0, 3] = False  # a query that reads nothing
    found = blocked.attend(query, key, value, 0.3, last, keep if masked else None)
    torch.testing.assert_close(found.double(), explicit(query, key, value, 0.3, keep), atol=tolerance, rtol=tolerance)


def test_a_query_that_reads_nothing_gives_zeros():
    query, key, value = torch.randn(3, 1, 2, 9, 4, generator=GENERATOR)
    keep = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    keep[:, :, 5] = False
    found = blocked.attend(query, key, value, 1.0, torch.arange(9), keep)
    assert torch.count_nonzero(found[:, :, 5]) == 0
    assert torch.count_nonzero(found[:, :, 4]) > 0


def batch(tokens, keys, positions) -> RowBatch:
    made = (torch.tensor(x) for x in (tokens, keys, positions))
    return RowBatch(*made, torch.tensor([1]), decode=False, aligned=False, span=None)


def test_rows_are_gathered_and_go_back_without_their_padding():
    rows = batch([[4, 5, 0], [1, 2, 3]], [[7, 6], [0, 0]], [[2, 3, -1], [0, 1, 2]])
    flat = torch.arange(12.0).reshape(6, 2)
    found = rows.gather(flat)
    assert torch.equal(found[1], flat[1:4])
    out = torch.full((6, 2), -1.0)
    rows.scatter(out, found + 100)
    assert torch.equal(out[1:], flat[1:] + 100)
    assert torch.equal(out[0], torch.tensor([-1.0, -1.0]))  # padding has written nothing
    stored = torch.arange(8.0)[:, None]
    assert rows.gather_keys(stored)[:, :, 0].tolist() == [[7, 6], [0, 0]]


@pytest.mark.parametrize("count", [1, 21, 22, 50])
def test_log_probabilities_of_chosen_tokens(count):
    logits = torch.randn(count, 49152, generator=GENERATOR)
    rows = torch.arange(count).repeat_interleave(2)
    tokens = torch.randint(0, 49152, (2 * count,), generator=GENERATOR)
    tokens[::3] = logits.argmax(dim=-1)[rows[::3]]
    logits[0, -1] = logits[0].max()  # of equal ones the first is chosen, and the other is not
    tokens[:2] = torch.tensor([int(logits[0].argmax()), 49151])
    values, greedy = logprobs_of(logits, rows, tokens)
    wanted = torch.log_softmax(logits.double(), dim=-1)[rows, tokens]
    torch.testing.assert_close(values, wanted, atol=1e-5, rtol=0)
    assert torch.equal(greedy, logits.argmax(dim=-1)[rows] == tokens)
    assert greedy[:2].tolist() == [True, False]
