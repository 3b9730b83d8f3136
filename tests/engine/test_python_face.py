"""`fastft.run` and `fastft.export` in a process that is no command line: a notebook, a thread."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import fastft
from fastft.runs.directory import RunDir
from tests.engine.tiny import make_rows, write_recipe, write_rows
from tests.exports.tiny import write_base
from tests.test_python_face import example


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """mine.toml, with held-out rows that exports are compared on, for a model that GGUF knows."""
    write_base(tmp_path / "base", max_position_embeddings=512)
    write_rows(tmp_path / "held_out.jsonl", make_rows(6, seed=9))
    changes = {"data.eval": "held_out.jsonl", "train.num_train_epochs": 1}
    return write_recipe(tmp_path, tmp_path / "base", changes, name="mine")


@pytest.mark.slow
def test_the_example_of_the_page_trains_and_exports_in_a_notebook(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the whole way shows that nothing on it needs the file descriptors that a notebook's streams lack."""
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    exec(example(1), {})  # noqa: S102  our own page

    assert sys.stdout.getvalue().startswith("runs/mine/adapter BeforeAfter(before=")
    assert "runs/mine/exports/gguf/mine-f16.gguf" in sys.stdout.getvalue()
    assert "step 1/6" in sys.stderr.getvalue()
    assert "f16 proven" in sys.stderr.getvalue()


def test_a_run_in_another_thread_sets_no_signal_handlers(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, {"train.num_train_epochs": None, "train.max_steps": 2})
    finished: list[RunDir] = []

    def train(run: Callable[..., RunDir] = fastft.run) -> None:
        finished.append(run(recipe, runs_dir=tmp_path / "runs"))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()

    assert [(run.path / "result.json").is_file() for run in finished] == [True]


def test_a_process_that_has_started_one_engine_does_not_run_the_other(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model)

    with pytest.raises(fastft.errors.MachineError, match="this process has started unsloth"):
        fastft.run(recipe, ["model.engine=transformers"], runs_dir=tmp_path / "runs")

    assert not (tmp_path / "runs").exists()
