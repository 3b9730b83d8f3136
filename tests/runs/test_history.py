"""metrics.jsonl is what the checkpoints and the result of its run were written after, or is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fastft.errors import MachineError
from fastft.files.seal import file_sha256, seal
from fastft.runs.directory import RunDir
from fastft.runs.held_out import Untrained
from fastft.runs.history import keep_history, read_history, rewind
from fastft.runs.metrics import EvaluationMetrics, MetricsFile, OutOfMemory, StepMetrics
from tests.report.made_up import RESULT


def log(run: RunDir, *steps: int) -> None:
    for step in steps:
        line = StepMetrics(step, 9, 1.0, 2.5, 1e-4, None, tokens=10, examples=1, seconds=1.0, memory_bytes=0)
        MetricsFile(run.metrics).append(line)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that was evaluated before training, with a checkpoint at step 2 and a line more."""
    run = RunDir(tmp_path)
    MetricsFile(run.metrics).append(EvaluationMetrics(0, {"eval_loss": 3.0}))
    run.write(Untrained(3.0, None))
    log(run, 1, 2)
    written = run.checkpoints / "written"
    written.mkdir(parents=True)
    keep_history(run, written)
    seal(written, run.checkpoints / "step-2")
    log(run, 3)
    return run


def steps(run: RunDir) -> list[int]:
    return [line.step for line in read_history(run).steps]


@pytest.mark.parametrize(
    "content", [b"", b'{"event": "step"', b"[1, 2]\n", b"\xff\n", b'{"event": "step", "step": 1}\n', None]
)
def test_whatever_became_of_the_lines_a_checkpoint_brings_them_back(run: RunDir, content: bytes | None) -> None:
    before = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.unlink()
    if content is not None:
        run.metrics.write_bytes(content)
    rewind(run, run.checkpoints / "step-2")

    assert run.metrics.read_bytes() == b"".join(before[:3])


@pytest.mark.parametrize("in_the_way", ["folder", "link"])
def test_a_folder_or_a_link_in_the_place_of_the_file_is_replaced(run: RunDir, in_the_way: str, tmp_path: Path) -> None:
    run.metrics.unlink()
    (tmp_path / "elsewhere").mkdir()
    if in_the_way == "folder":
        run.metrics.mkdir()
    else:
        run.metrics.symlink_to(tmp_path / "elsewhere")
    rewind(run, run.checkpoints / "step-2")

    assert steps(run) == [1, 2]
    assert (tmp_path / "elsewhere").is_dir()


def test_without_a_checkpoint_the_evaluation_before_training_stays(run: RunDir) -> None:
    rewind(run, None)

    assert MetricsFile(run.metrics).history().evaluations == (EvaluationMetrics(0, {"eval_loss": 3.0}),)
    assert run.read(Untrained) is not None


def test_without_its_line_the_evaluation_before_training_is_made_anew(run: RunDir) -> None:
    run.metrics.write_bytes(b'{"event": "evalu\n')
    rewind(run, None)

    assert run.metrics.read_bytes() == b""
    assert run.read(Untrained) is None


def test_an_evaluation_before_training_that_is_lost_is_not_made_with_later_lines(run: RunDir) -> None:
    (run.path / Untrained.FILE).unlink()

    with pytest.raises(MachineError, match=r"before\.json: is missing"):
        rewind(run, run.checkpoints / "step-2")


def test_memory_that_ran_out_is_the_last_line_once(run: RunDir) -> None:
    retry = OutOfMemory(2, "4 x 1", "2 x 2")
    for _ in range(2):
        rewind(run, run.checkpoints / "step-2", [retry])

        assert MetricsFile(run.metrics).history().out_of_memory == (retry,)


@pytest.mark.parametrize(
    ("before", "after", "wrong"),
    [
        (b'"loss": 2.5', b'"loss": 2.4', r"metrics\.jsonl: is damaged: its lines are not what was written"),
        (b'"tokens": 10', b'"tokenz": 10', r"metrics\.jsonl:2: is damaged: tokens: Field required"),
        (b'"step": 1', b'"step": "1"', r"metrics\.jsonl:2: is damaged: step: Input should be a valid integer"),
        (b'"eval_loss": 3.0', b'"eval_loss": []', r"metrics\.jsonl:1: is damaged: eval_loss: Input should be a valid"),
        (b'"event": "step"', b'"event": "stop"', r"metrics\.jsonl:2: is damaged: event: Input should be"),
        (b"{", b"[", r"metrics\.jsonl:1: is damaged: Invalid JSON"),
    ],
)
def test_a_changed_line_is_refused_by_name(run: RunDir, before: bytes, after: bytes, wrong: str) -> None:
    content = run.metrics.read_bytes()
    run.metrics.write_bytes(content.replace(before, after, 1))

    with pytest.raises(MachineError, match=wrong):
        read_history(run)


def test_lines_that_are_lost_are_missed_and_a_line_that_a_crash_cut_off_is_not(run: RunDir) -> None:
    content = run.metrics.read_bytes()
    run.metrics.write_bytes(content + b'{"event": "st')
    assert steps(run) == [1, 2, 3]
    run.metrics.write_bytes(content[: len(content) // 2])

    with pytest.raises(MachineError, match="its lines are not what was written"):
        read_history(run)


def test_after_the_end_all_lines_count(run: RunDir) -> None:
    run.write(dataclasses.replace(RESULT, metrics_sha256=file_sha256(run.metrics)))
    assert steps(run) == [1, 2, 3]
    run.metrics.write_bytes(run.metrics.read_bytes().replace(b'"step": 3', b'"step": 8'))

    with pytest.raises(MachineError, match="its lines are not what was written"):
        read_history(run)
