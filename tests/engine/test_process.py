"""`fastft run` as its users start it: a process of its own, whose streams, files and exit code are all there is.

The processes are slow, so each is started once for all tests that look at it, and both at the same time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastft.runs.directory import RunDir
from tests.engine.tiny import ROOT, command, events, make_rows, read_result, write_recipe, write_rows

CHANGES = {
    "data.eval": "eval.jsonl",
    "eval.exact_match": True,
    "eval.max_new_tokens": 8,
    "train.eval_strategy": "epoch",
    "train.save_strategy": "epoch",
    "train.save_steps": None,
    "train.load_best_model_at_end": True,
    "train.metric_for_best_model": "eval_mean_token_accuracy",
    "train.gradient_checkpointing": True,
    "train.group_by_length": True,
}


@dataclass(frozen=True)
class Process:
    """A finished process, and the folder that it ran in."""

    code: int
    out: str
    error: str
    folder: Path

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / "runs" / "tiny")

    @property
    def log(self) -> str:
        return (self.run.path / "attempts" / "1" / "log.txt").read_text(encoding="utf-8")

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [event for event in events(self.run) if event["event"] == "step"]


@pytest.fixture(scope="module")
def processes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Process]:
    """The same recipe, run by each engine."""
    started = {}
    for engine in ("unsloth", "transformers"):
        folder = tmp_path_factory.mktemp(engine)
        (folder / "home").mkdir()
        write_rows(folder / "eval.jsonl", make_rows(6, seed=5))
        recipe = write_recipe(folder, model, {**CHANGES, "model.engine": engine})
        started[engine] = folder, command(recipe, cwd=folder, HOME=str(folder / "home"))
    finished = {}
    for engine, (folder, process) in started.items():
        out, error = process.communicate(timeout=240)
        finished[engine] = Process(process.returncode, out, error, folder)
    return finished


@pytest.fixture(params=["unsloth", "transformers"])
def finished(request: pytest.FixtureRequest, processes: dict[str, Process]) -> Process:
    return processes[request.param]


@pytest.mark.slow
class TestProcess:
    """Only a process of its own shows what reaches the terminal while libraries are imported, and what they write."""

    def test_it_ends_well(self, finished: Process) -> None:
        assert (finished.code, finished.run.is_finished) == (0, True), finished.error + finished.log

    def test_each_step_is_one_plain_line_on_standard_error(self, finished: Process) -> None:
        lines = finished.error.splitlines()
        steps = [line for line in lines if line.startswith("step ")]
        assert [line.split()[1] for line in steps] == [f"{number}/12" for number in range(1, 13)]
        assert [line for line in lines if not line.startswith(("step ", "• ", "! "))] == []

    def test_standard_output_holds_the_result_alone(self, finished: Process) -> None:
        lines = [line for line in finished.out.splitlines() if line]
        assert lines[0].startswith("Better: the held-out loss fell from ")
        assert lines[1].strip() == "runs/tiny"
        assert lines[-1] == "weights: runs/tiny/adapter"
        for name in ("Unsloth", "it/s", "Warning", "\x1b", "bitsandbytes", "{'loss'"):
            assert name not in finished.out

    def test_the_page_of_the_run_begins_as_its_result(self, finished: Process) -> None:
        page = (finished.run.path / "report.html").read_text(encoding="utf-8")
        assert f">{finished.out.splitlines()[0]}.</h1>" in page

    def test_what_the_libraries_say_is_in_the_log(self, processes: dict[str, Process]) -> None:
        assert "Unsloth" in processes["unsloth"].log

    def test_nothing_is_written_but_the_run_and_the_cache(self, finished: Process) -> None:
        assert {entry.name for entry in finished.folder.iterdir()} == {
            "cache",
            "eval.jsonl",
            "home",
            "runs",
            "tiny.toml",
            "train.jsonl",
        }
        assert [path for path in (finished.folder / "home").rglob("*") if path.is_file()] == []
        assert {entry.name for entry in finished.run.path.iterdir()} == {
            "adapter",
            "attempts",
            "before.json",
            "held_out.json",
            "checkpoints",
            "lock",
            "manifest.json",
            "metrics.jsonl",
            "plan.json",
            "recipe.toml",
            "report.html",
            "result.json",
            "rows.json",
            "settings.json",
        }

    def test_plain_transformers_learns_what_unsloth_learns(self, processes: dict[str, Process]) -> None:
        losses = {name: [step["loss"] for step in process.steps] for name, process in processes.items()}
        # The same model, adapter, rows and order; the sums of the two losses differ in their order alone.
        assert losses["transformers"] == pytest.approx(losses["unsloth"], rel=1e-4)
        plain, patched = (read_result(processes[name].run) for name in ("transformers", "unsloth"))
        assert plain["best_checkpoint"] == patched["best_checkpoint"]
        assert plain["eval_loss"]["after"] == pytest.approx(patched["eval_loss"]["after"], rel=1e-4)

    def test_each_engine_is_what_the_plan_says(self, finished: Process) -> None:
        plan = json.loads((finished.run.path / "plan.json").read_text(encoding="utf-8"))
        assert plan["engine"] == finished.folder.name.rstrip("0123456789")


ASK = """
import sys
from fastft.cli import main
sys.argv = ["fastft", "run", "tiny.toml"]
try:
    main()
except SystemExit as ended:
    print(ended.code, [name for name in ("torch", "transformers", "unsloth") if name in sys.modules])
"""
# Port 9 (discard) of this host: nothing listens there, and nothing leaves the machine.
DEAD = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        pytest.param({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids asking the Hub", id="offline by a variable"),
        pytest.param({"HF_HUB_OFFLINE": "0", **DEAD}, "the Hub cannot be reached", id="no network"),
    ],
)
def test_a_model_that_cannot_be_had_is_named_in_seconds_before_the_engine_starts(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    write_recipe(tmp_path, Path("nobody/no-such-model"))
    values = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub"), "NO_PROXY": "", **environment}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=tmp_path, env=values, capture_output=True, text=True, check=True, timeout=60
    )
    # 1 s on a quiet machine; a stock stack retries for 94 s.
    assert time.monotonic() - began < 10
    assert done.stdout == "4 []\n"
    assert words in done.stderr.replace("\n", " ")
    assert '"nobody/no-such-model"' in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
