"""Bad recipes: those of the tests, hostile ones, and each key with values of a wrong type; under a second each."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path

from fastft.recipe.reference import schema
from tests.recipe.test_hostile import HOSTILE
from tests.test_bad_recipes import FOLDER, RECIPES
from torture.case import Case, Outcome
from torture.process import command
from torture.subject import refusal

KIND, COUNT = "recipes", 350
SECOND = 1.0
VALID = {"model": '[model]\nid = "./base"\n', "data": '[data]\ntrain = "rows.jsonl"\n'}
# Of a type that no key takes: a table whose values are dates, a list of lists, a time.
WRONG = {"table": "{ a = 2020-01-01 }", "lists": "[[1], [[2]]]", "time": "07:32:00", "huge": "1" * 400}
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


def prepare(shared: Path, base: Path) -> None:
    shutil.copytree(FOLDER, shared / "bad")


def keys() -> list[tuple[str, str]]:
    """(section, key) of every key."""
    sections = schema()["$defs"]
    names = {"model": "ModelSection", "lora": "LoraSection", "data": "DataSection", "train": "TrainSection"}
    names |= {"eval": "EvalSection", "export": "ExportSection"}
    return [(section, key) for section, name in names.items() for key in sections[name]["properties"]]


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    chance = random.Random(f"{seed} {KIND}")  # noqa: S311  not for secrets
    listed = [Case(KIND, f"test {path.stem}", partial(written, shared, path.name)) for path in RECIPES]
    listed += [Case(KIND, f"hostile {name}", partial(made, base, HOSTILE[name][0], "hostile")) for name in HOSTILE]
    wrong = [
        Case(KIND, f"{section}.{key} is {kind}", partial(made, base, with_key(section, f"{key} = {value}"), kind))
        for section, key in keys()
        for kind, value in WRONG.items()
    ]
    wrong += [
        Case(
            KIND, f"{section}.{key} misspelt", partial(made, base, with_key(section, misspelt(key, chance)), "misspelt")
        )
        for section, key in keys()
    ]
    return [*listed, *chance.sample(wrong, COUNT - len(listed))]


def misspelt(key: str, chance: random.Random) -> str:
    place = chance.randrange(len(key))
    return f"{key[:place]}{chance.choice('qxz')}{key[place:]} = 1"


def with_key(section: str, line: str) -> str:
    parts = dict(VALID)
    if line.startswith(("id =", "train =")):
        parts[section] = f"[{section}]\n"
    parts[section] = parts.get(section, f"[{section}]\n") + line + "\n"
    return "".join(parts.values())


def written(shared: Path, name: str, folder: Path) -> Outcome:
    return refusal(command(("check", name), _there(shared / "bad", folder)), "recipes of the tests", limit=SECOND)


def _there(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


def made(base: Path, text: str, group: str, folder: Path) -> Outcome:
    (folder / "base").symlink_to(base)
    (folder / "rows.jsonl").write_text(ROW, encoding="utf-8")
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return refusal(command(("check", "recipe.toml"), folder), group, limit=SECOND)
