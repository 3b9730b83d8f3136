"""What reporters receive, read back as TensorBoard reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.tiny import events, make_rows, run, write_recipe, write_rows

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_tensorboard_reads_every_figure_of_the_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    write_rows(tmp_path / "eval.jsonl", make_rows(6, seed=5))
    changes = {
        "data.eval": "eval.jsonl",
        "eval.exact_match": True,
        "eval.regression_set": False,
        "eval.max_new_tokens": 4,
        "train.report_to": ["tensorboard"],
        "train.eval_strategy": "epoch",
    }

    ran = run(write_recipe(tmp_path, model, changes))

    read = accumulator.EventAccumulator(str(ran.folder.path / "tensorboard"))
    read.Reload()

    def series(tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in read.Scalars(tag)]

    def logged(name: str) -> list[tuple[int, float]]:
        # TensorBoard keeps 32 bits of a number.
        return [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in ran.steps]

    for tag, name in {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}.items():
        assert series(f"train/{tag}") == logged(name)
    rates = [(line["step"], pytest.approx(line["tokens"] / line["seconds"], rel=1e-6)) for line in ran.steps]
    assert series("train/tokens_per_second") == rates
    padding = [
        (line["step"], pytest.approx(1 - line["tokens"] / line["computed_tokens"], abs=1e-6)) for line in ran.steps
    ]
    assert series("train/padding") == padding
    assert any(value > 0 for _, value in series("train/padding"))
    memory = [(line["step"], pytest.approx(line["memory_bytes"] / 2**30, rel=1e-6)) for line in ran.steps]
    assert series("train/memory_gib") == memory
    held_out = [line for line in events(ran.folder) if line["event"] == "evaluation"]
    assert [line["step"] for line in held_out] == [0, 6, 12, 12], "before, at each epoch, and after training"
    wanted = [(line["step"], pytest.approx(line["eval_loss"], rel=1e-6)) for line in held_out]
    assert series("eval/loss") == wanted
    match = ran.result["exact_match"]
    shares = [(step, pytest.approx(match[name] / match["rows"])) for step, name in ((0, "before"), (12, "after"))]
    assert series("eval/exact_match") == shares
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"], "no folder of TensorBoard's own"
