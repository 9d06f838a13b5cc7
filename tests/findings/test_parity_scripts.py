"""The parity scripts explain themselves, and save checkpoints that give the model's own numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "parity"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks are not part of what is released")


@pytest.mark.parametrize("script", ["pruning.py", "eviction.py", "../prepare.py"])
def test_scripts_explain_themselves(script: str) -> None:
    ran = subprocess.run([sys.executable, str(FOLDER / script), "--help"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "--environments" in ran.stdout and "--model" in ran.stdout


def test_a_saved_checkpoint_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from common import perplexity, saved
    from transformers import AutoModelForCausalLM

    system = models.tiny_system("llama")
    again = AutoModelForCausalLM.from_pretrained(saved(system, tmp_path), dtype=torch.float32)
    ids = torch.arange(5, 37).reshape(2, 16)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, system.model(ids).logits)
        loss = torch.nn.functional.cross_entropy(again(ids).logits[:, :-1].reshape(-1, 260), ids[:, 1:].reshape(-1))
    assert perplexity(system, ids.numpy()) == pytest.approx(float(loss.exp()), rel=1e-4)


def test_peers_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from environment import PINNED

    assert all("==" in requirement for pinned in PINNED.values() for requirement in pinned)
