"""`fastft check`: every problem of recipes that shows without a model or a GPU, and with `--data` of every row."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fastft.console import say
from fastft.data.inspect import Inspection, SourceFacts
from fastft.errors import DataError, FastftError
from fastft.planning.check import check as check_loaded
from fastft.recipe.loader import LoadedRecipe, load


def check(recipe: Path, overrides: Sequence[str] = ()) -> Inspection:
    """What the data of a sound recipe looks like.

    Raises:
        RecipeError: the recipe asks for something that is not possible; problems of the data are listed with it.
        DataError: only the data has problems.
    """
    return check_loaded(load(recipe, overrides))


def check_in_terminal(recipes: Sequence[Path], overrides: Sequence[str], *, rows: bool, as_json: bool) -> int:
    """Print what is wrong with each recipe, with `rows` with each of its rows too; the lowest exit code of a fault."""
    failed: dict[Path, FastftError] = {}
    found: dict[Path, Inspection] = {}
    for path in recipes:
        try:
            loaded = load(path, overrides)
            found[path] = check_loaded(loaded)
            if rows:
                _check_rows(loaded)
        except FastftError as error:
            failed[path] = error
    if as_json:
        print(json.dumps([_as_json(path, failed.get(path)) for path in recipes], indent=2))
    else:
        for path in recipes:
            for problem in failed[path].problems if path in failed else ():
                print(problem, file=sys.stderr)
            if path not in failed:
                print(f"{path}: sound; " + "; ".join(_describe(source) for source in found[path].sources))
    return min((error.exit_code for error in failed.values()), default=0)


def _check_rows(loaded: LoadedRecipe) -> None:
    """Every row as it would be trained: counts and notes to standard error, broken rows as a DataError."""
    from fastft.report.rows import account
    from fastft.stages.inputs import fetch_tokenizer, prepare_rows

    made = prepare_rows(loaded, fetch_tokenizer(loaded, say), refuse_broken=False)
    for name, rows in (("training", made.train), ("held-out", made.eval)):
        if rows is not None:
            counts, notes = account(name, rows, made.format)
            for line in (counts, *notes):
                say(line)
    if made.template is not None and made.template.written_date:
        say(
            f"the chat template writes a date, in every row the same: {made.template.written_date} (data.template_date)"
        )
    broken = [*made.train.rejected, *(made.eval.rejected if made.eval else ())]
    if broken:
        raise DataError(broken)


def _describe(source: SourceFacts) -> str:
    """One data source as `data.train: rows.jsonl (messages)`."""
    return f"{source.key}: {source.source} ({source.format or 'on the Hub, not looked at'})"


def _as_json(path: Path, error: FastftError | None) -> dict[str, object]:
    problems = [] if error is None else [problem.as_json() for problem in error.problems]
    return {"recipe": str(path), "sound": error is None, "problems": problems}
