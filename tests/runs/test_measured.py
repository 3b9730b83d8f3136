"""Measures before and after training: their values, their intervals and what these say."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastft.cli import app
from fastft.data.answer_format import AnswerFormat, wanted_format
from fastft.data.general import General, questions
from fastft.data.render import Prompt
from fastft.errors import MeasureError, RecipeError, Where
from fastft.recipe.loader import load
from fastft.recipe.measures import MEASURES, Measure
from fastft.recipe.model import EvalSection
from fastft.report.figures import change_of, value_of, verdict_of
from fastft.runs.directory import create_run_dir
from fastft.runs.held_out import Answers, Evaluation
from fastft.runs.intervals import Interval, mean_interval, share_interval
from fastft.runs.measured import compared, refuse_failed, refuse_unmeasured, row_interval, with_measures
from fastft.runs.result import BeforeAfter, MeasuredRows, PairedBatch, Trained
from fastft.runs.verdict import judge
from tests.golden import RECIPES
from tests.report.made_up import RESULT

QUICKSTART = next(path for path in RECIPES if path.stem == "quickstart")
Draw = Callable[[random.Random], tuple[float, float]]


def f1(chance: random.Random) -> tuple[float, float]:
    """Token F1 or ROUGE-L of one row: half of the answers change."""
    before = chance.betavariate(2, 5)
    return before, before if chance.random() < 0.5 else chance.betavariate(5, 2)


def yes_no(chance: random.Random) -> tuple[float, float]:
    draw = chance.random()
    return float(draw < 0.3), float(draw < 0.2 or draw > 0.7)


def tokens(chance: random.Random) -> tuple[float, float]:
    """Lengths of answers: a model that runs on, and one that ends."""
    return min(chance.lognormvariate(3, 0.8), 128), chance.lognormvariate(2.8, 0.3)


def from_ties(chance: random.Random) -> tuple[float, float]:
    """Reward accuracy: a model that is its own reference, and one that is mostly right."""
    return 0.5, float(chance.random() < 0.8)


def margins(chance: random.Random) -> tuple[float, float]:
    """Reward margins: none before, and spread around a gain after."""
    return 0.0, chance.gauss(0.5, 1)


# benchmarks/intervals.py has more shapes and numbers of rows.
SHAPES: dict[str, Draw] = {
    "exact_match": yes_no,
    "token_f1": f1,
    "rouge_l": f1,
    "format_valid": yes_no,
    "stop_rate": yes_no,
    "answer_tokens": tokens,
    "chosen_likelier": yes_no,
    "reward_accuracy": from_ties,
    "reward_margin": margins,
    "regression": yes_no,
}


def test_each_measure_of_rows_has_a_simulation() -> None:
    assert set(SHAPES) == set(MEASURES) - {"eval_loss", "perplexity"}, "those are of micro-batches: test_verdict.py"


@pytest.mark.parametrize("draw", list(dict.fromkeys(SHAPES.values())), ids=lambda draw: draw.__name__)
def test_the_interval_of_a_measure_covers_the_true_change_in_950_of_1000_made_up_results(draw: Draw) -> None:
    measure = MEASURES[next(name for name, shape in SHAPES.items() if shape is draw)]
    chance = random.Random(1)  # noqa: S311 -- not for secrets
    pairs = [draw(chance) for _ in range(100_000)]
    true = sum(after - before for before, after in pairs) / len(pairs)
    covered = 0
    for _ in range(1000):
        before, after = zip(*(draw(chance) for _ in range(50)), strict=True)
        interval = row_interval(measure, before, after)
        assert interval is not None
        covered += interval.low <= true <= interval.high

    assert 930 <= covered <= 970


def test_an_interval_of_few_rows_is_none_and_one_that_few_rows_make_is_rough() -> None:
    assert mean_interval([1.0, 2.0, 3.0, 4.0]) is None
    assert share_interval([0.1] * 4) is None
    assert mean_interval([1.0, 2.0, 3.0, float("nan"), 1.0]) is None
    made = mean_interval([0.0] * 49 + [100.0])
    assert made is not None
    assert made.is_rough
    some = share_interval([0.0] * 48 + [0.5, 0.5])
    assert some is not None
    assert some.is_rough
    assert mean_interval([2.0] * 20) == Interval(2.0, 2.0, is_rough=True)


def test_the_transformation_of_skewed_rows_is_that_of_hall() -> None:
    """Solved the other way: T + lean T^2 / 3 + lean^2 T^3 / 27 + lean / 6 at both ends is the quantile of Student."""
    values = [chance**3 for chance in range(12)]
    mean, count = sum(values) / 12, 12
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    lean = sum((value - mean) ** 3 for value in values) / count / spread**3 / math.sqrt(count)

    made = mean_interval([float(value) for value in values])

    assert made is not None
    for end, quantile in ((made.low, 2.201), (made.high, -2.201)):  # Student, 11 degrees of freedom
        t = (mean - end) / (spread / math.sqrt(count))
        assert t + lean * t**2 / 3 + lean**2 * t**3 / 27 + lean / 6 == pytest.approx(quantile, abs=0.002)


GENERAL = General(tuple(Prompt("user: ?", [1], each.accept, Where("x")) for each in questions()))


def trained(before: Answers | None, after: Answers | None, *general: Answers | None) -> Trained:
    old, new = general or (None, None)
    return Trained(True, 1, None, Evaluation(None, before, general=old), Evaluation(None, after, general=new), 0, None)


def answers(*texts: str, stopped: bool = True) -> Answers:
    count = len(texts)
    return Answers(texts, 0, tuple(len(text.split()) for text in texts), (stopped,) * count)


def measured(one: Trained, *references: str, **section: object) -> dict[str, MeasuredRows]:
    prompts = [Prompt("", [], reference, Where("x")) for reference in references]
    made = with_measures(RESULT, one, prompts, General(), wanted_format(EvalSection.model_validate(section), Path()))
    return {rows.name: rows for rows in made.measures}


def test_each_answer_counts_for_each_measure() -> None:
    one = trained(answers("no", "a b c", stopped=False), answers("<think>hm</think> yes", "a c"))

    made = measured(one, "yes", "a b c d", answer_pattern="yes|no")

    assert made["exact_match"] == MeasuredRows("exact_match", (0.0, 0.0), (1.0, 0.0))
    assert made["token_f1"].after == (1.0, pytest.approx(2 * 2 / 6))
    assert made["rouge_l"].before == (0.0, pytest.approx(2 * 3 / 7))
    assert made["stop_rate"] == MeasuredRows("stop_rate", (0.0, 0.0), (1.0, 1.0))
    assert made["answer_tokens"].after == (2.0, 2.0)
    assert made["format_valid"] == MeasuredRows("format_valid", (1.0, 0.0), (1.0, 0.0))
    assert "regression" not in made


def test_answers_of_an_older_run_lack_their_lengths_and_nothing_is_made_up() -> None:
    made = measured(trained(Answers(("a",), 0), answers("a")), "a")

    assert made["stop_rate"] == MeasuredRows("stop_rate", (), (1.0,))
    assert measured(trained(None, Answers(("a",), 0)), "a").keys() == {"exact_match", "token_f1", "rouge_l"}


def general_result(before: str, after: str) -> tuple[dict[str, MeasuredRows], str]:
    old, new = (answers(*[text] * len(questions())) for text in (before, after))
    made = with_measures(
        RESULT, trained(answers("a"), answers("a"), old, new), [GENERAL.prompts[0]], GENERAL, AnswerFormat()
    )
    return {rows.name: rows for rows in made.measures}, made.general_missing


def test_what_a_model_forgets_is_counted_and_said_in_the_first_line() -> None:
    made, missing = general_result("I am sorry, I cannot. Paris", "type: broken")

    assert missing == ""
    assert sum(made["regression"].before) > 10
    assert sum(made["regression"].after) == 0
    first = str(judge(dataclasses.replace(RESULT, measures=(made["regression"],))))
    assert first.startswith("Better: the held-out loss fell from 3.0000 to 0.2500; right general questions fell from ")


def test_answers_that_end_in_their_reasoning_are_not_counted_and_the_page_says_why() -> None:
    made, missing = general_result("<think>Okay, so not", "Paris")

    assert "regression" not in made
    assert missing.startswith("100 of 100 answers before training still reason after 8 tokens")
    assert general_result("<think></think>Paris", "Paris")[1] == ""


def test_a_template_that_refused_the_questions_is_kept_as_the_reason() -> None:
    one = trained(answers("a"), answers("a"))

    made = with_measures(RESULT, one, [GENERAL.prompts[0]], General(missing="it refuses"), AnswerFormat())

    assert (made.general, made.general_missing) == ((), "it refuses")


def shown(measure: Measure, before: list[float], after: list[float]) -> list[str]:
    (loss, _, one) = compared(
        dataclasses.replace(RESULT, measures=(MeasuredRows(measure.name, tuple(before), tuple(after)),))
    )
    assert loss.measure.name == "eval_loss"
    return [value_of(one, one.before), value_of(one, one.after), change_of(one), verdict_of(one)]


def test_a_share_is_shown_in_percent_and_its_change_in_points() -> None:
    assert shown(MEASURES["exact_match"], [0.0] * 50, [1.0] * 49 + [0.0]) == [
        "0.0 %",
        "98.0 %",
        "+98.0 (+83.9 to +99.6)",
        "better",
    ]
    assert shown(MEASURES["regression"], [1.0] * 30 + [0.0] * 20, [0.0] * 50)[3] == "worse"


def test_a_length_is_more_or_less_and_never_better() -> None:
    assert shown(MEASURES["answer_tokens"], [20.0, 21, 22, 23, 24] * 4, [5.0, 6, 7, 8, 8] * 4)[3] == "less"


def test_an_interval_with_0_in_it_says_how_many_rows_would_tell() -> None:
    words = shown(MEASURES["exact_match"], [1.0] + [0.0] * 49, [0.0, 1.0, 1.0] + [0.0] * 47)[3]

    assert words.startswith("cannot tell; ")
    assert words.endswith(" rows would")


def test_perplexity_is_the_exponential_of_the_loss_and_changes_by_a_factor() -> None:
    batches = tuple(PairedBatch(30.0 + number % 3, 10.0 + number % 2, 10) for number in range(20))
    result = dataclasses.replace(RESULT, eval_loss=BeforeAfter(3.1, 1.05), eval_batches=batches)

    loss, perplexity = compared(result)

    assert loss.interval is not None
    assert perplexity.interval is not None
    assert perplexity.interval.high == pytest.approx(math.exp(loss.interval.high))
    assert (loss.word, perplexity.word) == ("better", "better")
    assert change_of(perplexity).startswith("× 0.129 (")


def quickstart(tmp_path: Path, *conditions: str) -> Path:
    recipe, data = tmp_path / "q.toml", QUICKSTART.parent / "data"
    text = QUICKSTART.read_text(encoding="utf-8").replace('"data/', f'"{data}/')
    recipe.write_text(
        text.replace("[eval]", f"[eval]\nfail_if = {list(conditions)}".replace("'", '"')), encoding="utf-8"
    )
    return recipe


RESULT_OF_Q = dataclasses.replace(RESULT, measures=(MeasuredRows("exact_match", (0.0,) * 10, (1.0,) * 7 + (0.0,) * 3),))


@pytest.mark.parametrize(
    ("condition", "fails"),
    [
        ("exact_match < 0.8", True),
        ("exact_match < 0.7", False),
        ("exact_match <= 0.7", True),
        ("exact_match_rise < 0.8", True),
        ("exact_match_drop > 0.05", False),
        ("eval_loss > 0.2", True),
        ("eval_loss_drop < 3", True),
        ("perplexity >= 2", False),
        ("regression_drop > 0.05", True),  # not measured: no reason to pass
    ],
)
def test_a_condition_that_is_met_or_not_measured_fails(tmp_path: Path, condition: str, fails: bool) -> None:
    loaded = load(quickstart(tmp_path, condition))

    if not fails:
        refuse_failed(loaded, RESULT_OF_Q)
        return
    with pytest.raises(MeasureError, match=r"q\.toml:\d+: eval\.fail_if: ") as caught:
        refuse_failed(loaded, RESULT_OF_Q)
    assert caught.value.exit_code == 6


def test_no_number_meets_every_condition(tmp_path: Path) -> None:
    broken = dataclasses.replace(RESULT, eval_loss=BeforeAfter(3.0, float("nan")))

    with pytest.raises(MeasureError):
        refuse_failed(load(quickstart(tmp_path, "eval_loss > 100")), broken)


def test_a_condition_that_the_template_rules_out_is_refused_before_training(tmp_path: Path) -> None:
    refuse_unmeasured(load(quickstart(tmp_path, "exact_match < 0.8")), "regression", "the template refuses")
    with pytest.raises(RecipeError, match=r"cannot be checked: the template refuses .*; remove the condition"):
        refuse_unmeasured(load(quickstart(tmp_path, "regression_drop > 0.1")), "regression", "the template refuses")


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_of_a_run_that_meets_a_condition_fails_after_its_table(tmp_path: Path, as_json: bool) -> None:
    recipe = quickstart(tmp_path, "exact_match < 0.8")
    create_run_dir(tmp_path / "runs", load(recipe)).write(RESULT_OF_Q)
    words = ["run", str(recipe), "--resume", "", "--runs-dir", str(tmp_path / "runs"), *(["--json"] if as_json else [])]

    done = CliRunner().invoke(app, words)

    assert isinstance(done.exception, MeasureError)
    assert ("Better" in done.stdout) != as_json, "one JSON value alone, which cli.main prints"
