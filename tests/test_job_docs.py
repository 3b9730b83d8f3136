"""The commands of the pages for a job that need no training do what the page says; the keys of docs/loss.md exist."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from fastft.cli import main
from fastft.recipe.reference import fields

DOCS = Path(__file__).parents[1] / "docs"


def test_a_csv_becomes_a_recipe_by_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "csv_to_ollama.md").read_text(encoding="utf-8")
    rows = re.search(r"```csv\n(.*?)```", page, re.DOTALL)
    commands = re.search(r"```bash\n(.*?)```", page, re.DOTALL)
    assert rows
    assert commands
    monkeypatch.chdir(tmp_path)
    Path("faq.csv").write_text(rows[1] + rows[1].split("\n", 1)[1] * 9)

    for line in commands[1].splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code, line


def test_files_of_other_tools_become_recipes_by_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = re.search(r"```bash\n(.*?)```", (DOCS / "from_other_tools.md").read_text(encoding="utf-8"), re.DOTALL)
    assert commands
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    Path("config.yml").write_text("model_name_or_path: org/model\ndataset_name: rows.jsonl\n")
    code = (
        "model = FastLanguageModel.from_pretrained('org/model')\nrows = load_dataset('json', data_files='rows.jsonl')\n"
    )
    code += "trainer = SFTTrainer(model=model, train_dataset=rows)\n"
    Path("notebook.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "source": [code]}]}))
    Path("run.sh").write_text("deepspeed train.py --model_name_or_path org/model --data_path rows.jsonl\n")

    for line in commands[1].splitlines():
        if line.startswith("fastft convert"):
            Path("recipe.toml").unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code, line


def test_the_page_of_costs_asks_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = re.search(r"```bash\n(.*?)```", (DOCS / "reference/costs.md").read_text(encoding="utf-8"), re.DOTALL)
    assert command
    monkeypatch.chdir(tmp_path)
    for line in ("fastft init recipe --model org/model", command[1]):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code, line


def test_the_page_about_losses_names_keys_that_exist() -> None:
    page = (DOCS / "loss.md").read_text(encoding="utf-8")
    known = {name for field in fields() for name in (field, field.split(".")[1])}
    named = {match.split(" ")[0] for match in re.findall(r"`([a-z][\w.]*(?: = [^`]+)?)`", page)} - {"report.html"}

    assert named <= known
