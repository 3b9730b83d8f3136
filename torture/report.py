"""docs/reliability.md: the figures of all outcomes."""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastft import __version__
from torture.case import BAD, GOOD, Ledger, Line

# How many cases each kind has, what it is, and what its seconds are of.
KINDS = {
    "kills": (300, "SIGKILL", "the run that goes on"),
    "signals": (200, "SIGINT, SIGTERM, SIGHUP, SIGUSR1", "from the signal to the end"),
    "resume": (119, "a stop at 7 points of 17 configurations", "the run that goes on"),
    "damage": (60, "12 files x empty, half, a bit, hostile, a list", "answer"),
    "disk": (12, "the disk fills up", "the run that ends"),
    "numbers": (14, "the loss becomes no number", ""),
    "divergence": (10, "a model that gets worse", ""),
    "drift": (20, "base, rows, versions changed before a resume", "answer"),
    "recipes": (350, "bad recipes", "answer"),
    "rows": (200, "bad data files", "answer"),
    "artefacts": (130, "hostile configs, adapters, templates, weights, GGUF, runs", "answer"),
    "secrets": (20, "secrets in recipe, options, environment", "answer"),
}
PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "safetensors", "xllamacpp")
HEAD = """\
# Reliability

`make torture` makes this page: faults by the hundred against runs of a tiny random model, with the program itself
({command}). Raw outcomes: [benchmarks/torture.jsonl](../benchmarks/torture.jsonl).

| | |
|---|---|
| date | {date} |
| machine | {machine} |
| versions | {versions} |
| seed | {seed} |
| engine | {engine} |

A warm process forks a child for each command, which runs `fastft.cli.main`: a command then costs 2 s instead of 10.
The kills "process from the shell" hit processes of their own. Random moments spread over a whole run: conversion of a
GGUF base, preparing, training, evaluations, saving, two exports. *Exact*: adapter, merged and GGUF weights, every line
of `metrics.jsonl` (times and memory aside), result and best checkpoint are those of an undisturbed run.
*Silent*: a fault had an effect that nothing said. *Harness*: the case itself failed.
"""


def write_report(ledger: Ledger, seed: int, path: Path) -> None:
    """Write the page of all outcomes of this seed."""
    lines = ledger.lines()
    parts = [
        HEAD.format(
            command="`fastft run`, `check`, `plan`, `export`, `chat`",
            date=time.strftime("%Y-%m-%d"),
            machine=f"{os.cpu_count()} shared cores ({platform.machine()}), no GPU",
            versions=", ".join([f"fastft {__version__}", f"Python {platform.python_version()}", *_versions()]),
            seed=seed,
            engine=os.environ.get("FASTFT_ENGINE", "transformers"),
        ),
        "## All kinds\n",
        _table(
            ("fault", "cases", "tried", "as it should be", *BAD, "slowest (s)", "of what"),
            [*(_row(kind, [line for line in lines if line.kind == kind]) for kind in KINDS), _row("all", lines)],
        ),
        "Seconds are of CPU time, because other work shares the cores; those of signals are on the clock.\n",
        _cost(),
        "## What was seen\n",
        _table(
            ("fault", *GOOD),
            [(kind, *(_count(lines, kind, verdict) for verdict in GOOD)) for kind in KINDS],
        ),
        "*Harmless*: the signal came before fastft had begun anything, and ended the process as any program.\n",
        "## Kills by the part of the run\n",
        _by_group([line for line in lines if line.kind == "kills"]),
        "## Signals by the part of the run\n",
        _by_group([line for line in lines if line.kind == "signals"]),
        "## Not as it should be\n",
        _faults([line for line in lines if line.verdict in BAD]),
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _cost() -> str:
    """What safety costs, from the newest figures of benchmarks/sealing.py."""
    figures = json.loads((Path(__file__).parents[1] / "benchmarks" / "sealing.json").read_text(encoding="utf-8"))
    gb = 1e9
    rows = [
        ("checkpoint", f"{figures['checkpoint_bytes'] / gb:.2f} GB (rank 16 on an 8B model, with optimizer)"),
        ("to seal it", f"{figures['seal_seconds']:.2f} s, {100 * figures['share_of_5_minutes']:.2f} % of 5 minutes"),
        ("to check it before a resume", f"{figures['check_seconds']:.2f} s"),
        ("base never hashed before", f"{figures['base_bytes'] / gb:.2f} GB, hashed in {figures['hash_seconds']:.1f} s"),
        ("delay of the first step by that", f"{1000 * figures['first_step_delayed_seconds']:.1f} ms"),
        ("the same base again", f"{1000 * figures['kept_hash_seconds']:.1f} ms"),
    ]
    return f"## Cost (`{figures['command']}`)\n\n" + _table(("what", "measured"), rows)


def _versions() -> Iterable[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _count(lines: Sequence[Line], kind: str, verdict: str) -> int:
    return sum(line.kind == kind and line.verdict == verdict for line in lines)


def _row(kind: str, lines: Sequence[Line]) -> tuple[object, ...]:
    counts = Counter(line.verdict for line in lines)
    planned, what, of = KINDS.get(kind, (sum(each for each, _, _ in KINDS.values()), "**all**", ""))
    slowest = max((line.seconds for line in lines), default=0.0) if of else 0.0
    good = sum(counts[verdict] for verdict in GOOD)
    return (
        what,
        planned,
        len(lines),
        good,
        *(counts[verdict] for verdict in BAD),
        f"{slowest:.1f}" if slowest else "",
        of,
    )


def _by_group(lines: Sequence[Line]) -> str:
    """A table of the parts of a run and what hit them: exact ones of all."""
    pairs = [(*line.group.partition(" / ")[::2], line.verdict) for line in lines]
    columns = sorted({how for _, how, _ in pairs})
    rows = []
    for part in sorted({part for part, _, _ in pairs}):
        cells = []
        for column in columns:
            verdicts = [verdict for one, how, verdict in pairs if (one, how) == (part, column)]
            cells.append(f"{sum(verdict in GOOD for verdict in verdicts)} of {len(verdicts)}" if verdicts else "")
        rows.append((part or "unknown", *cells))
    return _table(("part", *(column or "unknown" for column in columns)), rows)


def _faults(lines: Sequence[Line]) -> str:
    if not lines:
        return "Nothing.\n"
    rows = [(line.kind, line.name, line.verdict, line.detail[:160].replace("|", "/")) for line in lines]
    return _table(("kind", "case", "verdict", "seen"), rows)


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)
