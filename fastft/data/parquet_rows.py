"""Rows of Parquet files, in batches whose memory is bounded: a file of 1 KB can hold rows of 1 GB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from fastft.data.json_rows import Row
from fastft.data.lines import too_large
from fastft.data.values import without_null_keys
from fastft.errors import DataError, MachineError, Problem, Where

# A row group can be as large as the file, and Python objects take much memory.
BATCH_ROWS = 1000
BATCH_BYTES = 64 * 2**20


def arrow(needed_by: str) -> Any:
    """pyarrow, imported only when a file needs it.

    Raises:
        MachineError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        wrong = f"{needed_by} need the package pyarrow"
        raise MachineError(Problem(Where("this machine"), "", wrong, 'pip install "fastft[train]"')) from error
    return pyarrow


def read_parquet(stream: IO[bytes], shown: str, max_row_bytes: int) -> Iterator[Row]:
    """The rows of a Parquet file; the line of a row is its number from 1.

    Raises:
        DataError: it is none, or its rows are larger than `max_row_bytes` on average.
    """
    pyarrow = arrow("Parquet files")
    try:
        file = pyarrow.parquet.ParquetFile(stream)
        _refuse_large_groups(file.metadata, shown, max_row_bytes)
        number = 0
        for batch in file.iter_batches(batch_size=_batch_rows(file)):
            large = _large_rows(batch, max_row_bytes) if batch.nbytes > max_row_bytes else {}
            for place, row in enumerate(batch.to_pylist() if not large else _one_by_one(batch, large)):
                number += 1
                where = Where(shown, number)
                if place in large:
                    yield where, too_large(where, max_row_bytes, large[place])
                else:
                    yield where, {name: without_null_keys(value) for name, value in row.items()}
    except pyarrow.ArrowInvalid as error:
        wrong = f"not a Parquet file: {' '.join(str(error).split())[:200]}"
        raise DataError(Problem(Where(shown), "", wrong, "write it again")) from error


def _refuse_large_groups(metadata: Any, shown: str, max_row_bytes: int) -> None:
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        if group.total_byte_size > max_row_bytes * max(1, group.num_rows):
            raise DataError(too_large(Where(shown), max_row_bytes, group.total_byte_size // max(1, group.num_rows)))


def _batch_rows(file: Any) -> int:
    """How many rows to read at once, by the size of the first: a dictionary can make many large rows of one value."""
    first = next(file.iter_batches(batch_size=1), None)
    return BATCH_ROWS if first is None else max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, first.nbytes)))


def _large_rows(batch: Any, max_row_bytes: int) -> dict[int, int]:
    """The sizes in bytes of the rows of a batch that are too large, by their place."""
    sizes = {place: batch.slice(place, 1).nbytes for place in range(len(batch))}
    return {place: size for place, size in sizes.items() if size > max_row_bytes}


def _one_by_one(batch: Any, large: dict[int, int]) -> Iterator[dict[str, Any]]:
    for place in range(len(batch)):
        yield {} if place in large else batch.slice(place, 1).to_pylist()[0]
