from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.data.prepare import Prepared, prepare
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import Where
from fastft.recipe.model import DataSection

pytest.importorskip("datasketch", reason="near repeats need the hygiene extra")
Locate = Callable[[str], Where]
WORDS = [f"word{number}" for number in range(400)]
Turns = list[dict[str, str]]


def chat(question: str, answer: str, system: str = "") -> Turns:
    lead = [{"role": "system", "content": system}] if system else []
    return [*lead, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def clean() -> list[Turns]:
    """Rows that all differ, under a system turn that is longer than they are."""
    source = random.Random(3)  # noqa: S311 -- the same rows each time
    system = " ".join(source.choices(WORDS, k=300))
    return [
        chat(" ".join(source.choices(WORDS, k=30)), " ".join(source.choices(WORDS, k=20)), system) for _ in range(300)
    ]


@pytest.fixture
def near(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> Callable[..., Prepared]:
    def prepared(rows: list[Turns], held_out: list[Turns] | None = None, limit: int = 9999) -> Prepared:
        for name, turns in (("train.jsonl", rows), ("eval.jsonl", held_out or [])):
            (tmp_path / name).write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
        data = DataSection(train="train.jsonl", eval="eval.jsonl" if held_out else None, deduplicate="near")
        return prepare(data, chatml, max_seq_length=limit, seed=7, recipe_dir=tmp_path, locate=locate)

    return prepared


def removed(made: Prepared) -> list[tuple[int | None, int | None]]:
    return [(row.line, first.line) for row, first in made.train.repeated]


def test_rows_that_differ_are_all_kept(near: Callable[..., Prepared], clean: list[Turns]) -> None:
    made = near(clean)
    assert (removed(made), len(made.train.rows)) == ([], 300)


def test_planted_near_repeats_are_left_out_and_the_first_row_stays(
    near: Callable[..., Prepared], clean: list[Turns]
) -> None:
    planted = []
    for _system, question, answer in clean[:40]:
        words = answer["content"].split()
        words[-1] = "other"
        planted.append(chat(question["content"].upper() + "!", " ".join(words), "Another system turn."))
    made = near([*clean, *planted, clean[7]])
    assert removed(made) == [*((301 + number, 1 + number) for number in range(40)), (341, 8)]
    assert [row.where.line for row in made.train.rows] == list(range(1, 301))
    assert removed(near([*clean, *planted, clean[7]])) == removed(made)


def test_rows_that_are_much_alike_are_kept(near: Callable[..., Prepared], clean: list[Turns]) -> None:
    """They share 36 of 60 runs of three words: the bands alone would match some of these 300 pairs."""
    alike = []
    for number, (_system, question, answer) in enumerate(clean):
        words = [*answer["content"].split()[:8], *(f"new{number}of{place}" for place in range(12))]
        alike.append(chat(question["content"], " ".join(words)))
    assert removed(near([*clean, *alike])) == []


def test_text_without_spaces_is_compared_by_its_characters(near: Callable[..., Prepared]) -> None:
    said = "今天天气很好我们一起去公园散步吧因为花都开了而且孩子们也很想去看看湖边的鸭子和天鹅"
    rows = [chat("写一句话", said), chat("写一句话", said[:-1] + "鸟"), chat("写一句话", said[::-1])]
    assert removed(near(rows)) == [(2, 1)]


def test_a_row_that_is_not_trained_hides_no_other(near: Callable[..., Prepared], clean: list[Turns]) -> None:
    _system, question, answer = clean[0]
    overlong = chat(question["content"], answer["content"], "long " * 500)
    made = near([overlong, chat(question["content"], answer["content"])], limit=1000)
    assert ([row.where.line for row in made.train.rows], removed(made)) == ([2], [])


def test_held_out_rows_are_not_compared(near: Callable[..., Prepared], clean: list[Turns]) -> None:
    made = near(clean[:2], [clean[2], chat(clean[0][1]["content"], clean[0][2]["content"])])
    assert made.eval is not None
    assert (len(made.train.rows), len(made.eval.rows)) == (2, 2)
