from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.data.columns import detect_or_fail, rename
from fastft.data.formats import to_example
from fastft.data.inspect import inspect
from fastft.data.lines import lines_of
from fastft.data.readers import count_rows, read_rows
from fastft.errors import DataError, Problem, Where
from fastft.recipe.model import DataSection

Write = Callable[[str, "str | bytes"], Path]
ROW = {"prompt": "2+2?", "completion": "4"}
LINE = json.dumps(ROW) + "\n"
# Without a time in it: the two processes of a test run must give the test the same name.
GZIPPED = gzip.compress(LINE.encode(), mtime=0)
LARGE = json.dumps({"prompt": "q", "completion": "a" * 3000}) + "\n"


def problems(path: Path) -> list[str]:
    """What `check` says of the file."""
    found = inspect(DataSection(train=path.name), path.parent, lambda _key: Where("recipe.toml", 7))
    return [str(problem) for problem in found.data_problems]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", LINE.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("a.csv", "prompt,completion\n".encode("utf-16-le"), "is UTF-16 text"),
        ("a.json", json.dumps([ROW]).encode("utf-32"), "is UTF-32 text"),
        ("a.jsonl", b"\0" * 100, "begins with NUL bytes"),
        ("a.jsonl", GZIPPED, "is compressed with gzip; add .gz to its name"),
        ("a.jsonl.gz", gzip.compress(GZIPPED, mtime=0), "is compressed with gzip"),
        ("a.csv", b"PK\x03\x04 spreadsheet", "save the sheet as CSV"),
        ("a.jsonl", b"PAR1 rows", "is a Parquet file; name it .parquet"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        ("a.json", "\n<!DOCTYPE html><html>", "is a web page"),
        ("a.csv", "prompt;completion\nq;a\n", "separated by ;, not by a comma"),
        ("a.csv", "prompt\tcompletion\nq\ta\n", "separated by a tab, not by a comma"),
        ("a.csv", '"prompt";"completion"\n"q, r";"a"\n', "separated by ;, not by a comma"),
        ("a.jsonl", "\n" * 1_000_001, "1,000,000 empty lines"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", "more than 4,300 digits"),
        ("a.json", json.dumps({"data": [ROW, ROW]}), 'the rows seem to be inside "data"'),
        ("a.json", json.dumps({"version": "1", "rows": [ROW]}), 'the rows seem to be inside "rows"'),
        ("a.json", json.dumps({"data": [ROW, ROW]}, indent=2), 'over several lines, with its rows inside "data"'),
        ("a.json", json.dumps({"prompt": ["q", "r"], "completion": ["a", "b"]}), "one list for each column"),
        ("a.json", json.dumps({"prompt": ["q", "r"]}, indent=2), "a list for each column"),
        ("a.json", json.dumps({"prompt": {"0": "q"}, "completion": {"0": "a"}}), "one list for each column"),
        ("a.jsonl", json.dumps([ROW, ROW], indent=2), "holds a JSON array, not one object a line; name the file .json"),
    ],
)
def test_a_file_that_is_something_else_is_named_as_what_it_is(
    write: Write, name: str, content: str | bytes, expected: str
) -> None:
    found = problems(write(name, content))
    assert len(found) == 1
    assert expected in found[0]


def test_a_pipe_is_no_file_of_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    assert "recipe.toml:7: data.train: is a pipe or a device" in problems(tmp_path / "a.jsonl")[0]


def test_a_large_row_is_a_problem_and_the_rows_around_it_are_read(write: Write) -> None:
    path = write("a.jsonl", LINE + LARGE + LINE)
    first, second, third = (value for _, value in read_rows("a.jsonl", path.parent, max_row_bytes=2048))
    assert first == third == ROW
    assert isinstance(second, Problem)
    assert "a.jsonl:2: the row takes more than data.max_row_bytes (2,048 bytes)" in str(second)
    assert count_rows("a.jsonl", path.parent, max_row_bytes=2048) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", f"[{LINE}, {LARGE}]"),
        ("a.csv", f"prompt,completion\nq,{'a' * 3000}\n"),
        ("a.csv", 'prompt,completion\nq,"' + "a\n" * 3000),
    ],
)
def test_a_large_row_after_which_no_row_can_be_found_ends_the_file(write: Write, name: str, content: str) -> None:
    path = write(name, content)
    with pytest.raises(DataError, match=r"max_row_bytes|field larger than|not a JSON array"):
        list(read_rows(name, path.parent, max_row_bytes=2048))


@pytest.mark.parametrize("size", [9, 10, 11, 25])
@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_lines_are_the_lines_of_the_file_wherever_its_head_ends(size: int, cut: int) -> None:
    content = b"one\n" + b"x" * size + b"\r\n\ntwo\nlast"
    lines = list(lines_of(io.BytesIO(content[cut:]), 10, "x", content[:cut]))
    assert lines == [line if len(line) <= 10 else line[:11] for line in io.BytesIO(content).readlines()]


def test_small_parquet_files_with_huge_rows_take_little_memory(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    many = arrow.table({"text": ["a" * 2**20] * 300})
    pyarrow.write_table(many, tmp_path / "many.parquet", compression="brotli", store_schema=False)
    pyarrow.write_table(arrow.table({"text": ["a" * 2**24]}), tmp_path / "one.parquet", use_dictionary=False)
    assert (tmp_path / "many.parquet").stat().st_size < 2000
    stream = read_rows("many.parquet", tmp_path)
    before = arrow.total_allocated_bytes()
    next(stream)
    assert arrow.total_allocated_bytes() - before <= 2 * 64 * 2**20
    assert sum(1 for _ in stream) == 299
    with pytest.raises(DataError, match=r"the row has 16 MiB, more than data\.max_row_bytes \(8 MiB\)"):
        next(read_rows("one.parquet", tmp_path))


def test_a_large_row_of_a_parquet_file_is_a_problem_at_its_number(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    pyarrow.write_table(arrow.table({"text": ["a", "b" * 3000, "c"]}), tmp_path / "a.parquet")
    values = [value for _, value in read_rows("a.parquet", tmp_path, max_row_bytes=2048)]
    assert values[::2] == [{"text": "a"}, {"text": "c"}]
    assert "a.parquet:2: the row has 3,0" in str(values[1])


def test_null_keys_that_arrow_adds_to_objects_disappear(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    turns = [[{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"name": n, "arguments": {n: 1}}]}]
             for n in ("room", "city")]  # fmt: skip
    pyarrow.write_table(arrow.table({"messages": turns}), tmp_path / "a.parquet")
    rows = [value for _, value in read_rows("a.parquet", tmp_path)]
    calls = [to_example(row, "messages", Where("a")).messages[1].extra["tool_calls"] for row in rows]  # type: ignore[arg-type]
    assert [call[0]["function"]["arguments"] for call in calls] == [{"room": 1}, {"city": 1}]


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "columns", "data_format"),
    [
        ({"question": "q", "answer": "a"}, {"prompt": "question", "completion": "answer"}, "prompt_completion"),
        ({"Prompt": "q", "Completion": "a"}, {"prompt": "Prompt", "completion": "Completion"}, "prompt_completion"),
        ({"system_prompt": "s", "question": "q", "response": "a"},
         {"prompt": "question", "completion": "response", "system": "system_prompt"}, "prompt_completion"),
        ({"instruction": "q", "context": "c", "response": "a"},
         {"output": "response", "input": "context"}, "alpaca"),
        ({"Instruction": "q", "Input": "", "Output": "a"},
         {"instruction": "Instruction", "output": "Output", "input": "Input"}, "alpaca"),
        ({"id": 1, "dialog": CHAT}, {"messages": "dialog"}, "messages"),
        ({"Messages": CHAT, "Tools": []}, {"messages": "Messages", "tools": "Tools"}, "messages"),
        ({"content": "some text", "n": 3}, {"text": "content"}, "text"),
    ],
)  # fmt: skip
def test_the_mapping_that_is_proposed_works(row: dict[str, Any], columns: dict[str, str], data_format: str) -> None:
    here = Where("rows.jsonl", 1)
    with pytest.raises(DataError) as caught:
        detect_or_fail(row, here)
    listed = ", ".join(f'{new} = "{old}"' for new, old in columns.items())
    assert f"write columns = {{ {listed} }}" in str(caught.value)
    renamed = rename(row, columns, here)
    assert detect_or_fail(renamed, here) == data_format
    assert to_example(renamed, data_format, here).unused <= {"id", "n"}


def test_preferences_are_named_with_a_way_to_train_what_was_chosen() -> None:
    here = Where("rows.jsonl", 1)
    row: dict[str, Any] = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r'columns = \{ completion = "chosen" \}, ignore = \["rejected"\]'):
        detect_or_fail(row, here)
    with pytest.raises(DataError, match=r'columns = \{ messages = "chosen" \}, ignore = \["rejected"\]'):
        detect_or_fail({"chosen": CHAT, "rejected": CHAT}, here)


def test_a_row_may_lack_a_mapped_column_that_its_format_can_do_without() -> None:
    columns = {"prompt": "question", "completion": "answer", "system": "persona"}
    row = {"question": "q", "answer": "a"}
    renamed = rename(row, columns, Where("a"))
    assert to_example(renamed, "prompt_completion", Where("a")).unused == {"data.columns.system"}
    with pytest.raises(DataError, match=r'no column "persona" .*did you mean "personas"'):
        rename({**row, "personas": "s"}, columns, Where("a"))
