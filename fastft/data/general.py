"""The regression set: 100 short general questions with checkable answers, which show what a model forgets."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastft.data.content import final_text
from fastft.data.example import Example, Message
from fastft.data.render import Prompt, Renderer, render_prompt
from fastft.errors import DataError, Where

# An answer is right or wrong within its first words.
GENERAL_TOKENS = 8
FILE = "general_questions.jsonl"


@dataclass(frozen=True)
class Question:
    """`accept`: a regular expression that is found in a right answer, whatever its case."""

    kind: str
    ask: str
    accept: str

    def is_right(self, answer: str) -> bool:
        return re.search(self.accept, final_text(answer), re.IGNORECASE) is not None


@cache
def questions() -> tuple[Question, ...]:
    """All of them, in the order of the file."""
    text = files("fastft.data").joinpath(FILE).read_text(encoding="utf-8")
    return tuple(Question(**json.loads(line)) for line in text.splitlines())


@dataclass(frozen=True)
class General:
    """The questions as prompts, all of them or none; `missing`: why there are none although they were asked for."""

    prompts: tuple[Prompt, ...] = ()
    missing: str = ""


def general_prompts(renderer: Renderer) -> General:
    """The questions in the chat template of the run, which may refuse a question without more around it."""
    made = []
    for number, each in enumerate(questions(), 1):
        messages = (Message("user", each.ask), Message("assistant", each.accept))
        try:
            made.append(render_prompt(Example(Where(FILE, number), messages), renderer))
        except DataError as error:
            return General(missing=f"the chat template refuses a question alone: {error.problems[0].wrong}")
    return General(tuple(made))
