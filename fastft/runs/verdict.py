"""Whether a run made the model better on its held-out rows, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fastft.runs.result import ExactMatch, PairedBatch, Result

Word = Literal["better", "worse", "cannot tell"]
# The quantile of the normal distribution for 95 %.
Z = 1.959964
# With fewer, Student's t is so wide that the interval says nothing.
FEWEST_BATCHES = 5


@dataclass(frozen=True)
class Difference:
    """The share of held-out answers that are right after training less the share before, with a 95 % interval.

    `gained`, `lost`: of `rows` answers, those that only the trained and only the untrained model gave right.
    """

    rows: int
    gained: int
    lost: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return (self.gained - self.lost) / self.rows

    @property
    def word(self) -> Word:
        """What the interval says: all of it above 0, all below, or 0 in it."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "cannot tell"

    @property
    def rows_that_would_tell(self) -> int | None:
        """How many rows would leave 0 out of the interval with the same shares; None where there is no difference."""
        if self.gained == self.lost:
            return None
        low, high = 1, 10**6
        while low < high:
            middle = (low + high) // 2
            scale = middle / self.rows
            tells = paired_difference(middle, self.gained * scale, self.lost * scale).word != "cannot tell"
            low, high = (low, middle) if tells else (middle + 1, high)
        return low


@dataclass(frozen=True)
class Verdict:
    """One word, and the sentence of figures behind it."""

    word: Word
    because: str

    def __str__(self) -> str:
        return f"{self.word.capitalize()}: {self.because}"


def paired_difference(rows: int, gained: float, lost: float) -> Difference:
    """The score interval for a difference of two shares of the same rows (T. Tango, Statistics in Medicine 17, 1998).

    Chosen by simulation: with a few changed answers it covers 93 to 97 %, where a bootstrap of so few rows covers less.
    With hardly any changed answer it is wider than it need be.
    """
    middle = (gained - lost) / rows

    def score(difference: float) -> float:
        """How many standard errors the counts lie above a true `difference`; falls as that rises."""
        a = 2 * rows
        b = -gained - lost + (2 * rows - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        lost_share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = rows * (2 * lost_share + difference * (1 - difference))
        above = gained - lost - rows * difference
        return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above)

    low = _crossing(score, -1.0, middle, Z)
    high = _crossing(score, middle, 1.0, -Z)
    return Difference(rows, round(gained), round(lost), low, high)


def _crossing(falling: Callable[[float], float], low: float, high: float, value: float) -> float:
    """Where a function that falls from `low` to `high` has `value`, to 1e-12."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > value else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class LossChange:
    """The held-out loss after training less the one before, with a 95 % interval; None: too few micro-batches."""

    before: float
    after: float
    interval: tuple[float, float] | None

    @property
    def word(self) -> Word:
        """What the interval says, or without one, the loss itself."""
        if not math.isfinite(self.after):
            return "worse"
        low, high = self.interval or (self.after - self.before,) * 2
        return "better" if high < 0 else "worse" if low > 0 else "cannot tell"

    def __str__(self) -> str:
        verb = "stayed" if self.after == self.before else "fell" if self.after < self.before else "rose"
        sentence = f"the held-out loss {verb} from {self.before:.4f} to {self.after:.4f}"
        if self.interval is None:
            return sentence
        low, high = self.interval
        return f"{sentence} (95 % interval of the change {low:+.4f} to {high:+.4f})"


def loss_change(result: Result) -> LossChange | None:
    """How the held-out loss changed; None where it was not measured before and after training."""
    loss = result.eval_loss
    if loss.before is None or loss.after is None:
        return None
    return LossChange(loss.before, loss.after, change_interval(result.eval_batches))


def change_interval(batches: Sequence[PairedBatch]) -> tuple[float, float] | None:
    """The 95 % interval of the change of a mean over tokens, from micro-batches before and after training.

    A ratio of sums over the same clusters: linearised, with Student's t (W. Cochran, Sampling Techniques, 1977,
    chapter 6). By simulation of micro-batches of 4 rows it covers 95 % where the changes of rows are bell-shaped, 94 %
    in 40 and 93 % in 13 micro-batches where they are exponential, and 83 to 91 % where a few rows make most of it.
    None for fewer than FEWEST_BATCHES, or where a loss is no number.
    """
    count, tokens = len(batches), sum(batch.tokens for batch in batches)
    changes = [batch.after - batch.before for batch in batches]
    if count < FEWEST_BATCHES or not tokens or not all(map(math.isfinite, changes)):
        return None
    change = sum(changes) / tokens
    rest = (value - change * batch.tokens for value, batch in zip(changes, batches, strict=True))
    error = math.sqrt(count / (count - 1) * sum(value * value for value in rest)) / tokens
    margin = _student(count - 1) * error
    return change - margin, change + margin


def _student(freedom: int) -> float:
    """The quantile of Student's t for 95 %, from 4 degrees of freedom on to 0.001 (Abramowitz and Stegun, 26.7.5)."""
    z = Z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )


def match_difference(match: ExactMatch | None) -> Difference | None:
    """The paired difference of exact matches; None where the answers of both models are not kept."""
    if match is None or not match.answers or any(answer.before is None for answer in match.answers):
        return None
    gained = sum(answer.is_right and not answer.was_right for answer in match.answers)
    lost = sum(answer.was_right and not answer.is_right for answer in match.answers)
    return paired_difference(len(match.answers), gained, lost)


def judge(result: Result) -> Verdict:
    """The verdict on a finished run.

    Exact match decides where its interval leaves 0 out. Else the held-out loss decides, unless exact match points the
    other way.
    """
    difference, change = match_difference(result.exact_match), loss_change(result)
    by_loss: Word = "cannot tell" if change is None else change.word
    loss = [] if change is None else [f"{change}"]
    if difference is None:
        return Verdict(by_loss, " and ".join([*loss, *_counted(result.exact_match)]) or "nothing was held out")
    match = _in_words(difference)
    if difference.word != "cannot tell":
        return Verdict(difference.word, " and ".join([match, *loss]))
    against = difference.share < 0 if by_loss == "better" else difference.share > 0
    if by_loss == "cannot tell" or against:
        return Verdict("cannot tell", " and ".join([match, *loss]) + _would_tell(difference))
    return Verdict(by_loss, " and ".join([*loss, match]))


def _counted(match: ExactMatch | None) -> list[str]:
    if match is None or match.before is None:
        return []
    return [f"exact matches went from {match.before} to {match.after} of {match.rows}"]


def _in_words(difference: Difference) -> str:
    moved = f"moved by {100 * difference.share:+.0f} points" if difference.share else "is the same"
    interval = f"95 % interval of the change {100 * difference.low:+.0f} to {100 * difference.high:+.0f}"
    return f"exact match {moved} on {difference.rows} held-out rows ({interval})"


def _would_tell(difference: Difference) -> str:
    needed = difference.rows_that_would_tell
    return "" if needed is None else f"; with the same shares, {needed:,} rows would tell"
