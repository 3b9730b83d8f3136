"""Find the line of a recipe on which a value is written, with `tomllib` alone."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The 1-based line of the first statement that defines `path` in valid TOML `text`, or None.

    A statement defines a path when, parsed below its own [header], it contains that path. A number in `path` counts the
    tables of a list from 0.
    """
    header, lists = "", ""  # the [[headers]] so far number the tables of a list
    for first, statement in statements(text):
        if _contains(tomllib.loads(lists + header + statement), path):
            return first
        if statement.lstrip().startswith("[["):
            header, lists = "", lists + statement
        elif statement.lstrip().startswith("["):
            header = statement
    return None


def line_of_nearest(text: str, path: Sequence[str | int]) -> int:
    """The line of `path`, or of the closest table around it that the file has, else 1."""
    for length in range(len(path), 0, -1):
        line = line_of(text, path[:length])
        if line is not None:
            return line
    return 1


def line_of_statement(text: str, line: int | None) -> int:
    """The first line of the statement that `line` belongs to; with None, of the first one that cannot be parsed."""
    for first, statement in statements(text):
        if line is None and not _parses(statement):
            return first
        if line is not None and line < first + statement.count("\n"):
            return first
    return 1


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement as (1-based first line, text): the fewest whole lines that parse on their own.

    A broken statement comes last, together with everything after it.
    """
    # Not splitlines: it also breaks at characters that no editor counts, such as U+2028.
    lines = [f"{line}\n" for line in text.split("\n")]
    first = 0
    for end in range(1, len(lines) + 1):
        statement = "".join(lines[first:end])
        if _parses(statement):
            yield first + 1, statement
            first = end
    if first < len(lines):
        yield first + 1, "".join(lines[first:])


def _parses(text: str) -> bool:
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError):  # broken, or more than the parser takes
        return False
    return True


def _contains(tree: object, path: Sequence[str | int]) -> bool:
    for key in path:
        table = tree if isinstance(tree, dict) else dict(enumerate(tree)) if isinstance(tree, list) else {}
        if key not in table:
            return False
        tree = table[key]
    return True
