"""A recipe with overrides as a file of its own, in another folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastft.recipe.loader import load
from fastft.recipe.written import PATHS, recipe_in
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
