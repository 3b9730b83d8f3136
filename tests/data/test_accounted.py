from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.data.prepare import Prepared, prepare
from fastft.data.preview import preview
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import Where
from fastft.recipe.model import DataSection
from fastft.report.rows import accounts

Locate = Callable[[str], Where]
CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def run(folder: Path, facts: TokenizerFacts, locate: Locate, rows: list[dict[str, Any]], **keys: Any) -> Prepared:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache_dir = keys.pop("cache_dir", None)
    data = DataSection(train="rows.jsonl", **keys)
    return prepare(
        data,
        facts,
        max_seq_length=100,
        seed=7,
        recipe_dir=folder,
        locate=locate,
        cache_dir=cache_dir,
        refuse_broken=False,
    )


def notes(made: Prepared) -> list[str]:
    return accounts(made)[0][1]


def marked(made: Prepared, index: int = 0) -> str:
    return preview(made.train.rows[index], made.renderer.tokenizer.tokenizer).marked()


def test_columns_and_keys_without_effect_are_counted_in_rows_that_are_trained(
    tmp_path: Path, chatml: TokenizerFacts, locate: Locate
) -> None:
    rows = [{"messages": [{**turn, "tim": 3} for turn in CHAT], "id": 1, "sistem": "x"}, {"messages": CHAT, "id": 2}]
    expected = [
        "columns without effect in training rows: id (2 rows), sistem (1 row; did you mean system?)",
        "keys of turns without effect in training rows: tim (1 row)",
    ]
    assert notes(run(tmp_path, chatml, locate, rows)) == expected
    assert notes(run(tmp_path, chatml, locate, rows, ignore=["id", "tim", "sistem"])) == []


def test_the_counts_come_back_from_the_cache(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"messages": CHAT, "id": 1}]
    first, second = (run(tmp_path, chatml, locate, rows, cache_dir=tmp_path / "cache") for _ in range(2))
    assert notes(first) == notes(second) == ["columns without effect in training rows: id (1 row)"]


def test_a_file_and_a_source_of_which_no_row_is_left_are_named(
    tmp_path: Path, chatml: TokenizerFacts, locate: Locate
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "good.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    (tmp_path / "more" / "long.jsonl").write_text(json.dumps({"messages": [CHAT[0], {**CHAT[1], "content": "4" * 99}]}))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [CHAT[0]]}) + "\n")
    data = DataSection.model_validate({"sources": [{"path": "more"}, {"path": "rows.jsonl", "name": "own"}]})
    made = prepare(data, chatml, max_seq_length=100, seed=7, recipe_dir=tmp_path, locate=locate, refuse_broken=False)
    assert {Path(name).name for name in made.train.without_rows} == {"long.jsonl", "rows.jsonl", "own"}
    assert "no row of own is among the training rows" in notes(made)


def test_a_greeting_is_context_and_carries_no_loss(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> None:
    greeting = {"role": "assistant", "content": "Hello!"}
    made = run(tmp_path, chatml, locate, [{"messages": [greeting, *CHAT]}], allow_assistant_first=True)
    assert marked(made) == (
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
        "⟦4<|im_end|>⟧\n"
    )
