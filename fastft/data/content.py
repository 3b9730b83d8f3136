"""The content contract: what of a message or a tool is missing in a piece of rendered text.

Templates write text as it is, trimmed, or as JSON; calls and tools as JSON, as XML or in a notation of their own. So a
text stands in a piece when it, or its JSON form, is part of it, and a structure when each of its names and values is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

from fastft.data.example import Message

SHORT_CHARACTERS = 12
Lost = Literal["text", "reasoning", "calls"]

# Reasoning inside the text of an answer: a think block before the rest.
_THOUGHT = re.compile(
    r"\s*([<\[◁][\w:]*think(?:ing)?[>\]▷])(.*?)[<\[◁]/[\w:]*think(?:ing)?[>\]▷](.*)", re.DOTALL | re.I
)
# What stands before the final text of an answer: the end of its reasoning.
_BEFORE_FINAL = re.compile(
    r".*(?:[<\[◁]/[\w:]*think(?:ing)?[>\]▷]|<\|channel\|>final<\|message\|>|<channel\|>)", re.DOTALL | re.I
)
_BEGUN_THOUGHT = re.compile(
    r"[<\[◁][\w:]*think(?:ing)?[>\]▷]|<\|channel\|>analysis<\|message\|>|<\|channel>thought", re.I
)
# The keys of a JSON schema whose strings a model needs to use the tool.
_SCHEMA_TEXTS = ("name", "description", "enum")


def stands(text: str, piece: str) -> bool:
    """Whether `text`, apart from white space around it, is part of `piece`, as it is or as JSON."""
    text = text.strip()
    return text in piece or _in_json(text, piece)


def lost_of(message: Message, piece: str) -> Lost | None:
    """The first part of `message` that is missing in `piece`: its reasoning, its text or its calls; None if whole."""
    if not message.extra:  # almost every message
        if stands(message.content, piece):
            return None
        reasoning, text = split_thought(message.content)
        return "text" if not reasoning or not stands(text, piece) else "reasoning"
    reasoning, text = thought_and_text(message)
    if not stands(text, piece):
        return "text"
    calls = message.extra.get("tool_calls")
    if calls and not _calls_stand(calls, piece):
        return "calls"
    return None if stands(reasoning, piece) else "reasoning"


def strange_in(answer: str, message: Message, others: Iterable[Message]) -> Message | None:
    """The first of the `others` whose text stands in the rendered `answer` beside what `message` says itself.

    Short texts are not looked for: they may be a part of a frame, as "think" is of <think>.
    """
    if message.extra.get("tool_calls"):
        return None  # arguments repeat what was asked
    rest = answer
    for part in ordered_texts(message):
        if part not in rest:
            return None  # written in another form, in which it may quote the question
        rest = rest.replace(part, "", 1)
    for other in others:
        if (
            other is not message
            and SHORT_CHARACTERS <= len(other.content) <= len(rest)
            and other.content.strip() in rest
        ):
            return other
    return None


def thought_and_text(message: Message) -> tuple[str, str]:
    """The reasoning of an answer ("" for none), and its text without it."""
    given = message.extra.get("reasoning_content")
    return (given, message.content) if isinstance(given, str) and given else split_thought(message.content)


def split_thought(content: str) -> tuple[str, str]:
    """The think block that a text begins with ("" for none), and the rest."""
    found = _THOUGHT.fullmatch(content)
    return (found[2].strip(), found[3].strip()) if found else ("", content)


def is_in_thought(text: str) -> bool:
    """Whether reasoning begins in `text` and does not end there."""
    return _BEGUN_THOUGHT.search(_BEFORE_FINAL.sub("", text, count=1)) is not None


def final_text(answer: str) -> str:
    """The text of an answer without reasoning and white space around it: what exact match compares."""
    return _BEFORE_FINAL.sub("", answer, count=1).strip()


def ordered_texts(message: Message) -> Iterator[str]:
    """What an answer holds, in the order in which models say it: reasoning, text, the name of each call."""
    reasoning, text = thought_and_text(message)
    yield from (part for part in (reasoning.strip(), text.strip()) if part)
    for call in message.extra.get("tool_calls") or ():
        yield str(_function(call).get("name", ""))


def tools_stand(tools: tuple[Mapping[str, Any], ...], text: str) -> bool:
    """Whether each tool's name, description and parameters are part of `text`."""
    return all(_value_stands(leaf, text) for leaf in _tool_texts(json.dumps(tools, default=str)))


@lru_cache(maxsize=256)
def _tool_texts(tools: str) -> tuple[str, ...]:
    """The names, descriptions and allowed values in a JSON list of tools; most rows have the tools of another row."""
    return tuple(dict.fromkeys(_schema_texts(json.loads(tools))))


def _schema_texts(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for entry in value:
            yield from _schema_texts(entry)
    elif isinstance(value, dict):
        for name, entry in value.items():
            if name == "properties" and isinstance(entry, dict):
                yield from entry
                yield from _schema_texts(list(entry.values()))
            elif name in _SCHEMA_TEXTS:
                yield from (text for text in (entry if isinstance(entry, list) else [entry]) if isinstance(text, str))
            else:
                yield from _schema_texts(entry)


def _calls_stand(calls: Any, piece: str) -> bool:
    functions = [_function(call) for call in calls]
    names = Counter(str(function.get("name", "")) for function in functions)
    if any(piece.count(name) < times for name, times in names.items()):
        return False
    return all(_arguments_stand(function.get("arguments"), piece) for function in functions)


def _function(call: Any) -> Mapping[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    return function if isinstance(function, Mapping) else {}


def _arguments_stand(arguments: Any, piece: str) -> bool:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return stands(arguments, piece)
    if json.dumps(arguments, ensure_ascii=False) in piece:
        return True
    return all(_value_stands(leaf, piece) for leaf in _leaves(arguments))


def _leaves(value: Any) -> Iterator[Any]:
    """The names and the plain values in `value`."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield name
            yield from _leaves(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _value_stands(value: Any, piece: str) -> bool:
    if not isinstance(value, str):
        return json.dumps(value, default=str) in piece or str(value) in piece
    return value in piece or _in_json(value, piece) or repr(value)[1:-1] in piece or value.strip() in piece


def _in_json(text: str, piece: str) -> bool:
    """Whether `text` is part of `piece` as JSON, or as JSON inside of JSON."""
    once = json.dumps(text, ensure_ascii=False)[1:-1]
    return once in piece or json.dumps(text)[1:-1] in piece or json.dumps(once, ensure_ascii=False)[1:-1] in piece
