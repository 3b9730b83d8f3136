"""What a processor gets where the recipe leaves it open: the type of its weights, and how attention is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from fastft.planning.facts import Facts
from fastft.planning.plan import Plan, make_plan
from fastft.planning.products import Product, products_key
from fastft.probe.architecture import architecture_of
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import A100, CPU, row_facts

Make = Callable[..., LoadedRecipe]
FAST = dataclasses.replace(CPU, computes_bfloat16=True)
SMALL = "model.id=HuggingFaceTB/SmolLM2-135M-Instruct"


def plan(
    loaded: LoadedRecipe,
    device: object = FAST,
    lengths: tuple[int, ...] = (40, 90, 200),
    times: float | None = None,
    began: dict[str, object] | None = None,
    **more: object,
) -> Plan:
    base = BaseModel(loaded.recipe.model.id, "hub", None)
    model = architecture_of(base.id, {})
    products = {}
    if times is not None and model is not None:
        measured = {"float32": Product(100e9, 20.0), "bfloat16": Product(times * 100e9, 20.0)}
        products = {products_key(FAST, model, TESTED): measured}
    rows = row_facts(list(lengths) * 20)
    facts = Facts(device, TESTED, base, 60, None, 100 * GIB, rows, products=products, **more)  # type: ignore[arg-type]
    return make_plan(loaded, facts, "runs/x", began=began)


@pytest.mark.parametrize(
    ("overrides", "times", "taken"),
    [
        ([], None, "bfloat16"),
        ([], 2.0, "bfloat16"),
        ([], 1.1, "float32"),
        (["model.dtype=float32"], 2.0, "float32"),
        (["train.bf16=false"], 2.0, "float32"),
        (["model.full_finetuning=true", 'export.formats=["merged_16bit"]'], 2.0, "float32"),
        (["model.load_in_4bit=true"], 2.0, "float32"),
    ],
)
def test_frozen_weights_are_rounded_where_that_is_measured_to_be_faster(
    recipe: Make, overrides: list[str], times: float | None, taken: str
) -> None:
    made = plan(recipe("", SMALL, *overrides), times=times)

    assert made.choices.dtype.value == taken
    assert made.calls.load.kwargs["dtype"] == taken
    # Accelerate's mixed precision would copy all logits to float32.
    assert made.calls.trainer.kwargs["bf16"] is False


def test_a_processor_without_bfloat16_and_several_processes_keep_float32(recipe: Make) -> None:
    loaded = recipe("", SMALL)

    assert plan(loaded, CPU).choices.dtype.value == "float32"
    assert plan(loaded, processes=2).choices.dtype.value == "float32"


@pytest.mark.parametrize(
    ("overrides", "lengths", "taken"),
    [
        ([], (40, 90, 200), "eager"),
        ([], (40, 90, 600), "auto"),
        (["model.dtype=float32"], (40, 90, 200), "auto"),
        (["model.attn_implementation=sdpa", "model.engine=transformers"], (40, 90, 200), "sdpa"),
        # Packed rows are as long as max_seq_length.
        (["train.packing=true", "model.engine=transformers"], (40, 90, 200), "auto"),
        (["train.packing=true", "model.engine=transformers", "model.max_seq_length=256"], (40, 90, 200), "eager"),
    ],
)
def test_attention_of_short_rows_is_made_of_plain_products(
    recipe: Make, overrides: list[str], lengths: tuple[int, ...], taken: str
) -> None:
    made = plan(recipe("", SMALL, *overrides), lengths=lengths)

    assert made.choices.attn_implementation.value == taken
    assert made.calls.load.kwargs.get("attn_implementation", "auto") == taken


def test_a_run_keeps_its_type_on_a_processor_and_takes_that_of_a_gpu(recipe: Make) -> None:
    loaded = recipe("", SMALL)
    rounded, exact = plan(loaded).chosen, plan(loaded, CPU).chosen

    assert plan(loaded, CPU, began=rounded).choices.dtype.value == "bfloat16"
    again = plan(loaded, began=exact).choices.dtype
    assert (again.value, again.reason) == ("float32", "as this run began, on its first process")
    on_gpu = plan(loaded, A100, began=exact)
    assert on_gpu.choices.dtype.value == "bfloat16"
    assert on_gpu.obstacles == ()


def test_a_micro_batch_costs_the_same_seconds_and_so_more_tokens_in_bfloat16(recipe: Make) -> None:
    loaded, mixed = recipe("", SMALL), (30, 60, 120, 250)

    rounded = plan(loaded, lengths=mixed, times=2.5).choices
    exact = plan(recipe("", SMALL, "model.dtype=float32"), lengths=mixed, times=2.5).choices

    assert rounded.per_device_train_batch_size.value > exact.per_device_train_batch_size.value
