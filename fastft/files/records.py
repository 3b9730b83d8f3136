"""Typed records on disk: a frozen dataclass as a JSON file with a schema version, written whole, read with care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from fastft.errors import MachineError, Problem, Where
from fastft.files.atomic import write_json


class Record(Protocol):
    """A frozen dataclass with a schema version, which goes up when a reader of the old fields would go wrong."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    SCHEMA: ClassVar[int]


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R], instead: str = "restore it from a copy, or move it away") -> R | None:
    """The record in a file, or None when there is no such file.

    Keys that `kind` does not know are ignored; a file without "schema" is of version 1.

    Raises:
        MachineError: the file cannot be read, is no JSON object, lacks a field, has one of a wrong type, or is of a
            newer schema; `instead` says what to do about damage.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _fault(path, f"cannot be read: {error.strerror}", "check its permissions") from error
    except UnicodeDecodeError as error:
        raise _fault(path, "is damaged: not UTF-8", instead) from error
    except (ValueError, RecursionError) as error:
        raise _fault(path, f"is damaged: not JSON ({error})", instead) from error
    if not isinstance(value, dict):
        raise _fault(path, "is damaged: not a JSON object", instead)
    schema = value.get("schema", 1)
    if type(schema) is not int:
        raise _fault(path, f"is damaged: schema is {schema!r}, not a number", instead)
    if schema > kind.SCHEMA:
        wrong = f"was written by a newer fastft (schema {schema}, this one reads up to {kind.SCHEMA})"
        raise _fault(path, wrong, "update fastft")
    try:
        # From the text: strict JSON takes a list for a tuple, and no text for a number.
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _fault(path, f"is damaged: {place}: {first['msg']}", instead) from error


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON, whole or not at all, with its schema version as the first key."""
    from pydantic import TypeAdapter

    # As Python values, because pydantic's JSON has null for NaN, which would not be read back as a number.
    values = TypeAdapter(type(record)).dump_python(record, mode="json")
    write_json(path, {"schema": record.SCHEMA, **values})


def _fault(path: Path, wrong: str, instead: str) -> MachineError:
    return MachineError(Problem(Where(str(path)), "", wrong, instead))
