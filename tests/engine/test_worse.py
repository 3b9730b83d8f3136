"""A run that makes its model worse says so before anything else."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fastft.report.result import print_result
from fastft.runs.metrics import MetricsFile
from tests.engine.tiny import make_rows, run, write_recipe, write_rows


def test_a_run_that_makes_the_model_worse_says_so_in_the_first_line_of_page_and_terminal(
    model: Path, tmp_path: Path
) -> None:
    """It learns to answer with colours, and is held to answers that no row has."""
    rows = make_rows(24, seed=5)
    for row in rows:
        row["messages"] = [row["messages"][0], {"role": "assistant", "content": "XQZJ"}]
    write_rows(tmp_path / "eval.jsonl", rows)
    changes = {
        "data.eval": "eval.jsonl",
        "train.num_train_epochs": 6,
        "train.stop_on_divergence": "never",
        "train.eval_strategy": "epoch",
    }

    ran = run(write_recipe(tmp_path, model, changes))

    first = "Worse: the held-out loss rose from "
    console = Console(record=True, width=300)
    result = ran.folder.result
    assert result is not None
    print_result(console, result, "runs/tiny")
    said = console.export_text().splitlines()[0]
    assert said.startswith(first)
    assert "95 % interval of the change +" in said
    page = (ran.folder.path / "report.html").read_text(encoding="utf-8")
    assert f'<h1 class="verdict worse">{said.rstrip()}.</h1>' in page
    warned = MetricsFile(ran.folder.metrics).history().warnings
    assert any("the held-out loss is" in each.text for each in warned)
    assert "After step" in page
