"""What the optimizer of a recipe cannot do, and what only another one can."""

from __future__ import annotations

import json
from collections.abc import Iterator

from fastft.errors import nearest
from fastft.recipe.model import Recipe
from fastft.recipe.optimizers import OPTIMIZERS, Optimizer
from fastft.recipe.violation import Given, Violation


def optimizer(recipe: Recipe, _: Given) -> Iterator[Violation]:
    """The rules of `train.optim`, `train.optim_args` and `train.loraplus_lr_ratio`."""
    row, train = OPTIMIZERS[recipe.train.optim], recipe.train
    if row.refused:
        yield Violation("train.optim", f"is not run here: {row.refused}", f'write "{row.instead}"')
        return
    yield from _arguments(recipe, row)
    yield from _trained(recipe, row)
    if row.schedules_itself and train.lr_scheduler_type != "constant":
        wrong = f"{row.name} averages the weights instead of lowering the learning rate"
        yield Violation("train.lr_scheduler_type", wrong, 'write lr_scheduler_type = "constant"', ("train.optim",))
    if train.loraplus_lr_ratio is not None and train.shares_model:
        wrong = "has rates of its own for A and B, which nobody has proven where ranks share the adapter"
        reads = ("train.deepspeed", "train.fsdp")
        yield Violation("train.loraplus_lr_ratio", wrong, "remove it, or train.deepspeed or train.fsdp", reads)


def _arguments(recipe: Recipe, row: Optimizer) -> Iterator[Violation]:
    given = recipe.train.optim_args
    for name, value in given.items():
        argument, got = row.arguments.get(name), json.dumps({name: value})
        if argument is None:
            close = nearest(name, row.arguments)
            known = f"it has {', '.join(row.arguments)}" if row.arguments else "remove the line"
            wrong = f"{row.name} has no argument {name}"
            yield Violation(
                "train.optim_args", wrong, f"did you mean {close}?" if close else known, ("train.optim",), got
            )
        elif (instead := argument.refusal(value)) is not None:
            yield Violation("train.optim_args", f"{name} is not {instead}", f"write {instead}", ("train.optim",), got)
        elif argument.needs and value and not given.get(argument.needs):
            wrong = f"{name} has no effect without {argument.needs}"
            yield Violation("train.optim_args", wrong, f"add {argument.needs}, or remove it", ("train.optim",), got)


def _trained(recipe: Recipe, row: Optimizer) -> Iterator[Violation]:
    """What the optimizer cannot move."""
    if row.whole_layers and not recipe.model.full_finetuning:
        wrong = f"{row.name} projects the gradients of whole layers; an adapter is of low rank already"
        instead = "set model.full_finetuning = true, or write another optimizer"
        yield Violation("train.optim", wrong, instead, ("model.full_finetuning",))
    if not row.matrices_only:
        return
    lora = recipe.lora
    others = {
        "model.full_finetuning": recipe.model.full_finetuning,
        "lora.use_dora": lora.use_dora,
        "lora.bias": lora.bias != "none",
        "lora.modules_to_save": bool(lora.modules_to_save),
        "data.add_tokens": bool(recipe.data.add_tokens),
        "data.add_special_tokens": bool(recipe.data.add_special_tokens),
    }
    for field in (name for name, trained in others.items() if trained):
        wrong = f"{row.name} moves the matrices of an adapter alone, and {field} trains more than those"
        yield Violation("train.optim", wrong, f"remove {field}, or write another optimizer", (field,))
