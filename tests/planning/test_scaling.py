"""Several GPUs on paper: published figures of ZeRO, exchanges by hand, and a table that obeys its own rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastft.cli import app
from fastft.commands.plan import Question, scale
from fastft.errors import UsageError
from fastft.planning.devices import SHEETS
from fastft.planning.links import BUILT_IN, LINKS, Network, named_network
from fastft.planning.memory import MemorySettings, forecast_memory
from fastft.planning.rank_memory import States, rank_memory
from fastft.planning.scaling import PAYS, Scaling
from fastft.probe.architecture import KNOWN, PROJECTIONS, from_config
from fastft.recipe.shardings import SHARDINGS
from tests.golden import A100

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.toml"
QWEN = ("model.id=Qwen/Qwen2.5-7B-Instruct", "train.effective_batch_size=64")
LORA = MemorySettings(False, False, 16, PROJECTIONS, "adamw_torch", "keep", "fused", False, False)


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model, no network and no measured run."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("ddp", 120.0), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.88), ("fsdp2", 1.88)]
)
def test_states_are_split_as_the_zero_paper_says(name: str, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion weights, mixed precision, Adam, 64 GPUs."""
    own = States(2 * 7.5e9, 2 * 7.5e9, 12 * 7.5e9).split(SHARDINGS[name], 64)

    assert own.total_bytes / 1e9 == pytest.approx(gigabytes, rel=0.005)


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_full_training_under_deepspeed_meets_its_own_estimator(ranks: int) -> None:
    """DeepSpeed 0.19.8: 2 W + 18 W / n bytes at stage 2; at stage 3 the 16-bit weights are split too.

    Its estimate of stage 3 is 18 W / n: it leaves out 2 bytes that its estimate of stage 2 counts.
    """
    model = KNOWN["llama-3.1-8b"]
    whole = MemorySettings(False, True, 0, (), "adamw_torch", "keep", "fused", False, False, trained_bytes=2)
    peak = forecast_memory(model, whole, 1000, 0)
    stage2, stage3 = (
        rank_memory(model, whole, peak, SHARDINGS[name], ranks, accumulates=True) for name in ("zero2", "zero3")
    )

    states2 = stage2.weights_bytes + stage2.gradients_bytes + stage2.optimizer_bytes
    states3 = stage3.weights_bytes + stage3.gradients_bytes + stage3.optimizer_bytes
    assert states2 == pytest.approx(2 * model.weights + 18 * model.weights / ranks, rel=1e-6)
    assert states3 == pytest.approx(20 * model.weights / ranks, rel=1e-6)
    assert stage3.buffers_bytes >= 2 * 10**9


def test_two_measured_ranks_keep_what_is_forecast() -> None:
    """benchmarks/forecast_ranks.py: float32, torch's fully_shard on a processor; counted tensor by tensor."""
    found = json.loads((ROOT / "benchmarks" / "forecast_ranks.json").read_text(encoding="utf-8"))
    model = from_config(found["config"])
    assert model is not None
    bytes4 = {"weight_bytes": 4, "trained_bytes": 4}
    settings = MemorySettings(False, True, 0, (), "adamw_torch", "none", "plain", False, False, **bytes4)
    peak = forecast_memory(model, settings, 32, 0)
    own = rank_memory(model, settings, peak, SHARDINGS["fsdp2"], found["ranks"], accumulates=False)

    for name, measured in found["fsdp2"].items():
        assert vars(own)[name] == pytest.approx(measured, rel=0.001)


def test_with_lora_only_the_adapter_is_split_before_stage_3() -> None:
    model, ranks = KNOWN["llama-3.1-8b"], 8
    peak = forecast_memory(model, LORA, 1000, 0)
    adapter = model.adapter_weights(16, PROJECTIONS)
    ddp, zero2, zero3, fsdp2 = (
        rank_memory(model, LORA, peak, SHARDINGS[name], ranks, accumulates=False)
        for name in ("ddp", "zero2", "zero3", "fsdp2")
    )

    assert zero2.weights_bytes == ddp.weights_bytes == 2 * model.weights + 4 * adapter
    assert zero2.gradients_bytes == pytest.approx(4 * adapter / ranks, abs=1)
    assert zero3.weights_bytes == fsdp2.weights_bytes == pytest.approx(ddp.weights_bytes / ranks, abs=1)
    assert fsdp2.buffers_bytes > 2 * model.vocabulary_weights


def test_fsdp2_holds_whole_gradients_while_it_accumulates() -> None:
    model = KNOWN["llama-3.1-8b"]
    peak = forecast_memory(model, LORA, 1000, 0)
    own = [rank_memory(model, LORA, peak, SHARDINGS["fsdp2"], 8, accumulates=held) for held in (True, False)]

    assert own[0].gradients_bytes == pytest.approx(8 * own[1].gradients_bytes, abs=8)


def test_exchanges_take_what_the_ring_formula_says() -> None:
    network = Network(LINKS["nvlink4"], LINKS["100gbit"])

    # 2 (n - 1) / n x bytes / bandwidth on one host; between hosts each byte of the others passes a host's link once.
    assert network.reduce_seconds(450e9, 8, 1) == pytest.approx(2 * 7 / 8)
    assert network.gather_seconds(12.5e9, 1, 4) == pytest.approx(3 / 4)
    assert network.gather_seconds(12.5e9, 8, 4) == pytest.approx(3 / 4 + 7 / 8 * 12.5 / 450)
    assert network.reduce_seconds(1e9, 1, 1) == 0


def test_every_card_has_a_link_of_its_own() -> None:
    assert BUILT_IN.keys() == SHEETS.keys()
    assert not any(LINKS[name].between_hosts for name in BUILT_IN.values())


def test_links_are_named_by_kind_in_any_order() -> None:
    network = named_network("8x400gbit,PCIe4", A100)

    assert (network.inside.name, network.between.name, network.lines_between) == ("pcie4", "400gbit", 8)
    assert named_network(None, A100).inside.name == "nvlink3"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--link", "100gbot"], "did you mean 100gbit?"),
        (["--link", "0x100gbit"], "there is no such link"),
        (["--link", ""], "there is no such link"),
        (["--link", "25gbit,100gbit"], "names two links between hosts"),
        (["--engine", "zero4"], "did you mean zero"),
        (["--engine", "megatron"], "known: ddp, fsdp2, zero1, zero2, zero3"),
        (["--devices", "8", "--hosts", "16"], "an optimizer step has 64 rows, too few for 128 GPUs"),
        (["--devices", "2", "--device", "cpu"], "several devices are forecast for GPUs alone"),
        (["--devices", "2", "--what-if", "lora.r=8,16"], "ask for one of --what-if and --devices"),
        (["--engine", "zero3", "--set", "model.engine=unsloth"], 'write model.engine = "transformers"'),
    ],
)
def test_a_garbled_option_is_one_sentence(options: list[str], says: str) -> None:
    settings = [part for override in QWEN for part in ("--set", override)]
    done = CliRunner().invoke(app, ["plan", str(QUICKSTART), "--device", "h100", *settings, *options])

    assert isinstance(done.exception, UsageError)
    assert says in str(done.exception)
    assert len(done.exception.problems) == 1


def scaled(tmp_path: Path, *overrides: str, **options: object) -> Scaling:
    question = Question(tmp_path, "h100", price_per_hour=2.0, **options)  # type: ignore[arg-type]
    return scale(QUICKSTART, [*QWEN, *overrides], question)[1]


@pytest.mark.parametrize("engine", list(SHARDINGS))
def test_every_row_keeps_the_step_and_costs_what_it_takes(tmp_path: Path, engine: str) -> None:
    found = scaled(tmp_path, devices=8, hosts=2, engine=engine)

    assert [point.ranks for point in found.points] == [1, 2, 4, 8, 16, 32, 64]
    assert found.asked.ranks == 16
    assert {point.batch * point.accumulation * point.ranks for point in found.points} == {64}
    alone = found.points[0]
    assert alone.communication.high == 0
    for point in found.points[1:]:
        assert point.communication.likely > 0
        assert point.seconds.low <= point.seconds.likely <= point.seconds.high
        assert point.efficiency <= 1
        assert point.price is not None
        assert point.price.likely == pytest.approx(point.seconds.likely * 2 * point.ranks / 3600, abs=0.01)
    paid = [point for point in found.points if point.ranks <= found.best]
    assert all(point.gain >= PAYS for point in paid)


@pytest.mark.parametrize(
    ("override", "engine"),
    [('train.fsdp="full_shard"', "fsdp2"), ('train.deepspeed="zero2"', "zero2"), ("train.seed=3", "ddp")],
)
def test_a_recipe_that_shares_its_model_is_forecast_so(tmp_path: Path, override: str, engine: str) -> None:
    found = scaled(tmp_path, override, "model.engine=transformers", devices=2)

    assert found.layout.sharding.name == engine


def test_zero3_exchanges_the_weights_and_needs_less_memory(tmp_path: Path) -> None:
    ddp, zero3 = (scaled(tmp_path, devices=8, hosts=2, engine=name).asked for name in ("ddp", "zero3"))

    assert zero3.communication.likely > 10 * ddp.communication.likely
    assert zero3.memory.peak_bytes < ddp.memory.peak_bytes


def test_a_faster_link_never_makes_a_run_slower(tmp_path: Path) -> None:
    times = [scaled(tmp_path, devices=8, hosts=2, link=name).asked.seconds for name in ("25gbit", "100gbit", "400gbit")]

    assert times[0].high > times[1].high > times[2].high


def test_the_rows_of_a_step_bound_the_table(tmp_path: Path) -> None:
    found = scaled(tmp_path, "train.effective_batch_size=12", devices=4)

    assert [point.ranks for point in found.points] == [1, 2, 4, 8]
    assert found.rows_per_step == 12


def test_the_table_is_there_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(QUICKSTART), "--set", QWEN[0], "--set", QWEN[1], "--device", "h100", "--json"]
    done = CliRunner().invoke(app, [*command, "--devices", "4", "--runs-dir", str(tmp_path)])

    values = json.loads(done.stdout)["scaling"]
    assert values["asked"]["ranks"] == 4
    assert values["asked"]["memory"]["fits"] is True
    assert len(values["points"]) == 7


def test_a_step_that_would_grow_is_a_warning(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    command = ["plan", str(write_recipe()), "--set", QWEN[0], "--set", "train.gradient_accumulation_steps=8"]
    done = CliRunner().invoke(app, [*command, "--device", "h100", "--devices", "1", "--runs-dir", str(tmp_path)])

    assert "without it the step grows with the number of GPUs" in " ".join(done.output.split()), done.output
