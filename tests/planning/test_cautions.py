"""Each caution appears where it must, and a sound recipe is left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from fastft.planning.cautions import Caution
from fastft.planning.facts import Facts
from fastft.planning.plan import make_plan
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import A100, row_facts

Make = Callable[..., LoadedRecipe]

TWO_GPUS = dataclasses.replace(A100, count=2)
SOUND = ["train.effective_batch_size=16", "train.learning_rate=3e-4", "data.chat_template=llama-3.1"]


def cautions(loaded: LoadedRecipe, device: Device = A100, processes: int = 1, **rows: Any) -> tuple[Caution, ...]:
    """The cautions of a recipe for 480 rows of 85 tokens and a Llama model."""
    facts = Facts(
        device=device,
        installed=TESTED,
        base_model=BaseModel("meta-llama/Llama-3.1-8B-Instruct", "hub", None),
        train_examples=480,
        eval_examples=None,
        free_disk_bytes=100 * GIB,
        rows=row_facts([85] * 480, **rows),
        processes=processes,
    )
    return make_plan(loaded, facts, "runs/x").warnings


def sound(recipe: Make, *overrides: str) -> LoadedRecipe:
    return recipe("", "model.id=meta-llama/Llama-3.1-8B-Instruct", *SOUND, *overrides)


# What is changed about the sound recipe, and the caution that must then be the only new one.
CHANGES: list[tuple[list[str], str, str]] = [
    (["train.learning_rate=2e-5"], "train.learning_rate", "best measured LoRA rate for Llama-3.1-8B is 3e-4"),
    (["train.learning_rate=0.02"], "train.learning_rate", "is high for LoRA"),
    (["train.effective_batch_size=64"], "train.effective_batch_size", "LoRA learns best with 32 and fewer"),
    (["train.effective_batch_size=2"], "train.effective_batch_size", "mostly noise; adam_beta2 = 0.99994"),
    (["train.warmup_steps=500"], "train.warmup_steps", "warm-up of 500 steps is as long as the run of 30 steps"),
    (["train.save_strategy=steps", "train.save_steps=500"], "train.save_steps", "save_steps = 500 is never reached"),
    (["train.save_steps=10"], "train.save_strategy", "save_steps = 10 alone means"),
    (["train.num_train_epochs=8"], "train.num_train_epochs", "8 epochs of 480 examples"),
    (["data.chat_template=qwen3"], "data.chat_template", 'chat_template = "qwen3" was made for qwen'),
]


def test_a_sound_recipe_is_left_alone(recipe: Make) -> None:
    found = [caution for caution in cautions(sound(recipe)) if "at the same learning rate" not in caution.says]

    assert found == []


@pytest.mark.parametrize(("overrides", "field", "says"), CHANGES)
def test_what_is_probably_not_meant_is_reported_with_its_field(
    recipe: Make, overrides: list[str], field: str, says: str
) -> None:
    found = [caution for caution in cautions(sound(recipe, *overrides)) if says in caution.says]

    assert [caution.field for caution in found] == [field]


def test_every_caution_has_its_reason_and_its_source(recipe: Make) -> None:
    for overrides, _, _ in CHANGES:
        for caution in cautions(sound(recipe, *overrides)):
            assert caution.reason
            assert caution.source


def test_an_evaluation_that_is_never_reached_is_told(recipe: Make) -> None:
    asked = ["data.eval_fraction=0.1", "train.eval_strategy=steps"]
    late, early = (cautions(sound(recipe, *asked, f"train.eval_steps={every}")) for every in (500, 10))

    assert [caution.field for caution in late if "never reached" in caution.says] == ["train.eval_steps"]
    assert [caution for caution in early if "never reached" in caution.says] == []


@pytest.mark.parametrize(("epochs", "expected"), [(1, ["train.load_best_model_at_end"]), (3, [])])
def test_a_best_model_needs_more_than_one_evaluation(recipe: Make, epochs: int, expected: list[str]) -> None:
    asked = ["data.eval_fraction=0.1", "train.eval_strategy=epoch", "train.load_best_model_at_end=true"]

    found = cautions(sound(recipe, *asked, f"train.num_train_epochs={epochs}"))

    assert [caution.field for caution in found if "to choose from" in caution.says] == expected


def test_full_fine_tuning_is_told_of_a_lora_rate_and_lora_is_not(recipe: Make) -> None:
    whole = sound(recipe, "model.full_finetuning=true", 'export.formats=["merged_16bit"]')

    assert ["a LoRA rate" in caution.says for caution in cautions(whole) if "is high" in caution.says] == [True]


def test_packing_that_multiplies_the_examples_of_a_step_is_told_and_a_kept_step_is_not(recipe: Make) -> None:
    model = "model.id=meta-llama/Llama-3.1-8B-Instruct"
    multiplied = cautions(recipe("", model, "train.packing=true", "train.gradient_accumulation_steps=1"))
    kept = cautions(recipe("", model, "train.packing=true", "train.effective_batch_size=48"))

    assert ["not 2;" in caution.says for caution in multiplied if caution.field == "train.packing"] == [True]
    assert [caution for caution in kept if caution.field == "train.packing"] == []


def test_a_changed_batch_shows_both_rules_for_the_learning_rate(recipe: Make) -> None:
    body = "[train]\nper_device_train_batch_size = 4\nlearning_rate = 1e-4\n"
    alone = cautions(recipe(body, "train.per_device_train_batch_size=16"))
    together = cautions(recipe(body, "train.per_device_train_batch_size=16", "train.learning_rate=2e-4"))

    found = [caution.says for caution in alone if "at the same learning rate" in caution.says]
    assert found == [
        "batch 4 -> 16 at the same learning rate; the square-root rule says 2.0e-04, the linear rule 4.0e-04"
    ]
    assert [caution for caution in together if "at the same learning rate" in caution.says] == []


def test_a_changed_batch_under_max_steps_is_told_in_data(recipe: Make) -> None:
    body = "[train]\nper_device_train_batch_size = 1\nmax_steps = 1000\n"

    found = [caution.says for caution in cautions(recipe(body, "train.per_device_train_batch_size=100"))]

    assert "batch 1 -> 100 makes this run 100 times longer in data: max_steps = 1000 stays" in found


def test_what_truncation_loses_is_counted(recipe: Make) -> None:
    lost = cautions(sound(recipe), lost_rows=3, lost_tokens=9000, longest=4000)

    (caution,) = [caution for caution in lost if caution.field == "model.max_seq_length"]
    assert "loses 9,000 tokens (drop): 3 of 483 rows are left out, the longest has 4,000 tokens" in caution.says
    assert [caution for caution in cautions(sound(recipe)) if caution.field == "model.max_seq_length"] == []


def test_a_padding_token_that_ends_answers_is_told(recipe: Make) -> None:
    assert [caution.field for caution in cautions(sound(recipe), pads_with_end=True)][-1:] == ["model.id"]
    assert [caution for caution in cautions(sound(recipe)) if "padding token" in caution.says] == []


def test_what_has_no_effect_in_the_rows_is_said(recipe: Make) -> None:
    note = "columns without effect in training rows: id (3 rows)"
    assert ("data.ignore", note) in [(c.field, c.says) for c in cautions(sound(recipe), notes=(note,))]


@pytest.mark.parametrize(
    ("facts", "field", "words"),
    [
        ({"split_rows": 3, "extra_tokens": 4120}, "data.turns", "4,120 tokens more"),
        ({"dropped": {"reasoning": 2}}, "data.chat_template", "2 training rows are without reasoning"),
        ({"written_date": "2024-07-26"}, "data.template_date", "2024-07-26"),
    ],
)
def test_what_rows_lose_and_what_a_split_costs_stands_in_the_plan(
    recipe: Make, facts: dict[str, Any], field: str, words: str
) -> None:
    found = [caution for caution in cautions(sound(recipe), **facts) if caution.field == field]
    assert [words in caution.says for caution in found] == [True]


@pytest.mark.parametrize(("processes", "idle"), [(1, True), (2, False)])
def test_gpus_that_no_process_uses_are_told(recipe: Make, processes: int, idle: bool) -> None:
    found = cautions(sound(recipe), TWO_GPUS, processes)

    assert any("1 of 2 GPUs stay idle" in caution.says for caution in found) is idle


def test_an_added_token_that_no_row_holds_is_told(recipe: Make) -> None:
    loaded = sound(recipe, 'data.add_tokens=["<think>"]', 'data.add_special_tokens=["<call>"]')

    fields = [
        [one.field for one in cautions(loaded, unused_tokens=unused) if "of the added tokens" in one.says]
        for unused in ((), ("<call>",), ("<think>", "<call>"))
    ]

    assert fields == [[], ["data.add_special_tokens"], ["data.add_tokens"]]
