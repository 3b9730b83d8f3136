"""Values of single answers, and the conditions on measures."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastft.recipe.conditions import Condition, parse_condition
from fastft.recipe.measures import MEASURES, Answered, longest_common


def value(name: str, answer: str, reference: str) -> float | None:
    of_row = MEASURES[name].of_row
    assert of_row is not None
    return of_row(Answered(answer, reference))


@pytest.mark.parametrize(
    ("name", "answer", "reference", "expected"),
    [
        ("token_f1", "The cat sat", "the cat", 0.8),
        ("token_f1", "cat the", "the cat", 1.0),
        ("token_f1", "", "", 1.0),
        ("token_f1", "", "cat", 0.0),
        ("rouge_l", "cat the", "the cat", 0.5),
        ("rouge_l", "police kill the gunman", "police killed the gunman", 0.75),  # of Lin's paper
        ("exact_match", "a", "a", 1.0),
        ("exact_match", "a", "A", 0.0),
    ],
)
def test_an_answer_has_the_value_that_its_paper_says(name: str, answer: str, reference: str, expected: float) -> None:
    assert value(name, answer, reference) == pytest.approx(expected)


def plain_longest_common(one: str, other: str) -> int:
    """The table of the textbook."""
    row = [0] * (len(other) + 1)
    for a in one:
        last = row[:]
        for place, b in enumerate(other, 1):
            row[place] = last[place - 1] + 1 if a == b else max(last[place], row[place - 1])
    return row[-1]


@given(st.text("abc", max_size=30), st.text("abc", max_size=30))
def test_the_longest_common_subsequence_by_bits_is_that_of_the_table(one: str, other: str) -> None:
    assert longest_common(one, other) == plain_longest_common(one, other)


def test_a_long_text_of_equal_words_is_counted() -> None:
    assert longest_common(["a"] * 5000, ["a"] * 4000) == 4000


@pytest.mark.parametrize("text", ["exact_match < 0.8", "  regression_drop>5e-2", "perplexity_rise >= .5"])
def test_a_condition_is_a_measure_an_operator_and_a_number(text: str) -> None:
    assert isinstance(parse_condition(text), Condition)


@pytest.mark.parametrize(
    ("text", "wrong", "instead"),
    [
        ("exact_match = 0.8", "is no condition", "write a measure, one of < <= > >=, and a number"),
        ("exact_mach < 0.8", "names no measure", 'did you mean "exact_match"?'),
        ("zzz < 1", "names no measure", "known are eval_loss, perplexity"),
    ],
)
def test_another_text_is_refused_with_what_to_write(text: str, wrong: str, instead: str) -> None:
    made = parse_condition(text)

    assert isinstance(made, tuple)
    assert made[0] == wrong
    assert made[1].startswith(instead)


def test_a_change_without_a_value_before_is_not_known() -> None:
    condition = parse_condition("token_f1_drop > 0.1")

    assert isinstance(condition, Condition)
    assert condition.is_met(None, 0.5) is None
    assert condition.is_met(0.7, 0.5) is True
    assert condition.is_met(0.5, 0.7) is False


def test_titles_and_names_are_each_one_measure() -> None:
    titles = [measure.title for measure in MEASURES.values()]

    assert len(set(titles)) == len(titles)
    assert not any(difflib.get_close_matches(name, [*MEASURES.keys() - {name}], cutoff=0.9) for name in MEASURES)
