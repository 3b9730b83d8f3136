from __future__ import annotations

from pathlib import Path

from fastft.runs.checkpoints import checkpoints
from fastft.runs.directory import RunDir, newest_run, next_run_dir


def test_links_and_odd_names_are_no_checkpoints(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for name in (
        "step-5",
        "step-12",
        "step-²",
        "step-06",
        "step--1",
        "step-0",
        "step-٣",
        "step-1e3",
        "step-" + "9" * 99,
    ):
        (run.checkpoints / name).mkdir(parents=True)
    (run.checkpoints / "step-6").symlink_to(run.checkpoints / "step-5")
    (run.checkpoints / "step-7").write_text("")

    assert [step for step, _ in checkpoints(run)] == [12, 5]


def test_odd_names_are_no_runs(tmp_path: Path) -> None:
    for name in ("tiny-02", "tiny-²", "tiny--1", "tiny-" + "9" * 200, "tiny-0"):
        (tmp_path / name).mkdir()

    assert newest_run(tmp_path, "tiny") is None
    assert next_run_dir(tmp_path, "tiny").path.name == "tiny"
