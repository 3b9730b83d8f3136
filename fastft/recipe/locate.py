"""The line of a recipe on which a value is written, found without a TOML parser of our own."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence


def line_of(text: str, path: Sequence[str]) -> int | None:
    """The 1-based line of the statement that defines `path` in TOML `text`, or None when nothing does.

    The statement that defines a path ends where the first prefix of the file that parses contains it, and begins after
    the last prefix that parses without it. Quadratic in the number of lines, so it runs only when there is an error.
    """
    lines = text.splitlines(keepends=True)
    parsed_until = 0
    for end in range(1, len(lines) + 1):
        try:
            tree = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
        if _contains(tree, path):
            return parsed_until + 1
        parsed_until = end
    return None


def line_of_nearest(text: str, path: Sequence[str]) -> int:
    """The line of `path`, or of the closest table around it that the file has, or 1."""
    for length in range(len(path), 0, -1):
        line = line_of(text, path[:length])
        if line is not None:
            return line
    return 1


def _contains(tree: object, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True
