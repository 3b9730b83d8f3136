"""Turn pydantic errors into problems of a recipe: the key, and what to write instead."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import ErrorDetails

from fastft.errors import Problem, Where, nearest
from fastft.recipe.names import ELSEWHERE, SECTIONS_ELSEWHERE
from fastft.recipe.optimizers import OTHER_NAMES
from fastft.recipe.reference import allowed, fields, sections, source_fields

Kind = Literal["missing", "unknown", "table", "value"]


@dataclass(frozen=True)
class Fault:
    """One fault: `field` as the user sees it (`data.sources[0].weight`), and its section or `section.key` as `key`."""

    kind: Kind
    key: str
    field: str
    path: tuple[str | int, ...]


def find_fault(entry: ErrorDetails) -> Fault:
    """The fault behind one pydantic error of a recipe."""
    # Inside a list or a table of values, pydantic also names positions and types: the key is enough.
    path = entry["loc"][:4] if entry["loc"][:2] == ("data", "sources") else entry["loc"][:2]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    kinds: dict[str, Kind] = {"missing": "missing", "extra_forbidden": "unknown"}
    kind: Kind = kinds.get(entry["type"], "table" if len(path) == 1 and path[0] in sections() else "value")
    return Fault(kind, ".".join(str(part) for part in path[:2]), field, path)


def describe(fault: Fault, tree: Mapping[str, Any], where: Where) -> Problem:
    """The problem of `fault` at `where`, with what to write instead."""
    field, path = fault.field if len(fault.field) <= 100 else fault.field[:97] + "...", fault.path
    named = ".".join(part for part in path if isinstance(part, str))
    if fault.kind == "unknown":
        instead = _known(path) if len(path) > 1 else _known_section(str(path[0]), tree[str(path[0])])
        return Problem(where, field, f"there is no such {'section' if len(path) == 1 else 'key'}", instead)
    if fault.kind == "missing":
        return Problem(where, field, "is missing", f"add {_EXAMPLES[named]}")
    if fault.kind == "table":
        return Problem(where, field, "is not a table", f"write a [{field}] header and its keys below it")
    value: Any = tree
    for part in path:
        value = value[part]
    instead = allowed(named)
    close = _close(named, value, instead) if isinstance(value, str) else None
    if close is not None and value.strip() == close:  # the right word in the wrong form
        close = None
    instead = f'did you mean "{close}"?' if close else f"write {instead}"
    return Problem(where, field, "is not an allowed value", instead, shown(value))


def _close(field: str, value: str, allowed_words: str) -> str | None:
    """The allowed word that `value` most likely means."""
    if field == "train.optim" and value in OTHER_NAMES:
        return OTHER_NAMES[value]
    return nearest(value, re.findall(r'"([^"]+)"', allowed_words))


_EXAMPLES = {
    "model": '[model] with id = "a Hub id or a folder"',
    "data": '[data] with train = "rows.jsonl"',
    "model.id": 'id = "a Hub id, a folder or package:NAME/FILE.gguf" under [model]',
    "data.sources.path": 'path = "rows.jsonl" under [[data.sources]]',
}


def meant_key(path: tuple[str | int, ...]) -> str | None:
    """The `section.key` that an unknown key of a section probably means, or None."""
    names = [part for part in path if isinstance(part, str)]
    if len(names) != 2:
        return None
    section, key = names
    there = {field.rsplit(".", 1)[1]: field for field in fields()}
    if key in there:
        return there[key]
    here = {field.rsplit(".", 1)[1]: field for field in fields() if field.startswith(section + ".")}
    for known in ({**ELSEWHERE, **here}, {**ELSEWHERE, **there}):
        close = key if key in known else nearest(key, known)
        if close:
            return known[close]
    return None


def _known(path: tuple[str | int, ...]) -> str:
    """What to write instead of an unknown key: the most likely known one."""
    names = [part for part in path if isinstance(part, str)]
    section, key = names[0], names[-1]
    if len(names) > 2:
        close = nearest(key, [field.rsplit(".", 1)[1] for field in source_fields()])
        return f"did you mean {close}?" if close else "a source has path, name, weight and limit"
    meant = meant_key(path)
    if meant is None:
        return f"`fastft explain {section}` lists the keys of [{section}]"
    home, name = meant.split(".")
    if name == key:
        return f"{key} belongs under [{home}]"
    return f"did you mean {name}?" if home == section else f"did you mean {name} under [{home}]?"


def named_here(key: str) -> str | None:
    """The `section.key` that another tool's name, a key without its section or a misspelled one most likely means."""
    known = {**ELSEWHERE, **{field.partition(".")[2]: field for field in fields()}}
    close = key if key in known else nearest(key, known)
    return known[close] if close else None


def _keys_here(section: str, keys: Iterable[str]) -> str:
    """What the keys of another tool's section are called here, as far as they are called otherwise."""
    homes = [(key, named_here(key)) for key in keys]
    moved = [f"{key} as {home}" for key, home in homes if home and home != f"{section}.{key}"]
    return f" write {', '.join(moved[:6])}" if moved else ""


def _known_section(name: str, content: object) -> str:
    section = SECTIONS_ELSEWHERE.get(name) or nearest(name, sections())
    if section and isinstance(content, Mapping):
        return f"did you mean [{section}]?" + _keys_here(section, map(str, content))
    home = ELSEWHERE.get(name) or next((field for field in fields() if field.endswith("." + name)), None)
    if home:
        section, key = home.split(".")
        return f"write {key} under [{section}]"
    close = nearest(name, sections())
    return f"did you mean [{close}]?" if close else "the sections are " + ", ".join(f"[{s}]" for s in sections())


def shown(value: Any) -> str:
    """A value in TOML, cut to 80 characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
