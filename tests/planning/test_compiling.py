"""What torch.compile costs is in the plan, and what cannot compile is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from fastft.planning.facts import Facts
from fastft.planning.plan import Plan, make_plan
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import A100, CPU, row_facts

Make = Callable[..., LoadedRecipe]
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def plan(loaded: LoadedRecipe, device: Device, compilers: tuple[str, ...] = ("cc", "c++")) -> Plan:
    """A plan for 480 rows of 300 tokens at two units of money an hour."""
    facts = Facts(device, {**TESTED, "torchao": "0.18"}, BaseModel(LLAMA, "hub", None), 480, None, 100 * GIB)
    facts = dataclasses.replace(facts, rows=row_facts([300] * 480), compilers=compilers)
    return make_plan(loaded, facts, "runs/x", price_per_hour=2.0)


def test_the_plan_says_that_the_first_steps_compile(recipe: Make) -> None:
    compiled = plan(recipe("", f"model.id={LLAMA}", "train.torch_compile=true"), A100)

    assert "train.torch_compile" in {caution.field for caution in compiled.warnings}
    assert "train.torch_compile" not in {
        caution.field for caution in plan(recipe("", f"model.id={LLAMA}"), A100).warnings
    }


@pytest.mark.parametrize(("device", "missing", "word"), [(CPU, "c++", "C++"), (A100, "cc", "C")])
def test_nothing_is_compiled_without_a_compiler(recipe: Make, device: Device, missing: str, word: str) -> None:
    others = tuple(name for name in ("cc", "c++") if name != missing)
    model = recipe("", f"model.id={LLAMA}", "train.torch_compile=true", "train.optim=adamw_torch_8bit")

    problems = [str(problem) for problem in plan(model, device, others).obstacles]

    assert sum(f"needs a {word} compiler, and none is found" in problem for problem in problems) == 2
    assert not any("compiler" in str(problem) for problem in plan(model, device).obstacles)
