"""Rules of task = "classification"."""

from __future__ import annotations

import json
from collections.abc import Iterator

from fastft.recipe.model import Recipe
from fastft.recipe.violation import Given, Violation

# The labels that a text has are bits of one 32-bit number: fastft.data.labels.
MOST_OF_SEVERAL = 31


def classification(recipe: Recipe, _: Given) -> Iterator[Violation]:
    """What the task says of the other sections."""
    metric = recipe.train.metric_for_best_model
    if recipe.task != "classification":
        if metric == "f1" or (metric == "accuracy" and recipe.task != "preference"):
            wrong, instead = 'is a figure of task = "classification"', 'write "eval_loss"'
            yield Violation("train.metric_for_best_model", wrong, instead, ("task",))
        return
    if metric == "eval_mean_token_accuracy":
        instead = 'write "f1", "accuracy" or "eval_loss"'
        yield Violation("train.metric_for_best_model", "classification predicts no tokens", instead, ("task",))
    if recipe.model.engine == "unsloth":
        wrong = "Unsloth's trainer and its fused loss are those of a language model"
        yield Violation("model.engine", wrong, 'write "transformers" or "auto"', ("task",))
    if recipe.data.overlong == "split":
        instead = 'write "truncate", "drop" or "error"'
        yield Violation("data.overlong", "a text has one row: its label is that of the whole", instead, ("task",))
    if recipe.data.format not in ("auto", "classification", "messages"):
        instead = 'remove the line, or write "classification" or "messages"'
        yield Violation("data.format", "has no labels", instead, ("task",))
    for kind in (kind for kind in recipe.export.formats if kind not in ("adapter", "merged_16bit")):
        wrong = "llama.cpp's format has no classification head" if kind == "gguf" else "keeps no exact head"
        instead = 'write formats = ["adapter"] or ["merged_16bit"]'
        yield Violation("export.formats", wrong, instead, ("task",), json.dumps(kind))
    yield from _labels(recipe)


def _labels(recipe: Recipe) -> Iterator[Violation]:
    """The names of the labels, and their weights."""
    own = recipe.classification
    twice = next((name for name in own.labels if own.labels.count(name) > 1), None)
    if twice is not None:
        yield Violation("classification.labels", "names one label twice", "name it once", got=json.dumps(twice))
    if len(own.labels) == 1 and not own.multi_label:
        yield Violation("classification.labels", "is one label: there is nothing to tell apart", "name at least two")
    if any(not name.strip() or ";" in name for name in own.labels):
        yield Violation("classification.labels", "has a name that is empty or has a semicolon", "write a plain name")
    if own.multi_label and len(own.labels) > MOST_OF_SEVERAL:
        instead = f"name at most {MOST_OF_SEVERAL}"
        yield Violation("classification.labels", "are too many for multi_label = true", instead, got="")
    if isinstance(own.class_weights, dict):
        yield from _class_weights(own.labels, own.class_weights)


def _class_weights(labels: tuple[str, ...], weights: dict[str, float]) -> Iterator[Violation]:
    for name, weight in weights.items():
        if labels and name not in labels:
            instead = f"write one of {', '.join(labels)}"
            yield Violation("classification.class_weights", "has a label that is none", instead, (), json.dumps(name))
        if weight <= 0:
            wrong = "a weight is above 0"
            yield Violation("classification.class_weights", wrong, "leave the rows out instead", (), f"{weight:g}")
