from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fastft.recipe.model import DataSection

pytest.importorskip("datasketch", reason="near repeats need the hygiene extra")
from fastft.data.hygiene import Hygiene, Kind, examine

WORDS = [f"word{number}" for number in range(400)]


def sentence(source: random.Random, count: int = 40) -> str:
    return " ".join(source.choices(WORDS, k=count))


def report(folder: Path, rows: list[tuple[str, str]], held_out: list[tuple[str, str]] = [], **keys: Any) -> Hygiene:  # noqa: B006
    for name, entries in (("train.jsonl", rows), ("eval.jsonl", held_out)):
        lines = [json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in entries]
        (folder / name).write_text("".join(lines))
    data = DataSection(train="train.jsonl", eval="eval.jsonl" if held_out else None, **keys)
    return examine(data, folder)


def lines(found: Hygiene, kind: Kind) -> list[list[int | None]]:
    return [[where.line for where in finding.rows] for finding in found.findings if finding.kind == kind]


@pytest.fixture
def clean() -> list[tuple[str, str]]:
    source = random.Random(3)  # noqa: S311 -- the same rows each time
    return [(sentence(source), sentence(source)) for _ in range(100)]


def test_clean_rows_have_no_findings(tmp_path: Path, clean: list[tuple[str, str]]) -> None:
    found = report(tmp_path, clean[:80], clean[80:])
    assert found.findings == ()
    assert (found.rows, found.evaluation_rows, found.labels) == (80, 20, {})
    assert found.prompt_diversity == 1.0


def test_exact_repeats_are_grouped_by_row_number(tmp_path: Path, clean: list[tuple[str, str]]) -> None:
    found = report(tmp_path, [*clean, clean[4], clean[4], clean[9]])
    assert lines(found, "exact_repeats") == [[5, 101, 102], [10, 103]]
    assert found.count("exact_repeats") == 3
    assert lines(found, "near_repeats") == []


def test_near_repeats_are_found_and_nothing_else(tmp_path: Path, clean: list[tuple[str, str]]) -> None:
    source = random.Random(5)  # noqa: S311 -- the same rows each time
    changed = []
    for prompt, answer in clean[:50]:
        words = answer.split()
        words[source.randrange(len(words))] = "changed"
        changed.append((prompt.capitalize() + "!", " ".join(words)))
    found = {tuple(rows) for rows in lines(report(tmp_path, [*clean, *changed]), "near_repeats")}
    planted = {(number + 1, number + 101) for number in range(50)}
    # At least 95 % of the planted pairs and at most 10 % others (MinHash estimates; here it finds all and no others).
    assert len(found & planted) >= 48
    assert len(found - planted) <= 4


def test_leaks_of_rows_near_rows_and_questions_are_different_findings(
    tmp_path: Path, clean: list[tuple[str, str]]
) -> None:
    held_out = [
        clean[3],
        (clean[7][0], "something else entirely"),
        (clean[8][0], clean[8][1] + " tail"),
        clean[99],
    ]
    found = report(tmp_path, clean[:90], held_out)
    assert lines(found, "leaked_rows") == [[9, 3], [4, 1]]
    assert lines(found, "leaked_prompts") == [[8, 2], [9, 3]]


def test_different_answers_to_one_prompt_are_contradictions(tmp_path: Path, clean: list[tuple[str, str]]) -> None:
    found = report(tmp_path, [*clean, (clean[2][0], "No, never."), (clean[3][0], clean[3][1].upper())])
    assert lines(found, "contradictions") == [[3, 101]]


def test_few_different_answers_are_labels_with_their_balance(tmp_path: Path, clean: list[tuple[str, str]]) -> None:
    rows = [(prompt, "spam" if number < 90 else "ham") for number, (prompt, _) in enumerate(clean)]
    found = report(tmp_path, rows)
    assert found.labels == {"spam": 90, "ham": 10}
    assert lines(found, "repeated_answers") == []


def test_an_answer_that_many_rows_repeat_is_shown(tmp_path: Path, clean: list[tuple[str, str]]) -> None:
    rows = [
        (prompt, "I cannot help with that." if number < 12 else answer) for number, (prompt, answer) in enumerate(clean)
    ]
    found = report(tmp_path, rows)
    assert lines(found, "repeated_answers") == [list(range(1, 13))]


def test_rows_far_longer_than_the_others_are_outliers(tmp_path: Path, clean: list[tuple[str, str]]) -> None:
    found = report(tmp_path, [*clean, ("a question", "long " * 2000)])
    assert lines(found, "outliers") == [[101]]


def test_questions_that_begin_alike_lower_the_diversity(tmp_path: Path, clean: list[tuple[str, str]]) -> None:
    found = report(tmp_path, [("Please tell me " + prompt, answer) for prompt, answer in clean])
    assert found.prompt_diversity == pytest.approx(0.01)
