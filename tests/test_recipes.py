"""Every shipped recipe is valid, does what its head comment says, and plans exactly the reviewed calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastft.planning.check import check
from fastft.recipe.loader import load
from tests.golden import FOLDER, RECIPES, golden_text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_passes_check(recipe: Path) -> None:
    loaded = load(recipe)

    # A Hub dataset is not read.
    formats = {source.format for source in check(loaded).sources} - {None}
    assert formats <= {{"sft": "messages"}.get(loaded.recipe.task, loaded.recipe.task)}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_begins_with_its_exact_command(recipe: Path) -> None:
    head = [line for line in recipe.read_text().splitlines() if line.startswith("#")]

    assert any(f"fastft run recipes/{recipe.name}" in line for line in head)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_plan_of_a_shipped_recipe_is_the_reviewed_one(recipe: Path) -> None:
    reviewed = json.loads((FOLDER / f"{recipe.stem}.json").read_text(encoding="utf-8"))

    assert json.loads(golden_text(recipe)) == reviewed, "changed on purpose? then run `make golden` and review the diff"


def test_no_reviewed_plan_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {recipe.stem for recipe in RECIPES}
