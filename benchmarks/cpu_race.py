"""Training speed on a processor, side by side: `python -m benchmarks.cpu_race [--small] [--rounds 2]`.

Each contender trains SmolLM2-135M-Instruct on the same rows of mixed length, 16 examples a step, in a process of its
own (benchmarks/contenders.py); the rounds alternate, so that a busy minute meets all of them. Tokens are useful ones,
padding not counted; the first step warms up and is left out. Writes benchmarks/cpu_race.json; `--small` runs one round
of two steps on short rows and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu import write_rows

HERE = Path(__file__).parent
QUICKSTART = HERE.parent / "recipes" / "quickstart.toml"
EXAMPLES = 16
# What the recipes of fastft share: where the steps end, and nothing beside them.
SHARED = f'effective_batch_size = {EXAMPLES}\nlearning_rate = 2e-5\nsave_strategy = "no"\nlogging_steps = 1\n'
FASTFT: Mapping[str, tuple[str, str]] = {
    "fastft, nothing but model, data and learning rate": ("", ""),
    "fastft, tuned by hand": (
        'dtype = "bfloat16"\n',
        "per_device_train_batch_size = 4\ngroup_by_length = true\ngradient_checkpointing = false\n",
    ),
}
NAMES = ("Unsloth as its notebooks write it", "transformers, PEFT and TRL", *FASTFT)
# Of an Unsloth notebook and of TRL's defaults.
BATCHES = {NAMES[0]: ("contender-2", 2), NAMES[1]: ("contender-1", 8)}


def write_recipe(folder: Path, name: str, model: Path, rows: Path, steps: int) -> Path:
    """The recipe of one contender of fastft."""
    more_model, more_train = FASTFT[name]
    recipe = folder / f"recipe-{NAMES.index(name)}.toml"
    # JSON is TOML for texts.
    text = f"[model]\nid = {json.dumps(str(model))}\nmax_seq_length = 256\n{more_model}"
    text += f"[data]\ntrain = {json.dumps(str(rows))}\n"
    text += f"[train]\nmax_steps = {steps}\n{SHARED}{more_train}"
    recipe.write_text(text, encoding="utf-8")
    return recipe


def measure(name: str, folder: Path, model: Path, rows: Path, steps: int, tree: Path = HERE.parent) -> dict[str, Any]:
    """Useful tokens a second of one contender, with the loss of its last step and its peak memory.

    `tree`: the checkout whose fastft trains.
    """
    job, batch = BATCHES.get(name, ("contender-3", 1))
    recipe = write_recipe(folder, name if name in FASTFT else NAMES[2], model, rows, steps)
    out = folder / "found.json"
    out.unlink(missing_ok=True)
    given = {
        "job": job,
        "out": str(out),
        "model": str(model),
        "started": time.time(),
        "recipe": str(recipe),
        "runs": str(folder / f"runs-{time.time_ns()}"),
        "batch": batch,
        "accumulation": EXAMPLES // batch,
        "steps": steps,
        "small": True,  # without what needs a GPU
        "any_precision": True,
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree)}
    command = [sys.executable, str(HERE / "contenders.py"), json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"failed": f"{done.stdout}{done.stderr}".strip()[-600:]}
    found = json.loads(out.read_text(encoding="utf-8"))
    measured = found["steps"][1:]
    tokens, seconds = sum(step["tokens"] for step in measured), sum(step["seconds"] for step in measured)
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "loss": round(measured[-1]["loss"], 4),
        "peak_memory_bytes": found["allocated_bytes"],
        "batch": found["batch"],
        "settings": found["settings"],
    }


def base_model() -> Path:
    """The folder of the quickstart's model, converted on first use."""
    from fastft.recipe.loader import load
    from fastft.stages.inputs import fetch_tokenizer

    return fetch_tokenizer(load(QUICKSTART, []), print)


def main() -> None:
    """Run all rounds, print a line a contender, and keep the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="one round of two steps, which writes nothing")
    options.add_argument("--rounds", type=int, default=2)
    given = options.parse_args()
    steps, rounds, longest, mean = (2, 1, 120, 60.0) if given.small else (4, given.rounds, 250, 90.0)
    model = base_model()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as work:
        rows = Path(work) / "rows.jsonl"
        write_rows(rows, steps * EXAMPLES, longest, mean)
        for _ in range(rounds):
            for name in NAMES:
                found[name].append(measure(name, Path(work), model, rows, steps))
                print(f"{name}: {found[name][-1]}", flush=True)
    best = {name: max(each.get("tokens_per_second", 0.0) for each in runs) for name, runs in found.items()}
    for name, rate in best.items():
        times = f"{rate / best[NAMES[0]]:.2f}" if best[NAMES[0]] else "?"
        print(f"{rate:8.1f} useful tokens/s, {times} times the notebook: {name}")
    if not given.small:
        kept = {"cores": os.cpu_count(), "examples_a_step": EXAMPLES, "steps": steps, "rounds": found, "best": best}
        (HERE / "cpu_race.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
