"""`fastft check`: every problem of recipes that can be found without a model or a GPU, with `--data` of each row."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastft.console import say
from fastft.data.inspect import Inspection
from fastft.errors import DataError, FastftError, MachineError, Problem, Where
from fastft.planning.check import check as check_loaded
from fastft.planning.obstacles import missing_packages
from fastft.probe.software import installed
from fastft.recipe.loader import LoadedRecipe, load


def check(recipe: Path, overrides: Sequence[str] = ()) -> Inspection:
    """What the first rows of each data source of a sound recipe show.

    Raises:
        RecipeError: the recipe asks for something that is not possible; problems of the data are listed with it.
        DataError: only the data has problems.
        MachineError: the libraries are installed, but not a package that the recipe asks for by name.
    """
    return _check(load(recipe, overrides))


def check_in_terminal(recipes: Sequence[Path], overrides: Sequence[str], *, rows: bool, as_json: bool) -> int:
    """Print the problems of each recipe, with `rows` of each row too; the lowest exit code of a problem, or 0."""
    failed: dict[Path, FastftError] = {}
    found: dict[Path, Inspection] = {}
    for path in recipes:
        try:
            loaded = load(path, overrides)
            found[path] = _check(loaded)
            if rows:
                _check_rows(loaded)
        except FastftError as error:
            failed[path] = error
    if as_json:
        print(json.dumps([_as_json(path, failed.get(path)) for path in recipes], indent=2))
    for path in () if as_json else recipes:
        if path in failed:
            print(failed[path], file=sys.stderr)
        else:
            sources = [
                f"{one.key}: {one.source} ({one.format or 'on the Hub, not read'})" for one in found[path].sources
            ]
            print(f"{path}: sound; {'; '.join(sources)}")
    return min((error.exit_code for error in failed.values()), default=0)


def _check(loaded: LoadedRecipe) -> Inspection:
    """What every command checks, and, where training libraries are installed, the packages that the recipe names."""
    found = check_loaded(loaded)
    if missing := list(missing_packages(loaded, installed())):
        raise MachineError(missing)
    return found


def _check_rows(loaded: LoadedRecipe) -> None:
    """Prepare every row: counts and notes go to standard error, broken rows raise DataError."""
    from fastft.report.rows import accounts
    from fastft.stages.inputs import fetch_tokenizer, prepare_rows

    made = prepare_rows(loaded, fetch_tokenizer(loaded, say), refuse_broken=False)
    for counts, notes in accounts(made):
        for line in (counts, *notes):
            say(line)
    if made.template is not None and made.template.written_date:
        date = made.template.written_date
        say(f"the chat template writes a date, in every row the same: {date} (data.template_date)")
    broken = []
    for rows in (made.train, made.eval) if made.eval else (made.train,):
        broken += rows.rejected
        wrong, instead = "none of its rows is left", "correct its rows, or leave it out of the recipe"
        broken += [Problem(Where(path), "", wrong, instead) for path in rows.without_rows]
    if broken:
        raise DataError(broken)


def _as_json(path: Path, error: FastftError | None) -> dict[str, object]:
    problems = [] if error is None else [problem.as_json() for problem in error.problems]
    return {"recipe": str(path), "sound": error is None, "problems": problems}
