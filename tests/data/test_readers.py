from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastft.data.json_rows import CHUNK_BYTES, read_json
from fastft.data.readers import count_rows, is_hub_data, joint_digest, read_rows
from fastft.errors import DataError, Problem
from fastft.files.seal import file_sha256

Write = Callable[[str, "str | bytes"], Path]


def rows(path: Path, source: str | None = None) -> list[tuple[int | None, Any]]:
    return [(where.line, value) for where, value in read_rows(source or path.name, path.parent)]


def broken_row(path: Path) -> tuple[int | None, str]:
    """The line and text of the only problem in the file."""
    problems = [(line, value) for line, value in rows(path) if isinstance(value, Problem)]
    assert len(problems) == 1
    return problems[0][0], str(problems[0][1])


def test_each_line_of_jsonl_is_a_row_with_its_line_number(write: Write) -> None:
    path = write("a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    assert rows(path) == [(1, {"text": "one"}), (2, {"text": "two"})]


def test_a_byte_order_mark_crlf_and_blank_lines_are_no_part_of_a_row(write: Write) -> None:
    path = write("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "two"}')
    assert rows(path) == [(1, {"text": "one"}), (4, {"text": "two"})]
    assert count_rows("a.jsonl", path.parent) == 2


def test_gzip_is_read_and_counted_as_its_content(write: Write) -> None:
    path = write("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert rows(path) == [(1, {"text": "one"}), (2, {"text": "two"})]
    assert count_rows("a.jsonl.gz", path.parent) == 2


def test_a_cut_off_gzip_file_is_refused(write: Write) -> None:
    path = write("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 1000)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        rows(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a\xff"}', "not valid UTF-8: byte 0xff at byte 12 of the line"),
        (b'{"text": "a"', "not valid JSON"),
        (b'{"text": "a"} x', "not valid JSON"),
        (b'{"text": "a", "text": "b"}', 'the key "text" is in one object twice'),
        (b'{"text": NaN}', "NaN is not JSON"),
        (b'["a"]', "a row is a JSON object (got a list)"),
        (b'"a"', "a row is a JSON object (got a string)"),
        (b"null", "a row is a JSON object (got null)"),
        (b"7", "a row is a JSON object (got a number)"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_line_is_a_problem_at_its_line_and_the_rest_is_read(write: Write, line: bytes, expected: str) -> None:
    path = write("a.jsonl", b'{"text": "one"}\n' + line + b'\n{"text": "three"}\n')
    number, problem = broken_row(path)
    assert number == 2
    assert expected in problem
    assert len(rows(path)) == 3


def test_a_json_array_gives_its_objects_with_the_lines_they_begin_on(write: Write) -> None:
    path = write("a.json", '[\n  {"text": "one"},\n  {\n    "text": "two"\n  },\n  5\n]\n')
    found = rows(path)
    assert found[:2] == [(2, {"text": "one"}), (3, {"text": "two"})]
    assert found[2][0] == 6
    assert isinstance(found[2][1], Problem)
    assert count_rows("a.json", path.parent) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "one"},\n', "not closed"),
        ('[{"text": "one"},\n{"text" "two"}]', "not valid JSON"),
        ('"text"', "not a JSON array"),
    ],
)
def test_a_broken_json_array_is_refused_as_a_whole(write: Write, content: str, expected: str) -> None:
    path = write("a.json", content)
    with pytest.raises(DataError, match=expected):
        rows(path)


def long_array(padding: int) -> str:
    """A JSON array of 300 KB on many lines, with escapes, long characters and numbers where reads end."""
    texts = ("ü😀x" * (n % 40) + '\\"\n\u2028' * (n % 7) for n in range(3000))
    made = [{"text": text, "number": -1.5e10 + n, "none": None} for n, text in enumerate(texts)]
    return " " * padding + json.dumps(made, indent=(None, 0, 2)[padding % 3], ensure_ascii=padding % 2 == 0)


@pytest.mark.parametrize("padding", range(12))
def test_a_long_json_array_is_read_as_json_reads_it(write: Write, padding: int) -> None:
    content = long_array(padding)
    found = rows(write("a.json", content))
    assert [value for _, value in found] == json.loads(content)
    begins = [number for number, line in enumerate(content.split("\n"), start=1) if line.strip() == "{"]
    assert [number for number, _ in found] == (begins or [1] * len(found))


def test_a_json_array_is_read_on_demand() -> None:
    stream = io.BytesIO(long_array(0).encode())
    first = next(read_json(stream, "a.json"))
    assert first[1] == {"text": "", "number": -1.5e10, "none": None}
    assert stream.tell() == CHUNK_BYTES < 200_000 < len(stream.getvalue())


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), [('"number": ', '"number" '), ('"none": null', "nul"), (" ", "\x01")])
def test_the_place_of_an_error_in_a_long_array_is_exact(write: Write, padding: int, old: str, new: str) -> None:
    content = long_array(padding)
    at = content.rindex(old, 0, 250_000)
    broken = content[:at] + new + content[at + len(old) :]
    with pytest.raises(json.JSONDecodeError) as right:
        json.loads(broken)
    with pytest.raises(DataError, match=re.escape(f"a.json:{right.value.lineno}: ")) as caught:
        rows(write("a.json", broken))
    assert f"{right.value.msg} at column {right.value.colno};" in str(caught.value)


@pytest.mark.parametrize("padding", [0, 1, 2, *range(3, 60, 6)])
def test_the_place_of_a_wrong_byte_in_a_long_array_is_exact(write: Write, padding: int) -> None:
    content = long_array(padding).encode()
    broken = content[:200_000].rsplit(b" ", 1)[0] + b"\xff" + content[200_000:]
    at = broken.index(b"\xff")
    line, column = broken.count(b"\n", 0, at) + 1, at - broken.rfind(b"\n", 0, at)
    with pytest.raises(DataError, match=rf"a\.json:{line}: not valid UTF-8: byte 0xff at byte {column} of the line"):
        rows(write("a.json", broken))


def test_an_array_that_is_nested_too_deeply_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="nested too deeply"):
        rows(write("a.json", "[" * 100_000))


def test_json_lines_in_a_json_file_are_read(write: Write) -> None:
    assert rows(write("a.json", '{"text": "one"}\n{"text": "two"}\n'))[1] == (2, {"text": "two"})


def test_csv_cells_may_contain_commas_quotes_and_line_breaks(write: Write) -> None:
    path = write("a.csv", 'prompt,completion\r\n"a, b","says ""c""\nand d"\r\nx,y\r\n')
    assert rows(path) == [
        (2, {"prompt": "a, b", "completion": 'says "c"\nand d'}),
        (4, {"prompt": "x", "completion": "y"}),
    ]


def test_a_csv_row_with_a_cell_too_few_is_a_problem(write: Write) -> None:
    number, problem = broken_row(write("a.csv", "prompt,completion\na,b\nc\n"))
    assert (number, "1 cells" in problem) == (3, True)


def test_a_csv_row_that_is_not_utf8_is_a_problem(write: Write) -> None:
    number, problem = broken_row(write("a.csv", b"prompt,completion\na,b\nc,\xff\n"))
    assert (number, "not valid UTF-8" in problem) == (3, True)


def test_two_csv_columns_of_one_name_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"two columns have one name \(got text\)"):
        rows(write("a.csv", "text,text\na,b\n"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_an_empty_file_is_refused(write: Write, name: str) -> None:
    with pytest.raises(DataError, match="has no rows"):
        rows(write(name, ""))


def test_a_missing_file_names_the_nearest_one_that_is_there(write: Write) -> None:
    path = write("train.jsonl", '{"text": "one"}\n')
    with pytest.raises(DataError, match=r"no such file; did you mean train\.jsonl\?"):
        rows(path, "trian.jsonl")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        rows(tmp_path / "x", "nowhere/train.jsonl")


def test_a_glob_reads_its_files_in_order_and_one_without_a_match_is_refused(write: Write) -> None:
    write("b.jsonl", '{"text": "two"}\n')
    path = write("a.jsonl", '{"text": "one"}\n')
    assert [value["text"] for _, value in rows(path, "*.jsonl")] == ["one", "two"]
    with pytest.raises(DataError, match="no file matches"):
        rows(path, "*.csv")


def test_a_kind_of_file_that_is_not_read_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="not a kind of file that fastft reads"):
        rows(write("a.xlsx", "x"))


def test_the_fingerprint_follows_the_content_and_not_the_name(write: Write) -> None:
    one, same, other = write("a", "1"), write("b", "1"), write("c", "2")
    one_digest, other_digest = file_sha256(one), file_sha256(other)
    assert one_digest == file_sha256(same) != other_digest
    assert joint_digest([one_digest, other_digest]) != joint_digest([other_digest, one_digest])


def test_hub_ids_are_not_paths(write: Write) -> None:
    folder = write("train.jsonl", "{}").parent
    (folder / "data").mkdir()
    (folder / "data" / "set").mkdir()
    ids = ["org/name", "org/name:test", "org/name/config:test"]
    assert [is_hub_data(source, folder) for source in ids] == [True] * 3
    paths = ["train.jsonl", "data/train.jsonl", "./org/name", "/org/name", "data/set", "org/*", "name"]
    assert [is_hub_data(source, folder) for source in paths] == [False] * 7


def test_every_row_of_a_big_object_file_is_streamed(write: Write) -> None:
    path = write("a.jsonl", "".join(json.dumps({"text": str(n)}) + "\n" for n in range(1000)))
    stream = read_rows(path.name, path.parent)
    assert next(stream)[1] == {"text": "0"}


def test_parquet_and_zstandard_are_read_and_counted(tmp_path: Path) -> None:
    """Skipped without pyarrow, which only the training extra brings."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    given = [{"messages": [{"role": "user", "content": "ü"}]}, {"messages": []}]
    parquet.write_table(pyarrow.Table.from_pylist(given), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [(1, given[0]), (2, given[1])]
    assert count_rows("a.parquet", tmp_path) == 2
    (tmp_path / "a.jsonl.zst").write_bytes(pyarrow.compress(b'{"a": 1}\n\n{"a": 2}\n', codec="zstd", asbytes=True))
    assert rows(tmp_path / "a.jsonl.zst") == [(1, {"a": 1}), (3, {"a": 2})]
    assert count_rows("a.jsonl.zst", tmp_path) == 2
    for name in ("b.parquet", "b.jsonl.zst"):
        (tmp_path / name).write_bytes(b"not what it says")
        with pytest.raises(DataError, match=name):
            rows(tmp_path / name)
