"""Models, adapters, templates, GGUF files and run folders that are made to harm: refused soon, in one sentence."""

from __future__ import annotations

import json
import random
import struct
from functools import partial
from pathlib import Path
from typing import Any

from tests.exports.test_hostile import ADAPTERS, CONFIGS, TEMPLATES, write_config
from tests.exports.tiny import write_adapter, write_base
from torture.case import Case, Outcome
from torture.process import command
from torture.subject import refusal

KIND, COUNT = "artefacts", 130
# The limit of the process that tries a foreign template or expression is 2 s of its own.
SOON_SECONDS = 3.5
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def prepare(shared: Path, base: Path) -> None:
    from fastft.exports.gguf.writer import write_gguf

    write_gguf(base, None, shared / "model.gguf", "f16")


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    chance = random.Random(f"{seed} {KIND}")  # noqa: S311  not for secrets
    listed = [Case(KIND, f"config, {name}", partial(config, CONFIGS[name][0])) for name in CONFIGS]
    listed += [Case(KIND, f"adapter, {name}", partial(adapter, ADAPTERS[name][0])) for name in ADAPTERS]
    listed += [Case(KIND, f"template, {name}", partial(template, base, TEMPLATES[name])) for name in TEMPLATES]
    listed += [Case(KIND, f"run, {name}", partial(run_folder, RUNS[name])) for name in RUNS]
    listed += [Case(KIND, f"weights, {name}", partial(weights, base, name)) for name in WEIGHTS]
    for number in range(COUNT - len(listed)):
        listed.append(Case(KIND, f"GGUF {number}", partial(gguf, shared, number, chance.random())))
    return listed


def _recipe(folder: Path, model: str, more: str = "") -> None:
    (folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    text = f'[model]\nid = "{model}"\nengine = "transformers"\n[data]\ntrain = "rows.jsonl"\n{more}'
    (folder / "recipe.toml").write_text(text, encoding="utf-8")


def config(value: object, folder: Path) -> Outcome:
    write_config(folder / "base", value)
    _recipe(folder, "./base")
    return refusal(command(("plan", "recipe.toml"), folder), "config.json", limit=SOON_SECONDS)


def adapter(changes: dict[str, Any], folder: Path) -> Outcome:
    write_base(folder / "base")
    write_adapter(folder / "adapter", **{"base_model_name_or_path": str(folder / "base"), **changes})
    ended = command(("export", "adapter", "--to", "merged_16bit"), folder)
    return refusal(ended, "adapter_config.json", limit=SOON_SECONDS)


def template(base: Path, source: str, folder: Path) -> Outcome:
    (folder / "odd.jinja").write_text(source, encoding="utf-8")
    _recipe(folder, str(base), 'chat_template = "odd.jinja"\n')
    return refusal(command(("check", "--data", "recipe.toml"), folder), "chat template", limit=SOON_SECONDS)


RUNS = {
    "empty records": {"recipe.toml": "", "settings.json": "", "result.json": ""},
    "lists": {"recipe.toml": "", "settings.json": "[]", "result.json": "[]", "manifest.json": "[]"},
    "brackets": {"recipe.toml": "", "settings.json": "[" * 100_000, "result.json": "[" * 100_000},
    "digits": {"recipe.toml": "", "settings.json": "{}", "result.json": '{"steps": ' + "9" * 100_000 + "}"},
    "nulls": {"recipe.toml": "\0", "settings.json": "null", "result.json": "null"},
    "tables of tables": {"recipe.toml": "", "settings.json": '{"a":' * 5000 + "1" + "}" * 5000, "result.json": "{}"},
    "no weights": {"recipe.toml": "", "settings.json": "{}", "result.json": "{}"},
    "another schema": {"recipe.toml": "", "settings.json": '{"schema": 99}', "result.json": '{"schema": 99}'},
}


def run_folder(files: dict[str, str], folder: Path) -> Outcome:
    run = folder / "runs" / "odd"
    run.mkdir(parents=True)
    for name, text in files.items():
        (run / name).write_text(text, encoding="utf-8")
    asked = [command((name, "runs/odd", *more), folder) for name, more in (("export", ()), ("chat", ("--prompt", "a")))]
    outcomes = [refusal(ended, "run folder", limit=SOON_SECONDS) for ended in asked]
    return next((outcome for outcome in outcomes if not outcome.is_good), outcomes[0])


WEIGHTS = ("empty", "cut", "header too long", "header is no JSON", "offsets beyond the end", "overlapping", "a pickle")


def weights(base: Path, way: str, folder: Path) -> Outcome:
    """A base whose safetensors file is broken."""
    made = folder / "base"
    made.mkdir()
    for file in base.iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    file = made / "model.safetensors"
    whole = file.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    first, second = [name for name in header if name != "__metadata__"][:2]
    if way == "offsets beyond the end":
        header[first]["data_offsets"] = [0, 10**15]
    if way == "overlapping":
        header[first]["data_offsets"] = header[second]["data_offsets"]
    text = json.dumps(header).encode()
    contents = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "header too long": struct.pack("<Q", 2**60) + whole[8:],
        "header is no JSON": struct.pack("<Q", 100) + b"{" * 100 + whole[108:],
        "a pickle": b"\x80\x04\x95" + whole,
    }
    file.write_bytes(contents.get(way, struct.pack("<Q", len(text)) + text + whole[8 + size :]))
    _recipe(folder, "./base")
    ended = command(("run", "recipe.toml"), folder)
    return refusal(ended, "safetensors", limit=SOON_SECONDS, names="safetensors")


def gguf(shared: Path, number: int, place: float, folder: Path) -> Outcome:
    """A GGUF file that is cut, or whose header has other bytes."""
    whole = bytearray((shared / "model.gguf").read_bytes())
    if number % 3 == 0:
        whole = whole[: int(place * len(whole))]
    elif number % 3 == 1:
        start = 8 + int(place * 16)  # numbers of tensors and of keys
        whole[start : start + 4] = b"\xff\xff\xff\x7f"
    else:
        start = 24 + int(place * 200)
        whole[start : start + 12] = b"\xff" * 12
    (folder / "model.gguf").write_bytes(whole)
    ended = command(("chat", "model.gguf", "--prompt", "a"), folder)
    return refusal(ended, "GGUF", limit=SOON_SECONDS, names="model.gguf")
