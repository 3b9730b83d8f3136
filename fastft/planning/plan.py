"""The exact program of a run: a pure function from a recipe and the facts to frozen numbers, calls and reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastft.errors import Problem
from fastft.planning.batching import Batching, Mode, packed_rows
from fastft.planning.calls import Call, adapter_call, load_call, trainer_call
from fastft.planning.cautions import Caution, Sight, find_cautions
from fastft.planning.choices import (
    Choice,
    choose_accumulation,
    choose_batching,
    choose_checkpointing,
    choose_engine,
    choose_optimizer,
    choose_precision,
)
from fastft.planning.disk import Disk, make_disk
from fastft.planning.facts import Facts
from fastft.planning.fitting import MemoryForecast
from fastft.planning.forecast import make_forecast
from fastft.planning.obstacles import find_obstacles
from fastft.planning.schedule import Schedule, make_schedule
from fastft.planning.timing import Time
from fastft.probe.architecture import architecture_of
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
    batching: Batching
    memory: MemoryForecast
    time: Time
    disk: Disk
    choices: Mapping[str, Choice]
    warnings: tuple[Caution, ...]
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
        values["memory"] = self.memory.as_json()
        values["obstacles"] = [str(problem) for problem in self.obstacles]
        values["calls"] = [{"name": call.name, "kwargs": dict(call.kwargs)} for call in self.calls]
        return values


def make_plan(loaded: LoadedRecipe, facts: Facts, run_dir: str, price_per_hour: float | None = None) -> Plan:
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
    packed = None
    if packing and facts.lengths:
        packed = packed_rows(facts.lengths, recipe.model.max_seq_length)
    per_row = len(facts.lengths) / len(packed) if packed and facts.lengths else None
    choices["train.gradient_accumulation_steps"] = choose_accumulation(recipe, facts.processes, packing, per_row)
    schedule = make_schedule(
        examples=facts.train_examples,
        rows=facts.train_examples if not packing else None if packed is None else len(packed),
        tokens=None if facts.lengths is None else sum(facts.lengths),
        eval_examples=facts.eval_examples,
        accumulation=choices["train.gradient_accumulation_steps"].value,
        devices=facts.processes,
        train=recipe.train,
    )
    architecture = architecture_of(recipe.model.id, facts.base_model.config)
    forecast = make_forecast(recipe, facts, choices, schedule, architecture, packed, price_per_hour)
    disk = make_disk(recipe, facts.base_model, architecture, facts.free_disk_bytes)
    return Plan(
        recipe=str(loaded.path),
        run_dir=run_dir,
        engine=engine.value,
        device=str(device),
        base_model=recipe.model.id,
        schedule=schedule,
        batching=forecast.batching,
        memory=forecast.memory,
        time=forecast.time,
        disk=disk,
        choices=choices,
        warnings=find_cautions(Sight(loaded, facts, schedule, forecast.batching, choices)),
        obstacles=find_obstacles(loaded, device, facts.installed, facts.base_model, disk, engine.value),
        calls=_calls(loaded, facts, choices, forecast.batching.active, engine.value, run_dir),
    )


def with_smaller_batch(loaded: LoadedRecipe, plan: Plan) -> LoadedRecipe:
    """The recipe of `plan` with half the batch (an odd one: its largest divisor), the accumulation grown to match.

    The order of the rows depends on the product alone, so each optimizer step has the very rows that it had. The batch
    must be larger than 1.
    """
    batch, accumulation = plan.schedule.per_device_train_batch_size, plan.schedule.gradient_accumulation_steps or 1
    smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
    changes = {
        "per_device_train_batch_size": smaller,
        "gradient_accumulation_steps": accumulation * (batch // smaller),
        "effective_batch_size": None,
    }
    train = loaded.recipe.train.model_copy(update=changes)
    return dataclasses.replace(loaded, recipe=loaded.recipe.model_copy(update={"train": train}))


def _calls(
    loaded: LoadedRecipe, facts: Facts, choices: Mapping[str, Choice], mode: Mode, engine: str, run_dir: str
) -> tuple[Call, ...]:
    recipe = loaded.recipe
    transformers = release(facts.installed.get("transformers", TESTED["transformers"]))
    calls = [load_call(recipe, _model_path(facts.base_model), engine, choices)]
    if not recipe.model.full_finetuning:
        calls.append(adapter_call(recipe, engine, choices))
    deepspeed = None if recipe.train.deepspeed is None else str(loaded.folder / recipe.train.deepspeed)
    calls.append(trainer_call(recipe, f"{run_dir}/checkpoints", choices, mode, transformers, deepspeed))
    return tuple(calls)


def _model_path(model: BaseModel) -> str:
    """What the loader is given: a local folder wherever there is one, so that nothing is looked up again."""
    return str(model.folder) if model.folder is not None else model.id
