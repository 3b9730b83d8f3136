"""Every file of a run folder, damaged in every way, under every command that reads it: right, or one error by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastft.cli import app
from fastft.errors import FastftError
from fastft.files.seal import write_seal
from fastft.runs.held_out import HeldOut
from tests.exports.tiny import write_adapter
from tests.report.made_up import make_run

HOSTILE = b'{"settings": 1e308, "steps": -1, "seed": [[[]]], "files": "many", "step": null, "schema": {}}'
FILES = [
    "settings.json",
    "recipe.toml",
    "plan.json",
    "manifest.json",
    "held_out.json",
    "metrics.jsonl",
    "rejects.jsonl",
    "result.json",
    "attempts/1/ended.json",
    "attempts",
    "lock",
    "checkpoints",
    "exports/export.json",
    "exports",
    "adapter/integrity.json",
    "adapter/adapter_config.json",
    "adapter",
]


def half(path: Path) -> None:
    kept = path.read_bytes() if path.is_file() else b"{}"
    content(kept[: len(kept) // 2])(path)


def content(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        remove(path)
        path.write_bytes(data)

    return write


def remove(path: Path) -> None:
    if path.is_dir():
        path.rename(path.with_name(f"{path.name}-aside"))
    else:
        path.unlink(missing_ok=True)


def to(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        remove(path)
        make(path)

    return replace


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * 1024**3)  # a hole, no bytes on the disk


WAYS: dict[str, Callable[[Path], None]] = {
    "empty": content(b""),
    "half": half,
    "hostile": content(HOSTILE),
    "a list": content(b"[1, 2]\n"),
    "not UTF-8": content(b"\xff\xfe{}"),
    "nested": content(b"[" * 100_000),
    "missing": remove,
    "a folder": to(Path.mkdir),
    "a dead link": to(lambda path: path.symlink_to("nowhere")),
    "a link to itself": to(lambda path: path.symlink_to(path.name)),
    "a pipe": to(lambda path: os.mkfifo(path)),
    "too long": to(huge),
}
COMMANDS = [
    ("report", "run"),
    ("runs", "."),
    ("chat", "run", "--prompt", "why?"),
    ("export", "run", "--to", "gguf"),
    ("serve", "run"),
]


# A quarter of all pairs, with each file and each way in several: all of them take 40 s.
PAIRS = [(name, way) for i, name in enumerate(FILES) for j, way in enumerate(WAYS) if (i + j) % 4 == 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an adapter, an attempt and places for checkpoints and exports."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run", steps=2)
    run.write(HeldOut((), (1,)))
    write_adapter(run.adapter)
    write_seal(run.adapter)
    for folder in (run.attempts / "1", run.checkpoints / "step-1", run.exports):
        folder.mkdir(parents=True)
    return run.path


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_a_damaged_file_of_a_run_is_harmless_or_one_error(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "run")
    WAYS[way](tmp_path / "run" / name)
    for command in COMMANDS:
        done = CliRunner().invoke(app, list(command))

        assert done.exception is None or isinstance(done.exception, FastftError | SystemExit), command
        if isinstance(done.exception, FastftError):
            assert all(problem.where.path for problem in done.exception.problems)


@pytest.mark.parametrize(
    ("name", "before", "after", "command"),
    [
        ("settings.json", b'"value": 7', b'"value": 8', "report"),
        ("recipe.toml", b"#", b"$", "report"),
        ("plan.json", b'"engine": "', b'"engine": "x', "report"),
        ("manifest.json", b'"seed": 7', b'"seed": 8', "report"),
        ("metrics.jsonl", b"", b'{"event": "stop", "step": 1}\n', "runs"),
        ("result.json", b'"steps": 60', b'"steps": 61', "chat"),
    ],
)
def test_a_changed_value_is_one_error_that_names_the_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: bytes, after: bytes, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "run")
    path = tmp_path / "run" / name
    kept = path.read_bytes()
    path.write_bytes(kept.replace(before, after, 1))
    done = CliRunner().invoke(app, next(list(one) for one in COMMANDS if one[0] == command))

    assert isinstance(done.exception, FastftError)
    assert [name in str(problem) for problem in done.exception.problems] == [True]
