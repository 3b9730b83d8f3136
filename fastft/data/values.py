"""Values of a row as the types that a field needs, or a problem at the field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastft.data.json_rows import json_kind
from fastft.errors import DataError, Problem, Where

_EMPTY = frozenset({"", "[]", "{}", "null"})


def as_text(value: object, where: Where, field: str) -> str:
    """`value`, which must be text that UTF-8 can write.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, str):
        raise DataError(Problem(where, field, "not text", "write a string", got=json_kind(value)))
    if "\x00" in value:
        raise DataError(Problem(where, field, "contains a NUL character", "remove it: the text is damaged"))
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            wrong = f"contains half a character at position {error.start}"
            raise DataError(
                Problem(where, field, wrong, "write the whole character: a lone surrogate is not text")
            ) from error
    return value


def as_list(value: object, where: Where, field: str) -> Sequence[Any]:
    """`value`, which must be a list.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, list | tuple):
        raise DataError(Problem(where, field, "not a list", "write a list", got=json_kind(value)))
    return value


def says_something(value: object) -> bool:
    """Whether a value holds anything: null, and empty text, lists and objects (as JSON text too, in CSV) do not."""
    if isinstance(value, str):
        return value.strip() not in _EMPTY
    if isinstance(value, list | tuple):
        return any(says_something(entry) for entry in value)
    if isinstance(value, dict):
        return any(says_something(entry) for entry in value.values())
    return value is not None


def without_null_keys(value: Any) -> Any:
    """`value` without the null keys of its objects: Arrow gives every object of a column the keys of all."""
    if isinstance(value, dict):
        return {name: without_null_keys(entry) for name, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_null_keys(entry) for entry in value]
    return value
