"""Write keys into the text of a recipe, and leave all else in it as it is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from fastft.errors import Problem, UsageError, Where
from fastft.recipe.locate import line_of, statements


def with_keys(text: str, values: Mapping[str, str], comments: Mapping[str, str], path: Path) -> str:
    """`text` with `section.key` -> TOML values, each with its comment at the end of the line.

    A key that says "auto" gets the value in its place; one that is not there is added at the head of its section.

    Raises:
        UsageError: a section is no [section], so that nothing can be added to it; `path` is named.
    """
    for field, value in reversed(list(values.items())):  # each is added above the last one
        comment = f"  # {comments[field]}" if field in comments else ""
        text = _with_key(text, field, value, comment)
    tree = tomllib.loads(text)
    for field, value in values.items():
        section, _, key = field.partition(".")
        if tree.get(section, {}).get(key) != tomllib.loads(f"value = {value}")["value"]:
            wrong = f"[{section}] is not written as a section of lines, so that {key} cannot be added"
            raise UsageError(Problem(Where(str(path)), section, wrong, f"write [{section}] and a line for each key"))
    return text


def _with_key(text: str, field: str, value: str, comment: str) -> str:
    section, _, key = field.partition(".")
    lines = text.split("\n")
    at = line_of(text, (section, key))
    if at is not None:
        statement = dict(statements(text))[at].rstrip("\n")
        quoted = re.compile(rf"(\b{key}[\"']?\s*=\s*)(?:\"[^\"]*\"|'[^']*'|[\w.+-]+)")
        changed = quoted.sub(lambda found: f"{found[1]}{value}", statement, count=1)
        if "#" not in changed and "\n" not in changed:
            changed += comment
        lines[at - 1 : at + statement.count("\n")] = changed.split("\n")
        return "\n".join(lines)
    header = line_of(text, (section,))
    if header is None:
        return f"{text.rstrip()}\n\n[{section}]\n{key} = {value}{comment}\n"
    lines.insert(header, f"{key} = {value}{comment}")
    return "\n".join(lines)
