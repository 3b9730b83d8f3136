"""`fastft data` looks at the rows as the run splits them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.commands.data import data_in_terminal


def test_the_rows_that_eval_fraction_holds_out_are_compared_with_the_trained_ones(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasketch")
    recipe = write_recipe("eval_fraction = 0.5\n")
    turns = [[("user", f"capital {number % 10}"), ("assistant", f"city {number % 10}")] for number in range(20)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in turns]
    (recipe.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    data_in_terminal(recipe, [], as_json=True, personal=False)

    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["evaluation_rows"]) == (10, 10)
    assert any(finding["kind"] == "leaked_rows" for finding in found["findings"])
