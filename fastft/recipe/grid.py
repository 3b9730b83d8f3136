"""What `fastft sweep` tries: `--set key=v1,v2` and `--set key=low..high` as the overrides of each run."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastft.errors import Problem, UsageError, Where

# More runs than anybody waits for are a slip of the pen.
MOST_RUNS = 1000
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")


@dataclass(frozen=True)
class Axis:
    """One key with all values that it takes, or with a range, from which they are drawn evenly in their logarithm."""

    key: str
    values: tuple[str, ...]
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    def draw(self, chance: random.Random) -> str:
        """A value at random."""
        if self.values:
            return chance.choice(self.values)
        drawn = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        return f"{round(drawn)}" if self.whole else f"{drawn:.3g}"


def axes_of(overrides: Sequence[str]) -> list[Axis]:
    """The keys of `--set` texts with their values; one value is an axis too.

    Raises:
        UsageError: a range is empty or not above 0, or no key has more than one value.
    """
    axes = [_axis(text) for text in overrides]
    if not any(len(axis.values) != 1 for axis in axes):
        instead = "write --set train.learning_rate=1e-4,3e-4,1e-3"
        raise UsageError(Problem(Where("--set"), "", "gives no key several values", instead))
    return axes


def _axis(text: str) -> Axis:
    key, _, raw = text.partition("=")
    values = split_values(raw)
    found = _RANGE.fullmatch(raw.strip())
    if found is None:
        doubled = next((value for value in values if values.count(value) > 1), None)
        if doubled is not None or not all(values):
            wrong = f"has {doubled} twice" if doubled else "has an empty value"
            raise UsageError(Problem(Where(f"--set {text}"), key, wrong, "write each value once"))
        return Axis(key.strip(), values)
    low, high = float(found[1]), float(found[2])
    if not 0 < low < high:
        wrong = "is no range of numbers above 0"
        raise UsageError(Problem(Where(f"--set {text}"), key, wrong, "write the smaller number first: 1e-5..1e-3"))
    return Axis(key.strip(), (), low, high, whole=all(re.fullmatch(r"\d+", end) for end in found.groups()))


def split_values(raw: str) -> tuple[str, ...]:
    """The parts of a text between its commas, but those in brackets and quotes."""
    parts, depth, quote, last = [], 0, "", 0
    for place, letter in enumerate(raw):
        if quote:
            quote = "" if letter == quote and raw[place - 1] != "\\" else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(raw[last:place])
            last = place + 1
    return tuple(part.strip() for part in [*parts, raw[last:]])


def trials_of(axes: Sequence[Axis], most: int | None, seed: int) -> list[tuple[str, ...]]:
    """The overrides of each run: the whole grid in its order, or `most` of it at random.

    With a range, `most` draws of all axes. The same `seed` gives the same runs.

    Raises:
        UsageError: a range without `most`, or too many runs.
    """
    ranges = [axis for axis in axes if not axis.values]
    chance = random.Random(seed)  # noqa: S311 -- not for secrets
    if ranges:
        if most is None:
            wrong, instead = "is a range, which has no end of values", "say how many runs with --max-runs"
            raise UsageError(Problem(Where(f"--set {ranges[0].key}"), ranges[0].key, wrong, instead))
        return _drawn(axes, _bounded(most), chance)
    count = math.prod(len(axis.values) for axis in axes)
    if most is None or most >= count:
        _bounded(count)
    chosen = range(count) if most is None or most >= count else sorted(chance.sample(range(count), _bounded(most)))
    wanted = set(chosen)
    combinations = itertools.product(*([f"{axis.key}={value}" for value in axis.values] for axis in axes))
    return [each for place, each in enumerate(itertools.islice(combinations, max(wanted) + 1)) if place in wanted]


def _drawn(axes: Sequence[Axis], count: int, chance: random.Random) -> list[tuple[str, ...]]:
    """`count` different draws, or as many as a hundred times that many tries give."""
    found: dict[tuple[str, ...], None] = {}
    for _ in range(100 * count):
        found[tuple(f"{axis.key}={axis.draw(chance)}" for axis in axes)] = None
        if len(found) == count:
            break
    return list(found)


def _bounded(count: int) -> int:
    if count > MOST_RUNS:
        wrong, instead = f"are {count:,} runs", f"say how many of them with --max-runs, at most {MOST_RUNS:,}"
        raise UsageError(Problem(Where("--set"), "", wrong, instead))
    return count
