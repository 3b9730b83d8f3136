"""The benchmark's contender for Unsloth is Unsloth at its best default: it pads nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks.contenders import unsloth
from tests.engine.tiny import write_recipe


def test_unsloth_as_its_notebooks_write_it_flattens_its_batches(model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, {}, "rows")
    out = tmp_path / "found.json"
    given = {"recipe": str(recipe), "model": str(model), "runs": str(tmp_path / "runs"), "out": str(out)}

    unsloth({**given, "started": time.time(), "small": True, "batch": 2, "accumulation": 2, "steps": 2})

    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["settings"].endswith(", padding-free rows")
    # Four rows a step, counted by the lengths that a flattened batch brings.
    assert [step["examples"] for step in found["steps"]] == [4, 4]
