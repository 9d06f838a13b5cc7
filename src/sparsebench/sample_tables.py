"""Reading the samples of a cell, which may be a stranger's: a file of kilobytes can declare gigabytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

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
            return file.read(use_threads=False)
        # Texts that come again are stored once: how much they are in memory is known when they are there.
        batches, size = [], 0
        for batch in file.iter_batches(AT_ONCE, use_threads=False):
            size += batch.nbytes
            _check(name, 0, size)
            batches.append(batch)
        return pa.Table.from_batches(batches, file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IntegrityError(f"{name} cannot be read ({error})") from None


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
