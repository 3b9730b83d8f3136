"""Find the line of a recipe on which a value is written, with `tomllib` alone."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

Path = tuple[str | int, ...]

# What `statements` parses at most: each line of a long list or text costs one more look at all lines before it.
PARSED_CHARACTERS = 400_000


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The 1-based line of the first statement that defines `path` in valid TOML `text`, or None.

    A number in `path` counts the tables of a list from 0.
    """
    return _lines(text).get(tuple(path))


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
    first, budget = 0, PARSED_CHARACTERS
    for end in range(1, len(lines) + 1):
        # A list or a text over several lines ends on a line that closes one.
        if end - first > 1 and not any(closing in lines[end - 1] for closing in ("]", '"""', "'''")):
            continue
        statement = "".join(lines[first:end])
        budget -= len(statement) if end - first > 1 else 0
        if budget < 0:
            break
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


@lru_cache(maxsize=1)
def _lines(text: str) -> Mapping[Path, int]:
    """The first line that defines each path of valid TOML `text`.

    A path has one number for each list on its way; `counts` are the [[tables]] so far, by the path of their list.
    """
    header, counts, found = "", dict[Path, int](), dict[Path, int]()
    for first, statement in statements(text):
        head = statement.lstrip()
        if head.startswith("["):
            header = ""
        tree = tomllib.loads(header + statement)
        if head.startswith("["):
            header = statement
        if head.startswith("[["):
            counted = _header_path(tree, counts)
            counts[counted] = counts.get(counted, 0) + 1
        for path in _paths(tree, (), counts):
            found.setdefault(path, first)
    return found


def _header_path(tree: Any, counts: Mapping[Path, int]) -> Path:
    """The path of the list that a [[header]] adds a table to; `tree` is the header alone."""
    path: Path = ()
    while isinstance(tree, dict):
        if path in counts:
            path = (*path, counts[path] - 1)
        ((key, tree),) = tree.items()
        path = (*path, key)
    return path


def _paths(node: Any, path: Path, counts: Mapping[Path, int]) -> Iterator[Path]:
    yield path
    if path in counts:
        last = node[0] if isinstance(node, list) else node
        yield from _paths(last, (*path, counts[path] - 1), counts)
    elif isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _paths(value, (*path, key), counts)
