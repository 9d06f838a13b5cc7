"""Kernels that do not run where they are are given up, once and aloud; errors of the work itself are not hidden."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
import torch

from sparsebench.engine import fused
from sparsebench.engine.attention import AttentionView, attend_masked


class CompilationError(Exception):
    __module__ = "triton.compiler.errors"


def view() -> AttentionView:
    query, key, value = (torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(k)) for k in range(3))
    return AttentionView(query, key, value, torch.arange(5)[None], torch.tensor([5]), 0.5, 0, False)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A kernel that raises `error`, and counts how often it was tried."""
    state = SimpleNamespace(error=None, tried=0)

    def attend(*tensors: object) -> torch.Tensor:
        state.tried += 1
        raise state.error

    prefill = SimpleNamespace(suits=lambda *tensors: True, attend=attend)
    monkeypatch.setattr(fused, "usable", lambda x: True)
    monkeypatch.setattr(fused, "_given_up", set())
    monkeypatch.setattr(fused, "_kernels", lambda: SimpleNamespace(prefill=prefill))
    return state


@pytest.mark.parametrize(
    "error",
    [
        CompilationError("at 1:1: unsupported"),
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        subprocess.CalledProcessError(1, ["ptxas"]),
    ],
)
def test_a_kernel_that_does_not_run_is_given_up(kernel: SimpleNamespace, error: Exception) -> None:
    kernel.error, rows = error, view()
    keep = rows.visible()
    with pytest.warns(UserWarning, match="masked_prefill does not run here"):
        out = attend_masked(rows, keep)
    want = torch.nn.functional.scaled_dot_product_attention(rows.query, rows.key, rows.value, attn_mask=keep, scale=0.5)
    assert torch.allclose(out, want, atol=1e-5)
    attend_masked(rows, keep)
    assert kernel.tried == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), ValueError("wrong shape")])
def test_what_goes_wrong_in_the_work_is_an_error(kernel: SimpleNamespace, error: Exception) -> None:
    kernel.error, rows = error, view()
    with pytest.raises(type(error)):
        fused.attend(rows, rows.visible())
