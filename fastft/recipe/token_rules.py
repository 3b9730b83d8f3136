"""Rules of the tokens that a recipe adds to the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterator

from fastft.recipe.model import Recipe
from fastft.recipe.violation import Given, Violation

TOKEN_FIELDS = ("data.add_tokens", "data.add_special_tokens")


def added_tokens(recipe: Recipe, _: Given) -> Iterator[Violation]:
    """Texts that are no token, one that is named twice, and a task whose model has no output layer for them."""
    data = recipe.data
    seen: set[str] = set()
    for field, texts in zip(TOKEN_FIELDS, (data.add_tokens, data.add_special_tokens), strict=True):
        for text in texts:
            if not text.strip():
                instead = "write the text of a token, as it stands in the rows"
                yield Violation(field, "names a token without a visible character", instead, got=json.dumps(text))
            elif text in seen:
                yield Violation(
                    field, "names one token twice", "name it once, in one list", TOKEN_FIELDS, json.dumps(text)
                )
            seen.add(text)
        if texts and recipe.task == "classification":
            wrong = 'task = "classification" has no output layer that could write a token'
            yield Violation(field, wrong, "remove the line; its texts are read with the model's own tokens", ("task",))
