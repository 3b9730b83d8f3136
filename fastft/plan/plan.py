"""The exact program of a run: a pure function from a recipe and the facts to frozen numbers, calls and reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastft.errors import Problem
from fastft.facts import Facts
from fastft.plan.calls import Call, adapter_call, load_call, trainer_call
from fastft.plan.choices import (
    Choice,
    choose_accumulation,
    choose_batching,
    choose_checkpointing,
    choose_engine,
    choose_optimizer,
    choose_precision,
    packed_rows,
)
from fastft.plan.disk import Disk, make_disk
from fastft.plan.obstacles import find_obstacles
from fastft.plan.schedule import Schedule, make_schedule
from fastft.probe.base_model import BaseModel
from fastft.probe.software import TESTED, release
from fastft.recipe.loader import LoadedRecipe


@dataclass(frozen=True)
class Plan:
    """What will happen. `obstacles` are what stops this machine from running it; the recipe itself is sound."""

    recipe: str
    run_dir: str
    engine: str
    device: str
    base_model: str
    schedule: Schedule
    disk: Disk
    choices: Mapping[str, Choice]
    warnings: tuple[str, ...]
    obstacles: tuple[Problem, ...]
    calls: tuple[Call, ...]

    def call(self, name: str) -> Call:
        """The call whose name ends in `name`.

        Raises:
            KeyError: the plan has no such call.
        """
        for call in self.calls:
            if call.name.endswith(name):
                return call
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values, in the order in which it is read."""
        values = dataclasses.asdict(self)
        values["obstacles"] = [str(problem) for problem in self.obstacles]
        values["calls"] = [{"name": call.name, "kwargs": dict(call.kwargs)} for call in self.calls]
        return values


def make_plan(loaded: LoadedRecipe, facts: Facts, run_dir: str) -> Plan:
    """The plan of a recipe on what `facts` found; writes nothing, asks nothing."""
    recipe, device = loaded.recipe, facts.device
    engine = choose_engine(recipe, facts.installed)
    choices: dict[str, Choice] = {
        "model.engine": engine,
        **choose_precision(recipe, device),
        "train.optim": choose_optimizer(recipe, device),
        "train.gradient_checkpointing": choose_checkpointing(recipe, engine.value, device),
        **choose_batching(recipe, engine.value, device),
    }
    packing = bool(choices["train.packing"].value)
    devices = device.count if device.is_gpu else 1
    choices["train.gradient_accumulation_steps"] = choose_accumulation(recipe, devices, packing, facts.lengths)
    schedule = _schedule(loaded, facts, choices, devices)
    transformers = release(facts.installed.get("transformers", TESTED["transformers"]))
    calls = [load_call(recipe, _model_path(facts.base_model), engine.value, choices)]
    if not recipe.model.full_finetuning:
        calls.append(adapter_call(recipe, engine.value, choices))
    deepspeed = None if recipe.train.deepspeed is None else str(loaded.folder / recipe.train.deepspeed)
    calls.append(trainer_call(recipe, f"{run_dir}/checkpoints", choices, transformers, deepspeed))
    disk = make_disk(recipe, facts.base_model, facts.free_disk_bytes)
    return Plan(
        recipe=str(loaded.path),
        run_dir=run_dir,
        engine=engine.value,
        device=str(device),
        base_model=recipe.model.id,
        schedule=schedule,
        disk=disk,
        choices=choices,
        warnings=tuple(_warnings(loaded, schedule)),
        obstacles=find_obstacles(loaded, device, facts.installed, facts.base_model, disk, engine.value),
        calls=tuple(calls),
    )


def _schedule(loaded: LoadedRecipe, facts: Facts, choices: Mapping[str, Choice], devices: int) -> Schedule:
    train = loaded.recipe.train
    examples, held_out = facts.train_examples, facts.eval_examples
    rows = examples
    if choices["train.packing"].value:
        rows = packed_rows(facts.lengths, loaded.recipe.model.max_seq_length) if facts.lengths else None
    return make_schedule(
        examples=examples,
        rows=rows,
        eval_examples=held_out,
        batch=train.per_device_train_batch_size,
        accumulation=choices["train.gradient_accumulation_steps"].value,
        devices=devices,
        epochs=train.num_train_epochs or 1.0,
        max_steps=train.max_steps,
        warmup_ratio=train.warmup_ratio,
        warmup_steps=train.warmup_steps,
    )


def _model_path(model: BaseModel) -> str:
    """What the loader is given: a local folder wherever there is one, so that nothing is looked up again."""
    return str(model.folder) if model.folder is not None else model.id


def _warnings(loaded: LoadedRecipe, schedule: Schedule) -> list[str]:
    """What is allowed and probably not meant."""
    warnings: list[str] = []
    train, steps = loaded.recipe.train, schedule.optimizer_steps
    asked, got = train.effective_batch_size, schedule.examples_per_optimizer_step
    # Whole packed rows come near a number of examples, rarely to it; a tenth off changes no result.
    if asked is not None and got is not None and abs(got - asked) > asked / 10:
        batch, accumulation = schedule.per_device_train_batch_size, schedule.gradient_accumulation_steps
        held = f"{batch} x {accumulation} accumulated x {schedule.devices} devices"
        warnings.append(f"an optimizer step holds {got:g} examples ({held}), not effective_batch_size = {asked}")
    if steps is None:
        return warnings
    if schedule.warmup_steps is not None and steps > 1 and schedule.warmup_steps >= steps:
        warnings.append(f"the warm-up of {schedule.warmup_steps} steps is as long as the run of {steps} steps")
    for name, every in (("eval_steps", train.eval_steps), ("save_steps", train.save_steps)):
        if every is not None and every > steps:
            warnings.append(f"train.{name} = {every} is never reached: the run has {steps} steps")
    epochs = schedule.num_train_epochs
    if train.max_steps is not None and epochs is not None:
        warnings.append(f"max_steps = {train.max_steps} is {epochs:.3g} epochs of this data")
    return warnings
