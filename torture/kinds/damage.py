"""Each file of a run, damaged in five ways: never a wrong result without a word, never a traceback."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

from torture.case import Case, Outcome
from torture.kinds.resume import stopped_at
from torture.process import Child, Ended, command
from torture.subject import RICH, RUN, compare, copy, write_facts, write_subject

KIND = "damage"
STOPPED = (
    "settings.json",
    "manifest.json",
    "before.json",
    "held_out.json",
    "metrics.jsonl",
    "recipe.toml",
    "checkpoints/step-6/adapter_model.safetensors",
    "checkpoints/step-6/optimizer.pt",
    "checkpoints/step-6/trainer_state.json",
)
FINISHED = ("result.json", "adapter/adapter_model.safetensors", "exports/merged_16bit/model.safetensors")
WAYS = ("empty", "half", "bit", "hostile", "list")
HOSTILE = '{"settings": 1e308, "steps": -1, "seed": [[[]]], "files": "many", "step": null, "schema": {}}'


def prepare(shared: Path, base: Path) -> None:
    """A run stopped behind step 6 of 12, and the same one finished."""
    write_subject(shared / "subject", base, {**RICH, "model.id": str(base)})
    copy(shared / "subject", shared / "finished")
    command(RUN, shared / "finished")
    write_facts(shared / "finished", shared / "facts.json")
    copy(shared / "subject", shared / "stopped")
    assert stopped_at(Child(RUN, shared / "stopped"), shared / "stopped", 7)


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    return [
        Case(KIND, f"{name}, {way}", partial(damaged, shared, name, way, seed))
        for name in (*STOPPED, *FINISHED)
        for way in WAYS
    ]


def damage(path: Path, way: str, seed: int) -> None:
    content = bytearray(path.read_bytes())
    chance = random.Random(f"{seed} {path.name} {way}")  # noqa: S311  not for secrets
    if way == "bit" and content:
        content[chance.randrange(len(content) // 4, len(content))] ^= 1 << chance.randrange(7)
    made = {"empty": b"", "half": bytes(content[: len(content) // 2]), "hostile": HOSTILE.encode(), "list": b"[1, 2]\n"}
    path.unlink()
    path.write_bytes(made.get(way, bytes(content)))


def damaged(shared: Path, name: str, way: str, seed: int, folder: Path) -> Outcome:
    if name in STOPPED:
        copy(shared / "stopped", folder)
        if name.startswith("checkpoints"):
            newest = max((folder / "runs/subject/checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
            damage(newest / Path(name).name, way, seed)
        else:
            damage(folder / "runs/subject" / name, way, seed)
        ended = command(RUN, folder)
        if ended.code == 0:
            return compare(folder, ended, shared / "facts.json", name)
        return _refused([ended], Path(name).name, name)
    copy(shared / "finished", folder)
    damage(folder / "runs/subject" / name, way, seed)
    weights = "runs/subject/exports/merged_16bit" if name.startswith("exports") else "runs/subject"
    asked = [
        command(("export", weights, "--to", "gguf", "--quant", "q8_0", "--out", "again"), folder),
        command(("chat", weights, "--prompt", "why?"), folder),
    ]
    if name == "result.json":
        asked.append(command((*RUN, "--resume"), folder))
    return _refused(asked, Path(name).name, name)


def _refused(asked: list[Ended], name: str, group: str) -> Outcome:
    """The worst of what the commands answered; each must name the damaged file."""
    took = max(ended.cpu_seconds for ended in asked)
    for ended in asked:
        if ended.is_traceback or ended.code < 0:
            return Outcome("traceback", took, group, f"exit {ended.code}: {ended.last_line}")
        if ended.code == 0:
            return Outcome("silent", took, group, ended.last_line)
        if name not in ended.shown:
            return Outcome("wrong answer", took, group, f"exit {ended.code}: {ended.last_line}")
    return Outcome("slow" if took > 3 else "refused", took, group, asked[-1].last_line)
