from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastft.errors import MachineError
from fastft.files.atomic import write_json, write_text
from fastft.files.seal import SEAL, damage, seal
from fastft.recipe.loader import LoadedRecipe
from fastft.runs.checkpoints import newest_checkpoint
from fastft.runs.directory import RunDir, create_run_dir, find_run, locked, new_attempt, next_run_dir, run_name

Make = Callable[..., LoadedRecipe]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("recipes/llama31_sft.toml", "llama31_sft"),
        ("my recipe (2).toml", "my-recipe-2"),
        ("größe.v2.toml", "größe.v2"),
        ("....toml", "run"),
        ("-.toml", "run"),
        ("a\nb.toml", "a-b"),
    ],
)
def test_a_run_is_named_after_its_recipe_and_leads_nowhere_else(file: str, name: str) -> None:
    assert run_name(Path(file)) == name


def test_a_new_run_holds_the_recipe_and_where_each_value_came_from(recipe: Make, runs: Path) -> None:
    loaded = recipe("", "train.seed=1")

    made = create_run_dir(runs, loaded)

    assert made.path == runs / "recipe"
    assert (made.path / "recipe.toml").read_text() == loaded.text
    assert json.loads((made.path / "settings.json").read_text())["settings"]["train.seed"] == {
        "value": 1,
        "origin": "--set",
    }


def test_a_new_run_never_takes_the_folder_of_another(recipe: Make, runs: Path) -> None:
    made = [create_run_dir(runs, recipe()).path.name for _ in range(3)]

    assert made == ["recipe", "recipe-2", "recipe-3"]


def test_runs_that_begin_at_once_have_a_folder_each(recipe: Make, runs: Path) -> None:
    loaded = recipe()

    with ThreadPoolExecutor(16) as pool:
        made = [run.path for run in pool.map(lambda _: create_run_dir(runs, loaded), range(32))]

    assert len(set(made)) == 32


def test_a_new_run_comes_after_the_last_even_when_earlier_ones_are_gone(recipe: Make, runs: Path) -> None:
    for name in ("recipe-2", "recipe-10", "recipe-x", "recipe-02", "other"):
        (runs / name).mkdir(parents=True)

    assert next_run_dir(runs, "recipe").path == runs / "recipe-11"


def test_a_runs_folder_that_cannot_be_made_is_told(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(MachineError, match="--runs-dir: cannot be written"):
        create_run_dir(tmp_path / "file", recipe())


def test_the_newest_run_of_the_same_recipe_and_settings_is_found(recipe: Make, runs: Path) -> None:
    loaded = recipe()
    create_run_dir(runs, loaded)
    newest = create_run_dir(runs, loaded)
    create_run_dir(runs, recipe("", "train.seed=1"))

    assert find_run(runs, loaded) == newest


def test_a_run_is_found_when_an_earlier_one_was_deleted(recipe: Make, runs: Path) -> None:
    loaded = recipe()
    first, second = create_run_dir(runs, loaded), create_run_dir(runs, loaded)
    first.path.rename(runs / "elsewhere")

    assert find_run(runs, loaded) == second


def test_a_run_of_another_recipe_is_not_found(recipe: Make, runs: Path) -> None:
    create_run_dir(runs, recipe())

    assert find_run(runs, recipe("format = 'messages'\n")) is None
    assert find_run(runs, recipe("", "train.seed=1")) is None
    assert find_run(runs / "none", recipe()) is None


def test_who_reads_a_file_while_it_is_replaced_reads_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "old")

    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"

    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"steps": 1})

    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it \ud800")

    assert json.loads(path.read_text()) == {"steps": 1}


def test_attempts_are_numbered(tmp_path: Path) -> None:
    run = RunDir(tmp_path)

    assert [new_attempt(run).parent.name for _ in range(3)] == ["1", "2", "3"]


def test_two_processes_cannot_run_in_one_folder(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fastft.runs.directory import RunDir, locked\n"
        "with locked(RunDir(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"

        with (
            pytest.raises(MachineError, match=f"process {other.pid} is running in this folder"),
            locked(RunDir(tmp_path)),
        ):
            pass

        other.kill()
    # However the other process ended, its lock went with it.
    with locked(RunDir(tmp_path)):
        pass


def checkpoint(run: RunDir, step: int) -> Path:
    """A sealed checkpoint of two files."""
    folder = run.checkpoints / f"step-{step}"
    partial = run.checkpoints / f"step-{step}.partial"
    (partial / "deep").mkdir(parents=True)
    (partial / "weights.safetensors").write_bytes(bytes(range(256)))
    (partial / "deep" / "state.json").write_text(json.dumps({"step": step}))
    seal(partial, folder)
    return folder


def test_a_sealed_folder_is_whole(tmp_path: Path) -> None:
    folder = checkpoint(RunDir(tmp_path), 5)

    assert damage(folder) is None
    assert not folder.with_name("step-5.partial").exists()


def flip_a_bit(folder: Path) -> None:
    path = folder / "weights.safetensors"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)


def change_a_hash_of_the_seal(folder: Path) -> None:
    path = folder / SEAL
    sizes = json.loads(path.read_text())
    sizes["weights.safetensors"]["sha256"] = "0" * 64
    path.write_text(json.dumps(sizes))


def rename_a_key_of_the_seal(folder: Path) -> None:
    path = folder / SEAL
    path.write_text(path.read_text().replace('"sha256"', '"rha256"'))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (flip_a_bit, "weights.safetensors is not what was written"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"x"), "has 1 bytes, 256 were written"),
        (lambda folder: (folder / "deep" / "state.json").unlink(), "deep/state.json is missing"),
        (lambda folder: (folder / SEAL).unlink(), "integrity.json is missing"),
        (lambda folder: (folder / SEAL).write_text("{"), "integrity.json is not what was written"),
        (lambda folder: (folder / SEAL).write_text("[]"), "integrity.json is not what was written"),
        (lambda folder: (folder / SEAL).write_bytes(b"\xff"), "integrity.json is not what was written"),
        (rename_a_key_of_the_seal, "integrity.json is not what was written"),
        (change_a_hash_of_the_seal, "weights.safetensors is not what was written"),
    ],
)
def test_damage_is_told(tmp_path: Path, harm: Callable[[Path], None], told: str) -> None:
    folder = checkpoint(RunDir(tmp_path), 5)

    harm(folder)

    assert told in str(damage(folder))


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    folders = {step: checkpoint(run, step) for step in (5, 10, 9, 100)}
    (run.checkpoints / "step-200.partial").mkdir()
    (run.checkpoints / "step-x").mkdir()

    assert newest_checkpoint(run) == (folders[100], [])
    flip_a_bit(folders[100])
    found, passed = newest_checkpoint(run)
    assert found == folders[10]
    assert passed == [f"{folders[100]} is damaged (weights.safetensors is not what was written)"]


def test_a_run_without_checkpoints_begins_anew(tmp_path: Path) -> None:
    assert newest_checkpoint(RunDir(tmp_path)) == (None, [])


def test_a_seal_replaces_an_older_folder_of_that_name(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    checkpoint(run, 5)

    assert damage(checkpoint(run, 5)) is None
