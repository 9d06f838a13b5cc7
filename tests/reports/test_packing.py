"""Results in one file: what comes out is what went in, and nothing else goes in."""

from __future__ import annotations

import io
import json
import lzma
import random
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench import packing
from sparsebench.errors import InputError, IntegrityError, SparseBenchError
from sparsebench.packing import pack, round_fraction
from sparsebench.reports.collect import collect
from sparsebench.reports.verify import verify
from sparsebench.sample_tables import read_table
from sparsebench.store import Store

CELL = "cells/0123456789abcdef"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same_file(path: Path, unpacked: Path) -> None:
    """Samples are stored anew, so their bytes and the hash of them differ; nothing else does."""
    if path.suffix == ".parquet":
        one, other = (read_table(p.read_bytes(), p.name).to_pandas() for p in (path, unpacked))
        pd.testing.assert_frame_equal(one, other)
    elif path.name == "record.json":
        one, other = (json.loads(p.read_text()) | {"samples_sha256": None} for p in (path, unpacked))
        assert one == other
    else:
        assert unpacked.read_bytes() == path.read_bytes()


def test_a_packed_folder_is_the_folder(results: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    made = pack(Store.open(results), tmp_path / "a.tar.xz")
    store = Store.open(made.path)
    assert (made.cells, made.without_text) == (len(list(store)), 0)
    for path in results.rglob("*"):
        if path.is_file() and packing.MEMBER.fullmatch(str(path.relative_to(results))):
            same_file(path, store.root / path.relative_to(results))
    pd.testing.assert_frame_equal(
        collect(made.path).drop(columns="source", errors="ignore"), table.drop(columns="source", errors="ignore")
    )


def test_equal_folders_give_equal_bytes(results: Path, tmp_path: Path) -> None:
    first, second = (pack(Store.open(results), tmp_path / f"{name}.tar.xz", 1).path for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_without_texts_every_value_stays(results: Path, tmp_path: Path) -> None:
    store = Store.open(results)
    most = 3
    texts = {c.id for c in store if c.record.samples_sha256 and {"response", "target"} & set(c.samples().columns)}
    assert texts
    made = pack(store, tmp_path / "a.tar.xz", text_up_to=most)
    short = Store.open(made.path)
    for before in store:
        after = short.read(before.id)
        assert after.record.outcome == before.record.outcome
        if before.record.samples_sha256 is None:
            continue
        left, whole = after.samples(), before.samples()
        assert left is not None and whole is not None
        assert set(whole.columns) - set(left.columns) == set(after.record.left_out)
        assert bool(after.record.left_out) == (before.id in texts and len(whole) > most)
        pd.testing.assert_frame_equal(left, whole[left.columns])
    found = verify(made.path)
    assert any("without the texts" in f.message for f in found)
    for severity in ("error", "ok"):
        assert [f for f in found if f.severity == severity] == [f for f in verify(results) if f.severity == severity]


def test_floats_are_rounded_and_still_give_what_was_recorded(results: Path, tmp_path: Path) -> None:
    store = Store.open(results)
    made = pack(store, tmp_path / "a.tar.xz", bits=16)
    assert made.size < pack(store, tmp_path / "b.tar.xz").size
    short = Store.open(made.path)
    for before in store:
        after = short.read(before.id)
        assert after.record.outcome == before.record.outcome
        if before.record.samples_sha256 is None:
            continue
        assert after.record.rounded_bits == 16
        left, whole = after.samples(), before.samples()
        assert left is not None and whole is not None
        pd.testing.assert_frame_equal(left, whole, rtol=2**-17, atol=0)
    for severity in ("error", "ok"):
        assert [f for f in verify(made.path) if f.severity == severity] == [
            f for f in verify(results) if f.severity == severity
        ]
    again = pack(short, tmp_path / "c.tar.xz", bits=20)
    assert all(cell.record.rounded_bits in (16, None) for cell in Store.open(again.path))


def test_what_rounding_cannot_have_done_is_an_error(results: Path, tmp_path: Path) -> None:
    store = Store.open(pack(Store.open(results), tmp_path / "a.tar.xz", bits=16).path)
    cell = next(c for c in store if c.record.rounded_bits and c.record.outcome.metrics[0].value)
    path = cell.folder / "record.json"
    data = json.loads(path.read_text())
    data["outcome"]["metrics"][0]["value"] *= 1.001
    path.write_text(json.dumps(data))
    assert any("its samples give" in f.message for f in verify(store.root))


def test_a_claim_to_have_been_rounded_is_checked(results: Path, tmp_path: Path) -> None:
    store = Store.open(pack(Store.open(results), tmp_path / "a.tar.xz").path)
    cell = next(c for c in store if c.record.outcome.metrics and c.record.outcome.metrics[0].metric.column == "nll")
    path = cell.folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rounded_bits": 8}))
    assert any("rounded to 8 bits, and is not" in f.message for f in verify(store.root))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=64) | st.integers(-(2**16), 2**16).map(float), min_size=1), st.integers(8, 52))
def test_rounding_a_fraction(values: list[float], bits: int) -> None:
    given_, found = np.array(values), round_fraction(np.array(values), bits)
    normal = np.isfinite(given_) & (np.abs(given_) < 1e308) & (np.abs(given_) > 1e-300)
    assert (np.abs(found - given_)[normal] <= 2.0 ** -(bits + 1) * np.abs(given_)[normal]).all()
    odd = ~np.isfinite(given_) | (given_ == 0)
    assert np.array_equal(found[odd], given_[odd], equal_nan=True)
    whole = (given_ == np.rint(given_)) & (np.abs(given_) <= 2**8)
    assert np.array_equal(found[whole], given_[whole])
    np.testing.assert_array_equal(round_fraction(found[normal], bits), found[normal])


def member(name: str, **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    content = b"{}"
    found.size = len(content)
    for key, value in changes.items():
        setattr(found, key, value)
    return found, content


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside.json")],
        [member("/etc/outside.json")],
        [member("cells/../../outside.json")],
        [member(f"{CELL}/record.json/../../../outside.json")],
        [member(f"{CELL}/notes.html")],
        [member("cells/0123/record.json")],
        [member(f"{CELL}/record.json", type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0)],
        [member(f"{CELL}/record.json", type=tarfile.LNKTYPE, linkname="suite.json", size=0)],
        [member(f"{CELL}/record.json", type=tarfile.FIFOTYPE, size=0)],
        [member("suite.json"), member("suite.json")],
    ],
)
def test_nothing_else_is_unpacked(members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "in" / "a.tar.xz"
    path.parent.mkdir()
    with tarfile.open(path, "w:xz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content[: info.size]))
    with pytest.raises(IntegrityError):
        Store.open(path)
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p != path]
    assert left == []


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def turned(content: bytes) -> bytes:
    return content[:400] + bytes([content[400] ^ 255]) + content[401:]


@pytest.mark.parametrize("damage", [cut, turned, lambda _: b"", lambda _: b"no archive"])
def test_a_damaged_file_is_said_to_be(
    damage: Callable[[bytes], bytes], results: Path, tmp_path: Path, cache: Path
) -> None:
    made = pack(Store.open(results), tmp_path / "a.tar.xz")
    made.path.write_bytes(damage(made.path.read_bytes()))
    with pytest.raises(SparseBenchError):
        Store.open(made.path)
    assert not list((cache / "unpacked").iterdir())


def test_a_flipped_bit_never_makes_a_pack_shorter(results: Path, tmp_path: Path, cache: Path) -> None:
    made = pack(Store.open(results), tmp_path / "a.tar.xz")
    whole, content = set(Store.open(made.path).ids()), made.path.read_bytes()
    draws = random.Random(0)
    for _ in range(60):
        at, bit = draws.randrange(len(content)), 1 << draws.randrange(8)
        made.path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        try:
            assert set(Store.open(made.path).ids()) == whole, (at, bit)
        except IntegrityError:
            continue


def test_nothing_follows_the_end_of_the_archive(results: Path, tmp_path: Path, cache: Path) -> None:
    made = pack(Store.open(results), tmp_path / "a.tar.xz")
    plain = bytearray(lzma.decompress(made.path.read_bytes()))
    second = 512 + -(-int(plain[124:135], 8) // 512) * 512
    plain[second + 148] ^= 1  # the checksum of the second header, which tarfile takes for the end
    made.path.write_bytes(lzma.compress(bytes(plain)))
    with pytest.raises(IntegrityError, match="not a whole packed results file"):
        Store.open(made.path)


def test_what_unpacks_to_too_much_is_refused(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pack(Store.open(results), tmp_path / "a.tar.xz")
    monkeypatch.setattr(packing, "LARGEST", 1000)
    with pytest.raises(IntegrityError, match="more than"):
        Store.open(made.path)


def test_another_ending_and_empty_folders_are_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "empty")
    with pytest.raises(InputError, match=r"tar\.xz"):
        pack(store, tmp_path / "a.zip")
    with pytest.raises(InputError, match="no cells"):
        pack(store, tmp_path / "a.tar.xz")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("declared", [64 << 20, 64 << 30])
def test_headers_that_declare_much_are_not_read(kind: bytes, declared: int, tmp_path: Path, cache: Path) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, declared
    path = tmp_path / "a.tar.xz"
    with lzma.open(path, "wb", preset=1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(IntegrityError, match="of headers"):
        Store.open(path)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert not list((cache / "unpacked").iterdir())


def test_long_headers_of_other_packers_are_read(results: Path, tmp_path: Path) -> None:
    made = pack(Store.open(results), tmp_path / "a.tar.xz")
    other = tmp_path / "b.tar.xz"
    with (
        tarfile.open(made.path) as archive,
        tarfile.open(other, "w:xz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 5000}) as again,
    ):
        for info in archive:
            info.pax_headers = {"mtime": "1.5", "comment": "y" * 3000}
            again.addfile(info, archive.extractfile(info))
    assert Store.open(other).ids() == Store.open(made.path).ids()


def removed(cell: Path) -> None:
    shutil.rmtree(cell)


def emptied(cell: Path) -> None:
    (cell / "samples.parquet").unlink()


def edited(cell: Path) -> None:
    record = cell / "record.json"
    record.write_bytes(record.read_bytes().replace(b"1", b"2"))


@pytest.mark.parametrize("harm", [removed, emptied, edited])
def test_what_the_cache_lost_is_unpacked_again(harm: Callable[[Path], None], results: Path, tmp_path: Path) -> None:
    made = pack(Store.open(results), tmp_path / "a.tar.xz")
    store = Store.open(made.path)
    before = {path.name: path.stat().st_mtime_ns for path in store.cells_folder.iterdir()}
    assert Store.open(made.path).root == store.root
    assert {path.name: path.stat().st_mtime_ns for path in store.cells_folder.iterdir()} == before
    cell = store.cells_folder / store.ids()[0]
    content = (cell / "record.json").read_bytes()
    harm(cell)
    assert Store.open(made.path).ids() == sorted(before)
    assert (cell / "record.json").read_bytes() == content
    assert (cell / "samples.parquet").is_file() == (json.loads(content)["samples_sha256"] is not None)
    assert [path.name for path in store.root.parent.iterdir()] == [store.root.name]
