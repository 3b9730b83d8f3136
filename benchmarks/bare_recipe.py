"""What the automatic choices are worth: `python -m benchmarks.bare_recipe --before FOLDER [--rounds 1]`.

The recipe of benchmarks/cpu_race.py that holds nothing but model, data, learning rate and the examples of a step. It is
trained by the fastft in FOLDER (an earlier checkout) and by this one, in alternating rounds and processes of their own.
Writes benchmarks/bare_recipe.json: useful tokens/s, padding not counted, without the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cpu_race import EXAMPLES, HERE, NAMES, base_model, measure
from benchmarks.gpu import write_rows

STEPS = 4


def main() -> None:
    """Run all rounds, and keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--before", type=Path, required=True, help="the folder of an earlier checkout")
    options.add_argument("--rounds", type=int, default=1)
    given = options.parse_args()
    model, trees = base_model(), {"before": given.before.resolve(), "after": HERE.parent}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as work:
        rows = Path(work) / "rows.jsonl"
        write_rows(rows, STEPS * EXAMPLES, 250, 90.0)
        for _ in range(given.rounds):
            for name, tree in trees.items():
                found[name].append(measure(NAMES[2], Path(work), model, rows, STEPS, tree))
                print(f"{name}: {found[name][-1]}", flush=True)
    best = {name: max(each.get("tokens_per_second", 0.0) for each in runs) for name, runs in found.items()}
    kept = {
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "examples_a_step": EXAMPLES,
        "steps": STEPS,
        "rounds": found,
        "best": best,
    }
    (HERE / "bare_recipe.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
