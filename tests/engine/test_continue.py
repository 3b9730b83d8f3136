"""Which run a command continues, what may change meanwhile, and signals at every moment."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from fastft.errors import DataError, Interrupted, MachineError, UsageError
from fastft.files.records import write_checked
from fastft.runs.directory import RunDir
from fastft.runs.state import state_of
from fastft.stages.attempt import Start
from tests.engine.tiny import SignalAt, run, stop, write_recipe
from tests.exports.tiny import write_base


@pytest.fixture(scope="module")
def stopped_run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, a recipe and its run, stopped at step 8 of 12."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(model, folder / "base")
    stop(write_recipe(folder, folder / "base"), 8)
    return folder


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """The recipe of a stopped run, in a folder of its own; its base model is shared and must be left as it is."""
    shutil.copytree(stopped_run / "runs", tmp_path / "runs")
    for name in ("tiny.toml", "train.jsonl"):
        shutil.copy(stopped_run / name, tmp_path / name)
    return tmp_path / "tiny.toml"


def change_manifest(recipe: Path, key: str, value: object) -> None:
    path = recipe.parent / "runs" / "tiny" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    section, _, name = key.partition(".")
    if name:
        manifest[section][name] = value
    else:
        manifest[section] = value
    write_checked(path, manifest)


def test_a_stopped_run_has_its_message_and_its_page(stopped: Path) -> None:
    folder = RunDir(stopped.parent / "runs" / "tiny")

    state, why = state_of(folder)

    assert (state, "stopped by SIGTERM after a checkpoint" in why) == ("stopped", True)
    page = (folder.path / "report.html").read_text(encoding="utf-8")
    assert ">Stopped after optimizer step 8 of 12: " in page


def test_the_same_command_continues_an_unfinished_run_and_says_so(stopped: Path) -> None:
    done = run(stopped)

    assert done.folder.path == stopped.parent / "runs" / "tiny"
    assert f"continuing {done.folder.path}; --fresh begins a new run" in done.shown
    assert "continuing from step 8" in done.shown


def test_fresh_begins_a_new_run(stopped: Path) -> None:
    done = run(stopped, start=Start(fresh=True))

    assert done.folder.path.name == "tiny-2"
    assert len(done.steps) == 12


def test_a_finished_run_is_run_again_unless_resume_asks_for_it(stopped: Path) -> None:
    first = run(stopped)

    assert run(stopped, resume=True).folder == first.folder
    assert run(stopped).folder.path.name == "tiny-2"


def test_a_certain_run_is_taken_by_its_folder(stopped: Path) -> None:
    shutil.copytree(stopped.parent / "runs" / "tiny", stopped.parent / "runs" / "tiny-2")

    assert run(stopped, start=Start(resume=True, run=stopped.parent / "runs" / "tiny")).folder.path.name == "tiny"


def test_a_run_with_other_settings_is_not_taken_and_what_differs_is_listed(stopped: Path) -> None:
    stopped.write_text(stopped.read_text().replace("seed = 11", "seed = 12"))
    folder = stopped.parent / "runs" / "tiny"

    with pytest.raises(UsageError, match=r"not a run of this recipe with these settings: train.seed \(11, now 12\)"):
        run(stopped, start=Start(resume=True, run=folder))
    new = run(stopped)

    assert new.folder.path.name == "tiny-2"
    assert f"a new run begins: {folder}, which did not finish, differs in train.seed (11, now 12)" in new.shown


@pytest.mark.parametrize(
    ("key", "value"),
    [("fastft", "0.0.1"), ("python", "3.10.0"), ("device", "another"), ("packages.torch", "2.10.0"), ("seed", 5)],
)
def test_each_input_of_the_run_is_compared_and_named(stopped: Path, key: str, value: object) -> None:
    change_manifest(stopped, key, value)

    with pytest.raises(DataError, match=rf"changed since the run began: {key} \({value}, now .*--accept-drift {key}"):
        run(stopped)


def test_a_change_that_is_accepted_is_recorded(stopped: Path) -> None:
    change_manifest(stopped, "packages.torch", "2.10.0")

    done = run(stopped, start=Start(accepted_drift=("packages",)))

    assert "accepted: packages.torch (2.10.0, now " in done.shown
    manifest = json.loads((done.folder.path / "manifest.json").read_text(encoding="utf-8"))
    assert [text.split(" ")[0] for text in manifest["accepted_drift"]] == ["packages.torch"]


def flip_middle_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def set_epsilon(file: Path) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"rms_norm_eps": 1e-3}), encoding="utf-8")


@pytest.mark.parametrize(("name", "change"), [("model.safetensors", flip_middle_byte), ("config.json", set_epsilon)])
def test_a_base_that_changed_in_one_byte_is_refused(model: Path, tmp_path: Path, name: str, change: object) -> None:
    shutil.copytree(model, tmp_path / "base")
    recipe = write_recipe(tmp_path, tmp_path / "base")
    stop(recipe, 8)
    assert callable(change)
    change(tmp_path / "base" / name)

    with pytest.raises(DataError, match=rf"changed since the run began: base_model.*{name}"):
        run(recipe)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_stops_a_run_as_any_other_signal(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    recipe = write_recipe(tmp_path, model)

    with pytest.raises(Interrupted, match=f"stopped by {number.name} after a checkpoint"):
        run(recipe, shown=SignalAt("step 5/", number))

    assert "continuing from step 6" in run(recipe).shown


@pytest.mark.parametrize("shown", ["saving the weights", "rehearsing", "writing merged_16bit"])
def test_a_signal_outside_of_training_ends_the_run_at_once(model: Path, tmp_path: Path, shown: str) -> None:
    recipe = write_recipe(tmp_path, model, {"export.formats": ["merged_16bit"]})

    with pytest.raises(Interrupted):
        run(recipe, shown=SignalAt(shown, signal.SIGTERM))

    folder = RunDir(tmp_path / "runs" / "tiny")
    assert not folder.is_finished
    assert not (folder.exports / "merged_16bit").exists()
    done = run(recipe)
    assert done.folder == folder
    assert [export["kind"] for export in done.result["exports"]] == ["merged_16bit"]


def test_a_stop_between_two_exports_keeps_the_first_and_makes_the_second(tmp_path: Path) -> None:
    write_base(tmp_path / "base", max_position_embeddings=512)
    exports = {"export.formats": ["merged_16bit", "gguf"], "export.quantization": ["f16"]}
    recipe = write_recipe(tmp_path, tmp_path / "base", exports)
    with pytest.raises(Interrupted):
        run(recipe, shown=SignalAt("writing f16", signal.SIGTERM))
    folder = RunDir(tmp_path / "runs" / "tiny")
    merged = folder.exports / "merged_16bit" / "model.safetensors"
    written = merged.stat().st_mtime_ns
    assert [path.name for path in folder.exports.iterdir() if path.is_dir()] == ["merged_16bit"]

    done = run(recipe)

    assert "merged_16bit is there already, proven" in done.shown
    assert merged.stat().st_mtime_ns == written
    assert [export["kind"] for export in done.result["exports"]] == ["merged_16bit", "f16"]
    flip_middle_byte(merged)
    with pytest.raises(MachineError, match=r"merged_16bit: is damaged: model.safetensors is not what was written"):
        run(recipe, resume=True)


def test_a_damaged_adapter_is_refused_where_a_run_goes_on(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, {"export.formats": ["merged_16bit"]})
    with pytest.raises(Interrupted):
        run(recipe, shown=SignalAt("writing merged_16bit", signal.SIGTERM))
    flip_middle_byte(tmp_path / "runs" / "tiny" / "adapter" / "adapter_model.safetensors")

    with pytest.raises(MachineError, match=r"adapter: is damaged: adapter_model.safetensors is not what was written"):
        run(recipe)
