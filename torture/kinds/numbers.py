"""A loss that becomes no number: the run stops with a reason, and no saved file holds such a value."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.engine.tiny import make_rows, write_rows
from torture.case import Case, Outcome
from torture.process import command
from torture.subject import RUN, write_subject

KIND = "numbers"
STEPS = (1, 2, 3, 5, 7, 10, 12)


def prepare(shared: Path, base: Path) -> None:
    """The base, whose loss is NaN as soon as it reads a "Z"."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    token = Tokenizer.from_file(str(base / "tokenizer.json")).token_to_id("Z")
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    model.save_pretrained(shared / "poisoned")
    AutoTokenizer.from_pretrained(base).save_pretrained(shared / "poisoned")


def cases(shared: Path, base: Path, seed: int) -> list[Case]:
    ways: dict[str, dict[str, object]] = {"each step logged": {}, "no step logged": {"train.logging_steps": 100}}
    return [
        Case(KIND, f"{way}, step {step}", partial(poisoned, shared / "poisoned", step, changes, way))
        for way, changes in ways.items()
        for step in STEPS
    ]


def poisoned(base: Path, step: int, changes: dict[str, object], way: str, folder: Path) -> Outcome:
    import torch
    from safetensors.torch import load_file

    from fastft.engine.sampler import EpochSampler

    recipe = write_subject(folder, base, {**changes, "train.save_steps": 1, "train.num_train_epochs": 2})
    rows = make_rows(24)
    if step <= 6:
        order = list(EpochSampler(24, seed=11, lengths=None, step_rows=4, grouped=False))
        rows[order[(step - 1) * 4]]["messages"][0]["content"] = "Z"
        write_rows(folder / "train.jsonl", rows)
    else:  # each row is read in the first epoch: only many more rows bring one later
        rows = make_rows(24 * 3)
        order = list(EpochSampler(len(rows), seed=11, lengths=None, step_rows=4, grouped=False))
        rows[order[(step - 1) * 4]]["messages"][0]["content"] = "Z"
        write_rows(folder / "train.jsonl", rows)
        recipe.write_text(recipe.read_text().replace("num_train_epochs = 2", "num_train_epochs = 1"))
    ended = command(RUN, folder)
    if ended.is_traceback or ended.code < 0:
        return Outcome("traceback", 0.0, way, f"exit {ended.code}: {ended.last_line}")
    poison = [
        str(file.relative_to(folder))
        for file in folder.glob("runs/**/*.safetensors")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in load_file(file).values())
    ]
    if poison or ended.code == 0:
        return Outcome("silent", 0.0, way, f"exit {ended.code}: {poison[:2]}")
    said = ended.code == 1 and ("no number" in ended.shown or "nan" in ended.shown)
    return Outcome("said" if said else "wrong answer", 0.0, way, ended.last_line)
