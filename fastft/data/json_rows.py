"""Rows of JSON: one object a line, or the objects of one array, which is never read whole."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO, Any

from fastft.errors import DataError, Problem, Where

Row = tuple[Where, "dict[str, Any] | Problem"]

UTF8_BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 2**16
# An error so near the end of what was read may be nothing but the end: half an escape, half a `-Infinity`.
HALF_A_TOKEN = 12


def read_json_lines(lines: Iterable[bytes], shown: str, first: int = 1) -> Iterator[Row]:
    """The object of each line that is not blank; `first` is the number of the first line."""
    for number, raw in enumerate(lines, start=first):
        line = raw.removeprefix(UTF8_BOM) if number == 1 else raw
        if line.isspace() or not line:
            continue
        where = Where(shown, number)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield where, _not_utf8(where, line[error.start], error.start + 1)
            continue
        yield where, _parse(text, where)


def read_json(stream: IO[bytes], shown: str) -> Iterator[Row]:
    """The objects of one JSON array; a file of JSON lines that is named `.json` is read as such.

    Raises:
        DataError: it is neither, or broken: where an array is, nothing says where its next row begins.
    """
    head = stream.read(CHUNK_BYTES).removeprefix(UTF8_BOM)
    while head.isspace() and (more := stream.read(CHUNK_BYTES)):
        head += more
    if head.lstrip().startswith(b"{"):
        yield from read_json_lines(chain(io.BytesIO(head + stream.readline()), stream), shown)
        return
    text = _Text(stream, head, shown)
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


_SPACE, _OPENING, _BETWEEN = re.compile(r"\s*"), re.compile(r"\["), re.compile(r"[\s,]*")


class _Text:
    """The text of a stream from where it is read on: of a file of any size, little more than one value is held."""

    def __init__(self, stream: IO[bytes], head: bytes, shown: str) -> None:
        self._stream, self._shown = stream, shown
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._at_end = False
        self.line = 1
        # Characters of the line before `_position`, and bytes of a line before what is decoded next.
        self._column = self._bytes = 0
        # What is held, from `_position` on not yet read.
        self._held, self._position = "", 0
        self._decode(head)

    def peek(self) -> str:
        """The next character, "" at the end."""
        while self._position == len(self._held) and not self._at_end:
            self._read_on()
        return self._held[self._position : self._position + 1]

    def ahead(self, count: int) -> str:
        """At most the next `count` characters."""
        return self._held[self._position : self._position + count].strip()

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Go on behind what `pattern` matches here."""
        while self.peek():
            found = pattern.match(self._held, self._position)
            end = found.end() if found else self._position
            self._go_to(end)
            if end < len(self._held):
                return

    def value(self) -> Any:
        """The JSON value that begins here.

        Raises:
            DataError: there is none.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._held, self._position)
            except json.JSONDecodeError as error:
                unfinished = error.pos + HALF_A_TOKEN > len(self._held) or error.msg.startswith("Unterminated string")
                if self._at_end or not unfinished:
                    line, column = self._place(error.pos)
                    wrong = f"not valid JSON: {error.msg} at column {column}"
                    instead = "write a list of complete JSON objects"
                    raise DataError(Problem(Where(self._shown, line), "", wrong, instead)) from error
            except ValueError as error:
                raise DataError(_not_json(Where(self._shown, self.line), error)) from error
            except RecursionError as error:
                raise DataError(_too_deep(Where(self._shown, self.line))) from error
            else:
                # A number may go on in what follows.
                if end < len(self._held) or self._at_end:
                    self._go_to(end)
                    return value
            self._read_on()

    def _go_to(self, position: int) -> None:
        self.line, self._column = self._place(position)
        self._column -= 1
        self._position = position
        if position > CHUNK_BYTES:
            self._held, self._position = self._held[position:], 0

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column, both from 1, of a place in what is held that is not before the current one."""
        breaks = self._held.count("\n", self._position, position)
        if not breaks:
            return self.line, self._column + position - self._position + 1
        return self.line + breaks, position - self._held.rfind("\n", 0, position)

    def _read_on(self) -> None:
        """Twice as much as is held of one value, so that a long one is not tried again and again."""
        self._decode(self._stream.read(max(CHUNK_BYTES, len(self._held) - self._position)))

    def _decode(self, raw: bytes) -> None:
        self._at_end = not raw
        waiting = self._decoder.getstate()[0]
        try:
            self._held = self._held + self._decoder.decode(raw, final=self._at_end)
        except UnicodeDecodeError as error:
            read = waiting + raw
            line = self._place(len(self._held))[0] + read.count(b"\n", 0, error.start)
            column = error.start - read.rfind(b"\n", 0, error.start)
            column += 0 if b"\n" in read[: error.start] else self._bytes - len(waiting)
            raise DataError(_not_utf8(Where(self._shown, line), read[error.start], column)) from error
        self._bytes = len(raw) - raw.rfind(b"\n") - 1 if b"\n" in raw else self._bytes + len(raw)


def _parse(text: str, where: Where) -> dict[str, Any] | Problem:
    try:
        value = _DECODER.decode(text)
    except ValueError as error:
        return _not_json(where, error)
    except RecursionError:
        return _too_deep(where)
    return value if isinstance(value, dict) else _not_an_object(where, value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{doubled}" stands twice in one object')
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _not_json(where: Where, error: ValueError) -> Problem:
    if isinstance(error, json.JSONDecodeError):
        wrong = f"not valid JSON: {error.msg} at column {error.colno}"
        return Problem(where, "", wrong, "write one complete JSON object a line")
    return Problem(where, "", str(error), "keep one value of each, in plain JSON")


def _too_deep(where: Where) -> Problem:
    return Problem(where, "", "the JSON is nested too deeply to be a row", "write one plain object a line")


def _not_an_object(where: Where, value: object) -> Problem:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return Problem(
        where, "", "a row is a JSON object", 'write {"messages": [...]}', got=kinds.get(type(value), "a number")
    )


def _not_utf8(where: Where, byte: int, column: int) -> Problem:
    return Problem(
        where, "", f"not valid UTF-8: byte 0x{byte:02x} at byte {column} of the line", "save the file as UTF-8"
    )
