"""The starter recipe, made from the recipe model, and a few training rows for it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Literal

from fastft.recipe.reference import fields, reference, sections

# The keys that the starter sets; all others are comments with their default.
_STARTER_VALUES = {
    "model.id": '"HuggingFaceTB/SmolLM2-135M-Instruct"',
    "model.max_seq_length": "1024",
    "data.train": '"{name}.jsonl"',
    "data.eval_fraction": "0.25",
    "train.effective_batch_size": "8",
    "train.num_train_epochs": "3",
    "train.learning_rate": "2e-4",
    "train.lr_scheduler_type": '"cosine"',
    "train.warmup_ratio": "0.05",
}
# Labels for the rows of a classification: south of 31 degrees.
_SOUTH = ("Lima.", "Nairobi.", "Hanoi.", "Cairo.")
Task = Literal["sft", "classification", "preference"]
# The usual rate of an adapter is far too high for preferences: their own default stands.
_OF_TASK: Mapping[Task, Mapping[str, str]] = {
    "sft": {},
    "classification": {},
    "preference": {"train.learning_rate": "2e-5"},
}
_STARTER_ROWS = (
    ("What is the capital of Austria?", "Vienna."),
    ("What is the capital of Peru?", "Lima."),
    ("What is the capital of Kenya?", "Nairobi."),
    ("What is the capital of Norway?", "Oslo."),
    ("What is the capital of Vietnam?", "Hanoi."),
    ("What is the capital of Canada?", "Ottawa."),
    ("What is the capital of Egypt?", "Cairo."),
    ("What is the capital of Portugal?", "Lisbon."),
)


def starter(name: str, values: Mapping[str, str] | None = None, device: str | None = None, task: Task = "sft") -> str:
    """A commented recipe with every key and its documentation; the usual keys are set, the others commented out.

    `values`: `section.key` -> TOML, besides the usual keys; `device`: what the command of the forecast names.
    """
    chosen = {**_STARTER_VALUES, **_OF_TASK[task], **(values or {})}
    forecast = f"plan {name}.toml" if device is None else f"plan {name}.toml --device {device}"
    commands = {
        f"check {name}.toml": "every problem that shows without a GPU",
        forecast: "the forecast and the automatic choices",
        f"run {name}.toml": "train, evaluate, save",
        "explain KEY": "what a key does",
    }
    width = max(len(command) for command in commands)
    lines = [
        f"# {name}.toml, a fastft recipe. Lines that begin with # are off and show the default.",
        *(f"#   fastft {command:<{width}}   {what}" for command, what in commands.items()),
    ]
    if task != "sft":
        lines += ["", *(f"# {line}" for line in textwrap.wrap(reference("task").summary, 116)), f'task = "{task}"']
    for section, model in sections().items():
        lines += ["", f"# {' '.join((model.__doc__ or '').split())}", f"[{section}]"]
        for field in (field for field in fields() if field.startswith(section + ".")):
            lines += _starter_lines(field, chosen.get(field, "").replace("{name}", name))
    return "\n".join(lines) + "\n"


def _starter_lines(field: str, value: str) -> list[str]:
    entry = reference(field)
    key = field.split(".")[1]
    comment = [f"# {line}" for line in textwrap.wrap(entry.summary, 116)]
    if value:
        return [*comment, f"{key} = {value}"]
    shown = entry.default if entry.default != "not set" else "..."
    return [*comment, f"# {key} = {shown}"]


def starter_rows(task: Task = "sft") -> str:
    """A few training rows that show the format of `task`, as JSON lines."""
    return "".join(json.dumps(_starter_row(question, answer, task)) + "\n" for question, answer in _STARTER_ROWS)


def _starter_row(question: str, answer: str, task: Task) -> Mapping[str, object]:
    if task == "classification":
        return {"text": f"{answer.rstrip('.')} is a capital.", "label": "south" if answer in _SOUTH else "north"}
    if task == "preference":
        return {"prompt": question, "chosen": answer, "rejected": f"What a good question! I think it is {answer}"}
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
