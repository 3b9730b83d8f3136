"""Rows of JSON: one object a line, or the objects of one array, streamed."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from fastft.data.lines import MAX_ROW_BYTES, lines_of, mebibytes, too_large
from fastft.errors import DataError, Problem, Where

Row = tuple[Where, "dict[str, Any] | Problem"]

UTF8_BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 2**16
# An error within this many characters of the end may come from a value that is cut off, such as half an escape.
UNFINISHED_CHARACTERS = 12


def read_json_lines(
    stream: IO[bytes], shown: str, max_row_bytes: int = MAX_ROW_BYTES, *, head: bytes = b""
) -> Iterator[Row]:
    """The object, or the problem, of each line of `head` and `stream` that is not blank.

    Raises:
        DataError: the lines are those of a JSON array.
    """
    for number, raw in enumerate(lines_of(stream, max_row_bytes, shown, head), start=1):
        line = raw.removeprefix(UTF8_BOM) if number == 1 else raw
        if len(raw) <= max_row_bytes and (line.isspace() or not line):
            continue
        where = Where(shown, number)
        if number == 1 and _ARRAY.match(line):
            raise DataError(Problem(where, "", "holds a JSON array, not one object a line", "name the file .json"))
        if len(raw) > max_row_bytes:
            yield where, too_large(where, max_row_bytes)
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield where, _not_utf8(where, line[error.start], error.start + 1)
        else:
            yield where, _parse(text, where)


def read_json(stream: IO[bytes], shown: str, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row]:
    """The objects of one JSON array, or of JSON lines in a `.json` file.

    Raises:
        DataError: it is neither, an array is broken or holds a row that is too large, because then the start of its
            next row is unknown.
    """
    head = stream.read(CHUNK_BYTES).removeprefix(UTF8_BOM)
    while head.isspace() and len(head) <= max_row_bytes and (more := stream.read(CHUNK_BYTES)):
        head += more
    if head.lstrip().startswith(b"{"):
        if _is_one_object(head):
            raise DataError(_one_object(head, shown))
        yield from read_json_lines(stream, shown, max_row_bytes, head=head)
        return
    text = _Text(stream, head, shown, max_row_bytes)
    text.skip(_SPACE)
    start = text.peek()
    if start and start != "[":
        instead = "write a list of objects, or one object a line in a .jsonl file"
        raise DataError(Problem(Where(shown, 1), "", "not a JSON array of rows", instead, got=text.ahead(20)))
    text.skip(_OPENING)
    while start:
        text.skip(_BETWEEN)
        where = Where(shown, text.line)
        if not text.peek():
            raise DataError(Problem(where, "", "the JSON array is not closed", "is the file complete? end it with ]"))
        if text.peek() == "]":
            return
        value = text.value()
        yield where, value if isinstance(value, dict) else _not_an_object(where, value)


_FIRST_LIST = re.compile(rb'\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*(\{?)')
_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")


def _is_one_object(head: bytes) -> bool:
    """Whether a file that begins with an object is one object over several lines."""
    first = head.lstrip().split(b"\n", 1)
    return len(first) == 2 and first[0].rstrip().endswith((b"{", b"[", b",", b":"))


def _one_object(head: bytes, shown: str) -> Problem:
    found = _FIRST_LIST.match(head)
    wrong = "is one JSON object over several lines"
    if found and found[1] not in (b"messages", b"conversations"):
        name = found[1].decode("utf-8", "replace")
        wrong += f', with its rows inside "{name}"' if found[2] else ", with a list for each column"
    return Problem(Where(shown, 1), "", wrong, "write a list of objects, [{...}, {...}], or one object a line")


_SPACE, _OPENING, _BETWEEN = re.compile(r"\s*"), re.compile(r"\["), re.compile(r"[\s,]*")


class _Text:
    """The text of a stream, read in parts: keeps little more than one value of a file of any size."""

    def __init__(self, stream: IO[bytes], head: bytes, shown: str, max_value_bytes: int) -> None:
        self._stream, self._shown, self._max_value_bytes = stream, shown, max_value_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._at_end = False
        self.line = 1
        # Characters of the line before `_position`, and bytes of the line before the next part.
        self._column = self._bytes = 0
        # Decoded text; the characters from `_position` on are not yet consumed.
        self._buffer, self._position = "", 0
        self._decode(head)

    def peek(self) -> str:
        """The next character, "" at the end."""
        while self._position == len(self._buffer) and not self._at_end:
            self._read_more()
        return self._buffer[self._position : self._position + 1]

    def ahead(self, count: int) -> str:
        """At most the next `count` characters."""
        return self._buffer[self._position : self._position + count].strip()

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Skip what `pattern` matches here."""
        skipped = 0
        while self.peek():
            if skipped > self._max_value_bytes:
                wrong = f"{mebibytes(skipped)} of white space follow each other"
                raise DataError(
                    Problem(Where(self._shown, self.line), "", wrong, "remove it, if this is the right file")
                )
            found = pattern.match(self._buffer, self._position)
            end = found.end() if found else self._position
            skipped += end - self._position
            whole = end == len(self._buffer)
            self._go_to(end)
            if not whole:
                return

    def value(self) -> Any:
        """The JSON value that begins here.

        Raises:
            DataError: there is none.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                near_end = error.pos + UNFINISHED_CHARACTERS > len(self._buffer)
                unfinished = near_end or error.msg.startswith("Unterminated string")
                if self._at_end or not unfinished:
                    line, column = self._place(error.pos)
                    wrong = f"not valid JSON: {error.msg} at column {column}"
                    instead = "write a list of complete JSON objects"
                    raise DataError(Problem(Where(self._shown, line), "", wrong, instead)) from error
            except (ValueError, RecursionError) as error:
                raise DataError(_not_json(Where(self._shown, self.line), error)) from error
            else:
                # A number can continue in the next part.
                if end < len(self._buffer) or self._at_end:
                    self._refuse_large(end)
                    self._go_to(end)
                    return value
            self._refuse_large(len(self._buffer))
            self._read_more()

    def _refuse_large(self, end: int) -> None:
        if end - self._position > self._max_value_bytes:
            raise DataError(too_large(Where(self._shown, self.line), self._max_value_bytes))

    def _go_to(self, position: int) -> None:
        self.line, self._column = self._place(position)
        self._column -= 1
        self._position = position
        if position > CHUNK_BYTES:
            self._buffer, self._position = self._buffer[position:], 0

    def _place(self, position: int) -> tuple[int, int]:
        """The line and column, both from 1, of a position in the buffer at or after the current one."""
        breaks = self._buffer.count("\n", self._position, position)
        if not breaks:
            return self.line, self._column + position - self._position + 1
        return self.line + breaks, position - self._buffer.rfind("\n", 0, position)

    def _read_more(self) -> None:
        """Double what is buffered of one value, so that a long one needs few attempts."""
        self._decode(self._stream.read(max(CHUNK_BYTES, len(self._buffer) - self._position)))

    def _decode(self, raw: bytes) -> None:
        self._at_end = not raw
        waiting = self._decoder.getstate()[0]
        try:
            self._buffer = self._buffer + self._decoder.decode(raw, final=self._at_end)
        except UnicodeDecodeError as error:
            read = waiting + raw
            line = self._place(len(self._buffer))[0] + read.count(b"\n", 0, error.start)
            column = error.start - read.rfind(b"\n", 0, error.start)
            column += 0 if b"\n" in read[: error.start] else self._bytes - len(waiting)
            raise DataError(_not_utf8(Where(self._shown, line), read[error.start], column)) from error
        self._bytes = len(raw) - raw.rfind(b"\n") - 1 if b"\n" in raw else self._bytes + len(raw)


def _parse(text: str, where: Where) -> dict[str, Any] | Problem:
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return _not_json(where, error)
    return value if isinstance(value, dict) else _not_an_object(where, value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{doubled}" is in one object twice')
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _not_json(where: Where, error: ValueError | RecursionError) -> Problem:
    if isinstance(error, RecursionError):
        return Problem(where, "", "the JSON is nested too deeply to be a row", "write one plain object a line")
    if isinstance(error, json.JSONDecodeError):
        wrong = f"not valid JSON: {error.msg} at column {error.colno}"
        return Problem(where, "", wrong, "write one complete JSON object a line")
    if str(error).startswith("Exceeds the limit"):
        return Problem(where, "", "a number has more than 4,300 digits", "write it as text")
    return Problem(where, "", str(error), "write standard JSON, with each key once")


def _not_an_object(where: Where, value: object) -> Problem:
    return Problem(where, "", "a row is a JSON object", 'write {"messages": [...]}', got=json_kind(value))


def json_kind(value: object) -> str:
    """The kind of `value` in JSON's terms."""
    kinds = {type(None): "null", bool: "true or false", list: "a list", dict: "an object", str: "a string"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _not_utf8(where: Where, byte: int, column: int) -> Problem:
    wrong = f"not valid UTF-8: byte 0x{byte:02x} at byte {column} of the line"
    return Problem(where, "", wrong, "save the file as UTF-8")
