"""Rules of task = "preference"."""

from __future__ import annotations

from collections.abc import Iterator

from fastft.recipe.data_formats import PREFERENCE_FORMATS
from fastft.recipe.model import Recipe
from fastft.recipe.violation import Given, Violation


def preference(recipe: Recipe, _: Given) -> Iterator[Violation]:
    """What the task says of the other sections."""
    own, formats = recipe.preferred, PREFERENCE_FORMATS
    if own is None:
        if recipe.data.format in formats:
            wrong, instead = "holds preferences", 'write task = "preference" at the top of the recipe'
            yield Violation("data.format", wrong, instead, ("task",))
        return
    wanted = "preference" if own.in_pairs else "kto"
    if recipe.data.format != wanted:
        wrong, instead = (
            f'is not what preference.loss = "{own.loss}" learns from',
            f'remove the line, or write "{wanted}"',
        )
        yield Violation("data.format", wrong, instead, ("preference.loss", "task"))
    if recipe.train.metric_for_best_model == "eval_mean_token_accuracy":
        wrong = "no single tokens are predicted here"
        yield Violation("train.metric_for_best_model", wrong, 'write "accuracy" or "eval_loss"', ("task",))
    if recipe.model.engine == "unsloth":
        wrong = "Unsloth keeps no logits in training, and preferences are made of them"
        yield Violation("model.engine", wrong, 'write "transformers" or "auto"', ("task",))
    if recipe.data.overlong in ("truncate", "split"):
        wrong = "a shortened answer is not the one that was judged"
        yield Violation("data.overlong", wrong, 'write "drop" or "error"', ("task",))
    if own.loss == "kto" and recipe.eval.exact_match:
        wrong = "held-out rows with a bad answer have no reference to match"
        yield Violation("eval.exact_match", wrong, "remove the line", ("preference.loss",))
