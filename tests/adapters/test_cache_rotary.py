"""Rotations that are taken back, of every architecture."""

from __future__ import annotations

import pytest
import torch
from attention_caches import ARCHITECTURES
from attention_texts import random_ids

from sparsebench.adapters.attention._rotary import Rotary
from sparsebench.adapters.attention.expected_attention import expectation
from sparsebench.engine.attention import attend_dense
from sparsebench.engine.scoring import Scored, score
from sparsebench.errors import InputError


def before_rotation(system, ids) -> dict[int, torch.Tensor]:
    """Queries as the projections of each layer give them, [heads, tokens, head_dim]."""
    found: list[torch.Tensor] = []
    shape = (len(ids), system.config.num_attention_heads, -1)
    handles = [
        block.self_attn.q_proj.register_forward_hook(
            lambda module, args, out: found.append(out[0].reshape(shape).transpose(0, 1))
        )
        for block in system.blocks
    ]
    with torch.no_grad():
        system.model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return dict(enumerate(found))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "mistral"])
def test_rotations_are_taken_back(architecture, systems):
    system = systems[architecture]
    ids = random_ids(30)
    expected = before_rotation(system, ids)
    seen: dict[int, torch.Tensor] = {}

    class Watch:
        def attend(self, view):
            seen[view.layer] = view.query[0]
            return attend_dense(view)

    with system.acting(decode=False, prefix_invariant=True, policy=Watch()):
        score(system, [Scored([*ids, 0], 1, 31)])
    rotary = Rotary(system)
    for layer, query in seen.items():
        back = rotary.rotate(query, torch.arange(30), layer, back=True)
        assert torch.allclose(back, expected[layer], atol=1e-4)
        assert torch.allclose(rotary.rotate(back, torch.arange(30), layer), query, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rotations_are_known_of_every_architecture(architecture, systems):
    rotary = Rotary(systems[architecture])
    assert not rotary.plain
    assert (rotary.module is None) == (architecture in ("gpt2", "opt"))


def test_an_unknown_rotation_is_refused(systems, monkeypatch):
    monkeypatch.setattr(
        Rotary, "_tables", lambda self, x, positions, layer: (torch.ones(1, 12, 12), torch.zeros(1, 12, 12))
    )
    with pytest.raises(InputError, match="rotary"):
        Rotary(systems["llama"])


def test_tables_that_are_no_cosines_and_sines_are_refused(systems):
    """DeepSeek-V2 has one table of complex numbers."""

    class OneTable(torch.nn.Module):
        def forward(self, x, positions):
            return torch.ones(1, 12, 4)

    rotary = Rotary(systems["llama"])
    rotary.module = OneTable()
    with pytest.raises(InputError, match="no cosines and sines"):
        rotary.rotate(torch.ones(2, 12, 8), torch.arange(12), 0)


def test_the_expectation_is_that_of_sampled_queries():
    generator = torch.Generator().manual_seed(0)
    root = 0.5 * torch.randn(4, 4, generator=generator)
    mean, keys = torch.randn(4, generator=generator), torch.randn(1, 6, 4, generator=generator)
    found = expectation(mean[None], (root @ root.T)[None], keys, 0.5, 1)
    queries = mean + torch.randn(200_000, 4, generator=generator) @ root.T
    sampled = (queries @ keys[0].T * 0.5).exp().mean(dim=0)
    assert torch.allclose(found[0], sampled / sampled.sum(), rtol=0.02)
