"""Contents that are lists of parts: OpenAI's, Anthropic's, Bedrock's (untyped, camelCase) and Gemini's (untyped)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastft.data.calls import read_calls
from fastft.data.example import Message
from fastft.data.json_rows import json_kind
from fastft.data.values import as_text
from fastft.errors import DataError, Problem, Where, nearest

# The keys by which real files keep a turn or a part of it out of the loss.
MARKS = ("weight", "train", "loss", "trainable", "loss_weight")
_TEXT_KINDS = (None, "text", "input_text", "output_text")
_A_TEXT_PART = 'write {"type": "text", "text": "..."}'


@dataclass
class ContentParts:
    """The parts of a content, joined by kind. `marks`: whether it asks for loss, where its text parts say so."""

    text: str = ""
    reasoning: str = ""
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    marks: set[bool] = field(default_factory=set)


def read_content_parts(content: object, where: Where, name: str) -> ContentParts:
    """The parts of a content: a text, a part, or a list of both.

    Raises:
        DataError: a part is none that can be trained, or the parts ask for loss on one and for none on another.
    """
    parts = ContentParts()
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list | tuple):
        parts.text = as_text(content, where, name)
        return parts
    for index, part in enumerate(content):
        given = {"text": part} if isinstance(part, str) else part
        if not isinstance(given, Mapping):
            wrong = "not a part of a content"
            raise DataError(Problem(where, f"{name}[{index}]", wrong, _A_TEXT_PART, got=json_kind(part)))
        _add_part(parts, {key: value for key, value in given.items() if value is not None}, where, f"{name}[{index}]")
    if len(parts.marks) > 1:
        wrong = "one part of the turn is kept out of the loss and another is not"
        raise DataError(Problem(where, name, wrong, "write one mark for the whole turn"))
    return parts


def text_of(value: object, where: Where, name: str) -> str:
    """The text of a string or of a list of text parts.

    Raises:
        DataError: it holds more.
    """
    parts = read_content_parts(value, where, name)
    if parts.reasoning or parts.calls or parts.results:
        raise DataError(Problem(where, name, "holds more than text", "write a string"))
    return parts.text


def read_mark(mark: object, where: Where, name: str) -> bool:
    """Whether a mark asks for loss.

    Raises:
        DataError: it is neither yes nor no.
    """
    if mark not in (0, 1):
        raise DataError(Problem(where, name, "not 0 or 1", "write 0 to keep it out of the loss", str(mark)))
    return bool(mark)


def _add_part(parts: ContentParts, part: Mapping[str, Any], where: Where, name: str) -> None:
    """Add one part, which is known by its `type` or, without one, by its only key."""
    kind = part.get("type")
    known = [key for key in ([kind] if isinstance(kind, str) else part) if key in _READERS]
    if known:
        _READERS[known[0]](parts, part, where, name)
        return
    text = _first(part, "text", "value", "content") if kind in _TEXT_KINDS else None
    if not isinstance(text, str):
        raise DataError(_no_text(part, where, name))
    if parts.calls:
        wrong = "text after a call of a tool in one turn: a template writes it before the call"
        raise DataError(Problem(where, name, wrong, "put the text first, or make two turns"))
    parts.text += as_text(text, where, name)
    parts.marks.add(all(read_mark(part[key], where, f"{name}.{key}") for key in MARKS if key in part))


def _no_text(part: Mapping[str, Any], where: Where, name: str) -> Problem:
    kind = part.get("type")
    got = str(kind) if kind is not None else ", ".join(map(str, part)) or "an empty object"
    near = nearest("text", part.keys() - {"text"}) if kind in _TEXT_KINDS else None
    instead = f'no "text" in it; did you mean "{near}"?' if near else _A_TEXT_PART
    return Problem(where, name, "only text parts can be trained on", instead, got)


def _first(value: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of `keys` that is there, or None."""
    return next((value[key] for key in keys if key in value), None)


def _add_reasoning(parts: ContentParts, part: Mapping[str, Any], where: Where, name: str) -> None:
    inner = part.get("reasoningContent", part)
    inner = inner.get("reasoningText", inner) if isinstance(inner, Mapping) else inner
    keys = ("thinking", "reasoning", "think", "text", "value", "content")
    parts.reasoning += as_text(_first(inner, *keys) if isinstance(inner, Mapping) else inner, where, name)


def _add_call(parts: ContentParts, part: Mapping[str, Any], where: Where, name: str) -> None:
    call = _first(part, "toolUse", "functionCall", "value", "function") or part
    if isinstance(call, Mapping) and "toolUseId" in call:
        call = {**call, "id": call["toolUseId"]}
    parts.calls += read_calls(call, where, name)


def _add_result(parts: ContentParts, part: Mapping[str, Any], where: Where, name: str) -> None:
    """Add the message of a tool's result."""
    result = _first(part, "toolResult", "functionResponse") or part
    if not isinstance(result, Mapping):
        raise DataError(Problem(where, name, "not a result of a tool", "write an object", got=json_kind(result)))
    identity = _first(result, "tool_use_id", "toolUseId", "id")
    extra = {"tool_call_id": identity, "name": result.get("name")}
    text = _result_text(_first(result, "content", "response", "output", "value"), where, name)
    parts.results.append(Message("tool", text, {key: value for key, value in extra.items() if value is not None}))


def _result_text(content: object, where: Where, name: str) -> str:
    """What a tool gave, as text; what is no text is written as JSON."""
    if isinstance(content, list) and all(isinstance(inner, Mapping) and "text" in inner for inner in content):
        return text_of(content, where, name)
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        content = content[0].get("json", content)
    if content is None:
        return ""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return as_text(text, where, name)


# How a part is read, by its type or by the key that stands for one.
_READERS: dict[str, Callable[[ContentParts, Mapping[str, Any], Where, str], None]] = {
    **dict.fromkeys(("thinking", "reasoning", "think", "reasoningContent"), _add_reasoning),
    **dict.fromkeys(("tool_use", "tool_call", "function_call", "toolUse", "functionCall"), _add_call),
    **dict.fromkeys(("tool_result", "toolResult", "functionResponse"), _add_result),
}
