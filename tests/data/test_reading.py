import bz2
import functools
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.data.reading import read_rows, read_text
from sparsebench.errors import InputError, IntegrityError, MissingError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
rows_strategy = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=5)


@given(rows_strategy, st.sampled_from(["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.json.bz2"]))
def test_rows_come_back_as_they_were(tmp_path_factory, rows, name):
    path = tmp_path_factory.mktemp("rows") / name
    # Without escapes, so that strings hold U+2028 and form feeds, which end no line.
    dump = functools.partial(json.dumps, ensure_ascii=False)
    text = "".join(f"{dump(row)}\n" for row in rows) if ".jsonl" in name else dump(rows)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))
    assert read_rows(path) == rows


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_tables_and_text(tmp_path):
    assert read_rows(write(tmp_path, "a.csv", 'q,a\r\n"x, ""y""\nz",1\r\n\r\n')) == [{"q": 'x, "y"\nz', "a": "1"}]
    assert read_rows(write(tmp_path, "b.csv", "x,1\n"), columns=["q", "a"]) == [{"q": "x", "a": "1"}]
    assert read_rows(write(tmp_path, "c.tsv", "q\ta\nx,y\t1\n")) == [{"q": "x,y", "a": "1"}]
    assert read_rows(write(tmp_path, "d.txt", "one\n\ntwo\x0cstill two")) == [
        {"text": "one"},
        {"text": ""},
        {"text": "two\x0cstill two"},
    ]
    assert read_rows(write(tmp_path, "e.txt", "")) == []
    assert read_rows(write(tmp_path, "f.json", '{"examples": [{"a": 1}]}'), key="examples") == [{"a": 1}]
    assert read_text(write(tmp_path, "g.txt", b"\xef\xbb\xbfa\r\nb")) == "a\nb"


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "a", "n": [1, 2]}, {"text": "b", "n": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == rows
    with pytest.raises(IntegrityError, match="damaged"):
        read_rows(write(tmp_path, "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-20]))


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2: no JSON"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', "a.jsonl:3: a list, not an object"),
        ("a.jsonl", '{"a": NaN}\n', "a.jsonl:1: no JSON: NaN"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: no JSON"),
        ("a.json", '[{"a": 1},\n{"a": }]', "a.json:2: no JSON"),
        ("a.json", '{"b": [], "c": 1}', "is an object, not a list of rows"),
        ("a.json", "[1]", "row 1 is a int"),
        ("a.csv", "a,b\n1,2\n1\n", "a.csv:3: 1 cells, but 2 columns"),
        ("a.csv", 'a,b\n"1,2\n', "a.csv:2: no CSV"),
        ("a.csv", "a,a\n1,2\n", "a.csv:1: a column name occurs twice"),
        ("a.xml", "<a/>", "unknown ending '.xml'"),
    ],
)
def test_errors_name_file_and_line(tmp_path, name, text, where):
    with pytest.raises(InputError) as error:
        read_rows(write(tmp_path, name, text))
    assert where in error.value.message
    assert str(tmp_path / name) in error.value.message


def test_a_missing_key_names_those_that_are_there(tmp_path):
    with pytest.raises(InputError, match="has no 'x'") as error:
        read_rows(write(tmp_path, "a.json", '{"b": [], "c": 1}'), key="x")
    assert "'b', 'c'" in str(error.value.hint)


@pytest.mark.parametrize("ending", ["gz", "bz2"])
def test_compressed_files_cut_short(tmp_path, ending):
    pack = gzip.compress if ending == "gz" else bz2.compress
    content = pack(b'{"a": 1}\n' * 10_000)
    overwritten = content[:40] + b"\xff" * 8 + content[48:]
    for damaged in (content[: len(content) // 2], content[:-3], b"no archive", overwritten):
        with pytest.raises(IntegrityError, match="cut short or damaged"):
            read_rows(write(tmp_path, f"a.jsonl.{ending}", damaged))


def test_bytes_that_are_no_text(tmp_path):
    with pytest.raises(IntegrityError, match=r"a\.txt:2: no UTF-8"):
        read_text(write(tmp_path, "a.txt", b"fine\n\xff\n"))
    with pytest.raises(MissingError):
        read_text(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path)
