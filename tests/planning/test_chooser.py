"""What a recipe leaves open: the fastest set-up that fits, explained, with the examples of a step kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from fastft.planning.chooser import WRITTEN
from fastft.planning.facts import Facts
from fastft.planning.fitting import TARGET_SHARE, MemoryForecast
from fastft.planning.plan import Plan, make_plan, with_less_memory
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import A100, CPU, T4, row_facts

Make = Callable[..., LoadedRecipe]
SMALL = "model.id=HuggingFaceTB/SmolLM2-135M-Instruct"
LLAMA = "model.id=meta-llama/Llama-3.1-8B-Instruct"
MIXED = [16 + 37 * number % 400 for number in range(480)]


def plan(loaded: LoadedRecipe, device: Device, lengths: list[int] | None = None, **changes: object) -> Plan:
    model = BaseModel(loaded.recipe.model.id, "hub", None)
    facts = Facts(device, TESTED, model, 480, None, 100 * GIB, row_facts(lengths or MIXED))
    return make_plan(loaded, facts, "runs/x", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", [A100, T4, CPU, dataclasses.replace(CPU, memory_bytes=2 * GIB)])
@pytest.mark.parametrize("size", [1, 6, 16, 32])
def test_the_examples_of_a_step_are_kept_whatever_is_chosen(recipe: Make, device: Device, size: int) -> None:
    made = plan(recipe("", SMALL, f"train.effective_batch_size={size}"), device)

    assert made.schedule.examples_per_optimizer_step == size


def test_a_recipe_that_says_nothing_trains_sixteen_examples_a_step(recipe: Make) -> None:
    written = {"": 16, "train.per_device_train_batch_size=3": 3, "train.gradient_accumulation_steps=5": 10}
    for override, size in written.items():
        made = plan(recipe("", SMALL, *filter(None, [override])), CPU)

        assert made.schedule.examples_per_optimizer_step == size


def test_a_gpu_is_filled_with_the_whole_step_where_it_fits(recipe: Make) -> None:
    made = plan(recipe("", LLAMA, "model.load_in_4bit=true"), A100)

    choices = made.choices
    assert (choices.per_device_train_batch_size.value, choices.gradient_accumulation_steps.value) == (16, 1)
    assert choices.gradient_checkpointing.value is False
    assert choices.per_device_train_batch_size.reason.startswith("the forecast's best of ")
    assert choices.per_device_train_batch_size.runner_up is not None


@pytest.mark.parametrize("gib", [2, 3, 4, 8])
def test_what_is_chosen_stays_within_nine_tenths_of_the_memory(recipe: Make, gib: float) -> None:
    device = dataclasses.replace(CPU, memory_bytes=round(gib * GIB))
    made = plan(recipe("", SMALL), device)

    assert isinstance(made.memory, MemoryForecast)
    assert made.memory.peak.peak_bytes <= TARGET_SHARE * device.memory_bytes


def test_less_memory_is_met_by_a_smaller_batch_or_by_recomputing(recipe: Make) -> None:
    small, large = (plan(recipe("", SMALL), dataclasses.replace(CPU, memory_bytes=gib * GIB)) for gib in (2, 32))

    assert small.choices.per_device_train_batch_size.value < large.choices.per_device_train_batch_size.value
    assert not large.choices.recomputes


def test_nothing_that_fits_is_answered_by_what_needs_least_and_said(recipe: Make) -> None:
    made = plan(recipe("", LLAMA), T4)

    assert made.choices.per_device_train_batch_size.value == 1
    assert made.choices.recomputes
    assert made.choices.per_device_train_batch_size.reason.startswith("none of ")


def test_rows_of_many_lengths_are_grouped_on_a_processor_and_rows_of_one_length_are_not(recipe: Make) -> None:
    assert plan(recipe("", SMALL), CPU, MIXED).choices.group_by_length.value is True
    even = plan(recipe("", SMALL), CPU, [80] * 480).choices.group_by_length
    assert (even.value, even.reason) == (False, "would not be faster here")


def test_weights_that_do_not_fit_in_16_bits_are_taken_in_4_where_that_was_left_open(recipe: Make) -> None:
    left_open = recipe("", LLAMA, "model.load_in_4bit=auto")

    assert plan(left_open, A100).choices.load_in_4bit.value is False
    made = plan(left_open, T4)
    assert made.choices.load_in_4bit.value is True
    assert made.calls.load.kwargs["load_in_4bit"] is True


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("per_device_train_batch_size", 2),
        ("packing", False),
        ("group_by_length", True),
        ("group_by_length", False),
        ("gradient_checkpointing", True),
        ("gradient_checkpointing", False),
    ],
)
def test_a_written_key_is_never_changed(recipe: Make, key: str, value: object) -> None:
    text = str(value).lower()
    for device in (A100, CPU, dataclasses.replace(CPU, memory_bytes=1 * GIB)):
        made = plan(recipe("", SMALL, "model.engine=transformers", f"train.{key}={text}"), device)

        assert getattr(made.choices, key).value == value


def test_a_run_keeps_what_it_began_with(recipe: Make) -> None:
    loaded = recipe("", SMALL)
    first = plan(loaded, dataclasses.replace(CPU, memory_bytes=2 * GIB))
    began = {key: getattr(first.choices, key).value for key in WRITTEN}

    again = plan(loaded, dataclasses.replace(CPU, memory_bytes=32 * GIB), began=began)

    assert again.schedule == first.schedule
    assert again.calls == first.calls
    assert again.schedule != plan(loaded, dataclasses.replace(CPU, memory_bytes=32 * GIB)).schedule


def test_after_memory_ran_out_only_batch_and_checkpointing_change(recipe: Make) -> None:
    loaded = recipe("", SMALL)
    first = plan(loaded, CPU)
    current, asked = first, loaded
    while (less := with_less_memory(asked, current)) is not None:
        asked, current = less, plan(less, CPU)
        assert current.schedule.examples_per_optimizer_step == first.schedule.examples_per_optimizer_step
        assert current.choices.group_by_length.value == first.choices.group_by_length.value

    assert current.choices.per_device_train_batch_size.value == 1
