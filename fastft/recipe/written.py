"""A checked recipe as the text of a file, wherever that file will stand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.paths import PATHS
from fastft.recipe.reference import sections


def recipe_in(loaded: LoadedRecipe, folder: Path, head: str) -> str:
    """TOML with every value of `loaded` that is not a default, for a file in `folder`; `head`: a comment above it.

    Relative paths are written anew, so that they lead to the same files.
    """
    settings = {name: one.value for name, one in loaded.settings().items() if one.origin in ("recipe", "--set")}
    lines = [f"# {line}" for line in head.splitlines()]
    lines += [f"{name} = {as_toml(value)}" for name, value in settings.items() if "." not in name]
    for section in sections():
        own = {name: value for name, value in settings.items() if name.startswith(f"{section}.")}
        if own:
            lines += ["", f"[{section}]"]
        for name, value in own.items():
            lines.append(f"{name.partition('.')[2]} = {as_toml(_moved(name, value, loaded.folder, folder))}")
    return "\n".join(lines) + "\n"


def _moved(name: str, value: Any, before: Path, now: Path) -> Any:
    if name in PATHS and isinstance(value, str):
        return _path(value, before, now)
    if name == "data.sources":
        entries = ({key: entry for key, entry in source.items() if entry is not None} for source in value)
        return [{**entry, "path": _path(entry["path"], before, now)} for entry in entries]
    return value


def _path(value: str, before: Path, now: Path) -> str:
    """A path that led from `before` to a file, from `now`; anything else, such as a name on the Hub, as it is."""
    if not value or Path(value).expanduser().is_absolute() or not _leads_to_a_file(value, before):
        return value
    return Path(os.path.relpath(before / value, now)).as_posix()


def _leads_to_a_file(value: str, folder: Path) -> bool:
    """Whether a relative path, or a pattern of paths, names something in `folder`."""
    try:
        return (folder / value).exists() or any(True for _ in folder.glob(value))
    except (ValueError, NotImplementedError):
        return False


def as_toml(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {as_toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(entry) for entry in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
