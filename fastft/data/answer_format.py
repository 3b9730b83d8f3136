"""Whether answers have a format: JSON, YAML, or a regular expression, in a process with limits on time and memory."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastft.data.limited import run_limited

# Texts of one process. A longer answer is cut, and so is hardly valid.
TOGETHER, LONGEST = 100, 20_000


def valid_answers(answers: Sequence[str], form: str | None, pattern: str | None) -> list[bool]:
    """Of each answer, whether it is `form` ("json" or "yaml") or, without one, matches `pattern` as a whole.

    An answer that needs more than `run_limited` allows is not valid.
    """
    found: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.txt"
        while len(found) < len(answers):
            texts = [text[:LONGEST] for text in answers[len(found) : len(found) + TOGETHER]]
            out.write_text("", encoding="utf-8")
            run_limited(check_answers, {"texts": texts, "form": form, "pattern": pattern, "out": str(out)})
            marks = out.read_text(encoding="utf-8")
            found += [mark == "1" for mark in marks]
            if len(marks) < len(texts):
                found.append(False)  # the one that the process ended in
    return found


def check_answers(task: dict[str, Any]) -> None:
    """Write 1 or 0 for each text to the file `out`, at once; only in a limited process."""
    with Path(task["out"]).open("w", encoding="utf-8") as file:
        for text in task["texts"]:
            file.write("1" if _is_valid(text, task["form"], task["pattern"]) else "0")
            file.flush()


def _is_valid(text: str, form: str | None, pattern: str | None) -> bool:
    if form == "json":
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return False
        return True
    if form == "yaml":
        import yaml

        try:
            return isinstance(yaml.safe_load(text), dict | list)
        except (yaml.YAMLError, ValueError, RecursionError):
            return False
    return pattern is not None and re.fullmatch(pattern, text) is not None
