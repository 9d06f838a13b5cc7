"""Samples are read as pyarrow reads them, and files that unfold to gigabytes are not."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench import sample_tables
from sparsebench.errors import IntegrityError
from sparsebench.sample_tables import read_table, shortened


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def samples(rows: int, text: str = "an answer") -> pa.Table:
    frame = pd.DataFrame({"sample": [str(i) for i in range(rows)], "correct": 1.0, "response": text})
    return pa.Table.from_pandas(frame, preserve_index=False)


@pytest.mark.parametrize("largest", [sample_tables.LARGEST, 400_000])
@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_a_table_is_read_whole(rows: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_tables, "LARGEST", largest)
    table = samples(rows)
    read = read_table(parquet(table, row_group_size=1000), "samples")
    assert read.equals(table)
    pd.testing.assert_frame_equal(read.to_pandas(), table.to_pandas())


@pytest.mark.parametrize(
    ("table", "name", "limit"),
    [
        (samples(5000), "MOST", 4999),
        (pa.table({"sample": ["a"], "lists": [[1] * 5000]}), "MOST", 4999),
        (samples(5000), "LARGEST", 30_000),  # as it is stored
        (samples(5000, "x" * 10_000), "LARGEST", 2_000_000),  # stored once, and five thousand times in memory
    ],
    ids=["rows", "a list of many", "bytes stored", "bytes in memory"],
)
def test_what_is_too_large_is_refused(table: pa.Table, name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = parquet(table, compression="zstd")
    assert read_table(content, "samples").equals(table)
    monkeypatch.setattr(sample_tables, name, limit)
    with pytest.raises(IntegrityError, match="samples holds more than samples need"):
        read_table(content, "samples")


@pytest.mark.parametrize("content", [b"", b"PAR1", parquet(samples(3))[:-9]])
def test_what_is_no_parquet_file_is_an_error(content: bytes) -> None:
    with pytest.raises(IntegrityError, match="samples cannot be read"):
        read_table(content, "samples")


BITS = st.sampled_from([0.0, 1.0, -0.0, 0.5, math.nan, math.inf])


@given(
    st.integers(0, 6).flatmap(lambda n: st.lists(st.lists(BITS, min_size=n, max_size=n), min_size=1, max_size=4)),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_columns_stored_as_where_they_equal_another_are_read_as_they_were(columns: list[list[float]], gone) -> None:
    answers = {f"column {i}": column for i, column in enumerate(columns)}
    part = [math.nan if missing else x for x, missing in zip(columns[0], gone, strict=False)]
    frame = pd.DataFrame(answers | {"part": part}, dtype="float64")
    table = pa.Table.from_pandas(frame, preserve_index=False)
    read = read_table(parquet(shortened(table)), "samples")
    assert read.column_names == table.column_names
    for name in read.column_names:
        before, after = (t.column(name).to_numpy() for t in (table, read))
        assert after.dtype == before.dtype
        assert ((before.view("uint64") == after.view("uint64")) | (np.isnan(before) & np.isnan(after))).all()
    if any(gone[: len(part)]):
        assert shortened(table).schema.names[-1] != "part"


def test_a_column_that_claims_to_equal_what_is_not_there_is_an_error() -> None:
    for column, source, values in (("b", "c", [True]), ("a", "a", [True]), ("", "a", [True]), ("b", "a", [1.0])):
        names = {sample_tables.NAME: column.encode(), sample_tables.SOURCE: source.encode()}
        schema = pa.schema([pa.field("a", pa.float64()), pa.field("odd", pa.array(values).type, metadata=names)])
        content = parquet(pa.table([pa.array([1.0]), pa.array(values)], schema=schema))
        with pytest.raises(IntegrityError, match="'odd' that equals none"):
            read_table(content, "samples")
