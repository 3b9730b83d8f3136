"""Tokens that a recipe adds: their ids, what is refused, and those that no row uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from fastft.data.added_tokens import tokenizer_of, unused_tokens, write_grown
from fastft.data.prepare import Prepared, prepare
from fastft.data.tokenizer import TokenizerFacts, load_tokenizer
from fastft.errors import DataError, RecipeError, Where
from fastft.recipe.model import DataSection

ANSWER = "<think>two</think><call>2"


@pytest.fixture
def folder(tmp_path: Path, chatml: TokenizerFacts) -> Path:
    chatml.tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": chatml.chat_template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path


def section(folder: Path, answer: str = ANSWER, **changes: list[str]) -> DataSection:
    turns = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": answer}]
    (folder / "rows.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    return DataSection.model_validate({"train": "rows.jsonl", **changes})


def located(field: str) -> Where:
    return Where(f"recipe.toml:{field}")


def prepared(data: DataSection, folder: Path) -> Prepared:
    facts = tokenizer_of(data, folder, located)
    return prepare(data, facts, max_seq_length=128, seed=0, recipe_dir=folder, locate=located)


def test_ids_follow_those_of_the_tokenizer_in_the_order_of_the_lists(folder: Path) -> None:
    bare = load_tokenizer(folder)
    size = bare.tokenizer.get_vocab_size()
    data = section(folder, add_tokens=["<think>", "</think>"], add_special_tokens=["<call>"])

    facts = tokenizer_of(data, folder, located)

    two, number = (load_tokenizer(folder).tokenizer.encode(text).ids for text in ("two", "2"))
    assert facts.tokenizer.encode(ANSWER).ids == [size, *two, size + 1, size + 2, *number]
    assert "<call>" in facts.special_tokens
    assert "<think>" not in facts.special_tokens
    assert facts.sha256 != bare.sha256


def test_a_row_has_one_id_for_each(folder: Path) -> None:
    data = section(folder, add_tokens=["<think>", "</think>"], add_special_tokens=["<call>"])

    with_them, without = prepared(data, folder), prepared(section(folder), folder)

    shorter = sum(len(text) - 1 for text in ("<think>", "</think>", "<call>"))  # a token is a byte here
    assert without.train.rows.tokens - with_them.train.rows.tokens == shorter


def test_a_control_token_of_the_model_stays_refused(folder: Path) -> None:
    data = section(folder, f"{ANSWER}<|im_start|>", add_special_tokens=["<call>"])

    with pytest.raises(DataError, match=r"contains <\|im_start\|>"):
        prepared(data, folder)


@pytest.mark.parametrize(
    ("field", "text", "number"), [("add_tokens", "<|im_end|>", "258"), ("add_special_tokens", "x", "87")]
)
def test_a_token_that_is_there_is_refused_with_its_id(folder: Path, field: str, text: str, number: str) -> None:
    with pytest.raises(RecipeError) as raised:
        tokenizer_of(section(folder, **{field: ["<new>", text]}), folder, located)

    [problem] = raised.value.problems
    assert str(problem).startswith(f"recipe.toml:data.{field}: data.{field}: the tokenizer has this token already")
    assert f"as id {number} (got {json.dumps(text)})" in str(problem)


def test_tokens_that_no_row_holds_are_named(folder: Path) -> None:
    data = section(folder, add_tokens=["<think>", "<never>"], add_special_tokens=["<call>", "<nor>"])

    rows = prepared(data, folder)

    assert unused_tokens(rows.renderer.tokenizer, rows.train.rows) == ("<never>", "<nor>")


def test_the_grown_tokenizer_is_written_as_it_is(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    facts = tokenizer_of(section(folder, add_tokens=["<think>"]), folder, located)
    out = tmp_path_factory.mktemp("grown")

    write_grown(facts, folder, out)

    read = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert read.encode(ANSWER).ids == facts.tokenizer.encode(ANSWER).ids
    assert load_tokenizer(out).eos_token == "<|im_end|>"
