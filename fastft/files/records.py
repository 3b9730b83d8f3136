"""Typed records on disk: a frozen dataclass as a JSON file with schema and checksum, written whole, read strictly."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from fastft.errors import MachineError, Problem, Where
from fastft.files.atomic import write_json

RESTORE = "restore it from a copy, or move it away"
# Of the JSON values besides it: one flipped bit can leave a number that is valid and wrong.
CHECKSUM = "checksum"
# A record of 100,000 answers has 200 MB.
LONGEST_BYTES = 2 * 1024**3


class Record(Protocol):
    """A frozen dataclass with a schema version, which goes up when old readers would misread the fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    SCHEMA: ClassVar[int]


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R], instead: str = RESTORE) -> R | None:
    """The record in a file, or None when there is no such file.

    Keys that `kind` does not know are ignored; a file without "schema" is of version 1, one without a checksum is not
    compared with it.

    Raises:
        MachineError: the file cannot be read, is no JSON object, lacks a field, has one of a wrong type, is not what
            was written, or is of a newer schema; `instead` says what to do about damage.
    """
    from pydantic import TypeAdapter, ValidationError

    content = read_bytes(path, instead)
    if content is None:
        return None
    value = parse_object(path, content, instead)
    schema = value.get("schema", 1)
    if type(schema) is not int:
        raise fault(path, f"is damaged: schema is {schema!r}, not a number", instead)
    if schema > kind.SCHEMA:
        wrong = f"was written by a newer fastft (schema {schema}, this one reads up to {kind.SCHEMA})"
        raise fault(path, wrong, "update fastft")
    try:
        # From the text: strict JSON accepts a list for a tuple, but no text for a number.
        record = TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise fault(path, f"is damaged: {place}: {first['msg']}", instead) from error
    if CHECKSUM in value and value[CHECKSUM] != _checksum(value):
        raise fault(path, "is damaged: its values are not what was written", instead)
    return record


def read_bytes(path: Path, instead: str = RESTORE) -> bytes | None:
    """The bytes of a file, or None when there is no such file.

    Raises:
        MachineError: it cannot be read, is no ordinary file (a pipe would block for ever), or has more than 2 GiB.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_size <= LONGEST_BYTES:
                return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise fault(path, f"cannot be read: {error.strerror}", "check its permissions") from error
    if stat.S_ISREG(found.st_mode):
        raise fault(path, f"is damaged: {found.st_size:,} bytes, no more than {LONGEST_BYTES:,} are read", instead)
    raise fault(path, "cannot be read: it is no ordinary file", instead)


def parse_object(path: Path, content: bytes, instead: str = RESTORE) -> Mapping[str, object]:
    """The JSON object in the content of the file `path`.

    Raises:
        MachineError: it is none.
    """
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise fault(path, "is damaged: not UTF-8", instead) from error
    except (ValueError, RecursionError) as error:
        raise fault(path, f"is damaged: not JSON ({error})", instead) from error
    if not isinstance(value, dict):
        raise fault(path, "is damaged: not a JSON object", instead)
    return value


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON, whole or not at all, with its schema version first and its checksum last."""
    from pydantic import TypeAdapter

    # As Python values: pydantic's JSON has null for NaN, which cannot be read back as a number.
    write_checked(path, {"schema": record.SCHEMA, **TypeAdapter(type(record)).dump_python(record, mode="json")})


def write_checked(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON object, whole or not at all, with a checksum of its values."""
    write_json(path, {**values, CHECKSUM: _checksum(values)})


def _checksum(values: Mapping[str, object]) -> str:
    text = json.dumps({key: value for key, value in values.items() if key != CHECKSUM}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fault(path: Path, wrong: str, instead: str = RESTORE) -> MachineError:
    """The error of a file that cannot be used."""
    return MachineError(Problem(Where(str(path)), "", wrong, instead))
