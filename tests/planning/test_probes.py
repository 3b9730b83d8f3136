"""Figures that `fastft tune` kept: plans take the fastest measured set-up that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.planning.choices import Choice
from fastft.planning.chooser import candidates
from fastft.planning.facts import Estimate, Facts
from fastft.planning.plan import Plan, make_plan
from fastft.planning.probes import Probe, SetUp, keep_probes, kept_probes, probes_file, probes_key
from fastft.probe.architecture import architecture_of
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import CPU, row_facts

Make = Callable[..., LoadedRecipe]
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEVICE = dataclasses.replace(CPU, memory_bytes=8 * GIB)
LENGTHS = [16 + 37 * number % 400 for number in range(480)]


def facts(**changes: object) -> Facts:
    model = BaseModel(SMALL, "hub", None)
    made = Facts(DEVICE, TESTED, model, 480, None, 100 * GIB, row_facts(LENGTHS))
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def planned(recipe: Make, probes: list[Probe], *overrides: str, **changes: object) -> Plan:
    loaded, found = recipe("", f"model.id={SMALL}"), facts()
    key = probes_key(loaded.recipe, found, "unsloth", architecture_of(SMALL, {}))
    assert key is not None
    found = dataclasses.replace(facts(**changes), probes={key: tuple(probes)})
    return make_plan(recipe("", f"model.id={SMALL}", *overrides), found, "runs/x")


def probe(batch: int, rate: float, gib: float, *, recomputes: bool = False) -> Probe:
    return Probe(SetUp(batch, False, recomputes, False, "float32"), 8 * GIB, rate, round(gib * GIB))


def test_a_plan_takes_the_fastest_measured_set_up(recipe: Make) -> None:
    made = planned(recipe, [probe(1, 100, 1), probe(8, 90, 3), probe(16, 150, 4, recomputes=True)])

    choices = made.choices
    assert (choices.per_device_train_batch_size.value, choices.recomputes) == (16, True)
    assert "fastest of 3 that `fastft tune` measured here" in choices.per_device_train_batch_size.reason
    assert choices.per_device_train_batch_size.runner_up == 1


def test_one_that_does_not_fit_here_is_not_taken(recipe: Make) -> None:
    small = dataclasses.replace(DEVICE, memory_bytes=4 * GIB)
    probes = [probe(1, 100, 1), probe(16, 150, 3.7)]

    assert planned(recipe, probes).choices.per_device_train_batch_size.value == 16
    assert planned(recipe, probes, device=small).choices.per_device_train_batch_size.value == 1


def test_what_ran_out_of_memory_is_not_taken_where_there_is_no_more(recipe: Make) -> None:
    free = planned(recipe, []).set_up
    failed = Probe(free, DEVICE.memory_bytes, out_of_memory=True, wrong="out of memory")

    assert planned(recipe, [failed]).set_up != free
    assert planned(recipe, [dataclasses.replace(failed, limit_bytes=GIB)]).set_up == free


def test_what_a_recipe_writes_is_never_changed(recipe: Make) -> None:
    made = planned(recipe, [probe(16, 150, 4)], "train.per_device_train_batch_size=2", "train.effective_batch_size=16")

    assert made.choices.per_device_train_batch_size.value == 2


@pytest.mark.parametrize(
    "override",
    ["lora.r=64", "model.max_seq_length=4096", "train.effective_batch_size=32", "train.optim=lion_8bit"],
)
def test_figures_of_another_training_say_nothing(recipe: Make, override: str) -> None:
    measured = planned(recipe, [probe(1, 1000, 1)], override)

    assert "fastft tune" not in measured.choices.per_device_train_batch_size.reason


def test_estimated_lengths_have_no_key(recipe: Make) -> None:
    rows = row_facts(LENGTHS)
    loaded, model = recipe("", f"model.id={SMALL}"), architecture_of(SMALL, {})
    estimated = dataclasses.replace(rows, estimate=Estimate("words", 0.3, "no tokenizer"))

    assert probes_key(loaded.recipe, facts(), "unsloth", model) is not None
    assert probes_key(loaded.recipe, facts(rows=estimated), "unsloth", model) is None
    assert probes_key(loaded.recipe, facts(rows=None), "unsloth", model) is None


def test_probes_are_kept_the_newest_of_each_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = probes_file()

    keep_probes(path, "a", [probe(1, 100, 1), probe(2, 120, 1)])
    keep_probes(path, "a", [probe(1, 110, 1)])
    keep_probes(path, "b", [probe(1, 5, 1)])

    assert kept_probes(path) == {"a": (probe(1, 110, 1), probe(2, 120, 1)), "b": (probe(1, 5, 1),)}
    path.write_text("{", encoding="utf-8")
    assert kept_probes(path) == {}


def test_candidates_are_all_set_ups_the_fastest_first(recipe: Make) -> None:
    loaded, model = recipe("", f"model.id={SMALL}"), architecture_of(SMALL, {})
    assert model is not None

    found = candidates(loaded.recipe, facts(), Choice("unsloth", ""), model)

    assert len({each.set_up for each in found}) == len(found)
    assert {each.set_up.per_device_train_batch_size for each in found} == {1, 2, 4, 8, 16}
    assert [each.tokens_per_second for each in found] == sorted(
        (each.tokens_per_second for each in found), reverse=True
    )
