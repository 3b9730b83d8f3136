"""Time, disk, devices, what fits and the score: arithmetic that can be checked by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.commands.plan import Question, compare
from fastft.errors import RecipeError, UsageError
from fastft.planning.batching import Batching, UnknownBatching, batches_to_measure, describe, measure, packed_rows
from fastft.planning.devices import SHEETS, named_device, sheet_of
from fastft.planning.facts import Facts
from fastft.planning.fitting import MemoryForecast, UnknownMemory
from fastft.planning.plan import Plan, make_plan
from fastft.planning.timing import Time, UnknownTime
from fastft.planning.work import work_per_token
from fastft.probe.architecture import KNOWN
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from fastft.runs.score import Score, score
from tests.golden import A100, CPU, row_facts

Make = Callable[..., LoadedRecipe]
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def plan(loaded: LoadedRecipe, device: Device = A100, lengths: list[int] | None = None, **changes: Any) -> Plan:
    """A plan for Llama 3.1 8B and 480 rows of 300 tokens."""
    facts = Facts(
        device=device,
        installed=TESTED,
        base_model=BaseModel(LLAMA, "hub", None),
        train_examples=480,
        eval_examples=None,
        free_disk_bytes=100 * GIB,
        rows=row_facts(lengths or [300] * 480),
    )
    return make_plan(loaded, dataclasses.replace(facts, **changes), "runs/x", price_per_hour=2.0)


def memory_of(made: Plan) -> MemoryForecast:
    assert isinstance(made.memory, MemoryForecast)
    return made.memory


@pytest.fixture
def llama(recipe: Make) -> Callable[..., LoadedRecipe]:
    return lambda *overrides: recipe("", f"model.id={LLAMA}", "model.load_in_4bit=true", *overrides)


def test_the_work_of_a_token_is_the_published_one() -> None:
    # Forward and input gradients of a frozen 8B model at 2,048 tokens: 31.9 GFLOP; recomputation adds 14.6.
    asked = {"adapter_weights": 41_943_040, "full_finetuning": False, "span": 2048.0}
    kept = work_per_token(KNOWN["llama-3.1-8b"], recomputes=False, **asked)
    recomputed = work_per_token(KNOWN["llama-3.1-8b"], recomputes=True, **asked)

    assert kept.total / 1e9 == pytest.approx(31.88, abs=0.05)
    assert recomputed.total / 1e9 == pytest.approx(46.46, abs=0.05)


def test_lora_costs_close_to_four_operations_a_weight() -> None:
    # NVIDIA's Megatron-Bridge counts 3.94 for Llama-3-70B LoRA.
    model = KNOWN["llama-3.1-70b"]
    work = work_per_token(model, adapter_weights=0, full_finetuning=False, recomputes=False, span=1.0)

    assert work.total / model.weights == pytest.approx(3.94, abs=0.05)


def test_full_fine_tuning_costs_half_as_much_again() -> None:
    asked = {"adapter_weights": 0, "recomputes": False, "span": 1.0}
    model = KNOWN["llama-3.1-8b"]

    ratio = (
        work_per_token(model, full_finetuning=True, **asked).total
        / work_per_token(model, full_finetuning=False, **asked).total
    )
    assert ratio == pytest.approx(1.5, abs=0.01)


def test_time_follows_from_tokens_and_the_price_from_time(llama: Make) -> None:
    one, two = plan(llama()).time, plan(llama("train.num_train_epochs=2")).time

    assert isinstance(one, Time)
    assert isinstance(two, Time)
    assert (one.tokens, two.tokens) == (144_000, 288_000)
    assert two.seconds.likely == pytest.approx(2 * one.seconds.likely, rel=0.01)
    assert two.seconds.low < two.seconds.likely < two.seconds.high
    assert two.download is not None
    fast, slow = two.download
    assert two.price is not None
    assert two.price.low == pytest.approx(2.0 * (two.seconds.low + fast) / 3600, abs=0.01)
    assert two.price.high == pytest.approx(2.0 * (two.seconds.high + slow) / 3600, abs=0.01)


def test_a_gpu_that_is_not_listed_has_no_forecast_of_time(llama: Make) -> None:
    time = plan(llama(), Device("cuda", "NVIDIA X1", 80 * GIB, 1, computes_bfloat16=True)).time

    assert isinstance(time, UnknownTime)
    assert time.missing == "the rate of NVIDIA X1 is not known"


def test_without_lengths_the_plan_says_so_and_assumes_the_longest_rows(llama: Make) -> None:
    made = plan(llama("model.max_seq_length=512"), rows=None, rows_missing="no tokenizer here")

    assert isinstance(made.batching, UnknownBatching)
    assert isinstance(made.time, UnknownTime)
    assert (made.batching.missing, made.time.missing) == ("no tokenizer here", "no tokenizer here")
    assert isinstance(made.memory, MemoryForecast)
    # 16 examples a step, and all of them fit at once.
    assert made.memory.peak.tokens == 16 * 512


def test_an_unknown_model_has_no_forecast_of_memory(recipe: Make) -> None:
    made = plan(recipe(), base_model=BaseModel("org/model", "hub", None))

    assert made.as_json()["memory"]["peak_bytes"] is None
    assert isinstance(made.memory, UnknownMemory)
    assert made.memory.missing == "the sizes of the base model are unknown until it is here"


def test_what_fits_keeps_the_examples_of_a_step(llama: Make) -> None:
    target = memory_of(plan(llama("train.gradient_accumulation_steps=36"))).fitting.target

    assert target is not None
    assert target.batch * target.accumulation == 72
    assert target.peak_bytes <= 0.9 * A100.memory_bytes


@pytest.mark.parametrize(("memory", "needed"), [("80GB", False), ("12GB", True)])
def test_four_bits_are_needed_only_where_sixteen_do_not_fit(llama: Make, memory: str, needed: bool) -> None:
    device = named_device("a100-80gb", memory, CPU)

    assert memory_of(plan(llama(), device)).fitting.needs_4bit is needed


def test_the_recipe_does_not_fit_a_card_of_4_gb(llama: Make) -> None:
    assert memory_of(plan(llama(), named_device("t4", "4GB", CPU))).peak.fits is False


@pytest.mark.parametrize("name", SHEETS)
def test_a_named_device_is_recognised_as_itself(name: str) -> None:
    device = named_device(name, None, CPU)

    assert sheet_of(device) == SHEETS[name]
    assert device.memory_bytes == SHEETS[name].memory_bytes


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA L4", "l4"),
    ],
)
def test_a_found_device_is_recognised_by_what_its_driver_calls_it(name: str, key: str) -> None:
    assert sheet_of(Device("cuda", name, GIB, 1, computes_bfloat16=True)) == SHEETS[key]


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10"])
def test_a_device_with_a_like_name_is_not_taken_for_another(name: str) -> None:
    assert sheet_of(Device("cuda", name, GIB, 1, computes_bfloat16=True)) is None


@pytest.mark.parametrize(("text", "gib"), [("24GB", 24.0), ("16 GiB", 16.0), ("512MB", 0.5), ("1.5g", 1.5)])
def test_memory_is_read_with_its_unit(text: str, gib: float) -> None:
    assert named_device(None, text, A100).memory_bytes == gib * GIB


@pytest.mark.parametrize(("name", "memory"), [("h1000", None), ("", None), (None, "24"), (None, "0GB"), (None, "much")])
def test_a_device_or_memory_that_cannot_be_is_refused(name: str | None, memory: str | None) -> None:
    with pytest.raises(UsageError):
        named_device(name, memory, CPU)


def test_disk_holds_every_part(llama: Make) -> None:
    disk = plan(llama('export.formats=["adapter","merged_16bit","gguf"]', 'export.quantization=["q4_k_m"]')).disk

    # llama.cpp publishes 4.58 GiB for q4_k_m of this model.
    assert disk.gguf_bytes == pytest.approx(4.58 * GIB, rel=0.01)
    assert disk.merged_bytes == 2 * 8_030_261_248
    assert disk.adapter_bytes == 4 * 41_943_040


def test_padding_is_counted_by_hand() -> None:
    rows = {
        (row.mode, row.batch): row
        for row in measure([10, 10, 2, 2], [24], capacity=24, seed=1, batches=(1, 2, 4), rows_per_step=4)
    }

    assert rows["random", 1].padding_share == 0
    assert rows["random", 4].padding_share == pytest.approx(1 - 24 / 40)
    assert rows["group_by_length", 2].padding_share == 0
    assert rows["padding_free", 4].most_tokens == 24
    assert rows["packing", 1].fill == 1.0


def test_packed_rows_are_those_of_trls_blocks_of_a_thousand() -> None:
    # 999 + 1 fill the first block's rows of 2; the odd one left over cannot join a row of the next block.
    assert len(packed_rows([1] * 1001, 2)) == 501
    assert len(packed_rows([1] * 999 + [2] + [1] * 3, 2)) == 500 + 1 + 2


def test_grouping_is_recommended_where_rows_differ_and_no_packing_can_be(recipe: Make) -> None:
    lengths = [20, 400] * 240
    apart = plan(recipe("", "train.per_device_train_batch_size=8"), CPU, lengths).batching
    alike = plan(recipe("", "train.per_device_train_batch_size=8"), CPU, [300] * 480).batching

    assert isinstance(apart, Batching)
    assert isinstance(alike, Batching)
    assert (apart.active, apart.recommended) == ("random", "group_by_length")
    assert apart.speed_up > 1.5
    assert (alike.recommended, alike.speed_up) == ("random", 1.0)


def test_the_lengths_are_described() -> None:
    found = describe([1, 2, 3, 4, 90])

    assert (found.examples, found.tokens, found.median, found.p90, found.longest) == (5, 100, 3, 90, 90)


def test_the_batch_of_the_recipe_is_measured_too() -> None:
    assert batches_to_measure(6) == (1, 2, 4, 6, 8, 16, 32)


def test_what_if_shows_the_same_recipe_with_each_value(recipe: Make, tmp_path: Path) -> None:
    field, plans = compare(recipe(), "per_device_train_batch_size=1,2,4", Question(tmp_path))

    assert field == "train.per_device_train_batch_size"
    assert [(value, made.schedule.per_device_train_batch_size) for value, made in plans] == [
        ("1", 1),
        ("2", 2),
        ("4", 4),
    ]


@pytest.mark.parametrize("text", ["nothing=1", "learning_rate", "learning_rate=", "=1"])
def test_what_if_without_a_key_or_a_value_is_refused(recipe: Make, tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        compare(recipe(), text, Question(tmp_path))


def test_what_if_refuses_a_value_that_the_recipe_would_refuse(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        compare(recipe(), "learning_rate=-1", Question(tmp_path))


def test_the_score_sets_each_forecast_beside_what_was_measured(llama: Make) -> None:
    made = plan(llama())
    peak, steps = made.memory.peak.peak_bytes, made.schedule.optimizer_steps

    scored = score(
        made,
        optimizer_steps=steps,
        tokens=144_000,
        peak_memory_bytes=peak * 2,
        train_seconds=0.0,
        weights_bytes=None,
    )

    assert scored["optimizer_steps"] == Score(steps, steps, 0.0)
    assert scored["tokens"].error == 0.0
    assert scored["peak_memory_bytes"].error == -0.5
    assert scored["train_seconds"].error is None
    assert "weights_bytes" not in scored
