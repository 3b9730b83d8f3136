"""Turns of real files as messages: the one form of every dialect, before any chat template.

Read are OpenAI's messages (with its content parts and legacy function calls), ShareGPT, and the parts of Anthropic,
Bedrock and Gemini. What says something that no message can hold is a problem; what only describes a turn is named, so
that it can be counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastft.data.calls import read_calls
from fastft.data.example import Message
from fastft.data.values import as_list, as_text, kind, says_something
from fastft.errors import DataError, Problem, Where, nearest

# The names in real data sets for the roles of chat templates. "call": a call of a tool as a turn of its own.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_call": "call",
    "tool_call": "call",
}
# The keys that chat templates use besides role and content.
EXTRAS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
# Other names of a key, which mean the same.
REASONING = ("reasoning_content", "reasoning", "thinking")
MARKS = ("weight", "train", "loss", "trainable", "loss_weight")
_CONTENT = ("content", "value", "parts", "text")
_OF_TOOLS = {"tool_name": "name", "tool_use_id": "tool_call_id"}
_PLAIN = frozenset({"role", "content", "from", "value"})
_READ = frozenset({*EXTRAS, *REASONING, *MARKS, "role", "from", "function_call"})
MEDIA = ("image", "images", "image_url", "audio", "audios", "input_audio", "video", "videos")
# Keys that change what is learnt and that no message has: what to write instead of each.
_REFUSED = {
    **dict.fromkeys(MEDIA, "only text can be trained: remove the row"),
    **dict.fromkeys(
        ("thought", "thoughts", "think", "reasoning_text", "reasoningContent", "reasoning_details"),
        'did you mean "reasoning_content"?',
    ),
    **dict.fromkeys(("toolCalls", "calls", "function_calls"), 'did you mean "tool_calls"?'),
    **dict.fromkeys(("mask", "train_detail", "training_detail"), 'write "weight": 0 to keep a turn out of the loss'),
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


def text_of(value: object, where: Where, name: str) -> str:
    """The text of a string or of a list of text parts."""
    parts = _parts(value, where, name)
    if parts.reasoning or parts.calls or parts.results:
        raise DataError(Problem(where, name, "holds more than text", "write a string"))
    return parts.text


def _read_turn(turn: object, where: Where, name: str, turns: Turns) -> None:
    if not isinstance(turn, (dict, Mapping)):  # the check for dict is ten times as fast
        instead = 'write {"role": "user", "content": "..."}'
        raise DataError(Problem(where, name, "not a message", instead, got=kind(turn)))
    role_key = "from" if "from" in turn and turn.get("role") not in ROLES else "role"
    if role_key not in turn:
        instead = 'name the speaker: {"role": "user", "content": "..."}'
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
    content = turn.get(content_key)
    if content_key not in turn and not calls:
        raise DataError(_no_content(turn, where, name))
    nothing = content is None and (bool(calls) or _reasoning_key(turn) is not None)
    parts = _Parts() if nothing else _parts(content, where, f"{name}.{content_key}")
    calls = [*calls, *parts.calls]
    extra = {key: turn[key] for key in ("tool_call_id", "name") if turn.get(key) is not None}
    extra |= {new: turn[old] for old, new in _OF_TOOLS.items() if role == "tool" and turn.get(old) is not None}
    reasoning = _reasoning(turn, role, parts, where, name)
    extra |= {"tool_calls": calls} if calls else {}
    extra |= {"reasoning_content": reasoning} if reasoning else {}
    if (reasoning or calls) and role != "assistant":
        wrong = "only the assistant thinks and calls tools"
        raise DataError(Problem(where, name, wrong, "move it to the assistant's turn", got=role))
    if parts.results and role not in ("user", "tool"):
        raise DataError(Problem(where, name, "a result of a tool", "write it as a turn of the tool", got=role))
    trained = _is_trained(turn, role, parts.marks, where, name)
    _name_unused(turn, content_key, role, where, name, turns)
    yield from parts.results
    if parts.text or not parts.results:
        yield Message(role, parts.text, extra, trained=trained)


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
    got = f'"{given}"' if isinstance(given, str) else kind(given)
    return Problem(where, name, "unknown role", instead, got=got)


def _append_call(turn: Mapping[str, Any], where: Where, name: str, turns: Turns) -> None:
    """Append a call that is a turn of its own: the assistant says it, in one turn with what it said just before."""
    key = _content_key(turn)
    calls = read_calls(turn.get(key), where, f"{name}.{key}")
    trained = _is_trained(turn, "assistant", [], where, name)
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


def _reasoning_key(turn: Mapping[str, Any]) -> str | None:
    return next((key for key in REASONING if isinstance(turn.get(key), str) and turn[key].strip()), None)


def _reasoning(turn: Mapping[str, Any], role: str, parts: _Parts, where: Where, name: str) -> str:
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
        raise DataError(Problem(where, name, f"two reasoning texts ({keys})", "keep one", got=role))
    return next(iter(texts), "")


def _is_trained(turn: Mapping[str, Any], role: str, of_parts: Sequence[bool], where: Where, name: str) -> bool:
    """Whether the turn may carry loss: the marks of OpenAI (weight), axolotl (train), ms-swift (loss) and others.

    Raises:
        DataError: a mark is neither yes nor no, marks contradict each other, or one asks for loss on a question.
    """
    marks = set(of_parts)
    for key in MARKS:
        mark = turn.get(key)
        if mark is None:
            continue
        if mark not in (0, 1):
            raise DataError(
                Problem(where, f"{name}.{key}", "not 0 or 1", "write 0 to keep it out of the loss", str(mark))
            )
        if mark and role != "assistant" and key != "weight":
            wrong = f"asks for loss on a turn of the {role}"
            raise DataError(Problem(where, f"{name}.{key}", wrong, "only answers can be marked; remove the mark"))
        marks.add(bool(mark))
    if len(marks) > 1:
        wrong = "marks ask for loss on it and for none"
        raise DataError(Problem(where, name, wrong, "write one mark for the whole turn"))
    return not marks or marks.pop()


def _name_unused(turn: Mapping[str, Any], content_key: str, role: str, where: Where, name: str, turns: Turns) -> None:
    """Add the keys without effect to `turns.unused`.

    Raises:
        DataError: one changes what would be learnt.
    """
    for key, value in turn.items():
        if (key in _READ and not isinstance(value, bool)) or key in MARKS or key == content_key or key in turns.ignored:
            continue
        if (role == "tool" and key in _OF_TOOLS) or not says_something(value):
            continue
        if key in _REFUSED and value is not False and not (key == "reasoning_details" and _reasoning_key(turn)):
            raise DataError(Problem(where, f"{name}.{key}", "cannot be trained", _REFUSED[key], got=kind(value)))
        if key != "from" and not (key in _CONTENT and value == turn.get(content_key)):
            turns.unused.add(key)


@dataclass
class _Parts:
    """The parts of a content, joined by kind. `marks`: whether each text part asks for loss, where it says so."""

    text: str = ""
    reasoning: str = ""
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    marks: list[bool] = field(default_factory=list)


def _parts(content: object, where: Where, name: str) -> _Parts:
    """The parts of a content: a text, a part, or a list of parts."""
    parts = _Parts()
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        parts.text = as_text(content, where, name)
        return parts
    marked = 0
    for index, part in enumerate(content):
        place = f"{name}[{index}]"
        if isinstance(part, str):
            part = {"text": part}
        if not isinstance(part, Mapping):
            raise DataError(Problem(where, place, "not a part of a content", _A_TEXT_PART, got=kind(part)))
        texts = parts.text
        _add_part(parts, {key: value for key, value in part.items() if value is not None}, where, place)
        if parts.text != texts:
            marks = {key: part[key] for key in MARKS if part.get(key) is not None}
            marked += bool(marks)
            parts.marks += [_is_trained(marks, "assistant", [], where, place)] if marks else []
    if marked and not all(parts.marks) and marked < len(content):
        wrong = "one part of the turn is kept out of the loss and another is not"
        raise DataError(Problem(where, name, wrong, "write one mark for the whole turn"))
    return parts


_A_TEXT_PART = 'write {"type": "text", "text": "..."}'
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "reasoning", "think")
_CALL_PARTS = ("tool_use", "tool_call", "function_call")
_RESULT_PARTS = ("tool_result",)


def _add_part(parts: _Parts, part: Mapping[str, Any], where: Where, name: str) -> None:
    """Add one part, of OpenAI, Anthropic, Bedrock (untyped, camelCase) or Gemini (untyped).

    Raises:
        DataError: it is none that can be trained.
    """
    part_kind = part.get("type")
    text = next((part[key] for key in ("text", "value", "content") if isinstance(part.get(key), str)), None)
    call = next((part[key] for key in ("toolUse", "functionCall") if key in part), None)
    result = next((part[key] for key in ("toolResult", "functionResponse") if key in part), None)
    if part_kind in _REASONING_PARTS or "reasoningContent" in part:
        parts.reasoning += _reasoning_part(part, where, name)
    elif part_kind in _CALL_PARTS or call is not None:
        given = call or part.get("value") or part.get("function") or part
        parts.calls += read_calls(_with_id(given), where, name)
    elif part_kind in _RESULT_PARTS or result is not None:
        parts.results.append(_result(result or part, where, name))
    elif part_kind in _TEXT_PARTS and text is not None:
        if parts.calls:
            wrong = "text after a call of a tool in one turn: a template writes it before the call"
            raise DataError(Problem(where, name, wrong, "put the text first, or make two turns"))
        parts.text += as_text(text, where, name)
    else:
        got = str(part_kind) if part_kind is not None else ", ".join(map(str, part)) or "an empty object"
        near = nearest("text", part) if part_kind in _TEXT_PARTS else None
        instead = f'no "text" in it; did you mean "{near}"?' if near else _A_TEXT_PART
        raise DataError(Problem(where, name, "only text parts can be trained on", instead, got))


def _with_id(call: object) -> object:
    """A call with the name of its id in OpenAI's form (Bedrock: toolUseId)."""
    if isinstance(call, Mapping) and call.get("toolUseId") is not None:
        return {**call, "id": call["toolUseId"]}
    return call


def _reasoning_part(part: Mapping[str, Any], where: Where, name: str) -> str:
    inner = part.get("reasoningContent", part)
    inner = inner.get("reasoningText", inner) if isinstance(inner, Mapping) else inner
    keys = ("thinking", "reasoning", "text", "value", "content")
    found = next((inner[key] for key in keys if key in inner), None) if isinstance(inner, Mapping) else inner
    return as_text(found, where, name)


def _result(result: Mapping[str, Any], where: Where, name: str) -> Message:
    """The message of a tool's result; a result that is no text is written as JSON."""
    content = next((result[key] for key in ("content", "response", "output") if key in result), "")
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        content = text_of(content, where, name)
    elif isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        content = content[0].get("json", content)
    text = as_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), where, name)
    identity = next((result[key] for key in ("tool_use_id", "toolUseId", "id") if key in result), None)
    extra = {"tool_call_id": identity} if identity is not None else {}
    extra |= {"name": result["name"]} if "name" in result else {}
    return Message("tool", text, extra)
