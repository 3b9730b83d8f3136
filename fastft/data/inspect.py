"""A quick check of `[data]`: files, columns and templates, from the first rows and without a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.data.columns import detect_or_fail, rename
from fastft.data.formats import rules_of, to_example
from fastft.data.labels import inspect_labelled
from fastft.data.readers import find_files, is_hub_data, read_file
from fastft.data.sources import Source, evaluation_source, training_sources
from fastft.data.template import load_template
from fastft.data.template_values import KWARGS_FIELD, with_values
from fastft.errors import DataError, FastftError, Problem, Where

if TYPE_CHECKING:
    from fastft.recipe.model import ClassificationSection, DataSection

# Enough to find a row that can be read, few enough to be quick.
INSPECTED_ROWS = 200


@dataclass(frozen=True)
class SourceFacts:
    """Facts about a source, from its first rows."""

    key: str
    source: str
    files: tuple[Path, ...]
    bytes: int
    # None for a Hub dataset, which is not read.
    format: str | None


@dataclass(frozen=True)
class Inspection:
    """The sources of `[data]`, and every problem by the kind of error."""

    sources: tuple[SourceFacts, ...]
    recipe_problems: tuple[Problem, ...]
    data_problems: tuple[Problem, ...]


def inspect(
    data: DataSection, recipe_dir: Path, locate: Callable[[str], Where], own: ClassificationSection | None = None
) -> Inspection:
    """The facts and problems of `[data]`, from its names and first rows; `locate` gives the place of a recipe key.

    `own`: the rows are texts with labels.
    """
    sources: list[SourceFacts] = []
    wrong_recipe: list[Problem] = []
    wrong_data: list[Problem] = []
    held_out = evaluation_source(data)
    for source in (*training_sources(data), *([held_out] if held_out else [])):
        try:
            sources.append(_inspect_source(source, data, recipe_dir, own))
        except DataError as error:
            for problem in error.problems:
                if problem.field == source.key:  # about the source as a whole
                    got = problem.got or str(problem.where)
                    problem = replace(problem, where=locate(source.key), got=got)
                wrong_data.append(problem)
        except FastftError as error:  # a package that this kind of file needs is not installed
            wrong_data.extend(replace(problem, where=locate(source.key)) for problem in error.problems)
    if data.chat_template != "model":
        try:
            template = load_template(data.chat_template, recipe_dir, None, locate("data.chat_template"))
            with_values(template, data.template_date, data.chat_template_kwargs, locate(KWARGS_FIELD))
        except FastftError as error:
            wrong_recipe.extend(error.problems)
    return Inspection(tuple(sources), tuple(wrong_recipe), tuple(wrong_data))


def _inspect_source(
    source: Source, data: DataSection, recipe_dir: Path, own: ClassificationSection | None
) -> SourceFacts:
    if is_hub_data(source.path, recipe_dir):
        return SourceFacts(source.key, source.path, (), 0, None)
    files = find_files(source.path, recipe_dir, source.key)
    formats = [_format_of_file(file, data, own) for file in files]
    return SourceFacts(source.key, source.path, tuple(files), sum(file.stat().st_size for file in files), formats[-1])


def _format_of_file(file: Path, data: DataSection, own: ClassificationSection | None) -> str:
    """The format of a file, from the first of its rows that can be trained; `check --data` reports broken rows.

    Raises:
        DataError: none of the first rows can be read, fits a format, or can be trained.
    """
    refused: list[Problem] = []
    for where, row in islice(read_file(file, data.max_row_bytes), INSPECTED_ROWS):
        if isinstance(row, Problem):
            refused.append(row)
            continue
        renamed = rename(row, data.columns, where)
        found = detect_or_fail(renamed, where, data.format) if own is None else ""
        try:
            if own is not None:
                return inspect_labelled(renamed, where, data, own)
            to_example(renamed, found, where, rules_of(data))
        except DataError as error:
            refused += error.problems
        else:
            return found
    raise DataError(refused[0])
