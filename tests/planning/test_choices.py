from __future__ import annotations

from collections.abc import Callable

import pytest

from fastft.planning.choices import (
    choose_accumulation,
    choose_bf16,
    choose_checkpointing,
    choose_dtype,
    choose_engine,
    choose_fp16,
    choose_grouping,
    choose_optimizer,
    choose_packing,
)
from fastft.probe.device import Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import A100, CPU, T4

Make = Callable[..., LoadedRecipe]


@pytest.mark.parametrize(
    ("override", "installed", "value"),
    [
        ("auto", dict(TESTED), "unsloth"),
        ("auto", {"torch": "2.13.0", "transformers": "5.17.0"}, "transformers"),
        ("auto", {}, "unsloth"),
        ("auto", {"tokenizers": "0.23.3"}, "unsloth"),
        ("transformers", dict(TESTED), "transformers"),
    ],
)
def test_unsloth_trains_where_it_is(recipe: Make, override: str, installed: dict[str, str], value: str) -> None:
    loaded = recipe("", f"model.engine={override}")

    assert choose_engine(loaded.recipe, installed).value == value


@pytest.mark.parametrize(
    ("device", "overrides", "values"),
    [
        (A100, [], ("bfloat16", True, False)),
        (T4, [], ("float16", False, True)),
        (CPU, [], ("float32", False, False)),
        (A100, ["train.fp16=true"], ("float16", False, True)),
        (A100, ["train.bf16=false"], ("float32", False, False)),
        (A100, ["model.dtype=float32"], ("float32", False, False)),
        (A100, ["model.dtype=float16"], ("float16", False, True)),
        (CPU, ["train.bf16=true"], ("float32", True, False)),
        (CPU, ["train.fp16=true", "model.load_in_4bit=true"], ("float32", False, False)),
        (T4, ["train.fp16=false"], ("float32", False, False)),
    ],
)
def test_precision_is_what_the_device_computes_in(
    recipe: Make, device: Device, overrides: list[str], values: tuple[str, bool, bool]
) -> None:
    asked = recipe("", *overrides).recipe

    bf16 = choose_bf16(asked, device).value
    fp16 = choose_fp16(asked, device, bf16).value

    assert (choose_dtype(asked, device, bf16, fp16).value, bf16, fp16) == values


@pytest.mark.parametrize(
    ("asked", "taken", "reason"),
    [
        ([], "adamw_torch_fused", "the same AdamW in float32, far faster than 8 bits on a processor"),
        (["train.optim=adamw_torch"], "adamw_torch_fused", "the fused form of the same sums"),
        (["train.optim=adamw_8bit"], "adamw_8bit", "as train.optim says"),
        (["train.optim=paged_lion_8bit"], "paged_lion_8bit", "nothing is paged here"),
    ],
)
def test_a_processor_runs_the_optimizer_that_was_named_or_else_the_fastest_adamw(
    recipe: Make, asked: list[str], taken: str, reason: str
) -> None:
    choice = choose_optimizer(recipe("", *asked).recipe, CPU)

    assert choice.value == taken
    assert reason in choice.reason
    assert choose_optimizer(recipe("", *asked).recipe, A100).value == recipe("", *asked).recipe.train.optim


@pytest.mark.parametrize(("tokens", "value"), [(511, True), (512, "unsloth")])
def test_unsloth_checkpointing_is_plain_for_short_rows(recipe: Make, tokens: int, value: bool | str) -> None:
    loaded = recipe("", f"model.max_seq_length={tokens}")

    assert choose_checkpointing(loaded.recipe, "unsloth", A100).value == value


def test_unsloth_checkpointing_is_plain_without_unsloth(recipe: Make) -> None:
    assert choose_checkpointing(recipe().recipe, "unsloth", A100).value == "unsloth"
    assert choose_checkpointing(recipe().recipe, "transformers", A100).value is True


@pytest.mark.parametrize(
    ("engine", "device", "overrides", "values"),
    [
        ("unsloth", A100, [], (True, False)),
        ("unsloth", CPU, [], (False, True)),
        ("transformers", A100, [], (True, False)),
        ("transformers", CPU, [], (True, False)),
        ("transformers", CPU, ["model.attn_implementation=flex_attention"], (False, True)),
        ("unsloth", A100, ["train.packing=false"], (False, True)),
        ("unsloth", CPU, ["train.group_by_length=false"], (False, False)),
    ],
)
def test_examples_are_packed_where_they_stay_apart_and_else_grouped(
    recipe: Make, engine: str, device: Device, overrides: list[str], values: tuple[bool, bool]
) -> None:
    loaded = recipe("", "train.packing=true", "train.group_by_length=true", *overrides)

    packing = choose_packing(loaded.recipe, engine, device, flat=True).value

    assert (packing, choose_grouping(loaded.recipe, engine, device, packing, flat=True).value) == values


@pytest.mark.parametrize(
    ("overrides", "devices", "value"),
    [
        ([], 1, 1),
        (["train.gradient_accumulation_steps=36"], 1, 36),
        (["train.effective_batch_size=32"], 1, 8),
        (["train.effective_batch_size=32"], 2, 4),
        (["train.effective_batch_size=4"], 8, 1),
    ],
)
def test_accumulation_follows_from_the_examples_of_a_step(
    recipe: Make, overrides: list[str], devices: int, value: int
) -> None:
    loaded = recipe("", "train.per_device_train_batch_size=4", *overrides)

    assert choose_accumulation(loaded.recipe, devices, False, None).value == value


def test_packing_does_not_multiply_the_examples_of_a_step(recipe: Make) -> None:
    loaded = recipe("", "train.effective_batch_size=64", "train.packing=true", "model.max_seq_length=100")

    assert choose_accumulation(loaded.recipe, 1, True, None).value is None
    # Four examples of 25 tokens fill a row of 100: 64 examples are 16 rows, 8 batches of 2.
    assert choose_accumulation(loaded.recipe, 1, True, 4.0).value == 8
