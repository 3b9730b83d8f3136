"""Every problem of a recipe that can be known without a model or a GPU."""

from __future__ import annotations

from fastft.data.answer_format import schema_fault
from fastft.data.inspect import Inspection, inspect
from fastft.errors import DataError, Problem, RecipeError
from fastft.planning.choices import written_batch
from fastft.planning.facts import example_counts
from fastft.planning.schedule import steps_per_epoch, total_steps
from fastft.planning.sharding import deepspeed_file_problems
from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.rules import steps_and_epochs
from fastft.recipe.shardings import ZERO_STAGES


def check(loaded: LoadedRecipe) -> Inspection:
    """What the first rows of each data source show, or every problem of recipe and data at once.

    Raises:
        RecipeError: the recipe asks for something that is not possible; problems of the data are listed with it.
        DataError: only the data has problems.
    """
    found = inspect(loaded.recipe.data, loaded.folder, loaded.where, loaded.recipe.labelled)
    wrong = [*_steps_and_epochs(loaded, found), *_deepspeed(loaded), *_answer_schema(loaded), *found.recipe_problems]
    if wrong:
        raise RecipeError([*wrong, *found.data_problems])
    if found.data_problems:
        raise DataError(found.data_problems)
    return found


def _steps_and_epochs(loaded: LoadedRecipe, found: Inspection) -> list[Problem]:
    """Both are given: say what each would mean for this data."""
    train = loaded.recipe.train
    both = steps_and_epochs(train)
    if both is None or train.max_steps is None or train.num_train_epochs is None:
        return []
    instead = both.instead
    rows = None if found.data_problems else example_counts(loaded)[0]
    if rows:
        batch = train.examples_per_step or written_batch(train)
        per_epoch = steps_per_epoch(rows, batch, train.gradient_accumulation_steps or 1, 1)
        by_epochs = total_steps(per_epoch, train.num_train_epochs)
        instead = (
            f"keep one of them: for {rows} rows, num_train_epochs = {train.num_train_epochs:g} is {by_epochs} steps, "
            f"max_steps = {train.max_steps} is {train.max_steps / per_epoch:.3g} epochs"
        )
    return [loaded.problem(both.field, both.wrong, instead)]


def _deepspeed(loaded: LoadedRecipe) -> list[Problem]:
    name = loaded.recipe.train.deepspeed
    if name is None or name in ZERO_STAGES:
        return []
    path = loaded.folder / name
    if not path.is_file():
        instead = f"write {', '.join(ZERO_STAGES)} or a path relative to the recipe"
        return [loaded.problem("train.deepspeed", "no such file", instead)]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [loaded.problem("train.deepspeed", f"cannot be read: {error}", "correct the file")]
    return [loaded.problem("train.deepspeed", *one) for one in deepspeed_file_problems(text)]


def _answer_schema(loaded: LoadedRecipe) -> list[Problem]:
    name = loaded.recipe.eval.answer_schema
    if name is None:
        return []
    try:
        wrong = schema_fault((loaded.folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [loaded.problem("eval.answer_schema", "no such file", "write a path relative to the recipe")]
    except (OSError, UnicodeDecodeError) as error:
        return [loaded.problem("eval.answer_schema", f"cannot be read: {error}", "correct the file")]
    return [] if wrong is None else [loaded.problem("eval.answer_schema", wrong, "correct the file")]
