"""Turns of real files as messages: the one form of every dialect, before any chat template.

Read are OpenAI's messages (with its content parts and legacy function calls), ShareGPT, and the parts of Anthropic,
Bedrock and Gemini. What says something that no message can hold is a problem; what only describes a turn is named, so
that it can be counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastft.data.calls import read_calls
from fastft.data.content_parts import MARKS, ContentParts, read_content_parts, read_mark
from fastft.data.example import Message
from fastft.data.json_rows import json_kind
from fastft.data.values import as_list, as_text, says_something
from fastft.errors import DataError, Problem, Where, nearest

# The names in real data sets for the roles of chat templates. "call": a call of a tool as a turn of its own.
_NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "ai", "chatbot"),
    "tool": ("tool", "function", "ipython", "observation", "tool_response"),
    "call": ("function_call", "tool_call"),
}
ROLES = {name: role for role, names in _NAMES.items() for name in names}
# The keys that chat templates use besides role and content.
EXTRAS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
# Other names of a key, which mean the same.
REASONING = ("reasoning_content", "reasoning", "thinking")
_CONTENT = ("content", "value", "parts", "text")
_TEXTS = {"type", "text", "value", "content", "toolResult", "functionResponse"}
_OF_TOOLS = {"tool_name": "name", "tool_use_id": "tool_call_id"}
_PLAIN = frozenset({"role", "content", "from", "value"})
_READ = frozenset({*EXTRAS, *REASONING, *MARKS, "role", "from", "function_call"})
MEDIA = ("image", "images", "image_url", "audio", "audios", "input_audio", "video", "videos")
# Marks of a turn under names that no tool reads here: false keeps the turn out of the loss.
_LOSS_KEYS = ("training", "trained", "is_trained", "compute_loss", "loss_mask")
# Keys that change what is learnt and that no message has: what to write instead of each.
_REFUSED = {
    **dict.fromkeys(MEDIA, "only text can be trained: remove the row"),
    **dict.fromkeys(
        ("thought", "thoughts", "think", "reasoning_text", "reasoningContent", "reasoning_details"),
        'did you mean "reasoning_content"?',
    ),
    **dict.fromkeys(("toolCalls", "calls", "function_calls"), 'did you mean "tool_calls"?'),
    **dict.fromkeys(
        ("mask", "masked", "ignore_loss", "no_loss", "train_detail", "training_detail", *_LOSS_KEYS),
        'write "weight": 0 to keep a turn out of the loss',
    ),
    **dict.fromkeys(("tool_plan", "prefix"), 'write its text into "content"'),
    **dict.fromkeys(("chosen", "rejected"), "these are preferences: write the answer to learn"),
}


@dataclass
class Turns:
    """The messages that were read so far, and the names of keys without effect."""

    ignored: frozenset[str] = frozenset()
    messages: list[Message] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)


def read_turns(value: object, where: Where, name: str, turns: Turns) -> None:
    """Append the messages of the list `value`, which stands in the column `name`; CSV cells hold it as JSON.

    Raises:
        DataError: a turn is no message, or holds what no message can.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(Problem(where, name, f"not valid JSON: {error}", "write a JSON list")) from error
    given = as_list(value, where, name)
    if not given:
        raise DataError(Problem(where, name, "there are no messages", "write at least one question and one answer"))
    for index, turn in enumerate(given):
        _read_turn(turn, where, f"{name}[{index}]", turns)


def _read_turn(turn: object, where: Where, name: str, turns: Turns) -> None:
    if not isinstance(turn, (dict, Mapping)):  # the check for dict is ten times as fast
        instead = 'write {"role": "user", "content": "..."}'
        raise DataError(Problem(where, name, "not a message", instead, got=json_kind(turn)))
    role_key = "from" if "from" in turn and not isinstance(turn.get("role"), str) else "role"
    if role_key not in turn:
        near = next((key for key in turn if str(key).lower() in ("role", "from", "speaker", "author")), None)
        instead = 'name the speaker: {"role": "user", "content": "..."}' + (
            f' (write "role" for "{near}")' if near else ""
        )
        raise DataError(Problem(where, name, 'no "role"', instead, got=", ".join(map(str, turn)) or "an empty object"))
    given = turn[role_key]
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise DataError(_unknown_role(given, where, f"{name}.{role_key}"))
    if role == "call":
        _append_call(turn, where, name, turns)
        return
    content_key = _content_key(turn)
    content = turn.get(content_key)
    if isinstance(content, str) and turn.keys() <= _PLAIN and len(turn) == 2:
        turns.messages.append(Message(role, as_text(content, where, f"{name}.{content_key}")))
        return
    turns.messages.extend(_messages(turn, role, content_key, where, name, turns))


def _messages(
    turn: Mapping[str, Any], role: str, content_key: str, where: Where, name: str, turns: Turns
) -> Iterator[Message]:
    """The messages of a turn with more than a text: results of tools in its parts are messages of their own."""
    calls = _calls(turn, where, name)
    if content_key not in turn and not calls:
        raise DataError(_no_content(turn, where, name))
    content = turn.get(content_key)
    if role == "tool" and isinstance(content, Mapping) and not _TEXTS & content.keys():
        content = json.dumps(content, ensure_ascii=False)  # as results in parts are read
    parts = ContentParts() if content is None and calls else read_content_parts(content, where, f"{name}.{content_key}")
    parts.calls = [*calls, *parts.calls]
    reasoning = _reasoning(turn, parts, where, name)
    if (reasoning or parts.calls) and role != "assistant":
        wrong = "only the assistant thinks and calls tools"
        raise DataError(Problem(where, name, wrong, "move it to the assistant's turn", got=role))
    if parts.results and role not in ("user", "tool"):
        raise DataError(Problem(where, name, "a result of a tool", "write it as a turn of the tool", got=role))
    trained = _is_trained(turn, role, parts.marks, where, name)
    _name_unused(turn, content_key, role, where, name, turns)
    yield from parts.results
    if parts.text or not parts.results:
        yield Message(role, parts.text, _extra(turn, role, parts, reasoning), trained=trained)


def _extra(turn: Mapping[str, Any], role: str, parts: ContentParts, reasoning: str) -> dict[str, Any]:
    """What chat templates read of a turn besides role and content."""
    extra = {"tool_calls": parts.calls} if parts.calls else {}
    extra |= {key: turn[key] for key in ("tool_call_id", "name") if turn.get(key) is not None}
    extra |= {new: turn[old] for old, new in _OF_TOOLS.items() if role == "tool" and turn.get(old) is not None}
    return extra | ({"reasoning_content": reasoning} if reasoning else {})


def _content_key(turn: Mapping[str, Any]) -> str:
    """The key of a turn's text."""
    if "from" in turn and "value" in turn:
        return "value"
    return next((key for key in _CONTENT if key in turn), "content")


def _no_content(turn: Mapping[str, Any], where: Where, name: str) -> Problem:
    near = nearest("content", (key for key in turn if key not in _READ))
    instead = f'did you mean "{near}"?' if near else "add the text of the message"
    return Problem(where, name, 'no "content"', instead, got=", ".join(map(str, turn)))


def _unknown_role(given: object, where: Where, name: str) -> Problem:
    near = nearest(given, ROLES) if isinstance(given, str) else None
    instead = f'did you mean "{near}"?' if near else "write system, user, assistant or tool"
    got = f'"{given}"' if isinstance(given, str) else json_kind(given)
    return Problem(where, name, "unknown role", instead, got=got)


def _append_call(turn: Mapping[str, Any], where: Where, name: str, turns: Turns) -> None:
    """Append a call that is a turn of its own: the assistant says it, in one turn with what it said just before."""
    key = _content_key(turn)
    calls = read_calls(turn.get(key), where, f"{name}.{key}")
    trained = _is_trained(turn, "assistant", set(), where, name)
    _name_unused(turn, key, "assistant", where, name, turns)
    before = turns.messages[-1] if turns.messages else None
    if before is None or before.role != "assistant" or before.trained != trained:
        turns.messages.append(Message("assistant", "", {"tool_calls": calls}, trained))
        return
    joined = [*before.extra.get("tool_calls", ()), *calls]
    turns.messages[-1] = replace(before, extra={**before.extra, "tool_calls": joined})


def _calls(turn: Mapping[str, Any], where: Where, name: str) -> list[Mapping[str, Any]]:
    """The calls of a turn, with OpenAI's earlier `function_call` too."""
    given = turn.get("tool_calls")
    calls = read_calls(given, where, f"{name}.tool_calls") if given and given != "[]" else []
    legacy = turn.get("function_call")
    if not says_something(legacy):
        return calls
    if calls:
        wrong = "the turn has tool_calls and function_call"
        raise DataError(Problem(where, name, wrong, "write all calls into tool_calls"))
    return read_calls(legacy, where, f"{name}.function_call")


def _reasoning(turn: Mapping[str, Any], parts: ContentParts, where: Where, name: str) -> str:
    """The reasoning text of a turn, under whichever key or part it stands.

    Raises:
        DataError: it stands there twice with two texts, or is no text.
    """
    texts = {parts.reasoning} if parts.reasoning else set()
    for key in REASONING:
        value = turn.get(key)
        if says_something(value) and not isinstance(value, bool):
            texts.add(as_text(value, where, f"{name}.{key}"))
    if len(texts) > 1:
        keys = ", ".join(key for key in REASONING if key in turn)
        raise DataError(Problem(where, name, "the turn has two reasoning texts", "keep one", got=keys))
    return next(iter(texts), "")


def _is_trained(turn: Mapping[str, Any], role: str, of_parts: set[bool], where: Where, name: str) -> bool:
    """Whether the turn may carry loss: the marks of OpenAI (weight), axolotl (train), ms-swift (loss) and others.

    Raises:
        DataError: a mark is neither yes nor no, marks contradict each other, or one asks for loss on a question.
    """
    marks = {key: read_mark(turn[key], where, f"{name}.{key}") for key in MARKS if turn.get(key) is not None}
    wrong = next((key for key, mark in marks.items() if mark and role != "assistant" and key != "weight"), None)
    if wrong is not None:
        problem = Problem(where, f"{name}.{wrong}", f"asks for loss on a turn of the {role}", "remove the mark")
        raise DataError(problem)
    if len({*marks.values()}) > 1:
        wrong = "marks ask for loss on the turn and for none"
        raise DataError(Problem(where, name, wrong, "write one mark", got=", ".join(marks)))
    return False not in {*marks.values(), *of_parts}


def _name_unused(turn: Mapping[str, Any], content_key: str, role: str, where: Where, name: str, turns: Turns) -> None:
    """Add the keys without effect to `turns.unused`.

    Raises:
        DataError: one changes what would be learnt.
    """
    read = {content_key, *_READ, *turns.ignored, *(_OF_TOOLS if role == "tool" else ())}
    turns.unused.update(key for key in REASONING if isinstance(turn.get(key), bool))
    speakers = [turn[key] for key in ("role", "from") if isinstance(turn.get(key), str)]
    if len({ROLES.get(speaker) for speaker in speakers}) > 1:
        turns.unused.add("from")
    for key in turn.keys() - read:
        value = turn[key]
        if not says_something(value) or (key in _CONTENT and value == turn.get(content_key)):
            continue
        if key in _REFUSED and (value != 1 if key in _LOSS_KEYS else value is not False):
            raise DataError(Problem(where, f"{name}.{key}", "cannot be trained", _REFUSED[key], got=json_kind(value)))
        turns.unused.add(key)
