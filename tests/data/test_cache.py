from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.data import cache
from fastft.data.prepare import Prepared, prepare
from fastft.data.render import make_renderer
from fastft.data.template import ChatTemplate
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import Where
from fastft.recipe.model import DataSection

pyarrow = pytest.importorskip("pyarrow", reason="the cache is written by pyarrow, which the training extra brings")
Locate = Callable[[str], Where]


def chat(number: int) -> str:
    messages = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a" * (number % 7 + 1)}]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture
def run(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> Callable[..., Prepared]:
    good = "".join(chat(number) for number in range(300))
    long = json.dumps(
        {"prompt": "x", "messages": [{"role": "user", "content": "q" * 999}, {"role": "assistant", "content": "a"}]}
    )
    (tmp_path / "train.jsonl").write_text(good + "{broken\n" + long + "\n")

    def prepare_again(max_seq_length: int = 100, **keys: Any) -> Prepared:
        data = DataSection(train="train.jsonl", eval_fraction=0.1, **keys)
        return prepare(
            data,
            chatml,
            max_seq_length=max_seq_length,
            seed=7,
            recipe_dir=tmp_path,
            locate=locate,
            cache_dir=tmp_path / "cache",
        )

    return prepare_again


def test_a_second_run_maps_what_the_first_one_wrote(run: Callable[..., Prepared]) -> None:
    first = run()
    second = run()
    assert isinstance(second.train.rows.ids, memoryview)
    assert second.folder == first.folder
    for one, other in ((first.train, second.train), (first.eval, second.eval)):
        assert one is not None
        assert other is not None
        assert list(one.rows) == list(other.rows)
        assert one.rows.lengths == other.rows.lengths
        assert (one.rows.tokens, one.rows.trained_tokens) == (other.rows.tokens, other.rows.trained_tokens)
        assert (one.read, one.overlong, one.rejected) == (other.read, other.overlong, other.rejected)
        assert (one.examples, one.by_source) == (other.examples, other.by_source)
    assert len(first.problems) == 1


def test_what_changes_a_token_changes_the_key(run: Callable[..., Prepared], tmp_path: Path) -> None:
    folders = [
        run().folder,
        run(max_seq_length=99).folder,
        run(train_on="all").folder,
        run(chat_template="chatml").folder,
    ]
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write(chat(1000))
    folders.append(run().folder)
    assert len(set(folders)) == len(folders) == 5


def test_another_template_of_the_model_changes_the_key(tmp_path: Path, chatml: TokenizerFacts) -> None:
    data = DataSection(train="train.jsonl")
    keys = set()
    for source in (chatml.chat_template or "", (chatml.chat_template or "").replace("user", "User") + "{# other #}"):
        renderer = make_renderer(ChatTemplate("model", source), chatml, "assistant", Where("r"))
        keys.add(cache.cache_key(data, renderer, ["x"], 100, 7, tmp_path))
    assert len(keys) == 2


@pytest.mark.parametrize("name", ["train.arrow", "account.json"])
def test_a_damaged_cache_is_made_anew(run: Callable[..., Prepared], name: str) -> None:
    first = run()
    assert first.folder is not None
    file = first.folder / name
    file.write_bytes(file.read_bytes()[:50])
    assert cache.load(first.folder) is None
    again = run()
    assert list(again.train.rows) == list(first.train.rows)
    assert again.folder is not None
    assert cache.load(again.folder) is not None


def test_no_half_written_folder_is_left(run: Callable[..., Prepared], tmp_path: Path) -> None:
    made = run()
    assert list((tmp_path / "cache").iterdir()) == [made.folder]


def test_datasets_reads_the_files_as_they_are(run: Callable[..., Prepared]) -> None:
    made = run()
    assert made.folder is not None
    with pyarrow.ipc.open_stream(str(made.folder / "train.arrow")) as reader:
        table = reader.read_all()
    assert table["input_ids"].to_pylist() == [row.input_ids for row in made.train.rows]
    assert table["labels"].to_pylist() == [row.labels for row in made.train.rows]
    assert table["length"].to_pylist() == made.train.rows.lengths
    assert table["line"].to_pylist() == [row.where.line for row in made.train.rows]
