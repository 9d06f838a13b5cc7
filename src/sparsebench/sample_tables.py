"""Reading the samples of a cell, which may be a stranger's: a file of kilobytes can declare gigabytes.

In packed results a column that equals another one wherever it has a value (the answers to some of the questions) is
stored as where it has one: a column of bools, called `a where b` of column `a` that is `b`, and named so in its
metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sparsebench.errors import IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST = 10_000_000
"""Values that a column may hold."""
LARGEST = 2 * 2**30
"""Bytes that a table may take in memory."""
AT_ONCE = 4096
"""Rows that are read before they are measured."""
TEXT = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
NAME, SOURCE = b"sparsebench.column", b"sparsebench.equals"
"""Metadata of a column that is stored as where another one is equal to it."""


def read_table(content: bytes, name: str) -> pa.Table:
    """The table that a Parquet file holds.

    Args:
        content: The file.
        name: What messages call it.

    Raises:
        IntegrityError: It is no Parquet file, or it holds more than samples need.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
        chunks = list(_chunks(file.metadata))
        _check(name, max((chunk.num_values for chunk in chunks), default=0), sum(map(_stored, chunks)))
        if sum(map(_at_most, chunks)) <= LARGEST:
            return _restored(file.read(use_threads=False), name)
        # Texts that come again are stored once: how much they are in memory is known when they are there.
        batches, size = [], 0
        for batch in file.iter_batches(AT_ONCE, use_threads=False):
            size += batch.nbytes
            _check(name, 0, size)
            batches.append(batch)
        return _restored(pa.Table.from_batches(batches, file.schema_arrow), name)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IntegrityError(f"{name} cannot be read ({error})") from None


def shortened(table: pa.Table) -> pa.Table:
    """The table with columns stored as where they equal one before them, if that says all; `read_table` undoes it."""
    import numpy as np
    import pyarrow as pa

    kept: dict[str, Any] = {}
    for place, field in enumerate(table.schema):
        if field.type != pa.float64():
            continue
        values = table.column(place).to_numpy()
        has, bits = ~np.isnan(values), values.view(np.uint64)
        equal = (name for name, of in kept.items() if not has.all() and (of[has] == bits[has]).all())
        if (source := next(equal, None)) is None:
            kept[field.name] = bits
            continue
        names = {NAME: field.name.encode(), SOURCE: source.encode()}
        mask = pa.field(f"{field.name} where {source}", pa.bool_(), metadata=names)
        table = table.set_column(place, mask, pa.array(has))
    return table


def _restored(table: pa.Table, name: str) -> pa.Table:
    """The table with its columns as they were before `shortened`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for place, field in enumerate(table.schema):
        known = field.metadata or {}
        if NAME not in known and SOURCE not in known:
            continue
        column, source = (known.get(key, b"").decode(errors="replace") for key in (NAME, SOURCE))
        if field.type != pa.bool_() or not column or column in table.column_names or source not in table.column_names:
            raise IntegrityError(f"{name} has a column {field.name!r} that equals none of the others")
        values = table.column(source)
        restored = pc.if_else(table.column(place), values, pa.scalar(None, values.type))
        table = table.set_column(place, column, restored)
    return table


def _check(name: str, values: int, size: int) -> None:
    if values > MOST or size > LARGEST:
        raise IntegrityError(
            f"{name} holds more than samples need",
            f"at most {MOST:,} rows and {LARGEST >> 30} GiB in memory are read",
        )


def _chunks(metadata: pq.FileMetaData) -> Iterator[pq.ColumnChunkMetaData]:
    """The parts of the columns; there are few of them."""
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group)
        for column in range(rows.num_columns):
            yield rows.column(column)


def _stored(chunk: pq.ColumnChunkMetaData) -> int:
    return int(chunk.total_uncompressed_size)


def _at_most(chunk: pq.ColumnChunkMetaData) -> int:
    """Bytes that it can take in memory: each value of a text may be as long as all that is stored."""
    if chunk.physical_type not in TEXT:
        return 16 * int(chunk.num_values)
    repeated = any(encoding.endswith("DICTIONARY") or encoding.startswith("DELTA") for encoding in chunk.encodings)
    return (int(chunk.num_values) if repeated else 1) * _stored(chunk) + 8 * int(chunk.num_values)
