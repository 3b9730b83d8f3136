"""What each answer of a run counts, and each measure before and after training with its interval and its word."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastft.data.answer_format import AnswerFormat, valid_answers
from fastft.data.content import final_text, is_in_thought
from fastft.data.general import GENERAL_TOKENS, General, questions
from fastft.data.render import Prompt
from fastft.errors import MeasureError, Problem, RecipeError
from fastft.recipe.conditions import Condition, parse_condition
from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.measures import MEASURES, Answered, Measure
from fastft.runs.held_out import Answers
from fastft.runs.intervals import Interval, change_interval, mean_interval, paired_difference, share_interval
from fastft.runs.result import MeasuredRows, Result, ShownAnswer, Trained

# With more answers that end in their reasoning, a count of right ones says how long a model reasons, not what it knows.
MOST_REASONING = 0.1
# Rows that would tell are not guessed beyond this.
MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class Compared:
    """One measure before and after; `interval` is that of after - before, over `rows` rows or micro-batches.

    Of perplexity, it is that of the factor after / before.
    """

    measure: Measure
    before: float | None
    after: float
    interval: Interval | None
    rows: int

    @property
    def difference(self) -> float | None:
        return None if self.before is None else self.after - self.before

    @property
    def word(self) -> str:
        """ "better", "worse" or "cannot tell"; of a measure without a direction "more" or "less"."""
        middle = 1.0 if self.measure.unit == "perplexity" else 0.0
        if self.interval is None or (self.interval.low <= middle <= self.interval.high):
            return "cannot tell"
        rose = self.interval.low > middle
        if self.measure.better is None:
            return "more" if rose else "less"
        return "better" if rose == (self.measure.better == "higher") else "worse"

    @property
    def rows_that_would_tell(self) -> int | None:
        """Rows with which the interval would leave 0 out; None where it does, or never would."""
        if self.word != "cannot tell" or self.interval is None or not self.difference:
            return None
        if self.measure.unit == "perplexity":
            return None
        half = (self.interval.high - self.interval.low) / 2
        needed = math.ceil(self.rows * max(1.0, half / abs(self.difference)) ** 2) + 1
        return needed if needed <= MOST_ROWS else None


def with_measures(
    result: Result, trained: Trained, prompts: Sequence[Prompt], general: General, wanted: AnswerFormat
) -> Result:
    """`result` with the value of each held-out row for every measure of answers and of preferences."""
    judged, earlier = trained.after.judged, trained.before.judged
    if judged:
        of_rows = tuple(MeasuredRows(name, earlier.get(name, ()), values) for name, values in judged.items())
        result = dataclasses.replace(result, measures=of_rows)
    before, after = trained.before.answers, trained.after.answers
    if after is None:
        return result
    references = [prompt.reference for prompt in prompts]
    old = None if before is None else _answered(references, before, wanted)
    new = _answered(references, after, wanted)
    rows = [made for measure in MEASURES.values() if (made := _rows(measure, old, new)) is not None]
    shown, missing = _general(trained, general)
    if shown and not missing:
        then = [one.is_right(each.before or "") for one, each in zip(questions(), shown, strict=True)]
        now = [one.is_right(each.after) for one, each in zip(questions(), shown, strict=True)]
        known = tuple(map(float, then)) if trained.before.general else ()
        rows.append(MeasuredRows("regression", known, tuple(map(float, now))))
    measures = (*result.measures, *rows)
    return dataclasses.replace(result, measures=measures, general=shown, general_missing=missing)


def _general(trained: Trained, general: General) -> tuple[tuple[ShownAnswer, ...], str]:
    """(the answers to the general questions; why there are none, or why they say nothing)."""
    then, now = trained.before.general, trained.after.general
    if now is None:
        return (), general.missing
    asked = questions()
    olds = [None] * len(asked) if then is None else then.texts
    pairs = zip(asked, olds, now.texts, strict=True)
    shown = tuple(ShownAnswer(one.ask, one.accept, before, after) for one, before, after in pairs)
    for when, texts in (("before", olds), ("after", now.texts)):
        reasoning = sum(
            text is not None and is_in_thought(prompt.text + text)
            for prompt, text in zip(general.prompts, texts, strict=True)
        )
        if reasoning > MOST_REASONING * len(asked):
            cut = f"{reasoning} of {len(asked)} answers {when} training still reason after {GENERAL_TOKENS} tokens"
            return shown, f"{cut}, so that they show nothing"
    return shown, ""


def _answered(references: Sequence[str], answers: Answers, wanted: AnswerFormat) -> list[Answered]:
    texts = [final_text(text) for text in answers.texts]
    valid: Sequence[bool | None] = [None] * len(texts)
    if wanted:
        valid = valid_answers(texts, wanted)
    tokens: Sequence[int | None] = answers.tokens or [None] * len(texts)
    stopped: Sequence[bool | None] = answers.stopped or [None] * len(texts)
    return [
        Answered(text, final_text(reference), count, stop, fits)
        for text, reference, count, stop, fits in zip(texts, references, tokens, stopped, valid, strict=True)
    ]


def _rows(measure: Measure, before: list[Answered] | None, after: list[Answered]) -> MeasuredRows | None:
    if measure.of_row is None:
        return None
    old, new = ([measure.of_row(row) for row in rows] for rows in (before or [], after))
    if any(value is None for value in new):
        return None
    known = [value for value in old if value is not None]
    kept = tuple(known) if len(known) == len(new) else ()
    return MeasuredRows(measure.name, kept, tuple(value for value in new if value is not None))


def compared(result: Result) -> list[Compared]:
    """Every measure of a run, in the order of the table."""
    made = []
    loss = result.eval_loss
    if loss.after is not None:
        interval, count = change_interval(result.eval_batches), len(result.eval_batches)
        made.append(Compared(MEASURES["eval_loss"], loss.before, loss.after, interval, count))
        if result.classification is None and not result.is_of_preferences:  # that of such a loss says nothing
            factor = None if interval is None else Interval(_exp(interval.low), _exp(interval.high), interval.is_rough)
            before = None if loss.before is None else _exp(loss.before)
            made.append(Compared(MEASURES["perplexity"], before, _exp(loss.after), factor, count))
    for rows in result.measures:
        if rows.name in MEASURES and rows.after:
            measure, before = MEASURES[rows.name], sum(rows.before) / len(rows.before) if rows.before else None
            interval = row_interval(measure, rows.before, rows.after) if rows.before else None
            made.append(Compared(measure, before, sum(rows.after) / len(rows.after), interval, len(rows.after)))
    return made


def row_interval(measure: Measure, before: Sequence[float], after: Sequence[float]) -> Interval | None:
    """The interval of the mean difference of the same rows: Tango's of yes and no, else by the unit of the measure."""
    changes = [new - old for old, new in zip(before, after, strict=True)]
    if measure.unit != "share":
        return mean_interval(changes)
    if all(value in (0.0, 1.0) for value in (*before, *after)):
        difference = paired_difference(len(changes), changes.count(1.0), changes.count(-1.0))
        return Interval(difference.low, difference.high)
    return share_interval(changes)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def refuse_failed(loaded: LoadedRecipe, result: Result) -> None:
    """Stop with every condition of eval.fail_if that a finished run meets.

    Raises:
        MeasureError: one is met, or cannot be checked because its measure is missing.
    """
    found = {each.measure.name: each for each in compared(result)}
    problems = []
    for text in loaded.recipe.eval.fail_if:
        condition = parse_condition(text)
        if isinstance(condition, Condition) and (wrong := _failure(condition, found.get(condition.measure))):
            instead = "the weights are kept; train differently, or change the condition"
            problems.append(Problem(loaded.where("eval.fail_if"), "eval.fail_if", wrong, instead, condition.text))
    if problems:
        raise MeasureError(problems)


def refuse_unmeasured(loaded: LoadedRecipe, measure: str, why: str) -> None:
    """Stop before training where a condition of eval.fail_if needs a measure that the run cannot have.

    Raises:
        RecipeError: there is such a condition.
    """
    for text in loaded.recipe.eval.fail_if:
        condition = parse_condition(text)
        if isinstance(condition, Condition) and condition.measure == measure:
            where, instead = loaded.where("eval.fail_if"), "remove the condition"
            raise RecipeError(Problem(where, "eval.fail_if", f"cannot be checked: {why}", instead, condition.text))


def _failure(condition: Condition, one: Compared | None) -> str | None:
    met = None if one is None else condition.is_met(one.before, one.after)
    if one is None or met is None:
        return f"{condition.measure}{condition.change} was not measured"
    before = "unknown" if one.before is None else f"{one.before:.4g}"
    return f"is met: {one.measure.title} is {one.after:.4g} after training, {before} before" if met else None
