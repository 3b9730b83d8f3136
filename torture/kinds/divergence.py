"""A run that makes the model worse without ever reaching NaN: said while it goes on, or stopped."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from torture.case import Case, Outcome
from torture.process import command
from torture.subject import RUN, write_subject

KIND = "divergence"
RATES = (0.2, 0.4, 0.6, 0.8, 0.99)
SAID = re.compile(r"gets worse|made the model worse|diverge|blew up|blow|rises|rising|is worse")


def prepare(shared: Path, base: Path) -> None:
    """A base that has learnt the rows: only a model that knows something can get worse."""
    learns = {"lora.r": 64, "train.learning_rate": 1e-2, "train.num_train_epochs": 25, "train.save_steps": 50}
    write_subject(shared, base, {**learns, "export.formats": ["merged_16bit"]})
    ended = command(RUN, shared)
    assert ended.code == 0, ended.shown[-2000:]


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    evaluated = {"data.eval": "eval.jsonl", "train.eval_strategy": "epoch"}
    ways: dict[str, dict[str, object]] = {"with held-out rows": {**evaluated}, "without": {}}
    return [
        Case(
            KIND,
            f"learning rate {rate}, {way}",
            partial(diverges, shared / "runs/subject/exports/merged_16bit", rate, changes, way),
        )
        for way, changes in ways.items()
        for rate in RATES
    ]


def diverges(base: Path, rate: float, changes: dict[str, object], way: str, folder: Path) -> Outcome:
    wild = {"train.learning_rate": rate, "train.lr_scheduler_type": "constant", "train.max_grad_norm": 1e6}
    write_subject(folder, base, {**changes, **wild, "train.num_train_epochs": 8})
    ended = command(RUN, folder)
    if ended.is_traceback or ended.code < 0:
        return Outcome("traceback", 0.0, way, f"exit {ended.code}: {ended.last_line}")
    # Stages ("•") and steps have paths and figures; warnings ("!") and the last problem have words.
    said = [line for line in ended.shown.splitlines() if not line.startswith(("•", "step "))]
    lines = [line for line in said if SAID.search(line) or "no number" in line]
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", ended.shown)]
    change = f"loss {losses[0]:.2f} to {losses[-1]:.2f}" if losses else "no loss"
    worse = len(losses) > 1 and losses[-1] > 1.5 * losses[0]
    return Outcome(
        "said" if lines else "silent" if worse else "harness", 0.0, way, f"{change}: {lines[0][:160] if lines else ''}"
    )
