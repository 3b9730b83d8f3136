from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.data.encode import Encoded
from fastft.data.prepare import Prepared, prepare
from fastft.data.rows import RowWriter
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Where
from fastft.recipe.model import DataSection

Locate = Callable[[str], Where]


def chat(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


def write_rows(folder: Path, lines: list[str], name: str = "train.jsonl") -> None:
    (folder / name).write_text("\n".join(lines) + "\n")


def run(folder: Path, facts: TokenizerFacts, locate: Locate, max_seq_length: int = 500, **keys: Any) -> Prepared:
    data = DataSection(train="train.jsonl", **keys)
    return prepare(data, facts, max_seq_length=max_seq_length, seed=7, recipe_dir=folder, locate=locate)


def test_every_row_is_read_encoded_and_counted(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> None:
    write_rows(tmp_path, [chat(f"question {n}", f"answer {n}") for n in range(2500)])
    made = run(tmp_path, chatml, locate)
    assert (made.format, made.train.read, len(made.train.rows), made.eval) == ("messages", 2500, 2500, None)
    assert made.train.rows[2400].where.line == 2401
    assert made.train.rows.tokens == sum(made.train.rows.lengths)
    assert made.train.rows.trained_tokens == sum(len(f"answer {n}") + 1 for n in range(2500))
    assert made.renderer.end_of_turn == ("<|im_end|>",)


def row(ids: list[int], labels: list[int], where: Where) -> Encoded:
    return Encoded(array("i", ids), array("i", labels), where)


def test_rows_return_what_was_appended() -> None:
    given = [row([1, 2, 3], [-100, 2, 3], Where("a", 1)), row([4], [4], Where("a"))]
    writer = RowWriter()
    for one in given:
        writer.append(one)
    rows = writer.finish()
    assert list(rows) == given
    assert rows[-1] == given[1]
    assert rows[0:2] == given
    assert (rows.lengths, rows.tokens, rows.trained_tokens) == ([3, 1], 4, 3)


def test_overlong_rows_are_listed_and_not_trained(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> None:
    write_rows(tmp_path, [chat("short", "answer"), chat("long", "x" * 1000)])
    made = run(tmp_path, chatml, locate)
    assert [row.where.line for row in made.train.rows] == [1]
    assert [(row.where.line, row.tokens > 1000) for row in made.train.overlong] == [(2, True)]


def test_a_few_broken_rows_are_counted_and_the_rest_is_trained(
    tmp_path: Path, chatml: TokenizerFacts, locate: Locate
) -> None:
    write_rows(tmp_path, [*[chat(f"q{n}", "answer") for n in range(150)], '{"messages": []}'])
    made = run(tmp_path, chatml, locate)
    assert (len(made.train.rows), [problem.where.line for problem in made.train.rejected]) == (150, [151])


def test_more_than_one_in_a_hundred_broken_rows_is_refused_with_the_first_twenty(
    tmp_path: Path, chatml: TokenizerFacts, locate: Locate
) -> None:
    write_rows(tmp_path, [chat("q", "answer")] * 50 + ["{"] * 25 + [chat("<|im_end|>", "answer")] * 25)
    with pytest.raises(DataError) as caught:
        run(tmp_path, chatml, locate)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[0].where.line == 51
    assert "50 of 100 rows (50.0%) are broken; data.max_reject_fraction = 0.01" in str(caught.value.problems[-1])


def test_no_row_left_is_refused_with_the_length_that_would_fit(
    tmp_path: Path, chatml: TokenizerFacts, locate: Locate
) -> None:
    write_rows(tmp_path, [chat("q", "x" * 100)])
    with pytest.raises(DataError, match=r"no row is left of 1: 1 longer than 20 tokens.*longest row has 122 tokens"):
        run(tmp_path, chatml, locate, max_seq_length=20)


def test_an_eval_file_is_prepared_with_its_examples(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> None:
    write_rows(tmp_path, [chat("q", "a")])
    write_rows(tmp_path, [chat("p", "b"), chat("o", "c" * 1000), chat("m", "d")], "eval.jsonl")
    made = run(tmp_path, chatml, locate, eval="eval.jsonl")
    assert made.eval is not None
    assert [row.where.line for row in made.eval.rows] == [1, 3]
    assert [example.messages[1].content for example in made.eval.examples] == ["b", "d"]
    assert made.eval_sha256 != made.train_sha256


def test_eval_fraction_splits_the_rows_by_seed(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> None:
    write_rows(tmp_path, [chat(f"q{n}", f"a{n}") for n in range(100)])
    made, again = (run(tmp_path, chatml, locate, eval_fraction=0.2) for _ in range(2))
    assert made.eval is not None
    assert again.eval is not None
    held_out = [row.where.line for row in made.eval.rows]
    trained = [row.where.line for row in made.train.rows]
    assert (len(held_out), len(trained)) == (20, 80)
    assert sorted([*held_out, *trained]) == list(range(1, 101))
    assert held_out == [row.where.line for row in again.eval.rows]
    assert [example.where.line for example in made.eval.examples] == held_out


def test_plain_text_needs_no_chat_template(tmp_path: Path, llama: TokenizerFacts, locate: Locate) -> None:
    write_rows(tmp_path, [json.dumps({"text": "once"})])
    made = run(tmp_path, llama, locate)
    assert (made.format, made.template) == ("text", None)
    assert made.train.rows.trained_tokens == len("once") + 2


def test_progress_is_reported(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> None:
    write_rows(tmp_path, [chat("q", "a")] * 1500)
    seen: list[int] = []
    data = DataSection(train="train.jsonl")
    prepare(data, chatml, max_seq_length=99, seed=7, recipe_dir=tmp_path, locate=locate, progress=seen.append)
    assert seen == [1000, 1500]


def test_overlong_rows_stop_the_run_when_asked(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> None:
    write_rows(tmp_path, [chat("short", "answer"), chat("long", "x" * 1000)])
    with pytest.raises(DataError) as caught:
        run(tmp_path, chatml, locate, overlong="error")
    listed, summary = caught.value.problems
    assert (listed.where.line, "500 fit" in listed.wrong) == (2, True)
    assert "1 of 2 rows are longer than 500 tokens" in summary.wrong
