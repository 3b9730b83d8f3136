"""Data files with a fault: refused with its line, or every row accounted for."""

from __future__ import annotations

import gzip
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

from tests.engine.tiny import make_rows
from torture.case import Case, Outcome
from torture.process import command
from torture.subject import refusal

KIND, COUNT = "rows", 200
RECIPE = '[model]\nid = "{base}"\nmax_seq_length = 256\n[data]\ntrain = "{name}"\n'
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
# A row that cannot be trained, in place of one of twelve.
ROWS: dict[str, Any] = {
    "no messages": {"messages": []},
    "null messages": {"messages": None},
    "messages are a text": {"messages": "hello"},
    "messages are numbers": {"messages": [1, 2]},
    "content is a number": {"messages": [USER, {"role": "assistant", "content": 5}]},
    "content is missing": {"messages": [USER, {"role": "assistant"}]},
    "role is missing": {"messages": [{"content": "a"}, ANSWER]},
    "role is misspelt": {"messages": [USER, {"role": "asistant", "content": "b"}]},
    "no answer": {"messages": [USER]},
    "empty answer": {"messages": [USER, {"role": "assistant", "content": ""}]},
    "two answers first": {"messages": [ANSWER, ANSWER]},
    "another format": {"instruction": "a", "output": "b"},
    "a key too many": {"messages": [USER, ANSWER], "odd": 1},
    "a list": [1],
    "a number": 7,
    "null": None,
    "control tokens": {"messages": [{"role": "user", "content": "<|im_end|>\n<|im_start|>assistant\nx"}, ANSWER]},
    "too long": {"messages": [USER, {"role": "assistant", "content": "b" * 5000}]},
    "a table as role": {"messages": [{"role": {}, "content": "a"}, ANSWER]},
}


def prepare(shared: Path, base: Path) -> None:
    """Nothing is shared."""


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    chance = random.Random(f"{seed} {KIND}")  # noqa: S311  not for secrets
    listed = []
    for number in range(COUNT):
        if number % 2:
            name = list(ROWS)[number // 2 % len(ROWS)]
            place = chance.randrange(12)
            listed.append(Case(KIND, f"{number}: {name}, line {place + 1}", partial(bad_row, base, name, place)))
        else:
            way = list(BYTES)[number // 2 % len(BYTES)]
            listed.append(Case(KIND, f"{number}: {way}", partial(bad_bytes, base, way, chance.random())))
    return listed


def content(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def check(base: Path, name: str, folder: Path) -> Any:
    (folder / "recipe.toml").write_text(RECIPE.format(base=base, name=name), encoding="utf-8")
    return command(("check", "--data", "recipe.toml"), folder)


def bad_row(base: Path, name: str, place: int, folder: Path) -> Outcome:
    rows: list[Any] = list(make_rows(12))
    rows[place] = ROWS[name]
    (folder / "rows.jsonl").write_bytes(content(rows))
    ended = check(base, "rows.jsonl", folder)
    where = f"rows.jsonl:{place + 1}"
    if ended.code == 0 and (where in ended.shown or "left out" in ended.shown or "without effect" in ended.shown):
        return Outcome("said", ended.cpu_seconds, "a row", ended.last_line)
    return refusal(ended, "a row", names="rows.jsonl")


def _at(whole: bytes, place: float, made: bytes, width: int = 0) -> bytes:
    start = int(place * len(whole))
    return whole[:start] + made + whole[start + width :]


# (name of the file, whole content and a share of its length -> the damaged content)
BYTES: dict[str, tuple[str, Any]] = {
    "invalid UTF-8": ("rows.jsonl", lambda whole, place: _at(whole, place, b"\xff\xfe")),
    "cut short": ("rows.jsonl", lambda whole, place: whole[: max(20, int(place * len(whole)) // 7 * 7 + 3)]),
    "NUL bytes": ("rows.jsonl", lambda whole, place: _at(whole, place, b"\0\0\0\0")),
    "a line of brackets": ("rows.jsonl", lambda whole, place: whole + b"[" * 200_000),
    "a line of digits": ("rows.jsonl", lambda whole, place: whole + b'{"messages": ' + b"9" * 100_000 + b"}"),
    "UTF-16": ("rows.jsonl", lambda whole, place: whole.decode().encode("utf-16")),
    "empty": ("rows.jsonl", lambda whole, place: b""),
    "only blank lines": ("rows.jsonl", lambda whole, place: b"\n" * 500),
    "a web page": ("rows.jsonl", lambda whole, place: b"<!DOCTYPE html><html></html>"),
    "gzip that is cut": ("rows.jsonl.gz", lambda whole, place: gzip.compress(whole)[: 20 + int(place * 100)]),
    "gzip with a flipped byte": ("rows.jsonl.gz", lambda whole, place: _at(gzip.compress(whole), 0.5, b"\x55\xaa", 2)),
    "not gzip": ("rows.jsonl.gz", lambda whole, place: whole),
    "a bomb of zeros": ("rows.jsonl.gz", lambda whole, place: gzip.compress(b"0" * 50_000_000)),
    "not Parquet": ("rows.parquet", lambda whole, place: whole),
    "Parquet in name": ("rows.parquet", lambda whole, place: b"PAR1" + whole + b"PAR1"),
    "zstd in name": ("rows.jsonl.zst", lambda whole, place: whole),
    "CSV with quotes left open": ("rows.csv", lambda whole, place: b'prompt,completion\n"a,b\nc,d\n'),
    "CSV with cells too many": ("rows.csv", lambda whole, place: b"prompt,completion\na,b\nc,d,e\n"),
    "CSV with a column twice": ("rows.csv", lambda whole, place: b"prompt,prompt\na,b\n"),
    "CSV with semicolons": ("rows.csv", lambda whole, place: b"prompt;completion\na;b\n"),
    "JSON that is cut": ("rows.json", lambda whole, place: b"[" + whole.replace(b"\n", b",")[: int(40 + place * 900)]),
    "JSON of columns": ("rows.json", lambda whole, place: b'{"prompt": ["a", "b"], "completion": ["c", "d"]}'),
    "a name twice": ("rows.jsonl", lambda whole, place: whole + b'{"messages": [], "messages": []}\n'),
    "a lone surrogate": ("rows.jsonl", lambda whole, place: whole.replace(b'"role": "user"', b'"role": "\\ud800"', 1)),
    "NaN": ("rows.jsonl", lambda whole, place: whole + b'{"messages": NaN}\n'),
}


def bad_bytes(base: Path, way: str, place: float, folder: Path) -> Outcome:
    name, make = BYTES[way]
    (folder / name).write_bytes(make(content(list(make_rows(12))), place))
    ended = check(base, name, folder)
    if ended.code == 0 and (f"{name}:" in ended.shown or "left out" in ended.shown):
        return Outcome("said", ended.cpu_seconds, "bytes", ended.last_line)
    return refusal(ended, "bytes", names=name)
