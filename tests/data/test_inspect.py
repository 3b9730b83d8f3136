from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fastft.data.inspect import inspect
from fastft.errors import Where
from fastft.recipe.model import DataSection

ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


def test_a_good_section_has_facts_and_no_problems(tmp_path: Path, locate: Callable[[str], Where]) -> None:
    (tmp_path / "train.jsonl").write_text(ROW)
    found = inspect(DataSection(train="train.jsonl", eval="org/name:test"), tmp_path, locate)
    assert (found.recipe_problems, found.data_problems) == ((), ())
    assert [(source.key, source.format) for source in found.sources] == [
        ("data.train", "messages"),
        ("data.eval", None),
    ]
    assert found.sources[0].bytes == len(ROW)


def test_all_problems_are_reported_at_once(tmp_path: Path, locate: Callable[[str], Where]) -> None:
    (tmp_path / "eval.jsonl").write_text('{"question": "a"}\n')
    found = inspect(DataSection(train="trian.jsonl", eval="eval.jsonl", chat_template="llama3.1"), tmp_path, locate)
    assert [problem.field for problem in found.data_problems] == ["data.train", "data.format"]
    assert [str(problem.where).rsplit("/", 1)[-1] for problem in found.data_problems] == [
        "recipe.toml:7",
        "eval.jsonl:1",
    ]
    assert [problem.instead for problem in found.recipe_problems] == ['did you mean "llama-3.1"?']


def test_only_the_first_rows_are_read(tmp_path: Path, locate: Callable[[str], Where]) -> None:
    (tmp_path / "train.jsonl").write_text(ROW * 30 + "{broken\n")
    assert inspect(DataSection(train="train.jsonl"), tmp_path, locate).data_problems == ()


def test_a_broken_first_row_does_not_hide_the_format(tmp_path: Path, locate: Callable[[str], Where]) -> None:
    (tmp_path / "train.jsonl").write_text("{broken\n" + ROW)
    assert inspect(DataSection(train="train.jsonl"), tmp_path, locate).sources[0].format == "messages"


def test_a_file_of_broken_rows_only_is_reported(tmp_path: Path, locate: Callable[[str], Where]) -> None:
    (tmp_path / "train.jsonl").write_text("{broken\n")
    problems = inspect(DataSection(train="train.jsonl"), tmp_path, locate).data_problems
    assert ["not valid JSON" in str(problem) for problem in problems] == [True]


def test_a_file_none_of_whose_first_rows_can_be_trained_is_not_sound(
    tmp_path: Path, locate: Callable[[str], Where]
) -> None:
    row = json.dumps({**json.loads(ROW), "label": False})
    (tmp_path / "train.jsonl").write_text(f"{row}\n{row}\n")
    problems = inspect(DataSection(train="train.jsonl"), tmp_path, locate).data_problems
    assert ["train.jsonl:1: label: preferences are not trained" in str(problem) for problem in problems] == [True]
    (tmp_path / "train.jsonl").write_text(f"{row}\n{row}\n{ROW}\n")
    assert inspect(DataSection(train="train.jsonl"), tmp_path, locate).data_problems == ()


def test_the_inspection_loads_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(ROW)
    program = (
        "import sys; from pathlib import Path; from fastft.data.inspect import inspect\n"
        "from fastft.errors import Where; from fastft.recipe.model import DataSection\n"
        f"inspect(DataSection(train='train.jsonl'), Path({str(tmp_path)!r}), lambda key: Where('r'))\n"
        "heavy = {'tokenizers', 'jinja2', 'datasets', 'pyarrow', 'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_columns_are_checked_under_the_names_that_the_recipe_gives(
    tmp_path: Path, locate: Callable[[str], Where]
) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    columns = {"prompt": "question", "completion": "answer"}
    found = inspect(DataSection(train="train.jsonl", columns=columns), tmp_path, locate)
    assert [source.format for source in found.sources] == ["prompt_completion"]
