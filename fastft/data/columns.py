"""Detect the format of a row from the names of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastft.data.hints import instead_of, is_column_wise
from fastft.errors import DataError, Problem, Where, nearest
from fastft.recipe.data_formats import ALL_FORMATS, DATA_FORMATS, OPTIONAL_COLUMNS

Columns = Mapping[str, Any]
_OPTIONAL = frozenset[str]().union(*OPTIONAL_COLUMNS.values())


def rename(row: Columns, columns: Mapping[str, str], where: Where) -> Columns:
    """The row with its columns renamed as `data.columns` says; a row may lack those that its format can do without.

    For one that it lacks, the row gets a column of its key in the recipe, which is counted as one without effect: a
    name that no row has would otherwise go unseen.

    Raises:
        DataError: the row has no column that `data.columns` names.
    """
    if not columns:
        return row
    lacking = {}
    for new, name in columns.items():
        if name in row:
            continue
        near = nearest(name, row)
        if new not in _OPTIONAL or near is not None:
            instead = f'did you mean "{near}"?' if near else "name a column of the file"
            got = ", ".join(row) or "no column"
            raise DataError(Problem(where, "data.columns", f'there is no column "{name}"', instead, got=got))
        lacking[f"data.columns.{new}"] = name
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    return {**kept, **{new: row[old] for new, old in columns.items() if old in row}, **lacking}


def detect(row: Columns) -> str | None:
    """The first format of DATA_FORMATS whose columns `row` has, or None."""
    found = [name for name, needed in DATA_FORMATS.items() if row.keys() >= set(needed)]
    instruction = row.get("instruction")
    if "belle" in found and not (isinstance(instruction, str) and instruction.startswith(("Human:", "Human："))):
        found.remove("belle")
    return found[0] if found else None


def detect_or_fail(row: Columns, where: Where, chosen: str = "auto") -> str:
    """The format of `row`: `chosen`, or for "auto" the one that its columns fit.

    Raises:
        DataError: a column of `chosen` is missing, or the columns fit no format.
    """
    if is_column_wise(row):
        wrong, instead = "holds one list for each column", "write one object for each row"
        raise DataError(Problem(where, "", wrong, instead, got=", ".join(row)))
    present = ", ".join(row) or "none"
    if chosen == "auto":
        found = detect(row)
        if found is None:
            fits = (f"{', '.join(needed)} ({name})" for name, needed in DATA_FORMATS.items() if name != "belle")
            instead = instead_of(row) or f"map them in data.columns to one of: {'; '.join(fits)}"
            raise DataError(Problem(where, "data.format", "these columns fit no known format", instead, got=present))
        return found
    missing = [name for name in ALL_FORMATS[chosen] if name not in row]
    if missing:
        near = nearest(missing[0], row)
        found = detect(row)
        hint = f'did you mean "{near}"?' if near else "add the column, or set data.format"
        instead = f'{hint} The columns fit format = "{found}"' if found else hint
        raise DataError(Problem(where, "data.format", f'no column "{missing[0]}" for {chosen}', instead, got=present))
    return chosen
