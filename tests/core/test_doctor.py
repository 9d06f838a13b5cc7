"""`sparsebench doctor` on set-ups that are broken in one way each: it says so, how to mend it, and leaves with 2."""

from __future__ import annotations

import builtins
import shutil
import sys
from collections import namedtuple
from importlib.metadata import EntryPoint, PackageNotFoundError

import pytest
import torch

from sparsebench import cli, doctor


@pytest.fixture(autouse=True)
def sound(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSEBENCH_DATA", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: namedtuple("Usage", "free")(50 * 2**30))


def run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sparsebench", "doctor"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, capsys.readouterr().out


def test_a_sound_set_up_is_good(monkeypatch, capsys):
    code, said = run(monkeypatch, capsys)
    assert code == 0
    assert "BAD" not in said
    assert "ok  Python" in said


def old(monkeypatch, tmp_path):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "4.0.0" if name == "transformers" else real(name))
    return "transformers: 4.0.0, needs", "pip install 'transformers"


def absent(monkeypatch, tmp_path):
    real = doctor.version

    def version(name):
        if name == "lm-eval":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)
    return "lm-eval: not installed", "pip install 'lm-eval"


def torch_is_broken(monkeypatch, tmp_path):
    real = builtins.__import__

    def broken(name, *args, **options):
        if name == "torch":
            raise OSError("libcudart.so.13: cannot open shared object file")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", broken)
    return "torch: does not load: libcudart", "reinstall torch"


def gpu_that_does_not_compute(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Great GPU")

    def ones(*args, **options):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch, "ones", ones)
    return "cuda:0: Great GPU does not compute: CUDA error: no kernel image", "CUDA_VISIBLE_DEVICES"


def cache_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    return "is no folder", "set SPARSEBENCH_CACHE"


def cache_cannot_be_written(monkeypatch, tmp_path):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    return "cannot be written (Permission denied)", "set SPARSEBENCH_CACHE"


def disk_is_full(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: namedtuple("Usage", "free")(2**20))
    return "0 GiB free", "set SPARSEBENCH_CACHE"


def data_folder_is_gone(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEBENCH_DATA", str(tmp_path / "gone"))
    return "gone is no folder", "name an existing folder"


def plugin_is_broken(monkeypatch, tmp_path):
    points = [EntryPoint("mine", "nowhere_at_all:Mine", "sparsebench.adapters")]
    monkeypatch.setattr(doctor, "entry_points", lambda group: points if group.endswith("adapters") else [])
    return "plugin mine: nowhere_at_all:Mine does not load: No module named", "update or remove its package"


@pytest.mark.parametrize(
    "breaking",
    [
        old,
        absent,
        torch_is_broken,
        gpu_that_does_not_compute,
        cache_is_a_file,
        cache_cannot_be_written,
        disk_is_full,
        data_folder_is_gone,
        plugin_is_broken,
    ],
)
def test_a_broken_set_up_is_found_with_how_to_mend_it(breaking, monkeypatch, capsys, tmp_path):
    what, mend = breaking(monkeypatch, tmp_path)
    code, said = run(monkeypatch, capsys)
    assert code == 2
    lines = said.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("BAD") and what in line)
    assert mend in lines[at + 1]
    assert sum(line.startswith("BAD") for line in lines) == 1
