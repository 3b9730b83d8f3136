"""Keys of a recipe that have an effect only beside others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastft.recipe.hub_id import is_hub_id
from fastft.recipe.model import ClassificationSection, LoraSection, PreferenceSection, Recipe
from fastft.recipe.optimizers import OPTIMIZERS
from fastft.recipe.violation import Given, Violation


@dataclass(frozen=True)
class _Need:
    """Keys that only have an effect where `met` is true."""

    fields: tuple[str, ...]
    met: Callable[[Recipe], bool]
    because: str
    instead: str
    reads: tuple[str, ...]


_NEEDS = (
    _Need(
        tuple(f"lora.{key}" for key in LoraSection.model_fields),
        lambda recipe: not recipe.model.full_finetuning,
        "model.full_finetuning = true trains every weight, without an adapter",
        "remove the line, or set model.full_finetuning = false",
        ("model.full_finetuning",),
    ),
    _Need(
        tuple(f"classification.{key}" for key in ClassificationSection.model_fields),
        lambda recipe: recipe.task == "classification",
        'task is not "classification"',
        'write task = "classification" at the top of the recipe, or remove the line',
        ("task",),
    ),
    _Need(
        tuple(f"preference.{key}" for key in PreferenceSection.model_fields),
        lambda recipe: recipe.task == "preference",
        'task is not "preference"',
        'write task = "preference" at the top of the recipe, or remove the line',
        ("task",),
    ),
    _Need(
        ("preference.label_smoothing",),
        lambda recipe: recipe.preference.loss == "dpo",
        'preference.loss is not "dpo"',
        "remove the line",
        ("preference.loss",),
    ),
    _Need(
        ("preference.desirable_weight", "preference.undesirable_weight"),
        lambda recipe: recipe.preference.loss == "kto",
        'preference.loss is not "kto"',
        "remove the line",
        ("preference.loss",),
    ),
    _Need(
        ("data.train_on", "data.turns", "train.packing"),
        lambda recipe: recipe.task != "preference",
        'task = "preference" trains the answers that are judged, each pair as one row',
        "remove the line",
        ("task",),
    ),
    _Need(
        (
            *("data.chat_template", "data.chat_template_kwargs", "data.train_on", "data.turns", "data.may_drop"),
            *("data.template_date", "data.allow_assistant_first", "train.packing", "eval.exact_match"),
        ),
        lambda recipe: recipe.task != "classification",
        'task = "classification" has texts and labels, no answers',
        "remove the line",
        ("task",),
    ),
    _Need(
        ("train.eval_steps",),
        lambda recipe: recipe.train.eval_strategy == "steps",
        'train.eval_strategy is not "steps"',
        'set train.eval_strategy = "steps", or remove the line',
        ("train.eval_strategy",),
    ),
    _Need(
        ("train.save_steps",),
        lambda recipe: recipe.train.save_strategy == "steps",
        'train.save_strategy is not "steps"',
        'set train.save_strategy = "steps", or remove the line',
        ("train.save_strategy",),
    ),
    _Need(
        ("train.save_total_limit",),
        lambda recipe: recipe.train.save_strategy != "no",
        'no checkpoints are written with train.save_strategy = "no"',
        'set train.save_strategy = "epoch" or "steps", or remove the line',
        ("train.save_strategy",),
    ),
    _Need(
        ("train.metric_for_best_model",),
        lambda recipe: recipe.train.load_best_model_at_end or recipe.train.early_stopping_patience is not None,
        "neither train.load_best_model_at_end nor train.early_stopping_patience asks for a best model",
        "set one of them, or remove the line",
        ("train.load_best_model_at_end", "train.early_stopping_patience"),
    ),
    _Need(
        ("train.early_stopping_patience",),
        lambda recipe: recipe.train.eval_strategy != "no",
        'nothing is evaluated during training with train.eval_strategy = "no"',
        'set train.eval_strategy = "epoch" or "steps", or remove the line',
        ("train.eval_strategy",),
    ),
    _Need(
        (
            *("eval.max_examples", "eval.max_new_tokens", "eval.regression_set"),
            *("eval.answer_format", "eval.answer_pattern", "eval.answer_schema"),
        ),
        lambda recipe: recipe.eval.exact_match,
        "answers are generated only with eval.exact_match = true",
        "set eval.exact_match = true, or remove the line",
        ("eval.exact_match",),
    ),
    _Need(
        (
            *("data.chat_template", "data.chat_template_kwargs", "data.train_on", "data.turns", "data.may_drop"),
            "data.template_date",
        ),
        lambda recipe: recipe.data.format != "text",
        'data.format = "text" has no messages: every token is trained',
        "remove the line, or use a format with messages",
        ("data.format",),
    ),
    _Need(
        ("export.quantization",),
        lambda recipe: "gguf" in recipe.export.formats,
        'export.formats does not contain "gguf"',
        'add "gguf" to export.formats, or remove the line',
        ("export.formats",),
    ),
    _Need(
        ("train.adam_beta1", "train.adam_beta2"),
        lambda recipe: OPTIMIZERS[recipe.train.optim].takes_betas,
        "train.optim has no such betas",
        'set train.optim = "adamw_torch" or "adamw_8bit", or remove the line',
        ("train.optim",),
    ),
    _Need(
        ("train.adam_epsilon",),
        lambda recipe: OPTIMIZERS[recipe.train.optim].takes_epsilon,
        "train.optim is not an AdamW",
        'set train.optim = "adamw_torch" or "adamw_8bit", or remove the line',
        ("train.optim",),
    ),
    _Need(
        ("train.weight_decay",),
        lambda recipe: OPTIMIZERS[recipe.train.optim].takes_weight_decay,
        "transformers passes train.optim no weight decay",
        "remove the line",
        ("train.optim",),
    ),
    _Need(
        ("train.loraplus_lr_ratio",),
        lambda recipe: not recipe.model.full_finetuning,
        "model.full_finetuning = true trains every weight, without an adapter",
        "remove the line, or set model.full_finetuning = false",
        ("model.full_finetuning",),
    ),
    _Need(
        ("model.revision",),
        lambda recipe: is_hub_id(recipe.model.id),
        "model.id is not a Hub id",
        "remove the line: a local file has no revisions",
        ("model.id",),
    ),
)


def needs(recipe: Recipe, given: Given) -> Iterator[Violation]:
    """The keys of `given` that have no effect in `recipe`."""
    for need in _NEEDS:
        for field in need.fields:
            if field in given and not need.met(recipe):
                yield Violation(field, f"has no effect: {need.because}", need.instead, need.reads)
