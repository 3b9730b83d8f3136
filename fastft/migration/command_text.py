"""Arguments on a command line, in a shell script, a page of text, or standard input."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from fastft.errors import Problem, UsageError, Where
from fastft.migration.arguments import Argument, Source

_STARTS = (
    "deepspeed",
    "torchrun",
    "accelerate",
    "trl",
    "swift",
    "llamafactory-cli",
    "axolotl",
    "python",
    "python3",
    "uv",
)
_ASSIGNED = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)")


def read_commands(path: str, text: str) -> Source:
    """The arguments of the one training command in `text`.

    Raises:
        UsageError: there is none, or there are several.
    """
    known: dict[str, str] = {}
    found: list[tuple[int, list[str]]] = []
    for line, command in _logical_lines(text):
        command = re.sub(r"\$\{?([A-Za-z_]\w*)\}?", lambda name: known.get(name[1], name[0]), command)
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            continue
        while words and (assigned := _ASSIGNED.fullmatch(words[0])):
            known[assigned[1]] = assigned[2]
            words = words[1:]
        if words and words[0].rsplit("/", 1)[-1] in _STARTS and sum(word.startswith("--") for word in words) >= 2:
            found.append((line, words))
    if not found:
        raise UsageError(
            Problem(Where(path), "", "has no command that trains", "write the whole command with its --flags")
        )
    if len(found) > 1:
        lines = ", ".join(str(line) for line, _ in found)
        wrong = f"has {len(found)} commands, on lines {lines}"
        raise UsageError(Problem(Where(path), "", wrong, "keep one of them, or give it as fastft convert -"))
    line, words = found[0]
    arguments = _flags(words, line)
    if "NPROC_PER_NODE" in known:  # ms-swift reads it
        arguments = (*arguments, Argument("nproc_per_node", known["NPROC_PER_NODE"], line))
    return Source(path, "a command line", _tool(words, {argument.name for argument in arguments}), arguments)


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """(first line, text) of each command, with the lines that it continues on."""
    lines: list[tuple[int, str]] = []
    open_line: tuple[int, str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        start, before = open_line or (number, "")
        joined = before + line.strip().removeprefix("$ ")
        open_line = (start, joined[:-1] + " ") if joined.endswith("\\") else None
        if open_line is None:
            lines.append((start, joined))
    return [*lines, open_line] if open_line else lines


def _flags(words: Sequence[str], line: int) -> tuple[Argument, ...]:
    """`--name value`, `--name=value`, `--name` (true) and `--name a b` (a list), in order."""
    arguments: list[Argument] = []
    name, values = "", list[str]()

    def finish() -> None:
        value: Any = True if not values else values[0] if len(values) == 1 else list(values)
        if name:
            arguments.append(Argument(name.replace("-", "_"), value, line))

    for word in words:
        if word.startswith("--") and len(word) > 2:
            finish()
            name, equals, value = word[2:].partition("=")
            values = [value] if equals else []
        elif name and not _ends_launcher(word, name, values):
            values.append(word)
    finish()
    task = next((words[at + 1] for at, word in enumerate(words[:-1]) if word in ("trl", "swift")), None)
    return ((Argument("task", task, line),) if task else ()) + tuple(arguments)


def _ends_launcher(word: str, name: str, values: Sequence[str]) -> bool:
    """Whether a word is the program that a launcher starts, behind the value of the launcher's own flag."""
    return word == "-m" or (word.endswith(".py") and (bool(values) or name in ("hostfile", "force_multi")))


def _tool(words: Sequence[str], names: set[str]) -> str:
    """The tool that a command starts."""
    programs = {word.rsplit("/", 1)[-1] for word in words[:12]}
    if "swift" in programs:
        return "ms-swift"
    if names & {"stage", "finetuning_type", "cutoff_len"}:
        return "LLaMA-Factory"
    return "TRL" if "trl" in programs or words[0] == "trl" else "a training script"
