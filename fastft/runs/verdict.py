"""Whether a run made the model better on its held-out rows, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastft.runs.intervals import Difference, Interval, Word, change_interval, paired_difference
from fastft.runs.measured import compared
from fastft.runs.result import ExactMatch, Result


@dataclass(frozen=True)
class Verdict:
    """One word, and the sentence of figures behind it."""

    word: Word
    because: str

    def __str__(self) -> str:
        return f"{self.word.capitalize()}: {self.because}"


@dataclass(frozen=True)
class LossChange:
    """The held-out loss after training less the one before, with a 95 % interval; None: too few micro-batches."""

    before: float
    after: float
    interval: Interval | None

    @property
    def word(self) -> Word:
        """What the interval says, or without one, the loss itself."""
        if not math.isfinite(self.after):
            return "worse"
        change = self.after - self.before
        low, high = (change, change) if self.interval is None else (self.interval.low, self.interval.high)
        return "better" if high < 0 else "worse" if low > 0 else "cannot tell"

    def __str__(self) -> str:
        verb = "stayed" if self.after == self.before else "fell" if self.after < self.before else "rose"
        sentence = f"the held-out loss {verb} from {self.before:.4f} to {self.after:.4f}"
        if self.interval is None:
            return sentence
        rough = ", perhaps wider: a few rows make most of it" if self.interval.is_rough else ""
        return f"{sentence} (95 % interval of the change {self.interval.low:+.4f} to {self.interval.high:+.4f}{rough})"


def loss_change(result: Result) -> LossChange | None:
    """How the held-out loss changed; None where it was not measured before and after training."""
    loss = result.eval_loss
    if loss.before is None or loss.after is None:
        return None
    return LossChange(loss.before, loss.after, change_interval(result.eval_batches))


def match_difference(match: ExactMatch | None) -> Difference | None:
    """The paired difference of exact matches; None where the answers of both models are not kept."""
    if match is None or not match.answers or any(answer.before is None for answer in match.answers):
        return None
    gained = sum(answer.is_right and not answer.was_right for answer in match.answers)
    lost = sum(answer.was_right and not answer.is_right for answer in match.answers)
    return paired_difference(len(match.answers), gained, lost)


def judge(result: Result) -> Verdict:
    """The verdict on a finished run, and what the model forgot.

    Exact match decides where its interval leaves 0 out. Else the held-out loss decides, unless exact match points the
    other way. General questions never decide: a model may be trained to forget.
    """
    verdict = _on_held_out_rows(result)
    general = next((each for each in compared(result) if each.measure.name == "regression"), None)
    if general is None or general.before is None or general.word != "worse":
        return verdict
    lost = f"; right general questions fell from {100 * general.before:.0f} % to {100 * general.after:.0f} %"
    return Verdict(verdict.word, verdict.because + lost)


def _on_held_out_rows(result: Result) -> Verdict:
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
