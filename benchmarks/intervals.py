"""How often the 95 % intervals of fastft hold the true change, for many shapes of results and numbers of rows.

    python -m benchmarks.intervals [--results 1000] [--out benchmarks/intervals.json]

One line a shape: the share of made-up results whose interval holds the true change, by number of rows, and the share
whose interval says that it is rough. Minutes on one core; tests/runs/test_measured.py and test_verdict.py have a short
form. Of the held-out loss and perplexity, rows are micro-batches of 16 to 64 tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

from fastft.recipe.measures import MEASURES
from fastft.runs.intervals import change_interval
from fastft.runs.measured import row_interval
from fastft.runs.result import PairedBatch

Draw = Callable[[random.Random], tuple[float, float]]
ROWS = (13, 25, 50, 100, 200)


def _changed(share: float) -> Draw:
    """Token F1 of rows of which a share changes, for better three times out of four."""

    def draw(chance: random.Random) -> tuple[float, float]:
        low, high = chance.betavariate(2, 5), chance.betavariate(5, 2)
        if chance.random() >= share:
            return low, low
        return (low, high) if chance.random() < 0.75 else (high, low)

    return draw


def _flips(gained: float, lost: float) -> Draw:
    """Answers of which a share becomes right and a share wrong."""

    def draw(chance: random.Random) -> tuple[float, float]:
        value = chance.random()
        return float(value >= 1 - lost), float(value < gained)

    return draw


def _lengths(spread: float, runaway: float) -> Draw:
    """Lengths of answers; a share of those before training runs on to 256 tokens."""

    def draw(chance: random.Random) -> tuple[float, float]:
        before = 256.0 if chance.random() < runaway else min(chance.lognormvariate(3, spread), 256)
        return before, chance.lognormvariate(2.8, 0.3)

    return draw


def _margins(chance: random.Random) -> tuple[float, float]:
    """Reward margins: none before, and spread around a gain after."""
    return 0.0, chance.gauss(0.5, 1)


def _from_ties(chance: random.Random) -> tuple[float, float]:
    """Reward accuracy: a model that is its own reference, and one that is mostly right."""
    return 0.5, float(chance.random() < 0.8)


SHAPES: dict[str, tuple[str, Draw]] = {
    "exact match, +30 points of 40 changed": ("exact_match", _flips(0.35, 0.05)),
    "exact match, nothing of 20 changed": ("exact_match", _flips(0.1, 0.1)),
    "exact match, 2 of 100 changed": ("exact_match", _flips(0.02, 0.0)),
    "token F1, half changed": ("token_f1", _changed(0.5)),
    "token F1, a fifth changed": ("token_f1", _changed(0.2)),
    "ROUGE-L, three quarters changed": ("rouge_l", _changed(0.75)),
    "right format, most become right": ("format_valid", _flips(0.7, 0.02)),
    "ended by itself, most do": ("stop_rate", _flips(0.6, 0.05)),
    "length, even": ("answer_tokens", _lengths(0.4, 0.0)),
    "length, wide": ("answer_tokens", _lengths(1.2, 0.0)),
    "length, one of ten runs on": ("answer_tokens", _lengths(0.4, 0.1)),
    "chosen answer likelier": ("chosen_likelier", _flips(0.3, 0.1)),
    "reward accuracy": ("reward_accuracy", _from_ties),
    "reward margin": ("reward_margin", _margins),
    "general questions, a fifth forgotten": ("regression", _flips(0.02, 0.2)),
}


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/intervals.json"))
    given = parser.parse_args()
    print(f"{'':40}" + "".join(f"{rows:>14} rows" for rows in ROWS))
    shapes = {title: (name, _of_rows(name, draw)) for title, (name, draw) in SHAPES.items()}
    shapes |= {
        "held-out loss": ("eval_loss", _of_losses(factor=False)),
        "held-out perplexity": ("perplexity", _of_losses(factor=True)),
    }
    table = []
    for title, (name, make) in shapes.items():
        cells = {rows: _coverage(make, rows, given.results) for rows in ROWS}
        shown = "".join(f"{100 * held:9.1f} % ({100 * rough:3.0f})" for held, rough in cells.values())
        print(f"{title:40}{shown}", flush=True)
        covered = {f"{rows}": round(held, 4) for rows, (held, _) in cells.items()}
        rough = {f"{rows}": round(share, 4) for rows, (_, share) in cells.items()}
        table.append({"shape": title, "measure": name, "covered_by_rows": covered, "rough_by_rows": rough})
    lacking = set(MEASURES) - {name for name, _ in shapes.values()}
    if lacking:
        raise SystemExit(f"no shape of {', '.join(sorted(lacking))}")
    given.out.write_text(json.dumps({"results": given.results, "level": 0.95, "shapes": table}, indent=1) + "\n")


# (low, true change, high, rough) of one made-up result of so many rows; None where there is no interval.
Made = Callable[[random.Random, int], tuple[float, float, float, bool] | None]


def _of_rows(name: str, draw: Draw) -> Made:
    measure, chance = MEASURES[name], random.Random(1)  # noqa: S311 -- not for secrets
    many = [draw(chance) for _ in range(200_000)]
    true = sum(after - before for before, after in many) / len(many)

    def make(chance: random.Random, rows: int) -> tuple[float, float, float, bool] | None:
        before, after = zip(*(draw(chance) for _ in range(rows)), strict=True)
        interval = row_interval(measure, before, after)
        return None if interval is None else (interval.low, true, interval.high, interval.is_rough)

    return make


def _of_losses(*, factor: bool) -> Made:
    """Micro-batches whose loss falls from 2.5 by 0.8 nats a token, with a gain of each batch that varies by 0.4."""

    def make(chance: random.Random, rows: int) -> tuple[float, float, float, bool] | None:
        batches = []
        for _ in range(rows):
            tokens = chance.randint(16, 64)
            before = chance.lognormvariate(math.log(2.5), 0.3)
            batches.append(PairedBatch(before * tokens, (before - chance.gauss(0.8, 0.4)) * tokens, tokens))
        interval = change_interval(batches)
        if interval is None:
            return None
        ends = (interval.low, -0.8, interval.high)
        low, true, high = map(math.exp, ends) if factor else ends
        return low, true, high, interval.is_rough

    return make


def _coverage(make: Made, rows: int, results: int) -> tuple[float, float]:
    """(share of intervals that hold the true change, share of intervals that are rough)."""
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    held = rough = 0
    for _ in range(results):
        made = make(chance, rows)
        if made is not None:
            low, true, high, is_rough = made
            held += low <= true <= high
            rough += is_rough
    return held / results, rough / results


if __name__ == "__main__":
    main()
