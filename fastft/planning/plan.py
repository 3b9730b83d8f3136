"""The exact program of a run: a pure function from a recipe and the facts to frozen numbers, calls and reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastft.errors import Problem
from fastft.planning.batching import Batching, Mode, UnknownBatching, packed_rows
from fastft.planning.calls import Calls, adapter_call, load_call, trainer_call
from fastft.planning.cautions import Caution, Sight, find_cautions
from fastft.planning.choices import Choices, can_flatten, choose_engine, choose_packing, make_choices
from fastft.planning.disk import Disk, make_disk
from fastft.planning.facts import Estimate, Facts
from fastft.planning.fitting import MemoryForecast, UnknownMemory, fit_checkpointing, memory_settings
from fastft.planning.forecast import make_forecast
from fastft.planning.obstacles import find_obstacles
from fastft.planning.schedule import Schedule, UnknownSchedule, make_schedule, unknown_schedule
from fastft.planning.timing import Time, UnknownTime
from fastft.probe.architecture import Architecture, architecture_of
from fastft.probe.software import TESTED, release
from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.model import Recipe


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


def make_plan(loaded: LoadedRecipe, facts: Facts, run_dir: str, price_per_hour: float | None = None) -> Plan:
    """The plan of a recipe on what `facts` found; writes nothing, asks nothing."""
    recipe, device, lengths = loaded.recipe, facts.device, facts.lengths
    ranks_on_cpu = facts.processes > 1 and not device.is_gpu
    engine = choose_engine(recipe, facts.installed, ranks_on_cpu=ranks_on_cpu)
    flat = can_flatten(facts.base_model)
    packing = choose_packing(recipe, engine.value, device, flat=flat)
    packed = packed_rows(lengths, recipe.model.max_seq_length) if packing.value and lengths else None
    per_row = len(lengths) / len(packed) if packed and lengths else None
    choices = make_choices(recipe, device, facts.processes, engine, packing, per_row, facts.base_model, flat=flat)
    schedule = _schedule(recipe, facts, choices, packed)
    architecture = architecture_of(recipe.model.id, facts.base_model.config)
    if architecture is not None and recipe.task == "classification":
        # The head has a row a label, not a token.
        architecture = dataclasses.replace(architecture, ties_embeddings=True)
    if recipe.train.gradient_checkpointing == "auto":
        choices = _with_checkpointing(recipe, facts, choices, architecture)
    disk = make_disk(recipe, facts.base_model, architecture, facts.free_disk_bytes, facts.free_cache_bytes)
    download = disk.download_bytes if facts.base_model.source == "hub" else None
    batching, memory, time = make_forecast(
        recipe, facts, choices, schedule, architecture, packed, download, price_per_hour
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
        obstacles=find_obstacles(loaded, facts, disk, engine.value, choices.target_modules.value),
        calls=_calls(loaded, facts, choices, batching.active, run_dir),
    )


def with_less_memory(loaded: LoadedRecipe, plan: Plan) -> LoadedRecipe | None:
    """The recipe of `plan` after memory ran out; None where nothing is left to try.

    First "auto" recomputes what it kept. Then half the batch (an odd one: its largest divisor), and the accumulation
    grows to match: the order of the rows depends on the product alone, so each optimizer step keeps its rows.
    """
    batch, accumulation = plan.schedule.per_device_train_batch_size, plan.schedule.gradient_accumulation_steps or 1
    changes: dict[str, object] = {}
    if loaded.recipe.train.gradient_checkpointing == "auto":
        # The forecast was wrong once: what it says of a smaller batch decides nothing.
        changes["gradient_checkpointing"] = "unsloth" if plan.engine == "unsloth" else True
    if plan.choices.recomputes or not changes:
        if batch == 1:
            return None
        smaller = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
        changes |= {
            "per_device_train_batch_size": smaller,
            "gradient_accumulation_steps": accumulation * (batch // smaller),
            "effective_batch_size": None,
        }
    else:
        changes |= {"gradient_accumulation_steps": accumulation, "effective_batch_size": None}
    train = loaded.recipe.train.model_copy(update=changes)
    return dataclasses.replace(loaded, recipe=loaded.recipe.model_copy(update={"train": train}))


def _with_checkpointing(recipe: Recipe, facts: Facts, choices: Choices, model: Architecture | None) -> Choices:
    """`choices` with gradient checkpointing by the forecast, for the largest micro-batch that there can be."""
    rows, row_tokens = facts.rows, recipe.model.max_seq_length
    if rows is not None and rows.lengths and not choices.packing.value:
        error = rows.estimate.error if rows.estimate else 0.0
        row_tokens = min(row_tokens, round(max(rows.lengths) * (1 + error)))
    settings = memory_settings(recipe, facts.device, choices)
    batch = recipe.train.per_device_train_batch_size
    decided = fit_checkpointing(choices, facts.device, model, settings, batch, row_tokens)
    return dataclasses.replace(choices, gradient_checkpointing=decided)


def _schedule(
    recipe: Recipe, facts: Facts, choices: Choices, packed: Sequence[int] | None
) -> Schedule | UnknownSchedule:
    examples, accumulation = facts.train_examples, choices.gradient_accumulation_steps.value
    rows = examples if not choices.packing.value else None if packed is None else len(packed)
    if examples is None or rows is None or accumulation is None:
        return unknown_schedule(
            examples=examples,
            eval_examples=facts.eval_examples,
            accumulation=accumulation,
            devices=facts.processes,
            train=recipe.train,
        )
    return make_schedule(
        examples=examples,
        rows=rows,
        tokens=None if facts.lengths is None else sum(facts.lengths),
        eval_examples=facts.eval_examples,
        accumulation=accumulation,
        devices=facts.processes,
        train=recipe.train,
        packing=choices.packing.value,
    )


def _calls(loaded: LoadedRecipe, facts: Facts, choices: Choices, mode: Mode, run_dir: str) -> Calls:
    recipe, base = loaded.recipe, facts.base_model
    # A local folder wherever there is one, so that the loader looks nothing up again.
    model_path = base.id if base.folder is None else str(base.folder)
    transformers = release(facts.installed.get("transformers", TESTED["transformers"]))
    deepspeed = None if recipe.train.deepspeed is None else str(loaded.folder / recipe.train.deepspeed)
    return Calls(
        load=load_call(recipe, model_path, choices, facts.labels),
        adapter=None if recipe.model.full_finetuning else adapter_call(recipe, choices),
        trainer=trainer_call(
            recipe,
            f"{run_dir}/checkpoints",
            choices,
            mode,
            transformers,
            deepspeed,
            ranks_on_cpu=facts.processes > 1 and not facts.device.is_gpu,
        ),
    )
