"""A run leaves what this machine reached, and the next plan of such a run stands on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastft.commands.plan import Question, plan
from fastft.planning.measured import measured_shares
from fastft.planning.products import kept_products
from fastft.planning.timing import Time
from tests.engine.tiny import run, write_recipe


def test_the_next_plan_knows_what_this_machine_reached(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "throughput.json"
    products = tmp_path / "products.json"
    for module in ("fastft.planning.facts", "fastft.planning.measured"):
        monkeypatch.setattr(f"{module}.throughput_file", lambda: kept)
    for module in ("fastft.planning.facts", "fastft.stages.ready"):
        monkeypatch.setattr(f"{module}.products_file", lambda: products)
    # A tiny model trains in a second, which in earnest is no measurement.
    monkeypatch.setattr("fastft.planning.measured.SHORTEST_SECONDS", 0.0)
    recipe = write_recipe(tmp_path, model, {}, "tiny")

    finished = run(recipe)
    time = plan(recipe, [], Question(tmp_path / "runs")).time

    [(share,)] = measured_shares(kept).values()
    assert isinstance(time, Time)
    assert time.rate.share.low < share < time.rate.share.high
    assert "measured here in 1 run" in time.rate.assumption
    [measured] = kept_products(products).values()
    assert time.rate.peak == measured["float32"].flops
    assert "(products measured here)" in time.rate.assumption
    assert time.seconds.likely == pytest.approx(sum(step["seconds"] for step in finished.steps), abs=0.1)
