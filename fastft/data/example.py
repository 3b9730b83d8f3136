"""The Example: what a row of any format becomes, a list of messages or plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fastft.errors import Where


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: the speaker (`system`, `user`, `assistant` or `tool`) and the text."""

    role: str
    content: str
    # Other keys for chat templates: tool_calls, tool_call_id, name, reasoning_content.
    extra: Mapping[str, Any] = field(default_factory=dict)
    # False for `"weight": 0` in the row (OpenAI's way to keep an answer out of the loss).
    trained: bool = True

    @property
    def said(self) -> str:
        """What the turn says: its text and its calls."""
        calls = self.extra.get("tool_calls")
        return self.content + (json.dumps(calls, sort_keys=True) if calls else "")

    def as_template_value(self) -> dict[str, Any]:
        """The message as the dict that chat templates expect."""
        value = {"role": self.role, "content": self.content, **self.extra}
        if "tool_calls" in value:
            value["tool_calls"] = [_with_arguments(call) for call in value["tool_calls"]]
        return value


class _Arguments(dict[str, Any]):
    """The arguments of a call: an object that templates which expect JSON text (DeepSeek's) can join to a text."""

    def __radd__(self, before: str) -> str:
        return before + json.dumps(self, ensure_ascii=False)

    def __add__(self, after: str) -> str:
        return json.dumps(self, ensure_ascii=False) + after


def _with_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), Mapping):
        return call
    return {**call, "function": {**function, "arguments": _Arguments(function["arguments"])}}


@dataclass(frozen=True, slots=True)
class Example:
    """One parsed row: a conversation with at least one answer, or (`text`) plain text without turns."""

    where: Where
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    # Columns, and keys of turns as "[].key", that have no effect; not written to JSON.
    unused: frozenset[str] = frozenset()
    # The conversation that ends in the rejected answer, where `messages` ends in the chosen one; not written to JSON.
    rejected: tuple[Message, ...] = ()
    # Whether the verdict on the last answer is bad; not written to JSON.
    is_bad: bool = False

    @property
    def answers(self) -> list[int]:
        """The numbers, from 0, of the assistant's messages."""
        return [number for number, message in enumerate(self.messages) if message.role == "assistant"]

    def place(self, number: int) -> str:
        """What problems call message `number`."""
        return f"message {number + 1} ({self.messages[number].role})"

    @property
    def characters(self) -> int:
        """The length of the text, without control tokens and tools."""
        if self.text is not None:
            return len(self.text)
        return sum([len(message.content) for message in (*self.messages, *self.rejected)])

    def as_json(self) -> str:
        """The whole example as JSON, for `from_json`."""
        messages = [[m.role, m.content, dict(m.extra), m.trained] for m in self.messages]
        tools = [dict(tool) for tool in self.tools]
        return json.dumps({"where": asdict(self.where), "messages": messages, "tools": tools, "text": self.text})

    @staticmethod
    def from_json(written: str) -> Example:
        """The example that `as_json` wrote."""
        record = json.loads(written)
        messages = tuple(Message(*one) for one in record["messages"])
        return Example(Where(**record["where"]), messages, tuple(record["tools"]), record["text"])
