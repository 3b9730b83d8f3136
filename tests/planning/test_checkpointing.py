"""gradient_checkpointing = "auto": off where the forecast says that activations fit, and on after memory ran out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastft.planning.facts import Facts
from fastft.planning.fitting import MemoryForecast
from fastft.planning.plan import Plan, make_plan, with_less_memory
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import A100, CPU, T4, row_facts

Make = Callable[..., LoadedRecipe]
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SETTINGS = (f"model.id={LLAMA}", "model.load_in_4bit=true", "train.per_device_train_batch_size=8")


def plan(loaded: LoadedRecipe, device: Device = A100, length: int = 2000) -> Plan:
    model = BaseModel(loaded.recipe.model.id, "hub", None)
    return make_plan(loaded, Facts(device, TESTED, model, 480, None, 100 * GIB, row_facts([length] * 480)), "runs/x")


def test_activations_that_fit_are_kept_and_the_plan_says_why(recipe: Make) -> None:
    made = plan(recipe("", *SETTINGS, "train.per_device_train_batch_size=1"))

    assert made.choices.gradient_checkpointing.value is False
    assert made.choices.gradient_checkpointing.reason.startswith("activations fit: ")
    assert made.calls.trainer.kwargs["gradient_checkpointing"] is False
    assert made.calls.load.kwargs["use_gradient_checkpointing"] is False


@pytest.mark.parametrize(("engine", "value"), [("unsloth", "unsloth"), ("transformers", True)])
def test_activations_that_do_not_fit_are_recomputed(recipe: Make, engine: str, value: object) -> None:
    made = plan(recipe("", *SETTINGS, f"model.engine={engine}"), T4)

    assert made.choices.gradient_checkpointing.value == value
    assert "more than 90%" in made.choices.gradient_checkpointing.reason


def test_what_is_kept_stays_within_nine_tenths_of_the_memory(recipe: Make) -> None:
    peaks = {}
    for batch in (1, 2, 4, 8, 16, 32):
        made = plan(recipe("", *SETTINGS, f"train.per_device_train_batch_size={batch}"))
        assert isinstance(made.memory, MemoryForecast)
        peaks[batch] = (made.choices.recomputes, made.memory.peak.peak_bytes)

    assert {recomputes for recomputes, _ in peaks.values()} == {True, False}
    assert all(peak <= 0.9 * A100.memory_bytes for _, peak in peaks.values())


def test_full_rows_decide_where_rows_are_packed(recipe: Make) -> None:
    # 100 tokens a row, but 16 packed rows of 8,192.
    settings = (*SETTINGS, "model.max_seq_length=8192", "train.per_device_train_batch_size=16")

    assert plan(recipe("", *settings), length=100).choices.recomputes is False
    assert plan(recipe("", *settings, "train.packing=true"), length=100).choices.recomputes is True


def test_a_model_of_unknown_sizes_recomputes(recipe: Make) -> None:
    made = plan(recipe(""))

    assert made.choices.gradient_checkpointing.value == "unsloth"
    assert "unknown" in made.choices.gradient_checkpointing.reason


def test_a_written_value_is_never_changed(recipe: Make) -> None:
    for value in ("true", "false", '"unsloth"'):
        made = plan(recipe("", *SETTINGS, f"train.gradient_checkpointing={value}"))

        assert made.choices.gradient_checkpointing.reason == "as train.gradient_checkpointing says"


def test_a_processor_keeps_what_fits_its_memory(recipe: Make) -> None:
    small = ("model.id=HuggingFaceTB/SmolLM2-135M-Instruct", "train.per_device_train_batch_size=1")

    assert plan(recipe("", *small), CPU, 64).choices.gradient_checkpointing.value is False


def test_after_a_shortage_auto_recomputes_first_and_then_takes_smaller_batches(recipe: Make) -> None:
    loaded = recipe("", *SETTINGS, "train.per_device_train_batch_size=2", "train.effective_batch_size=8")
    first = plan(loaded, length=200)
    assert first.choices.recomputes is False

    steps = []
    current: Plan = first
    while (less := with_less_memory(loaded, current)) is not None:
        current = plan(less, length=200)
        schedule = current.schedule
        steps.append(
            (
                schedule.per_device_train_batch_size,
                schedule.gradient_accumulation_steps,
                current.choices.gradient_checkpointing.value,
            )
        )

    assert steps == [(2, 4, "unsloth"), (1, 8, "unsloth")]


def test_after_a_shortage_a_written_value_stays(recipe: Make) -> None:
    loaded = recipe("", *SETTINGS, "train.per_device_train_batch_size=2", "train.gradient_checkpointing=false")
    less = with_less_memory(loaded, plan(loaded))

    assert less is not None
    assert (less.recipe.train.per_device_train_batch_size, less.recipe.train.gradient_checkpointing) == (1, False)
    assert with_less_memory(less, plan(less)) is None
