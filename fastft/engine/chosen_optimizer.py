"""The optimizer of a run where the trainer does not make it by itself: torch's Muon, LoRA+, averaged weights."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastft.planning.calls import Calls
from fastft.recipe.optimizers import OPTIMIZERS


def make_optimizer(calls: Calls, model: Any, args: TrainingArguments) -> torch.optim.Optimizer | None:
    """The optimizer of the plan over the trained weights of `model`; None where the trainer makes it by its `optim`."""
    call = calls.optimizer
    if call is None:
        return None
    if call.name != "peft.optimizers.create_loraplus_optimizer":
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        made: torch.optim.Optimizer = resolve_name(call.name)(trained, weight_decay=args.weight_decay, **call.kwargs)
        return made
    kwargs = dict(call.kwargs)
    if "optimizer_cls" in kwargs:
        return create_loraplus_optimizer(model, **{**kwargs, "optimizer_cls": resolve_name(kwargs["optimizer_cls"])})
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return create_loraplus_optimizer(model, kind, **{**settings, **kwargs})


def trust_state_classes(name: str) -> None:
    """Let checkpoints hold what the state of optimizer `name` consists of: they are read as tensors alone else."""
    torch.serialization.add_safe_globals([resolve_name(path) for path in OPTIMIZERS[name].state_classes])


class Averaged(TrainerCallback):
    """Leaves the weights of a schedule-free optimizer averaged between two steps.

    Evaluations, checkpoints and the trained adapter then all have the weights that the method is about, and a run that
    was stopped goes on from the numbers of one that was not.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer.optimizer.eval()
