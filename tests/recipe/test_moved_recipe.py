"""A recipe with overrides as a file of its own, in another folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastft.recipe.loader import load
from fastft.recipe.paths import PATHS
from fastft.recipe.written import recipe_in
from tests.test_recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_says_the_same_in_another_folder(recipe: Path, tmp_path: Path) -> None:
    loaded = load(recipe, ["train.seed=7"])
    written = tmp_path / "best.toml"

    written.write_text(recipe_in(loaded, tmp_path, "the best\nof all"), encoding="utf-8")
    again = load(written)

    assert written.read_text(encoding="utf-8").startswith("# the best\n# of all\n")
    before, now = loaded.settings(), again.settings()
    moved = {name for name in before if before[name].value != now[name].value}
    assert moved <= set(PATHS)
    for name in moved:
        assert (tmp_path / now[name].value).resolve() == (recipe.parent / before[name].value).resolve()
    assert now["train.seed"].value == 7


def test_sources_and_patterns_lead_to_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "rows" / name).write_text("{}\n")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[model]\nid = "org/model"\n[data]\neval_fraction = 0.1\n'
        '[[data.sources]]\npath = "rows/*.jsonl"\nweight = 2.0\n[[data.sources]]\npath = "rows/a.jsonl"\n'
    )
    there = tmp_path / "runs" / "sweep"
    there.mkdir(parents=True)

    (there / "best.toml").write_text(recipe_in(load(recipe), there, "best"))

    sources = load(there / "best.toml").recipe.data.sources
    assert [(source.path, source.weight) for source in sources] == [
        ("../../rows/*.jsonl", 2.0),
        ("../../rows/a.jsonl", 1.0),
    ]
    assert load(there / "best.toml").recipe.model.id == "org/model"


def test_a_schema_of_answers_is_found_from_the_other_folder_too(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "schema.json").write_text("{}", encoding="utf-8")
    recipe = tmp_path / "here" / "a.toml"
    lines = '[model]\nid = "org/model"\n[data]\ntrain = "a.jsonl"\neval_fraction = 0.5\n'
    recipe.write_text(lines + '[eval]\nexact_match = true\nanswer_schema = "schema.json"\n', encoding="utf-8")
    moved = tmp_path / "there.toml"

    moved.write_text(recipe_in(load(recipe), tmp_path, "moved"), encoding="utf-8")

    assert load(moved).recipe.eval.answer_schema == "here/schema.json"
