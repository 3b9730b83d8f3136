"""Published rates, the intervals that they give, and what earlier runs on this machine put in their place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.planning.batching import Batching
from fastft.planning.devices import SHEETS, named_device
from fastft.planning.facts import Estimate, Facts
from fastft.planning.measured import (
    KEPT_RUNS,
    keep_rate,
    keep_share,
    measured_shares,
    rate_key,
    share_of,
    throughput_file,
)
from fastft.planning.plan import Plan, make_plan
from fastft.planning.products import Product, keep_products, kept_products, products_file, products_key
from fastft.planning.throughput import MODELS, PUBLISHED, Published, published_share
from fastft.planning.timing import Time
from fastft.probe.architecture import KNOWN, architecture_of
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB
from fastft.probe.software import TESTED
from fastft.recipe.loader import LoadedRecipe
from tests.golden import CPU, row_facts

Make = Callable[..., LoadedRecipe]
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SETTINGS = (f"model.id={LLAMA}", "model.load_in_4bit=true", "train.packing=true", "train.num_train_epochs=20")


def facts(device: str = "a100-80gb", **changes: object) -> Facts:
    rows = row_facts([300] * 4800)
    base = Facts(named_device(device, None, CPU), TESTED, BaseModel(LLAMA, "hub", None), 4800, None, 900 * GIB, rows)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def plan(recipe: Make, found: Facts) -> Plan:
    return make_plan(recipe("", *SETTINGS), found, "runs/x")


def time_of(made: Plan) -> Time:
    assert isinstance(made.time, Time)
    return made.time


def test_at_least_twelve_rates_are_published_each_with_its_source() -> None:
    assert len(PUBLISHED) >= 12
    assert [row for row in PUBLISHED if len(row.source) < 20] == []


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.card} {row.kind} {row.engine} {row.tokens}")
def test_a_published_rate_is_physically_credible(row: Published) -> None:
    assert 0.3 < row.utilisation < 0.9


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.card} {row.kind} {row.engine} {row.tokens}")
def test_the_interval_of_a_run_like_a_published_one_holds_its_rate(row: Published) -> None:
    share = published_share(row.sheet, MODELS[row.model], row.kind, row.engine, row.tokens)

    assert share.low <= row.utilisation <= share.high
    # An interval that holds everything says nothing.
    assert share.high / share.low < 2.2


def test_a_card_without_a_published_rate_has_a_wider_interval_and_says_so() -> None:
    model = KNOWN["llama-3.1-8b"]
    known = published_share(SHEETS["a100-80gb"], model, "4-bit LoRA", "unsloth", 4096)
    other = published_share(SHEETS["h100"], model, "4-bit LoRA", "unsloth", 4096)

    assert other.low < known.low
    assert other.high > known.high
    assert "none on NVIDIA H100" in other.source
    assert "none on" not in known.source


def test_a_small_model_may_reach_less() -> None:
    sheet = SHEETS["a100-80gb"]
    small, large = (
        published_share(sheet, KNOWN[name], "16-bit LoRA", "unsloth", 4096) for name in ("llama-3.2-1b", "llama-3.1-8b")
    )

    assert small.low < large.low
    assert small.high == large.high


def test_time_and_price_are_intervals_around_what_is_likely(recipe: Make) -> None:
    time = time_of(make_plan(recipe("", *SETTINGS), facts(), "runs/x", price_per_hour=1.5))

    # 28.8 million tokens at about 5,000 a second, since activations fit: a third more than what was published with
    # recomputation.
    assert time.seconds.low < time.seconds.likely < time.seconds.high
    assert time.seconds.likely == pytest.approx(5760, rel=0.15)
    assert time.price is not None
    assert time.price.low < time.price.likely < time.price.high


def test_what_this_machine_reached_replaces_what_others_published(recipe: Make, tmp_path: Path) -> None:
    path, found = tmp_path / "cache" / "throughput.json", facts()
    made = plan(recipe, found)
    time = time_of(made)
    assert isinstance(made.batching, Batching)
    loaded = recipe("", *SETTINGS)
    key = rate_key(loaded.recipe, found, made.choices, architecture_of(LLAMA, {}), "packing")
    took = time.seconds.likely * 1.4

    keep_share(path, key, share_of(time, made.batching.padding, took))
    again = time_of(plan(recipe, dataclasses.replace(found, measured=measured_shares(path))))
    other_card = time_of(plan(recipe, facts("h100", measured=measured_shares(path))))

    assert again.seconds.likely == pytest.approx(took, rel=0.01)
    assert again.seconds.high / again.seconds.low < 1.25
    assert "measured here in 1 run" in again.rate.assumption
    assert "measured here" not in other_card.rate.assumption


def test_the_newest_runs_are_kept_and_short_ones_are_not(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loaded, found = recipe("", *SETTINGS), facts()
    made, model = plan(recipe, found), architecture_of(LLAMA, {})
    likely = time_of(made).seconds.likely

    keep_rate(loaded.recipe, found, made, model, 30.0)
    assert measured_shares(throughput_file()) == {}
    for number in range(KEPT_RUNS + 2):
        keep_rate(loaded.recipe, found, made, model, likely * (1 + number))

    [shares] = measured_shares(throughput_file()).values()
    assert len(shares) == KEPT_RUNS
    assert list(shares) == sorted(shares, reverse=True)


def test_a_processor_that_was_measured_while_it_was_busy_is_measured_again(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loaded, model = recipe("", *SETTINGS[:1], "train.num_train_epochs=20"), KNOWN["llama-3.1-8b"]
    found = dataclasses.replace(facts(), device=CPU)
    key, busy = products_key(CPU, model, found.installed), {"float32": Product(100e9, 0.0)}
    keep_products(products_file(), key, busy)
    keep_products(products_file(), "another", busy)
    found = dataclasses.replace(found, products=kept_products(products_file()))
    made = make_plan(loaded, found, "runs/x")
    likely = time_of(made).seconds.likely

    keep_rate(loaded.recipe, found, made, model, likely)
    assert kept_products(products_file()).keys() == {key, "another"}
    keep_rate(loaded.recipe, found, made, model, likely / 4)

    assert kept_products(products_file()).keys() == {"another"}
    [shares] = measured_shares(throughput_file()).values()
    assert len(shares) == 1


def test_a_run_that_stood_still_is_no_rate_of_zero(recipe: Make, tmp_path: Path) -> None:
    path, found = tmp_path / "throughput.json", facts()
    made = plan(recipe, found)
    time = time_of(made)
    assert isinstance(made.batching, Batching)
    loaded = recipe("", *SETTINGS)
    key = rate_key(loaded.recipe, found, made.choices, architecture_of(LLAMA, {}), "packing")
    took = time.seconds.likely * 1e6

    keep_share(path, key, share_of(time, made.batching.padding, took))
    again = time_of(plan(recipe, dataclasses.replace(found, measured=measured_shares(path))))

    assert again.seconds.likely == pytest.approx(took, rel=0.01)


@pytest.mark.parametrize("share", [0.0, -0.1, float("nan"), float("inf")])
def test_what_is_no_share_of_a_peak_is_not_read(share: float, tmp_path: Path) -> None:
    path = tmp_path / "throughput.json"
    path.write_text(json.dumps({"schema": 1, "shares": {"a": [share, 0.25], "b": [share]}}))

    assert measured_shares(path) == {"a": (0.25,)}


@pytest.mark.parametrize("text", ["", "[]", '{"shares": 3}', '{"schema": 99, "shares": {}}'])
def test_a_damaged_file_of_shares_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "throughput.json"
    path.write_text(text)

    assert measured_shares(path) == {}


def test_an_estimate_of_tokens_widens_the_time(recipe: Make) -> None:
    rows = row_facts([300] * 4800, estimate=Estimate("counted from words", 0.2, "the tokenizer is not here"))
    sure, unsure = time_of(plan(recipe, facts())).seconds, time_of(plan(recipe, facts(rows=rows))).seconds

    assert unsure.low == pytest.approx(0.8 * sure.low, rel=1e-3)
    assert unsure.high == pytest.approx(1.2 * sure.high, rel=1e-3)
