"""Batching, memory and time of a run, put together from the lengths, the sizes of the model and the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastft.planning.batching import (
    MEASURED_ROWS,
    Batching,
    Lost,
    Mode,
    Padding,
    UnknownBatching,
    batches_to_measure,
    describe,
    measure,
    packed_rows,
    recommend,
)
from fastft.planning.choices import Choices, can_flatten, choose_packing
from fastft.planning.facts import Facts
from fastft.planning.fitting import MemoryForecast, UnknownMemory, find_fitting, memory_settings
from fastft.planning.measured import rate_key
from fastft.planning.memory import forecast_memory
from fastft.planning.schedule import Schedule, UnknownSchedule
from fastft.planning.throughput import kind_of
from fastft.planning.timing import Interval, Rate, Time, UnknownTime, device_rate, download_seconds, seconds_per_epoch
from fastft.planning.trained import adapter_weights, full_layers
from fastft.planning.work import Work, work_per_token
from fastft.probe.architecture import Architecture
from fastft.recipe.model import Recipe

UNKNOWN_MODEL = "the sizes of the base model are unknown until it is here"


def make_forecast(
    recipe: Recipe,
    facts: Facts,
    choices: Choices,
    schedule: Schedule | UnknownSchedule,
    model: Architecture | None,
    packed: Sequence[int] | None,
    table: Sequence[Padding],
    download_bytes: int | None,
    price_per_hour: float | None,
) -> tuple[Batching | UnknownBatching, MemoryForecast | UnknownMemory, Time | UnknownTime]:
    """The three forecasts; each says what is missing where it cannot be made."""
    batch, mode = choices.per_device_train_batch_size.value, _active(choices, facts)[0]
    row_tokens = recipe.row_tokens
    if facts.lengths and mode != "packing":
        row_tokens = round(describe(facts.lengths).mean)
    key = rate_key(recipe, facts, choices, model, mode)
    kind, measured = kind_of(recipe, choices), facts.measured.get(key, ())
    product = facts.product(model, choices.dtype.value)
    engine, dtype = choices.engine.value, choices.dtype.value
    rate = device_rate(facts.device, model, kind, engine, batch * row_tokens, measured, product, dtype=dtype)
    tokens, work = sum(facts.lengths or ()), None
    if model is not None:
        work = work_per_token(
            model,
            adapter_weights=adapter_weights(recipe, model),
            trains_head=full_layers(recipe).has_head,
            full_finetuning=recipe.model.full_finetuning,
            recomputes=choices.recomputes,
            span=(describe(facts.lengths).mean_span if facts.lengths else recipe.row_tokens) / recipe.texts_per_row,
            has_head=recipe.task != "classification",
        )

    def epoch_seconds(padding: Padding, share: float | None = None) -> float:
        """What an epoch takes at a share of the peak; in computed tokens where model or device are not known."""
        if model is None or work is None or rate is None:
            return tokens / (1 - padding.padding_share)
        in_4bit = choices.load_in_4bit.value
        return seconds_per_epoch(padding, tokens, work, rate, model, load_in_4bit=in_4bit, share=share)

    batching = _batching(recipe, facts, choices, schedule, packed, table, epoch_seconds)
    memory = _memory(recipe, facts, choices, schedule, model, batching)
    download = download_seconds(download_bytes) if download_bytes else None
    return (
        batching,
        memory,
        _time(recipe, facts, schedule, batching, work, rate, epoch_seconds, download, price_per_hour),
    )


def _batching(
    recipe: Recipe,
    facts: Facts,
    choices: Choices,
    schedule: Schedule | UnknownSchedule,
    packed: Sequence[int] | None,
    table: Sequence[Padding],
    epoch_seconds: Callable[[Padding, float | None], float],
) -> Batching | UnknownBatching:
    active, because = _active(choices, facts)
    available, rows = _available(recipe, choices, facts), facts.rows
    if rows is None or not rows.lengths:
        return UnknownBatching(active, because, available, facts.rows_missing)
    batch, capacity = choices.per_device_train_batch_size.value, recipe.row_tokens
    table = tuple(table) or measure(
        rows.lengths,
        packed if packed is not None else packed_rows(rows.lengths[:MEASURED_ROWS], capacity),
        capacity=capacity,
        seed=recipe.train.seed,
        batches=batches_to_measure(batch),
        rows_per_step=batch * (schedule.gradient_accumulation_steps or 1),
    )
    padding = next(entry for entry in table if (entry.mode, entry.batch) == (active, batch))
    seconds = {(entry.mode, entry.batch): epoch_seconds(entry, None) for entry in table}
    recommended, speed_up = recommend(table, padding, available, seconds)
    share = f"{padding.padding_share:.1%} of the computed tokens are padding"
    return Batching(
        active=active,
        active_because=because,
        available=available,
        recommended=recommended,
        recommended_because=f"{share}: nothing here is faster" if recommended == active else f"{share} with {active}",
        speed_up=round(speed_up, 3),
        lengths=describe(rows.lengths),
        lost=Lost(rows.lost_rows, rows.lost_tokens, rows.longest, rows.overlong),
        measured_rows=min(len(rows.lengths), MEASURED_ROWS),
        table=table,
        padding=padding,
    )


def _active(choices: Choices, facts: Facts) -> tuple[Mode, str]:
    """How examples meet in this run, and why."""
    if choices.packing.value:
        return "packing", choices.packing.reason
    if _flattens(choices, facts):
        return "padding_free", "Unsloth flattens micro-batches on a GPU, so nothing is padded"
    if choices.group_by_length.value:
        return "group_by_length", choices.group_by_length.reason
    return "random", "examples come in random order, padded to the longest of each micro-batch"


def _flattens(choices: Choices, facts: Facts) -> bool:
    """Whether micro-batches are flattened: by Unsloth on a GPU, where its attention for the model can."""
    return can_flatten(facts.base_model) and facts.device.is_gpu and choices.engine.value == "unsloth"


def _available(recipe: Recipe, choices: Choices, facts: Facts) -> tuple[Mode, ...]:
    """The modes that can be active here: where attention keeps examples apart, no padding is needed."""
    if _flattens(choices, facts):
        return ("padding_free", "packing")
    with_packing = recipe.model_copy(update={"train": recipe.train.model_copy(update={"packing": True})})
    if choose_packing(with_packing, choices.engine.value, facts.device, flat=can_flatten(facts.base_model)).value:
        return ("random", "group_by_length", "packing")
    return ("random", "group_by_length")


def _memory(
    recipe: Recipe,
    facts: Facts,
    choices: Choices,
    schedule: Schedule | UnknownSchedule,
    model: Architecture | None,
    batching: Batching | UnknownBatching,
) -> MemoryForecast | UnknownMemory:
    device, batch = facts.device, choices.per_device_train_batch_size.value
    if isinstance(batching, Batching):
        tokens, where = batching.padding.most_tokens, f"the largest of the first epoch's, {batching.active}"
    else:
        tokens, where = batch * recipe.row_tokens, f"{batch} rows of max_seq_length"
    if model is None:
        return UnknownMemory(str(device), device.memory_bytes, where, UNKNOWN_MODEL)
    settings = memory_settings(recipe, device, choices)
    row_tokens = max(1, -(-tokens // batch))
    peak = forecast_memory(model, settings, tokens, device.memory_bytes, row_tokens)
    accumulation = schedule.gradient_accumulation_steps
    fitting = find_fitting(
        model,
        settings,
        peak,
        batch=batch,
        row_tokens=row_tokens,
        rows_per_step=None if accumulation is None else batch * accumulation,
    )
    return MemoryForecast(str(device), where, peak, fitting)


def _time(
    recipe: Recipe,
    facts: Facts,
    schedule: Schedule | UnknownSchedule,
    batching: Batching | UnknownBatching,
    work: Work | None,
    rate: Rate | None,
    epoch_seconds: Callable[[Padding, float | None], float],
    download: tuple[float, float] | None,
    price_per_hour: float | None,
) -> Time | UnknownTime:
    tokens = None
    if isinstance(schedule, Schedule) and isinstance(batching, Batching):
        epoch_tokens = batching.lengths.tokens if facts.rows is None else facts.rows.tokens
        tokens = round(epoch_tokens * schedule.num_train_epochs)
        if work is not None and rate is not None:
            epochs, padding = schedule.num_train_epochs / facts.processes, batching.padding
            # Where the tokens are estimated, the time is as uncertain as they are.
            error = facts.rows.estimate.error if facts.rows and facts.rows.estimate else 0.0
            likely, least, most = (
                epochs * epoch_seconds(padding, share) for share in (None, rate.share.high, rate.share.low)
            )
            seconds = Interval(least * (1 - error), likely, most * (1 + error))
            fast, slow = download or (0.0, 0.0)
            paid = Interval(seconds.low + fast, likely + math.sqrt(fast * slow), seconds.high + slow)
            price = None if price_per_hour is None else paid.times(price_per_hour / 3600, 2)
            return Time(work, rate, tokens, round(tokens / likely, 1), seconds.times(1, 1), download, price)
    if work is None:
        missing = UNKNOWN_MODEL
    elif rate is None:
        missing = f"the rate of {facts.device.name} is not known"
    else:
        missing = facts.rows_missing
    return UnknownTime(missing, work, rate, tokens, _full_step(recipe, schedule, work, rate))


def _full_step(
    recipe: Recipe, schedule: Schedule | UnknownSchedule, work: Work | None, rate: Rate | None
) -> Interval | None:
    """Seconds of an optimizer step whose rows all have max_seq_length tokens."""
    accumulation = schedule.gradient_accumulation_steps
    if work is None or rate is None or accumulation is None:
        return None
    tokens = schedule.per_device_train_batch_size * accumulation * recipe.row_tokens
    low, likely, high = (tokens * work.total / rate.flops(share) for share in (rate.share.high, None, rate.share.low))
    return Interval(low, likely, high).times(1, 2)
