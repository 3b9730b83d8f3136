from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.data.inspect import inspect
from fastft.data.prepare import Prepared, prepare
from fastft.data.sources import count_training_rows
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Where
from fastft.recipe.model import DataSection

Locate = Callable[[str], Where]


def write_texts(folder: Path, name: str, count: int) -> None:
    (folder / name).write_text("".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(count)))


def section(*sources: dict[str, Any], **keys: Any) -> DataSection:
    return DataSection.model_validate({"sources": list(sources), **keys})


def run(folder: Path, facts: TokenizerFacts, locate: Locate, data: DataSection) -> Prepared:
    return prepare(data, facts, max_seq_length=100, seed=7, recipe_dir=folder, locate=locate)


def test_weights_repeat_and_draw_rows_and_limits_cut_the_source(
    tmp_path: Path, chatml: TokenizerFacts, locate: Locate
) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        write_texts(tmp_path, name, 40)
    data = section(
        {"path": "a.jsonl", "weight": 2.5},
        {"path": "b.jsonl", "weight": 0.25, "name": "few"},
        {"path": "c.jsonl", "limit": 3},
    )
    made = run(tmp_path, chatml, locate, data)
    assert made.train.by_source == {"a.jsonl": 100, "few": 10, "c.jsonl": 3}
    assert count_training_rows(data, tmp_path) == len(made.train.rows) == 113
    often = Counter(Counter(row.where for row in made.train.rows if "a.jsonl" in row.where.path).values())
    assert often == {2: 20, 3: 20}
    again = run(tmp_path, chatml, locate, data)
    assert [row.where for row in again.train.rows] == [row.where for row in made.train.rows]


def test_sources_of_text_and_conversations_do_not_mix(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> None:
    write_texts(tmp_path, "a.jsonl", 2)
    (tmp_path / "b.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError, match=r"recipe\.toml:7: data\.format: plain text and conversations are mixed"):
        run(tmp_path, chatml, locate, section({"path": "a.jsonl"}, {"path": "b.jsonl"}))


def test_a_missing_source_is_reported_under_its_own_key(tmp_path: Path, locate: Locate) -> None:
    write_texts(tmp_path, "a.jsonl", 2)
    found = inspect(section({"path": "a.jsonl"}, {"path": "b.jsonl"}), tmp_path, locate)
    assert [problem.field for problem in found.data_problems] == ["data.sources[1].path"]


def test_the_held_out_share_is_taken_from_all_sources_and_not_repeated(
    tmp_path: Path, chatml: TokenizerFacts, locate: Locate
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_texts(tmp_path, name, 50)
    made = run(
        tmp_path, chatml, locate, section({"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl"}, eval_fraction=0.2)
    )
    assert made.eval is not None
    held_out = {row.where for row in made.eval.rows}
    assert len(held_out) == len(made.eval.rows) == 20
    assert {Path(where.path).name for where in held_out} == {"a.jsonl", "b.jsonl"}
    assert held_out.isdisjoint(row.where for row in made.train.rows)
