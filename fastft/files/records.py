"""JSON files that are the records of frozen dataclasses: written whole, and read with one Problem for any damage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from fastft.errors import MachineError, Problem, Where
from fastft.files.atomic import write_json


class Record(Protocol):
    """A dataclass that is kept as a JSON object. `SCHEMA` grows when an older fastft would misread the file."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    SCHEMA: ClassVar[int]


T = TypeVar("T", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Write a record whole or not at all, its schema first."""
    write_json(path, {"schema": record.SCHEMA, **dataclasses.asdict(record)})


def read_record(path: Path, kind: type[T]) -> T | None:
    """The record in a file, or None when there is no such file. Unknown keys are ignored, missing ones take defaults.

    Raises:
        MachineError: the file cannot be read, is damaged, or was written by a newer fastft.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "is damaged: it holds no JSON") from None
    if not isinstance(values, dict):
        raise _damaged(path, "is damaged: it holds no JSON object")
    if values.get("schema", 1) != kind.SCHEMA:
        raise _damaged(path, f"has schema {values.get('schema')!r}, this fastft reads {kind.SCHEMA}")
    try:
        record: T = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"is damaged: {place}: {first['msg'].lower()}") from None
    return record


def _damaged(path: Path, wrong: str) -> MachineError:
    return MachineError(Problem(Where(str(path)), "", wrong, "restore the file, or remove its folder and start anew"))
