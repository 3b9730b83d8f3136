"""The plan of each shipped recipe on a fixed machine: `python -m tests.golden` writes tests/golden/*.json.

Review sees in these files what a changed default, rule or mapping does to the exact upstream calls.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from fastft.planning.facts import Facts, RowFacts
from fastft.planning.plan import Plan, make_plan
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import load
from fastft.runs.directory import run_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "golden"
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

A100 = Device("cuda", "NVIDIA A100-SXM4-80GB", 80 * GIB, 1, computes_bfloat16=True)
T4 = Device("cuda", "Tesla T4", 15 * GIB, 1, computes_bfloat16=False)
CPU = Device("cpu", "CPU (x86_64, 2 cores)", 4 * GIB, 1, computes_bfloat16=False)
# The recipes and the machine that each is made for.
DEVICES = {"quickstart": CPU}


def row_facts(lengths: list[int], **changes: Any) -> RowFacts:
    """Tokenized rows of these lengths, with none left out; a third of the tokens carries loss."""
    values = {
        "eval_rows": None,
        "trained_tokens": sum(lengths) // 3,
        "lost_rows": 0,
        "lost_tokens": 0,
        "longest": max(lengths, default=0),
        "overlong": "drop",
        "pads_with_end": False,
        "template": "model",
    }
    return RowFacts(lengths=lengths, **{**values, **changes})


def golden_plan(recipe: Path) -> Plan:
    """The plan of a shipped recipe: 480 rows of 60 to 100 tokens, 50 held out, nothing downloaded yet."""
    with contextlib.chdir(ROOT):
        loaded = load(recipe.relative_to(ROOT))
    facts = Facts(
        device=DEVICES.get(recipe.stem, A100),
        installed=TESTED,
        base_model=BaseModel(loaded.recipe.model.id, "hub", None),
        train_examples=480,
        eval_examples=50,
        free_disk_bytes=100 * GIB,
        rows=row_facts([60 + number % 41 for number in range(480)], eval_rows=50),
    )
    return make_plan(loaded, facts, f"runs/{run_name(recipe)}")


def golden_text(recipe: Path) -> str:
    """That plan as JSON."""
    values = golden_plan(recipe).as_json()
    batch = values["schedule"]["per_device_train_batch_size"]
    values["batching"]["table"] = [row for row in values["batching"]["table"] if row["batch"] == batch]
    if DEVICES.get(recipe.stem, A100).kind == "cpu":
        # The clock and the vectors are those of the machine that plans.
        del values["time"], values["batching"]["speed_up"]
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path in RECIPES:
        (FOLDER / f"{path.stem}.json").write_text(golden_text(path), encoding="utf-8")
