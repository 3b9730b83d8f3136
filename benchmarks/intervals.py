"""How often the 95 % intervals of fastft hold the true change, for many shapes of results and numbers of rows.

    python -m benchmarks.intervals [--results 4000]

One line a shape: the share of made-up results whose interval holds the true change, by number of rows, and the share
whose interval says that it is rough. Minutes on one core; tests/runs/test_measured.py has a short form.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

from fastft.recipe.measures import MEASURES, Measure
from fastft.runs.measured import row_interval

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


SHAPES: dict[str, tuple[str, Draw]] = {
    "exact match, +30 points of 40 changed": ("exact_match", _flips(0.35, 0.05)),
    "exact match, nothing of 20 changed": ("exact_match", _flips(0.1, 0.1)),
    "exact match, 2 of 100 changed": ("exact_match", _flips(0.02, 0.0)),
    "token F1, half changed": ("token_f1", _changed(0.5)),
    "token F1, a fifth changed": ("token_f1", _changed(0.2)),
    "length, even": ("answer_tokens", _lengths(0.4, 0.0)),
    "length, wide": ("answer_tokens", _lengths(1.2, 0.0)),
    "length, one of ten runs on": ("answer_tokens", _lengths(0.4, 0.1)),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=int, default=4000)
    results = parser.parse_args().results
    print(f"{'':40}" + "".join(f"{rows:>14} rows" for rows in ROWS))
    for title, (name, draw) in SHAPES.items():
        cells = [_coverage(MEASURES[name], draw, rows, results) for rows in ROWS]
        print(f"{title:40}" + "".join(f"{100 * held:9.1f} % ({100 * rough:3.0f})" for held, rough in cells), flush=True)


def _coverage(measure: Measure, draw: Draw, rows: int, results: int) -> tuple[float, float]:
    """(share of intervals that hold the true change, share of intervals that are rough)."""
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    many = [draw(chance) for _ in range(200_000)]
    true = sum(after - before for before, after in many) / len(many)
    held = rough = 0
    for _ in range(results):
        before, after = zip(*(draw(chance) for _ in range(rows)), strict=True)
        interval = row_interval(measure, before, after)
        held += interval is not None and interval.low <= true <= interval.high
        rough += interval is not None and interval.is_rough
    return held / results, rough / results


if __name__ == "__main__":
    main()
