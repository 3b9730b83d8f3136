"""docs/reference/costs.md: which model on which card, how much memory and how long, from the plan of each pair."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

from fastft.planning.devices import SHEETS
from fastft.planning.facts import Facts, RowFacts
from fastft.planning.fitting import MemoryForecast
from fastft.planning.plan import make_plan
from fastft.planning.timing import Time
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe.loader import load
from fastft.report.units import between

ROOT = Path(__file__).parents[1]
MODELS = (
    "Qwen/Qwen2.5-0.5B-Instruct",
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen2.5-32B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
)
EXAMPLES, TOKENS = 10_000, 500
SETTINGS = ("load_in_4bit=true", "max_seq_length=1024")


@functools.cache
def costs_page() -> str:
    """A row a model, a column a card: peak memory and hours of one epoch, or what is too much."""
    head = "| model | " + " | ".join(f"`{name}`" for name in SHEETS) + " |"
    rows = [head, "|" + " --- |" * (len(SHEETS) + 1)]
    rows += [f"| {model} | {' | '.join(_cell(model, name) for name in SHEETS)} |" for model in MODELS]
    price = "fastft plan recipe.toml --device h100 --price-per-hour 2.5"
    text = (
        f"QLoRA (4-bit base, rank 16) with Unsloth, one epoch of {EXAMPLES:,} examples of {TOKENS} tokens, batch 2,"
        " on one GPU: peak memory, and the time from published rates of training. What it costs is that time at the"
        " price of an hour of yours, which the plan computes for your own rows; `--devices` for several GPUs:"
    )
    title, made = "# Which model, which card, how long, what does it cost", "Made by `make docs`; do not edit."
    parts = [title, made, text, f"```bash\n{price}\n```", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _cell(model: str, card: str) -> str:
    sheet = SHEETS[card]
    overrides = [f"model.{setting}" for setting in SETTINGS]
    with contextlib.chdir(ROOT):
        recipe = Path("recipes/quickstart.toml")
        loaded = load(recipe, [f"model.id={model}", "train.per_device_train_batch_size=2", *overrides])
    facts = Facts(
        device=Device("cuda", sheet.name, sheet.memory_bytes, 1, sheet.computes_bfloat16),
        installed=TESTED,
        base_model=BaseModel(model, "hub", None),
        train_examples=EXAMPLES,
        eval_examples=None,
        free_disk_bytes=1000 * GIB,
        rows=RowFacts([TOKENS] * EXAMPLES, None, EXAMPLES * TOKENS // 3, 0, 0, TOKENS, "drop", False, "model"),
    )
    plan = make_plan(loaded, facts, "runs/costs")
    assert isinstance(plan.memory, MemoryForecast)
    assert isinstance(plan.time, Time)
    peak = f"{plan.memory.peak.peak_bytes / GIB:.1f} GiB"
    if not plan.memory.peak.fits:
        return f"{peak}: too much"
    return f"{peak}, {between(plan.time.seconds.low, plan.time.seconds.high)}"
