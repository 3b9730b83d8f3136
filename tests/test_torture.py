"""The torture itself: what it calls wrong is wrong, outcomes are kept, and a case of some kinds comes out well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from torture.case import Case, Ledger, Outcome
from torture.kinds import recipes
from torture.points import Points, die_at_byte
from torture.process import Child, Ended, command
from torture.report import write_report
from torture.subject import compare, facts, refusal

ROOT = Path(__file__).parents[1]
STEP = {"event": "step", "step": 1, "loss": 2.0, "seconds": 0.5}


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a finished run, and the file of its facts."""
    run = tmp_path / "subject" / "runs" / "x"
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (run / "metrics.jsonl").write_text(json.dumps(STEP) + "\n", encoding="utf-8")
    (run / "result.json").write_text('{"steps": 1, "best_checkpoint": "runs/x/checkpoints/step-1"}', encoding="utf-8")
    (tmp_path / "facts.json").write_text(json.dumps(facts(run)), encoding="utf-8")
    return tmp_path / "subject", tmp_path / "facts.json"


DONE = Ended(0, "", 1.0, 1.0)


def test_a_run_that_is_equal_but_for_times_is_exact(finished: tuple[Path, Path]) -> None:
    folder, wanted = finished
    (folder / "runs/x/metrics.jsonl").write_text(json.dumps({**STEP, "seconds": 9.0}) + "\n", encoding="utf-8")

    assert compare(folder, DONE, wanted).verdict == "exact"


@pytest.mark.parametrize(
    ("name", "content", "seen"),
    [
        ("adapter/adapter_model.safetensors", b"weightz", "adapter_model"),
        ("metrics.jsonl", 2 * (json.dumps(STEP).encode() + b"\n"), "metrics"),
        ("metrics.jsonl", json.dumps({**STEP, "loss": 2.5}).encode() + b"\n", "metrics"),
        ("result.json", b'{"steps": 1, "best_checkpoint": "runs/x/checkpoints/step-2"}', "best"),
        ("exports/merged_16bit/model.safetensors", b"an export that the undisturbed run has not", "merged_16bit"),
    ],
)
def test_a_planted_difference_is_not_exact(finished: tuple[Path, Path], name: str, content: bytes, seen: str) -> None:
    folder, wanted = finished
    (folder / "runs/x" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "runs/x" / name).write_bytes(content)
    outcome = compare(folder, DONE, wanted)

    assert outcome.verdict == "not exact"
    assert seen in outcome.detail


def test_a_second_run_or_a_failed_one_is_not_exact(finished: tuple[Path, Path]) -> None:
    folder, wanted = finished

    assert compare(folder, Ended(4, "x", 1, 1), wanted).verdict == "not exact"
    (folder / "runs/x-2").mkdir()
    (folder / "runs/x-2/result.json").write_text("{}", encoding="utf-8")
    assert compare(folder, DONE, wanted).verdict == "not exact"


@pytest.mark.parametrize(
    ("ended", "verdict"),
    [
        (Ended(2, "x.toml:3: train.seed: is wrong; write another", 1, 0.5), "refused"),
        (Ended(0, "all is well", 1, 0.5), "silent"),
        (Ended(1, "Traceback (most recent call last):\n  ...", 1, 0.5), "traceback"),
        (Ended(-11, "", 1, 0.5), "traceback"),
        (Ended(2, "another file is wrong", 1, 0.5), "wrong answer"),
        (Ended(2, "x.toml:3: ...", 9, 3.5), "slow"),
    ],
)
def test_an_answer_is_judged(ended: Ended, verdict: str) -> None:
    assert refusal(ended, names="x.toml").verdict == verdict


def write_twice(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).write_bytes(b"a" * 1000)


@pytest.mark.parametrize(("number", "there"), [(1, []), (2, ["one"])])
def test_a_process_is_killed_before_its_nth_change(tmp_path: Path, number: int, there: list[str]) -> None:
    def work() -> None:
        Points(number).install()
        write_twice(tmp_path)

    assert Child(["--version"], tmp_path, work).wait() is not None
    assert sorted(path.name for path in tmp_path.iterdir() if path.name in ("one", "two")) == there


def test_a_process_is_killed_within_a_write(tmp_path: Path) -> None:
    def work() -> None:
        die_at_byte(700)
        write_twice(tmp_path)

    ended = Child(["--version"], tmp_path, work).wait()

    assert ended is not None
    assert ended.code == -signal.SIGXFSZ
    assert (tmp_path / "one").stat().st_size == 700


def test_the_command_line_answers_in_a_child(tmp_path: Path) -> None:
    ended = command(["check", "nothing.toml"], tmp_path)

    assert (ended.code, "nothing.toml" in ended.shown, ended.is_traceback) == (2, True, False)


def test_a_misspelt_key_of_each_section_is_refused(tmp_path: Path) -> None:
    for number, (section, key) in enumerate(recipes.keys()[::12]):
        folder = tmp_path / str(number)
        folder.mkdir()
        text = recipes.with_key(section, f"{key}q = 1")

        assert recipes.made(tmp_path, text, "", folder).verdict == "refused"


def test_outcomes_are_kept_and_reported(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "raw.jsonl", seed=3)
    for name, verdict in (("one", "exact"), ("two", "not exact"), ("two", "exact"), ("three", "silent")):
        case = Case("kills", name, partial(Outcome, verdict))
        ledger.add(case, Outcome(verdict, 1.5, "training / moment"))
    write_report(ledger, 3, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")

    assert [(line.name, line.verdict) for line in ledger.lines()] == [
        ("one", "exact"),
        ("two", "exact"),
        ("three", "silent"),
    ]
    assert Ledger(tmp_path / "raw.jsonl", seed=4).lines() == []
    assert "| SIGKILL | 300 | 3 | 2 | 1 | 0 |" in page
    assert "| kills | three | silent |" in page
    ledger.forget(("kills",), only_bad=True)
    assert [line.name for line in ledger.lines()] == ["one", "two"]


@pytest.mark.slow
def test_a_case_of_some_kinds_ends_well_and_is_not_run_twice(tmp_path: Path) -> None:
    """Only the whole harness shows that a warm process, its children and the program fit together."""
    arguments = ["--only", "recipes,rows,drift", "--limit", "1", "--raw", "raw.jsonl", "--report", "page.md"]
    run = partial(subprocess.run, [sys.executable, "-m", "torture", *arguments], cwd=tmp_path, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run(text=True, check=False, env=environment)

    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = [json.loads(line)["verdict"] for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    assert outcomes == ["refused"] * 3
    assert "| bad recipes | 350 | 1 | 1 |" in (tmp_path / "page.md").read_text(encoding="utf-8")
