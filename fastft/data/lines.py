"""Lines of a stream that take little memory however long they are, and what the first bytes of a file say it is."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from itertools import chain
from typing import IO

from fastft.errors import DataError, Problem, Where

MAX_ROW_BYTES = 8 * 2**20
_SKIPPED_BYTES = 2**20
# A file with a row of this many times the limit, or with this many empty lines together, is damaged, or made to take
# hours: it is not read to its end.
_HOPELESS_ROWS = 16
_HOPELESS_LINES = 1_000_000
# How a file begins that is not what its name says, and what to do with it. The longest that fits is right.
_BEGINNINGS = {
    b"\x1f\x8b": ("is compressed with gzip", "add .gz to its name"),
    b"\x28\xb5\x2f\xfd": ("is compressed with Zstandard", "add .zst to its name"),
    b"PAR1": ("is a Parquet file", "name it .parquet"),
    b"ARROW1": ("is an Arrow file", "write it as Parquet"),
    b"PK\x03\x04": ("is a ZIP archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    b"BZh": ("is compressed with bzip2", "unpack it"),
    b"\xfd7zXZ": ("is compressed with xz", "unpack it"),
    b"version https://git-lfs": ("is a pointer of Git LFS, not the file", "run `git lfs pull`"),
    b"<!doctype": ("is a web page, not data", "download the file itself"),
    b"<html": ("is a web page, not data", "download the file itself"),
    codecs.BOM_UTF16_LE: ("is UTF-16 text", "save it as UTF-8"),
    codecs.BOM_UTF16_BE: ("is UTF-16 text", "save it as UTF-8"),
    codecs.BOM_UTF32_LE: ("is UTF-32 text", "save it as UTF-8"),
    codecs.BOM_UTF32_BE: ("is UTF-32 text", "save it as UTF-8"),
}
LONGEST_BEGINNING = max(map(len, _BEGINNINGS))


def lines_of(stream: IO[bytes], limit: int, shown: str, head: bytes = b"") -> Iterator[bytes]:
    """Each line of `head` and then of `stream`; of a line with more than `limit` bytes only the first of them.

    Such a line has more than `limit` bytes here too, so that a reader sees that it is not whole.

    Raises:
        DataError: a line has no end within reach, or a million lines together are empty.
    """
    lines = io.BytesIO(head).readlines()
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += stream.readline(limit + 1)
    empty = 0
    for number, line in enumerate(chain(lines, iter(lambda: stream.readline(limit + 1), b"")), start=1):
        yield line if len(line) <= limit else line[: limit + 1]
        rest, skipped = line, 0
        while len(line) > limit and rest and not rest.endswith(b"\n"):
            rest = stream.readline(_SKIPPED_BYTES)
            skipped += len(rest)
            if skipped > _HOPELESS_ROWS * limit:
                wrong = f"the row takes more than data.max_row_bytes ({mebibytes(limit)}), and has no end within"
                wrong += f" {mebibytes(skipped)}"
                raise DataError(Problem(Where(shown, number), "", wrong, "is this the right file? write it again"))
        empty = empty + 1 if len(line) < 3 and line.isspace() else 0
        if empty == _HOPELESS_LINES:
            wrong = f"{_HOPELESS_LINES:,} empty lines follow each other"
            raise DataError(Problem(Where(shown, number), "", wrong, "remove them, if this is the right file"))


def wrong_kind(head: bytes, where: Where) -> Problem | None:
    """What is wrong with a text file that begins with `head`, or None."""
    lowered = head.lstrip(b" \t\r\n").lower()
    fits = [start for start in _BEGINNINGS if head.startswith(start) or lowered.startswith(start)]
    if fits:
        return Problem(where, "", *_BEGINNINGS[max(fits, key=len)])
    if head.startswith(b"\0\0"):
        return Problem(where, "", "begins with NUL bytes: it is damaged, or no text", "write it again")
    if b"\0" in head[:2] or head[1:4:2] == b"\0\0":
        return Problem(where, "", "is UTF-16 text, or no text", "save it as UTF-8")
    return None


def too_large(where: Where, limit: int, size: int | None = None) -> Problem:
    """The problem of a row with more than `limit` bytes."""
    takes = "takes" if size is None else f"has {mebibytes(size)},"
    wrong = f"the row {takes} more than data.max_row_bytes ({mebibytes(limit)})"
    return Problem(where, "", wrong, "divide it into rows of its parts, or raise data.max_row_bytes")


def mebibytes(size: int) -> str:
    """A size as MiB, or as bytes below one."""
    return f"{size / 2**20:,.4g} MiB" if size >= 2**20 else f"{size:,} bytes"
