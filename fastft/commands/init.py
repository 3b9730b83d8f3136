"""`fastft init`: a starter recipe and a few rows for it."""

from __future__ import annotations

from pathlib import Path

from fastft.errors import Problem, UsageError, Where
from fastft.files.atomic import write_text
from fastft.recipe.starter import starter, starter_rows


def init_in_terminal(name: str) -> None:
    """Write `name`.toml and `name`.jsonl, and print what to do next.

    Raises:
        UsageError: one of them exists, or the folder cannot be written.
    """
    stem = name.removesuffix(".toml")
    recipe, rows = Path(f"{stem}.toml"), Path(f"{stem}.jsonl")
    for path in (recipe, rows):
        if path.exists():
            raise UsageError(Problem(Where(str(path)), "", "exists already", "give another name: fastft init NAME"))
    try:
        write_text(recipe, starter(Path(stem).name))
        write_text(rows, starter_rows())
    except OSError as error:
        wrong = f"cannot be written: {error.strerror}"
        raise UsageError(Problem(Where(str(recipe)), "", wrong, "name a file in a folder that exists")) from None
    print(f"wrote {recipe} and {rows}; next: fastft check {recipe}")
