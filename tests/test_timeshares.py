"""Where time goes: parts are told apart and make the whole."""

import models
import pytest
import torch

from sparsebench.timeshares import PARTS, measured_shares


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("answer", [0, 3])
def test_shares_are_those_of_a_whole(name, answer):
    system = models.tiny_system(name)
    shares = measured_shares(system, prompt=40, answer=answer, rounds=2)
    assert tuple(shares) == PARTS
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())


def test_the_model_is_left_as_it_was():
    system = models.tiny_system("llama")
    ids = torch.randint(0, 256, (1, 20))
    before = system.model(ids).logits
    measured_shares(system, prompt=20, rounds=1)
    assert torch.equal(system.model(ids).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in system.model.modules())
