"""`fastft tune` on a tiny model: real steps in a process of their own, a recipe, and figures that plans use."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastft.commands.plan import Question, plan
from fastft.commands.tune import tune
from fastft.commands.tune_rate import find_learning_rate
from fastft.errors import UsageError
from fastft.planning.probes import Probe, SetUp
from fastft.recipe.loader import load
from fastft.stages.probing import Order, overrides_of
from fastft.stages.probing import Question as Asked
from fastft.stages.tuning import Prober, rate_of
from tests.engine.tiny import run, write_recipe

OPEN = {"train.per_device_train_batch_size": None, "train.gradient_checkpointing": None}


def test_the_fastest_set_up_is_written_down_and_planned_from_then_on(model: Path, tmp_path: Path) -> None:
    changes = {**OPEN, "train.effective_batch_size": 4, "model.dtype": "float32", "model.engine": "transformers"}
    recipe = write_recipe(tmp_path, model, changes)
    said: list[str] = []

    tuned = tune(recipe, [], None, said.append)

    assert tuned.best is not None, said
    assert tuned.best == max(tuned.probes, key=rate_of)
    assert {each.set_up.recomputes for each in tuned.probes} == {False, True}
    assert all(each.peak_bytes and each.peak_bytes > 50e6 for each in tuned.probes), said
    assert tuned.written == tmp_path / "tiny.tuned.toml"
    written = load(tuned.written).recipe.train
    assert written.per_device_train_batch_size == tuned.best.set_up.per_device_train_batch_size
    assert written.effective_batch_size == 4
    made = plan(recipe, [], Question(tmp_path / "runs"))
    assert "`fastft tune` measured here" in made.choices.per_device_train_batch_size.reason
    measured = {each.set_up: rate_of(each) for each in tuned.probes}
    # Set-ups that are equal within 2 % go to the plainest.
    assert measured[made.set_up] > 0.97 * rate_of(tuned.best)

    settled = [
        f"{key}={value}" for key, value in overrides_of(tuned.best.set_up, tuple(OPEN), "transformers", 4).items()
    ]
    with pytest.raises(UsageError, match="leaves nothing open"):
        tune(recipe, [*settled, "train.packing=false", "model.load_in_4bit=false"], None, said.append)


def test_memory_that_runs_out_ends_the_probe_alone(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, OPEN | {"train.effective_batch_size": 8})
    order = Order(str(recipe), (), "transformers", 1, str(tmp_path / "log.txt"))

    def asked(batch: int) -> Asked:
        set_up = SetUp(batch, False, False, False, "float32")
        keys = ("train.per_device_train_batch_size", "train.packing", "train.gradient_checkpointing")
        overrides = overrides_of(set_up, keys, "transformers", 8)
        return Asked(set_up, tuple(f"{key}={value}" for key, value in overrides.items()), 8)

    with Prober(order) as prober:
        lacking = prober.ask(asked(8))
    assert lacking == Probe(asked(8).set_up, 1, out_of_memory=True, wrong=lacking.wrong)


def test_a_learning_rate_is_found_and_its_curve_is_in_the_report(model: Path, tmp_path: Path) -> None:
    changes = {"train.learning_rate": 1e-4}
    recipe = write_recipe(tmp_path, model, changes)
    said: list[str] = []

    test, written = find_learning_rate(recipe, [], said.append)

    assert written == tmp_path / "tiny.tuned.toml"
    assert load(written).recipe.train.learning_rate == test.suggested
    assert test.suggested is not None
    assert 1e-3 < test.suggested < 0.1, test
    assert said[0].startswith("32 steps of 4 examples at rates from 1e-05 to 1e-01")
    finished = run(recipe)
    page = (finished.folder.path / "report.html").read_text(encoding="utf-8")
    assert "learning rate test" in page
    assert f"{test.suggested:.1e} is suggested" in page
