"""The exact program of a run: a pure function from a recipe and the facts to frozen numbers, calls and reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastft.errors import Problem
from fastft.planning.batching import Batching, Mode, UnknownBatching
from fastft.planning.calls import (
    Calls,
    adapter_call,
    load_call,
    optimizer_call,
    shard_call,
    token_calls,
    trainer_call,
)
from fastft.planning.cautions import Caution, Sight, find_cautions
from fastft.planning.choices import Choices, choose_engine
from fastft.planning.chooser import PINNED, pinned, settle, with_origin, with_values
from fastft.planning.disk import Disk, make_disk
from fastft.planning.facts import Estimate, Facts
from fastft.planning.fitting import MemoryForecast, UnknownMemory
from fastft.planning.forecast import make_forecast
from fastft.planning.obstacles import find_obstacles
from fastft.planning.probes import SetUp, set_up_of
from fastft.planning.schedule import Schedule, UnknownSchedule, make_schedule, unknown_schedule
from fastft.planning.sharding import deepspeed_config
from fastft.planning.timing import Time, UnknownTime
from fastft.probe.architecture import architecture_of
from fastft.probe.base_model import BaseModel
from fastft.probe.software import TESTED, release
from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.model import TrainSection


@dataclass(frozen=True)
class Plan:
    """What will happen. `obstacles` are what stops this machine from running it; the recipe itself is sound.

    `estimate`: how token lengths were estimated, None where they were counted or are unknown.
    """

    recipe: str
    task: str
    run_dir: str
    engine: str
    device: str
    base_model: str
    estimate: Estimate | None
    schedule: Schedule | UnknownSchedule
    batching: Batching | UnknownBatching
    memory: MemoryForecast | UnknownMemory
    time: Time | UnknownTime
    disk: Disk
    choices: Choices
    warnings: tuple[Caution, ...]
    obstacles: tuple[Problem, ...]
    calls: Calls

    @property
    def chosen(self) -> Mapping[str, object]:
        """The values of what a recipe may leave open, as `make_plan` takes them in `began`."""
        return {key: getattr(self.choices, key).value for key in PINNED}

    @property
    def set_up(self) -> SetUp:
        """What a recipe may leave open, as it is decided."""
        return set_up_of(self.choices)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values, in the order in which it is read."""
        return dataclasses.asdict(self) | {
            "schedule": self.schedule.as_json(),
            "batching": self.batching.as_json(),
            "memory": self.memory.as_json(),
            "time": self.time.as_json(),
            "choices": {key: dataclasses.asdict(choice) for key, choice in self.choices.by_key().items()},
            "obstacles": [str(problem) for problem in self.obstacles],
            "calls": [{"name": call.name, "kwargs": dict(call.kwargs)} for call in self.calls.in_order],
        }


def make_plan(
    loaded: LoadedRecipe,
    facts: Facts,
    run_dir: str,
    price_per_hour: float | None = None,
    *,
    began: Mapping[str, object] | None = None,
) -> Plan:
    """The plan of a recipe on what `facts` found; writes nothing, asks nothing.

    `began`: what an earlier attempt at this run chose, by key (see `pinned`).
    """
    device = facts.device
    # A GPU computes in the type that it has, whichever one the run began with elsewhere.
    began = {key: value for key, value in (began or {}).items() if key != "dtype" or not device.is_gpu}
    asked = pinned(loaded.recipe, began)
    ranks_on_cpu = facts.processes > 1 and not device.is_gpu
    engine = choose_engine(loaded.recipe, facts.installed, ranks_on_cpu=ranks_on_cpu)
    architecture = architecture_of(loaded.recipe.model.id, facts.base_model.config)
    if architecture is not None and asked.task == "classification":
        # The head has a row a label, not a token.
        architecture = dataclasses.replace(architecture, ties_embeddings=True)
    settled = settle(asked, facts, engine, architecture)
    recipe, packed = settled.recipe, settled.packed
    choices = with_origin(settled.choices, loaded.recipe, began)
    schedule = _schedule(asked.train, facts, choices, packed)
    whole = dataclasses.replace(loaded, recipe=recipe)
    disk = make_disk(recipe, facts.base_model, architecture, facts.free_disk_bytes, facts.free_cache_bytes)
    download = disk.download_bytes if facts.base_model.source == "hub" else None
    batching, memory, time = make_forecast(
        recipe, facts, choices, schedule, architecture, packed, settled.table, download, price_per_hour
    )
    return Plan(
        recipe=str(loaded.path),
        task=recipe.task,
        run_dir=run_dir,
        engine=engine.value,
        device=str(device),
        base_model=recipe.model.id,
        estimate=None if facts.rows is None else facts.rows.estimate,
        schedule=schedule,
        batching=batching,
        memory=memory,
        time=time,
        disk=disk,
        choices=choices,
        warnings=find_cautions(Sight(loaded, facts, schedule, choices)),
        obstacles=find_obstacles(whole, facts, disk, choices),
        calls=_calls(loaded, facts, choices, batching.active, run_dir),
    )


def with_less_memory(loaded: LoadedRecipe, plan: Plan) -> LoadedRecipe | None:
    """The recipe of `plan` after memory ran out; None where nothing is left to try.

    First "auto" recomputes what it kept. Then half the batch (an odd one: its largest divisor), and the accumulation
    grows to match: the order of the rows depends on the product alone, so each optimizer step keeps its rows. All else
    that was open stays as it was chosen: the forecast was wrong once.
    """
    batch, accumulation = plan.schedule.per_device_train_batch_size, plan.schedule.gradient_accumulation_steps or 1
    values = {**plan.chosen}
    if loaded.recipe.train.gradient_checkpointing == "auto":
        values["gradient_checkpointing"] = "unsloth" if plan.engine == "unsloth" else True
    if plan.choices.recomputes or loaded.recipe.train.gradient_checkpointing != "auto":
        if batch == 1:
            return None
        smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
        values["per_device_train_batch_size"] = smaller
        accumulation *= batch // smaller
    recipe = with_values(loaded.recipe, values)
    counts = {"gradient_accumulation_steps": accumulation, "effective_batch_size": None}
    train = recipe.train.model_copy(update=counts)
    return dataclasses.replace(loaded, recipe=recipe.model_copy(update={"train": train}))


def _schedule(
    train: TrainSection, facts: Facts, choices: Choices, packed: Sequence[int] | None
) -> Schedule | UnknownSchedule:
    examples, accumulation = facts.train_examples, choices.gradient_accumulation_steps.value
    rows = examples if not choices.packing.value else None if packed is None else len(packed)
    if examples is None or rows is None or accumulation is None:
        return unknown_schedule(
            examples=examples,
            eval_examples=facts.eval_examples,
            batch=choices.per_device_train_batch_size.value,
            accumulation=accumulation,
            devices=facts.processes,
            train=train,
        )
    return make_schedule(
        examples=examples,
        rows=rows,
        tokens=None if facts.rows is None else facts.rows.tokens,
        eval_examples=facts.eval_examples,
        batch=choices.per_device_train_batch_size.value,
        accumulation=accumulation,
        devices=facts.processes,
        train=train,
        packing=choices.packing.value,
    )


def _calls(loaded: LoadedRecipe, facts: Facts, choices: Choices, mode: Mode, run_dir: str) -> Calls:
    recipe, base = loaded.recipe, facts.base_model
    # A local folder wherever there is one, so that the loader looks nothing up again.
    model_path = base.id if base.folder is None else str(base.folder)
    transformers = release(facts.installed.get("transformers", TESTED["transformers"]))
    return Calls(
        load=load_call(recipe, model_path, choices, facts.labels),
        adapter=None if recipe.model.full_finetuning else adapter_call(recipe, choices, tied=_ties(base)),
        tokens=token_calls(recipe),
        shard=shard_call(recipe),
        trainer=trainer_call(
            recipe,
            f"{run_dir}/checkpoints",
            choices,
            mode,
            transformers,
            deepspeed_config(recipe, facts, choices),
            ranks_on_cpu=facts.processes > 1 and not facts.device.is_gpu,
        ),
        optimizer=optimizer_call(recipe, choices),
    )


def _ties(base: BaseModel) -> bool:
    """Whether the output layer of `base` is its embedding; by transformers' default where its sizes are unknown."""
    model = architecture_of(base.id, base.config)
    return bool(base.config.get("tie_word_embeddings", True)) if model is None else model.ties_embeddings
