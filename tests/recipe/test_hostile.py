"""Recipes that are made to harm: each is a problem with its line, in less than a second."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastft.errors import FastftError, RecipeError
from fastft.planning.check import check
from fastft.recipe.loader import MAX_PROBLEMS, load

HEAD = '[model]\nid = "org/model"\n[data]\ntrain = "rows.jsonl"\n'
LONG = "n" * 300
KEYS = ".".join(["a"] * 15_000)

HOSTILE = {
    "long_data_name": (HEAD.replace("rows", LONG), 4, "data.train: cannot be looked up: file name too long"),
    "long_folder": (HEAD.replace("org/model", f"./{LONG}"), 2, "model.id: cannot be looked up: file name too long"),
    "long_path": (HEAD.replace("rows.jsonl", "a/" * 20_000), 4, "data.train: cannot be looked up: file name too long"),
    "long_template": (f'{HEAD}chat_template = "{LONG}.jinja"', 5, "cannot be looked up: file name too long"),
    "long_deepspeed": (f'{HEAD}[train]\ndeepspeed = "{LONG}"', 6, "cannot be looked up: file name too long"),
    "long_source": (
        HEAD.replace("train =", "eval =") + f'[[data.sources]]\npath = "a"\n[[data.sources]]\npath = "{LONG}"',
        8,
        "data.sources[1].path: cannot be looked up: file name too long",
    ),
    "no_user": (HEAD.replace("rows", "~nobody_x/rows"), 4, "cannot be looked up: there is no user ~nobody_x"),
    "no_user_of_model": (HEAD.replace("org/model", "~nobody_x/m"), 2, "there is no user ~nobody_x"),
    "deep_header": (f"{HEAD}[{KEYS}]", 5, "is nested too deeply"),
    "deep_key": (f"{HEAD}[train]\n{KEYS}.{KEYS} = 1", 6, "is nested too deeply"),
    "deep_quoted_key": (f"{HEAD}[train]\n" + ".".join(['"\\""'] * 12_000) + " = 1", 6, "is nested too deeply"),
    "deep_inline_key": (f"{HEAD}[train]\nx = {{{KEYS} = 1}}", 6, "is nested too deeply"),
    "deep_list": (f"{HEAD}[lora]\ntarget_modules = " + "[" * 500, 6, "is nested too deeply"),
    "deep_table": (f"{HEAD}[lora]\ntarget_modules = " + "{a=" * 100 + "1" + "}" * 100, 6, "is nested too deeply"),
    "many_keys": (HEAD + "[train]\n" + "".join(f"x{i} = {i}\n" for i in range(5000)), 6, "there is no such key"),
    "many_sections": (HEAD + "".join(f"[s{i}]\n" for i in range(5000)), 5, "there is no such section"),
    "many_sources": (HEAD + "[[data.sources]]\nx = 1\n" * 2400, 6, "data.sources[0].path: is missing"),
    "long_broken_list": (f"{HEAD}[train]\nx = [\n" + "[1],\n" * 12_000, 6, "is not valid TOML"),
    "long_list": (f"{HEAD}[train]\nx = [\n" + "[1],\n" * 12_000 + "]", 6, "there is no such key"),
    "unclosed_text": (f'{HEAD}[lora]\nx = """\n' + "a\n" * 30_000, 6, "is not valid TOML"),
    "long_key": (f"{HEAD}[train]\n{'a' * 60_000} = 1", 6, "there is no such key"),
    "long_text": (f'{HEAD}[train]\noptim = "{"a" * 60_000}"', 6, "is not an allowed value"),
    "digits": (f"{HEAD}[train]\nseed = {'9' * 60_000}", 6, "has a number with too many digits"),
    "epochs": (f"{HEAD}[train]\nnum_train_epochs = 1e20", 6, "above 0 and at most 10000"),
    "steps": (f"{HEAD}[train]\nmax_steps = 1000000000000000000", 6, "is not an allowed value"),
    "batch": (f"{HEAD}[train]\nper_device_train_batch_size = 9000000000000000000", 6, "is not an allowed value"),
}


@pytest.fixture(autouse=True)
def _under_a_second() -> Iterator[None]:
    # CPU time: other processes on this machine change the wall clock.
    begun = time.process_time()
    yield
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_a_problem_with_its_line_in_a_second(name: str, tmp_path: Path) -> None:
    text, line, expected = HOSTILE[name]
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n', encoding="utf-8")
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(FastftError) as caught:
        check(load(path))

    assert (str(path), line) in [(problem.where.path, problem.where.line) for problem in caught.value.problems]
    assert expected in str(caught.value.problems[0])
    assert len(str(caught.value)) < 20_000


def test_what_is_left_out_of_a_long_list_of_problems_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(HEAD + "[train]\n" + "".join(f"x{i} = {i}\n" for i in range(5000)), encoding="utf-8")

    with pytest.raises(RecipeError) as caught:
        load(path)

    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert str(caught.value.problems[-1]) == f"{path}: and 4,950 more problems; correct these first"


def test_a_named_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.toml")

    with pytest.raises(RecipeError, match="is a named pipe"):
        load(tmp_path / "x.toml")


def test_a_recipe_under_a_hostile_name_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / f"{LONG}.toml", tmp_path / LONG / "x.toml", Path("~nobody_x/x.toml"), Path("/dev/zero")):
        with pytest.raises(RecipeError):
            load(path)


def test_dots_and_brackets_in_texts_and_comments_are_no_levels(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    deep = "[" * 100 + ".".join("a" * 100)
    path.write_text(f"# {deep}\n{HEAD}columns = {{ prompt = '{deep}', messages = \"{deep}\" }}\n", encoding="utf-8")
    columns = '"""\n' + deep + '\n"""'
    path.write_text(path.read_text().replace(f'"{deep}"', columns), encoding="utf-8")

    assert load(path).recipe.data.columns == {"prompt": deep, "messages": f"{deep}\n"}
