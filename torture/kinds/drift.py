"""One thing of a stopped run's world changed: refused by name, and accepted knowingly."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastft.files.records import write_checked
from tests.engine.tiny import make_rows, write_rows
from torture.case import Case, Outcome
from torture.kinds.resume import stopped_at
from torture.process import Child, command
from torture.subject import RUN, copy, refusal, write_subject

KIND = "drift"


def prepare(shared: Path, base: Path) -> None:
    """A run whose base lies beside it, stopped behind step 5."""
    write_subject(shared / "stopped", Path("base"), {"model.id": "./base", "data.eval": "eval.jsonl"})
    copy(base, shared / "stopped" / "base")
    child = Child(RUN, shared / "stopped")
    assert stopped_at(child, shared / "stopped", 5), child.shown


def flip(part: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "base" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[int(part * len(content))] ^= 1
        file.write_bytes(content)

    return change


def set_json(name: str, changes: dict[str, Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return change


def set_manifest(section: str, key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "runs/subject/manifest.json"
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if key:
            manifest[section][key] = value
        else:
            manifest[section] = value
        write_checked(file, manifest)  # as that fastft would have written it

    return change


def other_rows(name: str) -> Callable[[Path], None]:
    return lambda folder: _write(write_rows(folder / name, make_rows(24, seed=3)))


def add_space(name: str) -> Callable[[Path], None]:
    return lambda folder: _write((folder / name).write_text((folder / name).read_text(encoding="utf-8") + " x"))


def _write(_: object) -> None:
    """A change that was made."""


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit of the base, at 30 %": (flip(0.3), "base_model"),
    "a bit of the base, at 50 %": (flip(0.5), "base_model"),
    "a bit of the base, at 99 %": (flip(0.99), "base_model"),
    "rms_norm_eps": (set_json("base/config.json", {"rms_norm_eps": 1e-3}), "base_model"),
    "rope_theta": (set_json("base/config.json", {"rope_theta": 5e5}), "base_model"),
    "max_position_embeddings": (set_json("base/config.json", {"max_position_embeddings": 1024}), "base_model"),
    "generation_config.json": (set_json("base/generation_config.json", {"temperature": 2.0}), "base_model"),
    "the tokenizer": (set_json("base/tokenizer.json", {"normalizer": {"type": "Lowercase"}}), "tokenizer"),
    "the chat template": (add_space("base/chat_template.jinja"), "chat_template"),
    "training rows": (other_rows("train.jsonl"), "data.train_sha256"),
    "held-out rows": (other_rows("eval.jsonl"), "data.eval_sha256"),
    "fastft": (set_manifest("fastft", "", "0.0.1"), "fastft"),
    "Python": (set_manifest("python", "", "3.10.0"), "python"),
    "torch": (set_manifest("packages", "torch", "2.10.0"), "packages.torch"),
    "transformers": (set_manifest("packages", "transformers", "5.0.0"), "packages.transformers"),
    "peft": (set_manifest("packages", "peft", "0.1"), "packages.peft"),
    "trl": (set_manifest("packages", "trl", "0.1"), "packages.trl"),
    "the device": (set_manifest("device", "", "another"), "device"),
    "the seed": (set_manifest("seed", "", 5), "seed"),
    "the engine": (set_manifest("engine", "", "another"), "engine"),
}


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    return [Case(KIND, name, partial(drifted, shared, name)) for name in CHANGES]


def drifted(shared: Path, name: str, folder: Path) -> Outcome:
    change, key = CHANGES[name]
    copy(shared / "stopped", folder)
    change(folder)
    refused = refusal(command(RUN, folder), names=key)
    if not refused.is_good:
        return refused
    accepted = command((*RUN, "--accept-drift", key.partition(".")[0]), folder)
    if accepted.code != 0 and key != "tokenizer":
        return Outcome("wrong answer", refused.seconds, "", f"not accepted: {accepted.last_line}")
    return refused
