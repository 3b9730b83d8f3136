"""The session on a GPU host, without a GPU: its list, its order, its budget and what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.contenders import _shared
from benchmarks.gpu_session import BUDGET_SECONDS, Step, left, main, run_step, steps, within

ROOT = Path(__file__).parents[1]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_the_list_names_every_step_in_the_order_of_value_and_runs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--list", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [
        "doctor",
        "doctor-train",
        "libraries",
        "tests-training",
        "tests-memory",
        "table-1b",
        "model-1b",
        "profile",
        "model-8b",
        "tuned-stopped",
        "tuned-again",
        "table-8b",
    ]
    assert all(line.startswith("to do") for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_every_step_ends_in_under_nine_minutes(tmp_path: Path) -> None:
    assert max(step.seconds for step in steps(tmp_path, tmp_path, tmp_path)) < BUDGET_SECONDS == 9 * 60


def test_every_file_that_a_step_names_is_there(tmp_path: Path) -> None:
    named = [word for step in steps(tmp_path, tmp_path, None) for word in step.command]
    files = [word for word in named if word.endswith((".py", ".toml"))]

    assert files
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_carried_wheels_come_first_without_what_the_host_brings(tmp_path: Path) -> None:
    for name in ("trl-1.15.0-py3-none-any.whl", "torch-2.13.0-cp312.whl", "triton-3.7.1-cp312.whl"):
        (tmp_path / name).touch()

    first = steps(tmp_path, tmp_path, tmp_path)[0]

    assert first.name == "install"
    assert [Path(word).name for word in first.command if word.endswith(".whl")] == ["trl-1.15.0-py3-none-any.whl"]
    assert {"--no-index", "--no-deps"} <= set(first.command)


def test_a_step_leaves_its_output_and_is_not_run_again(tmp_path: Path) -> None:
    step = Step("greet", "to see it", python("print('hello')"), 30)

    found = run_step(step, tmp_path, tmp_path)

    assert found["ended"] == "well"
    assert found["last_lines"] == ["hello"]
    assert json.loads((tmp_path / "greet.json").read_text()) == found
    assert left([step], tmp_path) == []


@pytest.mark.parametrize(
    ("code", "seconds", "ended"),
    [("raise SystemExit(3)", 30, "exit code 3"), ("import time; time.sleep(60)", 1, "cut off after 1 s")],
)
def test_a_step_that_fails_says_how_and_stands_too(tmp_path: Path, code: str, seconds: int, ended: str) -> None:
    step = Step("bad", "to see it", python(code), seconds)

    assert run_step(step, tmp_path, tmp_path)["ended"] == ended
    assert left([step], tmp_path) == []


def test_a_step_is_asked_to_stop_once_it_has_printed_what_is_waited_for(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n"
        "print('step 6/36', flush=True)\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()

    found = run_step(Step("stopped", "to see it", python(code), 50, stop_at="step 6/"), tmp_path, tmp_path)

    assert found["ended"] == "exit code 130"
    assert time.monotonic() - began < 30


def test_no_step_begins_that_may_not_end_in_time_but_one() -> None:
    long, short = Step("long", "", (), 500), Step("short", "", (), 30)

    assert list(within([short, long, short], 400)) == [short]
    assert list(within([long], 10)) == [long]


def test_the_target_of_make_is_the_session() -> None:
    done = subprocess.run(["make", "--dry-run", "gpu"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "-m benchmarks.gpu_session" in done.stdout


def test_unsloths_contender_leaves_padding_free_to_unsloth() -> None:
    given = {"runs": "runs", "batch": 2, "accumulation": 4, "steps": 3, "small": False}

    # With either of them its trainer pads every batch: it cannot know that no row is too long.
    assert _shared(given).keys() & {"dataset_kwargs", "max_length", "packing", "padding_free"} == set()
