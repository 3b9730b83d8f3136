"""Rows of task = "preference": a pair of conversations that part at an answer, or one answer with a verdict.

Read are the forms of TRL (prompt, chosen, rejected; conversations with an implicit prompt; completion and label), of
UltraFeedback (whole conversations beside the prompt), of LLaMA-Factory (conversations or instruction before chosen and
rejected) and of Anthropic's HH-RLHF (one text with Human: and Assistant:).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fastft.data.columns import Columns
from fastft.data.example import Message
from fastft.data.json_rows import json_kind
from fastft.data.turns import Turns, read_turns
from fastft.data.values import as_text, says_something
from fastft.errors import DataError, Problem, Where

# HH-RLHF writes a whole conversation as one text: "\n\nHuman: ...\n\nAssistant: ...".
_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_VERDICTS = {"true": True, "false": False, "1": True, "0": False}


def read_pair(row: Columns, where: Where, turns: Turns) -> tuple[list[Message], list[Message]]:
    """The conversations that end in the chosen and in the rejected answer; only what they do not share is trained.

    Raises:
        DataError: they are the same, or part elsewhere than at an answer.
    """
    prompt = _prompt(row, where, turns)
    chosen, rejected = (_side(row[name], prompt, where, name, turns) for name in ("chosen", "rejected"))
    pairs = list(zip(chosen, rejected, strict=False))
    shared = next((number for number, (one, other) in enumerate(pairs) if one.said != other.said), len(pairs))
    if shared == len(chosen) == len(rejected):
        raise DataError(Problem(where, "rejected", "equals chosen: there is nothing to prefer", "remove the row"))
    if shared == len(pairs) or shared == 0 or {chosen[shared].role, rejected[shared].role} != {"assistant"}:
        wrong = "chosen and rejected do not part at an answer"
        raise DataError(Problem(where, "rejected", wrong, "write two answers to the same question"))
    return _trained_from(chosen, shared), _trained_from(rejected, shared)


def read_verdict(row: Columns, where: Where, turns: Turns) -> tuple[list[Message], bool]:
    """A conversation of which only the last answer is judged, and whether that answer is good.

    Raises:
        DataError: there is no verdict, or no answer.
    """
    value = row["label"]
    verdict = _VERDICTS.get(str(value).strip().lower())
    if verdict is None:
        wrong = "is no verdict"
        raise DataError(
            Problem(where, "label", wrong, "write true for a good answer, false for a bad", json_kind(value))
        )
    answer = next((column for column in ("completion", "output") if column in row), None)
    prompt = _prompt(row, where, turns)
    messages = prompt if answer is None else _side(row[answer], prompt, where, answer, turns)
    return _trained_from(messages, len(messages) - 1), verdict


def _trained_from(messages: Sequence[Message], first: int) -> list[Message]:
    """The messages, with loss only from number `first` on."""
    return [replace(message, trained=message.trained and number >= first) for number, message in enumerate(messages)]


def _prompt(row: Columns, where: Where, turns: Turns) -> list[Message]:
    """The messages before the answers; none where each side is a whole conversation."""
    own = Turns(turns.ignored)
    prompt = row.get("prompt")
    listed = next((name for name in ("messages", "conversations") if says_something(row.get(name))), None)
    if isinstance(prompt, str) and prompt and not prompt.lstrip().startswith("[{"):
        own.messages.append(Message("user", as_text(prompt, where, "prompt")))
    elif says_something(prompt):
        read_turns(prompt, where, "prompt", own)
    elif says_something(row.get("instruction")):
        parts = [as_text(row[name], where, name) for name in ("instruction", "input") if says_something(row.get(name))]
        own.messages.append(Message("user", "\n".join(parts)))
    elif listed is not None:
        read_turns(row[listed], where, listed, own)
    turns.unused |= own.unused
    return own.messages


def _side(value: object, prompt: list[Message], where: Where, name: str, turns: Turns) -> list[Message]:
    """The whole conversation of one answer: behind the prompt, unless it has its questions itself."""
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        if prompt:
            return [*prompt, Message("assistant", as_text(value, where, name))]
        return _hh_turns(value, where, name)
    own = Turns(turns.ignored)
    read_turns([value] if isinstance(value, Mapping) else value, where, name, own)
    turns.unused |= own.unused
    if own.messages and own.messages[0].role == "assistant":
        return [*prompt, *own.messages]
    asked = [message.content.strip() for message in own.messages]
    lacking = next((one for one in prompt if one.role == "user" and one.content.strip() not in asked), None)
    if lacking is not None:
        wrong = "begins with another question than the prompt"
        raise DataError(Problem(where, name, wrong, "keep one of the two", got=lacking.content[:80]))
    return own.messages


def _hh_turns(text: str, where: Where, name: str) -> list[Message]:
    """The turns of a text in the form of HH-RLHF."""
    marks = list(_HH_TURN.finditer(text))
    if not marks or marks[0].start() or marks[0][1] != "Human":
        instead = 'write the question into the column "prompt", or conversations into chosen and rejected'
        raise DataError(Problem(where, name, "there is no question before this answer", instead))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        Message("user" if mark[1] == "Human" else "assistant", text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    ]
