"""What a recipe leaves open: every set-up that is possible, those that fit into 90 % of memory, the fastest of them.

A set-up is a micro-batch, with or without checkpointing, packing and 4-bit weights. Each keeps the examples of an
optimizer step, and changes no key that the recipe writes. Rows are never grouped by length unless a recipe says so: the
rows of each step are sorted into its micro-batches, which saves most of the padding and changes no gradient.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastft.planning.batching import BATCHES, MEASURED_ROWS, Mode, Padding, describe, measure, packed_rows
from fastft.planning.choices import Choice, Choices, can_flatten, choose_packing, make_choices, written_batch
from fastft.planning.facts import Facts
from fastft.planning.fitting import TARGET_SHARE, fit_checkpointing, memory_settings
from fastft.planning.memory import forecast_memory
from fastft.planning.probes import Probe, SetUp, probes_key, set_up_of
from fastft.planning.processor import choose_attention, choose_weights
from fastft.planning.throughput import Share, kind_of
from fastft.planning.timing import Rate, device_rate, seconds_per_epoch
from fastft.planning.trained import adapter_weights, full_layers
from fastft.planning.work import work_per_token
from fastft.probe.architecture import Architecture, architecture_of
from fastft.probe.device import GIB
from fastft.recipe.model import Recipe

# Set-ups that differ by less are equal: then the plainest one is taken.
EQUAL = 1.02
# Packed rows whose step holds other numbers of examples than asked for are no choice of fastft's own.
KEPT_STEP = 0.1
# A micro-batch of more examples gains nothing: its products are large enough.
MOST_ROWS = 128
# Of a GPU without a data sheet; it ranks set-ups and is shown nowhere.
UNKNOWN_RATE = Rate(100e12, Share(0.4, 0.4, ""), 1e12, "")
WRITTEN = {
    "per_device_train_batch_size": "train",
    "packing": "train",
    "group_by_length": "train",
    "gradient_checkpointing": "train",
    "load_in_4bit": "model",
}
# What a run keeps as it began: all that is open, and the type of its weights on a processor.
PINNED = {**WRITTEN, "dtype": "model"}


@dataclass(frozen=True)
class Settled:
    """A recipe without open keys, its choices, and what they were made from.

    `packed`: tokens of each packed row where packing is on. `table`: padding in each mode at each batch, by the order
    of the first epoch; empty while the lengths are unknown or where nothing was left open.
    """

    recipe: Recipe
    choices: Choices
    packed: Sequence[int] | None
    table: tuple[Padding, ...] = ()


@dataclass(frozen=True)
class _SetUp:
    """One possible set-up, its peak with the longest rows, and the seconds of an epoch, forecast or measured."""

    settled: Settled
    peak_bytes: int
    seconds: float
    is_measured: bool = False

    @property
    def preference(self) -> tuple[bool, ...]:
        """The order among equally fast ones: what changes least about training first."""
        choices = self.settled.choices
        return (choices.load_in_4bit.value, choices.recomputes, choices.packing.value)

    @property
    def words(self) -> str:
        """Its batch, accumulation and what is on."""
        choices = self.settled.choices
        accumulation = choices.gradient_accumulation_steps.value
        on = {
            "packed": choices.packing.value,
            "recomputed": choices.recomputes,
            "in 4 bits": choices.load_in_4bit.value,
        }
        rows = f"{choices.per_device_train_batch_size.value} x {accumulation}"
        return " ".join((rows, *(name for name, is_on in on.items() if is_on)))


@dataclass(frozen=True)
class Candidate:
    """A set-up that is possible, as it is forecast: tokens of all rows a second, padding not counted, and its peak."""

    set_up: SetUp
    tokens_per_second: float
    peak_bytes: int
    fits: bool


def candidates(recipe: Recipe, facts: Facts, engine: Choice[str], model: Architecture) -> list[Candidate]:
    """Every possible set-up of what `recipe` leaves open, by the forecast alone, the fastest first."""
    packed = _packed(recipe, facts, engine) if recipe.train.packing is not False else None
    ranking = _Ranking(recipe, dataclasses.replace(facts, probes={}), model, packed, engine.value)
    tokens, limit = sum(ranking.lengths), TARGET_SHARE * facts.device.memory_bytes
    found = []
    for answers in _options(recipe, facts, packed):
        each = ranking.rate(_settled(recipe, facts, engine, answers, packed))
        rate, fits = tokens / each.seconds, each.peak_bytes <= limit
        found.append(Candidate(set_up_of(each.settled.choices), rate, each.peak_bytes, fits))
    unlike = {each.set_up: each for each in found}
    return sorted(unlike.values(), key=lambda each: -each.tokens_per_second)


def settle(recipe: Recipe, facts: Facts, engine: Choice[str], model: Architecture | None) -> Settled:
    """The fastest set-up that fits into 90 % of the device's memory; where none does, the one that needs least."""
    is_open = {key for key, section in WRITTEN.items() if getattr(getattr(recipe, section), key) == "auto"}
    packed = _packed(recipe, facts, engine) if recipe.train.packing is not False else None
    if not is_open:
        return _settled(recipe, facts, engine, {}, packed)
    off = _packing_off(recipe, facts, engine, packed)
    if model is None:
        unknown = _settled(recipe, facts, engine, {}, packed)
        reason = "the sizes of the base model are unknown, so activations are recomputed"
        return replace(
            unknown,
            choices=_explained(unknown.choices, None, is_open, reason, off),
        )
    ranking = _Ranking(recipe, facts, model, packed, engine.value)
    options = _options(recipe, facts, packed)
    found = [ranking.rate(_settled(recipe, facts, engine, answers, packed)) for answers in options]
    best, runner_up, reason = _chosen(found, facts)
    second = None if runner_up is None else runner_up.settled.choices
    choices = _explained(best.settled.choices, second, is_open, reason, off)
    if "gradient_checkpointing" in is_open:
        choices = ranking.with_checkpointing(choices)
    return replace(best.settled, choices=choices, table=ranking.table)


def _chosen(found: Sequence[_SetUp], facts: Facts) -> tuple[_SetUp, _SetUp | None, str]:
    """(the set-up that is taken, the second best, why): among measured ones that fit where there are any."""
    fitting = [each for each in found if each.peak_bytes <= TARGET_SHARE * facts.device.memory_bytes]
    ranked = [each for each in fitting if each.is_measured] or fitting
    ordered = _order(ranked, large_first=facts.device.is_gpu)
    best = ordered[0] if ordered else min(found, key=lambda each: each.peak_bytes)
    runner_up = ordered[1] if len(ordered) > 1 else None
    return best, runner_up, _reason(best, runner_up, len(found), len(ranked), facts)


def _order(fitting: Sequence[_SetUp], *, large_first: bool) -> list[_SetUp]:
    """The fastest first, but the plainest of those that are equal to it; then a GPU is filled, a processor is not."""
    fastest = min((each.seconds for each in fitting), default=0.0)

    def place(each: _SetUp) -> tuple[Any, ...]:
        batch = each.settled.choices.per_device_train_batch_size.value
        equal = each.seconds <= EQUAL * fastest
        return (0 if equal else each.seconds, *each.preference, -batch if large_first else batch)

    return sorted(fitting, key=place)


def _reason(best: _SetUp, runner_up: _SetUp | None, possible: int, fitting: int, facts: Facts) -> str:
    memory = f"{best.peak_bytes / GIB:.1f} of {facts.device.memory_bytes / GIB:.1f} GiB with the longest rows"
    if not fitting:
        return f"none of {possible} set-ups fits into {TARGET_SHARE:.0%} of memory; this one needs least, {memory}"
    text = f"the forecast's best of {fitting} set-ups that fit ({memory})"
    if best.is_measured:
        text = f"the fastest of {fitting} that `fastft tune` measured here ({memory})"
    if runner_up is None:
        return text
    return f"{text}; next {runner_up.words}, {best.seconds / runner_up.seconds:.2f} times as fast"


def _explained(
    choices: Choices, runner_up: Choices | None, is_open: set[str], reason: str, packing_off: str
) -> Choices:
    """`choices` with the reason at what was open, and what the runner-up has there."""
    changes: dict[str, Choice[Any]] = {}
    for key in is_open:
        own: Choice[Any] = getattr(choices, key)
        says = packing_off if key == "packing" and not own.value else own.reason
        if key in ("per_device_train_batch_size", "gradient_checkpointing"):
            says = reason
        if key == "load_in_4bit":
            says = "16-bit weights do not fit" if own.value else "16-bit weights fit, or 4-bit ones are no faster"
        changes[key] = replace(own, reason=says, runner_up=None if runner_up is None else getattr(runner_up, key).value)
    return replace(choices, **changes)


def _packing_off(recipe: Recipe, facts: Facts, engine: Choice[str], packed: Sequence[int] | None) -> str:
    """Why packing stays off where it was left open."""
    asked = with_values(recipe, {"packing": True})
    choice = choose_packing(asked, engine.value, facts.device, flat=can_flatten(facts.base_model))
    if not choice.value:
        return choice.reason
    if recipe.train.group_by_length is True:
        return "group_by_length is asked for, which packing would switch off"
    if facts.lengths is None:
        return "the lengths of the rows are not known yet"
    if not _keeps_step(recipe, facts, packed):
        return "whole packed rows would change the examples of an optimizer step"
    return "would not be faster here"


def _packed(recipe: Recipe, facts: Facts, engine: Choice[str]) -> Sequence[int] | None:
    """Tokens of each packed row where packing can be active, None where it cannot or the lengths are unknown."""
    asked = with_values(recipe, {"packing": True})
    choice = choose_packing(asked, engine.value, facts.device, flat=can_flatten(facts.base_model))
    return packed_rows(facts.lengths, recipe.row_tokens) if choice.value and facts.lengths else None


def with_values(recipe: Recipe, answers: Mapping[str, Any]) -> Recipe:
    """`recipe` with other values of keys; what is open keeps its "auto"."""
    sections = {}
    for name in ("model", "train"):
        own = {key: value for key, value in answers.items() if PINNED[key] == name}
        if name == "train":
            own["effective_batch_size"] = recipe.train.examples_per_step
        sections[name] = getattr(recipe, name).model_copy(update=own)
    return recipe.model_copy(update=sections)


def with_origin(choices: Choices, recipe: Recipe, began: Mapping[str, object]) -> Choices:
    """`choices` that say where a value of `began` at a key that `recipe` leaves open comes from."""
    return replace(
        choices,
        **{
            key: replace(getattr(choices, key), reason="as this run began, on its first process")
            for key in began
            if getattr(getattr(recipe, PINNED[key]), key) == "auto"
        },
    )


def pinned(recipe: Recipe, began: Mapping[str, object]) -> Recipe:
    """`recipe` with the values that its run began with at what it leaves open: a run never changes them on its way."""
    open_keys = {key: value for key, value in began.items() if getattr(getattr(recipe, PINNED[key]), key) == "auto"}
    return with_values(recipe, open_keys)


def _options(recipe: Recipe, facts: Facts, packed: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    """Every combination of values of the open keys."""
    train = recipe.train
    checkpointing = [False, "auto"] if train.gradient_checkpointing == "auto" else [train.gradient_checkpointing]
    # Packing would switch off the grouping that a recipe writes.
    may_pack = train.group_by_length is not True and _keeps_step(recipe, facts, packed)
    for packing in [train.packing] if train.packing != "auto" else [False, True] if may_pack else [False]:
        values: dict[str, list[Any]] = {
            "packing": [packing],
            "gradient_checkpointing": checkpointing,
            "load_in_4bit": _bits(recipe, facts),
            "per_device_train_batch_size": _batches(recipe, facts, packed if packing else None),
        }
        for chosen in itertools.product(*values.values()):
            yield dict(zip(values, chosen, strict=True))


def _can_flatten_here(facts: Facts, engine: Choice[str]) -> bool:
    """Whether micro-batches are flattened to rows without padding: by Unsloth on a GPU."""
    return can_flatten(facts.base_model) and facts.device.is_gpu and engine.value == "unsloth"


def _bits(recipe: Recipe, facts: Facts) -> list[bool]:
    asked = recipe.model.load_in_4bit
    if asked != "auto":
        return [asked]
    # A processor unpacks 4-bit weights slower than it multiplies.
    return [False, True] if facts.device.is_gpu and not recipe.model.full_finetuning else [False]


def _batches(recipe: Recipe, facts: Facts, packed: Sequence[int] | None) -> list[int]:
    """Micro-batches that make an optimizer step of the examples that are asked for."""
    size = recipe.train.examples_per_step
    if recipe.train.per_device_train_batch_size != "auto" or size is None:
        return [written_batch(recipe.train)]
    share = math.ceil(size / facts.processes)
    if packed and facts.lengths:
        share = max(1, round(share * len(packed) / len(facts.lengths)))
    rows = len(packed) if packed else facts.train_examples or share
    return [rows_ for rows_ in range(1, min(share, MOST_ROWS, rows) + 1) if share % rows_ == 0]


def _keeps_step(recipe: Recipe, facts: Facts, packed: Sequence[int] | None) -> bool:
    """Whether whole packed rows make a step of the examples that are asked for."""
    size = recipe.train.examples_per_step
    if size is None or not packed or not facts.lengths:
        return False
    per_row = len(facts.lengths) / len(packed)
    rows = max(1, round(size / (facts.processes * per_row)))
    return abs(rows * facts.processes * per_row / size - 1) <= KEPT_STEP


def _settled(
    recipe: Recipe, facts: Facts, engine: Choice[str], answers: Mapping[str, Any], packed: Sequence[int] | None
) -> Settled:
    """The choices of one set-up."""
    own, flat = with_values(recipe, answers), can_flatten(facts.base_model)
    packing = choose_packing(own, engine.value, facts.device, flat=flat)
    rows = packed if packing.value else None
    per_row = len(facts.lengths) / len(rows) if rows and facts.lengths else None
    choices = make_choices(
        own,
        facts.device,
        facts.processes,
        engine,
        packing,
        per_row,
        facts.base_model,
        flat=flat,
        on_processor=choose_weights(own, facts, architecture_of(own.model.id, facts.base_model.config)),
    )
    attention = choose_attention(own, facts, choices.dtype.value, packing=packing.value)
    choices = replace(choices, attn_implementation=attention)
    own = with_values(
        own,
        {
            "per_device_train_batch_size": choices.per_device_train_batch_size.value,
            "packing": own.train.packing is True,
            "gradient_checkpointing": choices.gradient_checkpointing.value,
            "load_in_4bit": choices.load_in_4bit.value,
        },
    )
    return Settled(own, choices, rows)


class _Ranking:
    """The peak and the time of set-ups of one recipe."""

    def __init__(
        self, recipe: Recipe, facts: Facts, model: Architecture, packed: Sequence[int] | None, engine: str
    ) -> None:
        self.recipe, self.facts, self.model = recipe, facts, model
        key = probes_key(recipe, facts, engine, model)
        self.probes: dict[SetUp, Probe] = {probe.set_up: probe for probe in facts.probes.get(key or "", ())}
        lengths, capacity = facts.lengths, recipe.row_tokens
        self.lengths = lengths or [capacity] * (facts.train_examples or 1)
        self.error = facts.rows.estimate.error if facts.rows and facts.rows.estimate else 0.0
        self.longest = sorted(self.lengths, reverse=True)[:MOST_ROWS]
        self.table: tuple[Padding, ...] = ()
        if not lengths:
            return
        size = recipe.train.examples_per_step or written_batch(recipe.train) * (
            recipe.train.gradient_accumulation_steps or 1
        )
        sizes = set(_batches(recipe, facts, None)) | set(_batches(recipe, facts, packed))
        self.table = measure(
            lengths,
            packed if packed is not None else packed_rows(lengths[:MEASURED_ROWS], capacity),
            capacity=capacity,
            seed=recipe.train.seed,
            batches=sorted(sizes | set(BATCHES)),
            rows_per_step=size,
        )

    def rate(self, settled: Settled) -> _SetUp:
        """The peak of the longest rows, and the seconds of an epoch."""
        probe = self.probes.get(set_up_of(settled.choices))
        if probe is not None and probe.tokens_per_second and probe.peak_bytes:
            return _SetUp(settled, probe.peak_bytes, sum(self.lengths) / probe.tokens_per_second, is_measured=True)
        forecast = self._peak_bytes(settled.choices)
        if probe is not None and probe.out_of_memory:
            forecast = max(forecast, probe.limit_bytes)
        return _SetUp(settled, forecast, self._seconds(settled))

    def with_checkpointing(self, choices: Choices) -> Choices:
        """`choices` with the reason for or against keeping activations."""
        on = replace(choices.gradient_checkpointing, value=True)
        settings = memory_settings(self.recipe, self.facts.device, replace(choices, gradient_checkpointing=on))
        batch, own = choices.per_device_train_batch_size.value, choices.gradient_checkpointing
        row_tokens = self._largest(choices) // batch
        decided = fit_checkpointing(choices, self.facts.device, self.model, settings, batch, row_tokens)
        reason = decided.reason if bool(decided.value) == bool(own.value) else "faster so, with a larger micro-batch"
        return replace(choices, gradient_checkpointing=replace(own, reason=reason))

    def _largest(self, choices: Choices) -> int:
        """Tokens of the largest micro-batch that there can be."""
        batch, capacity = choices.per_device_train_batch_size.value, self.recipe.row_tokens
        if choices.packing.value:
            return batch * capacity
        longest = self.longest[:batch]
        tokens = (
            sum(longest)
            if _can_flatten_here(self.facts, choices.engine) and len(longest) == batch
            else batch * longest[0]
        )
        return min(batch * capacity, round(tokens * (1 + self.error)))

    def _peak_bytes(self, choices: Choices) -> int:
        tokens, batch = self._largest(choices), choices.per_device_train_batch_size.value
        settings = memory_settings(self.recipe, self.facts.device, choices)
        memory = self.facts.device.memory_bytes
        return forecast_memory(self.model, settings, tokens, memory, max(1, tokens // batch)).peak_bytes

    def _padding(self, choices: Choices) -> Padding:
        batch = choices.per_device_train_batch_size.value
        mode: Mode = "group_by_length" if choices.group_by_length.value else "random"
        mode = (
            "packing"
            if choices.packing.value
            else "padding_free"
            if _can_flatten_here(self.facts, choices.engine)
            else mode
        )
        for row in self.table:
            if (row.mode, row.batch) == (mode, batch):
                return row
        tokens = batch * self.recipe.row_tokens
        return Padding(mode, batch, math.ceil(len(self.lengths) / batch), 0.0, float(tokens), tokens)

    def _seconds(self, settled: Settled) -> float:
        choices, model, facts = settled.choices, self.model, self.facts
        row = self._padding(choices)
        # One share of the peak for all batches: published ones are too few to rank them.
        size = self.recipe.train.examples_per_step or row.batch
        tokens = size * sum(self.lengths) / len(self.lengths)
        rate = device_rate(
            facts.device,
            model,
            kind_of(settled.recipe, choices),
            choices.engine.value,
            tokens,
            (),
            facts.product(model, choices.dtype.value),
            dtype=choices.dtype.value,
        )
        span = describe(self.lengths).mean_span / self.recipe.texts_per_row
        if choices.packing.value and not _can_flatten_here(self.facts, choices.engine):
            span = 2.0 * self.recipe.row_tokens  # the whole row, masked
        work = work_per_token(
            model,
            adapter_weights=adapter_weights(settled.recipe, model),
            trains_head=full_layers(settled.recipe).has_head,
            full_finetuning=self.recipe.model.full_finetuning,
            recomputes=choices.recomputes,
            span=span,
        )
        return seconds_per_epoch(
            row,
            sum(self.lengths),
            work,
            rate or UNKNOWN_RATE,
            model,
            load_in_4bit=choices.load_in_4bit.value,
            share=None,
        )
