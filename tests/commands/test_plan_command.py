"""`fastft plan` for a GPU that is not here, with a model that is not here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastft.cli import app
from fastft.commands.plan import Question, plan
from fastft.planning.batching import Batching
from fastft.planning.fitting import MemoryForecast
from fastft.planning.schedule import Schedule
from fastft.planning.timing import Time

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "recipes" / "llama31_sft.toml"


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model and no measured run on this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_flagship_is_forecast_before_the_gpu_is_rented(tmp_path: Path) -> None:
    """Offline and without the model: steps, padding, memory, time and price, none of them unknown."""
    command = ["plan", str(FLAGSHIP), "--device", "a100-80gb", "--price-per-hour", "1.5", "--runs-dir", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    text = " ".join(done.output.split())

    assert done.exit_code == 0, done.output
    assert "?" not in text
    assert "steps about " in text
    assert "◂ active" in text
    assert "GiB of 80.00 GiB" in text
    assert " of training at about " in text
    assert "costs " in text
    assert "14.99 GiB to download: 2 min 09 s at 1 Gbit/s, 21 min 28 s at 100 Mbit/s" in text
    assert "tokens are ESTIMATED, ±20%: meta-llama/Llama-3.1-8B-Instruct is not on this machine" in text


def test_every_figure_is_there_for_programs_and_the_estimate_is_marked(tmp_path: Path) -> None:
    made = plan(FLAGSHIP, [], Question(tmp_path, "a100-80gb", None, 1.5))
    values = json.loads(json.dumps(made.as_json()))

    assert isinstance(made.schedule, Schedule)
    assert isinstance(made.batching, Batching)
    assert isinstance(made.memory, MemoryForecast)
    assert isinstance(made.time, Time)
    assert values["estimate"]["error"] == 0.2
    assert values["time"]["price_low"] < values["time"]["price"] < values["time"]["price_high"]
    assert values["disk"]["download_bytes"] > 2 * 8_030_261_248


def test_a_recipe_with_its_own_template_is_less_certain(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    made = plan(write_recipe(), [], Question(tmp_path / "runs", "h100"))

    assert made.estimate is not None
    assert made.estimate.error == 0.3
    assert isinstance(made.schedule, Schedule)


def test_a_tokenizer_that_is_here_counts_and_needs_no_weights(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "hub" / "models--org--model"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text('{"hidden_size": 64, "eos_token_id": 0}')
    words = {"<|im_end|>": 0, "<|im_start|>": 1, "a": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    tokenizer.save(str(snapshot / "tokenizer.json"))

    made = plan(write_recipe('chat_template = "chatml"'), [], Question(tmp_path / "runs", "h100"))

    assert made.estimate is None
    assert isinstance(made.batching, Batching)
    assert made.disk.download_bytes is None


@pytest.mark.parametrize("steps", ["", "max_steps = 100\n"])
def test_rows_on_the_hub_leave_a_step_of_full_rows(steps: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    flagship = FLAGSHIP.read_text(encoding="utf-8").replace("num_train_epochs = 3\n", steps or "num_train_epochs = 3\n")
    lines = [line for line in flagship.splitlines() if not line.startswith(("train =", "eval ="))]
    recipe.write_text("\n".join(lines).replace("[data]", '[data]\ntrain = "org/rows"'), encoding="utf-8")
    done = CliRunner().invoke(app, ["plan", str(recipe), "--device", "a100-80gb", "--runs-dir", str(tmp_path)])
    text = " ".join(done.output.split())

    assert done.exit_code == 0, done.output
    assert "?" not in text
    assert ("100 of 72 examples" if steps else "known when the rows are tokenized") in text
    # 2 x 36 rows of 2,048 tokens at 2,700 to 4,300 tokens a second.
    assert "a step of full rows takes at most 35 s to 55 s" in text


def test_a_small_model_waits_for_its_kernels_to_start(tmp_path: Path) -> None:
    made = plan(ROOT / "recipes" / "quickstart.toml", [], Question(tmp_path, "a100-80gb"))

    assert isinstance(made.time, Time)
    # 130 micro-batches of 30 layers, 2 ms each; the arithmetic alone would take 0.2 s.
    assert made.time.seconds.likely == pytest.approx(130 * 30 * 0.002, rel=0.01)
    assert made.time.seconds.low < made.time.seconds.likely < made.time.seconds.high


def test_a_what_if_says_that_its_tokens_are_estimated(tmp_path: Path) -> None:
    command = ["plan", str(FLAGSHIP), "--device", "a100-80gb", "--what-if", "max_seq_length=1024,2048"]
    done = CliRunner().invoke(app, [*command, "--runs-dir", str(tmp_path)])

    assert done.exit_code == 0, done.output
    assert "tokens are ESTIMATED, ±20%" in " ".join(done.output.split())


def test_rows_that_would_be_lost_are_a_caution_with_about(tmp_path: Path) -> None:
    made = plan(FLAGSHIP, ["model.max_seq_length=72"], Question(tmp_path, "a100-80gb"))

    assert any("max_seq_length = 72 loses about " in str(caution) for caution in made.warnings)
