"""Secrets in 20 forms, in recipe, override and environment: not a byte of them in what is printed or written."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from tests.test_secrets import CANARY, TEXTS
from torture.case import Case, Outcome
from torture.process import command
from torture.subject import RUN, write_subject

KIND = "secrets"


def prepare(shared: Path, base: Path) -> None:
    """Nothing is shared."""


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    return [
        Case(KIND, f"{number}: {text}".replace(CANARY, "..."), partial(leaks, base, text))
        for number, text in enumerate(TEXTS)
    ]


def leaks(base: Path, text: str, folder: Path) -> Outcome:
    recipe = write_subject(folder, base, {"train.max_steps": 1, "train.num_train_epochs": None})
    with recipe.open("a", encoding="utf-8") as file:
        file.write(f"# {text}\n")
    environment = partial(os.environ.update, {"HF_TOKEN": f"hf_{CANARY}", "WANDB_API_KEY": CANARY})
    value = text.replace("'", "").replace('"', "")
    asked = [
        command(RUN, folder, environment),
        command(("check", "subject.toml", "--set", f"model.id={value}"), folder, environment),
        command(("plan", "subject.toml", "--set", f"data.train={value}", "--json"), folder, environment),
        command(("run", "subject.toml", "--set", value), folder, environment),
    ]
    took = max(ended.cpu_seconds for ended in asked)
    if any(ended.is_traceback for ended in asked):
        return Outcome("traceback", took, "", next(ended.last_line for ended in asked if ended.is_traceback))
    if asked[0].code != 0:
        return Outcome("harness", took, "", asked[0].last_line)
    found = [str(number) for number, ended in enumerate(asked) if CANARY in ended.shown]
    for path in folder.rglob("*"):
        if path.is_file() and path != recipe and CANARY.encode() in path.read_bytes():
            found.append(str(path.relative_to(folder)))
    return Outcome("leak" if found else "exact", took, "", ", ".join(found[:5]))
