"""Fingerprints of models in files: remembered for large files, and only for as long as these are the same."""

from __future__ import annotations

import os

import models
import pytest

from sparsebench.systems import loading
from sparsebench.systems.loading import model_files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "REMEMBERED", 0)
    return tmp_path / "model"


def save(folder, seed):
    models.tiny_model(seed=seed).save_pretrained(folder)
    models.tiny_tokenizer().save_pretrained(folder)
    for file in folder.iterdir():
        os.utime(file, (1, 1))


@pytest.mark.parametrize("told_by", ["its own time", "a look at it"])
def test_weights_of_the_same_size_and_time_are_others(folder, monkeypatch, told_by):
    if told_by == "its own time":
        monkeypatch.setattr(loading, "_sampled", lambda path: "")
    else:
        monkeypatch.setattr(os, "stat", _without_inode(os.stat))
    save(folder, 0)
    before = model_files(f"path:{folder}").fingerprint
    save(folder, 1)
    assert model_files(f"path:{folder}").fingerprint != before


def _without_inode(stat):
    def plain(*arguments, **options):
        found = list(stat(*arguments, **options))
        found[1] = 0  # inode
        found[9] = 0  # time of change of the inode
        return os.stat_result(found)

    return plain


def test_files_that_stay_are_read_once(folder, monkeypatch):
    save(folder, 0)
    before = model_files(f"path:{folder}").fingerprint
    monkeypatch.setattr(loading, "sha256_file", lambda path: pytest.fail(f"{path} was read again"))
    assert model_files(f"path:{folder}").fingerprint == before
