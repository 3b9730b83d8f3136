"""What a recipe leaves open: the fastest set-up that fits, explained, with the examples of a step kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fastft.data.order import shuffled, sorted_in_steps
from fastft.planning.batching import Batching
from fastft.planning.facts import Facts
from fastft.planning.fitting import TARGET_SHARE, MemoryForecast
from fastft.planning.plan import Plan, make_plan, with_less_memory
from fastft.planning.products import Product, Products, keep_products, kept_products, products_key
from fastft.planning.schedule import Schedule
from fastft.planning.timing import Time
from fastft.probe.architecture import KNOWN, architecture_of
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import A100, CPU, T4, row_facts

Make = Callable[..., LoadedRecipe]
SMALL = "model.id=HuggingFaceTB/SmolLM2-135M-Instruct"
LLAMA = "model.id=meta-llama/Llama-3.1-8B-Instruct"
MIXED = [16 + 37 * number % 400 for number in range(480)]


def plan(
    loaded: LoadedRecipe,
    device: Device,
    lengths: list[int] | None = None,
    products: Mapping[str, Products] | None = None,
    **changes: object,
) -> Plan:
    model = BaseModel(loaded.recipe.model.id, "hub", None)
    facts = Facts(device, TESTED, model, 480, None, 100 * GIB, row_facts(lengths or MIXED), products=products or {})
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
    small, large = (
        plan(recipe("", SMALL), dataclasses.replace(CPU, memory_bytes=gib * GIB), [80] * 480) for gib in (1, 32)
    )

    assert small.schedule.per_device_train_batch_size < large.schedule.per_device_train_batch_size
    assert not large.choices.recomputes


def test_nothing_that_fits_is_answered_by_what_needs_least_and_said(recipe: Make) -> None:
    made = plan(recipe("", LLAMA), T4)

    assert made.choices.per_device_train_batch_size.value == 1
    assert made.choices.recomputes
    assert made.choices.per_device_train_batch_size.reason.startswith("none of ")


def test_no_choice_of_fastft_changes_the_rows_of_a_step(recipe: Make) -> None:
    made = plan(recipe("", SMALL), CPU, MIXED)
    assert isinstance(made.schedule, Schedule)
    assert isinstance(made.batching, Batching)

    size = made.schedule.per_device_train_batch_size * made.schedule.gradient_accumulation_steps
    order = shuffled(480, recipe("", SMALL).recipe.train.seed)
    taken = sorted_in_steps(MIXED, order, size)
    assert made.choices.group_by_length.value is False
    assert made.batching.active == "random"
    for start in range(0, 480, size):
        assert sorted(taken[start : start + size]) == sorted(order[start : start + size])
    # The forecast counts the padding of exactly this order.
    batch = made.schedule.per_device_train_batch_size
    micro = [[MIXED[row] for row in taken[start : start + batch]] for start in range(0, 480, batch)]
    padded = sum(len(rows) * max(rows) for rows in micro)
    assert made.batching.padding.padding_share == pytest.approx(1 - sum(MIXED) / padded, abs=1e-5)


def test_many_lengths_are_met_by_small_micro_batches_of_sorted_rows(recipe: Make) -> None:
    mixed, even = (plan(recipe("", SMALL), CPU, lengths).choices for lengths in (MIXED, [80] * 480))

    assert mixed.per_device_train_batch_size.value < even.per_device_train_batch_size.value


def test_a_processor_that_reads_its_weights_slowly_gets_larger_micro_batches(recipe: Make) -> None:
    loaded, model = recipe("", SMALL), architecture_of("HuggingFaceTB/SmolLM2-135M-Instruct", {})
    assert model is not None
    key = products_key(CPU, model, TESTED)
    batches, times = [], []
    for reading_tokens in (0.0, 2000.0):
        made = plan(loaded, CPU, products={key: {"float32": Product(50e9, reading_tokens)}})
        batches.append(made.choices.per_device_train_batch_size.value)
        times.append(made.time)

    assert batches[0] < batches[1]
    assert isinstance(times[0], Time)
    assert times[0].rate.assumption.startswith("50 GFLOP/s (products measured here)")


def test_a_measurement_of_other_sizes_or_another_precision_is_not_taken(recipe: Make) -> None:
    loaded, model = recipe("", SMALL), architecture_of("HuggingFaceTB/SmolLM2-135M-Instruct", {})
    assert model is not None
    without = plan(loaded, CPU)
    other = products_key(CPU, dataclasses.replace(model, hidden=577), TESTED)
    for products in (
        {other: {"float32": Product(1e9, 0.0)}},
        {products_key(CPU, model, TESTED): {"bfloat16": Product(1e9, 0.0)}},
    ):
        assert plan(loaded, CPU, products=products).time == without.time


def test_a_measurement_with_other_threads_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = KNOWN["llama-3.1-8b"]
    keys = set()
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        keys.add(products_key(CPU, model, TESTED))

    assert len(keys) == 2


def test_measured_products_are_kept_and_damage_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "fastft" / "products.json"
    kept = {"float32": Product(191e9, 27.7), "bfloat16": Product(415e9, 23.0)}
    keep_products(path, "one", kept)
    keep_products(path, "two", {"float32": Product(1e9, 0.0)})
    assert kept_products(path)["one"] == kept
    assert kept_products(path).keys() == {"one", "two"}

    path.write_text(path.read_text()[:-20])
    assert kept_products(path) == {}


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
    first = plan(loaded, dataclasses.replace(CPU, memory_bytes=1 * GIB), [80] * 480)

    again = plan(loaded, dataclasses.replace(CPU, memory_bytes=32 * GIB), [80] * 480, began=first.chosen)

    assert again.schedule == first.schedule
    assert again.calls == first.calls
    assert again.choices.per_device_train_batch_size.reason == "as this run began, on its first process"
    assert again.schedule != plan(loaded, dataclasses.replace(CPU, memory_bytes=32 * GIB), [80] * 480).schedule


def test_after_memory_ran_out_only_batch_and_checkpointing_change(recipe: Make) -> None:
    loaded = recipe("", SMALL)
    first = plan(loaded, CPU)
    current, asked = first, loaded
    while (less := with_less_memory(asked, current)) is not None:
        asked, current = less, plan(less, CPU)
        assert current.schedule.examples_per_optimizer_step == first.schedule.examples_per_optimizer_step
        assert current.choices.group_by_length.value == first.choices.group_by_length.value

    assert current.choices.per_device_train_batch_size.value == 1
