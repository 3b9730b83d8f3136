from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.data import cache
from fastft.data.encode import Encoded
from fastft.data.example import Example
from fastft.data.prepare import Prepared, prepare
from fastft.data.render import make_renderer
from fastft.data.template import ChatTemplate
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, MachineError, Where
from fastft.recipe.model import DataSection

pyarrow = pytest.importorskip("pyarrow", reason="the cache is written by pyarrow, which the training extra brings")
Locate = Callable[[str], Where]


def chat(number: int) -> str:
    messages = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a" * (number % 7 + 1)}]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture
def prepared(tmp_path: Path, chatml: TokenizerFacts, locate: Locate) -> Callable[..., Prepared]:
    """Prepares `data` with a cache in the folder of the test."""

    def prepare_here(data: DataSection, max_seq_length: int = 100, **keys: Any) -> Prepared:
        return prepare(
            data,
            chatml,
            max_seq_length=max_seq_length,
            seed=7,
            recipe_dir=tmp_path,
            locate=locate,
            cache_dir=tmp_path / "cache",
            **keys,
        )

    return prepare_here


@pytest.fixture
def run(tmp_path: Path, prepared: Callable[..., Prepared]) -> Callable[..., Prepared]:
    good = "".join(chat(number) for number in range(300))
    long = json.dumps(
        {"prompt": "x", "messages": [{"role": "user", "content": "q" * 999}, {"role": "assistant", "content": "a"}]}
    )
    (tmp_path / "train.jsonl").write_text(good + "{broken\n" + long + "\n")

    def prepare_again(max_seq_length: int = 100, **keys: Any) -> Prepared:
        return prepared(DataSection(train="train.jsonl", eval_fraction=0.1, **keys), max_seq_length)

    return prepare_again


def test_a_second_run_maps_what_the_first_one_wrote(run: Callable[..., Prepared]) -> None:
    first = run()
    second = run()
    assert all(isinstance(block.ids, memoryview) for block in second.train.rows.blocks)
    assert second.folder == first.folder
    for one, other in ((first.train, second.train), (first.eval, second.eval)):
        assert one is not None
        assert other is not None
        assert list(one.rows) == list(other.rows)
        assert one.rows.lengths == other.rows.lengths
        assert (one.rows.tokens, one.rows.trained_tokens) == (other.rows.tokens, other.rows.trained_tokens)
        assert (one.read, one.overlong, one.rejected) == (other.read, other.overlong, other.rejected)
        assert (list(one.examples), one.by_source) == (list(other.examples), other.by_source)
    assert first.eval is not None
    assert len([*first.train.rejected, *first.eval.rejected, *first.eval.leaked]) == 1
    assert [example.where for example in first.eval.examples] == [row.where for row in first.eval.rows]
    assert len(first.train.examples) == 0


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
def test_a_damaged_cache_is_made_again(run: Callable[..., Prepared], name: str) -> None:
    first = run()
    assert first.folder is not None
    rows = list(first.train.rows)
    file = first.folder / name
    file.write_bytes(file.read_bytes()[:50])
    assert cache.load(first.folder) is None
    again = run()
    assert list(again.train.rows) == rows
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
    assert table["input_ids"].to_pylist() == [row.input_ids.tolist() for row in made.train.rows]
    assert table["labels"].to_pylist() == [row.labels.tolist() for row in made.train.rows]
    assert table["length"].to_pylist() == made.train.rows.lengths
    assert table["line"].to_pylist() == [row.where.line for row in made.train.rows]


def test_rows_are_written_batch_by_batch(tmp_path: Path) -> None:
    given = [
        Encoded(array("i", [n] * 99_999), array("i", [-100] * 99_998 + [n]), Where("ab"[n % 2], n))
        for n in range(1, 10)
    ]
    writer = cache.ArrowWriter(tmp_path / "rows.arrow")
    for row in given:
        writer.append(row)
    rows = writer.finish()
    assert len(rows.blocks) == 3
    assert list(rows) == given
    assert [rows[8], rows[-9], rows[2:4]] == [given[8], given[0], given[2:4]]
    assert (rows.lengths, rows.tokens, rows.trained_tokens) == ([99_999] * 9, 9 * 99_999, 9)
    assert len(set(rows.digests())) == 9


def test_a_file_that_lost_its_last_batches_is_not_used(run: Callable[..., Prepared]) -> None:
    made = run()
    assert made.folder is not None
    file = made.folder / "train.arrow"
    with pyarrow.ipc.open_stream(str(file)) as reader:
        schema = reader.schema
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, schema):
        pass
    assert cache.load(made.folder) is None


def test_a_failed_preparation_leaves_nothing_behind(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    (tmp_path / "train.jsonl").write_text(chat(1))
    (tmp_path / "eval.jsonl").write_text("")
    data = DataSection(train="train.jsonl", eval="eval.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        prepared(data)
    assert [path for path in tmp_path.rglob("*") if "writing" in str(path)] == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    (tmp_path / "train.jsonl").write_text(chat(1))
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(MachineError, match=r"cache: the prepared rows cannot be written.*; free space there"):
        prepared(DataSection(train="train.jsonl"))


def test_an_empty_row_set_is_cached_too(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    (tmp_path / "train.jsonl").write_text(chat(1))
    for _ in range(2):
        made = prepared(DataSection(train="train.jsonl"), 8, refuse_broken=False)
        assert (list(made.train.rows), made.train.rows.lengths, len(made.train.overlong)) == ([], [], 1)


def test_datasets_takes_the_files_from_disk(run: Callable[..., Prepared]) -> None:
    datasets = pytest.importorskip("datasets")
    made = run()
    assert made.folder is not None
    assert made.eval is not None
    read = {name: datasets.Dataset.from_file(str(made.folder / f"{name}.arrow")) for name in ("train", "eval")}
    assert read["train"].column_names == ["input_ids", "labels", "length", "path", "line", "rejected_from"]
    assert read["train"][3]["labels"] == made.train.rows[3].labels.tolist()
    assert [Example.from_json(text) for text in read["eval"]["example"]] == list(made.eval.examples)
