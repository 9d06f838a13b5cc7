"""Samples are read as pyarrow reads them, and files that unfold to gigabytes are not."""

from __future__ import annotations

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsebench import sample_tables
from sparsebench.errors import IntegrityError
from sparsebench.sample_tables import read_table


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
