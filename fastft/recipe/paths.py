"""Paths in a recipe that no file can have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastft.recipe.model import Recipe
from fastft.recipe.shardings import ZERO_STAGES

# Keys whose values can be paths, which a recipe reads from its own folder; besides them the path of each data source.
PATHS = ("model.id", "data.train", "data.eval", "data.chat_template", "eval.answer_schema", "train.deepspeed")


def unreachable_paths(recipe: Recipe, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(`section.key`, its value, what is wrong) for each value that names a path which the system refuses to look up.

    A path that is free is none of them: other checks say more about a missing file.
    """
    values: dict[str, str | None] = {}
    for field in PATHS:
        section, _, key = field.partition(".")
        values[field] = getattr(getattr(recipe, section), key)
    values |= {f"data.sources[{number}].path": source.path for number, source in enumerate(recipe.data.sources)}
    for field, name in values.items():
        if name is not None and name not in ZERO_STAGES and (wrong := refusal(folder, name)):
            yield field, name, wrong


def refusal(folder: Path, name: str) -> str | None:
    """Why the system does not look up `name` in `folder`; None for what is there, and for what could be."""
    try:
        (folder / Path(name).expanduser()).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL, which no file has
        return None
    except RuntimeError:  # pathlib: no such user
        return f"there is no user {name.split('/')[0][:40]}"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None
