"""`fastft clean` on made-up runs and caches."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastft.cli import app
from fastft.runs.directory import RunDir
from fastft.runs.state import Ended, keep_end
from tests.report.made_up import make_run

LONG_AGO = time.time() - 40 * 86_400


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, one that was stopped, and one whose only weights are its checkpoints."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "runs"
    done = make_run(folder / "done")
    done.adapter.mkdir()
    (done.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    half = make_run(folder / "half", steps=12, result=None)
    (half.attempts / "1").mkdir(parents=True)
    keep_end(half.attempts / "1", Ended(True, "stopped by SIGTERM"))
    for run in (done, half, make_run(folder / "lost")):
        (run.checkpoints / "step-12").mkdir(parents=True)
        (run.checkpoints / "step-12" / "optimizer.pt").write_bytes(b"x" * 1000)
    return folder


def cached(folder: Path, kind: str, name: str, used: float) -> Path:
    made = folder.parent / "cache" / "fastft" / kind / name
    made.mkdir(parents=True)
    (made / "file").write_bytes(b"y" * 500)
    os.utime(made / "file", (used, used))
    os.utime(made, (used, used))
    return made


def cleaned(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["clean", *arguments])
    assert done.exit_code == 0, done.exception
    return done.stdout


def test_only_checkpoints_of_finished_runs_go(runs: Path) -> None:
    found = json.loads(cleaned(str(runs), "--yes", "--json"))

    assert [(each["path"], each["size_bytes"]) for each in found["found"]] == [
        (str(runs / "done" / "checkpoints"), 1000)
    ]
    assert found["removed"]
    assert not (runs / "done" / "checkpoints").exists()
    assert RunDir(runs / "done").result is not None
    assert (runs / "half" / "checkpoints" / "step-12" / "optimizer.pt").is_file()
    assert (runs / "lost" / "checkpoints" / "step-12" / "optimizer.pt").is_file()
    assert any("the run is stopped, and continues from them" in why for why in found["kept"])
    assert any("they hold the only weights of the run" in why for why in found["kept"])


def test_what_and_how_much_is_shown_and_nothing_goes_without_a_yes(runs: Path) -> None:
    shown = cleaned(str(runs))

    assert "checkpoints of a finished run" in shown
    assert "1000 B in 1 folder" in shown
    assert shown.endswith("nothing was removed; --yes removes it without a question\n")
    assert (runs / "done" / "checkpoints").is_dir()


def test_a_cache_goes_when_nothing_read_it_for_long(runs: Path) -> None:
    stale = cached(runs, "rows", "a1", LONG_AGO)
    scratch = cached(runs, "rows", ".writing-b2", time.time() - 2 * 86_400)
    fresh = cached(runs, "converted", "c3", time.time())
    being_written = cached(runs, "converted", ".writing-d4", time.time())

    served = cached(runs, "served", "e5", LONG_AGO)

    found = json.loads(cleaned(str(runs), "--yes", "--json"))

    whats = {each["path"]: each["what"] for each in found["found"]}
    assert whats[str(stale)] == "prepared rows, not read for 40 days"
    assert whats[str(served)] == "a GGUF file of fastft serve, not read for 40 days"
    assert whats[str(scratch)] == "unfinished, of a process that ended"
    assert [path.exists() for path in (stale, scratch, fresh, being_written)] == [False, False, True, True]


def test_a_link_is_not_followed(runs: Path) -> None:
    elsewhere = runs.parent / "elsewhere"
    (runs / "done" / "checkpoints").rename(elsewhere)
    (runs / "done" / "checkpoints").symlink_to(elsewhere)

    assert json.loads(cleaned(str(runs), "--yes", "--json"))["found"] == []
    assert (elsewhere / "step-12" / "optimizer.pt").is_file()


def test_where_there_is_nothing_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    assert cleaned(str(tmp_path)) == "nothing to remove\n"
    missing = CliRunner().invoke(app, ["clean", str(tmp_path / "none")])
    assert "there is no such folder" in str(missing.exception.problems[0])  # type: ignore[union-attr]
