"""Peak memory on a processor, against real runs: `python benchmarks/forecast.py` measured them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.planning.facts import Facts
from fastft.planning.fitting import MemoryForecast
from fastft.planning.plan import make_plan
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import CPU, row_facts

Make = Callable[..., LoadedRecipe]
MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks" / "forecast_cpu.json").read_text(encoding="utf-8"))


def test_at_least_three_recipes_were_measured() -> None:
    assert len(MEASURED["cases"]) >= 3


@pytest.mark.parametrize("case", MEASURED["cases"], ids=lambda case: case["name"])
def test_the_peak_of_a_process_is_within_15_percent_of_the_measured_one(recipe: Make, case: dict[str, Any]) -> None:
    loaded = recipe(
        "",
        "model.id=HuggingFaceTB/SmolLM2-135M-Instruct",
        f"model.max_seq_length={case['length']}",
        f"model.full_finetuning={str(case['full_finetuning']).lower()}",
        f"export.formats={['merged_16bit'] if case['full_finetuning'] else ['adapter']}",
        f"train.per_device_train_batch_size={case['batch']}",
        f"train.gradient_accumulation_steps={case['accumulation']}",
        f"train.gradient_checkpointing={str(case['checkpointing']).lower()}",
        "train.optim=adamw_torch",
    )
    model = BaseModel("HuggingFaceTB/SmolLM2-135M-Instruct", "hub", None)
    rows = row_facts([case["length"]] * 100)
    facts = Facts(CPU, TESTED, model, 100, None, 100 * GIB, rows)

    forecast = make_plan(loaded, facts, "runs/x").memory

    assert isinstance(forecast, MemoryForecast)
    assert forecast.peak.peak_bytes == pytest.approx(case["peak_memory_bytes"], rel=0.15)
