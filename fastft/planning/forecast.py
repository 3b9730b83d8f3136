"""Batching, memory and time of a run, put together from the lengths, the sizes of the model and the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastft.planning.batching import (
    MEASURED_ROWS,
    Batching,
    Mode,
    Padding,
    batches_to_measure,
    describe,
    measure,
    packed_rows,
    recommend,
)
from fastft.planning.choices import Choice, choose_batching
from fastft.planning.disk import trained_weights
from fastft.planning.facts import Facts
from fastft.planning.fitting import MemoryForecast, fit, memory_settings
from fastft.planning.memory import forecast_memory
from fastft.planning.schedule import Schedule
from fastft.planning.timing import Rate, Time, Work, device_rate, forecast_time, seconds_per_epoch, work_per_token
from fastft.probe.architecture import Architecture
from fastft.recipe.model import Recipe

UNKNOWN_MODEL = "the sizes of the base model are unknown until it is here"


@dataclass(frozen=True)
class Forecast:
    """What the lengths, the model and the device say about a run."""

    batching: Batching
    memory: MemoryForecast
    time: Time


def make_forecast(
    recipe: Recipe,
    facts: Facts,
    choices: Mapping[str, Choice],
    schedule: Schedule,
    model: Architecture | None,
    packed: Sequence[int] | None,
    price_per_hour: float | None,
) -> Forecast:
    """The three forecasts; each says what is missing where it cannot be made."""
    batch = recipe.train.per_device_train_batch_size
    active, because = _active(choices, facts)
    table = _table(recipe, facts, schedule, packed)
    row = next((entry for entry in table if (entry.mode, entry.batch) == (active, batch)), None)
    lengths = describe(facts.lengths) if facts.lengths else None
    work = None
    if model is not None:
        work = work_per_token(
            model,
            adapter_weights=trained_weights(recipe, model) or 0,
            full_finetuning=recipe.model.full_finetuning,
            recomputes=choices["train.gradient_checkpointing"].value is not False,
            span=lengths.mean_span if lengths else recipe.model.max_seq_length,
        )
    rate = device_rate(facts.device)
    seconds = _seconds(table, lengths.tokens if lengths else 0, work, rate, model, recipe.model.load_in_4bit)
    available = _available(recipe, choices, facts)
    recommended, speed_up = (None, None) if row is None else recommend(table, row, available, seconds)
    rows = facts.rows
    batching = Batching(
        active=active,
        active_because=because,
        available=available,
        recommended=recommended,
        recommended_because=_advice(active, recommended, row, facts),
        speed_up=None if speed_up is None else round(speed_up, 3),
        lengths=lengths,
        lost=None
        if rows is None
        else {"rows": rows.lost_rows, "tokens": rows.lost_tokens, "longest": rows.longest, "overlong": rows.overlong},
        measured_rows=min(len(facts.lengths), MEASURED_ROWS) if facts.lengths else 0,
        table=table,
    )
    return Forecast(
        batching,
        _memory(recipe, facts, choices, schedule, model, row),
        _time(facts, schedule, work, rate, row, seconds, model, price_per_hour),
    )


def _active(choices: Mapping[str, Choice], facts: Facts) -> tuple[Mode, str]:
    """How examples meet in this run, and why."""
    packing, grouping = choices["train.packing"], choices["train.group_by_length"]
    if packing.value:
        return "packing", packing.reason
    if _flattens(choices, facts):
        return "padding_free", "Unsloth flattens micro-batches on a GPU, so nothing is padded"
    if grouping.value:
        return "group_by_length", grouping.reason
    return "random", "examples come in random order, padded to the longest of each micro-batch"


# Models whose examples Unsloth keeps apart in neither way (unsloth/trainer.py, PADDING_FREE_BLOCKLIST).
NOT_FLATTENED = ("gemma2", "gpt_oss")


def _flattens(choices: Mapping[str, Choice], facts: Facts) -> bool:
    """Whether micro-batches are flattened: by Unsloth on a GPU, where its attention for the model can."""
    can = facts.base_model.config.get("model_type") not in NOT_FLATTENED
    return can and facts.device.is_gpu and choices["model.engine"].value == "unsloth"


def _available(recipe: Recipe, choices: Mapping[str, Choice], facts: Facts) -> tuple[Mode, ...]:
    """The modes that can be active here: where attention keeps examples apart, no padding is needed."""
    if _flattens(choices, facts):
        return ("padding_free", "packing")
    with_packing = recipe.model_copy(update={"train": recipe.train.model_copy(update={"packing": True})})
    if choose_batching(with_packing, str(choices["model.engine"].value), facts.device)["train.packing"].value:
        return ("random", "group_by_length", "packing")
    return ("random", "group_by_length")


def _table(
    recipe: Recipe,
    facts: Facts,
    schedule: Schedule,
    packed: Sequence[int] | None,
) -> tuple[Padding, ...]:
    if not facts.lengths:
        return ()
    batch, capacity = recipe.train.per_device_train_batch_size, recipe.model.max_seq_length
    return measure(
        facts.lengths,
        packed if packed is not None else packed_rows(facts.lengths[:MEASURED_ROWS], capacity),
        capacity=capacity,
        seed=recipe.train.seed,
        batches=batches_to_measure(batch),
        rows_per_step=batch * (schedule.gradient_accumulation_steps or 1),
    )


def _seconds(
    table: Sequence[Padding],
    tokens: int,
    work: Work | None,
    rate: Rate | None,
    model: Architecture | None,
    load_in_4bit: bool,
) -> dict[tuple[Mode, int], float]:
    """What an epoch takes in each mode and batch; in computed tokens where model or device are not known."""
    if work is None or rate is None or model is None:
        return {(row.mode, row.batch): tokens / (1 - row.padding_share) for row in table}
    return {
        (row.mode, row.batch): seconds_per_epoch(row, tokens, work, rate, model, load_in_4bit=load_in_4bit)
        for row in table
    }


def _advice(active: Mode, recommended: Mode | None, row: Padding | None, facts: Facts) -> str:
    if recommended is None or row is None:
        return facts.rows_missing
    if recommended == active:
        return f"{row.padding_share:.1%} of the computed tokens are padding: nothing here is faster"
    return f"{row.padding_share:.1%} of the computed tokens are padding with {active}"


def _memory(
    recipe: Recipe,
    facts: Facts,
    choices: Mapping[str, Choice],
    schedule: Schedule,
    model: Architecture | None,
    row: Padding | None,
) -> MemoryForecast:
    device, batch, limit = facts.device, recipe.train.per_device_train_batch_size, recipe.model.max_seq_length
    tokens = batch * limit if row is None else row.most_tokens
    where = f"{batch} rows of max_seq_length" if row is None else f"the largest of the first epoch's, {row.mode}"
    if model is None:
        return MemoryForecast(str(device), device.memory_bytes, where, None, None, UNKNOWN_MODEL)
    settings = memory_settings(recipe, device, choices, str(choices["model.engine"].value))
    row_tokens = max(1, -(-tokens // batch))
    memory = forecast_memory(model, settings, tokens, device.memory_bytes, row_tokens)
    accumulation = schedule.gradient_accumulation_steps
    fitting = fit(
        model,
        settings,
        memory,
        batch=batch,
        row_tokens=row_tokens,
        rows_per_step=None if accumulation is None else batch * accumulation,
    )
    return MemoryForecast(str(device), device.memory_bytes, where, memory, fitting, "")


def _time(
    facts: Facts,
    schedule: Schedule,
    work: Work | None,
    rate: Rate | None,
    row: Padding | None,
    seconds: Mapping[tuple[Mode, int], float],
    model: Architecture | None,
    price_per_hour: float | None,
) -> Time:
    missing = ""
    if model is None:
        missing = UNKNOWN_MODEL
    elif rate is None:
        missing = f"the rate of {facts.device.name} is not known"
    elif row is None:
        missing = facts.rows_missing
    tokens = total = None
    if facts.lengths and schedule.num_train_epochs is not None:
        tokens = round(sum(facts.lengths) * schedule.num_train_epochs)
        if not missing and row is not None:
            total = seconds[row.mode, row.batch] * schedule.num_train_epochs / facts.processes
    return forecast_time(total, tokens, work, rate, price_per_hour, missing)
