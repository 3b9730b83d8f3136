"""What can be said of `[data]` at once: files, columns and templates, from the first rows and without a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data.columns import detect_or_fail, rename
from fastft.data.readers import find_files, is_hub_data, read_file
from fastft.data.sources import Source, evaluation_source, training_sources
from fastft.data.template import load_template
from fastft.errors import DataError, FastftError, Problem, Where

if TYPE_CHECKING:
    from fastft.recipe.model import DataSection

# Enough to meet a row that can be read, few enough to cost nothing.
ROWS_LOOKED_AT = 20


@dataclass(frozen=True)
class SourceFacts:
    """What the first rows of a source say."""

    key: str
    source: str
    files: tuple[Path, ...]
    bytes: int
    # None for a Hub dataset, which is not looked at.
    format: str | None


@dataclass(frozen=True)
class Inspection:
    """What was found, and every problem by the kind of error that it is."""

    sources: tuple[SourceFacts, ...]
    recipe_problems: tuple[Problem, ...]
    data_problems: tuple[Problem, ...]


def inspect(data: DataSection, recipe_dir: Path, locate: Callable[[str], Where]) -> Inspection:
    """What the first rows and the names in `[data]` show; `locate` tells where the recipe sets a key."""
    sources: list[SourceFacts] = []
    wrong_recipe: list[Problem] = []
    wrong_data: list[Problem] = []
    held_out = evaluation_source(data)
    for source in (*training_sources(data), *([held_out] if held_out else [])):
        try:
            sources.append(_look_at(source, data, recipe_dir))
        except DataError as error:
            wrong_data.extend(_placed(problem, source.key, locate) for problem in error.problems)
        except FastftError as error:  # a package that this kind of file needs is not installed
            wrong_data.extend(replace(problem, where=locate(source.key)) for problem in error.problems)
    key = "data.chat_template"
    if data.chat_template != "model":
        try:
            load_template(data.chat_template, recipe_dir, None, locate(key))
        except FastftError as error:
            wrong_recipe.extend(error.problems)
    return Inspection(tuple(sources), tuple(wrong_recipe), tuple(wrong_data))


def _look_at(source: Source, data: DataSection, recipe_dir: Path) -> SourceFacts:
    if is_hub_data(source.path, recipe_dir):
        return SourceFacts(source.key, source.path, (), 0, None)
    files = find_files(source.path, recipe_dir, source.key)
    found = None
    for file in files:
        # A broken row is the business of the full check; here one that can be read says what the columns are.
        first: Problem | None = None
        for where, row in islice(read_file(file), ROWS_LOOKED_AT):
            if not isinstance(row, Problem):
                found = detect_or_fail(rename(row, data.columns, where), where, data.format)
                break
            first = first or row
        else:
            if first is not None:
                raise DataError(first)
    return SourceFacts(source.key, source.path, tuple(files), sum(file.stat().st_size for file in files), found)


def _placed(problem: Problem, key: str, locate: Callable[[str], Where]) -> Problem:
    """A problem of the source as a whole, put at the line of the recipe that names it."""
    if problem.field != key:
        return problem
    return replace(problem, where=locate(key), got=problem.got or str(problem.where))
