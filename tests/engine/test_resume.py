"""A run that was stopped, killed or damaged continues as if nothing had happened, or reports why it cannot."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastft.errors import DataError, Interrupted, MachineError
from fastft.files.records import write_checked
from fastft.files.seal import damage
from fastft.runs.checkpoints import checkpoints
from fastft.runs.directory import RunDir
from tests.engine.tiny import ROOT, Ran, SignalAt, command, events, make_rows, run, stop, write_recipe, write_rows

# 27 rows in micro-batches of 4, two a step: 4 steps an epoch, the last of 3 rows; 8 steps in all.
SHARED = {"train.gradient_accumulation_steps": 2}
KINDS: dict[str, dict[str, Any]] = {
    "random order": {},
    "grouped by length": {"train.group_by_length": True},
    "dropout and noise": {"lora.lora_dropout": 0.1, "train.neftune_noise_alpha": 5.0},
    "few lines": {"train.logging_steps": 3},
    "held-out rows": {
        "data.eval_fraction": 0.2,
        "eval.exact_match": True,
        "eval.max_new_tokens": 4,
        "train.gradient_accumulation_steps": 1,
    },
}


def adapter(ran: Ran) -> bytes:
    return (ran.folder.adapter / "adapter_model.safetensors").read_bytes()


def lines(ran: Ran) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock and the machine's state."""
    clock = ("seconds", "runtime", "time", "per_second", "memory_bytes")
    return [{key: value for key, value in line.items() if not key.endswith(clock)} for line in events(ran.folder)]


def figures(ran: Ran) -> dict[str, Any]:
    """The result without what depends on the clock, the machine's state and the folder."""
    changing = {"finished", "train_seconds", "total_seconds", "peak_memory_bytes", "weights_folder", "best_checkpoint"}
    changing |= {"checksum", "metrics_sha256"}  # of values with times
    forecast = {key: value for key, value in ran.result["forecast"].items() if key not in changing}
    assert len(forecast) >= 3
    return {key: value for key, value in ran.result.items() if key not in changing} | {"forecast": forecast}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_in_its_second_epoch_goes_on_bit_by_bit(model: Path, tmp_path: Path, kind: str) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(27))
    whole = run(write_recipe(tmp_path, model, {**SHARED, **KINDS[kind]}, "whole"))
    recipe = write_recipe(tmp_path, model, {**SHARED, **KINDS[kind]}, "stopped")
    # A line that is logged, so that what is shown can stop the run: with logging_steps = 3 the lines are 1, 3, 6, 8.
    stop(recipe, 7)
    resumed = run(recipe, resume=True)
    assert "continuing from step 7" in resumed.shown
    assert lines(resumed) == lines(whole)
    assert adapter(resumed) == adapter(whole)


def test_the_result_of_a_resumed_run_tells_of_the_whole_run(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", make_rows(27))
    whole = run(write_recipe(tmp_path, model, KINDS["held-out rows"], "whole"))
    recipe = write_recipe(tmp_path, model, KINDS["held-out rows"], "stopped")
    stop(recipe, 7)
    resumed = run(recipe, resume=True)
    assert figures(resumed) == figures(whole)
    losses = [step["loss"] for step in resumed.steps]
    assert resumed.result["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    changes = {"train.save_strategy": "no", "train.save_steps": None, "train.save_total_limit": None}
    folder, stopped = stop(write_recipe(tmp_path, model, changes), 3)
    assert stopped.exit_code == 75
    assert "stopped by SIGTERM after a checkpoint" in str(stopped)
    assert "the same command continues" in str(stopped)
    [(step, checkpoint)] = checkpoints(folder)
    assert (step, damage(checkpoint)) == (3, None)
    assert not folder.is_finished


def test_a_stop_within_an_epoch_neither_evaluates_nor_saves_twice(model: Path, tmp_path: Path) -> None:
    changes = {"data.eval_fraction": 0.2, "train.eval_strategy": "epoch", "train.save_strategy": "epoch"}
    folder, _ = stop(write_recipe(tmp_path, model, {**changes, "train.save_steps": None}), 3)
    assert [event["step"] for event in events(folder) if event["event"] == "evaluation"] == [0]


def test_a_signal_before_training_ends_the_run_at_once(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, KINDS["held-out rows"])
    with pytest.raises(Interrupted, match="before a checkpoint could be written"):
        run(recipe, shown=SignalAt("held-out prompts before training", signal.SIGINT))
    assert [event["event"] for event in events(RunDir(tmp_path / "runs" / "tiny"))] == ["evaluation"]


def test_a_signal_while_rows_are_read_ends_the_run_before_the_engine_starts(model: Path, tmp_path: Path) -> None:
    shown = SignalAt("reading", signal.SIGTERM)
    with pytest.raises(Interrupted, match="before a checkpoint could be written"):
        run(write_recipe(tmp_path, model), shown=shown)
    assert "loading" not in shown.getvalue()


def test_a_signal_after_training_ends_a_run_that_is_saved(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, KINDS["held-out rows"])
    with pytest.raises(Interrupted, match="after a checkpoint"):
        run(recipe, shown=SignalAt("held-out rows after training", signal.SIGTERM))
    resumed = run(recipe, resume=True)
    assert "step 10/" not in resumed.shown
    assert resumed.result["steps"] == 10


def test_a_signal_after_training_does_not_throw_away_what_is_saved_nowhere(model: Path, tmp_path: Path) -> None:
    changes = {**KINDS["held-out rows"], "train.save_strategy": "no"}
    changes |= {"train.save_steps": None, "train.save_total_limit": None}
    done = run(write_recipe(tmp_path, model, changes), shown=SignalAt("held-out rows after training", signal.SIGTERM))
    assert done.result["steps"] == 10


@pytest.mark.parametrize("max_steps", [6, 8])
def test_a_run_killed_after_its_last_step_is_not_trained_further(model: Path, tmp_path: Path, max_steps: int) -> None:
    """Step 6 is an epoch's end, step 8 is within one: there transformers 5.17 would train one step too many."""
    changes = {"train.max_steps": max_steps, "train.num_train_epochs": None}
    recipe = write_recipe(tmp_path, model, changes)
    whole = run(recipe)
    before, lines, loss = adapter(whole), whole.losses, whole.result["train_loss"]
    (whole.folder.path / "result.json").unlink()
    shutil.rmtree(whole.folder.adapter)
    resumed = run(recipe, resume=True)
    assert adapter(resumed) == before
    assert (resumed.losses, resumed.result["steps"], resumed.result["train_loss"]) == (lines, max_steps, loss)


@pytest.fixture(scope="module")
def stopped_run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder with a recipe and its run, stopped at step 8 of 12, and the adapter of an undisturbed run."""
    folder = tmp_path_factory.mktemp("stopped")
    recipe = write_recipe(folder, model)
    whole = run(recipe)
    expected = adapter(whole)
    shutil.rmtree(folder / "runs")
    stop(recipe, 8)
    return folder, expected


@pytest.fixture
def stopped_copy(stopped_run: tuple[Path, bytes], tmp_path: Path) -> tuple[Path, RunDir, bytes]:
    """A recipe, its run stopped at step 8, and the adapter that it must end with; in a folder of its own."""
    source, expected = stopped_run
    shutil.copytree(source, tmp_path / "copy")
    return tmp_path / "copy" / "tiny.toml", RunDir(tmp_path / "copy" / "runs" / "tiny"), expected


def tear(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        # Not in a hash: another hash is also one, and the file that it belongs to counts as damaged.
        place = content.rfind(b"{", 0, middle) if path.suffix == ".json" else middle
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@pytest.mark.parametrize("how", ["missing", "empty", "half", "one bit flipped"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "integrity.json"])
def test_a_torn_checkpoint_is_skipped_for_the_one_before(
    stopped_copy: tuple[Path, RunDir, bytes], name: str, how: str
) -> None:
    recipe, folder, expected = stopped_copy
    tear(folder.checkpoints / "step-8" / name, how)
    resumed = run(recipe, resume=True)
    assert re.search(rf"step-8 is damaged \({re.escape(name)} .*\): skipped", resumed.shown)
    assert "continuing from step 7" in resumed.shown
    assert adapter(resumed) == expected


def test_a_run_without_a_whole_checkpoint_begins_again(stopped_copy: tuple[Path, RunDir, bytes]) -> None:
    recipe, folder, expected = stopped_copy
    for _, path in checkpoints(folder):
        tear(path / "optimizer.pt", "half")
    resumed = run(recipe, resume=True)
    assert resumed.shown.count("skipped") == 8
    assert [step["step"] for step in resumed.steps] == list(range(1, 13))
    assert adapter(resumed) == expected


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, {"train.save_total_limit": 1})
    folder, _ = stop(recipe, 8)
    tear(folder.checkpoints / "step-8" / "optimizer.pt", "empty")
    with pytest.raises(Interrupted):
        run(recipe, resume=True, shown=SignalAt("step 2/", signal.SIGTERM))
    assert [(step, damage(path)) for step, path in checkpoints(folder)] == [(3, None)]


def test_changed_rows_are_refused_and_named(stopped_copy: tuple[Path, RunDir, bytes]) -> None:
    recipe, folder, _ = stopped_copy
    write_rows(recipe.parent / "train.jsonl", make_rows(24, seed=1))
    plan = (folder.path / "plan.json").read_bytes()
    with pytest.raises(DataError, match=re.escape("changed since the run began: data.train_sha256")) as refused:
        run(recipe, resume=True)
    assert refused.value.exit_code == 3
    assert (folder.path / "plan.json").read_bytes() == plan


def test_a_changed_version_is_refused_with_both_versions(stopped_copy: tuple[Path, RunDir, bytes]) -> None:
    recipe, folder, _ = stopped_copy
    manifest = json.loads((folder.path / "manifest.json").read_text(encoding="utf-8"))
    manifest["packages"]["torch"] = "2.10.0"
    write_checked(folder.path / "manifest.json", manifest)
    with pytest.raises(DataError, match=r"packages\.torch \(2\.10\.0, now "):
        run(recipe, resume=True)


def test_a_second_process_in_the_same_folder_is_refused(stopped_copy: tuple[Path, RunDir, bytes]) -> None:
    recipe, folder, _ = stopped_copy
    hold = "import sys; from pathlib import Path; from fastft.runs.directory import RunDir, locked\n"
    hold += f"with locked(RunDir(Path({str(folder.path)!r}))): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(MachineError, match=rf"process {other.pid} is running in this folder"):
            run(recipe, resume=True)
    assert not (folder.path / "attempts" / "2").exists()


def test_a_finished_run_is_returned_as_it_is(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model)
    first = run(recipe)
    again = run(recipe, resume=True)
    assert (again.folder, again.result, again.shown) == (first.folder, first.result, "")
    assert not (first.folder.path / "attempts" / "2").exists()


@pytest.mark.slow
def test_a_killed_process_and_a_stopped_one_end_like_an_undisturbed_run(model: Path, tmp_path: Path) -> None:
    """Only processes of their own show that nothing but the run's folder is needed to continue, and the exit code.

    The first is killed without warning in the second epoch, the second gets SIGTERM, this one finishes.
    """
    write_rows(tmp_path / "train.jsonl", make_rows(27))
    changes = {**SHARED, "train.num_train_epochs": 4, "train.group_by_length": True, "lora.lora_dropout": 0.1}
    whole = run(write_recipe(tmp_path, model, changes, "whole"))
    recipe = write_recipe(tmp_path, model, changes, "killed")
    endings = []
    for step, number in ((6, signal.SIGKILL), (10, signal.SIGTERM)):
        with command(recipe, "--resume", cwd=tmp_path) as process:
            assert process.stderr is not None
            shown = ""
            while f"step {step}/" not in shown:
                shown = process.stderr.readline()
                assert shown, "the process ended by itself"
            process.send_signal(number)
            endings.append((process.wait(60), process.stderr.read()))
    assert endings[0][0] == -signal.SIGKILL
    assert endings[1][0] == 75
    assert "the same command continues" in endings[1][1]
    resumed = run(recipe, resume=True)
    assert resumed.losses == whole.losses
    assert adapter(resumed) == adapter(whole)
