import bz2
import gzip
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.data.digests import check_sha256, content_hash, sha256_content, sha256_tree
from sparsebench.errors import InputError, IntegrityError, MissingError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
row = st.dictionaries(st.text(), scalars, min_size=1, max_size=5)


@given(row, st.randoms())
def test_the_order_of_keys_plays_no_part(row, random):
    keys = list(row)
    random.shuffle(keys)
    assert content_hash([{key: row[key] for key in keys}]) == content_hash([row])


@given(row, st.text(), scalars)
def test_any_change_changes_the_hash(row, key, value):
    changed = {**row, key: value}
    same = key in row and repr(row[key]) == repr(value)
    assert (content_hash([changed]) == content_hash([row])) == same
    assert content_hash([row, row]) != content_hash([row])


def test_a_golden_hash():
    # printf '[{"a":1,"b":"é"}]' | sha256sum
    golden = hashlib.sha256('[{"a":1,"b":"é"}]'.encode()).hexdigest()
    assert content_hash([{"b": "é", "a": 1}]) == golden


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), b"bytes", {1: "x"}, {"a": {2: "x"}}, {1}])
def test_what_json_lacks_is_refused(bad):
    with pytest.raises(InputError, match="cannot be hashed"):
        content_hash([{"a": bad}])


def test_compressed_data_has_the_hash_of_its_content(tmp_path):
    content = b"text\n" * 100
    for name, pack in {"a.txt": bytes, "a.txt.gz": gzip.compress, "a.txt.bz2": bz2.compress}.items():
        path = tmp_path / name
        path.write_bytes(pack(content))
        assert sha256_content(path) == hashlib.sha256(content).hexdigest()
        assert check_sha256(path, hashlib.sha256(path.read_bytes()).hexdigest().upper(), "it") == sha256_content(path)
    (tmp_path / "a.txt.gz").write_bytes((tmp_path / "a.txt.gz").read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="cut short"):
        sha256_content(tmp_path / "a.txt.gz")
    with pytest.raises(IntegrityError, match=r"it has sha256 .*, expected 00"):
        check_sha256(tmp_path / "a.txt", "0" * 64, "it")
    with pytest.raises(MissingError):
        sha256_content(tmp_path / "nothing")


def test_a_folder_is_its_files_and_their_names(tmp_path):
    def folder(name, files):
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(content)
        return sha256_tree(tmp_path / name)

    one = folder("one", {"a": "1", "b/c": "2"})
    assert folder("two", {"b/c": "2", "a": "1", ".hidden": "x", "__pycache__/d": "y"}) == one
    assert folder("three", {"a": "1", "b/d": "2"}) != one
    assert folder("four", {"a": "1", "b/c": "3"}) != one
