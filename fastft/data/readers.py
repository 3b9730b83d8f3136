"""Read rows of files and Hub datasets, one at a time, each with its file and line.

A row that cannot be read is a `Problem` in its place, so that the caller can count it, list it and continue; a file
that cannot be read at all is a `DataError`.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

from fastft.data.json_rows import UTF8_BOM, Row, read_json, read_json_lines
from fastft.data.lines import LONGEST_BEGINNING, MAX_ROW_BYTES, lines_of, too_large, wrong_kind
from fastft.data.parquet_rows import arrow, read_parquet
from fastft.errors import DataError, Problem, Where, nearest

FILE_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
# "org/name", "org/name:split" or "org/name/configuration:split".
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.%\[\]:-]+)?")


def file_kind(path: str) -> str | None:
    """The extension of `path` without compression, or None when fastft cannot read it."""
    name = path.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((kind for kind in FILE_KINDS if name.endswith(kind)), None)


def is_hub_data(source: str, recipe_dir: Path) -> bool:
    """Whether `source` is a Hub dataset rather than files: it looks like an id, and there is no such path."""
    if file_kind(source) or any(character in source for character in "*?\\") or source.startswith((".", "/", "~")):
        return False
    return HUB_ID.fullmatch(source) is not None and not (recipe_dir / source).exists()


def find_files(source: str, recipe_dir: Path, field: str = "data.train") -> list[Path]:
    """The files of `source` (a path, a glob, or a folder of data files, relative to the recipe), sorted.

    Raises:
        DataError: there are no files, or one is not a kind of file that fastft reads.
    """
    path = recipe_dir / Path(source).expanduser()
    if path.exists() and not path.is_file() and not path.is_dir():
        wrong, instead = "is a pipe or a device: rows are read several times", "write them into a file"
        raise DataError(Problem(Where(_shown(path)), field, wrong, instead))
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(child for child in path.iterdir() if child.is_file() and file_kind(child.name))
    else:
        # Path.glob does not accept an absolute pattern.
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not files:
        raise DataError(_nothing_found(source, path, field))
    for file in files:
        if file_kind(file.name) is None:
            wrong, instead = "not a kind of file that fastft reads", f"use one of {', '.join(FILE_KINDS)}"
            raise DataError(Problem(Where(_shown(file)), field, wrong, instead))
    return files


def read_rows(
    source: str, recipe_dir: Path, field: str = "data.train", max_row_bytes: int = MAX_ROW_BYTES
) -> Iterator[Row]:
    """Every row of `source`, streamed: `(where, columns)`, or `(where, problem)` for a row that cannot be read.

    Raises:
        DataError: the source or one of its files cannot be read at all, or has no rows.
        MachineError: the Hub cannot be reached, or `datasets` is not installed.
    """
    if is_hub_data(source, recipe_dir):
        from fastft.data.hub import read_hub_rows

        yield from read_hub_rows(source, field)
        return
    for file in find_files(source, recipe_dir, field):
        yield from read_file(file, max_row_bytes)


def read_file(file: Path, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row]:
    """Every row of one file; one with more than `max_row_bytes` is a problem, and is not parsed.

    Raises:
        DataError: the file is empty, damaged, or not of the kind that its name says.
    """
    kind = file_kind(file.name)
    shown = _shown(file)
    reader = {".csv": _read_csv, ".json": read_json, ".parquet": read_parquet}.get(kind or "", read_json_lines)
    rows = 0
    try:
        with _open(file) as stream:
            head = stream.peek(LONGEST_BEGINNING)
            right = reader is read_parquet and head.startswith(b"PAR1")
            problem = None if right else wrong_kind(head, Where(shown))
            if problem is not None:
                raise DataError(problem)
            for row in reader(stream, shown, max_row_bytes):
                rows += 1
                yield row
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(Problem(Where(shown), "", f"cannot be read: {error}", "check the file")) from error
    if rows == 0:
        raise DataError(Problem(Where(shown), "", "has no rows", "use a file with at least one row"))


def count_rows(
    source: str, recipe_dir: Path, field: str = "data.train", max_row_bytes: int = MAX_ROW_BYTES
) -> int | None:
    """How many rows `source` has, broken ones too, without parsing JSON lines; None for Hub data not in the cache.

    Raises:
        DataError: as `read_rows`.
    """
    if is_hub_data(source, recipe_dir):
        from fastft.data.hub import count_cached_rows

        return count_cached_rows(source)
    total = 0
    for file in find_files(source, recipe_dir, field):
        kind = file_kind(file.name)
        if kind == ".parquet":
            total += arrow("Parquet files").parquet.ParquetFile(file).metadata.num_rows
        elif kind in (".jsonl", ".ndjson"):
            with _open(file) as stream:
                lines = lines_of(stream, max_row_bytes, _shown(file))
                total += sum(1 for line in lines if line.strip(b" \t\r\n\xef\xbb\xbf"))
        else:
            total += sum(1 for _ in read_file(file, max_row_bytes))
    return total


def joint_digest(digests: Sequence[str]) -> str:
    """The only one of `digests`, or the SHA-256 in hex of several in order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _open(file: Path) -> io.BufferedReader:
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rb")  # type: ignore[return-value]  # GzipFile reads and peeks as a BufferedReader does
    if file.name.lower().endswith(".zst"):
        # Arrow brings zstd, which Python has only from 3.14 on.
        return io.BufferedReader(arrow("Zstandard files").input_stream(str(file), compression="zstd"))
    return file.open("rb")


def _shown(file: Path) -> str:
    """The path to show: relative where the file is below the current directory."""
    absolute = os.path.abspath(file)  # noqa: PTH100 -- Path.resolve would follow links and show another name
    below = os.path.relpath(absolute)
    return absolute if below.startswith("..") else below


def _nothing_found(source: str, path: Path, field: str) -> Problem:
    folder = path.parent
    if any(character in source for character in "*?["):
        return Problem(Where(source), field, "no file matches", f"write a path or glob that matches files in {folder}")
    if not folder.is_dir():
        wrong = f"no such file, and no folder {folder}"
        return Problem(Where(source), field, wrong, "paths are relative to the recipe")
    if path.is_symlink():
        return Problem(Where(source), field, "is a link that leads to no file", "correct the link")
    if path.is_dir():
        wrong = "the folder has no file of rows"
        return Problem(Where(source), field, wrong, f"put one of {', '.join(FILE_KINDS)} there")
    near = nearest(path.name, (child.name for child in folder.iterdir()))
    instead = f"did you mean {near}?" if near else f"write the name of a file in {folder}"
    return Problem(Where(source), field, "no such file", instead)


def _read_csv(stream: IO[bytes], shown: str, max_row_bytes: int) -> Iterator[Row]:
    csv.field_size_limit(max_row_bytes)  # the default of 128 KiB is shorter than a long document
    lines = _csv_lines(stream, shown, max_row_bytes)
    header = next(lines, "")
    _refuse_other_separator(header, shown)
    reader = csv.reader(chain([header], lines), strict=True)
    columns: list[str] | None = None
    start = 1
    while True:
        where = Where(shown, start)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            wrong = f"not CSV: {error}"
            raise DataError(Problem(where, "", wrong, "quote the cell, and double quotes in it")) from error
        if cells is None:
            return
        start = reader.line_num + 1
        if not cells:
            continue
        if columns is None:
            columns = cells
            doubled = sorted({name for name in columns if columns.count(name) > 1})
            if doubled:
                wrong, got = "two columns have one name", ", ".join(doubled)
                raise DataError(Problem(where, "", wrong, "rename one of them", got=got))
            continue
        size = sum(map(len, cells))
        yield where, _csv_row(where, columns, cells) if size <= max_row_bytes else too_large(where, max_row_bytes, size)


def _refuse_other_separator(header: str, shown: str) -> None:
    """Raise DataError where the names in the first line are separated by another sign than a comma."""
    outside = re.sub(r'"[^"]*"', "", header)
    separator = next((mark for mark in ";\t|" if mark in outside and "," not in outside), None)
    if separator is not None:
        wrong = f"the columns are separated by {'a tab' if separator.isspace() else separator}, not by a comma"
        got = header.strip()[:60]
        raise DataError(Problem(Where(shown, 1), "", wrong, "save it with commas", got=got))


def _csv_lines(stream: IO[bytes], shown: str, max_row_bytes: int) -> Iterator[str]:
    """The lines of a CSV file as text.

    Raises:
        DataError: one is too large; where the next row begins is then unknown.
    """
    for number, line in enumerate(lines_of(stream, max_row_bytes, shown), start=1):
        if len(line) > max_row_bytes:
            raise DataError(too_large(Where(shown, number), max_row_bytes))
        yield (line.removeprefix(UTF8_BOM) if number == 1 else line).decode("utf-8", "surrogateescape")


def _csv_row(where: Where, columns: list[str], cells: list[str]) -> dict[str, Any] | Problem:
    if len(cells) != len(columns):
        wrong = f"the row has {len(cells)} cells, the header names {len(columns)} columns"
        return Problem(where, "", wrong, "quote cells that contain a comma or a line break")
    for name, cell in zip(columns, cells, strict=True):
        if not cell.isascii():
            try:
                cell.encode("utf-8")
            except UnicodeEncodeError:
                return Problem(where, name, "not valid UTF-8", "save the file as UTF-8")
    return dict(zip(columns, cells, strict=True))
