"""What `fastft reproduce` says of losses, and what it refuses before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastft.cli import app
from fastft.commands.reproduce import compared_losses
from fastft.errors import MeasureError, UsageError
from fastft.runs.metrics import EvaluationMetrics, History, StepMetrics
from tests.report.made_up import make_run

AGAIN = Path("runs/again")


def history(*losses: float) -> History:
    steps = tuple(StepMetrics(n, 3, n / 3, loss, 1e-3, 1.0, 9, 1, 1.0, 9) for n, loss in enumerate(losses, 1))
    return History(steps, (EvaluationMetrics(3, {"eval_loss": losses[-1]}),), ())


def test_equal_losses_are_reproduced_bit_by_bit() -> None:
    said = compared_losses(AGAIN, history(1.0, float("nan"), 0.1), history(1.0, float("nan"), 0.1), 0.0)

    assert said == "Reproduced bit by bit: all 4 losses of runs/again are the same"


def test_losses_within_the_tolerance_say_how_far_apart_they_are() -> None:
    said = compared_losses(AGAIN, history(1.0, 0.5), history(1.0, 0.503), 0.01)

    assert said == "Reproduced within 0.01 nats: the 3 losses of runs/again differ by 0.003 at most"


@pytest.mark.parametrize("other", [(1.0, 0.5000001), (1.0, float("nan")), (1.0,)])
def test_another_loss_is_named(other: tuple[float, ...]) -> None:
    with pytest.raises(MeasureError) as caught:
        compared_losses(AGAIN, history(1.0, 0.5), history(*other), 0.0)

    assert caught.value.exit_code == 6
    assert "loss of step 2 is" in str(caught.value) or "logged 2 losses" in str(caught.value)


def test_a_recipe_that_changed_or_is_gone_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")

    changed = CliRunner().invoke(app, ["reproduce", str(run.path)])
    monkeypatch.chdir(tmp_path)
    gone = CliRunner().invoke(app, ["reproduce", str(run.path)])
    unfinished = CliRunner().invoke(app, ["reproduce", str(make_run(tmp_path / "half", result=None).path)])

    for done, words in (
        (changed, "is no longer the recipe of"),
        (gone, "is not here; repeat it from the folder where it was started"),
        (unfinished, "is no finished run"),
    ):
        assert isinstance(done.exception, UsageError)
        assert words in str(done.exception)
